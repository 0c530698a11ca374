//! Every map, and the constants that user space sets before the programs load.

use aya_ebpf::{
    bindings::BPF_F_MMAPABLE,
    helpers::{bpf_get_current_comm, bpf_get_smp_processor_id},
    macros::map,
    maps::{Array, HashMap, LruHashMap, PerCpuArray, RingBuf},
};
use ipvs_guard_common::{
    addr::Endpoint,
    config,
    event::{FlowRecord, PacketRecord, SynRecord, TraceRecord},
    filter::Filter,
    guard::{self, Flow, FlowKey, Heart, Held, Policy, Real, Verdict, VerdictKey},
    layout::{FIELDS, Field, FieldId},
    policy::{SLOTS, Scheduled, Seen, slot},
    stats::{STATS as STAT_COUNT, Stat},
};

/// Records on their way to user space. User space sets the sizes of the maps by
/// what they are needed for.
#[map]
pub(crate) static EVENTS: RingBuf = RingBuf::with_byte_size(config::RING_BYTES, 0);

/// Counters, a row a CPU, read by user space through a mapping: a system call on
/// a map keeps kprobes on its CPU from running (`bpf_disable_instrumentation`).
/// User space sets the number of rows.
#[map]
static STATS: Array<[u64; STAT_COUNT]> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// `--vip`, `--client`, `--dest`, `--netns`.
#[map]
static FILTER: Array<Filter> = Array::with_max_entries(1, 0);

/// Where a record is put together: it does not fit the stack beside the packet.
#[map]
static SCRATCH: PerCpuArray<SynRecord> = PerCpuArray::with_max_entries(1, 0);

/// The last stale SYN of an entry, by the address of its `struct ip_vs_conn`.
#[map]
pub(crate) static SEEN: LruHashMap<u64, Seen> =
    LruHashMap::with_max_entries(config::SEEN_ENTRIES, 0);

/// The SYNs that made entries. An array: a hash map's update would be the most
/// expensive part of a healthy connection.
#[map]
static SCHEDULED: Array<Scheduled> = Array::with_max_entries(SLOTS, 0);

/// When an entry was thrown away, by what names it.
#[map]
pub(crate) static EXPIRED: LruHashMap<ExpiredKey, u64> =
    LruHashMap::with_max_entries(config::EXPIRED_ENTRIES, 0);

/// How many traced calls of `ip_vs_in` a task is in, and since when.
#[map]
pub(crate) static TRACE_DEPTH: LruHashMap<u64, TraceDepth> =
    LruHashMap::with_max_entries(config::TRACE_TASKS, 0);

/// The SYN of each such call.
#[map]
pub(crate) static TRACE_FRAMES: LruHashMap<TraceKey, TraceRecord> =
    LruHashMap::with_max_entries(config::TRACE_TASKS * 2, 0);

/// The agent's heartbeat, and whether anything drains. User space writes its
/// part through a mapping.
#[map]
static HEART: Array<Heart> = Array::with_max_entries(1, BPF_F_MMAPABLE);

/// Answers in the second at hand.
#[map]
static RATE: Array<Rate> = Array::with_max_entries(1, 0);

/// Where packet programs put together what does not fit the stack. They run with
/// softirqs off, so one at a time on a CPU.
#[map]
static WORK: PerCpuArray<Work> = PerCpuArray::with_max_entries(1, 0);

/// Stale flows, by what the client names them.
#[map]
pub(crate) static FLOWS: LruHashMap<FlowKey, Flow> = LruHashMap::with_max_entries(guard::FLOWS, 0);

/// What awaits SYNs on their way out.
#[map]
pub(crate) static VERDICTS: LruHashMap<VerdictKey, Verdict> =
    LruHashMap::with_max_entries(guard::VERDICTS, 0);

/// SYNs that are held back, by the address of their `struct ip_vs_conn`.
#[map]
pub(crate) static HELD: LruHashMap<u64, Held> = LruHashMap::with_max_entries(guard::HELD, 0);

/// When an entry was thrown away whose conntrack is to go with it, by the name of both.
#[map]
pub(crate) static PARTING: LruHashMap<FlowKey, u64> =
    LruHashMap::with_max_entries(guard::PARTING, 0);
