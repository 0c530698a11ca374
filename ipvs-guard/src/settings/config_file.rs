//! `--config FILE`: TOML with the names of the flags, as defaults for them.
//!
//! Flags win over the environment, the environment over the file. A key at the
//! top holds for every command that has the flag, a key in a table named like a
//! command for that command alone.

use std::{
    collections::BTreeSet,
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
};

use clap::{ArgAction, Command};
use thiserror::Error;
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

/// What is wrong with a configuration file.
#[derive(Debug, Error)]
#[error("--config {}: {}", path.display(), self.told())]
pub struct ConfigError {
    path: PathBuf,
    /// Counted from 1; none where it is about the whole file.
    line: Option<usize>,
    fault: Fault,
}

impl ConfigError {
    /// Where in the file and what, without the file.
    pub fn told(&self) -> String {
        // One line, whatever a key or a value has in it.
        let fault = self.fault.to_string();
        let fault = fault.split_whitespace().collect::<Vec<_>>().join(" ");
        match self.line {
            Some(line) => format!("line {line}: {fault}"),
            None => fault,
        }
    }
}

/// Why.
#[derive(Debug, Error)]
enum Fault {
    #[error("{0}; give a readable TOML file")]
    Read(std::io::Error),
    #[error("{0}")]
    Syntax(String),
    /// A key that no command has, and " of COMMAND" or nothing.
    #[error("no flag is called '{0}'{1}; see 'ipvs-guard help'")]
    Unknown(String, String),
    /// A table that no command is called like.
    #[error("no command is called '{0}'; {1}")]
    Section(String, String),
    #[error("'{0}' takes a string, a number, a boolean or a list of them")]
    Form(String),
    /// A switch that is given something else.
    #[error("'{0}' takes true or false")]
    Switch(String),
    #[error("'{0}' takes one value, no list")]
    List(String),
    /// What its flag does not take.
    #[error("{0}: {1}")]
    Value(String, String),
    /// Keys that do not go together, by the command that refuses them.
    #[error("[{0}]: {1}")]
    Together(String, String),
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
/// The first [`ConfigError`], with the line where there is one.
pub fn apply(command: Command, path: &Path) -> Result<Command, ConfigError> {
    let text = read(path)?;
    let file = File { path, text: &text };
    let (command, mut faults) = file.apply(command, &file.parse()?);
    if faults.is_empty() {
        Ok(command)
    } else {
        Err(faults.swap_remove(0))
    }
}

/// Everything that is wrong with the file, in the order of its lines; `command` is the
/// command line that it is for, `together` what the command that was matched has against
/// values that each are fine.
pub fn faults(
    command: &Command,
    path: &Path,
    together: impl Fn(&clap::ArgMatches) -> Option<String>,
) -> Vec<ConfigError> {
    let text = match read(path) {
        Ok(text) => text,
        Err(error) => return vec![error],
    };
    let file = File { path, text: &text };
    let (table, broken) = DeTable::parse_recoverable(&text);
    if !broken.is_empty() {
        // What could be read of the rest may be cut wrong: it is judged another time.
        return broken.iter().map(|error| file.syntax(error)).collect();
    }
    let command = without_environment(command.clone());
    let (applied, mut faults) = file.apply(command.clone(), table.get_ref());
    file.check_values(&command, table.get_ref(), &mut faults);
    if faults.is_empty() {
        faults.extend(file.check_together(&applied, table.get_ref(), together));
    }
    faults.sort_by_key(|fault| fault.line);
    faults
}

/// The file and the line that give `key` to the command `section`, as messages
/// begin with it; `None` where no file does.
pub(super) fn place(args: &[OsString], section: Option<&str>, key: &str) -> Option<String> {
    let path = path_from(args)?;
    let text = fs::read_to_string(&path).ok()?;
    let table = DeTable::parse(&text).ok()?;
    let own = section
        .and_then(|section| table.get_ref().get(section))
        .and_then(|own| own.get_ref().as_table());
    let (found, _) = own
        .and_then(|own| own.get_key_value(key))
        .or_else(|| table.get_ref().get_key_value(key))?;
    let file = File {
        path: &path,
        text: &text,
    };
    let line = file.line(found);
    Some(format!("--config {}: line {line}: {key}", path.display()))
}

fn read(path: &Path) -> Result<String, ConfigError> {
    fs::read_to_string(path).map_err(|source| ConfigError {
        path: path.into(),
        line: None,
        fault: Fault::Read(source),
    })
}

struct File<'a> {
    path: &'a Path,
    text: &'a str,
}

