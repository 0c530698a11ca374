//! What user space writes into the maps, written from here: a system call on a map
//! keeps the probes on its CPU from running, for as long as its task is preempted;
//! a program run does not.

use aya_ebpf::programs::TcContext;
use ipvs_guard_common::{
    addr::Endpoint,
    guard::{FORGET, Flow, FlowKey, NOTES, NOTES_HEADER, RENEW, Real, RealNote, SURVEYED},
    stats::Stat,
};

use super::parse::Span;
use crate::{
    maps::{FLOWS, REALS, count},
    probe::enforce,
};

const PAIR: usize = size_of::<FlowKey>() + size_of::<Flow>();

#[inline(always)]
pub(crate) fn run(ctx: &TcContext) {
    let mut span = Span {
        start: ctx.data(),
        end: ctx.data_end(),
    };
    for i in 0..NOTES {
        // The header before the first, the pair before it for any other.
        span.start += if i == 0 { NOTES_HEADER } else { PAIR };
        let (Some(key), Some(flow)) =
            (span.at::<FlowKey>(0), span.at::<Flow>(size_of::<FlowKey>()))
        else {
            return;
        };
        note(&key, &flow);
    }
}

/// Makes real servers known, or forgets them, and tells what is known.
#[inline(always)]
pub(crate) fn survey(ctx: &TcContext) {
    let mut span = Span {
        start: ctx.data(),
        end: ctx.data_end(),
    };
    for i in 0..SURVEYED {
        span.start += if i == 0 {
            NOTES_HEADER
        } else {
            size_of::<RealNote>()
        };
        let Some(mut note) = span.at::<RealNote>(0) else {
            return;
        };
        match note.wish {
            FORGET => {
                let _absent = REALS.remove(note.endpoint);
                continue;
            }
            RENEW => enforce::renew(&note.endpoint),
            _ => enforce::ensure(&note.endpoint),
        }
        // SAFETY: the value is copied at once; writers write whole words.
        if let Some(real) = unsafe { REALS.get(note.endpoint) } {
            note.real = *real;
        }
        if let Some(place) = span.part::<{ size_of::<Real>() }>(size_of::<Endpoint>()) {
            *place = note.real.to_bytes();
        }
    }
}

#[inline(always)]
fn note(key: &FlowKey, flow: &Flow) {
    let mut flow = *flow;
    // SAFETY: read at once; what another CPU may write meanwhile is for reports.
    if let Some(before) = unsafe { FLOWS.get(key) } {
        flow.seq = before.seq;
        flow.answered = before.answered;
    }
    if FLOWS.insert(key, &flow, 0).is_err() {
        count(Stat::GuardFull);
    }
}
