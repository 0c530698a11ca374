//! The records that the probes put into the ring buffer.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::{
    ABI_VERSION,
    addr::Endpoint,
    guard::{FlowKey, VerdictKey},
};

/// What a record tells; its number is [`Header::kind`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Kind {
    /// [`SynRecord`]: a SYN was forwarded to a weight-0 destination by an old entry.
    Stale = 1,
    /// [`SynRecord`]: a SYN hit an entry and was scheduled anew.
    Rescheduled = 2,
    /// [`SynRecord`]: any SYN, while the layout is being proved.
    Proof = 3,
    /// [`DestRecord`]: a destination was added or its weight was set.
    DestUpdate = 4,
    /// [`DestRecord`]: a destination was removed.
    DestDelete = 5,
    /// [`TraceRecord`]: a SYN left `ip_vs_in`.
    Trace = 6,
    /// [`SkbRecord`]: what the probe sees of a packet, while the layout is being proved.
    ProofSkb = 7,
    /// [`FaultRecord`]: a read that failed, while the layout is being proved.
    ProofFault = 8,
    /// [`VerdictRecord`]: a SYN that was to be acted on was met on its way out.
    Met = 9,
    /// [`FlowRecord`]: a SYN of a stale flow was acted on before IPVS saw it.
    Turned = 10,
    /// [`PacketRecord`]: the SYN of the record before, which is held back.
    Packet = 11,
    /// [`GoneRecord`]: the entry of a SYN that is held back was thrown away.
    Gone = 12,
}

impl Kind {
    /// The kind for its number.
    pub const fn from_raw(raw: u16) -> Option<Self> {
        Some(match raw {
            1 => Self::Stale,
            2 => Self::Rescheduled,
            3 => Self::Proof,
            4 => Self::DestUpdate,
            5 => Self::DestDelete,
            6 => Self::Trace,
            7 => Self::ProofSkb,
            8 => Self::ProofFault,
            9 => Self::Met,
            10 => Self::Turned,
            11 => Self::Packet,
            12 => Self::Gone,
            _ => return None,
        })
    }
}

/// The first bytes of every record.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Header {
    abi: u16,
    kind: u16,
    flags: u32,
    /// `CLOCK_MONOTONIC` in nanoseconds when the probe ran.
    pub time: u64,
}

impl Header {
    /// The packet had been reported before ([`Kind::Stale`]).
    pub const RETRANSMISSION: u32 = 1;
    /// [`DestRecord`]: the destination is new to its service.
    pub const ADDED: u32 = 2;
    /// [`TraceRecord`]: the lookup found an entry.
    pub const LOOKUP_HIT: u32 = 4;
    /// [`TraceRecord`]: the packet was committed to a destination.
    pub const COMMITTED: u32 = 8;
    /// [`TraceRecord`]: the lookup was seen.
    pub const LOOKED_UP: u32 = 16;
    /// [`Kind::Stale`]: a verdict awaits the packet on its way out.
    pub const ARMED: u32 = 32;
    /// [`Kind::Stale`]: it would be acted on, were this no dry run.
    pub const WOULD_ACT: u32 = 64;
    /// [`VerdictRecord`]: the reset is not sent yet: the client is on no device.
    pub const UNANSWERED: u32 = 128;
    /// [`Kind::Stale`] and [`VerdictRecord`]: the packet is held back until its entry
    /// is re-pointed, or would be in a dry run.
    pub const HELD: u32 = 256;
    /// [`GoneRecord`]: its conntrack goes now, too.
    pub const UNTRACKED: u32 = 512;
    /// [`GoneRecord`]: it was the mark at the end of a message to the backup daemon,
    /// whose number stands in place of the entry's address.
    pub const HEARD: u32 = 1_024;
    /// [`Kind::Stale`] and held: its entry leads to a living destination since a moment
    /// ago, and the conntrack of the one before, which has the same name, is not gone yet.
    pub const PARTING: u32 = 2_048;

    /// A header of this build's ABI.
    #[inline(always)]
    pub const fn new(kind: Kind, flags: u32, time: u64) -> Self {
        Self {
            abi: ABI_VERSION,
            kind: kind as u16,
            flags,
            time,
        }
    }

    /// Sets `flag`.
    #[inline(always)]
    pub const fn set(&mut self, flag: u32) {
        self.flags |= flag;
    }

    /// Clears `flag`.
    #[inline(always)]
    pub const fn clear(&mut self, flag: u32) {
        self.flags &= !flag;
    }

    /// The ABI version of the writer.
    pub const fn abi(&self) -> u16 {
        self.abi
    }

    /// The raw kind.
    pub const fn kind(&self) -> u16 {
        self.kind
    }

    /// Whether `flag` is set.
    pub const fn has(&self, flag: u32) -> bool {
        self.flags & flag != 0
    }
}

/// A client's SYN on a connection entry.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct SynRecord {
    /// Kind, flags and time.
    pub header: Header,
    /// Inode of the network namespace.
    pub netns: u32,
    /// TCP sequence number, host order.
    pub seq: u32,
    /// The client.
    pub client: Endpoint,
    /// The virtual service.
    pub vip: Endpoint,
    /// The real server.
    pub dest: Endpoint,
    /// Its weight.
    pub weight: i32,
    /// `ip_vs_conn.flags`.
    pub conn_flags: u32,
    /// `ip_vs_dest.flags`, or `cflags` from 7.0.
    pub dest_flags: u32,
    /// `ip_vs_conn.in_pkts`.
    pub in_pkts: u32,
    /// `ip_vs_conn.state` before this packet.
    pub state: u16,
    /// Transport protocol number.
    pub protocol: u8,
    /// Zero.
    pub pad: [u8; 5],
}

