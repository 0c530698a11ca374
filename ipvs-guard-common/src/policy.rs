//! What a client's SYN on a connection entry means.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::{guard::SYN_RECV_NS, state::ConnState};

/// Client packets of the shortest complete connection (SYN, ACK, FIN or RST)
/// and of the SYN that opened its entry again.
const PACKETS_OF_A_REUSED_ENTRY: u32 = 4;

/// The SYN that made an entry: the scheduler chose its destination. One of
/// [`SLOTS`], which entries share by their address: the next one to come
/// overwrites it, for this is noted for every connection and must cost nothing.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Scheduled {
    /// Address of the entry.
    pub conn: u64,
    /// Sequence number of the SYN, host order.
    pub seq: u32,
    /// Which drain was the last to begin then; 0 where nobody counts them.
    pub epoch: u32,
}

/// Number of [`Scheduled`] notes, a power of two.
pub const SLOTS: u32 = 65_536;

/// Which of [`SLOTS`] the entry at an address has.
#[inline(always)]
pub const fn slot(conn: u64) -> u32 {
    // Fibonacci hashing: entries are objects of one slab, so their addresses
    // differ in few bits.
    (conn.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 48) as u32 & (SLOTS - 1)
}

/// What is known of an entry from the SYNs before.
#[derive(Clone, Copy, Debug, Default)]
pub struct Known {
    /// Sequence number of the SYN that made it.
    pub scheduled: Option<u32>,
    /// Sequence number of the last stale SYN on it.
    pub stale: Option<u32>,
}

/// A SYN that hit an existing entry whose destination has weight 0.
#[derive(Clone, Copy, Debug)]
pub struct Hit {
    /// Sequence number of the SYN, host order.
    pub seq: u32,
    /// State of the entry before this packet (`ip_vs_conn.state`).
    pub state: u16,
    /// Packets from the client that the entry carried before this one
    /// (`ip_vs_conn.in_pkts`; `ip_vs_in` counts after transmission).
    pub in_pkts: u32,
}

/// The meaning of a [`Hit`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Meaning {
    /// The client reused its port: an incident.
    Stale,
    /// The same SYN once more: the same incident.
    StaleRetransmission,
    /// The retransmission of a SYN that was scheduled while the weight was
    /// still positive: no reuse.
    ScheduledRetransmission,
}

/// The last stale SYN of an entry.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Seen {
    /// When a stale SYN came last that found the entry closed, or half open by such
    /// a SYN (`CLOCK_MONOTONIC`, nanoseconds); 0: it was found otherwise.
    pub closed: u64,
    /// Sequence number, host order.
    pub seq: u32,
    /// Zero.
    pub pad: u32,
}

impl Seen {
    /// What is known once a stale SYN of sequence number `seq` found the entry in
    /// `state` at `now`.
    ///
    /// A SYN brings an entry to SYN_RECV whatever it was before, and it may be
    /// forged: only what was seen to be closed before counts as closed.
    #[inline(always)]
    pub const fn next(before: Option<Self>, state: u16, seq: u32, now: u64) -> Self {
        let closed = state == ConnState::TimeWait as u16
            || state == ConnState::Close as u16
            || state == ConnState::LastAck as u16
            || (state == ConnState::SynRecv as u16
                && match before {
                    Some(before) => {
                        before.closed != 0 && now.saturating_sub(before.closed) < SYN_RECV_NS
                    }
                    None => false,
                });
        Self {
            closed: if closed { now } else { 0 },
            seq,
            pad: 0,
        }
    }
}

