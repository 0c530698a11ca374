//! What the probes, the packet programs and the agent share to enforce.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::{
    addr::{Addr, Endpoint},
    state::{ConnState, Forwarding},
};

/// [`Policy::action`]: SYNs are dropped.
pub const DROP: u32 = 1;
/// [`Policy::action`]: SYNs are answered with a reset.
pub const RESET: u32 = 2;
/// [`Policy::action`] and [`Verdict::action`]: SYNs of closing entries are held
/// back until user space has re-pointed the entry; others are answered as by
/// [`RESET`].
pub const HEAL: u32 = 3;

/// What is enforced; set before the programs load, constant from then on.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Policy {
    /// A destination is left alone for this time after its weight became 0, in
    /// nanoseconds.
    pub grace_ns: u64,
    /// A destination that answered within this time is left alone, in
    /// nanoseconds; 0: none is.
    pub unless_answering_ns: u64,
    /// The same for entries that are healed: no connection is lost by it.
    pub heal_unless_answering_ns: u64,
    /// Life of a flow at most, in nanoseconds.
    pub flow_ns: u64,
    /// Stands in for the begin of drains older than the agent
    /// (`CLOCK_MONOTONIC`, nanoseconds).
    pub started: u64,
    /// Inode of the network namespace that is enforced.
    pub netns: u32,
    /// Entry states acted on: bit n is `ip_vs_conn.state` n.
    pub states: u32,
    /// Answers a second at most; 0: no limit.
    pub max_rate: u32,
    /// [`DROP`], [`RESET`] or [`HEAL`].
    pub action: u32,
    /// Not 0: say what would be done, do nothing.
    pub dry_run: u32,
    /// Zero.
    pub pad: u32,
}

/// What changes while the programs run. Both sides write words of their own.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Heart {
    /// By the agent: the programs let everything pass from then on
    /// (`CLOCK_MONOTONIC`, nanoseconds). An agent that hangs or dies moves it no
    /// more.
    pub deadline: u64,
    /// By the probe: how often a weight became 0.
    pub drains_begun: u64,
    /// By the agent: [`Self::drains_begun`] when it found no destination of
    /// weight 0; any other value while there is one.
    pub drains_settled: u64,
    /// By the probe: how often a weight was set or a destination removed.
    pub changes: u64,
}

impl Heart {
    /// Whether no destination has weight 0, so that no SYN can be stale.
    #[inline(always)]
    pub const fn is_calm(&self) -> bool {
        self.drains_begun == self.drains_settled
    }
}

/// A connection as the client names it.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct FlowKey {
    /// The client.
    pub client: Endpoint,
    /// The virtual service.
    pub vip: Endpoint,
}

/// A stale connection entry: a SYN of this flow would go to a destination of
/// weight 0.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Flow {
    /// Void from then on; never later than the entry's own end
    /// (`CLOCK_MONOTONIC`, nanoseconds).
    pub deadline: u64,
    /// Not acted on before.
    pub not_before: u64,
    /// [`Real::generation`] when the flow was noted; void with any other.
    pub generation: u64,
    /// The real server.
    pub dest: Endpoint,
    /// Sequence number of the last SYN acted on, host order; for reports.
    pub seq: u32,
    /// Not 0: `seq` is one.
    pub answered: u32,
    /// `ip_vs_conn.flags`, of which the forwarding method is used.
    pub conn_flags: u32,
    /// `ip_vs_conn.state` when the flow was noted.
    pub state: u32,
}

/// A real server in use by a destination.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Real {
    /// Changes when a weight rises or a destination is removed: every flow noted
    /// before is void.
    pub generation: u64,
    /// When it last sent a SYN-ACK or, while destinations drain, any packet
    /// (`CLOCK_MONOTONIC`, nanoseconds); 0: not seen to.
    pub answered: u64,
}

impl Real {
    /// As it stands in memory.
    #[inline(always)]
    pub const fn to_bytes(self) -> [u8; 16] {
        let [a, b, c, d, e, f, g, h] = self.generation.to_ne_bytes();
        let [i, j, k, l, m, n, o, p] = self.answered.to_ne_bytes();
        [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p]
    }
}

