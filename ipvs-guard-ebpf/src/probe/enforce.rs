//! From a stale SYN to its verdict, and the upkeep of what the packet programs
//! go by.

use aya_ebpf::helpers::bpf_ktime_get_ns;
use ipvs_guard_common::{
    addr::{Addr, Endpoint},
    event::{DestRecord, GoneRecord, Header, Kind, SynRecord},
    guard::{
        CONN_SYNC, CONN_TRACKED, Flow, FlowKey, HEAL, Held, MARK, MARK_PORT, Moment, PARTING_NS,
        RESET, Real, VERDICT_NS, Verdict, VerdictKey, message_of,
    },
    state::Forwarding,
    stats::Stat,
};

use crate::{
    emit::emit,
    kernel::{conn::Conn, dest::Dest, read::Fault},
    maps::{
        DRAINS, FLOWS, HELD, PARTING, PARTING_OF, REALS, VERDICTS, changes, count, drain_begins,
        heard, heart, policy, within_rate,
    },
};

/// Decides on the SYN of `record`; a verdict awaits it then on its way out, and
/// the flow is turned away before IPVS from now on.
#[inline(always)]
pub(crate) fn settle(record: &mut SynRecord, conn: Conn, dest: Dest) {
    let policy = policy();
    let key = FlowKey {
        client: record.client,
        vip: record.vip,
    };
    let Some(heart) = heart() else {
        return;
    };
    // SAFETY: the values are copied at once; writers write whole words.
    let real = unsafe { REALS.get(record.dest) }.copied();
    // SAFETY: as above.
    let since = unsafe { DRAINS.get(dest.key()) }.copied();
    let now = record.header.time;
    let moment = Moment {
        now,
        heart: heart.deadline,
        drained_since: since.unwrap_or(policy.started),
        // Of whom nothing is known yet it is found out from now on.
        answered: real.map_or_else(|| first_seen(&record.dest, now), |real| real.answered),
        state: u32::from(record.state),
        conn_flags: record.conn_flags,
    };
    let parting = record.header.has(Header::PARTING);
    let heals = if parting {
        policy.holds_parting(&moment)
    } else {
        policy.heals(&moment, record.header.has(Header::HELD))
    };
    if !heals {
        record.header.clear(Header::HELD);
    }
    let acts = heals || (!parting && policy.acts(&moment));
    if record.netns != policy.netns || !acts || !(parting || within_rate(now)) {
        // The entry goes on with this SYN: what was known of it is void.
        let _absent = FLOWS.remove(key);
        return record.header.clear(Header::HELD);
    }
    if policy.dry_run != 0 {
        record.header.set(Header::WOULD_ACT);
        return;
    }
    let translated = Forwarding::from_flags(record.conn_flags) == Some(Forwarding::Masq);
    let to = if translated {
        &record.dest
    } else {
        &record.vip
    };
    let place = VerdictKey {
        addr: *to.addr(),
        port: to.port().to_be_bytes(),
        pad: [0; 2],
        seq: record.seq,
    };
    let verdict = Verdict {
        flow: key,
        deadline: now + VERDICT_NS,
        action: match policy.action {
            HEAL if heals => HEAL,
            HEAL => RESET,
            other => other,
        },
        pad: 0,
    };
    if VERDICTS.insert(place, verdict, 0).is_err() {
        return count(Stat::GuardFull);
    }
    if heals && HELD.insert(conn.key(), Held { place }, 0).is_err() {
        let _absent = VERDICTS.remove(place);
        return count(Stat::GuardFull);
    }
    record.header.set(Header::ARMED);
    if policy.action == HEAL {
        // As soon as the entry is closed it can be healed: nothing may turn its SYN
        // away before.
        return;
    }
    let Some(real) = real else {
        return;
    };
    let flow = Flow {
        deadline: now + policy.flow_life(u32::from(record.state)),
        not_before: 0,
        generation: real.generation,
        dest: record.dest,
        seq: record.seq,
        answered: 1,
        conn_flags: record.conn_flags,
        state: u32::from(record.state),
    };
    if FLOWS.insert(key, flow, 0).is_err() {
        count(Stat::GuardFull);
    }
}

/// A new entry, or none any more: the flow of that name is no longer stale.
#[inline(always)]
pub(crate) fn forget(conn: Conn) -> Result<(), Fault> {
    let mut key = FlowKey::default();
    conn.client(&mut key.client)?;
    conn.vip(&mut key.vip)?;
    let _absent = FLOWS.remove(key);
    Ok(())
}

/// An entry is thrown away by `ip_vs_in`, or by the backup daemon to re-point it.
#[inline(always)]
pub(crate) fn thrown_away(conn: Conn) -> Result<(), Fault> {
    let mut key = FlowKey::default();
    conn.client(&mut key.client)?;
    conn.vip(&mut key.vip)?;
    let _absent = FLOWS.remove(key);
    if policy().action != HEAL {
        return Ok(());
    }
    if key.client == Endpoint::new(Addr::v4(MARK), MARK_PORT.to_be_bytes())
        && conn.netns()? == policy().netns
    {
        return mark(conn);
    }
    if conn.flags()? & CONN_TRACKED != 0 {
        // SAFETY: the helper has no preconditions.
        let now = unsafe { bpf_ktime_get_ns() };
        let noted = PARTING
            .insert(key, now, 0)
            .and_then(|()| PARTING_OF.insert(conn.key(), key, 0));
        if noted.is_err() {
            count(Stat::GuardFull);
        }
    }
    gone(conn, false);
    Ok(())
}