/// Tells a stale SYN from a repeated one, by what was seen on the entry before.
///
/// Nothing is known of an entry that is older than the agent or whose note was
/// overwritten. In SYN_RECV it is then judged by its packets: with fewer than a
/// reused entry must have carried, all of them were SYNs of one connect().
#[inline(always)]
pub fn judge(hit: Hit, known: Known) -> Meaning {
    if known.scheduled == Some(hit.seq) {
        return Meaning::ScheduledRetransmission;
    }
    if known.stale == Some(hit.seq) {
        return Meaning::StaleRetransmission;
    }
    let half_open = hit.state == ConnState::SynRecv as u16;
    if known.scheduled.is_none() && half_open && hit.in_pkts < PACKETS_OF_A_REUSED_ENTRY {
        return Meaning::ScheduledRetransmission;
    }
    Meaning::Stale
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hit(seq: u32, state: ConnState, in_pkts: u32) -> Hit {
        Hit {
            seq,
            state: state as u16,
            in_pkts,
        }
    }

    fn scheduled(seq: u32) -> Known {
        Known {
            scheduled: Some(seq),
            stale: None,
        }
    }

    fn stale(seq: u32) -> Known {
        Known {
            scheduled: None,
            stale: Some(seq),
        }
    }

    #[test]
    fn only_what_was_seen_closed_counts_as_closed() {
        const NOW: u64 = 100 * SYN_RECV_NS;
        let next = |before, state: ConnState| Seen::next(before, state as u16, 7, NOW);
        for raw in 0..=10 {
            let state = ConnState::from_raw(raw).unwrap();
            let closed = matches!(
                state,
                ConnState::TimeWait | ConnState::Close | ConnState::LastAck
            );
            assert_eq!(next(None, state).closed != 0, closed, "{state:?}");
        }
        let half_open = |closed| {
            let before = Seen {
                closed,
                ..Seen::default()
            };
            next(Some(before), ConnState::SynRecv).closed != 0
        };
        assert!(half_open(NOW - SYN_RECV_NS + 1));
        assert!(!half_open(NOW - SYN_RECV_NS));
        assert!(!half_open(0));
    }

    #[test]
    fn another_syn_on_a_scheduled_one_that_nobody_answered_is_stale() {
        assert_eq!(
            judge(hit(8, ConnState::SynRecv, 1), scheduled(7)),
            Meaning::Stale
        );
    }

    #[test]
    fn neighbours_in_a_slab_have_slots_of_their_own() {
        let mut slots: Vec<_> = (0..1_000u64)
            .map(|i| slot(0xffff_8881_0420_0000 + i * 320))
            .collect();
        slots.sort_unstable();
        slots.dedup();
        assert!(slots.len() > 950, "{} slots for 1,000 entries", slots.len());
        assert!(slots.iter().all(|slot| *slot < SLOTS));
    }

    #[test]
    fn reuse_of_a_closed_connection_is_stale_with_or_without_a_record() {
        for state in [
            ConnState::TimeWait,
            ConnState::Close,
            ConnState::FinWait,
            ConnState::Established,
        ] {
            assert_eq!(judge(hit(2, state, 4), Known::default()), Meaning::Stale);
            assert_eq!(judge(hit(2, state, 4), scheduled(1)), Meaning::Stale);
        }
    }

    #[test]
    fn the_same_stale_syn_again_is_the_same_incident_in_any_state() {
        for state in [ConnState::SynRecv, ConnState::Established] {
            assert_eq!(
                judge(hit(9, state, 5), stale(9)),
                Meaning::StaleRetransmission
            );
        }
    }

    #[test]
    fn a_second_stale_syn_on_an_unanswered_one_is_a_new_incident() {
        assert_eq!(
            judge(hit(10, ConnState::SynRecv, 5), stale(9)),
            Meaning::Stale
        );
    }

    #[test]
    fn a_scheduled_syn_repeated_is_no_reuse() {
        assert_eq!(
            judge(hit(7, ConnState::SynRecv, 1), scheduled(7)),
            Meaning::ScheduledRetransmission
        );
        assert_eq!(
            judge(hit(7, ConnState::SynRecv, 3), Known::default()),
            Meaning::ScheduledRetransmission
        );
    }

    #[test]
    fn an_unknown_half_open_entry_that_carried_a_connection_is_stale() {
        assert_eq!(
            judge(hit(7, ConnState::SynRecv, 4), Known::default()),
            Meaning::Stale
        );
    }
}
