//! Proving the layout: everything that the probes read of a SYN whose every
//! field is known, sent by a thread of the agent itself.

use aya_ebpf::helpers::bpf_ktime_get_ns;
use ipvs_guard_common::event::{FaultRecord, Header, Kind, SkbRecord};

use crate::{
    emit::emit,
    kernel::{read::Fault, skb},
    maps::is_prover,
};

/// Reports what the layout makes of a packet; whether the packet is the
/// prover's and can be read.
#[inline(always)]
pub(crate) fn begin(skb: u64) -> bool {
    if !is_prover() {
        return false;
    }
    let mut survey = SkbRecord {
        header: header(Kind::ProofSkb),
        ..SkbRecord::default()
    };
    let surveyed = skb::survey(skb, &mut survey);
    emit(&survey);
    match surveyed {
        Ok(()) => true,
        Err(wrong) => {
            fault(wrong);
            false
        }
    }
}

/// Reports which read failed.
#[inline(always)]
pub(crate) fn fault(Fault(field): Fault) {
    emit(&FaultRecord {
        header: header(Kind::ProofFault),
        field: field as u32,
        pad: 0,
    });
}

#[inline(always)]
fn header(kind: Kind) -> Header {
    // SAFETY: the helper has no preconditions.
    Header::new(kind, 0, unsafe { bpf_ktime_get_ns() })
}
