//! A SYN turned into the reset that answers it.

use aya_ebpf::{
    bindings::BPF_F_RECOMPUTE_CSUM,
    cty::{c_long, c_void},
    helpers::{
        bpf_l4_csum_replace, bpf_redirect, bpf_redirect_neigh, bpf_skb_change_head,
        bpf_skb_change_tail, bpf_skb_load_bytes, bpf_skb_store_bytes, bpf_skb_vlan_pop,
        bpf_xdp_adjust_tail,
    },
    programs::{TcContext, XdpContext},
};
use ipvs_guard_common::{
    guard::FlowKey,
    reply::{self, Reset, TCP_CHECKSUM, TCP_LEN},
};
use network_types::{
    eth::EthHdr,
    ip::{Ipv4Hdr, Ipv6Hdr},
};

use super::parse::{Span, Tcp};
use crate::maps::Work;
use crate::settled::settled;

/// Furthest begin of a TCP header that is answered.
const FURTHEST: usize = 0x3ff;

/// The reset leaves by the device that the SYN came in by, to whom it came from.
#[inline(always)]
pub(super) fn on_its_device(
    ctx: &TcContext,
    tcp: &Tcp,
    work: &mut Work,
    seq: u32,
    link_layer: bool,
) -> Result<i32, c_long> {
    rewrite(ctx, tcp, work, seq)?;
    if link_layer {
        load(ctx, 0, &mut work.macs)?;
        swap(&mut work.macs);
        store(ctx, 0, &work.macs)?;
    }
    // SAFETY: the context is the kernel's; a device index is any number to it.
    Ok(unsafe { bpf_redirect((*ctx.skb.skb).ifindex, 0) } as i32)
}

/// The reset goes out by the device `index`, by route and neighbour.
#[inline(always)]
pub(super) fn towards(
    ctx: &TcContext,
    tcp: &Tcp,
    work: &mut Work,
    seq: u32,
    index: u32,
    link_layer: bool,
) -> Result<i32, c_long> {
    rewrite(ctx, tcp, work, seq)?;
    if !link_layer {
        // The redirect takes an Ethernet header off, and drops a packet without one
        // (`__bpf_redirect_neigh`, 5.10 to 7.2).
        // SAFETY: the context is the kernel's.
        done(unsafe { bpf_skb_change_head(ctx.skb.skb, EthHdr::LEN as u32, 0) })?;
    }
    // The tag is that of the device to the server.
    // SAFETY: the context is the kernel's.
    if unsafe { (*ctx.skb.skb).vlan_present } != 0 {
        // SAFETY: as above.
        done(unsafe { bpf_skb_vlan_pop(ctx.skb.skb) })?;
    }
    // SAFETY: no parameters are handed over, so the kernel looks the route up.
    Ok(unsafe { bpf_redirect_neigh(index, core::ptr::null_mut(), 0, 0) } as i32)
}

#[inline(always)]
fn rewrite(ctx: &TcContext, tcp: &Tcp, work: &mut Work, seq: u32) -> Result<(), c_long> {
    let Tcp {
        network, transport, ..
    } = *tcp;
    if transport > FURTHEST {
        return Err(-1);
    }
    let end = transport + TCP_LEN;
    let partial = is_partial(ctx, transport)?;
    // SAFETY: the context is the kernel's.
    done(unsafe { bpf_skb_change_tail(ctx.skb.skb, end as u32, 0) })?;
    let FlowKey { client, vip } = &work.key;
    if tcp.v4 {
        let header = ipv4_part(&mut work.header);
        load(ctx, network, header)?;
        reply::turn_ipv4(header, vip, client, (end - network) as u16);
        store(ctx, network, header)?;
    } else {
        load(ctx, network, &mut work.header)?;
        let payload = end - network - Ipv6Hdr::LEN;
        reply::turn_ipv6(&mut work.header, vip, client, payload as u16);
        store(ctx, network, &work.header)?;
    }
    let reset = Reset::new(vip, client, seq);
    let [hi, lo] = if partial {
        reset.pseudo.to_be_bytes()
    } else {
        reset.checksum()
    };
    work.segment = reset.header;
    work.segment[TCP_CHECKSUM] = hi;
    work.segment[TCP_CHECKSUM + 1] = lo;
    store(ctx, transport, &work.segment)
}

