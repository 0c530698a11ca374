//! What a person working on the project runs: `cargo xtask COMMAND`.

mod bench;
mod build;
mod cache;
mod image;
mod lab;
mod output;
mod process;
mod setup;
mod test;
mod vm;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::output::say;

/// Builds, runs and measures ipvs-guard.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Setup(setup::Args),
    Build(build::Args),
    Image(image::Args),
    Test(test::Args),
    Lab(lab::Args),
    Bench(bench::Args),
    Vm(vm::Args),
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Setup(args) => setup::run(&args).map(|()| ExitCode::SUCCESS),
        Command::Build(args) => build::run(&args).map(|()| ExitCode::SUCCESS),
        Command::Image(args) => image::run(&args).map(|()| ExitCode::SUCCESS),
        Command::Test(args) => test::run(&args),
        Command::Lab(args) => lab::run(&args),
        Command::Bench(args) => bench::run(&args).map(|()| ExitCode::SUCCESS),
        Command::Vm(args) => vm::run(&args),
    };
    result.unwrap_or_else(|error| {
        say!("{error:#}");
        ExitCode::FAILURE
    })
}
