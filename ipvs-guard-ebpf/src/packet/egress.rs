//! On the way out: the first stale SYN of a flow, which the probe met on this
//! CPU a moment ago.

use aya_ebpf::{
    bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC},
    helpers::bpf_ktime_get_ns,
    programs::TcContext,
};
use ipvs_guard_common::{
    event::{Header, Kind, VerdictRecord},
    guard::{DROP, HEAL, VerdictKey},
    stats::Stat,
};

use super::{
    parse::{ACK, RST, SYN, Span},
    turn,
};
use crate::{
    emit::emit,
    maps::{VERDICTS, count, heart, work},
};

#[inline(always)]
pub(crate) fn run(ctx: &TcContext, link_layer: bool) -> i32 {
    let Some(heart) = heart() else {
        return TC_ACT_UNSPEC;
    };
    if heart.is_calm() {
        return TC_ACT_UNSPEC;
    }
    let span = Span {
        start: ctx.data(),
        end: ctx.data_end(),
    };
    let (tcp, tunnelled) = match span.tcp(link_layer) {
        Some(tcp) => (tcp, false),
        None => match span.tunnelled(link_layer) {
            Some(tcp) => (tcp, true),
            None => return TC_ACT_UNSPEC,
        },
    };
    if tcp.flags() & (SYN | ACK | RST) != SYN {
        return TC_ACT_UNSPEC;
    }
    let Some(to) = span.destination(&tcp) else {
        return TC_ACT_UNSPEC;
    };
    let seq = tcp.seq();
    let key = VerdictKey {
        addr: *to.addr(),
        port: to.port().to_be_bytes(),
        pad: [0; 2],
        seq,
    };
    // SAFETY: only the probe of this very SYN wrote it, and has ended; it is copied, for it
    // may be taken out.
    let Some(verdict) = (unsafe { VERDICTS.get(key) }).copied() else {
        return TC_ACT_UNSPEC;
    };
    // SAFETY: the helper has no preconditions.
    let now = unsafe { bpf_ktime_get_ns() };
    if now >= verdict.deadline || now >= heart.deadline {
        return TC_ACT_UNSPEC;
    }
    // SAFETY: the context that the kernel handed over.
    let came_by = unsafe { (*ctx.skb.skb).ingress_ifindex };
    let mut flags = 0;
    let action = if verdict.action == HEAL {
        flags = Header::HELD;
        // It was for this packet. Sent again it may come by here once more, by the same
        // name: its probe says then what becomes of it.
        let _absent = VERDICTS.remove(key);
        TC_ACT_SHOT
    } else if verdict.action == DROP {
        TC_ACT_SHOT
    } else if came_by == 0 || tunnelled {
        // A client on this node: there is no device to answer on, user space does. What
        // is in a tunnel cannot be turned round where it is.
        flags = Header::UNANSWERED;
        TC_ACT_SHOT
    } else {
        let turned = work().ok_or(0).and_then(|work| {
            work.key = verdict.flow;
            turn::towards(ctx, &tcp, work, seq, came_by, link_layer)
        });
        match turned {
            Ok(action) => action,
            Err(_) => {
                count(Stat::ResetFailed);
                flags = Header::UNANSWERED;
                TC_ACT_SHOT
            }
        }
    };
    count(Stat::Acted);
    emit(&VerdictRecord {
        header: Header::new(Kind::Met, flags, now),
        key,
        came_by,
        pad: 0,
    });
    action
}
