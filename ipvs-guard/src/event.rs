//! The event as users see it: one flat JSON object, its schema and its names.

use std::{fmt, net::IpAddr, str::FromStr, sync::Arc};

use ipvs_guard_common::state::{ConnState, Forwarding};
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Serialize, Serializer};

/// Version of the keys below; it changes when one changes its meaning or goes.
pub const SCHEMA_VERSION: &str = "1";

macro_rules! classes {
    ($($(#[doc = $doc:literal])+ $id:ident = $name:literal, $default:literal;)+) => {
        /// What happened: `event.name` without its `ipvs.`.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, JsonSchema)]
        pub enum Class {
            $($(#[doc = $doc])+ #[serde(rename = $name)] $id,)+
        }

        impl Class {
            /// Every class.
            pub const ALL: &'static [Self] = &[$(Self::$id),+];

            /// `event.name`.
            pub const fn event_name(self) -> &'static str {
                match self { $(Self::$id => $name),+ }
            }

            /// Whether it is reported when `--event` says nothing.
            pub const fn by_default(self) -> bool {
                match self { $(Self::$id => $default),+ }
            }
        }
    };
}

classes! {
    /// A SYN hit an entry whose destination has weight 0 and was forwarded to it.
    StaleReuse = "ipvs.stale_reuse", true;
    /// A SYN hit an entry and was scheduled anew: healthy.
    Rescheduled = "ipvs.rescheduled", false;
    /// A destination's weight became 0.
    DrainStarted = "ipvs.drain_started", true;
    /// A destination's weight rose from 0, or the destination was removed.
    DrainEnded = "ipvs.drain_ended", true;
    /// Events were lost, and where.
    Loss = "ipvs.loss", true;
    /// A SYN's way through `ip_vs_in` (`--trace`).
    Trace = "ipvs.trace", true;
}

impl Class {
    /// The name that `--event` takes.
    pub fn short_name(self) -> &'static str {
        self.event_name().trim_start_matches("ipvs.")
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.short_name())
    }
}

impl FromStr for Class {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let wanted = s.trim_start_matches("ipvs.");
        Self::ALL
            .iter()
            .copied()
            .find(|class| class.short_name() == wanted)
            .ok_or_else(|| {
                let names: Vec<_> = Self::ALL.iter().map(|class| class.short_name()).collect();
                format!("no such event class; the classes are {}", names.join(", "))
            })
    }
}

/// What was done about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Nothing: it was only seen.
    Observed,
    /// The SYN was dropped.
    Dropped,
    /// The SYN was answered with a reset.
    Reset,
    /// The connection entry was re-pointed to a live destination.
    Healed,
    /// A dry run: the SYN would have been dropped.
    WouldDrop,
    /// A dry run: the SYN would have been answered with a reset.
    WouldReset,
    /// A dry run: the entry would have been re-pointed.
    WouldHeal,
    /// It was tried, and did not come off.
    Failed,
}

impl Action {
    /// `event.action`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Observed => "observed",
            Self::Dropped => "dropped",
            Self::Reset => "reset",
            Self::Healed => "healed",
            Self::WouldDrop => "would_drop",
            Self::WouldReset => "would_reset",
            Self::WouldHeal => "would_heal",
            Self::Failed => "failed",
        }
    }
}

/// `network.type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum NetworkType {
    /// IPv4.
    Ipv4,
    /// IPv6.
    Ipv6,
}

impl From<IpAddr> for NetworkType {
    fn from(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(_) => Self::Ipv4,
            IpAddr::V6(_) => Self::Ipv6,
        }
    }
}

/// `network.transport`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Transport {
    /// The transport for its IP protocol number.
    pub const fn from_number(number: u16) -> Option<Self> {
        Some(match number {
            6 => Self::Tcp,
            17 => Self::Udp,
            132 => Self::Sctp,
            _ => return None,
        })
    }

    /// Its IP protocol number.
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }
}

