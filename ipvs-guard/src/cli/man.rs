//! `ipvs-guard man`.

use anyhow::Context as _;
use clap::CommandFactory as _;

use crate::failure::Failure;

/// Print the manual page, of the whole or of one command, for man -l -
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The command; the whole when not given
    command: Option<String>,
}

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    let mut cli = super::Cli::command();
    cli.build();
    let page = match &args.command {
        None => cli,
        Some(name) => cli.find_subcommand(name).cloned().ok_or_else(|| {
            Failure::Usage(format!("man {name}: no such command; see ipvs-guard help"))
        })?,
    };
    let mut text = Vec::new();
    clap_mangen::Man::new(page)
        .render(&mut text)
        .context("writing the manual page")?;
    super::print(&text)
}
