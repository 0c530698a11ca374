//! `ip_vs_conn_expire_now(conn)`: `ip_vs_in` throws an entry away to schedule
//! its SYN anew (5.10 to 7.2; the sync daemon's messages do the same).

use aya_ebpf::{helpers::bpf_ktime_get_ns, programs::ProbeContext};
use ipvs_guard_common::{
    addr::Endpoint,
    config::{ENFORCE, RESCHEDULE_WITHIN_NS, RESCHEDULED},
    stats::Stat,
};

use super::enforce;
use crate::{
    kernel::{conn::Conn, read::Fault},
    maps::{EXPIRED, ExpiredKey, count, mode},
};

#[inline(always)]
pub(crate) fn run(ctx: &ProbeContext) {
    let Some(conn) = ctx.arg::<u64>(0) else {
        return;
    };
    if mode(ENFORCE) {
        if enforce::thrown_away(Conn::at(conn)).is_err() {
            count(Stat::Unreadable);
        }
    }
    if !mode(RESCHEDULED) {
        return;
    }
    match key(Conn::at(conn)) {
        Ok(key) => {
            // SAFETY: the helper has no preconditions.
            let now = unsafe { bpf_ktime_get_ns() };
            if EXPIRED.insert(key, now, 0).is_err() {
                count(Stat::ExpiredFull);
            }
        }
        Err(Fault(_)) => count(Stat::Unreadable),
    }
}

/// `ip_vs_conn_drop_conntrack(conn)`: the conntrack of an entry that has ended goes
/// (5.10 to 7.3).
#[inline(always)]
pub(crate) fn untrack(ctx: &ProbeContext) {
    if let Some(conn) = ctx.arg::<u64>(0) {
        enforce::untracked(Conn::at(conn));
    }
}

/// Whether an entry like `conn` was thrown away just before this SYN.
#[inline(always)]
pub(crate) fn was_expired(conn: Conn) -> Result<bool, Fault> {
    let key = key(conn)?;
    // SAFETY: the value is copied at once, and only this flow writes it.
    let Some(at) = unsafe { EXPIRED.get(key) }.copied() else {
        return Ok(false);
    };
    // Gone already where the map evicted it: either way it is used up.
    let _gone = EXPIRED.remove(key);
    // SAFETY: the helper has no preconditions.
    let now = unsafe { bpf_ktime_get_ns() };
    Ok(now.wrapping_sub(at) <= RESCHEDULE_WITHIN_NS)
}

#[inline(always)]
fn key(conn: Conn) -> Result<ExpiredKey, Fault> {
    let mut key = ExpiredKey {
        client: Endpoint::UNSPECIFIED,
        vip: Endpoint::UNSPECIFIED,
        netns: u64::from(conn.netns()?),
    };
    conn.client(&mut key.client)?;
    conn.vip(&mut key.vip)?;
    Ok(key)
}