/// One event. Serialised it is one JSON object with flat keys; a key that is
/// not known is absent.
#[derive(Clone, Debug, Serialize, JsonSchema)]
#[schemars(
    title = "ipvs-guard event",
    description = "One JSON object a line. A key that is not known is absent, never null or empty."
)]
pub struct Event {
    /// When the kernel saw it: RFC 3339, UTC, nanoseconds.
    #[serde(serialize_with = "nanoseconds")]
    #[schemars(with = "String", extend("format" = "date-time"))]
    pub time: Timestamp,
    /// Version of this schema.
    pub schema_version: SchemaVersion,
    /// Class of the event.
    #[serde(rename = "event.name")]
    pub class: Class,
    /// What was done about it.
    #[serde(rename = "event.action")]
    pub action: Action,
    /// Address of the client.
    #[serde(rename = "source.address", skip_serializing_if = "Option::is_none")]
    pub client_address: Option<IpAddr>,
    /// Port of the client.
    #[serde(rename = "source.port", skip_serializing_if = "Option::is_none")]
    pub client_port: Option<u16>,
    /// Address of the virtual service.
    #[serde(
        rename = "destination.address",
        skip_serializing_if = "Option::is_none"
    )]
    pub service_address: Option<IpAddr>,
    /// Port of the virtual service.
    #[serde(rename = "destination.port", skip_serializing_if = "Option::is_none")]
    pub service_port: Option<u16>,
    /// Firewall mark of a virtual service that has no address.
    #[serde(rename = "ipvs.fwmark", skip_serializing_if = "Option::is_none")]
    pub fwmark: Option<u32>,
    /// Address of the real server.
    #[serde(rename = "destination.nat.ip", skip_serializing_if = "Option::is_none")]
    pub real_address: Option<IpAddr>,
    /// Port of the real server.
    #[serde(
        rename = "destination.nat.port",
        skip_serializing_if = "Option::is_none"
    )]
    pub real_port: Option<u16>,
    /// Transport protocol.
    #[serde(rename = "network.transport", skip_serializing_if = "Option::is_none")]
    pub transport: Option<Transport>,
    /// Network protocol between client and virtual service.
    #[serde(rename = "network.type", skip_serializing_if = "Option::is_none")]
    pub network_type: Option<NetworkType>,
    /// Sequence number of the SYN.
    #[serde(rename = "tcp.seq", skip_serializing_if = "Option::is_none")]
    pub seq: Option<u32>,
    /// The same SYN once more: the same incident, not to be counted again.
    #[serde(rename = "tcp.retransmission", skip_serializing_if = "Option::is_none")]
    pub retransmission: Option<bool>,
    /// State of the connection entry before the packet, as ipvsadm names it.
    #[serde(
        rename = "ipvs.conn.state",
        serialize_with = "state_name",
        skip_serializing_if = "Option::is_none"
    )]
    #[schemars(with = "Option<String>")]
    pub conn_state: Option<ConnState>,
    /// Weight of the destination.
    #[serde(rename = "ipvs.dest.weight", skip_serializing_if = "Option::is_none")]
    pub weight: Option<i32>,
    /// Whether the destination is still part of its service.
    #[serde(
        rename = "ipvs.dest.available",
        skip_serializing_if = "Option::is_none"
    )]
    pub available: Option<bool>,
    /// Forwarding method: `masq`, `dr`, `tun`, `local` or `bypass`.
    #[serde(
        rename = "ipvs.forwarding",
        serialize_with = "forwarding_name",
        skip_serializing_if = "Option::is_none"
    )]
    #[schemars(with = "Option<String>")]
    pub forwarding: Option<Forwarding>,
    /// Inode that names the network namespace.
    #[serde(rename = "netns.inode", skip_serializing_if = "Option::is_none")]
    pub netns: Option<u32>,
    /// Where events were lost: `ring`, `read`, `seen_map`, `expired_map`,
    /// `guard_map`, `reset`, `trace_map`, `probe`, `decode` or `sink.NAME`.
    #[serde(rename = "ipvs.loss.stage", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub loss_stage: Option<&'static str>,
    /// How many were lost there since the last report.
    #[serde(rename = "ipvs.loss.count", skip_serializing_if = "Option::is_none")]
    pub loss_count: Option<u64>,
    /// How the SYN fared in `ip_vs_in`.
    #[serde(flatten)]
    pub trace: Option<TraceDetail>,
    /// Kubernetes service of the virtual service (`--kube`), or its name in the file of
    /// `--names`.
    #[serde(rename = "k8s.service.name", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub service: Option<Arc<str>>,
    /// Kubernetes namespace of the service and the pod.
    #[serde(rename = "k8s.namespace.name", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub namespace: Option<Arc<str>>,
    /// Kubernetes pod that is the real server.
    #[serde(rename = "k8s.pod.name", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub pod: Option<Arc<str>>,
    /// Kubernetes node that the real server runs on.
    #[serde(rename = "k8s.node.name", skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>")]
    pub node: Option<Arc<str>>,
    /// Name of the node.
    #[serde(rename = "host.name")]
    #[schemars(with = "String")]
    pub host: Arc<str>,
}

