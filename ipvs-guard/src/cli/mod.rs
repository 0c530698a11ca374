//! The commands: a file each.

mod cleanup;
mod completions;
mod config;
mod enforce;
mod export;
mod lab;
mod man;
mod schema;
mod stream;
mod watch;

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand, error::ErrorKind};

use crate::{failure::Failure, say::say, settings};

/// Observes and guards IPVS: shows each SYN that reuses a port and lands on a
/// draining or dead real server.
#[derive(Debug, Parser)]
#[command(name = "ipvs-guard", version, propagate_version = true)]
#[command(
    after_help = "Exit codes: 0 done, 1 as the command says, 2 usage, 3 missing privilege, \
                        4 IPVS or kernel feature missing, 5 internal."
)]
pub struct Cli {
    /// What is logged on standard error: error, warn, info, debug or trace
    #[arg(
        long,
        value_name = "L",
        global = true,
        default_value = "warn",
        value_parser = settings::log_level,
        env = "IPVS_GUARD_LOG_LEVEL"
    )]
    log_level: log::LevelFilter,

    /// TOML file with the names of the flags; flags and environment win over it
    #[arg(long, value_name = "FILE", global = true, env = "IPVS_GUARD_CONFIG")]
    config: Option<PathBuf>,

    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Watch(watch::Args),
    Enforce(enforce::Args),
    Cleanup(cleanup::Args),
    Lab(lab::Args),
    Config(config::Args),
    Schema(schema::Args),
    Completions(completions::Args),
    Man(man::Args),
}

/// What is wrong with a configuration file, a line each, as `config check` tells it.
pub fn check_config(path: &Path) -> Vec<String> {
    config::faults(path)
        .iter()
        .map(settings::ConfigError::told)
        .collect()
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().collect();
    match parse(&args).and_then(run) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Stop::Printed(code)) => ExitCode::from(code),
        Err(Stop::Failed(failure)) => {
            let mut line = failure.to_string();
            if matches!(failure, Failure::Usage(_)) {
                line = settings::with_origin(&Cli::command(), &args, line, None);
            }
            say(format_args!("ipvs-guard: {line}"));
            ExitCode::from(failure.code())
        }
    }
}

enum Stop {
    /// Help or version went out.
    Printed(u8),
    Failed(Failure),
}

impl From<Failure> for Stop {
    fn from(failure: Failure) -> Self {
        Self::Failed(failure)
    }
}

fn parse(args: &[OsString]) -> Result<Cli, Stop> {
    let mut command = Cli::command();
    // These take nothing from a file, and must not fail by one; nor must help.
    let bare = match command.clone().try_get_matches_from(args) {
        Ok(matches) => matches!(
            matches.subcommand_name(),
            Some("config" | "schema" | "completions" | "man")
        ),
        Err(error) => !error.use_stderr(),
    };
    if let Some(path) = settings::path_from(args).filter(|_| !bare) {
        command = settings::apply(command, &path).map_err(|e| Failure::Usage(e.to_string()))?;
    }
    command
        .try_get_matches_from(args)
        .and_then(|matches| Cli::from_arg_matches(&matches))
        .map_err(|error| {
            let bare = error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand;
            if bare || !error.use_stderr() {
                // The text is the answer; that nobody reads it is no failure.
                let _closed = error.print();
                return Stop::Printed(if bare { 2 } else { 0 });
            }
            let refused = settings::refused(&error);
            Stop::Failed(Failure::Usage(settings::with_origin(
                &Cli::command(),
                args,
                settings::one_line(&error, settings::section(&Cli::command(), args)),
                refused.as_ref(),
            )))
        })
}

fn run(cli: Cli) -> Result<(), Stop> {
    let Cli {
        log_level,
        config: _,
        command,
    } = cli;
    env_logger::Builder::new()
        .filter_level(log_level)
        // How aya puts programs together fills screens, and is nobody's question.
        .filter_module("aya", log_level.min(log::LevelFilter::Warn))
        .filter_module("aya_obj", log_level.min(log::LevelFilter::Warn))
        .format_timestamp(None)
        .format(|out, record| {
            use std::io::Write as _;
            writeln!(out, "ipvs-guard: {}", record.args())
        })
        .init();
    match command {
        Command::Watch(args) => watch::run(args)?,
        Command::Enforce(args) => enforce::run(args)?,
        Command::Cleanup(args) => cleanup::run(&args)?,
        Command::Lab(args) => lab::run(&args)?,
        Command::Config(args) => return config::run(&args),
        Command::Schema(args) => schema::run(&args)?,
        Command::Completions(args) => completions::run(&args)?,
        Command::Man(args) => man::run(&args)?,
    }
    Ok(())
}

/// Prints a command's whole answer; that the reader left early is no failure.
fn print(text: &[u8]) -> Result<(), Failure> {
    use std::io::Write as _;
    let mut out = std::io::stdout().lock();
    match out.write_all(text).and_then(|()| out.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(Failure::Internal(
            anyhow::Error::new(error).context("writing to standard output"),
        )),
        Ok(()) | Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    fn failure(args: &[&str]) -> String {
        let args: Vec<OsString> = args.iter().map(OsString::from).collect();
        match parse(&args) {
            Err(Stop::Failed(failure)) => {
                assert_eq!(failure.code(), 2);
                failure.to_string()
            }
            Ok(_) | Err(Stop::Printed(_)) => panic!("{args:?} was taken"),
        }
    }

    #[test]
    fn bad_input_is_one_line_that_names_it() {
        for (args, expect) in [
            (
                vec!["ipvs-guard", "watch", "--event", "nonsense"],
                "nonsense",
            ),
            (vec!["ipvs-guard", "watch", "--vip", "10.0.0"], "10.0.0"),
            (vec!["ipvs-guard", "watch", "--client", "x/8"], "x/8"),
            (vec!["ipvs-guard", "watch", "--duration", "soon"], "soon"),
            (vec!["ipvs-guard", "watch", "--format", "xml"], "xml"),
            (
                vec!["ipvs-guard", "watch", "--duration", "0"],
                "no time at all",
            ),
            (
                vec!["ipvs-guard", "--log-level", "loud", "watch"],
                "the levels are error",
            ),
            (vec!["ipvs-guard", "wotch"], "wotch"),
            (
                vec!["ipvs-guard", "completions"],
                "not provided: <bash|elvish|fish|powershell|zsh>; see",
            ),
            (
                vec!["ipvs-guard", "--config", "/nonexistent", "watch"],
                "/nonexistent",
            ),
        ] {
            let line = failure(&args);
            assert!(line.contains(expect), "{line}");
            assert!(!line.contains('\n'), "{line}");
        }
    }
}
