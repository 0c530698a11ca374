//! `--trace`: each SYN's way from `ip_vs_in` through the lookup to its verdict.
//!
//! Calls on one task's stack nest (a softirq interrupts a transmission), so an
//! open trace is named by the task and the depth, and every packet counts in
//! the depth, SYN or not.

use aya_ebpf::{
    helpers::{bpf_get_current_task, bpf_ktime_get_ns},
    programs::{ProbeContext, RetProbeContext},
};
use ipvs_guard_common::{
    config::TRACE_STALE_NS,
    event::{Header, Kind, TraceRecord},
    stats::Stat,
};

use crate::{
    emit::emit,
    kernel::{
        conn::{self, Conn},
        read::Fault,
        skb::Packet,
    },
    maps::{TRACE_DEPTH, TRACE_FRAMES, TraceDepth, TraceKey, count, filter},
};

/// Nesting that is followed at most: process, softirq, and a local
/// transmission out of each.
const DEEPEST: u64 = 4;

/// The packet goes on as if IPVS were not there.
const NF_ACCEPT: u32 = 1;

static EMPTY: TraceRecord = TraceRecord::EMPTY;

/// Entry of `ip_vs_in_hook(priv, skb, state)` and of its forerunners.
#[inline(always)]
pub(crate) fn enter(ctx: &ProbeContext) {
    let Some(skb) = ctx.arg::<u64>(1) else {
        return;
    };
    let now = now();
    let task = task();
    let depth = match open(task) {
        Some(open) if open.depth < DEEPEST && now.wrapping_sub(open.since) < TRACE_STALE_NS => {
            open.depth + 1
        }
        // A return was missed: start over.
        Some(_) => {
            count(Stat::TraceLost);
            1
        }
        None => 1,
    };
    if set_depth(task, TraceDepth { since: now, depth }).is_err() {
        return count(Stat::TraceLost);
    }
    let key = TraceKey { task, depth };
    // What a missed return left here must not be taken for this packet's.
    let _absent = TRACE_FRAMES.remove(key);
    if begin(skb, key, now).is_err() {
        count(Stat::Unreadable);
    }
}

/// Opens the trace of a SYN that the filter admits; leaves any other packet alone.
#[inline(always)]
fn begin(skb: u64, key: TraceKey, now: u64) -> Result<(), Fault> {
    // What cannot be read is no TCP, or not IPVS's to judge.
    let Ok(packet) = Packet::read(skb) else {
        return Ok(());
    };
    let Some((client, vip)) = packet.endpoints()? else {
        return Ok(());
    };
    let Some(syn) = packet.syn()? else {
        return Ok(());
    };
    let Some(filter) = filter() else {
        return Ok(());
    };
    if !filter.client.admits(&client) || !filter.vip.admits(&vip) {
        return Ok(());
    }
    // Filled in place: a whole record does not fit the stack beside the packet.
    if TRACE_FRAMES.insert(key, &EMPTY, 0).is_err() {
        count(Stat::TraceLost);
        return Ok(());
    }
    let Some(frame) = TRACE_FRAMES.get_ptr_mut(key) else {
        count(Stat::TraceLost);
        return Ok(());
    };
    // SAFETY: a live map value that only the probes on this task's stack use.
    let frame = unsafe { &mut *frame };
    frame.header = Header::new(Kind::Trace, 0, now);
    frame.seq = syn.seq;
    frame.client = client;
    frame.vip = vip;
    Ok(())
}

/// Entry of `ip_vs_conn_in_get_proto(ipvs, af, skb, iph)`.
#[inline(always)]
pub(crate) fn lookup(ctx: &ProbeContext) {
    if let Some(frame) = current() {
        match ctx.arg::<u64>(0).map(conn::netns) {
            Some(Ok(netns)) => frame.netns = netns,
            Some(Err(_)) | None => count(Stat::Unreadable),
        }
        // The start; `found` turns it into a duration.
        frame.lookup_ns = now() as u32;
    }
}