/// What `--trace` adds.
#[derive(Clone, Copy, Debug, Serialize, JsonSchema)]
pub struct TraceDetail {
    /// Whether the lookup found an entry.
    #[serde(rename = "ipvs.trace.lookup")]
    pub lookup: Lookup,
    /// Netfilter verdict of `ip_vs_in`.
    #[serde(rename = "ipvs.trace.verdict")]
    pub verdict: Verdict,
    /// Time in the lookup, in nanoseconds.
    #[serde(rename = "ipvs.trace.lookup_ns")]
    pub lookup_ns: u32,
    /// Time in `ip_vs_in`, in nanoseconds.
    #[serde(rename = "ipvs.trace.total_ns")]
    pub total_ns: u32,
}

/// Result of `ip_vs_conn_in_get_proto`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Lookup {
    /// An entry was there.
    Hit,
    /// None was.
    Miss,
}

/// Netfilter verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// `NF_DROP`.
    Drop,
    /// `NF_ACCEPT`.
    Accept,
    /// `NF_STOLEN`: IPVS sent the packet itself.
    Stolen,
    /// Any other.
    Other,
}

impl Verdict {
    /// The verdict for its number; errors in the upper half are drops with a
    /// reason (`NF_DROP_REASON`).
    pub const fn from_number(number: u32) -> Self {
        match number & 0xff {
            0 => Self::Drop,
            1 => Self::Accept,
            2 => Self::Stolen,
            _ => Self::Other,
        }
    }
}

/// Serialises as [`SCHEMA_VERSION`].
#[derive(Clone, Copy, Debug, Default, JsonSchema)]
#[schemars(with = "String", extend("const" = "1"))]
pub struct SchemaVersion;

impl Serialize for SchemaVersion {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(SCHEMA_VERSION)
    }
}

fn nanoseconds<S: Serializer>(time: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&format_args!("{time:.9}"))
}

fn state_name<S: Serializer>(state: &Option<ConnState>, s: S) -> Result<S::Ok, S::Error> {
    state.map(ConnState::name).serialize(s)
}

fn forwarding_name<S: Serializer>(method: &Option<Forwarding>, s: S) -> Result<S::Ok, S::Error> {
    method.map(Forwarding::name).serialize(s)
}

impl Event {
    /// An event of `class`, observed at `time` on `host`, with nothing else known.
    pub fn new(class: Class, time: Timestamp, host: Arc<str>) -> Self {
        Self {
            time,
            schema_version: SchemaVersion,
            class,
            action: Action::Observed,
            client_address: None,
            client_port: None,
            service_address: None,
            service_port: None,
            fwmark: None,
            real_address: None,
            real_port: None,
            transport: None,
            network_type: None,
            seq: None,
            retransmission: None,
            conn_state: None,
            weight: None,
            available: None,
            forwarding: None,
            netns: None,
            loss_stage: None,
            loss_count: None,
            trace: None,
            service: None,
            namespace: None,
            pod: None,
            node: None,
            host,
        }
    }

    /// The JSON Schema of the serialised event.
    pub fn schema() -> schemars::Schema {
        let mut schema = schemars::schema_for!(Event);
        if let Some(properties) = schema.get_mut("properties") {
            for property in properties.as_object_mut().into_iter().flatten() {
                forbid_null(property.1);
                keep_standard_formats(property.1);
            }
        }
        schema
    }
}

/// Says formats as JSON Schema has them: validators may refuse those that they do not know.
/// What the format of a number says of its bounds is said by them.
fn keep_standard_formats(property: &mut serde_json::Value) {
    let Some(property) = property.as_object_mut() else {
        return;
    };
    match property.get("format").and_then(serde_json::Value::as_str) {
        None | Some("date-time") => {}
        Some("ip") => {
            property.remove("format");
            let either = serde_json::json!([{"format": "ipv4"}, {"format": "ipv6"}]);
            property.insert("anyOf".into(), either);
        }
        Some(format) => {
            let bounds = match format {
                "uint32" => Some((0, i64::from(u32::MAX))),
                "int32" => Some((i64::from(i32::MIN), i64::from(i32::MAX))),
                _ => None,
            };
            property.remove("format");
            if let Some((least, most)) = bounds {
                property.insert("minimum".into(), least.into());
                property.insert("maximum".into(), most.into());
            }
        }
    }
}

