//! What OpenTelemetry's environment variables say about a receiver of logs.

use std::{path::PathBuf, time::Duration};

use http::{HeaderMap, HeaderName, HeaderValue};
use opentelemetry_proto::tonic::resource::v1::Resource;
use percent_encoding::percent_decode_str;
use rustls::ClientConfig;

use super::{
    record,
    url::{Endpoint, Protocol},
};
use crate::sink::tls;

/// As the specification has it.
const TIMEOUT: Duration = Duration::from_secs(10);
/// No time-out that is none.
const TIMEOUTS: std::ops::RangeInclusive<u64> = 1..=3_600_000;

/// How logs are handed to a receiver.
#[derive(Clone, Debug)]
pub struct Options {
    protocol: Result<Option<Protocol>, String>,
    pub(super) headers: HeaderMap,
    pub(super) timeout: Duration,
    certificate: Option<PathBuf>,
    identity: Option<(PathBuf, PathBuf)>,
    /// Attributes of the resource, later ones before earlier ones of the same name.
    resource: Vec<(String, String)>,
}

impl Options {
    /// From the environment: `variable` gives the value of one.
    ///
    /// # Errors
    /// The variable and what is wrong with it.
    pub fn from_env(variable: impl Fn(&str) -> Option<String>) -> Result<Self, String> {
        let given = |name: &str| variable(name).filter(|value| !value.trim().is_empty());
        // The one for logs goes before the one for every signal.
        let of_logs = |rest: &str| {
            ["OTEL_EXPORTER_OTLP_LOGS_", "OTEL_EXPORTER_OTLP_"]
                .into_iter()
                .map(|begin| format!("{begin}{rest}"))
                .find_map(|name| given(&name).map(|value| (name, value)))
        };
        let path = |rest: &str| of_logs(rest).map(|(name, value)| (name, PathBuf::from(value)));
        let protocol = match of_logs("PROTOCOL") {
            None => Ok(None),
            Some((name, value)) => match value.trim() {
                "grpc" => Ok(Some(Protocol::Grpc)),
                "http/protobuf" => Ok(Some(Protocol::Http)),
                other => Err(format!(
                    "{name}={other}: no protocol of ours; give grpc or http/protobuf"
                )),
            },
        };
        let timeout = match of_logs("TIMEOUT") {
            None => TIMEOUT,
            Some((name, value)) => value
                .trim()
                .parse()
                .ok()
                .filter(|time| TIMEOUTS.contains(time))
                .map(Duration::from_millis)
                .ok_or_else(|| format!("{name}={value}: give milliseconds, such as 10000"))?,
        };
        let headers = match of_logs("HEADERS") {
            None => HeaderMap::new(),
            Some((name, value)) => headers(&name, &value)?,
        };
        let identity = match (path("CLIENT_CERTIFICATE"), path("CLIENT_KEY")) {
            (None, None) => None,
            (Some((_, chain)), Some((_, key))) => Some((chain, key)),
            (Some((name, _)), None) => {
                return Err(format!(
                    "{name}: its key is missing; give OTEL_EXPORTER_OTLP_CLIENT_KEY"
                ));
            }
            (None, Some((name, _))) => {
                return Err(format!(
                    "{name}: its certificate is missing; give OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE"
                ));
            }
        };
        let mut resource = match given("OTEL_RESOURCE_ATTRIBUTES") {
            None => Vec::new(),
            Some(value) => pairs("OTEL_RESOURCE_ATTRIBUTES", &value)?,
        };
        if let Some(name) = given("OTEL_SERVICE_NAME") {
            resource.push(("service.name".into(), name));
        }
        Ok(Self {
            protocol,
            headers,
            timeout,
            certificate: path("CERTIFICATE").map(|(_, file)| file),
            identity,
            resource,
        })
    }

    /// The receiver at `url`.
    ///
    /// # Errors
    /// What is wrong with it, or with the protocol that the environment asks for.
    pub fn endpoint(&self, url: &str) -> Result<Endpoint, String> {
        // The scheme of gRPC is said louder than the environment.
        let usual = if url.starts_with("grpc") {
            None
        } else {
            self.protocol.clone()?
        };
        Endpoint::new(url, usual)
    }

    pub(super) fn tls(&self) -> Result<ClientConfig, String> {
        let identity = self.identity.as_ref();
        tls::client_config(
            self.certificate.as_deref(),
            identity.map(|(chain, key)| (chain.as_path(), key.as_path())),
        )
        .map_err(|error| match self.certificate {
            Some(_) => error,
            None => format!("{error}; give theirs in OTEL_EXPORTER_OTLP_CERTIFICATE"),
        })
    }

    /// What all events have in common.
    pub(super) fn resource(&self, host: &str) -> Resource {
        let own = [
            ("service.name", env!("CARGO_PKG_NAME")),
            ("service.version", env!("CARGO_PKG_VERSION")),
            ("host.name", host),
        ];
        let mut attributes: Vec<(&str, &str)> = Vec::new();
        let given = self.resource.iter().rev();
        for (key, value) in given
            .map(|(key, value)| (key.as_str(), value.as_str()))
            .chain(own)
        {
            if !attributes.iter().any(|(known, _)| *known == key) {
                attributes.push((key, value));
            }
        }
        Resource {
            attributes: attributes
                .into_iter()
                .map(|(key, value)| record::attribute(key, record::text(value)))
                .collect(),
            ..Resource::default()
        }
    }
}

