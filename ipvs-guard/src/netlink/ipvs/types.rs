//! Services and destinations, and how their attributes are written and read.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipvs_guard_common::state::Forwarding;
use netlink_packet_core::{DecodeError, DefaultNla};

use super::message::{Attributes, text, value};

/// `IPVS_SVC_ATTR_*`.
mod svc {
    pub(super) const AF: u16 = 1;
    pub(super) const PROTOCOL: u16 = 2;
    pub(super) const ADDR: u16 = 3;
    pub(super) const PORT: u16 = 4;
    pub(super) const FWMARK: u16 = 5;
    pub(super) const SCHED_NAME: u16 = 6;
    pub(super) const FLAGS: u16 = 7;
    pub(super) const TIMEOUT: u16 = 8;
    pub(super) const NETMASK: u16 = 9;
    pub(super) const STATS: u16 = 10;
    pub(super) const PE_NAME: u16 = 11;
    pub(super) const STATS64: u16 = 12;
}

/// `IPVS_DEST_ATTR_*`.
mod dest {
    pub(super) const ADDR: u16 = 1;
    pub(super) const PORT: u16 = 2;
    pub(super) const FWD_METHOD: u16 = 3;
    pub(super) const WEIGHT: u16 = 4;
    pub(super) const U_THRESH: u16 = 5;
    pub(super) const L_THRESH: u16 = 6;
    pub(super) const ACTIVE_CONNS: u16 = 7;
    pub(super) const INACT_CONNS: u16 = 8;
    pub(super) const PERSIST_CONNS: u16 = 9;
    pub(super) const STATS: u16 = 10;
    pub(super) const ADDR_FAMILY: u16 = 11;
    pub(super) const STATS64: u16 = 12;
    pub(super) const TUN_TYPE: u16 = 13;
    pub(super) const TUN_PORT: u16 = 14;
    pub(super) const TUN_FLAGS: u16 = 15;
}

/// `IPVS_STATS_ATTR_*`, the same in both forms.
mod stats {
    pub(super) const CONNS: u16 = 1;
    pub(super) const INPKTS: u16 = 2;
    pub(super) const OUTPKTS: u16 = 3;
    pub(super) const INBYTES: u16 = 4;
    pub(super) const OUTBYTES: u16 = 5;
}

/// `IPVS_INFO_ATTR_*`.
mod info {
    pub(super) const VERSION: u16 = 1;
    pub(super) const CONN_TAB_SIZE: u16 = 2;
}

/// `IP_VS_SVC_F_PERSISTENT`.
const PERSISTENT: u32 = 1;
/// `IP_VS_SVC_F_HASHED`: the kernel's own mark, not to be written.
const HASHED: u32 = 2;

/// Address family of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Family {
    /// IPv4.
    Inet,
    /// IPv6.
    Inet6,
}

impl Family {
    /// The family of an address.
    pub fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::Inet,
            IpAddr::V6(_) => Self::Inet6,
        }
    }

    fn number(self) -> u16 {
        match self {
            Self::Inet => nix::libc::AF_INET as u16,
            Self::Inet6 => nix::libc::AF_INET6 as u16,
        }
    }

    fn from_number(number: u16) -> Result<Self, DecodeError> {
        [Self::Inet, Self::Inet6]
            .into_iter()
            .find(|family| family.number() == number)
            .ok_or_else(|| DecodeError::from(format!("address family {number}")))
    }

    /// `union nf_inet_addr`: sixteen bytes, the first four used for IPv4.
    fn address(self, bytes: [u8; 16]) -> IpAddr {
        let [a, b, c, d, ..] = bytes;
        match self {
            Self::Inet => Ipv4Addr::new(a, b, c, d).into(),
            Self::Inet6 => Ipv6Addr::from(bytes).into(),
        }
    }

    /// Bits of an address.
    fn width(self) -> u8 {
        match self {
            Self::Inet => 32,
            Self::Inet6 => 128,
        }
    }
}

/// Transport protocol of a service or connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
    /// Another, by its IP protocol number.
    Other(u8),
}

impl From<u8> for Protocol {
    fn from(number: u8) -> Self {
        match number {
            6 => Self::Tcp,
            17 => Self::Udp,
            132 => Self::Sctp,
            other => Self::Other(other),
        }
    }
}

