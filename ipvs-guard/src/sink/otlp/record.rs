//! Events as log records.

use std::sync::Arc;

use jiff::Timestamp;
use opentelemetry_proto::tonic::{
    collector::logs::v1::ExportLogsServiceRequest,
    common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value::Value},
    logs::v1::{LogRecord, ResourceLogs, ScopeLogs, SeverityNumber},
    resource::v1::Resource,
};

use crate::{
    clock::Clock,
    event::Event,
    sink::{Severity, sentence::Sentence, severity},
};

/// Keys that have a place of their own in a record or in its resource.
const ELSEWHERE: [&str; 3] = ["time", "event.name", "host.name"];

/// One request of all `events`.
pub(super) fn request(resource: &Resource, events: &[Arc<Event>]) -> ExportLogsServiceRequest {
    let observed = nanoseconds(Clock::now());
    let scope = ScopeLogs {
        scope: Some(InstrumentationScope {
            name: env!("CARGO_PKG_NAME").into(),
            version: env!("CARGO_PKG_VERSION").into(),
            ..InstrumentationScope::default()
        }),
        log_records: events.iter().map(|event| record(event, observed)).collect(),
        ..ScopeLogs::default()
    };
    ExportLogsServiceRequest {
        resource_logs: vec![ResourceLogs {
            resource: Some(resource.clone()),
            scope_logs: vec![scope],
            ..ResourceLogs::default()
        }],
    }
}

/// A key with its value.
pub(super) fn attribute(key: &str, value: Value) -> KeyValue {
    KeyValue {
        key: key.into(),
        value: Some(AnyValue { value: Some(value) }),
        ..KeyValue::default()
    }
}

/// A value that is a text.
pub(super) fn text(text: &str) -> Value {
    Value::StringValue(text.into())
}

fn record(event: &Event, observed: u64) -> LogRecord {
    let (number, level) = level(severity(event));
    LogRecord {
        time_unix_nano: nanoseconds(event.time),
        observed_time_unix_nano: observed,
        severity_number: number.into(),
        severity_text: level.into(),
        body: Some(AnyValue {
            value: Some(Value::StringValue(Sentence(event).to_string())),
        }),
        attributes: attributes(event),
        event_name: event.class.event_name().into(),
        ..LogRecord::default()
    }
}

/// The numbers that the data model of logs has for the levels of syslog.
const fn level(severity: Severity) -> (SeverityNumber, &'static str) {
    match severity {
        Severity::Error => (SeverityNumber::Error, "ERROR"),
        Severity::Warning => (SeverityNumber::Warn, "WARN"),
        Severity::Notice => (SeverityNumber::Info2, "NOTICE"),
        Severity::Informational => (SeverityNumber::Info, "INFO"),
        Severity::Debug => (SeverityNumber::Debug, "DEBUG"),
    }
}

/// The flat keys, as serialised: a key that an event gets is here by itself.
fn attributes(event: &Event) -> Vec<KeyValue> {
    let Ok(serde_json::Value::Object(keys)) = serde_json::to_value(event) else {
        return Vec::new();
    };
    keys.into_iter()
        .filter(|(key, _)| !ELSEWHERE.contains(&key.as_str()))
        .filter_map(|(key, value)| Some(attribute(&key, scalar(value)?)))
        .collect()
}

fn scalar(value: serde_json::Value) -> Option<Value> {
    use serde_json::Value as Json;

    Some(match value {
        Json::String(text) => Value::StringValue(text),
        Json::Bool(bool) => Value::BoolValue(bool),
        Json::Number(number) => match number.as_i64() {
            Some(whole) => Value::IntValue(whole),
            None => Value::DoubleValue(number.as_f64()?),
        },
        Json::Null => return None,
        Json::Array(_) | Json::Object(_) => Value::StringValue(value.to_string()),
    })
}

fn nanoseconds(time: Timestamp) -> u64 {
    u64::try_from(time.as_nanosecond()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Class;

    #[test]
    fn keys_are_attributes_of_their_types() {
        let time = "2026-11-21T01:02:03.000000004Z".parse().unwrap();
        let mut event = Event::new(Class::StaleReuse, time, "h".into());
        event.seq = Some(u32::MAX);
        event.retransmission = Some(true);
        event.client_address = Some("10.0.0.1".parse().unwrap());
        let record = record(&event, 7);
        assert_eq!(record.time_unix_nano, 1_795_222_923_000_000_004);
        assert_eq!(record.observed_time_unix_nano, 7);
        assert_eq!(record.event_name, "ipvs.stale_reuse");
        assert_eq!(
            (record.severity_number, record.severity_text.as_str()),
            (13, "WARN")
        );
        let of = |key: &str| {
            let found = record.attributes.iter().find(|pair| pair.key == key);
            found.and_then(|pair| pair.value.clone()?.value)
        };
        assert_eq!(of("tcp.seq"), Some(Value::IntValue(4_294_967_295)));
        assert_eq!(of("tcp.retransmission"), Some(Value::BoolValue(true)));
        assert_eq!(of("source.address"), Some(text("10.0.0.1")));
        assert_eq!(of("event.action"), Some(text("observed")));
        assert_eq!(of("schema_version"), Some(text("1")));
        for key in ELSEWHERE.into_iter().chain(["source.port"]) {
            assert_eq!(of(key), None, "{key}");
        }
    }
}