/// A real server, and what is to be done about it or is known of it.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct RealNote {
    /// The real server.
    pub endpoint: Endpoint,
    /// What is known of it.
    pub real: Real,
    /// [`KNOW`], [`FORGET`] or [`RENEW`].
    pub wish: u32,
    /// Zero.
    pub pad: u32,
}

/// [`RealNote::wish`]: it is known from now on.
pub const KNOW: u32 = 0;
/// [`RealNote::wish`]: it is gone.
pub const FORGET: u32 = 1;
/// [`RealNote::wish`]: every flow to it is void.
pub const RENEW: u32 = 2;

/// The SYN that a verdict is for, as it leaves the node: IPVS and network
/// address translation behind it change none of these.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct VerdictKey {
    /// Where the packet goes.
    pub addr: Addr,
    /// Its port there, network order.
    pub port: [u8; 2],
    /// Zero.
    pub pad: [u8; 2],
    /// Sequence number, host order.
    pub seq: u32,
}

/// What is to be done with a SYN that IPVS is sending at this moment.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Verdict {
    /// Whom to answer, and as whom.
    pub flow: FlowKey,
    /// Void from then on (`CLOCK_MONOTONIC`, nanoseconds).
    pub deadline: u64,
    /// [`DROP`], [`RESET`] or [`HEAL`].
    pub action: u32,
    /// Zero.
    pub pad: u32,
}

/// An entry whose SYN is held back, by the address of its `struct ip_vs_conn`.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Held {
    /// The SYN, as its verdict has it.
    pub place: VerdictKey,
}

/// What decides whether a stale SYN is acted on.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    /// `CLOCK_MONOTONIC` now, in nanoseconds.
    pub now: u64,
    /// [`Heart::deadline`].
    pub heart: u64,
    /// When the weight became 0.
    pub drained_since: u64,
    /// [`Real::answered`].
    pub answered: u64,
    /// `ip_vs_conn.state` before the SYN.
    pub state: u32,
    /// `ip_vs_conn.flags`.
    pub conn_flags: u32,
}

impl Policy {
    /// Whether a stale SYN is acted on, the rate aside.
    #[inline(always)]
    pub fn acts(&self, moment: &Moment) -> bool {
        self.is_in_scope(moment)
            && is_forwarded(moment.conn_flags)
            && !self.is_answering(moment.now, moment.answered)
    }

    /// Whether a stale SYN is held back until its entry is re-pointed, the rate
    /// aside; `mendable`: nothing of the connection before can follow.
    #[inline(always)]
    pub fn heals(&self, moment: &Moment, mendable: bool) -> bool {
        self.action == HEAL
            && mendable
            && self.is_in_scope(moment)
            && is_forwarded(moment.conn_flags)
            && !(moment.answered != 0
                && moment.now.saturating_sub(moment.answered) < self.heal_unless_answering_ns)
    }

    /// Whether a SYN waits for the conntrack of the entry that its own has replaced. Its
    /// destination is a living one: nothing that is said of draining ones holds.
    #[inline(always)]
    pub const fn holds_parting(&self, moment: &Moment) -> bool {
        moment.now < moment.heart && is_forwarded(moment.conn_flags) && self.dry_run == 0
    }

    #[inline(always)]
    fn is_in_scope(&self, moment: &Moment) -> bool {
        moment.now < moment.heart
            && self.states & (1u32 << (moment.state & 31)) != 0
            && moment.now.saturating_sub(moment.drained_since) >= self.grace_ns
    }

    /// Whether a real server that answered at `answered` is left alone.
    #[inline(always)]
    pub const fn is_answering(&self, now: u64, answered: u64) -> bool {
        answered != 0 && now.saturating_sub(answered) < self.unless_answering_ns
    }

    /// How long an entry that a SYN found in `state` is sure to live on, in
    /// nanoseconds, no more than [`Self::flow_ns`].
    #[inline(always)]
    pub fn flow_life(&self, state: u32) -> u64 {
        let sure = if state == ConnState::Established as u32 {
            // It stays in that state, and a reset puts it into CLOSE.
            SURE_LIFE_NS
        } else {
            SYN_RECV_NS
        };
        if sure < self.flow_ns {
            sure
        } else {
            self.flow_ns
        }
    }
}

