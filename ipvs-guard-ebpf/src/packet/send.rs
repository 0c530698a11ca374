//! Packets of user space, put into a device as if they had come in there.

use aya_ebpf::{
    bindings::{BPF_F_INGRESS, TC_ACT_SHOT, TC_ACT_UNSPEC},
    helpers::{bpf_ktime_get_ns, generated::bpf_clone_redirect},
    programs::TcContext,
};

use super::parse::Span;
use crate::maps::heart;

/// Where the device's index is: in the second half of the Ethernet source.
const INDEX: usize = 8;
/// The error of who is too late.
const ECANCELED: i32 = 125;
/// A copy of a packet that the node itself sends to a group it has joined
/// (`PACKET_LOOPBACK`).
const LOOPED: u32 = 5;

/// Gives back 0, or the error: that of `bpf_clone_redirect`, or [`ECANCELED`] once the
/// heartbeat is over.
#[inline(always)]
pub(crate) fn run(ctx: &TcContext) -> i32 {
    let span = Span {
        start: ctx.data(),
        end: ctx.data_end(),
    };
    // Whoever sends was held up: what it knew of the entry is old.
    // SAFETY: the helper has no preconditions.
    let now = unsafe { bpf_ktime_get_ns() };
    if heart().is_none_or(|heart| now >= heart.deadline) {
        return -ECANCELED;
    }
    let Some(index) = span.at::<[u8; 4]>(INDEX) else {
        return TC_ACT_SHOT;
    };
    // SAFETY: the context that the kernel handed over.
    unsafe {
        bpf_clone_redirect(
            ctx.skb.skb,
            u32::from_be_bytes(index),
            u64::from(BPF_F_INGRESS),
        ) as i32
    }
}

/// What processes of the node send to the group comes back looped; nothing else can
/// come but from [`run`], for the far end of the device is nobody's.
#[inline(always)]
pub(crate) fn gate(ctx: &TcContext) -> i32 {
    // SAFETY: the context that the kernel handed over.
    let packet_type = unsafe { (*ctx.skb.skb).pkt_type };
    if packet_type == LOOPED {
        TC_ACT_SHOT
    } else {
        TC_ACT_UNSPEC
    }
}