impl From<Protocol> for u8 {
    fn from(protocol: Protocol) -> Self {
        match protocol {
            Protocol::Tcp => 6,
            Protocol::Udp => 17,
            Protocol::Sctp => 132,
            Protocol::Other(number) => number,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp => f.write_str("tcp"),
            Self::Udp => f.write_str("udp"),
            Self::Sctp => f.write_str("sctp"),
            Self::Other(number) => write!(f, "protocol {number}"),
        }
    }
}

/// What tells one service from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ServiceId {
    /// A virtual address and port.
    Address {
        /// Transport protocol.
        protocol: Protocol,
        /// Virtual address; port 0 stands for all ports of a persistent service.
        address: SocketAddr,
    },
    /// A firewall mark.
    Fwmark {
        /// The mark, never 0.
        mark: u32,
        /// Family of the packets it is for.
        family: Family,
    },
}

impl ServiceId {
    /// The TCP service at an address.
    pub fn tcp(address: SocketAddr) -> Self {
        Self::Address {
            protocol: Protocol::Tcp,
            address,
        }
    }

    /// The family of its clients.
    pub fn family(&self) -> Family {
        match self {
            Self::Address { address, .. } => Family::of(address.ip()),
            Self::Fwmark { family, .. } => *family,
        }
    }

    pub(super) fn attributes(&self) -> Vec<DefaultNla> {
        let mut list = vec![value(svc::AF, self.family().number().to_ne_bytes())];
        match *self {
            Self::Address { protocol, address } => list.extend([
                value(svc::PROTOCOL, u16::from(u8::from(protocol)).to_ne_bytes()),
                value(svc::ADDR, octets(address.ip())),
                value(svc::PORT, address.port().to_be_bytes()),
            ]),
            Self::Fwmark { mark, .. } => list.push(value(svc::FWMARK, mark.to_ne_bytes())),
        }
        list
    }

    fn parse(attributes: Attributes<'_>) -> Result<Self, DecodeError> {
        let family = Family::from_number(attributes.u16(svc::AF, "service family")?)?;
        if attributes.find(svc::FWMARK)?.is_some() {
            return Ok(Self::Fwmark {
                mark: attributes.u32(svc::FWMARK, "fwmark")?,
                family,
            });
        }
        let protocol = attributes.u16(svc::PROTOCOL, "service protocol")?;
        let protocol = u8::try_from(protocol)
            .map_err(|_| DecodeError::from(format!("protocol number {protocol}")))?;
        let address = family.address(attributes.bytes(svc::ADDR, "service address")?);
        let port = attributes.be16(svc::PORT, "service port")?;
        Ok(Self::Address {
            protocol: protocol.into(),
            address: SocketAddr::new(address, port),
        })
    }
}

impl fmt::Display for ServiceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address { protocol, address } => write!(f, "{protocol} {address}"),
            Self::Fwmark { mark, .. } => write!(f, "fwmark {mark}"),
        }
    }
}

/// A service as it is configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// What it is known by.
    pub id: ServiceId,
    /// Scheduler's name, such as `rr`.
    pub scheduler: String,
    /// Persistence engine's name, such as `sip`.
    pub engine: Option<String>,
    /// `IP_VS_SVC_F_*` without PERSISTENT, which `persistence` stands for, and
    /// without HASHED, which is the kernel's.
    pub flags: u32,
    /// Seconds for which a client stays with its destination; none when it does
    /// not.
    pub persistence: Option<u32>,
    /// Leading bits of the client's address that persistence goes by.
    pub persistence_prefix: u8,
}

impl Service {
    /// A service without persistence or flags.
    pub fn new(id: ServiceId, scheduler: &str) -> Self {
        Self {
            id,
            scheduler: scheduler.to_owned(),
            engine: None,
            flags: 0,
            persistence: None,
            persistence_prefix: id.family().width(),
        }
    }