/// Whether packets leave the node by this forwarding method. A local server that
/// is gone answers by itself.
#[inline(always)]
const fn is_forwarded(conn_flags: u32) -> bool {
    matches!(
        Forwarding::from_flags(conn_flags),
        Some(Forwarding::Masq | Forwarding::Dr | Forwarding::Tun)
    )
}

/// Life of an entry in SYN_RECV (`tcp_timeouts`, ip_vs_proto_tcp.c, 5.10 to
/// 7.2), in nanoseconds; a SYN brings every closing entry there.
pub const SYN_RECV_NS: u64 = 60_000_000_000;
/// Life of an entry in CLOSE, the shortest that any entry may come to.
pub const SURE_LIFE_NS: u64 = 10_000_000_000;
/// How long after the probe a verdict is good: transmission follows at once.
pub const VERDICT_NS: u64 = 500_000_000;

/// Flows at most (about 10 MiB of kernel memory).
pub const FLOWS: u32 = 65_536;
/// Verdicts at most.
pub const VERDICTS: u32 = 16_384;
/// Real servers at most.
pub const REALS: u32 = 16_384;
/// Destinations at most whose weight became 0 under the agent's eyes.
pub const DRAINS: u32 = 16_384;
/// SYNs held back at most.
pub const HELD: u32 = 16_384;
/// Entries at most that are thrown away and whose conntrack is not gone yet.
pub const PARTING: u32 = 16_384;
/// How long that is waited for, in nanoseconds: it goes with the next tick of a timer, or,
/// where the entry was in use when it was thrown away, a minute later.
pub const PARTING_NS: u64 = 50_000_000;
/// `IP_VS_CONN_F_NFCT` (net/ip_vs.h): the entry has a conntrack, which goes with it.
pub const CONN_TRACKED: u32 = 1 << 16;
/// Address of the mark that ends each message to the backup daemon: the IPv4 dummy
/// address (RFC 7600), as client and as service, with ports of [`MARK_PORT`]. The
/// mark is an entry that the message makes twice, to two servers: when the daemon
/// throws the first away, the entries before it are in the table. Its server's address
/// is twice the number of the message, and one more the second time.
pub const MARK: [u8; 4] = [192, 0, 0, 8];
/// The discard service.
pub const MARK_PORT: u16 = 9;

/// The message that ended with the mark to this server, if it is the first of the two.
#[inline(always)]
pub const fn message_of(server: [u8; 4]) -> Option<u32> {
    let number = u32::from_be_bytes(server);
    if number.is_multiple_of(2) {
        Some(number / 2)
    } else {
        None
    }
}

/// `IP_VS_CONN_F_SYNC` (net/ip_vs.h): a sync daemon made the entry.
pub const CONN_SYNC: u32 = 0x0020;
/// `IP_VS_CONN_F_INACTIVE` (linux/ip_vs.h).
pub const CONN_INACTIVE: u32 = 0x0100;
/// `IP_VS_CONN_F_TEMPLATE` (linux/ip_vs.h).
pub const CONN_TEMPLATE: u32 = 0x1000;

/// Name of the TC program on the way in. User space recognises by these names
/// what a killed agent left: no prefix of one may be another program's name.
pub const INGRESS: &str = "ipvs_guard_in";
/// Name of the TC program on the way out.
pub const EGRESS: &str = "ipvs_guard_out";
/// Name of the TC program on the way in of a device without link-layer header.
pub const INGRESS_BARE: &str = "ipvs_guard_inl3";
/// Name of the TC program on the way out of such a device.
pub const EGRESS_BARE: &str = "ipvs_guard_ol3";
/// Name of the XDP program.
pub const XDP: &str = "ipvs_guard_xdp";
/// Name of the TC program that notes flows, on no device: run on what stands for a
/// packet, [`NOTES_HEADER`] bytes and then up to [`NOTES`] pairs of [`FlowKey`] and
/// [`Flow`].
pub const NOTE: &str = "note_flows";
/// Flows that are noted at once.
pub const NOTES: usize = 24;
/// Name of the TC program that keeps real servers, on no device: run on what stands
/// for a packet, [`NOTES_HEADER`] bytes and then up to [`SURVEYED`] of
/// [`RealNote`], into which it writes what is known.
pub const SURVEY: &str = "survey_reals";
/// Real servers that are surveyed at once.
pub const SURVEYED: usize = 48;
/// Bytes before the first: of an Ethernet header, which the kernel asks for, and
/// what makes the flows aligned.
pub const NOTES_HEADER: usize = 16;
/// Name of the TC program that puts what it is run on into a device as if it had
/// come in there, on no device: an Ethernet frame whose source address ends in the
/// device's index, four bytes in network order.
pub const SEND: &str = "send_packet";
/// Name of the TC program that keeps a device to what [`SEND`] puts into it.
pub const GATE: &str = "ipvs_guard_gate";
/// Name of the TC program that does nothing, on no device: what the others are
/// measured against.
pub const IDLE: &str = "idle";
/// Name of such an XDP program.
pub const IDLE_XDP: &str = "idle_xdp";

