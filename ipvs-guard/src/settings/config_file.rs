//! `--config FILE`: TOML with the names of the flags, as defaults for them.
//!
//! Flags win over the environment, the environment over the file. A key at the
//! top holds for every command that has the flag, a key in a table named like a
//! command for that command alone.

use std::{
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
};

use clap::{ArgAction, Command};
use thiserror::Error;
use toml::{Table, Value};

/// Why a configuration file is refused.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// It cannot be read.
    #[error("--config {path}: {source}; give a readable TOML file")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is no TOML.
    #[error("--config {path}: line {line}: {reason}")]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// Why.
        reason: String,
    },
    /// A key that no command has.
    #[error(
        "--config {path}: line {line}: no flag is called '{key}'{place}; see 'ipvs-guard help'"
    )]
    Unknown {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// The key.
        key: String,
        /// " of COMMAND", or nothing.
        place: String,
    },
    /// A table that no command is called like.
    #[error("--config {path}: line {line}: no command is called '{name}'; {known}")]
    Section {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// Name of the table.
        name: String,
        /// The tables that there can be.
        known: String,
    },
    /// A value that is no string, number, boolean or list of these.
    #[error(
        "--config {path}: line {line}: '{key}' takes a string, a number, a boolean or a list of them"
    )]
    Value {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// The key.
        key: String,
    },
}

/// The file named by `--config` in `args` or by `IPVS_GUARD_CONFIG`.
pub fn path_from(args: &[OsString]) -> Option<PathBuf> {
    let mut args = args.iter().skip(1);
    while let Some(arg) = args.next() {
        let Some(text) = arg.to_str() else { continue };
        if text == "--" {
            break;
        }
        if text == "--config" {
            return args.next().map(PathBuf::from);
        }
        if let Some(path) = text.strip_prefix("--config=") {
            return Some(path.into());
        }
    }
    std::env::var_os("IPVS_GUARD_CONFIG").map(PathBuf::from)
}

/// `command` with what the file says as defaults of its flags.
///
/// # Errors
/// [`ConfigError`], with the line where there is one.
pub fn apply(command: Command, path: &Path) -> Result<Command, ConfigError> {
    let text = fs::read_to_string(path).map_err(|source| ConfigError::Read {
        path: path.into(),
        source,
    })?;
    let table: Table = text.parse().map_err(|error: toml::de::Error| {
        let at = error.span().map_or(0, |span| span.start);
        ConfigError::Syntax {
            path: path.into(),
            line: 1 + text[..at.min(text.len())].matches('\n').count(),
            reason: error.message().replace('\n', " "),
        }
    })?;
    File { path, text: &text }.apply(command, &table)
}

/// The file and the line that give `key` to the command `section`, as messages
/// begin with it; `None` where no file does.
pub(super) fn place(args: &[OsString], section: Option<&str>, key: &str) -> Option<String> {
    let path = path_from(args)?;
    let text = fs::read_to_string(&path).ok()?;
    let table: Table = text.parse().ok()?;
    let in_section = section.filter(
        |section| matches!(table.get(*section), Some(Value::Table(own)) if own.contains_key(key)),
    );
    if in_section.is_none() && !table.contains_key(key) {
        return None;
    }
    let line = line_of(&text, in_section, key);
    Some(format!("--config {}: line {line}: {key}", path.display()))
}

struct File<'a> {
    path: &'a Path,
    text: &'a str,
}