    pub(super) fn attributes(&self) -> Vec<DefaultNla> {
        let flags = (self.flags & !(PERSISTENT | HASHED))
            | if self.persistence.is_some() {
                PERSISTENT
            } else {
                0
            };
        let mut list = self.id.attributes();
        list.push(text(svc::SCHED_NAME, &self.scheduler));
        list.extend(self.engine.as_deref().map(|name| text(svc::PE_NAME, name)));
        // `struct ip_vs_flags`: the flags, and a mask of those that are meant.
        let [a, b, c, d] = flags.to_ne_bytes();
        let [e, f, g, h] = (!HASHED).to_ne_bytes();
        list.push(value(svc::FLAGS, [a, b, c, d, e, f, g, h]));
        list.push(value(
            svc::TIMEOUT,
            self.persistence.unwrap_or_default().to_ne_bytes(),
        ));
        list.push(value(
            svc::NETMASK,
            netmask(self.id.family(), self.persistence_prefix),
        ));
        list
    }
}

/// For IPv4 a mask in network order, for IPv6 the number of bits
/// (`ip_vs_svc_hash_conn` and `ip_vs_sched_persist` read it so).
fn netmask(family: Family, prefix: u8) -> [u8; 4] {
    match family {
        Family::Inet => u32::MAX
            .checked_shl(32 - u32::from(prefix.min(32)))
            .unwrap_or(0)
            .to_be_bytes(),
        Family::Inet6 => u32::from(prefix).to_ne_bytes(),
    }
}

fn prefix(family: Family, netmask: [u8; 4]) -> u8 {
    match family {
        Family::Inet => u32::from_be_bytes(netmask).leading_ones() as u8,
        Family::Inet6 => u32::from_ne_bytes(netmask).min(128) as u8,
    }
}

/// A service as the kernel has it now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceStatus {
    /// Its configuration.
    pub service: Service,
    /// Its counters since it was added.
    pub stats: Stats,
}

impl ServiceStatus {
    pub(super) fn parse(attributes: Attributes<'_>) -> Result<Self, DecodeError> {
        let id = ServiceId::parse(attributes)?;
        let scheduler = attributes
            .text(svc::SCHED_NAME)?
            .unwrap_or_default()
            .to_owned();
        let flags = attributes.u32(svc::FLAGS, "service flags")?;
        let timeout = attributes.u32(svc::TIMEOUT, "service timeout")?;
        Ok(Self {
            service: Service {
                id,
                scheduler,
                engine: attributes.text(svc::PE_NAME)?.map(str::to_owned),
                flags: flags & !(PERSISTENT | HASHED),
                persistence: (flags & PERSISTENT != 0).then_some(timeout),
                persistence_prefix: prefix(id.family(), attributes.bytes(svc::NETMASK, "netmask")?),
            },
            stats: Stats::parse(attributes, svc::STATS64, svc::STATS)?,
        })
    }
}

/// How packets are wrapped on their way to a tunnelled destination (from 5.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tunnel {
    /// `IP_VS_CONN_F_TUNNEL_TYPE_*`: 0 IPIP, 1 GUE, 2 GRE.
    pub kind: u8,
    /// UDP port of GUE.
    pub port: u16,
    /// `IP_VS_TUNNEL_ENCAP_FLAG_*`: checksums.
    pub flags: u16,
}

/// A destination (real server) as it is configured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Destination {
    /// Its address; not always of the service's family.
    pub address: SocketAddr,
    /// How packets get there.
    pub forwarding: Forwarding,
    /// Share of new connections; 0 for none. The kernel refuses more than
    /// `i32::MAX`.
    pub weight: u32,
    /// Connections above which it gets no more; 0 for no limit.
    pub upper_threshold: u32,
    /// Connections below which it gets some again.
    pub lower_threshold: u32,
    /// How packets are wrapped, when they are.
    pub tunnel: Option<Tunnel>,
}

impl Destination {
    /// A masqueraded destination without thresholds.
    pub fn masq(address: SocketAddr, weight: u32) -> Self {
        Self {
            address,
            forwarding: Forwarding::Masq,
            weight,
            upper_threshold: 0,
            lower_threshold: 0,
            tunnel: None,
        }
    }