impl File<'_> {
    fn parse(&self) -> Result<DeTable<'_>, ConfigError> {
        DeTable::parse(self.text)
            .map(Spanned::into_inner)
            .map_err(|error| self.syntax(&error))
    }

    fn syntax(&self, error: &toml::de::Error) -> ConfigError {
        let at = error.span().map_or(0, |span| span.start);
        let reason = error.message().replace('\n', " ");
        self.fault(self.line_at(at), Fault::Syntax(reason))
    }

    fn fault(&self, line: usize, fault: Fault) -> ConfigError {
        ConfigError {
            path: self.path.into(),
            line: Some(line),
            fault,
        }
    }

    fn line<T>(&self, what: &Spanned<T>) -> usize {
        self.line_at(what.span().start)
    }

    fn line_at(&self, at: usize) -> usize {
        let before = &self.text.as_bytes()[..at.min(self.text.len())];
        1 + before.iter().filter(|byte| **byte == b'\n').count()
    }

    /// What can be applied, applied, and what cannot.
    fn apply(&self, mut command: Command, table: &DeTable<'_>) -> (Command, Vec<ConfigError>) {
        let names: Vec<String> = command
            .get_subcommands()
            .map(|sub| sub.get_name().to_owned())
            .collect();
        let mut faults = Vec::new();
        for (key, value) in table {
            let name = key.get_ref().as_ref();
            if let (true, DeValue::Table(own)) = (names.iter().any(|n| n == name), value.get_ref())
            {
                for (inner, value) in own {
                    let key = inner.get_ref().as_ref();
                    if !knows(command.find_subcommand(name), key) {
                        let place = format!(" of {name}");
                        faults
                            .push(self.fault(self.line(inner), Fault::Unknown(key.into(), place)));
                        continue;
                    }
                    match self.defaults(command.find_subcommand(name), inner, value) {
                        Ok(defaults) => {
                            command = command.mut_subcommand(name, |sub| set(sub, key, &defaults));
                        }
                        Err(fault) => faults.push(fault),
                    }
                }
                continue;
            }
            let owners: Vec<&str> = std::iter::once("")
                .chain(names.iter().map(String::as_str))
                .filter(|owner| knows(part(&command, owner), name))
                .collect();
            let Some(first) = owners.first() else {
                let fault = if value.get_ref().is_table() {
                    no_command(name, &command)
                } else {
                    Fault::Unknown(name.into(), String::new())
                };
                faults.push(self.fault(self.line(key), fault));
                continue;
            };
            let defaults = match self.defaults(part(&command, first), key, value) {
                Ok(defaults) => defaults,
                Err(fault) => {
                    faults.push(fault);
                    continue;
                }
            };
            for owner in owners {
                let own = table.get(owner).and_then(|own| own.get_ref().as_table());
                if owner.is_empty() {
                    command = set(command, name, &defaults);
                } else if !own.is_some_and(|own| own.contains_key(name)) {
                    command = command.mut_subcommand(owner, |sub| set(sub, name, &defaults));
                }
            }
        }
        (command, faults)
    }

    /// The value as texts, as the flag of `command` would get them.
    fn defaults(
        &self,
        command: Option<&Command>,
        key: &Spanned<std::borrow::Cow<'_, str>>,
        value: &Spanned<DeValue<'_>>,
    ) -> Result<Vec<String>, ConfigError> {
        let name = || key.get_ref().clone().into_owned();
        let many = match value.get_ref().as_array() {
            Some(items) => items.iter().map(|item| scalar(item.get_ref())).collect(),
            None => scalar(value.get_ref()).map(|text| vec![text]),
        };
        let Some(texts) = many else {
            return Err(self.fault(self.line(key), Fault::Form(name())));
        };
        let arg = command.and_then(|command| {
            command
                .get_arguments()
                .find(|arg| arg.get_long() == Some(key.get_ref().as_ref()))
        });
        let Some(arg) = arg else { return Ok(texts) };
        if matches!(arg.get_action(), ArgAction::SetTrue) {
            if value.get_ref().as_bool().is_none() {
                return Err(self.fault(self.line(key), Fault::Switch(name())));
            }
        } else if value.get_ref().is_array() && !matches!(arg.get_action(), ArgAction::Append) {
            return Err(self.fault(self.line(key), Fault::List(name())));
        }
        Ok(texts)
    }

    /// Each value alone, by the flag that is to take it.
    fn check_values(&self, command: &Command, table: &DeTable<'_>, faults: &mut Vec<ConfigError>) {
        let names: Vec<&str> = command.get_subcommands().map(Command::get_name).collect();
        for (key, value) in table {
            let name = key.get_ref().as_ref();
            if let (true, DeValue::Table(own)) = (names.contains(&name), value.get_ref()) {
                for (key, value) in own {
                    faults.extend(self.refused(command, name, key, value));
                }
                continue;
            }
            // What one command refuses is not told once more for the next.
            let mut told = BTreeSet::new();
            for owner in std::iter::once("").chain(names.iter().copied()) {
                let mut refused = self.refused(command, owner, key, value);
                refused.retain(|fault| !told.contains(&fault.line));
                told.extend(refused.iter().map(|fault| fault.line));
                faults.extend(refused);
            }
        }
    }

    fn refused(
        &self,
        command: &Command,
        owner: &str,
        key: &Spanned<std::borrow::Cow<'_, str>>,
        value: &Spanned<DeValue<'_>>,
    ) -> Vec<ConfigError> {
        let name = key.get_ref().as_ref();
        let own = part(command, owner);
        if !knows(own, name) || self.defaults(own, key, value).is_err() {
            return Vec::new();
        }
        let alone = |item: &Spanned<DeValue<'_>>| {
            let text = [scalar(item.get_ref())?];
            let command = command.clone();
            let (command, args) = if owner.is_empty() {
                (set(command, name, &text), vec!["x"])
            } else {
                let command = command.mut_subcommand(owner, |sub| set(sub, name, &text));
                (command, vec!["x", owner])
            };
            let error = command.try_get_matches_from(args).err()?;
            let (flag, _) = super::refused(&error)?;
            (flag == name).then(|| {
                let reason = super::one_line(&error, Some(owner).filter(|owner| !owner.is_empty()));
                self.fault(self.line(item), Fault::Value(name.into(), reason))
            })
        };
        match value.get_ref().as_array() {
            Some(items) => items.iter().filter_map(alone).collect(),
            None => alone(value).into_iter().collect(),
        }
    }

    /// What the commands that have a table in the file, or all of them where none has
    /// one, say to all of its values.
    fn check_together(
        &self,
        command: &Command,
        table: &DeTable<'_>,
        together: impl Fn(&clap::ArgMatches) -> Option<String>,
    ) -> Vec<ConfigError> {
        let names = || command.get_subcommands().map(Command::get_name);
        let tables: Vec<&str> = names().filter(|name| table.contains_key(*name)).collect();
        let asked: Vec<&str> = if tables.is_empty() {
            names().collect()
        } else {
            tables
        };
        let mut faults = Vec::new();
        for name in asked {
            let Ok(matches) = command.clone().try_get_matches_from(["x", name]) else {
                // It wants more than flags: no command that a file is for.
                continue;
            };
            if let Some(reason) = together(&matches) {
                let flag = super::origin::long_name(&reason);
                let line = flag.and_then(|flag| {
                    let own = table.get(name).and_then(|own| own.get_ref().as_table());
                    own.and_then(|own| own.get_key_value(flag))
                        .or_else(|| table.get_key_value(flag))
                        .map(|(key, _)| self.line(key))
                });
                faults.push(ConfigError {
                    path: self.path.into(),
                    line,
                    fault: Fault::Together(name.into(), reason),
                });
            }
        }
        faults
    }
}