/// A change of a destination.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct DestRecord {
    /// Kind, flags and time.
    pub header: Header,
    /// Inode of the network namespace.
    pub netns: u32,
    /// Firewall mark of the service, or 0.
    pub fwmark: u32,
    /// The virtual service; all zero for a firewall mark.
    pub vip: Endpoint,
    /// The real server.
    pub dest: Endpoint,
    /// Weight before; 0 for an added destination.
    pub weight_before: i32,
    /// Weight from now on; 0 for a removed destination.
    pub weight_after: i32,
    /// Transport protocol number.
    pub protocol: u16,
    /// Address family of the service.
    pub af: u16,
    /// `ip_vs_dest.flags`, or `cflags`, before the change.
    pub dest_flags: u32,
}

/// A SYN's way through `ip_vs_in`.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct TraceRecord {
    /// Kind, flags and the time of entry.
    pub header: Header,
    /// Inode of the network namespace; 0 when it could not be read.
    pub netns: u32,
    /// TCP sequence number, host order.
    pub seq: u32,
    /// Source of the packet.
    pub client: Endpoint,
    /// Destination of the packet: the virtual service.
    pub vip: Endpoint,
    /// The real server, when [`Header::COMMITTED`].
    pub dest: Endpoint,
    /// Its weight.
    pub weight: i32,
    /// `ip_vs_conn.flags`.
    pub conn_flags: u32,
    /// `ip_vs_dest.flags`, or `cflags` from 7.0.
    pub dest_flags: u32,
    /// Netfilter verdict (`NF_DROP` 0, `NF_ACCEPT` 1, `NF_STOLEN` 2).
    pub verdict: u32,
    /// Time in the lookup, in nanoseconds.
    pub lookup_ns: u32,
    /// Time in `ip_vs_in`, in nanoseconds.
    pub total_ns: u32,
    /// `ip_vs_conn.state` before this packet.
    pub state: u16,
    /// Transport protocol number.
    pub protocol: u8,
    /// Zero.
    pub pad: [u8; 5],
}

/// The fields of `struct sk_buff` as the layout finds them.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct SkbRecord {
    /// Kind, flags and time.
    pub header: Header,
    /// `head`.
    pub head: u64,
    /// `network_header`.
    pub network_header: u32,
    /// `transport_header`.
    pub transport_header: u32,
    /// `tail`.
    pub tail: u32,
    /// Zero.
    pub pad: u32,
}

/// A kernel read that failed.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct FaultRecord {
    /// Kind, flags and time.
    pub header: Header,
    /// Index of the field in [`crate::layout::FieldId::ALL`].
    pub field: u32,
    /// Zero.
    pub pad: u32,
}

/// A SYN that its verdict met.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct VerdictRecord {
    /// Kind, flags and time.
    pub header: Header,
    /// The packet.
    pub key: VerdictKey,
    /// Index of the device it came in by; 0: the client is on this node.
    pub came_by: u32,
    /// Zero.
    pub pad: u32,
}

/// Bytes of a packet that a record carries at most: with every option of IPv4 and
/// TCP it has 120.
pub const PACKET_MOST: usize = 256;

/// A SYN that is held back, as IPVS was given it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct PacketRecord {
    /// Kind, flags and time.
    pub header: Header,
    /// Address of its `struct ip_vs_conn`.
    pub conn: u64,
    /// Length from the network header on; 0: it does not fit here.
    pub len: u32,
    /// TCP sequence number, host order.
    pub seq: u32,
    /// The packet from its network header on.
    pub bytes: [u8; PACKET_MOST],
}

impl PacketRecord {
    /// A record with nothing in it.
    pub const EMPTY: Self = Self {
        header: Header {
            abi: 0,
            kind: 0,
            flags: 0,
            time: 0,
        },
        conn: 0,
        len: 0,
        seq: 0,
        bytes: [0; PACKET_MOST],
    };

    /// The packet; `None` when it did not fit.
    pub fn packet(&self) -> Option<&[u8]> {
        match self.len as usize {
            0 => None,
            len => self.bytes.get(..len),
        }
    }
}

/// An entry that was thrown away.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct GoneRecord {
    /// Kind, flags and time.
    pub header: Header,
    /// Address of its `struct ip_vs_conn`, or the number of a message.
    pub conn: u64,
}

/// A SYN that was acted on because its flow is known to be stale.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct FlowRecord {
    /// Kind, flags and time.
    pub header: Header,
    /// Client and virtual service.
    pub flow: FlowKey,
    /// The real server that it would have gone to.
    pub dest: Endpoint,
    /// Inode of the network namespace.
    pub netns: u32,
    /// TCP sequence number, host order.
    pub seq: u32,
    /// `ip_vs_conn.flags` when the flow was noted.
    pub conn_flags: u32,
    /// `ip_vs_conn.state` when the flow was noted.
    pub state: u32,
}

impl TraceRecord {
    /// A record with nothing in it.
    pub const EMPTY: Self = Self {
        header: Header {
            abi: 0,
            kind: 0,
            flags: 0,
            time: 0,
        },
        netns: 0,
        seq: 0,
        client: Endpoint::UNSPECIFIED,
        vip: Endpoint::UNSPECIFIED,
        dest: Endpoint::UNSPECIFIED,
        weight: 0,
        conn_flags: 0,
        dest_flags: 0,
        verdict: 0,
        lookup_ns: 0,
        total_ns: 0,
        state: 0,
        protocol: 0,
        pad: [0; 5],
    };
}

const _: () = {
    assert!(size_of::<Header>() == 16);
    assert!(size_of::<SynRecord>() == 120);
    assert!(size_of::<DestRecord>() == 88);
    assert!(size_of::<TraceRecord>() == 128);
    assert!(align_of::<TraceRecord>() == 8);
};
