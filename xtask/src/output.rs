//! What xtask itself has to say goes to standard error: standard output belongs to the command that runs in the guest.

/// Prints one line of progress or one error.
macro_rules! say {
    ($($part:tt)*) => { eprintln!("xtask: {}", format_args!($($part)*)) };
}
pub(crate) use say;

/// Prints one line of a command's result on standard output.
#[allow(clippy::print_stdout, reason = "the result that xtask itself has")]
pub(crate) fn print_line(line: &str) {
    println!("{line}");
}