/// That name, by the address of the entry's `struct ip_vs_conn`.
#[map]
pub(crate) static PARTING_OF: LruHashMap<u64, FlowKey> =
    LruHashMap::with_max_entries(guard::PARTING, 0);

/// Where a packet is copied to.
#[map]
static COPY: PerCpuArray<PacketRecord> = PerCpuArray::with_max_entries(1, 0);

/// Real servers of the namespace that is enforced.
#[map]
pub(crate) static REALS: HashMap<Endpoint, Real> = HashMap::with_max_entries(guard::REALS, 0);

/// When a destination's weight became 0, by the address of its `struct ip_vs_dest`.
#[map]
pub(crate) static DRAINS: LruHashMap<u64, u64> = LruHashMap::with_max_entries(guard::DRAINS, 0);

/// Ethernet addresses of devices with the XDP program, by index.
#[map]
static MACS: HashMap<u32, [u8; 8]> = HashMap::with_max_entries(config::XDP_DEVICES, 0);

/// What a packet program works on.
#[repr(C)]
pub(crate) struct Work {
    pub(crate) key: FlowKey,
    pub(crate) record: FlowRecord,
    /// A network header.
    pub(crate) header: [u8; 40],
    /// A TCP header.
    pub(crate) segment: [u8; 20],
    /// Two Ethernet addresses.
    pub(crate) macs: [u8; 12],
}

/// A second, and the answers in it.
#[repr(C)]
struct Rate {
    second: u64,
    answers: u64,
}

/// The client, the virtual service and the namespace of an entry.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct ExpiredKey {
    pub(crate) client: ipvs_guard_common::addr::Endpoint,
    pub(crate) vip: ipvs_guard_common::addr::Endpoint,
    pub(crate) netns: u64,
}

/// Nesting of `ip_vs_in` on one task's stack: a softirq can interrupt a
/// transmission of the same task.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct TraceDepth {
    pub(crate) since: u64,
    pub(crate) depth: u64,
}

/// One level of that nesting.
#[derive(Clone, Copy)]
#[repr(C)]
pub(crate) struct TraceKey {
    pub(crate) task: u64,
    pub(crate) depth: u64,
}

/// Where kernel fields are; user space sets it before loading, the verifier
/// then knows the values.
#[unsafe(no_mangle)]
static LAYOUT: [Field; FIELDS] = [Field {
    offset: 0,
    width: 0,
}; FIELDS];

/// Bits of [`config`].
#[unsafe(no_mangle)]
static MODE: u32 = 0;

/// What is enforced.
#[unsafe(no_mangle)]
static POLICY: Policy = Policy {
    grace_ns: 0,
    unless_answering_ns: 0,
    heal_unless_answering_ns: 0,
    flow_ns: 0,
    started: 0,
    netns: 0,
    states: 0,
    max_rate: 0,
    action: 0,
    dry_run: 0,
    pad: 0,
};

/// Name of the thread that proves the layout, filled up with zeros.
#[unsafe(no_mangle)]
static PROOF_COMM: [u8; config::COMM_LEN] = [0; config::COMM_LEN];

/// Where `id` is.
#[inline(always)]
pub(crate) fn field(id: FieldId) -> Field {
    // SAFETY: a place inside a static that nothing in this program writes;
    // volatile keeps the compiler from using the initial value.
    unsafe { core::ptr::read_volatile(&raw const LAYOUT[id as usize]) }
}

/// Whether `bit` of [`config`] is set.
#[inline(always)]
pub(crate) fn mode(bit: u32) -> bool {
    // SAFETY: as in `field`.
    let mode = unsafe { core::ptr::read_volatile(&raw const MODE) };
    mode & bit != 0
}

/// What is enforced.
#[inline(always)]
pub(crate) fn policy() -> Policy {
    // SAFETY: as in `field`.
    unsafe { core::ptr::read_volatile(&raw const POLICY) }
}

/// The agent's heartbeat.
#[inline(always)]
pub(crate) fn heart() -> Option<&'static Heart> {
    HEART.get(0)
}

/// This CPU's place to work on a packet.
#[inline(always)]
pub(crate) fn work() -> Option<&'static mut Work> {
    let work = WORK.get_ptr_mut(0)?;
    // SAFETY: a live map value of this CPU; each packet program asks for it once,
    // and runs with softirqs off.
    Some(unsafe { &mut *work })
}

