//! Where a receiver of OTLP is, and what it speaks.

use http::Uri;

/// The port of gRPC, where a URL names none.
const GRPC_PORT: u16 = 4317;
/// The path of HTTP, where a URL names none.
const LOGS: &str = "/v1/logs";

/// How requests are carried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Protocol {
    /// gRPC over HTTP/2.
    Grpc,
    /// A POST of protobuf over HTTP/1.1.
    Http,
}

/// A URL fit for messages: without what may be secret in it.
pub fn shown(url: &str) -> String {
    let open = url.split(['?', '#']).next().unwrap_or_default();
    match (open.split_once("://"), open.rsplit_once('@')) {
        (Some((scheme, _)), Some((_, host))) => format!("{scheme}://{host}"),
        (_, _) => open.to_owned(),
    }
}

/// A receiver of OTLP.
#[derive(Clone, Debug)]
pub struct Endpoint {
    protocol: Protocol,
    /// Of http: or https:.
    uri: Uri,
}

impl Endpoint {
    /// The receiver at `url`. `grpc:` and `grpcs:` are gRPC. `http:` and `https:` are
    /// what `usual` says, HTTP where it says nothing.
    ///
    /// # Errors
    /// What is wrong with `url`.
    pub(super) fn new(url: &str, usual: Option<Protocol>) -> Result<Self, String> {
        const GIVE: &str = "give one such as http://collector:4318 or grpc://collector:4317";
        let uri: Uri = url.parse().map_err(|error| format!("{error}; {GIVE}"))?;
        let (tls, protocol) = match uri.scheme_str() {
            Some("grpc") => (false, Protocol::Grpc),
            Some("grpcs") => (true, Protocol::Grpc),
            Some("http") => (false, usual.unwrap_or(Protocol::Http)),
            Some("https") => (true, usual.unwrap_or(Protocol::Http)),
            Some(_) | None => {
                return Err(format!(
                    "its scheme is none of grpc, grpcs, http and https; {GIVE}"
                ));
            }
        };
        let Some(authority) = uri.authority().filter(|place| !place.host().is_empty()) else {
            return Err(format!("it names no host; {GIVE}"));
        };
        if authority.as_str().contains('@') {
            return Err(
                "it has a user or a password in it; give those in OTEL_EXPORTER_OTLP_HEADERS"
                    .into(),
            );
        }
        if authority.as_str().len() > authority.host().len() && authority.port_u16().is_none() {
            return Err(format!("its port is none; {GIVE}"));
        }
        let port = match (authority.port_u16(), uri.scheme_str()) {
            (Some(port), _) => format!(":{port}"),
            (None, Some("grpc" | "grpcs")) => format!(":{GRPC_PORT}"),
            (None, _) => String::new(),
        };
        let bare = matches!(uri.path(), "" | "/");
        let path = match (protocol, bare) {
            (Protocol::Grpc, true) => "/",
            (Protocol::Grpc, false) => {
                return Err(format!("gRPC has no path; leave {} out", uri.path()));
            }
            (Protocol::Http, true) => LOGS,
            (Protocol::Http, false) => uri.path(),
        };
        let query = match (protocol, uri.query()) {
            (_, None) => String::new(),
            (Protocol::Grpc, Some(_)) => {
                return Err("gRPC has no query; leave it out".into());
            }
            (Protocol::Http, Some(query)) => format!("?{query}"),
        };
        let scheme = if tls { "https" } else { "http" };
        format!("{scheme}://{}{port}{path}{query}", authority.host())
            .parse()
            .map(|uri| Self { protocol, uri })
            .map_err(|error| format!("{error}; {GIVE}"))
    }

    pub(super) const fn protocol(&self) -> Protocol {
        self.protocol
    }

    pub(super) const fn uri(&self) -> &Uri {
        &self.uri
    }

    /// Whether it is reached over TLS.
    pub(super) fn is_encrypted(&self) -> bool {
        self.uri.scheme() == Some(&http::uri::Scheme::HTTPS)
    }
}

/// Whether `url` can be that of a receiver, whatever the environment says of protocols.
///
/// # Errors
/// What is wrong with it, without what may be secret in it.
pub fn check(url: &str) -> Result<(), String> {
    Endpoint::new(url, None).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scheme_says_what_is_spoken() {
        let grpc = Some(Protocol::Grpc);
        for (url, usual, protocol, expect) in [
            ("grpc://c", None, Protocol::Grpc, "http://c:4317/"),
            ("grpcs://c:1", None, Protocol::Grpc, "https://c:1/"),
            ("grpc://[::1]:2", None, Protocol::Grpc, "http://[::1]:2/"),
            (
                "http://c:4318",
                None,
                Protocol::Http,
                "http://c:4318/v1/logs",
            ),
            ("http://c/", None, Protocol::Http, "http://c/v1/logs"),
            (
                "https://c/in/v1/logs?t=1",
                None,
                Protocol::Http,
                "https://c/in/v1/logs?t=1",
            ),
            ("http://c:4317", grpc, Protocol::Grpc, "http://c:4317/"),
            ("https://c:4317", grpc, Protocol::Grpc, "https://c:4317/"),
        ] {
            let endpoint = Endpoint::new(url, usual).unwrap();
            assert_eq!(endpoint.protocol(), protocol, "{url}");
            assert_eq!(endpoint.uri().to_string(), expect, "{url}");
        }
    }

    #[test]
    fn secrets_are_not_shown() {
        for (url, expect) in [
            ("https://c/in?token=1", "https://c/in"),
            ("http://u:p@c:1", "http://c:1"),
            ("grpc://c", "grpc://c"),
            ("", ""),
        ] {
            assert_eq!(shown(url), expect);
        }
    }

    #[test]
    fn what_is_no_receiver_is_told_why() {
        for (url, expect) in [
            ("collector:4317", "scheme"),
            ("tcp://c:1", "none of grpc"),
            ("/v1/logs", "scheme"),
            ("grpc://c/path", "leave /path out"),
            ("grpc://c?x=1", "gRPC has no query"),
            ("http://u:p@c", "OTEL_EXPORTER_OTLP_HEADERS"),
            ("http://c:99999", "port"),
            ("http://c:", "port"),
            ("http://", "give one such as"),
            ("not a url", "give one such as"),
            ("", "give one such as"),
        ] {
            let error = Endpoint::new(url, None).unwrap_err();
            assert!(error.contains(expect), "{url}: {error}");
            assert!(!error.contains('\n'), "{error}");
        }
    }
}