/// The command of that name, the whole for none.
fn part<'a>(command: &'a Command, name: &str) -> Option<&'a Command> {
    if name.is_empty() {
        Some(command)
    } else {
        command.find_subcommand(name)
    }
}

fn knows(command: Option<&Command>, key: &str) -> bool {
    command.is_some_and(|command| {
        command
            .get_arguments()
            .any(|arg| arg.get_long() == Some(key) && key != "config")
    })
}

fn no_command(name: &str, command: &Command) -> Fault {
    let known: Vec<String> = command
        .get_subcommands()
        .filter(|sub| sub.get_arguments().any(|arg| arg.get_long().is_some()))
        .map(|sub| format!("[{}]", sub.get_name()))
        .collect();
    Fault::Section(
        name.into(),
        format!("the tables that it can have are {}", known.join(" and ")),
    )
}

/// A string, number or boolean as the command line would have it.
fn scalar(value: &DeValue<'_>) -> Option<String> {
    match value {
        DeValue::String(text) => Some(text.clone().into_owned()),
        DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix())
            .map(|number| number.to_string())
            .ok(),
        DeValue::Float(number) => Some(number.as_str().to_owned()),
        DeValue::Boolean(yes) => Some(yes.to_string()),
        DeValue::Datetime(_) | DeValue::Array(_) | DeValue::Table(_) => None,
    }
}

/// A file is judged by itself, whatever is set around it.
fn without_environment(command: Command) -> Command {
    let bare = |command: Command| command.mut_args(|arg| arg.env(None::<&str>));
    bare(command).mut_subcommands(bare)
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
