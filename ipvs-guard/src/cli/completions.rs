//! `ipvs-guard completions`.

use clap::CommandFactory as _;
use clap_complete::Shell;

use crate::failure::Failure;

/// Print shell completions: bash, elvish, fish, powershell or zsh
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The shell
    #[arg(value_name = "bash|elvish|fish|powershell|zsh")]
    shell: Shell,
}

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    let mut text = Vec::new();
    clap_complete::generate(
        args.shell,
        &mut super::Cli::command(),
        "ipvs-guard",
        &mut text,
    );
    super::print(&text)
}