impl File<'_> {
    fn apply(&self, mut command: Command, table: &Table) -> Result<Command, ConfigError> {
        let names: Vec<String> = command
            .get_subcommands()
            .map(|sub| sub.get_name().to_owned())
            .collect();
        for (key, value) in table {
            if let (true, Value::Table(own)) = (names.contains(key), value) {
                for (inner, value) in own {
                    if !self.knows(command.find_subcommand(key), inner) {
                        return Err(self.unknown(Some(key), inner));
                    }
                    let defaults = self.defaults(Some(key), inner, value)?;
                    command = command.mut_subcommand(key, |sub| set(sub, inner, &defaults));
                }
                continue;
            }
            let mut known = self.knows(Some(&command), key);
            let anywhere = known
                || command
                    .get_subcommands()
                    .any(|sub| self.knows(Some(sub), key));
            if value.is_table() && !anywhere {
                return Err(self.no_command(key, &command));
            }
            let defaults = self.defaults(None, key, value)?;
            if known {
                command = set(command, key, &defaults);
            }
            for name in &names {
                let own = table.get(name).and_then(Value::as_table);
                if !self.knows(command.find_subcommand(name), key) {
                    continue;
                }
                known = true;
                if !own.is_some_and(|own| own.contains_key(key)) {
                    command = command.mut_subcommand(name, |sub| set(sub, key, &defaults));
                }
            }
            if !known {
                return Err(self.unknown(None, key));
            }
        }
        Ok(command)
    }

    fn knows(&self, command: Option<&Command>, key: &str) -> bool {
        command.is_some_and(|command| {
            command
                .get_arguments()
                .any(|arg| arg.get_long() == Some(key) && key != "config")
        })
    }

    fn defaults(
        &self,
        section: Option<&str>,
        key: &str,
        value: &Value,
    ) -> Result<Vec<String>, ConfigError> {
        let scalar = |value: &Value| match value {
            Value::String(text) => Some(text.clone()),
            Value::Integer(number) => Some(number.to_string()),
            Value::Float(number) => Some(number.to_string()),
            Value::Boolean(yes) => Some(yes.to_string()),
            Value::Datetime(_) | Value::Array(_) | Value::Table(_) => None,
        };
        let all = match value {
            Value::Array(items) => items.iter().map(scalar).collect(),
            Value::String(_)
            | Value::Integer(_)
            | Value::Float(_)
            | Value::Boolean(_)
            | Value::Datetime(_)
            | Value::Table(_) => scalar(value).map(|text| vec![text]),
        };
        all.ok_or_else(|| ConfigError::Value {
            path: self.path.into(),
            line: line_of(self.text, section, key),
            key: key.into(),
        })
    }

    fn unknown(&self, section: Option<&str>, key: &str) -> ConfigError {
        ConfigError::Unknown {
            path: self.path.into(),
            line: line_of(self.text, section, key),
            key: key.into(),
            place: section.map_or_else(String::new, |name| format!(" of {name}")),
        }
    }

    fn no_command(&self, name: &str, command: &Command) -> ConfigError {
        let known: Vec<String> = command
            .get_subcommands()
            .filter(|sub| sub.get_arguments().any(|arg| arg.get_long().is_some()))
            .map(|sub| format!("[{}]", sub.get_name()))
            .collect();
        ConfigError::Section {
            path: self.path.into(),
            line: line_of(self.text, None, name),
            name: name.into(),
            known: format!("the tables that it can have are {}", known.join(" and ")),
        }
    }
}

/// The line on which the table `section`, or what stands above all tables, has
/// `key`; of a form that is not looked for, one that is near.
fn line_of(text: &str, section: Option<&str>, key: &str) -> usize {
    let begins_with = |line: &str, name: &str| {
        line.trim_start_matches(['"', '\''])
            .strip_prefix(name)
            .is_some_and(|rest| !rest.starts_with(|c: char| c.is_alphanumeric() || c == '-'))
    };
    let mut table = None;
    let mut near = None;
    for (number, line) in (1..).zip(text.lines().map(str::trim_start)) {
        if let Some(header) = line.strip_prefix('[') {
            let name = header.split(']').next().unwrap_or_default();
            let name = name.trim_matches(['[', ' ', '"', '\'']);
            if section.is_none() && name == key {
                return number;
            }
            table = Some(name);
        } else if begins_with(line, key) {
            if table == section {
                return number;
            }
            near.get_or_insert(number);
        } else if section.is_some_and(|section| begins_with(line, section)) {
            // watch = { … } or watch.format = …
            near.get_or_insert(number);
        }
    }
    near.unwrap_or(1)
}