/// A weight became 0.
#[inline(always)]
pub(crate) fn drain_begins() {
    if let Some(heart) = HEART.get_ptr_mut(0) {
        // SAFETY: a live, aligned map value; this word is written here only, and
        // changes of destinations come one at a time (`__ip_vs_mutex`).
        unsafe { (*heart).drains_begun += 1 };
    }
}

/// A weight is about to be set, or a destination to be removed.
#[inline(always)]
pub(crate) fn changes() {
    if let Some(heart) = HEART.get_ptr_mut(0) {
        // SAFETY: as in `drain_begins`.
        unsafe { (*heart).changes += 1 };
    }
}

/// Whether `--max-rate` leaves room for one answer more. Two CPUs that begin a
/// second at once may give a few too many.
#[inline(always)]
pub(crate) fn within_rate(now: u64) -> bool {
    let limit = u64::from(policy().max_rate);
    if limit == 0 {
        return true;
    }
    let Some(rate) = RATE.get_ptr_mut(0) else {
        return false;
    };
    let second = now / 1_000_000_000;
    // SAFETY: a live, aligned map value; lost updates cost exactness only.
    let rate = unsafe { &mut *rate };
    if rate.second != second {
        rate.second = second;
        rate.answers = 0;
    }
    if rate.answers >= limit {
        count(Stat::RateLimited);
        return false;
    }
    rate.answers += 1;
    true
}

/// Ethernet address of the device `index`.
#[inline(always)]
pub(crate) fn own_mac(index: u32) -> Option<[u8; 6]> {
    // SAFETY: the value is copied at once; user space writes it once.
    let [a, b, c, d, e, f, _, _] = *unsafe { MACS.get(index) }?;
    Some([a, b, c, d, e, f])
}

/// Whether the layout is being proved and this is the thread that does it.
#[inline(always)]
pub(crate) fn is_prover() -> bool {
    // SAFETY: as in `field`.
    let wanted = unsafe { core::ptr::read_volatile(&raw const PROOF_COMM) };
    bpf_get_current_comm() == Ok(wanted)
}

/// The user's filter.
#[inline(always)]
pub(crate) fn filter() -> Option<&'static Filter> {
    FILTER.get(0)
}

/// The note that the entry at `conn` shares with others.
#[inline(always)]
pub(crate) fn scheduled(conn: u64) -> Option<&'static mut Scheduled> {
    let note = SCHEDULED.get_ptr_mut(slot(conn))?;
    // SAFETY: a live, aligned map value. Another CPU may write it at the same
    // time; words are written whole, and a mixed note names no SYN that is known.
    Some(unsafe { &mut *note })
}

/// This CPU's scratch record.
#[inline(always)]
pub(crate) fn scratch() -> Option<&'static mut SynRecord> {
    let record = SCRATCH.get_ptr_mut(0)?;
    // SAFETY: a live map value of this CPU; kprobe programs do not nest on a
    // CPU (`bpf_prog_active`), and each run asks for it once.
    Some(unsafe { &mut *record })
}

/// This CPU's place to copy a packet to.
#[inline(always)]
pub(crate) fn copy() -> Option<&'static mut PacketRecord> {
    let record = COPY.get_ptr_mut(0)?;
    // SAFETY: as in `scratch`.
    Some(unsafe { &mut *record })
}

/// Adds one to a counter.
#[inline(always)]
pub(crate) fn count(stat: Stat) {
    if let Some(cell) = cell(stat) {
        // SAFETY: a live, aligned map value. Kprobe programs do not nest on a CPU
        // (`bpf_prog_active`); a packet program that interrupts one in the middle
        // of this costs one count.
        unsafe { *cell += 1 };
    }
}

/// The backup daemon has worked through the message of this number.
#[inline(always)]
pub(crate) fn heard(message: u32) {
    if let Some(cell) = cell(Stat::Heard) {
        // SAFETY: a live, aligned map value, written by this thread only.
        unsafe { *cell = u64::from(message) };
    }
}

#[inline(always)]
fn cell(stat: Stat) -> Option<*mut u64> {
    // SAFETY: the helper has no preconditions.
    let cpu = unsafe { bpf_get_smp_processor_id() };
    let row = STATS.get_ptr_mut(cpu)?;
    // SAFETY: a live map value, with a cell for each.
    Some(unsafe { &raw mut (*row)[stat as usize] })
}