    /// What tells it from the service's other destinations.
    pub(super) fn key(&self) -> Vec<DefaultNla> {
        vec![
            value(
                dest::ADDR_FAMILY,
                Family::of(self.address.ip()).number().to_ne_bytes(),
            ),
            value(dest::ADDR, octets(self.address.ip())),
            value(dest::PORT, self.address.port().to_be_bytes()),
        ]
    }

    pub(super) fn attributes(&self) -> Vec<DefaultNla> {
        let mut list = self.key();
        list.extend([
            value(dest::FWD_METHOD, method(self.forwarding).to_ne_bytes()),
            value(dest::WEIGHT, self.weight.to_ne_bytes()),
            value(dest::U_THRESH, self.upper_threshold.to_ne_bytes()),
            value(dest::L_THRESH, self.lower_threshold.to_ne_bytes()),
        ]);
        if let Some(tunnel) = self.tunnel {
            list.extend([
                value(dest::TUN_TYPE, [tunnel.kind]),
                value(dest::TUN_PORT, tunnel.port.to_be_bytes()),
                value(dest::TUN_FLAGS, tunnel.flags.to_ne_bytes()),
            ]);
        }
        list
    }
}

/// `IP_VS_CONN_F_MASQ` to `IP_VS_CONN_F_BYPASS`.
fn method(forwarding: Forwarding) -> u32 {
    match forwarding {
        Forwarding::Masq => 0,
        Forwarding::Local => 1,
        Forwarding::Tun => 2,
        Forwarding::Dr => 3,
        Forwarding::Bypass => 4,
    }
}

/// A destination as the kernel has it now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DestinationStatus {
    /// Its configuration.
    pub destination: Destination,
    /// Entries in ESTABLISHED, SYN_SENT or SYN_RECV (`tcp_state_active_table`,
    /// net/netfilter/ipvs/ip_vs_proto_tcp.c): a stale SYN makes one active again.
    pub active: u32,
    /// Entries in any other state.
    pub inactive: u32,
    /// Persistence templates.
    pub persistent: u32,
    /// Its counters since it was added.
    pub stats: Stats,
}

impl DestinationStatus {
    /// `service` is the family of a destination that does not tell its own
    /// (before 3.18).
    pub(super) fn parse(attributes: Attributes<'_>, service: Family) -> Result<Self, DecodeError> {
        let family = match attributes.find(dest::ADDR_FAMILY)? {
            Some(_) => {
                Family::from_number(attributes.u16(dest::ADDR_FAMILY, "destination family")?)?
            }
            None => service,
        };
        let address = family.address(attributes.bytes(dest::ADDR, "destination address")?);
        let port = attributes.be16(dest::PORT, "destination port")?;
        let method = attributes.u32(dest::FWD_METHOD, "forwarding method")?;
        let tunnel = match attributes.find(dest::TUN_TYPE)? {
            Some(_) => {
                let [kind] = attributes.bytes(dest::TUN_TYPE, "tunnel type")?;
                Some(Tunnel {
                    kind,
                    port: attributes.be16(dest::TUN_PORT, "tunnel port")?,
                    flags: attributes.u16(dest::TUN_FLAGS, "tunnel flags")?,
                })
            }
            None => None,
        };
        Ok(Self {
            destination: Destination {
                address: SocketAddr::new(address, port),
                forwarding: Forwarding::from_flags(method)
                    .ok_or_else(|| DecodeError::from(format!("forwarding method {method}")))?,
                weight: attributes.u32(dest::WEIGHT, "weight")?,
                upper_threshold: attributes.u32(dest::U_THRESH, "upper threshold")?,
                lower_threshold: attributes.u32(dest::L_THRESH, "lower threshold")?,
                tunnel,
            },
            active: attributes.u32(dest::ACTIVE_CONNS, "active connections")?,
            inactive: attributes.u32(dest::INACT_CONNS, "inactive connections")?,
            persistent: attributes.u32(dest::PERSIST_CONNS, "persistent connections")?,
            stats: Stats::parse(attributes, dest::STATS64, dest::STATS)?,
        })
    }
}

/// Counters of a service or destination.
///
/// The kernel sums them up every two seconds (`estimation_timer`, from 6.2
/// `ip_vs_estimation_kthread`), so they lag behind by as much. Those of
/// connections in [`DestinationStatus`] do not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Connections scheduled.
    pub connections: u64,
    /// Packets from clients.
    pub in_packets: u64,
    /// Packets to clients; none are seen with direct routing and tunnels.
    pub out_packets: u64,
    /// Bytes from clients.
    pub in_bytes: u64,
    /// Bytes to clients.
    pub out_bytes: u64,
}

