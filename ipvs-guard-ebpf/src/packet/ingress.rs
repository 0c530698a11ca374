//! On the way in: a SYN whose flow is known to be stale never reaches IPVS, so
//! its entry is not refreshed and the dead server drains. And real servers are
//! seen to answer.

use aya_ebpf::{
    bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC, xdp_action::*},
    helpers::bpf_ktime_get_ns,
    programs::{TcContext, XdpContext},
};
use ipvs_guard_common::{
    event::{Header, Kind},
    guard::{DROP, Flow},
    stats::Stat,
};

use super::{
    parse::{ACK, RST, SYN, Span, Tcp},
    turn,
};
use crate::{
    emit::emit,
    maps::{FLOWS, REALS, Work, count, heart, own_mac, policy, within_rate, work},
};

/// Received for this host (`PACKET_HOST`).
const TO_US: u32 = 0;

/// A SYN that is to be acted on.
struct Stale {
    tcp: Tcp,
    seq: u32,
    now: u64,
    flow: &'static mut Flow,
    /// Its `key` is the flow's.
    work: &'static mut Work,
}

#[inline(always)]
pub(crate) fn tc(ctx: &TcContext, link_layer: bool) -> i32 {
    let span = Span {
        start: ctx.data(),
        end: ctx.data_end(),
    };
    let Some(stale) = look(&span, link_layer) else {
        return TC_ACT_UNSPEC;
    };
    // SAFETY: the context that the kernel handed over.
    let packet_type = unsafe { (*ctx.skb.skb).pkt_type };
    // A bridge port or a mirror sees packets of others, too.
    if packet_type != TO_US || !within_rate(stale.now) {
        return TC_ACT_UNSPEC;
    }
    let action = if policy().action == DROP {
        TC_ACT_SHOT
    } else {
        match turn::on_its_device(ctx, &stale.tcp, stale.work, stale.seq, link_layer) {
            Ok(action) => action,
            Err(_) => {
                count(Stat::ResetFailed);
                return TC_ACT_SHOT;
            }
        }
    };
    settle(stale);
    action
}

#[inline(always)]
pub(crate) fn xdp(ctx: &XdpContext) -> u32 {
    let span = Span {
        start: ctx.data(),
        end: ctx.data_end(),
    };
    let Some(stale) = look(&span, true) else {
        return XDP_PASS;
    };
    let to_us = span.at::<[u8; 6]>(0) == own_mac(ctx.ingress_ifindex() as u32);
    if !to_us || !within_rate(stale.now) {
        return XDP_PASS;
    }
    let action = if policy().action == DROP {
        XDP_DROP
    } else {
        match turn::in_place(ctx, &stale.tcp, stale.work, stale.seq) {
            Some(()) => XDP_TX,
            None => {
                count(Stat::ResetFailed);
                return XDP_DROP;
            }
        }
    };
    settle(stale);
    action
}

/// What is to be done about a packet; `None`: nothing.
#[inline(always)]
fn look(span: &Span, link_layer: bool) -> Option<Stale> {
    let awake = heart().is_some_and(|heart| !heart.is_calm());
    if !awake && span.is_no_syn(link_layer) {
        return None;
    }
    let tcp = span.tcp(link_layer)?;
    match tcp.flags() & (SYN | ACK | RST) {
        SYN => stale(span, tcp),
        flags => {
            // A SYN-ACK always, for who answered just before a drain counts as
            // well; with a drain under way, any sign of life.
            if flags == SYN | ACK || (flags & RST == 0 && awake) {
                note_answer(span, &tcp);
            }
            None
        }
    }
}

#[inline(always)]
fn note_answer(span: &Span, tcp: &Tcp) {
    let Some(real) = span
        .source(tcp)
        .and_then(|source| REALS.get_ptr_mut(source))
    else {
        return;
    };
    // SAFETY: a live map value; a word that several CPUs write, each with a time
    // that serves.
    unsafe { (*real).answered = bpf_ktime_get_ns() };
}

#[inline(always)]
fn stale(span: &Span, tcp: Tcp) -> Option<Stale> {
    let heart = heart()?;
    if heart.is_calm() {
        return None;
    }
    // SAFETY: the helper has no preconditions.
    let now = unsafe { bpf_ktime_get_ns() };
    if now >= heart.deadline {
        return None;
    }
    let work = work()?;
    work.key.client = span.source(&tcp)?;
    work.key.vip = span.destination(&tcp)?;
    let flow = FLOWS.get_ptr_mut(&work.key)?;
    // SAFETY: a live map value; what several CPUs may write at a time is told to
    // the user only.
    let flow = unsafe { &mut *flow };
    // SAFETY: read at once; writers write whole words.
    let real = unsafe { REALS.get(flow.dest) }?;
    let policy = policy();
    if policy.dry_run != 0
        || now >= flow.deadline
        || now < flow.not_before
        || flow.generation != real.generation
        || policy.is_answering(now, real.answered)
    {
        return None;
    }
    Some(Stale {
        seq: tcp.seq(),
        tcp,
        now,
        flow,
        work,
    })
}

/// Reports what was done.
#[inline(always)]
fn settle(stale: Stale) {
    let Stale {
        seq,
        now,
        flow,
        work,
        tcp: _,
    } = stale;
    let again = flow.answered != 0 && flow.seq == seq;
    flow.seq = seq;
    flow.answered = 1;
    count(Stat::Acted);
    let flags = if again { Header::RETRANSMISSION } else { 0 };
    let record = &mut work.record;
    record.header = Header::new(Kind::Turned, flags, now);
    record.flow = work.key;
    record.dest = flow.dest;
    record.netns = policy().netns;
    record.seq = seq;
    record.conn_flags = flow.conn_flags;
    record.state = flow.state;
    emit(record);
}