/// `key=value,key=value`, as W3C Baggage has it.
fn pairs(variable: &str, list: &str) -> Result<Vec<(String, String)>, String> {
    list.split(',')
        .filter(|pair| !pair.trim().is_empty())
        .map(|pair| {
            let (key, value) = pair
                .split_once('=')
                .filter(|(key, _)| !key.trim().is_empty())
                .ok_or_else(|| {
                    format!("{variable}: a part of it is no key=value; separate them by commas")
                })?;
            let text = |part: &str| {
                percent_decode_str(part.trim())
                    .decode_utf8()
                    .map(Into::into)
                    .map_err(|_| format!("{variable}: {}: no UTF-8", key.trim()))
            };
            Ok((text(key)?, text(value)?))
        })
        .collect()
}

/// Their values are secrets: no message has one.
fn headers(variable: &str, list: &str) -> Result<HeaderMap, String> {
    let mut headers = HeaderMap::new();
    for (key, value) in pairs(variable, list)? {
        let name = HeaderName::try_from(&key)
            .map_err(|_| format!("{variable}: {key}: not the name of a header"))?;
        let mut value = HeaderValue::try_from(&value)
            .map_err(|_| format!("{variable}: {key}: its value cannot be one of a header"))?;
        value.set_sensitive(true);
        headers.append(name, value);
    }
    Ok(headers)
}

#[cfg(test)]
mod tests {
    use opentelemetry_proto::tonic::common::v1::any_value::Value;

    use super::*;

    fn options(variables: &[(&str, &str)]) -> Result<Options, String> {
        Options::from_env(|name| {
            variables
                .iter()
                .find(|(known, _)| *known == name)
                .map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn the_variable_of_logs_goes_first() {
        let options = options(&[
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "1"),
            ("OTEL_EXPORTER_OTLP_LOGS_TIMEOUT", "2500"),
            ("OTEL_EXPORTER_OTLP_LOGS_HEADERS", ""),
            (
                "OTEL_EXPORTER_OTLP_HEADERS",
                "x-scope-orgid=a%20b , Authorization=Basic Zm9v==",
            ),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
        ])
        .unwrap();
        assert_eq!(options.timeout, Duration::from_millis(2_500));
        assert_eq!(options.headers["x-scope-orgid"], "a b");
        assert_eq!(options.headers["authorization"], "Basic Zm9v==");
        assert_eq!(
            options.endpoint("http://c:1").unwrap().protocol(),
            Protocol::Grpc
        );
    }

    #[test]
    fn without_any_there_are_ten_seconds_and_http() {
        let options = options(&[]).unwrap();
        assert_eq!(options.timeout, TIMEOUT);
        assert_eq!(
            options.endpoint("http://c:1").unwrap().protocol(),
            Protocol::Http
        );
    }

    #[test]
    fn what_is_wrong_is_named_without_secrets() {
        for (name, value, expect) in [
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "soon", "milliseconds"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "0", "milliseconds"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "hunter2", "key=value"),
            (
                "OTEL_EXPORTER_OTLP_HEADERS",
                "a b=hunter2",
                "a b: not the name",
            ),
            ("OTEL_EXPORTER_OTLP_HEADERS", "a=hunter2%0a", "a: its value"),
            ("OTEL_EXPORTER_OTLP_CLIENT_KEY", "/k", "CLIENT_CERTIFICATE"),
            ("OTEL_RESOURCE_ATTRIBUTES", "=x", "OTEL_RESOURCE_ATTRIBUTES"),
        ] {
            let error = options(&[(name, value)]).unwrap_err();
            assert!(error.contains(expect), "{error}");
            assert!(!error.contains("hunter2"), "{error}");
        }
        let json = options(&[("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json")]).unwrap();
        assert!(
            json.endpoint("http://c")
                .unwrap_err()
                .contains("http/protobuf")
        );
        assert!(json.endpoint("grpc://c").is_ok());
    }

    #[test]
    fn the_environment_completes_the_resource() {
        let options = options(&[
            (
                "OTEL_RESOURCE_ATTRIBUTES",
                "k8s.node.name=n%3D1,service.name=other,host.name=h2",
            ),
            ("OTEL_SERVICE_NAME", "edge"),
        ])
        .unwrap();
        let resource = options.resource("h1");
        let of = |key: &str| {
            let mut found = resource.attributes.iter().filter(|pair| pair.key == key);
            let value = found.next().and_then(|pair| pair.value.clone()?.value);
            assert!(found.next().is_none(), "{key} twice");
            match value {
                Some(Value::StringValue(text)) => text,
                other => panic!("{key}: {other:?}"),
            }
        };
        assert_eq!(of("service.name"), "edge");
        assert_eq!(of("service.version"), env!("CARGO_PKG_VERSION"));
        assert_eq!(of("k8s.node.name"), "n=1");
        assert_eq!(of("host.name"), "h2");
    }
}