impl Stats {
    /// From the 64-bit form (from 4.1), else the one whose counts wrap.
    fn parse(attributes: Attributes<'_>, wide: u16, narrow: u16) -> Result<Self, DecodeError> {
        let kind = if attributes.find(wide)?.is_some() {
            wide
        } else {
            narrow
        };
        let counters = attributes.nested(kind, "counters")?;
        Ok(Self {
            connections: counters.number(stats::CONNS, "connections")?,
            in_packets: counters.number(stats::INPKTS, "packets in")?,
            out_packets: counters.number(stats::OUTPKTS, "packets out")?,
            in_bytes: counters.number(stats::INBYTES, "bytes in")?,
            out_bytes: counters.number(stats::OUTBYTES, "bytes out")?,
        })
    }
}

/// What IPVS says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Info {
    /// Major, minor and patch number of IPVS itself: 1.2.1 for many years.
    pub version: (u8, u8, u8),
    /// Buckets of the connection table.
    pub table_size: u32,
}

impl Info {
    pub(super) fn parse(attributes: Attributes<'_>) -> Result<Self, DecodeError> {
        // `NVERSION`: a byte each, the highest unused.
        let [_, major, minor, patch] = attributes.u32(info::VERSION, "version")?.to_be_bytes();
        Ok(Self {
            version: (major, minor, patch),
            table_size: attributes.u32(info::CONN_TAB_SIZE, "table size")?,
        })
    }
}

fn octets(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(v4) => {
            let [a, b, c, d] = v4.octets();
            [a, b, c, d, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
        }
        IpAddr::V6(v6) => v6.octets(),
    }
}

#[cfg(test)]
mod tests {
    use netlink_packet_core::Emitable as _;
    use proptest::prelude::*;

    use super::super::message::nest;
    use super::*;

    fn wire(list: &[DefaultNla]) -> Vec<u8> {
        let mut bytes = vec![0; list.buffer_len()];
        list.emit(&mut bytes);
        bytes
    }

    fn counters(kind: u16) -> DefaultNla {
        let numbers = (1u16..=5)
            .map(|n| value(n, (u64::from(n) << 40).to_ne_bytes()))
            .collect::<Vec<_>>();
        nest(kind, &numbers)
    }

    const COUNTED: Stats = Stats {
        connections: 1 << 40,
        in_packets: 2 << 40,
        out_packets: 3 << 40,
        in_bytes: 4 << 40,
        out_bytes: 5 << 40,
    };

    fn address() -> impl Strategy<Value = SocketAddr> {
        (any::<IpAddr>(), any::<u16>()).prop_map(|(ip, port)| SocketAddr::new(ip, port))
    }

    fn id() -> impl Strategy<Value = ServiceId> {
        let family = prop_oneof![Just(Family::Inet), Just(Family::Inet6)];
        prop_oneof![
            (any::<u8>(), address()).prop_map(|(number, address)| ServiceId::Address {
                protocol: number.into(),
                address
            }),
            (any::<u32>(), family).prop_map(|(mark, family)| ServiceId::Fwmark { mark, family }),
        ]
    }

    prop_compose! {
        fn service()(
            id in id(),
            scheduler in "[a-z]{1,15}",
            engine in proptest::option::of("[a-z]{1,15}"),
            flags in any::<u32>(),
            persistence in any::<Option<u32>>(),
            bits in 0u8..=32,
        ) -> Service {
            let flags = flags & !(PERSISTENT | HASHED);
            Service { id, scheduler, engine, flags, persistence, persistence_prefix: bits }
        }
    }

    prop_compose! {
        fn destination()(
            address in address(),
            method in 0u32..5,
            weight in any::<u32>(),
            limits in any::<(u32, u32)>(),
            tunnel in any::<Option<(u8, u16, u16)>>(),
        ) -> Destination {
            Destination {
                address,
                forwarding: Forwarding::from_flags(method).unwrap(),
                weight,
                upper_threshold: limits.0,
                lower_threshold: limits.1,
                tunnel: tunnel.map(|(kind, port, flags)| Tunnel { kind, port, flags }),
            }
        }
    }

