//! `ipvs-guard config`.

use std::path::{Path, PathBuf};

use clap::{CommandFactory as _, FromArgMatches as _};

use super::{Cli, Command, Stop};
use crate::{failure::Failure, say::say, settings};

/// Ask about configuration files
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    question: Question,
}

#[derive(Debug, clap::Subcommand)]
enum Question {
    /// Check a TOML file as --config would take it, and say by line and key everything
    /// that is wrong with it
    ///
    /// Files that it names and addresses of this node are not looked at. Exit 0 when
    /// nothing is wrong, else 2.
    Check {
        /// The file
        file: PathBuf,
    },
}

pub(super) fn run(args: &Args) -> Result<(), Stop> {
    let Question::Check { file } = &args.question;
    let faults = faults(file);
    let file = file.display();
    if faults.is_empty() {
        return Ok(super::print(format!("{file}: ok\n").as_bytes())?);
    }
    for fault in faults {
        say(format_args!("ipvs-guard: {file}: {}", fault.told()));
    }
    Err(Stop::Printed(2))
}

pub(super) fn faults(file: &Path) -> Vec<settings::ConfigError> {
    settings::faults(&Cli::command(), file, refusal)
}

/// What the command says to its values, each of which is fine.
fn refusal(matches: &clap::ArgMatches) -> Option<String> {
    let checked = match Cli::from_arg_matches(matches).ok()?.command {
        Command::Watch(args) => args.check(),
        Command::Enforce(args) => args.check(),
        Command::Cleanup(args) => args.check(),
        Command::Lab(_)
        | Command::Config(_)
        | Command::Schema(_)
        | Command::Completions(_)
        | Command::Man(_) => Ok(()),
    };
    checked.err().map(|failure: Failure| failure.to_string())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn told(text: &str) -> Vec<String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ipvs-guard.toml");
        fs::write(&path, text).unwrap();
        faults(&path)
            .iter()
            .map(settings::ConfigError::told)
            .collect()
    }

    #[test]
    fn each_fault_is_told_with_its_line_and_key() {
        let text = "log-level = 'loud'\n\
                    formt = 'json'\n\
                    \n\
                    [watch]\n\
                    vip = [\n  '10.0.0.1:80',\n  '10.0.0',\n]\n\
                    event = 'stale_reuse,nonsense'\n\
                    max-events = 'many'\n\
                    trace = 'yes'\n\
                    duration = ['1s', '2s']\n\
                    client = { a = 1 }\n\
                    \n\
                    [enforce]\n\
                    action = 'heel'\n\
                    ttl = 60\n\
                    [enforcer]\n\
                    a = 1\n";
        let told = told(text);
        let expected = [
            ("line 1: log-level: ", "'loud'"),
            ("line 2: no flag is called 'formt'", ""),
            ("line 7: vip: ", "'10.0.0'"),
            ("line 9: event: ", "nonsense"),
            ("line 10: max-events: ", "'many'"),
            ("line 11: 'trace' takes true or false", ""),
            ("line 12: 'duration' takes one value", ""),
            ("line 13: 'client' takes", ""),
            ("line 16: action: ", "'heel'"),
            ("line 17: ttl: ", "'60'"),
            ("line 18: no command is called 'enforcer'", "[enforce]"),
        ];
        assert_eq!(told.len(), expected.len(), "{told:#?}");
        for (line, (begin, within)) in told.iter().zip(expected) {
            assert!(line.starts_with(begin) && line.contains(within), "{line}");
            assert!(!line.contains('\n'), "{line}");
        }
    }

    #[test]
    fn a_value_of_every_command_is_told_once() {
        assert_eq!(told("format = 'xml'\n").len(), 1);
        assert_eq!(told("netns = 'all'\n[watch]\n"), [] as [String; 0]);
    }

    #[test]
    fn every_broken_line_is_told() {
        let told = told("a = = 1\n[watch]\nformat = 'json'\nb = \n");
        assert!(told[0].starts_with("line 1: "), "{told:?}");
        assert!(
            told.iter().any(|line| line.starts_with("line 4: ")),
            "{told:?}"
        );
    }

    #[test]
    fn values_that_do_not_go_together_are_told() {
        let told_of = |text: &str| told(text).join("|");
        assert_eq!(
            told_of("[enforce]\naction = 'reset'\nheal-persistent = true\n"),
            "line 3: [enforce]: --heal-persistent: templates end with --action heal only; add it"
        );
        assert!(told_of("[watch]\nevent = 'trace'\n").starts_with("line 2: [watch]: --event"));
        assert_eq!(told_of("event = 'trace'\n[watch]\ntrace = true\n"), "");
        let vips = ["'10.0.0.1'"; 9].join(", ");
        assert!(told_of(&format!("[watch]\nvip = [{vips}]\n")).contains("9 values"));
    }

    #[test]
    fn a_file_that_is_not_there_is_told() {
        let faults = faults(Path::new("/nonexistent"));
        assert_eq!(faults.len(), 1);
        assert!(faults[0].told().contains("give a readable TOML file"));
    }
}
