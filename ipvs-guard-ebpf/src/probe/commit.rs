//! `tcp_state_transition(conn, direction, skb, pd)`: the entry by which this
//! packet will be sent is settled, its state is still the old one, and
//! transmission has not begun (5.10 to 7.2).

use aya_ebpf::{helpers::bpf_ktime_get_ns, programs::ProbeContext};
use aya_log_ebpf::debug;
use ipvs_guard_common::{
    config,
    event::{Header, Kind},
    guard::{self, Heart},
    layout::FieldId,
    policy::{Hit, Known, Meaning, Seen, judge},
    state::ConnState,
    stats::Stat,
};

use super::{enforce, expire, prove, trace};
use crate::{
    emit::emit,
    kernel::{
        conn::Conn,
        read::Fault,
        skb::{Packet, Syn},
    },
    maps::{SEEN, copy, count, filter, heart, mode, policy, scheduled, scratch},
};

/// From client to server (`IP_VS_DIR_INPUT`).
const INPUT: u32 = 0;

#[inline(always)]
pub(crate) fn run(ctx: &ProbeContext) {
    // Most packets end here or at the TCP flags: no entry is read for them.
    if ctx.arg::<u32>(1) != Some(INPUT) || (mode(config::ENFORCE) && is_calm()) {
        return;
    }
    let (Some(conn), Some(skb)) = (ctx.arg::<u64>(0), ctx.arg::<u64>(2)) else {
        return;
    };
    if mode(config::PROVE) && !prove::begin(skb) {
        return;
    }
    let syn = match Packet::read(skb).and_then(Packet::syn) {
        Ok(Some(syn)) => syn,
        Ok(None) => return,
        Err(fault) => return unreadable(ctx, fault),
    };
    if let Err(fault) = opened(Conn::at(conn), &syn) {
        count(Stat::SynLost);
        unreadable(ctx, fault);
    }
}

/// Whether no destination of the namespace that is enforced has weight 0.
#[inline(always)]
fn is_calm() -> bool {
    heart().is_some_and(Heart::is_calm)
}

#[inline(always)]
fn unreadable(ctx: &ProbeContext, fault: Fault) {
    if mode(config::PROVE) {
        return prove::fault(fault);
    }
    count(Stat::Unreadable);
    debug!(ctx, "a packet or its entry could not be read");
}

/// A client's SYN on `conn`.
#[inline(always)]
fn opened(conn: Conn, syn: &Syn) -> Result<(), Fault> {
    let state = conn.state()?;
    if mode(config::TRACE) {
        trace::committed(conn, state);
    }
    let Some((kind, flags)) = incident(conn, syn, state)? else {
        return Ok(());
    };
    let held = report(kind, flags, conn, syn.seq, state)?;
    if held {
        hand_over(conn, syn);
    }
    Ok(())
}

/// The packet of a SYN that is held back, for user space to send again.
#[inline(always)]
fn hand_over(conn: Conn, syn: &Syn) {
    let Some(record) = copy() else {
        return;
    };
    // SAFETY: the helper has no preconditions.
    record.header = Header::new(Kind::Packet, 0, unsafe { bpf_ktime_get_ns() });
    record.conn = conn.key();
    record.seq = syn.seq;
    record.len = syn.packet.copy(&mut record.bytes).unwrap_or(0);
    emit(record);
}

