//! Changes of destinations: `__ip_vs_update_dest(svc, dest, udest, add)` and
//! `__ip_vs_del_dest(ipvs, dest, cleanup)` (5.10 to 7.2), which every way of
//! removing one reaches: alone, with its service, with the namespace.

use aya_ebpf::{helpers::bpf_ktime_get_ns, programs::ProbeContext};
use ipvs_guard_common::{
    addr::Endpoint,
    config::{ENFORCE, PROVE},
    event::{DestRecord, Header, Kind},
    stats::Stat,
};

use network_types::ip::IpProto;

use super::{enforce, prove};
use crate::{
    emit::emit,
    kernel::{
        dest::{Dest, Request, Service},
        read::Fault,
    },
    maps::{count, filter, is_prover, mode},
};

/// As `ip_vs_service.protocol` has it.
const TCP: u16 = IpProto::Tcp as u16;

#[inline(always)]
pub(crate) fn update(ctx: &ProbeContext) {
    let (Some(svc), Some(dest), Some(request), Some(add)) = (
        ctx.arg::<u64>(0),
        ctx.arg::<u64>(1),
        ctx.arg::<u64>(2),
        ctx.arg::<u32>(3),
    ) else {
        return;
    };
    if mode(PROVE) && !is_prover() {
        return;
    }
    let dest = Dest::at(dest);
    let change = || {
        let after = Request::at(request).weight()?;
        let (flags, before) = if add != 0 {
            (Header::ADDED, 0)
        } else {
            (0, dest.weight()?)
        };
        report(
            Kind::DestUpdate,
            flags,
            Service::at(svc),
            dest,
            before,
            after,
        )
    };
    settle(change());
}

#[inline(always)]
pub(crate) fn delete(ctx: &ProbeContext) {
    let Some(dest) = ctx.arg::<u64>(1) else {
        return;
    };
    if mode(PROVE) && !is_prover() {
        return;
    }
    let dest = Dest::at(dest);
    let change = || {
        let before = dest.weight()?;
        report(Kind::DestDelete, 0, dest.service()?, dest, before, 0)
    };
    settle(change());
}

#[inline(always)]
fn settle(outcome: Result<(), Fault>) {
    if let Err(fault) = outcome {
        if mode(PROVE) {
            prove::fault(fault);
        } else {
            count(Stat::Unreadable);
        }
    }
}

#[inline(always)]
fn report(
    kind: Kind,
    flags: u32,
    svc: Service,
    dest: Dest,
    weight_before: i32,
    weight_after: i32,
) -> Result<(), Fault> {
    let mut record = DestRecord {
        // SAFETY: the helper has no preconditions.
        header: Header::new(kind, flags, unsafe { bpf_ktime_get_ns() }),
        netns: svc.netns()?,
        fwmark: svc.fwmark()?,
        vip: Endpoint::UNSPECIFIED,
        dest: Endpoint::UNSPECIFIED,
        weight_before,
        weight_after,
        protocol: svc.protocol()?,
        af: svc.af()?,
        dest_flags: dest.flags()?,
    };
    dest.real(&mut record.dest)?;
    if record.fwmark == 0 {
        svc.vip(&mut record.vip)?;
    }
    // Of other protocols nothing is enforced.
    if mode(ENFORCE) && (record.fwmark != 0 || record.protocol == TCP) {
        match kind {
            Kind::DestUpdate => enforce::updated(dest, &record),
            _ => enforce::deleted(dest, &record),
        }
    }
    let Some(filter) = filter() else {
        return Ok(());
    };
    // A service of all ports, or by mark, can have entries of any address: whoever
    // enforces is told of its changes.
    let any = mode(ENFORCE) && (record.fwmark != 0 || record.vip.port() == 0);
    if (filter.netns == 0 || filter.netns == record.netns)
        && (any || (filter.vip.admits(&record.vip) && filter.dest.admits(&record.dest)))
    {
        emit(&record);
    }
    Ok(())
}
