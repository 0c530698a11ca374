//! Lines for the operator, on standard error.

use std::{
    fmt,
    io::{self, Write as _},
};

/// "1 event", "2 events".
pub(crate) fn counted(number: u64, one: &str) -> String {
    format!("{number} {one}{}", if number == 1 { "" } else { "s" })
}

/// Writes one line. That nobody can read it, a closed pipe or a full disk, is no
/// reason to end: `eprintln!` would panic.
pub(crate) fn say(line: fmt::Arguments<'_>) {
    let _unread = writeln!(io::stderr(), "{line}");
}
