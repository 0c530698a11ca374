//! An event as a message of RFC 5424.
//!
//! The message itself is the event's JSON object, the same as everywhere else, without
//! a byte-order mark: a JSON parser would trip over it. Its keys are not structured data,
//! for names of that belong to IANA or to whoever has an enterprise number, which this
//! program has not. `meta sequenceId` is IANA's.

use std::{fmt::Write as _, io::Write as _, process, sync::Arc};

use syslog_fmt::{
    Facility, Severity as Level,
    v5424::{Config, Formatter, Msg, Timestamp},
};

use crate::{
    event::Event,
    sink::{
        local::Datagrams,
        severity::{Severity, severity},
    },
};

const APP_NAME: &str = "ipvs-guard";
/// RFC 5424, 7.3.1: begins at 1, and at 1 again after this.
const LAST_SEQUENCE_ID: u64 = 2_147_483_647;
/// RFC 5424, 6: characters of HOSTNAME at most.
const HOST_NAME: usize = 255;

/// Encodes events, and numbers them.
pub(super) struct Encoder {
    /// Each message has its length before it (RFC 6587, 3.4.1).
    counted: bool,
    /// For events of this host.
    formatter: Option<(Arc<str>, Formatter)>,
    /// Events that were taken.
    taken: u64,
    messages: Datagrams,
    message: Vec<u8>,
    body: Vec<u8>,
    time: String,
}

impl Encoder {
    pub(super) fn new(counted: bool) -> Self {
        Self {
            counted,
            formatter: None,
            taken: 0,
            messages: Datagrams::default(),
            message: Vec::new(),
            body: Vec::new(),
            time: String::new(),
        }
    }

    /// The messages for `events`, which follow those taken so far.
    pub(super) fn encode(&mut self, events: &[Arc<Event>]) -> &Datagrams {
        self.messages.clear();
        for (number, event) in (self.taken..).zip(events) {
            self.message.clear();
            self.format(event, number % LAST_SEQUENCE_ID + 1);
            if self.counted {
                // Memory takes whatever is written.
                let _never = write!(self.messages.bytes, "{} ", self.message.len());
            }
            self.messages.bytes.append(&mut self.message);
            self.messages.end();
        }
        &self.messages
    }

    pub(super) const fn taken(&mut self, events: usize) {
        self.taken += events as u64;
    }

    /// The last `events` come once more, with the same numbers.
    pub(super) const fn again(&mut self, events: usize) {
        self.taken = self.taken.saturating_sub(events as u64);
    }

    fn format(&mut self, event: &Event, sequence: u64) {
        let formatter = match &mut self.formatter {
            Some((host, formatter)) if *host == event.host => formatter,
            other => {
                let formatter = formatter(&event.host);
                &mut other.insert((Arc::clone(&event.host), formatter)).1
            }
        };
        self.body.clear();
        self.time.clear();
        // Neither an event's keys nor memory can fail.
        let _never = serde_json::to_writer(&mut self.body, event);
        // RFC 5424, 6.2.3: six digits of a second at most.
        let _never = write!(self.time, "{:.6}", event.time);
        let sequence = sequence.to_string();
        let _never = formatter.write_with_data(
            &mut self.message,
            level(severity(event)),
            Timestamp::PreformattedStr(&self.time),
            Msg::NonUnicodeBytes(&self.body),
            Some(event.class.short_name()),
            [("meta", [("sequenceId", sequence.as_str())])],
        );
    }
}

fn formatter(host: &str) -> Formatter {
    let host = host_name(host);
    Config {
        facility: Facility::Daemon,
        hostname: (!host.is_empty()).then_some(host.as_str()),
        app_name: Some(APP_NAME),
        proc_id: Some(&process::id().to_string()),
    }
    .into_formatter()
}

/// A kernel's host name can be any bytes, HOSTNAME any printable ones but a space; what
/// parsers agree on are those of names and addresses.
fn host_name(host: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || ".-_".contains(c);
    host.chars()
        .take(HOST_NAME)
        .map(|c| if plain(c) { c } else { '_' })
        .collect()
}

const fn level(severity: Severity) -> Level {
    match severity {
        Severity::Error => Level::Err,
        Severity::Warning => Level::Warning,
        Severity::Notice => Level::Notice,
        Severity::Informational => Level::Info,
        Severity::Debug => Level::Debug,
    }
}

#[cfg(test)]
mod tests {
    use ipvs_guard_common::state::{ConnState, Forwarding};
    use proptest::prelude::*;
    use syslog_loose::{ProcId, Protocol, SyslogFacility, SyslogSeverity, Variant};

    use super::*;
    use crate::event::{Action, Class, Transport};

    fn event() -> Event {
        let time = "2026-11-21T01:02:03.123456789Z".parse().unwrap();
        Event::new(Class::StaleReuse, time, "node-1".into())
    }

    fn one(event: Event) -> String {
        let mut encoder = Encoder::new(false);
        let messages = encoder.encode(&[Arc::new(event)]);
        String::from_utf8(messages.bytes.clone()).unwrap()
    }

