//! `--names FILE`: names where there is no Kubernetes.

use std::{
    collections::HashSet,
    fs, io,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
};

use serde::Deserialize;
use thiserror::Error;
use toml::Spanned;

use super::table::{Destination, Key, Service, Table};

/// Names that a file may have at most.
const MOST: usize = 65_536;
/// Bytes that it may have at most.
const LARGEST: u64 = 16 << 20;

/// Why a file of names is refused.
#[derive(Debug, Error)]
pub enum FileError {
    /// It cannot be read.
    #[error("--names {path}: {source}; give a readable TOML file")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// What stands there cannot be used.
    #[error("--names {path}: line {line}: {reason}")]
    Line {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// Why.
        reason: String,
    },
    /// It has too much.
    #[error("--names {path}: more than {MOST} names or 16 MiB; leave some out")]
    Large {
        /// The file.
        path: PathBuf,
    },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    service: Vec<ServiceEntry>,
    #[serde(default)]
    destination: Vec<DestinationEntry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ServiceEntry {
    address: Spanned<String>,
    #[serde(default)]
    transport: TransportName,
    name: String,
    namespace: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DestinationEntry {
    address: Spanned<String>,
    #[serde(default)]
    transport: TransportName,
    pod: Option<String>,
    namespace: Option<String>,
    node: Option<String>,
}

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum TransportName {
    #[default]
    Any = 0,
    Tcp = 6,
    Udp = 17,
    Sctp = 132,
}

/// The names in the file at `path`.
pub(super) fn read(path: &Path) -> Result<Table, FileError> {
    let text = fs::metadata(path)
        .and_then(|meta| match meta.len() {
            ..=LARGEST => fs::read_to_string(path).map(Some),
            _ => Ok(None),
        })
        .map_err(|source| FileError::Read {
            path: path.into(),
            source,
        })?;
    let large = || FileError::Large { path: path.into() };
    let text = text.ok_or_else(large)?;
    let refused = |at: usize, reason: String| FileError::Line {
        path: path.into(),
        line: 1 + text.as_bytes()[..at.min(text.len())]
            .iter()
            .filter(|byte| **byte == b'\n')
            .count(),
        reason,
    };
    let file: File = toml::from_str(&text).map_err(|error| {
        let at = error.span().map_or(0, |span| span.start);
        refused(at, error.message().replace('\n', " "))
    })?;
    if file.service.len() + file.destination.len() > MOST {
        return Err(large());
    }
    let key = |address: &Spanned<String>, transport: TransportName, seen: &mut HashSet<Key>| {
        let (ip, port) = endpoint(address.get_ref())?;
        let key = Key::new(ip, port, transport as u8);
        seen.insert(key)
            .then_some(key)
            .ok_or_else(|| "has a name already".to_owned())
    };
    let at = |address: &Spanned<String>, reason: String| {
        refused(
            address.span().start,
            format!("address '{}': {reason}", address.get_ref()),
        )
    };
    let mut table = Table::default();
    let mut seen = HashSet::new();
    for entry in file.service {
        let key = key(&entry.address, entry.transport, &mut seen)
            .map_err(|reason| at(&entry.address, reason))?;
        table.name_service(key, Service::new(entry.name, entry.namespace));
    }
    seen.clear();
    for entry in file.destination {
        let key = key(&entry.address, entry.transport, &mut seen)
            .map_err(|reason| at(&entry.address, reason))?;
        if entry.pod.is_none() && entry.node.is_none() {
            return Err(at(&entry.address, "names neither pod nor node".into()));
        }
        let shared = |text: Option<String>| text.map(Arc::from);
        let destination = Destination::new(
            entry.pod.as_deref(),
            shared(entry.namespace),
            shared(entry.node),
            None,
        );
        table.name_destination(key, destination);
    }
    Ok(table)
}

/// Address and port, 0 where every port is meant.
fn endpoint(text: &str) -> Result<(IpAddr, u16), String> {
    let bare = text
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
        .unwrap_or(text);
    if let Ok(address) = bare.parse() {
        return Ok((address, 0));
    }
    match text.parse::<SocketAddr>() {
        Ok(found) if found.port() != 0 => Ok((found.ip(), found.port())),
        _ => Err(
            "is neither ADDR nor ADDR:PORT; write 10.96.0.10, 10.96.0.10:80 or [fd00::a]:80"
                .to_owned(),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_text(text: &str) -> Result<Table, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("names.toml");
        fs::write(&path, text).unwrap();
        read(&path).map_err(|error| error.to_string())
    }

    #[test]
    fn services_and_destinations_are_read() {
        let table = read_text(
            "[[service]]\naddress = '10.0.0.1:80'\nname = 'web'\nnamespace = 'shop'\n\
             [[service]]\naddress = '[fd00::1]:53'\ntransport = 'udp'\nname = 'dns'\n\
             [[destination]]\naddress = '10.1.0.1'\npod = 'web-1'\nnode = 'n1'\n",
        )
        .unwrap();
        assert_eq!(table.len(), 3);
    }

    #[test]
    fn what_is_wrong_is_told_by_its_line() {
        for (text, expect) in [
            (
                "[[service]]\naddress = '10.0.0'\nname = 'a'\n",
                "line 2: address '10.0.0': is neither",
            ),
            (
                "[[service]]\naddress = '10.0.0.1'\n",
                "line 1: missing field `name`",
            ),
            (
                "[[service]]\naddress = '10.0.0.1'\nnam = 'a'\n",
                "line 3: unknown field `nam`",
            ),
            (
                "[[destination]]\naddress = '10.0.0.1:1'\n",
                "line 2: address '10.0.0.1:1': names neither",
            ),
            (
                "[[service]]\naddress = '10.0.0.1'\nname = 'a'\n[[service]]\naddress = '10.0.0.1'\nname = 'b'\n",
                "line 5: address '10.0.0.1': has a name already",
            ),
            ("a = \n", "line 1: "),
        ] {
            let error = read_text(text).unwrap_err();
            assert!(error.contains(expect), "{error}");
            assert!(!error.contains('\n'), "{error}");
        }
        assert!(
            read(Path::new("/nonexistent"))
                .unwrap_err()
                .to_string()
                .contains("/nonexistent")
        );
    }
}
