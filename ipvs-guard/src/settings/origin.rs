//! Where a refused value came from, when it is not on the command line.

use std::{env, ffi::OsString};

use clap::{
    Command,
    error::{ContextKind, ContextValue, ErrorKind},
};

use super::config_file;

/// The flag and the value that `error` refuses, if it refuses a value.
pub fn refused(error: &clap::Error) -> Option<(String, String)> {
    if !matches!(
        error.kind(),
        ErrorKind::InvalidValue | ErrorKind::ValueValidation
    ) {
        return None;
    }
    let text = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.clone()),
        _ => None,
    };
    let flag = text(ContextKind::InvalidArg)?;
    Some((
        long_name(&flag)?.to_owned(),
        text(ContextKind::InvalidValue)?,
    ))
}

/// clap's text without its paragraphs: what is wrong, then where to look, in the help
/// of the command `section` where there is one.
pub fn one_line(error: &clap::Error, section: Option<&str>) -> String {
    let text = error.render().to_string();
    let mut parts: Vec<String> = Vec::new();
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
        if line.starts_with("Usage:") {
            continue;
        }
        let line = line
            .trim_start_matches("error: ")
            .trim_start_matches("tip: ");
        if let Some(help) = line.strip_prefix("For more information, try ") {
            let help = help.trim_matches(['\'', '.']);
            let section = section
                .map(|section| format!("{section} "))
                .unwrap_or_default();
            parts.push(format!("see ipvs-guard {section}{help}"));
        } else if let Some(open) = parts.last_mut().filter(|part| part.ends_with(':')) {
            open.push(' ');
            open.push_str(line);
        } else {
            parts.push(line.to_owned());
        }
    }
    parts.join("; ")
}

/// "event" of "--event CLASS,…" and of "--event: …".
pub(super) fn long_name(text: &str) -> Option<&str> {
    let rest = text.strip_prefix("--")?;
    let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '-');
    Some(&rest[..end.unwrap_or(rest.len())])
}

/// `line` about a refused value, preceded by the variable or by the place in the
/// file that the value is from. The flag is the one of `refused`, or the one that
/// `line` begins with. As it is where the value is on the command line.
pub fn with_origin(
    command: &Command,
    args: &[OsString],
    line: String,
    refused: Option<&(String, String)>,
) -> String {
    with_origin_in(command, args, line, refused, |name| env::var(name).ok())
}

fn with_origin_in(
    command: &Command,
    args: &[OsString],
    line: String,
    refused: Option<&(String, String)>,
    variable: impl Fn(&str) -> Option<String>,
) -> String {
    let (flag, value) = match refused {
        Some((flag, value)) => (flag.as_str(), Some(value.as_str())),
        None => match long_name(&line) {
            Some(flag) => (flag, None),
            None => return line,
        },
    };
    let is_of = |text: &str| value.is_none_or(|value| text.contains(value));
    if given(args, flag).iter().any(|text| is_of(text)) {
        return line;
    }
    let name = command
        .get_arguments()
        .chain(
            command
                .get_subcommands()
                .flat_map(|command| command.get_arguments()),
        )
        .find(|arg| arg.get_long() == Some(flag))
        .and_then(|arg| arg.get_env())
        .and_then(|name| name.to_str());
    if let Some(name) = name
        && variable(name).is_some_and(|text| is_of(&text))
    {
        return format!("{name}: {line}");
    }
    match config_file::place(args, section(command, args), flag) {
        Some(place) => format!("{place}: {line}"),
        None => line,
    }
}

/// The command that `args` ask for.
pub fn section<'a>(command: &'a Command, args: &[OsString]) -> Option<&'a str> {
    command
        .get_subcommands()
        .map(Command::get_name)
        .find(|name| args.iter().skip(1).any(|arg| arg == name))
}

/// What the command line gives to `flag`; an empty text where it stands alone.
fn given(args: &[OsString], flag: &str) -> Vec<String> {
    let texts: Vec<_> = args.iter().map(|arg| arg.to_string_lossy()).collect();
    let mut found = Vec::new();
    for (i, text) in texts.iter().enumerate().skip(1) {
        if text == "--" {
            break;
        }
        let Some(rest) = text
            .strip_prefix("--")
            .and_then(|text| text.strip_prefix(flag))
        else {
            continue;
        };
        if let Some(value) = rest.strip_prefix('=') {
            found.push(value.to_owned());
        } else if rest.is_empty() {
            found.push(
                texts
                    .get(i + 1)
                    .map(|next| next.to_string())
                    .unwrap_or_default(),
            );
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use std::fs;

    use clap::Arg;

    use super::*;

    fn command() -> Command {
        Command::new("x").subcommand(
            Command::new("watch")
                .arg(Arg::new("vip").long("vip").env("X_VIP"))
                .arg(Arg::new("netns").long("netns").env("X_NETNS")),
        )
    }

    fn told(args: &[&str], variable: Option<&str>, line: &str, value: Option<&str>) -> String {
        let args: Vec<OsString> = args.iter().map(OsString::from).collect();
        let refused = value.map(|value| ("vip".to_owned(), value.to_owned()));
        with_origin_in(&command(), &args, line.into(), refused.as_ref(), |name| {
            (name == "X_VIP" || name == "X_NETNS")
                .then(|| variable.map(str::to_owned))
                .flatten()
        })
    }

    #[test]
    fn the_variable_is_named_unless_the_command_line_has_the_value() {
        let bad = Some("bad");
        assert_eq!(
            told(&["x", "watch", "--vip", "a,bad"], Some("bad"), "no", bad),
            "no"
        );
        assert_eq!(
            told(&["x", "watch", "--vip=bad"], Some("c"), "no", bad),
            "no"
        );
        assert_eq!(told(&["x", "watch"], Some("c,bad"), "no", bad), "X_VIP: no");
        assert_eq!(
            told(&["x", "watch"], Some("p"), "--netns p: none", None),
            "X_NETNS: --netns p: none"
        );
        assert_eq!(told(&["x", "watch"], None, "other", None), "other");
    }

    #[test]
    fn the_line_of_the_file_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.toml");
        fs::write(&path, "vip = 'bad'\n[lab]\nx = 1\n[watch]\nvip = 'bad'\n").unwrap();
        let path = path.to_str().unwrap();
        assert_eq!(
            told(&["x", "--config", path, "watch"], None, "no", Some("bad")),
            format!("--config {path}: line 5: vip: no")
        );
        assert_eq!(
            told(&["x", "--config", path], None, "no", Some("bad")),
            format!("--config {path}: line 1: vip: no")
        );
    }

    #[test]
    fn flags_are_read_from_messages() {
        assert_eq!(long_name("--event <CLASS,…>"), Some("event"));
        assert_eq!(long_name("--max-events: no"), Some("max-events"));
        assert_eq!(long_name("else"), None);
    }
}
