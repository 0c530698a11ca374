//! The one way into the ring buffer.

use ipvs_guard_common::stats::Stat;

use crate::maps::{EVENTS, count};

/// Hands `record` to user space, or counts that there was no room.
#[inline(always)]
pub(crate) fn emit<T>(record: &T) {
    if EVENTS.output::<T>(record, 0).is_err() {
        count(Stat::RingFull);
    }
}