const _: () = {
    assert!(size_of::<Policy>() == 64);
    assert!(size_of::<Heart>() == 32);
    assert!(size_of::<FlowKey>() == 48);
    assert!(size_of::<Flow>() == 64);
    assert!(size_of::<VerdictKey>() == 24);
    assert!(size_of::<Verdict>() == 64);
    assert!(size_of::<RealNote>() == 48);
};

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn policy() -> Policy {
        Policy {
            unless_answering_ns: 3 * SECOND,
            flow_ns: 60 * SECOND,
            states: u32::MAX,
            action: RESET,
            ..Policy::default()
        }
    }

    fn moment() -> Moment {
        Moment {
            now: 100 * SECOND,
            heart: 102 * SECOND,
            drained_since: 90 * SECOND,
            answered: 0,
            state: ConnState::TimeWait as u32,
            conn_flags: 0,
        }
    }

    #[test]
    fn a_stale_syn_is_acted_on() {
        assert!(policy().acts(&moment()));
    }

    #[test]
    fn nothing_is_done_once_the_heart_stands_still() {
        let mut late = moment();
        late.now = late.heart;
        assert!(!policy().acts(&late));
    }

    #[test]
    fn a_server_that_answers_is_left_alone_until_it_stops() {
        let mut moment = moment();
        moment.answered = moment.now - 3 * SECOND + 1;
        assert!(!policy().acts(&moment));
        moment.answered -= 1;
        assert!(policy().acts(&moment));
        moment.answered = moment.now;
        let mut policy = policy();
        policy.unless_answering_ns = 0;
        assert!(policy.acts(&moment));
    }

    #[test]
    fn grace_begins_with_the_drain() {
        let mut policy = policy();
        policy.grace_ns = 10 * SECOND;
        let mut moment = moment();
        assert!(policy.acts(&moment));
        moment.drained_since += 1;
        assert!(!policy.acts(&moment));
    }

    #[test]
    fn only_the_chosen_states_are_acted_on() {
        let mut policy = policy();
        policy.states = 1 << ConnState::Close as u32;
        assert!(!policy.acts(&moment()));
        policy.states |= 1 << ConnState::TimeWait as u32;
        assert!(policy.acts(&moment()));
    }

    #[test]
    fn local_and_bypassed_entries_are_left_alone() {
        for (flags, expected) in [(0, true), (1, false), (2, true), (3, true), (4, false)] {
            let mut moment = moment();
            moment.conn_flags = 0x100 | flags;
            assert_eq!(policy().acts(&moment), expected, "method {flags}");
        }
    }

    #[test]
    fn a_flow_never_outlives_its_entry() {
        let policy = policy();
        for raw in 0..=10 {
            let life = policy.flow_life(raw);
            assert!(life <= SYN_RECV_NS);
        }
        assert_eq!(
            policy.flow_life(ConnState::Established as u32),
            SURE_LIFE_NS
        );
    }

    #[test]
    fn calm_ends_with_a_drain_and_comes_back_with_its_settlement() {
        let mut heart = Heart::default();
        assert!(heart.is_calm());
        heart.drains_begun += 1;
        assert!(!heart.is_calm());
        heart.drains_settled = heart.drains_begun;
        assert!(heart.is_calm());
    }
}