fn set(command: Command, long: &str, defaults: &[String]) -> Command {
    let Some(id) = command
        .get_arguments()
        .find(|arg| arg.get_long() == Some(long))
        .map(|arg| arg.get_id().clone())
    else {
        return command;
    };
    let defaults: Vec<clap::builder::OsStr> = defaults.iter().map(|d| d.clone().into()).collect();
    command.mut_arg(id, |arg| {
        // A switch that the file turns off is as it is without the file.
        if matches!(arg.get_action(), ArgAction::SetTrue) && defaults == ["false"] {
            return arg;
        }
        arg.default_values(defaults)
    })
}

#[cfg(test)]
mod tests {
    use clap::Arg;

    use super::*;

    fn command() -> Command {
        Command::new("x")
            .arg(
                Arg::new("log_level")
                    .long("log-level")
                    .default_value("warn"),
            )
            .subcommand(
                Command::new("watch")
                    .arg(Arg::new("format").long("format"))
                    .arg(Arg::new("vip").long("vip").action(ArgAction::Append))
                    .arg(Arg::new("trace").long("trace").action(ArgAction::SetTrue)),
            )
            .subcommand(Command::new("lab").arg(Arg::new("format").long("format")))
    }

    fn matches(text: &str, args: &[&str]) -> Result<clap::ArgMatches, ConfigError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.toml");
        fs::write(&path, text).unwrap();
        Ok(apply(command(), &path)?.get_matches_from(args))
    }

    #[test]
    fn flags_win_over_the_file_and_the_file_over_defaults() {
        let text =
            "log-level = 'debug'\nformat = 'json'\n[watch]\nvip = ['a', 'b']\ntrace = true\n";
        let m = matches(text, &["x", "watch", "--format", "human"]).unwrap();
        assert_eq!(m.get_one::<String>("log_level").unwrap(), "debug");
        let watch = m.subcommand_matches("watch").unwrap();
        assert_eq!(watch.get_one::<String>("format").unwrap(), "human");
        let vips: Vec<_> = watch.get_many::<String>("vip").unwrap().collect();
        assert_eq!(vips, ["a", "b"]);
        assert!(watch.get_flag("trace"));
        let m = matches(text, &["x", "lab"]).unwrap();
        let lab = m.subcommand_matches("lab").unwrap();
        assert_eq!(lab.get_one::<String>("format").unwrap(), "json");
    }

    #[test]
    fn a_command_table_wins_over_the_top() {
        let text = "format = 'json'\n[watch]\nformat = 'human'\n";
        let m = matches(text, &["x", "watch"]).unwrap();
        let watch = m.subcommand_matches("watch").unwrap();
        assert_eq!(watch.get_one::<String>("format").unwrap(), "human");
    }

    #[test]
    fn wrong_files_say_where() {
        for (text, expect) in [
            ("a = 1\nb = = 2\n", "line 2"),
            (
                "log-level = 'x'\nformt = 'json'\n",
                "line 2: no flag is called 'formt'",
            ),
            (
                "[watch]\ntime = 1\n",
                "line 2: no flag is called 'time' of watch",
            ),
            ("\nformat = { a = 1 }\n", "line 2: 'format' takes"),
            (
                "[lab]\nformat = 'json'\n[wach]\nformat = 'json'\n",
                "line 3: no command is called 'wach'; the tables that it can have are [watch] and [lab]",
            ),
            (
                "[lab]\nformat = 'json'\n[watch]\nformat = { a = 1 }\n",
                "line 4: 'format' takes",
            ),
        ] {
            let error = matches(text, &["x", "watch"]).unwrap_err().to_string();
            assert!(error.contains(expect), "{error}");
            assert!(!error.contains('\n'));
        }
    }

    #[test]
    fn the_flag_is_found_wherever_it_stands() {
        let os = |args: &[&str]| args.iter().map(OsString::from).collect::<Vec<_>>();
        assert_eq!(
            path_from(&os(&["x", "watch", "--config", "f"])),
            Some("f".into())
        );
        assert_eq!(
            path_from(&os(&["x", "--config=g", "watch"])),
            Some("g".into())
        );
    }
}