/// Whether a SYN on `conn` would begin a connection whose conntrack goes at once, with the
/// entry that a sync message has thrown away in favour of this one.
#[inline(always)]
pub(crate) fn is_parting(conn: Conn) -> Result<bool, Fault> {
    if conn.flags()? & CONN_SYNC == 0 {
        return Ok(false);
    }
    let mut key = FlowKey::default();
    conn.client(&mut key.client)?;
    conn.vip(&mut key.vip)?;
    // SAFETY: the value is copied at once.
    let at = unsafe { PARTING.get(key) }.copied();
    // SAFETY: the helper has no preconditions.
    let now = unsafe { bpf_ktime_get_ns() };
    Ok(at.is_some_and(|at| now.saturating_sub(at) < PARTING_NS))
}

/// The conntrack of an entry that has ended goes.
#[inline(always)]
pub(crate) fn untracked(conn: Conn) {
    // SAFETY: the value is copied at once; the entry is at its end.
    if let Some(key) = unsafe { PARTING_OF.get(conn.key()) }.copied() {
        let _absent = PARTING.remove(key);
        let _absent = PARTING_OF.remove(conn.key());
    }
    gone(conn, true);
}

/// The mark at the end of a message.
#[inline(always)]
fn mark(conn: Conn) -> Result<(), Fault> {
    let mut server = Endpoint::UNSPECIFIED;
    conn.real(&mut server)?;
    let [.., a, b, c, d] = *server.addr().bytes();
    if let Some(message) = message_of([a, b, c, d]) {
        heard(message);
        emit(&GoneRecord {
            // SAFETY: the helper has no preconditions.
            header: Header::new(Kind::Gone, Header::HEARD, unsafe { bpf_ktime_get_ns() }),
            conn: u64::from(message),
        });
    }
    Ok(())
}

/// An entry is thrown away: the SYN that is held back for it may be sent again, once
/// its conntrack is gone, too (`untracked`).
#[inline(always)]
fn gone(conn: Conn, untracked: bool) {
    // SAFETY: the value is copied at once; only the probe of its SYN writes it.
    let Some(held) = unsafe { HELD.get(conn.key()) }.copied() else {
        return;
    };
    // A SYN that was not met until now may still be on its way on another CPU, and is to
    // go nowhere. What is not translated is sent again under the same name.
    let translated = conn
        .flags()
        .is_ok_and(|flags| Forwarding::from_flags(flags) == Some(Forwarding::Masq));
    if !translated {
        let _absent = VERDICTS.remove(held.place);
    }
    let flags = if untracked { Header::UNTRACKED } else { 0 };
    emit(&GoneRecord {
        // SAFETY: the helper has no preconditions.
        header: Header::new(Kind::Gone, flags, unsafe { bpf_ktime_get_ns() }),
        conn: conn.key(),
    });
}

/// The weight of a destination is set.
#[inline(always)]
pub(crate) fn updated(dest: Dest, record: &DestRecord) {
    if record.netns != policy().netns {
        return;
    }
    changes();
    let added = record.header.has(Header::ADDED);
    if record.weight_after == 0 {
        if added || record.weight_before != 0 {
            if DRAINS.insert(dest.key(), record.header.time, 0).is_err() {
                count(Stat::GuardFull);
            }
            drain_begins();
        }
        ensure(&record.dest);
    } else {
        let _absent = DRAINS.remove(dest.key());
        renew(&record.dest);
    }
}

/// A destination is removed.
#[inline(always)]
pub(crate) fn deleted(dest: Dest, record: &DestRecord) {
    if record.netns != policy().netns {
        return;
    }
    changes();
    let _absent = DRAINS.remove(dest.key());
    renew(&record.dest);
}

/// Every flow to the real server is void.
#[inline(always)]
pub(crate) fn renew(endpoint: &Endpoint) {
    match REALS.get_ptr_mut(endpoint) {
        // SAFETY: a live map value; a word that is written whole.
        Some(real) => unsafe { (*real).generation = bpf_ktime_get_ns() },
        None => ensure(endpoint),
    }
}

/// The real server is known from now on.
#[inline(always)]
pub(crate) fn ensure(endpoint: &Endpoint) {
    if REALS.get_ptr(endpoint).is_none() {
        // SAFETY: the helper has no preconditions.
        insert(endpoint, unsafe { bpf_ktime_get_ns() }, 0);
    }
}

/// A real server that nobody configured under this port: of a service of all
/// ports. It counts as answering now.
#[inline(always)]
fn first_seen(endpoint: &Endpoint, now: u64) -> u64 {
    insert(endpoint, now, now);
    now
}

#[inline(always)]
fn insert(endpoint: &Endpoint, generation: u64, answered: u64) {
    let real = Real {
        generation,
        answered,
    };
    if REALS.insert(endpoint, real, 0).is_err() {
        count(Stat::GuardFull);
    }
}
