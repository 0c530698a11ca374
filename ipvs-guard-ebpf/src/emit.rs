//! The one way into the ring buffer.

use ipvs_guard_common::stats::Stat;

use crate::maps::{EVENTS, count};

/// Hands `record` to user space, or counts that there was no room; whether there was.
#[inline(always)]
pub(crate) fn emit<T>(record: &T) -> bool {
    let told = EVENTS.output::<T>(record, 0).is_ok();
    if !told {
        count(Stat::RingFull);
    }
    told
}