/// What there is to report of the SYN, with the record's flags.
#[inline(always)]
fn incident(conn: Conn, syn: &Syn, state: u16) -> Result<Option<(Kind, u32)>, Fault> {
    if mode(config::PROVE) {
        return Ok(Some((Kind::Proof, 0)));
    }
    if state == ConnState::None as u16 {
        if mode(config::STALE) {
            note_scheduled(conn, syn.seq);
        }
        if mode(config::ENFORCE) {
            enforce::forget(conn)?;
            if policy().action == guard::HEAL {
                // Of the entry that was at this address before.
                let _absent = SEEN.remove(conn.key());
            }
        }
        if mode(config::RESCHEDULED) && expire::was_expired(conn)? {
            return Ok(Some((Kind::Rescheduled, 0)));
        }
        return Ok(None);
    }
    if !mode(config::STALE) {
        return Ok(None);
    }
    // Without a destination only what a sync daemon made for an unknown service
    // gets here: nothing to blame.
    let Ok(dest) = conn.dest() else {
        return Ok(None);
    };
    if dest.weight()? != 0 {
        let parts =
            mode(config::ENFORCE) && policy().action == guard::HEAL && enforce::is_parting(conn)?;
        // Held before, it left this state, and is the same incident.
        let again = if state == ConnState::SynRecv as u16 {
            Header::RETRANSMISSION
        } else {
            0
        };
        let flags = Header::HELD | Header::PARTING | again;
        return Ok(parts.then_some((Kind::Stale, flags)));
    }
    let hit = Hit {
        seq: syn.seq,
        state,
        in_pkts: conn.in_pkts()?,
    };
    // SAFETY: the value is copied at once; a concurrent update by another CPU
    // could only be another SYN of the same connection.
    let before = unsafe { SEEN.get(conn.key()) }.copied();
    if before.is_none()
        && mode(config::ENFORCE)
        && policy().action == guard::HEAL
        && state == ConnState::SynRecv as u16
        && conn.flags()? & guard::CONN_SYNC != 0
    {
        // It was held back and is sent on to a destination that has just begun to drain
        // itself: no reuse.
        note_scheduled(conn, syn.seq);
        return Ok(None);
    }
    let known = Known {
        scheduled: scheduled(conn.key())
            .filter(|note| note.conn == conn.key() && note.epoch == epoch())
            .map(|note| note.seq),
        stale: before.map(|before| before.seq),
    };
    let again = match judge(hit, known) {
        Meaning::ScheduledRetransmission => {
            note_scheduled(conn, syn.seq);
            return Ok(None);
        }
        Meaning::StaleRetransmission => Header::RETRANSMISSION,
        Meaning::Stale => 0,
    };
    // SAFETY: the helper has no preconditions.
    let seen = Seen::next(before, state, syn.seq, unsafe { bpf_ktime_get_ns() });
    if SEEN.insert(conn.key(), seen, 0).is_err() {
        count(Stat::SeenFull);
    }
    let closed = if seen.closed != 0 { Header::HELD } else { 0 };
    Ok(Some((Kind::Stale, again | closed)))
}

#[inline(always)]
fn note_scheduled(conn: Conn, seq: u32) {
    if let Some(note) = scheduled(conn.key()) {
        note.conn = conn.key();
        note.seq = seq;
        note.epoch = epoch();
    }
}

/// Notes are not kept up while all is calm: those from before are void.
#[inline(always)]
fn epoch() -> u32 {
    if mode(config::ENFORCE) {
        heart().map_or(0, |heart| heart.drains_begun as u32)
    } else {
        0
    }
}

/// Emits a record that the user's filter admits, and tells whether the packet is
/// held back.
#[inline(always)]
fn report(kind: Kind, flags: u32, conn: Conn, seq: u32, state: u16) -> Result<bool, Fault> {
    // Both maps have their one entry from the start.
    let (Some(record), Some(filter)) = (scratch(), filter()) else {
        return Ok(false);
    };
    record.netns = conn.netns()?;
    if filter.netns != 0 && filter.netns != record.netns {
        return Ok(false);
    }
    conn.client(&mut record.client)?;
    conn.vip(&mut record.vip)?;
    conn.real(&mut record.dest)?;
    if !filter.client.admits(&record.client)
        || !filter.vip.admits(&record.vip)
        || !filter.dest.admits(&record.dest)
    {
        return Ok(false);
    }
    // A bypassed connection has none: nothing to report of it.
    let Ok(dest) = conn.dest() else {
        return if mode(config::PROVE) {
            Err(Fault(FieldId::ConnDest))
        } else {
            Ok(false)
        };
    };
    // SAFETY: the helper has no preconditions.
    record.header = Header::new(kind, flags, unsafe { bpf_ktime_get_ns() });
    record.seq = seq;
    record.weight = match kind {
        // As it was judged: it may have risen since.
        Kind::Stale if flags & Header::PARTING == 0 => 0,
        _ => dest.weight()?,
    };
    record.dest_flags = dest.flags()?;
    record.conn_flags = conn.flags()?;
    record.in_pkts = conn.in_pkts()?;
    record.state = state;
    record.protocol = conn.protocol()?;
    if mode(config::ENFORCE) && kind == Kind::Stale {
        enforce::settle(record, conn, dest);
    }
    let held = record.header.has(Header::ARMED) && record.header.has(Header::HELD);
    if flags & Header::PARTING != 0 && !held {
        // It passes to a living destination, as any SYN does.
        return Ok(false);
    }
    if !emit(record) && kind == Kind::Stale && !held {
        count(Stat::SynLost);
    }
    Ok(held)
}