    #[test]
    fn a_message_is_what_the_rfc_asks_for() {
        let mut event = event();
        event.client_address = Some("2001:db8::2".parse().unwrap());
        let pid = process::id();
        assert_eq!(
            one(event),
            format!(
                "<28>1 2026-11-21T01:02:03.123456Z node-1 ipvs-guard {pid} stale_reuse \
                 [meta sequenceId=\"1\"] {{\"time\":\"2026-11-21T01:02:03.123456789Z\",\
                 \"schema_version\":\"1\",\"event.name\":\"ipvs.stale_reuse\",\
                 \"event.action\":\"observed\",\"source.address\":\"2001:db8::2\",\
                 \"host.name\":\"node-1\"}}"
            )
        );
    }

    #[test]
    fn a_host_name_keeps_to_its_characters() {
        assert_eq!(host_name("node-1.example"), "node-1.example");
        assert_eq!(host_name("a b\n\u{e4}]\"=:"), "a_b______");
        assert_eq!(host_name(&"x".repeat(300)).len(), HOST_NAME);
        let mut nameless = event();
        nameless.host = "".into();
        assert!(one(nameless).contains("Z - ipvs-guard "));
    }

    #[test]
    fn a_class_is_a_message_id_and_nothing_else() {
        for class in Class::ALL {
            let name = class.short_name();
            assert!(name.len() <= 32 && name.bytes().all(|byte| byte.is_ascii_graphic()));
        }
    }

    #[test]
    fn what_comes_again_has_the_same_number() {
        let mut encoder = Encoder::new(true);
        let events = [Arc::new(event()), Arc::new(event())];
        let first = encoder.encode(&events).bytes.clone();
        encoder.taken(2);
        let next = encoder.encode(&events).bytes.clone();
        assert_ne!(first, next);
        encoder.again(2);
        assert_eq!(encoder.encode(&events).bytes, first);
        encoder.taken = LAST_SEQUENCE_ID - 1;
        let text = String::from_utf8(encoder.encode(&events).bytes.clone()).unwrap();
        assert!(text.contains("sequenceId=\"2147483647\""), "{text}");
        assert!(text.contains("sequenceId=\"1\""), "{text}");
    }

    #[test]
    fn a_count_is_that_of_the_bytes_that_follow() {
        let mut event = event();
        event.host = "kn\u{f6}ten".into();
        let mut encoder = Encoder::new(true);
        let text = encoder.encode(&[Arc::new(event)]).bytes.clone();
        let end = text.iter().position(|byte| *byte == b' ').unwrap();
        let count: usize = std::str::from_utf8(&text[..end]).unwrap().parse().unwrap();
        assert_eq!(text.len(), end + 1 + count);
    }

    prop_compose! {
        fn any_event()(
            class in prop::sample::select(Class::ALL),
            action in prop::sample::select(vec![Action::Observed, Action::Failed, Action::Healed]),
            nanoseconds in 0_i64..4_000_000_000_000_000_000,
            host in ".{0,300}",
            client in any::<Option<std::net::IpAddr>>(),
            service in any::<Option<std::net::IpAddr>>(),
            port in any::<Option<u16>>(),
            seq in any::<Option<u32>>(),
            state in prop::option::of(0_u16..20),
            weight in any::<Option<i32>>(),
            count in any::<Option<u64>>(),
        ) -> Event {
            let time = jiff::Timestamp::from_nanosecond(nanoseconds.into()).unwrap();
            let mut event = Event::new(class, time, host.into());
            event.action = action;
            event.client_address = client;
            event.service_address = service;
            event.service_port = port;
            event.seq = seq;
            event.conn_state = state.and_then(ConnState::from_raw);
            event.weight = weight;
            event.loss_count = count;
            event.loss_stage = count.map(|_| "ring");
            event.transport = Some(Transport::Tcp);
            event.forwarding = Some(Forwarding::Masq);
            event
        }
    }

    proptest! {
        /// An independent parser reads it, and finds what the event says.
        #[test]
        fn any_event_is_a_message_that_others_read(event in any_event()) {
            let text = one(event.clone());
            let message = syslog_loose::parse_message(&text, Variant::RFC5424);
            prop_assert_eq!(message.protocol, Protocol::RFC5424(1));
            prop_assert_eq!(message.facility, Some(SyslogFacility::LOG_DAEMON));
            let level = match severity(&event) {
                Severity::Error => SyslogSeverity::SEV_ERR,
                Severity::Warning => SyslogSeverity::SEV_WARNING,
                Severity::Notice => SyslogSeverity::SEV_NOTICE,
                Severity::Informational => SyslogSeverity::SEV_INFO,
                Severity::Debug => SyslogSeverity::SEV_DEBUG,
            };
            prop_assert_eq!(message.severity, Some(level));
            let micros = message.timestamp.map(|time| time.timestamp_micros());
            prop_assert_eq!(micros, Some(event.time.as_microsecond()));
            prop_assert_eq!(message.appname, Some(APP_NAME));
            let pid = i32::try_from(process::id()).unwrap();
            prop_assert_eq!(message.procid, Some(ProcId::PID(pid)));
            prop_assert_eq!(message.msgid, Some(event.class.short_name()));
            prop_assert_eq!(message.structured_data.len(), 1);
            prop_assert_eq!(message.structured_data[0].id, "meta");
            let body: serde_json::Value = serde_json::from_str(message.msg).unwrap();
            prop_assert_eq!(body, serde_json::to_value(&event).unwrap());
        }
    }
}