/// The part of `header` that an IPv4 header takes.
#[inline(always)]
fn ipv4_part(header: &mut [u8; Ipv6Hdr::LEN]) -> &mut [u8; Ipv4Hdr::LEN] {
    // SAFETY: the first bytes of a longer array.
    unsafe { &mut *header.as_mut_ptr().cast() }
}

/// Whether the device is to complete the checksum (`CHECKSUM_PARTIAL`), which
/// no field of the context tells: a replacement that is not of the
/// pseudo-header leaves the checksum of such a packet as it is
/// (`inet_proto_csum_replace4`, 5.10 to 7.2).
#[inline(always)]
fn is_partial(ctx: &TcContext, transport: usize) -> Result<bool, c_long> {
    const TRIAL: u64 = 1;
    let at = transport + TCP_CHECKSUM;
    let (mut before, mut after) = ([0u8; 2], [0u8; 2]);
    load(ctx, at, &mut before)?;
    // SAFETY: the context is the kernel's, which checks the offset.
    done(unsafe { bpf_l4_csum_replace(ctx.skb.skb, at as u32, 0, TRIAL, 2) })?;
    load(ctx, at, &mut after)?;
    // The sum that a device counted (`CHECKSUM_COMPLETE`) is that of these bytes
    // still: such a replacement leaves it to the pseudo-header's.
    put(ctx, at, &before, 0)?;
    Ok(after == before)
}

/// The reset in the SYN's own buffer. Drivers that run XDP hand over whole
/// checksums.
#[inline(always)]
pub(super) fn in_place(ctx: &XdpContext, tcp: &Tcp, work: &mut Work, seq: u32) -> Option<()> {
    let Tcp {
        network, transport, ..
    } = *tcp;
    if transport > FURTHEST {
        return None;
    }
    let end = transport + TCP_LEN;
    // The kernel allows no other arithmetic with the packet's end.
    let length = settled(ctx.data_end() - ctx.data());
    let surplus = length.wrapping_sub(end) as i32;
    // SAFETY: the context is the kernel's, which checks the length.
    if unsafe { bpf_xdp_adjust_tail(ctx.ctx, -surplus) } != 0 {
        return None;
    }
    let span = Span {
        start: ctx.data(),
        end: ctx.data_end(),
    };
    let FlowKey { client, vip } = &work.key;
    if tcp.v4 {
        let header = span.part::<{ Ipv4Hdr::LEN }>(network)?;
        reply::turn_ipv4(header, vip, client, (end - network) as u16);
    } else {
        let header = span.part::<{ Ipv6Hdr::LEN }>(network)?;
        let payload = end - network - Ipv6Hdr::LEN;
        reply::turn_ipv6(header, vip, client, payload as u16);
    }
    *span.part(transport)? = Reset::new(vip, client, seq).complete();
    swap(span.part(0)?);
    Some(())
}

/// Exchanges the two Ethernet addresses at the begin of a frame.
#[inline(always)]
fn swap(macs: &mut [u8; 12]) {
    let mut i = 0;
    while i < 6 {
        macs.swap(i, i + 6);
        i += 1;
    }
}

#[inline(always)]
fn load<const N: usize>(ctx: &TcContext, offset: usize, bytes: &mut [u8; N]) -> Result<(), c_long> {
    // SAFETY: the buffer is as long as said; the kernel checks the offset.
    done(unsafe {
        bpf_skb_load_bytes(
            ctx.skb.skb.cast(),
            offset as u32,
            bytes.as_mut_ptr().cast::<c_void>(),
            N as u32,
        )
    })
}

/// Changes bytes, and with them the sum that a device counted.
#[inline(always)]
fn store<const N: usize>(ctx: &TcContext, offset: usize, bytes: &[u8; N]) -> Result<(), c_long> {
    put(ctx, offset, bytes, BPF_F_RECOMPUTE_CSUM)
}

#[inline(always)]
fn put<const N: usize>(
    ctx: &TcContext,
    offset: usize,
    bytes: &[u8; N],
    flags: u32,
) -> Result<(), c_long> {
    // SAFETY: the buffer is as long as said; the kernel checks the offset.
    done(unsafe {
        bpf_skb_store_bytes(
            ctx.skb.skb,
            offset as u32,
            bytes.as_ptr().cast::<c_void>(),
            N as u32,
            u64::from(flags),
        )
    })
}

#[inline(always)]
fn done(result: c_long) -> Result<(), c_long> {
    if result == 0 { Ok(()) } else { Err(result) }
}
