//! The eBPF programs of ipvs-guard: entry points only.
//!
//! Each entry point is an attribute and one call; what it does is in the module
//! of the same name under `probe`.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]
#![allow(
    missing_docs,
    reason = "the probe macros generate items that take no docstring"
)]

mod emit;
mod kernel;
mod maps;
mod packet;
mod probe;
mod settled;

use aya_ebpf::{
    bindings::{TC_ACT_UNSPEC, xdp_action::XDP_PASS},
    macros::{classifier, kprobe, kretprobe, xdp},
    programs::{ProbeContext, RetProbeContext, TcContext, XdpContext},
};

/// `tcp_state_transition`: a TCP packet is about to be sent by its entry.
#[kprobe]
fn commit(ctx: ProbeContext) -> u32 {
    probe::commit::run(&ctx);
    0
}

/// `ip_vs_conn_expire_now`: an entry is thrown away.
#[kprobe]
fn expire(ctx: ProbeContext) -> u32 {
    probe::expire::run(&ctx);
    0
}

/// `ip_vs_conn_drop_conntrack`: the conntrack of an entry that has ended goes.
#[kprobe]
fn untrack(ctx: ProbeContext) -> u32 {
    probe::expire::untrack(&ctx);
    0
}

/// `__ip_vs_update_dest`: a destination is added or edited.
#[kprobe]
fn dest_update(ctx: ProbeContext) -> u32 {
    probe::config::update(&ctx);
    0
}

/// `__ip_vs_del_dest`: a destination is removed.
#[kprobe]
fn dest_delete(ctx: ProbeContext) -> u32 {
    probe::config::delete(&ctx);
    0
}

/// Entry of `ip_vs_in_hook` or, before 5.16, of the hooks around `ip_vs_in`.
#[kprobe]
fn trace_in(ctx: ProbeContext) -> u32 {
    probe::trace::enter(&ctx);
    0
}

/// Return of the same.
#[kretprobe]
fn trace_out(ctx: RetProbeContext) -> u32 {
    probe::trace::leave(&ctx);
    0
}

/// Entry of `ip_vs_conn_in_get_proto`.
#[kprobe]
fn trace_lookup(ctx: ProbeContext) -> u32 {
    probe::trace::lookup(&ctx);
    0
}

/// Return of the same.
#[kretprobe]
fn trace_found(ctx: RetProbeContext) -> u32 {
    probe::trace::found(&ctx);
    0
}

/// A packet comes in by a device with Ethernet headers.
#[classifier]
fn ipvs_guard_in(ctx: TcContext) -> i32 {
    packet::ingress::tc(&ctx, true)
}

/// A packet comes in by a device without link-layer header.
#[classifier]
fn ipvs_guard_inl3(ctx: TcContext) -> i32 {
    packet::ingress::tc(&ctx, false)
}

/// A packet comes in, and the driver runs XDP.
#[xdp]
fn ipvs_guard_xdp(ctx: XdpContext) -> u32 {
    packet::ingress::xdp(&ctx)
}

/// A packet leaves by a device with Ethernet headers.
#[classifier]
fn ipvs_guard_out(ctx: TcContext) -> i32 {
    packet::egress::run(&ctx, true)
}

/// A packet leaves by a device without link-layer header.
#[classifier]
fn ipvs_guard_ol3(ctx: TcContext) -> i32 {
    packet::egress::run(&ctx, false)
}

/// Notes stale flows for user space, on no device.
#[classifier]
fn note_flows(ctx: TcContext) -> i32 {
    packet::note::run(&ctx);
    TC_ACT_UNSPEC
}

/// Keeps real servers for user space, on no device.
#[classifier]
fn survey_reals(ctx: TcContext) -> i32 {
    packet::note::survey(&ctx);
    TC_ACT_UNSPEC
}

/// Puts what it is run on into a device, on no device itself.
#[classifier]
fn send_packet(ctx: TcContext) -> i32 {
    packet::send::run(&ctx)
}

/// Keeps a device to what `send_packet` puts into it.
#[classifier]
fn ipvs_guard_gate(ctx: TcContext) -> i32 {
    packet::send::gate(&ctx)
}

/// Nothing, on no device: what the others are measured against.
#[classifier]
fn idle(_ctx: TcContext) -> i32 {
    TC_ACT_UNSPEC
}

/// The same.
#[xdp]
fn idle_xdp(_ctx: XdpContext) -> u32 {
    XDP_PASS
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    loop {}
}

// bpf_probe_read_kernel is for programs under a GPL-compatible licence.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
