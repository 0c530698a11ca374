//! What user space tells the eBPF programs at load, and the sizes of their maps.

/// `MODE` bit: prove the layout. Only what the thread named in `PROOF_COMM`
/// does is reported, as [`crate::event::Kind::Proof`] and its kin.
pub const PROVE: u32 = 1;
/// Bytes of a thread's name in the kernel (`TASK_COMM_LEN`).
pub const COMM_LEN: usize = 16;
/// `MODE` bit: report reschedules.
pub const RESCHEDULED: u32 = 2;
/// `MODE` bit: fill in the trace that is open on this task.
pub const TRACE: u32 = 4;
/// `MODE` bit: report stale SYNs.
pub const STALE: u32 = 8;
/// `MODE` bit: act on stale SYNs as the policy says.
pub const ENFORCE: u32 = 16;
/// Devices with the XDP program at most.
pub const XDP_DEVICES: u32 = 256;

/// Bytes of the ring buffer: 32,768 stale SYNs of 120 bytes and the ring's own 8.
pub const RING_BYTES: u32 = 4 << 20;
/// Entries whose last stale SYN is remembered (about 6 MiB of kernel memory).
pub const SEEN_ENTRIES: u32 = 65_536;
/// Entries thrown away whose next SYN is awaited.
pub const EXPIRED_ENTRIES: u32 = 4_096;
/// Tasks that are traced at once.
pub const TRACE_TASKS: u32 = 1_024;

/// How long after its entry was thrown away a SYN counts as rescheduled, in
/// nanoseconds. The kernel schedules in the same call; a dropped SYN
/// (`reuse_drop`) is repeated after 1 s.
pub const RESCHEDULE_WITHIN_NS: u64 = 500_000_000;
/// Age at which an open trace is taken for a return that was missed, in nanoseconds.
pub const TRACE_STALE_NS: u64 = 1_000_000_000;
