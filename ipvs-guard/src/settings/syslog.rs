//! URL of a syslog receiver.

use std::{
    fmt,
    net::{IpAddr, Ipv6Addr},
    path::PathBuf,
    str::FromStr,
};

use fluent_uri::{Uri, component::Host, pct_enc::EStr};

const DEV_LOG: &str = "/dev/log";
const FORMS: &str = "write udp://HOST[:PORT], tcp://HOST[:PORT], tls://HOST[:PORT][?ca=FILE] or \
                     unix:///dev/log";

/// A syslog receiver, and how it is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SyslogTarget {
    /// Datagrams (RFC 5426).
    Udp(Remote),
    /// A stream of counted messages (RFC 6587, 3.4.1).
    Tcp(Remote),
    /// The same in TLS (RFC 5425).
    Tls(Remote, TlsFiles),
    /// Datagrams to a local socket.
    Local(PathBuf),
}

/// A name or an address, and a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remote {
    /// Name or address, without brackets.
    pub host: String,
    /// The port, or that of the scheme.
    pub port: u16,
}

/// Files for TLS; PEM, all of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsFiles {
    /// Certificates that the receiver's must come from, in place of the system's.
    pub ca: Option<PathBuf>,
    /// Certificate of this client and its key.
    pub client: Option<(PathBuf, PathBuf)>,
}

impl FromStr for SyslogTarget {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let uri = Uri::parse(text).map_err(|_| format!("no URL; {FORMS}"))?;
        if uri.has_fragment() {
            return Err(format!("a # means nothing here; {FORMS}"));
        }
        let parameters = parameters(uri.query())?;
        let scheme = uri.scheme().as_str().to_ascii_lowercase();
        let port = match scheme.as_str() {
            "udp" => 514,
            "tcp" => 601,
            "tls" => 6514,
            "unix" | "local" => {
                none(&scheme, &parameters)?;
                return local(&scheme, &uri);
            }
            _ => return Err(format!("{scheme} is no way to a syslog receiver; {FORMS}")),
        };
        let remote = remote(&uri, port)?;
        if scheme == "tls" {
            return Ok(Self::Tls(remote, tls_files(parameters)?));
        }
        none(&scheme, &parameters)?;
        Ok(if scheme == "udp" {
            Self::Udp(remote)
        } else {
            Self::Tcp(remote)
        })
    }
}

impl fmt::Display for SyslogTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Udp(remote) => write!(f, "udp://{remote}"),
            Self::Tcp(remote) => write!(f, "tcp://{remote}"),
            Self::Tls(remote, _) => write!(f, "tls://{remote}"),
            Self::Local(path) => write!(f, "unix://{}", path.display()),
        }
    }
}

impl fmt::Display for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, port } = self;
        if host.parse::<Ipv6Addr>().is_ok() {
            write!(f, "[{host}]:{port}")
        } else {
            write!(f, "{host}:{port}")
        }
    }
}

fn remote(uri: &Uri<&str>, default: u16) -> Result<Remote, String> {
    let authority = uri.authority().ok_or_else(|| format!("no host; {FORMS}"))?;
    if authority.has_userinfo() {
        return Err("syslog knows no user; leave the part before @ out".into());
    }
    if !matches!(uri.path().as_str(), "" | "/") {
        return Err("a path means nothing to a remote receiver; leave it out".into());
    }
    let host = match authority.host_parsed() {
        Host::Ipv4(address) => IpAddr::from(address).to_string(),
        Host::Ipv6(address) => IpAddr::from(address).to_string(),
        Host::RegName(name) if !name.as_str().is_empty() => decoded(name)?,
        Host::RegName(_) => return Err(format!("no host; {FORMS}")),
        _ => return Err(format!("no such kind of address; {FORMS}")),
    };
    let port = authority
        .port_to_u16()
        .map_err(|_| "no such port; ports are 1 to 65535".to_owned())?
        .unwrap_or(default);
    if port == 0 {
        return Err("no such port; ports are 1 to 65535".into());
    }
    Ok(Remote { host, port })
}

fn local(scheme: &str, uri: &Uri<&str>) -> Result<SyslogTarget, String> {
    if uri
        .authority()
        .is_some_and(|host| !host.as_str().is_empty())
    {
        return Err(format!(
            "a local socket has no host; write {scheme}:///dev/log, with three slashes"
        ));
    }
    let path = decoded(uri.path())?;
    match path.as_str() {
        "" | "/" if scheme == "local" => Ok(SyslogTarget::Local(DEV_LOG.into())),
        path if path.starts_with('/') && path.len() > 1 => Ok(SyslogTarget::Local(path.into())),
        _ => Err("no path of a socket; write unix:///dev/log".into()),
    }
}

fn parameters<E: fluent_uri::pct_enc::Encoder>(
    query: Option<&EStr<E>>,
) -> Result<Vec<(String, String)>, String> {
    let mut found: Vec<(String, String)> = Vec::new();
    for part in query.map_or("", EStr::as_str).split('&') {
        if part.is_empty() {
            continue;
        }
        let (name, value) = part.split_once('=').unwrap_or((part, ""));
        if value.is_empty() {
            return Err(format!("?{name} has no value; write {name}=FILE"));
        }
        if found.iter().any(|(other, _)| other == name) {
            return Err(format!("?{name} is there twice"));
        }
        let value = EStr::<fluent_uri::pct_enc::encoder::Query>::new(value)
            .ok_or_else(|| format!("?{name} is no text"))?;
        found.push((name.to_owned(), decoded(value)?));
    }
    Ok(found)
}

