//! The `ipvs-guard` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    ipvs_guard::cli::main()
}
