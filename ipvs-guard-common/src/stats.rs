//! Counters that the kernel side keeps; user space reads them without a system call.

/// A counter's place in a row of the `STATS` array.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Stat {
    /// Records that found the ring buffer full.
    RingFull = 0,
    /// SYNs of which a kernel read failed or whose header was not in the linear part.
    Unreadable = 1,
    /// Records of a SYN that the map of seen SYNs could not take.
    SeenFull = 2,
    /// Trace frames that the map of open traces could not take or pair.
    TraceLost = 3,
    /// Reschedules that the map of expired entries could not take.
    ExpiredFull = 4,
    /// Stale SYNs that passed because `--max-rate` was reached.
    RateLimited = 5,
    /// Verdicts and flows that their map could not take.
    GuardFull = 6,
    /// SYNs that a reset was to answer and that could not be made one.
    ResetFailed = 7,
    /// Stale SYNs dropped or answered, in either tier.
    Acted = 8,
    /// No count: number of the last message that the backup daemon has worked through
    /// on this CPU, as [`crate::guard::MARK`] tells; while healing only.
    Heard = 9,
    /// SYNs on existing entries that passed, and of which user space was not told.
    SynLost = 10,
}

/// Number of counters in a row.
pub const STATS: usize = 11;

impl Stat {
    /// Every counter that stands for something lost, with the name of its stage
    /// in `ipvs.loss.stage` and in the metrics.
    pub const LOSSES: [(Self, &'static str); 7] = [
        (Self::RingFull, "ring"),
        (Self::Unreadable, "read"),
        (Self::SeenFull, "seen_map"),
        (Self::TraceLost, "trace_map"),
        (Self::ExpiredFull, "expired_map"),
        (Self::GuardFull, "guard_map"),
        (Self::ResetFailed, "reset"),
    ];
}