    proptest! {
        #[test]
        fn a_service_is_read_as_it_was_written(service in service()) {
            let mut list = service.attributes();
            list.push(counters(svc::STATS64));
            let status = ServiceStatus::parse(Attributes(&wire(&list))).unwrap();
            prop_assert_eq!(status, ServiceStatus { service, stats: COUNTED });
        }

        #[test]
        fn a_destination_is_read_as_it_was_written(destination in destination(), counts in any::<[u32; 3]>()) {
            let [active, inactive, persistent] = counts;
            let mut list = destination.attributes();
            list.push(value(dest::ACTIVE_CONNS, active.to_ne_bytes()));
            list.push(value(dest::INACT_CONNS, inactive.to_ne_bytes()));
            list.push(value(dest::PERSIST_CONNS, persistent.to_ne_bytes()));
            list.push(counters(dest::STATS64));
            let status = DestinationStatus::parse(Attributes(&wire(&list)), Family::Inet).unwrap();
            prop_assert_eq!(status, DestinationStatus { destination, active, inactive, persistent, stats: COUNTED });
        }

        /// Any bytes as attributes, and a true list with a byte changed and its end cut off.
        #[test]
        fn any_attributes_are_taken_or_refused(
            bytes in proptest::collection::vec(any::<u8>(), 0..256),
            destination in destination(),
            change in any::<(prop::sample::Index, u8)>(),
            cut in any::<prop::sample::Index>(),
        ) {
            let mut list = destination.attributes();
            list.push(counters(dest::STATS64));
            let mut changed = wire(&list);
            let at = change.0.index(changed.len());
            changed[at] = change.1;
            changed.truncate(cut.index(changed.len()) + 1);
            for bytes in [&bytes, &changed] {
                drop(ServiceStatus::parse(Attributes(bytes)));
                drop(DestinationStatus::parse(Attributes(bytes), Family::Inet6));
                drop(Info::parse(Attributes(bytes)));
            }
        }
    }

    #[test]
    fn counters_of_old_kernels_are_read_too() {
        let mut list = vec![
            value(1, 7u32.to_ne_bytes()),
            value(2, 8u32.to_ne_bytes()),
            value(3, 9u32.to_ne_bytes()),
        ];
        list.extend([value(4, 10u64.to_ne_bytes()), value(5, 11u64.to_ne_bytes())]);
        let bytes = wire(&[nest(dest::STATS, &list)]);
        let stats = Stats::parse(Attributes(&bytes), dest::STATS64, dest::STATS).unwrap();
        assert_eq!(
            stats,
            Stats {
                connections: 7,
                in_packets: 8,
                out_packets: 9,
                in_bytes: 10,
                out_bytes: 11
            }
        );
    }

    #[test]
    fn masks_are_of_the_family() {
        assert_eq!(netmask(Family::Inet, 24), [255, 255, 255, 0]);
        assert_eq!(netmask(Family::Inet, 0), [0, 0, 0, 0]);
        assert_eq!(netmask(Family::Inet6, 64), 64u32.to_ne_bytes());
        assert_eq!(prefix(Family::Inet, [255, 255, 0, 0]), 16);
    }

    #[test]
    fn the_version_is_taken_apart() {
        let bytes = wire(&[
            value(1, 0x0001_0201u32.to_ne_bytes()),
            value(2, 4096u32.to_ne_bytes()),
        ]);
        let info = Info::parse(Attributes(&bytes)).unwrap();
        assert_eq!(
            info,
            Info {
                version: (1, 2, 1),
                table_size: 4096
            }
        );
    }

    #[test]
    fn ids_are_named_as_people_name_them() {
        assert_eq!(
            ServiceId::tcp("203.0.113.1:80".parse().unwrap()).to_string(),
            "tcp 203.0.113.1:80"
        );
        assert_eq!(
            ServiceId::Fwmark {
                mark: 7,
                family: Family::Inet6
            }
            .to_string(),
            "fwmark 7"
        );
    }
}