fn none(scheme: &str, parameters: &[(String, String)]) -> Result<(), String> {
    match parameters.first() {
        Some((name, _)) => Err(format!("{scheme} takes no ?{name}; it is for tls://")),
        None => Ok(()),
    }
}

fn tls_files(parameters: Vec<(String, String)>) -> Result<TlsFiles, String> {
    let (mut ca, mut cert, mut key) = (None, None, None);
    for (name, value) in parameters {
        match name.as_str() {
            "ca" => ca = Some(value.into()),
            "cert" => cert = Some(value.into()),
            "key" => key = Some(value.into()),
            _ => {
                return Err(format!(
                    "tls takes no ?{name}; it takes ca=FILE, and cert=FILE with key=FILE"
                ));
            }
        }
    }
    let client = match (cert, key) {
        (Some(cert), Some(key)) => Some((cert, key)),
        (None, None) => None,
        (Some(_), None) => return Err("?cert needs its key; add &key=FILE".into()),
        (None, Some(_)) => return Err("?key needs its certificate; add &cert=FILE".into()),
    };
    Ok(TlsFiles { ca, client })
}

fn decoded<E: fluent_uri::pct_enc::Encoder>(text: &EStr<E>) -> Result<String, String> {
    text.decode()
        .to_string()
        .map(Into::into)
        .map_err(|_| format!("{} is not UTF-8", text.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<SyslogTarget, String> {
        text.parse()
    }

    fn at(host: &str, port: u16) -> Remote {
        Remote {
            host: host.into(),
            port,
        }
    }

    #[test]
    fn every_form_has_its_port() {
        for (text, target) in [
            ("udp://logs", SyslogTarget::Udp(at("logs", 514))),
            (
                "UDP://192.0.2.1:5514/",
                SyslogTarget::Udp(at("192.0.2.1", 5514)),
            ),
            (
                "tcp://logs.example.net",
                SyslogTarget::Tcp(at("logs.example.net", 601)),
            ),
            (
                "tcp://[2001:db8::1]",
                SyslogTarget::Tcp(at("2001:db8::1", 601)),
            ),
            ("tcp://[::1]:1601", SyslogTarget::Tcp(at("::1", 1601))),
            (
                "tls://logs:",
                SyslogTarget::Tls(at("logs", 6514), TlsFiles::default()),
            ),
            ("unix:///dev/log", SyslogTarget::Local("/dev/log".into())),
            ("unix:/run/a%20b", SyslogTarget::Local("/run/a b".into())),
            ("local:", SyslogTarget::Local("/dev/log".into())),
            ("local://", SyslogTarget::Local("/dev/log".into())),
            ("local:///run/log", SyslogTarget::Local("/run/log".into())),
        ] {
            assert_eq!(parse(text), Ok(target), "{text}");
        }
        let tls = parse("tls://logs?ca=/etc/ca.pem&cert=/etc/a%26b.pem&key=/etc/key.pem");
        let files = TlsFiles {
            ca: Some("/etc/ca.pem".into()),
            client: Some(("/etc/a&b.pem".into(), "/etc/key.pem".into())),
        };
        assert_eq!(tls, Ok(SyslogTarget::Tls(at("logs", 6514), files)));
    }

    #[test]
    fn what_is_shown_is_what_was_meant() {
        for text in [
            "udp://[2001:db8::1]:514",
            "tcp://logs:601",
            "unix:///dev/log",
        ] {
            assert_eq!(parse(text).unwrap().to_string(), text);
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, names) in [
            ("", "no URL"),
            ("logs:514", "logs is no way"),
            ("http://logs", "http is no way"),
            ("udp:logs", "no host"),
            ("tcp://", "no host"),
            ("tcp://:601", "no host"),
            ("tcp://logs:99999", "no such port"),
            ("tcp://logs:0", "no such port"),
            ("tcp://[fe80::1%25eth0]", "no URL"),
            ("tcp://me@logs", "no user"),
            ("tcp://logs/path", "path means nothing"),
            ("tcp://logs#x", "# means nothing"),
            ("tcp://logs?ca=/x", "tcp takes no ?ca"),
            ("unix:///dev/log?ca=/x", "unix takes no ?ca"),
            ("tls://logs?name=x", "tls takes no ?name"),
            ("tls://logs?ca", "?ca has no value"),
            ("tls://logs?ca=/x&ca=/y", "?ca is there twice"),
            ("tls://logs?cert=/x", "?cert needs its key"),
            ("tls://logs?key=/x", "?key needs its certificate"),
            ("unix://dev/log", "three slashes"),
            ("unix:", "no path"),
            ("unix:dev/log", "no path"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(names), "{text}: {error}");
            assert!(!error.contains('\n'), "{text}: {error}");
        }
    }
}