/// Takes null out of a property: a key that is not known is absent.
fn forbid_null(property: &mut serde_json::Value) {
    use serde_json::Value;

    let Some(property) = property.as_object_mut() else {
        return;
    };
    for (keyword, null) in [
        ("type", Value::from("null")),
        ("enum", Value::Null),
        ("anyOf", serde_json::json!({"type": "null"})),
    ] {
        let Some(Value::Array(choices)) = property.get_mut(keyword) else {
            continue;
        };
        choices.retain(|choice| *choice != null);
        if keyword == "type"
            && let [only] = choices.as_slice()
        {
            let only = only.clone();
            property.insert(keyword.into(), only);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event() -> Event {
        let time = "2026-11-21T01:02:03.000000004Z".parse().unwrap();
        Event::new(Class::StaleReuse, time, "node-1".into())
    }

    #[test]
    fn absent_keys_are_not_written() {
        let json = serde_json::to_string(&event()).unwrap();
        assert_eq!(
            json,
            "{\"time\":\"2026-11-21T01:02:03.000000004Z\",\"schema_version\":\"1\",\
             \"event.name\":\"ipvs.stale_reuse\",\"event.action\":\"observed\",\
             \"host.name\":\"node-1\"}"
        );
    }

    #[test]
    fn keys_are_those_of_the_contract() {
        let mut e = event();
        e.client_address = Some("10.0.0.1".parse().unwrap());
        e.client_port = Some(40000);
        e.service_address = Some("2001:db8::1".parse().unwrap());
        e.network_type = e.service_address.map(Into::into);
        e.transport = Transport::from_number(6);
        e.conn_state = Some(ConnState::TimeWait);
        e.forwarding = Some(Forwarding::Masq);
        e.retransmission = Some(false);
        e.service = Some("web".into());
        e.namespace = Some("shop".into());
        e.pod = Some("web-1".into());
        e.node = Some("node-2".into());
        let json = serde_json::to_value(&e).unwrap();
        for (key, value) in [
            ("source.address", "10.0.0.1"),
            ("destination.address", "2001:db8::1"),
            ("network.type", "ipv6"),
            ("network.transport", "tcp"),
            ("ipvs.conn.state", "TIME_WAIT"),
            ("ipvs.forwarding", "masq"),
            ("k8s.service.name", "web"),
            ("k8s.namespace.name", "shop"),
            ("k8s.pod.name", "web-1"),
            ("k8s.node.name", "node-2"),
        ] {
            assert_eq!(json[key], value, "{key}");
        }
        assert_eq!(json["tcp.retransmission"], false);
        assert_eq!(json["source.port"], 40000);
    }

    #[test]
    fn classes_parse_with_and_without_prefix() {
        assert_eq!("stale_reuse".parse(), Ok(Class::StaleReuse));
        assert_eq!("ipvs.loss".parse(), Ok(Class::Loss));
        assert!("nonsense".parse::<Class>().is_err());
    }

    #[test]
    fn the_schema_names_every_key_that_an_event_can_have() {
        let schema = serde_json::to_value(Event::schema()).unwrap();
        let properties = schema["properties"].as_object().unwrap();
        assert!(properties.contains_key("destination.nat.ip"));
        assert!(properties.contains_key("ipvs.trace.lookup_ns") || schema.get("anyOf").is_some());
        assert_eq!(properties["source.port"]["type"], "integer");
        assert_eq!(properties["tcp.seq"]["maximum"], u32::MAX);
        assert_eq!(properties["source.address"]["anyOf"][1]["format"], "ipv6");
        let formats = schema["properties"].to_string();
        assert!(
            !formats.contains("\"uint") && !formats.contains("\"int32"),
            "{formats}"
        );
        assert_eq!(properties["k8s.pod.name"]["type"], "string");
        assert!(!schema["properties"].to_string().contains("null"));
    }
}
