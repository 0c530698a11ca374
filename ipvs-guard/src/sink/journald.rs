//! The journal, by its native protocol: a field for each key of an event.
//!
//! Own code for what is a few lines: the crates that speak the protocol send on a socket
//! that blocks, to a fixed path, and cannot tell when journald was killed with events in
//! its socket. Events are far smaller than a datagram may be, so none goes by memfd.

use std::{path::PathBuf, sync::Arc, time::Duration};

use serde_json::Value;

use super::{
    local::{Datagrams, Local},
    remote::{Receiver, Trouble},
    sentence::Sentence,
    severity::severity,
};
use crate::event::{Class, Event};

/// Hands events to journald.
pub struct Journald {
    local: Local,
    batch: Datagrams,
    /// Events that were taken.
    taken: u64,
}

impl Journald {
    /// Where journald listens.
    pub const SOCKET: &str = "/run/systemd/journal/socket";

    /// Hands events to the journald that listens on `socket`.
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        let socket = socket.into();
        // systemd holds the socket. This one it holds as well, but not what connects to it.
        let varlink = socket.with_file_name("io.systemd.journal");
        Self {
            local: Local::new(socket, Self::DOUBT).with_witness(varlink),
            batch: Datagrams::default(),
            taken: 0,
        }
    }
}

impl Receiver for Journald {
    const DOUBT: Duration = Duration::from_secs(5);

    async fn deliver(&mut self, events: &[Arc<Event>]) -> Result<usize, Trouble> {
        self.batch.clear();
        for (number, event) in (self.taken + 1..).zip(events) {
            entry(event, number, &mut self.batch.bytes);
            self.batch.end();
        }
        let taken = self.local.send(&self.batch).await?;
        self.taken += taken as u64;
        Ok(taken)
    }

    fn has_arrived(&self) -> bool {
        self.local.is_read()
    }

    async fn watch(&mut self) -> Trouble {
        self.local.watch().await
    }

    fn again(&mut self, events: usize) {
        self.taken = self.taken.saturating_sub(events as u64);
    }

    async fn close(&mut self) -> Result<(), Trouble> {
        self.local.close().await
    }
}

/// Identifies the class for `journalctl MESSAGE_ID=` and message catalogues: made once,
/// never to change.
const fn message_id(class: Class) -> &'static str {
    match class {
        Class::StaleReuse => "34ae964e868940578ee5049ecea1f5e5",
        Class::Rescheduled => "262b1a1e5dfc4014a6d2a87abefd1a64",
        Class::DrainStarted => "f5a375b8890748138a712cae65c0c72b",
        Class::DrainEnded => "23e6a989534f42ff961514a7ecee0ffb",
        Class::Loss => "194856eaaf504f25bc79d9e031b0bd66",
        Class::Trace => "896dcc6c752b43fc8d37c208f5446295",
    }
}

fn entry(event: &Event, number: u64, out: &mut Vec<u8>) {
    field("MESSAGE", &Sentence(event).to_string(), out);
    field("PRIORITY", &severity(event).number().to_string(), out);
    field("SYSLOG_IDENTIFIER", "ipvs-guard", out);
    field("MESSAGE_ID", message_id(event.class), out);
    field("IPVS_SEQUENCE", &number.to_string(), out);
    let Ok(Value::Object(keys)) = serde_json::to_value(event) else {
        return;
    };
    for (key, value) in &keys {
        let name = name(key);
        if let Value::String(text) = value {
            field(&name, text, out);
        } else {
            field(&name, &value.to_string(), out);
        }
    }
}

/// `IPVS_` and the key in capitals; a key of ours has that in front already.
fn name(key: &str) -> String {
    let key = key.strip_prefix("ipvs.").unwrap_or(key);
    let plain = key.bytes().map(|byte| match byte.to_ascii_uppercase() {
        plain @ (b'A'..=b'Z' | b'0'..=b'9') => char::from(plain),
        _ => '_',
    });
    "IPVS_".chars().chain(plain).collect()
}

/// One field; a value of several lines goes with its length.
fn field(name: &str, value: &str, out: &mut Vec<u8>) {
    out.extend_from_slice(name.as_bytes());
    if value.contains('\n') {
        out.push(b'\n');
        out.extend_from_slice(&(value.len() as u64).to_le_bytes());
    } else {
        out.push(b'=');
    }
    out.extend_from_slice(value.as_bytes());
    out.push(b'\n');
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_key_has_a_field_of_its_own_that_journald_takes() {
        let schema = serde_json::to_value(Event::schema()).unwrap();
        let keys: Vec<_> = schema["properties"].as_object().unwrap().keys().collect();
        let mut names: BTreeSet<_> = keys.iter().map(|key| name(key)).collect();
        assert!(names.insert("IPVS_SEQUENCE".into()));
        assert_eq!(names.len(), keys.len() + 1);
        for name in &names {
            assert!(name.len() <= 64, "{name}");
            assert!(!name.contains("IPVS_IPVS"), "{name}");
        }
        assert!(names.contains("IPVS_SOURCE_ADDRESS"));
        assert!(names.contains("IPVS_DESTINATION_NAT_IP"));
        assert!(names.contains("IPVS_CONN_STATE"));
        assert!(names.contains("IPVS_EVENT_NAME"));
    }

    #[test]
    fn every_class_has_an_identity_of_its_own() {
        let ids: BTreeSet<_> = Class::ALL.iter().map(|class| message_id(*class)).collect();
        assert_eq!(ids.len(), Class::ALL.len());
        for id in ids {
            assert_eq!(id.len(), 32);
            assert!(id.bytes().all(|byte| byte.is_ascii_hexdigit()));
        }
    }

    #[test]
    fn a_value_of_several_lines_adds_no_field() {
        let mut out = Vec::new();
        field("A", "x\nPRIORITY=0", &mut out);
        field("B", "=", &mut out);
        assert_eq!(out, b"A\n\x0c\0\0\0\0\0\0\0x\nPRIORITY=0\nB==\n");
    }
}
