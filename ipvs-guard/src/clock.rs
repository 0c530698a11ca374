//! From the kernel's monotonic clock to the time of day.

use jiff::Timestamp;
use nix::time::{ClockId, clock_gettime};

/// What has to be added to `CLOCK_MONOTONIC` to get the time of day.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    offset_ns: i128,
}

impl Clock {
    /// Reads both clocks now; to be done again from time to time, for the time
    /// of day is set and slewed.
    ///
    /// # Errors
    /// That of clock_gettime(2).
    pub fn read() -> nix::Result<Self> {
        let monotonic = clock_gettime(ClockId::CLOCK_MONOTONIC)?;
        let realtime = clock_gettime(ClockId::CLOCK_REALTIME)?;
        let ns = |t: nix::sys::time::TimeSpec| {
            i128::from(t.tv_sec()) * 1_000_000_000 + i128::from(t.tv_nsec())
        };
        Ok(Self {
            offset_ns: ns(realtime) - ns(monotonic),
        })
    }

    /// The time of day at `monotonic_ns`.
    pub fn at(&self, monotonic_ns: u64) -> Timestamp {
        let ns = i128::from(monotonic_ns) + self.offset_ns;
        Timestamp::from_nanosecond(ns).unwrap_or(Timestamp::UNIX_EPOCH)
    }

    /// The time of day now.
    pub fn now() -> Timestamp {
        Timestamp::try_from(std::time::SystemTime::now()).unwrap_or(Timestamp::UNIX_EPOCH)
    }
}

/// `CLOCK_MONOTONIC` in nanoseconds, as the kernel side has it
/// (`bpf_ktime_get_ns`).
pub fn monotonic() -> u64 {
    let time = clock_gettime(ClockId::CLOCK_MONOTONIC)
        .unwrap_or_else(|_| std::time::Duration::ZERO.into());
    u64::try_from(time.tv_sec())
        .unwrap_or(0)
        .saturating_mul(1_000_000_000)
        .saturating_add(u64::try_from(time.tv_nsec()).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use jiff::SignedDuration;

    use super::*;

    #[test]
    fn the_monotonic_clock_maps_to_today() {
        let clock = Clock::read().unwrap();
        let t = clock_gettime(ClockId::CLOCK_MONOTONIC).unwrap();
        let ns = t.tv_sec() as u64 * 1_000_000_000 + t.tv_nsec() as u64;
        let apart = clock.at(ns).duration_until(Clock::now()).abs();
        assert!(apart < SignedDuration::from_secs(1), "{apart:?} apart");
    }
}