/// Return of `ip_vs_conn_in_get_proto`: the entry, or null.
#[inline(always)]
pub(crate) fn found(ctx: &RetProbeContext) {
    if let Some(frame) = current() {
        frame.lookup_ns = (now() as u32).wrapping_sub(frame.lookup_ns);
        frame.header.set(Header::LOOKED_UP);
        if ctx.ret::<u64>() != 0 {
            frame.header.set(Header::LOOKUP_HIT);
        }
    }
}

/// The commit probe saw the traced SYN go to a destination.
#[inline(always)]
pub(crate) fn committed(conn: Conn, state: u16) {
    let Some(frame) = current() else {
        return;
    };
    frame.state = state;
    let mut fill = || -> Result<(), Fault> {
        let dest = conn.dest()?;
        conn.real(&mut frame.dest)?;
        frame.weight = dest.weight()?;
        frame.conn_flags = conn.flags()?;
        frame.dest_flags = dest.flags()?;
        frame.protocol = conn.protocol()?;
        Ok(())
    };
    match fill() {
        Ok(()) => frame.header.set(Header::COMMITTED),
        Err(Fault(_)) => count(Stat::Unreadable),
    }
}

/// Return of `ip_vs_in_hook`: the verdict.
#[inline(always)]
pub(crate) fn leave(ctx: &RetProbeContext) {
    let task = task();
    let Some(open) = open(task) else {
        return;
    };
    let key = TraceKey {
        task,
        depth: open.depth,
    };
    // SAFETY: the value is copied at once; only this task's stack writes it.
    let frame = unsafe { TRACE_FRAMES.get(key) }.copied();
    let _frame_gone = TRACE_FRAMES.remove(key);
    if open.depth <= 1 {
        let _depth_gone = TRACE_DEPTH.remove(task);
    } else if set_depth(
        task,
        TraceDepth {
            since: open.since,
            depth: open.depth - 1,
        },
    )
    .is_err()
    {
        count(Stat::TraceLost);
    }
    let Some(mut frame) = frame else {
        return;
    };
    // Without any service in the namespace nothing is looked up.
    if !frame.header.has(Header::LOOKED_UP) {
        return;
    }
    let Some(filter) = filter() else {
        return;
    };
    frame.verdict = ctx.ret::<u32>();
    if filter.netns != 0 && filter.netns != frame.netns {
        return;
    }
    if frame.header.has(Header::COMMITTED) {
        if !filter.dest.admits(&frame.dest) {
            return;
        }
    } else if !filter.dest.is_empty()
        // IPVS found no entry and let it go: it is to no service.
        || (frame.verdict == NF_ACCEPT && !frame.header.has(Header::LOOKUP_HIT))
    {
        return;
    }
    frame.total_ns = now().wrapping_sub(frame.header.time) as u32;
    emit(&frame);
}

/// The SYN that this task is tracing, for its probes to fill in.
#[inline(always)]
fn current() -> Option<&'static mut TraceRecord> {
    let task = task();
    let depth = open(task)?.depth;
    let frame = TRACE_FRAMES.get_ptr_mut(TraceKey { task, depth })?;
    // SAFETY: a live map value that only the probes on this task's stack use,
    // one after the other.
    Some(unsafe { &mut *frame })
}

#[inline(always)]
fn open(task: u64) -> Option<TraceDepth> {
    // SAFETY: the value is copied at once; only this task's stack writes it.
    unsafe { TRACE_DEPTH.get(task) }.copied()
}

#[inline(always)]
fn set_depth(task: u64, depth: TraceDepth) -> Result<(), i32> {
    TRACE_DEPTH.insert(task, depth, 0)
}

#[inline(always)]
fn task() -> u64 {
    // SAFETY: the helper has no preconditions.
    unsafe { bpf_get_current_task() }
}

#[inline(always)]
fn now() -> u64 {
    // SAFETY: the helper has no preconditions.
    unsafe { bpf_ktime_get_ns() }
}
