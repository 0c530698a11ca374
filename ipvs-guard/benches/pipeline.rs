//! What the pipeline takes, from the ring buffer's records to NDJSON in a file, on one
//! CPU. Run by `cargo xtask bench pipeline`; prints, and judges nothing.
#![allow(clippy::unwrap_used, reason = "a measurement ends by panicking")]
#![allow(clippy::print_stdout, reason = "its figures are what it is for")]

use std::{
    env, fs,
    io::{self, Write},
    net::TcpListener,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use ipvs_guard::{
    clock::{self, Clock},
    event::Class,
    pipeline::{Pipeline, Watched},
    sink::{
        Human, Json, LogFile, Rotation, Sink,
        otlp::{Options, Otlp},
    },
};
use ipvs_guard_common::{
    addr::{Addr, Endpoint},
    event::{Header, Kind, SynRecord},
    state::ConnState,
};
use nix::{
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    sys::resource::{UsageWho, getrusage},
    unistd::Pid,
};
use zerocopy::IntoBytes as _;

/// Events of the measurement without a pace.
const EVENTS: u64 = 2_000_000;
/// Events a second of the others, and how long.
const PACE: u64 = 100_000;
const TIME: Duration = Duration::from_secs(10);
/// What the agent takes from the ring buffer at once.
const BURST: u64 = 1_024;
/// Events that may be on their way without a pace: fewer than a sink's queue has.
const ON_THE_WAY: u64 = 8_192;
/// The file is rotated by this, as an operator would have it.
const ROTATE: u64 = 64 << 20;

fn main() {
    match env::var("IPVS_GUARD_BENCH").as_deref() {
        Ok("unpaced") => unpaced(),
        Ok("paced") => paced("one NDJSON file", Vec::new()),
        Ok("stalled") => paced("one NDJSON file beside stalled sinks", stalled()),
        Ok(other) => panic!("no measurement is called {other}"),
        // Each in a process of its own, for memory's sake.
        Err(_) => {
            for which in ["unpaced", "paced", "stalled"] {
                let own = env::current_exe().unwrap();
                let mut child = Command::new(own);
                let status = child.env("IPVS_GUARD_BENCH", which).status().unwrap();
                assert!(status.success(), "{which}: {status}");
            }
        }
    }
}

/// Counts the lines that have reached the file.
struct Counted {
    file: LogFile,
    lines: Arc<AtomicU64>,
}

impl Write for Counted {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        let ends = bytes[..written].iter().filter(|byte| **byte == b'\n');
        self.lines.fetch_add(ends.count() as u64, Ordering::Relaxed);
        Ok(written)
    }
    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

struct Bench {
    pipeline: Pipeline,
    lines: Arc<AtomicU64>,
    emitted: u64,
    folder: tempfile::TempDir,
    begin: Instant,
    cpu: Duration,
}

impl Bench {
    fn start(more: Vec<Sink>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let lines = Arc::new(AtomicU64::new(0));
        let rotation = Rotation {
            size: Some(ROTATE),
            keep: 1,
        };
        let path = folder.path().join("events.json");
        let file = Counted {
            file: LogFile::open(&path, rotation, Arc::default()).unwrap(),
            lines: Arc::clone(&lines),
        };
        let mut sinks = vec![Sink::start("sink.file", "file", Json, file).unwrap()];
        sinks.extend(more);
        Self {
            pipeline: Pipeline::new(
                Class::ALL.to_vec(),
                sinks,
                None,
                "node-1.example.org".into(),
                Clock::read().unwrap(),
            ),
            lines,
            emitted: 0,
            folder,
            begin: Instant::now(),
            cpu: cpu_time(),
        }
    }

    fn emit(&mut self, events: u64) {
        for number in self.emitted..self.emitted + events {
            self.pipeline.record(record(number).as_bytes());
        }
        self.emitted += events;
    }

    /// Waits until the file has all, and prints. Only what is lost never comes.
    fn report(self, what: &str) {
        let mut before = u64::MAX;
        loop {
            let lines = self.lines.load(Ordering::Relaxed);
            if lines >= self.emitted || lines == before {
                break;
            }
            before = lines;
            thread::sleep(Duration::from_millis(100));
        }
        let lines = self.lines.load(Ordering::Relaxed);
        let took = self.begin.elapsed();
        let cpu = cpu_time() - self.cpu;
        println!(
            "pipeline: {what}: {:.0} events/s for {:.1} s on one CPU, {:.0} events a second of \
             CPU time ({:.0}% busy), {} lost of {}, peak RSS {:.1} MB",
            self.emitted as f64 / took.as_secs_f64(),
            took.as_secs_f64(),
            self.emitted as f64 / cpu.as_secs_f64(),
            100.0 * cpu.as_secs_f64() / took.as_secs_f64(),
            self.emitted.saturating_sub(lines),
            self.emitted,
            peak_rss() as f64 / 1e6,
        );
        let patience = Duration::from_millis(200);
        self.pipeline.finish(Watched::For(took), false, patience);
        drop(self.folder);
    }
}

/// As fast as it goes, no faster than the file takes them.
fn unpaced() {
    one_cpu();
    let mut bench = Bench::start(Vec::new());
    while bench.emitted < EVENTS {
        bench.emit(BURST);
        while bench.emitted - bench.lines.load(Ordering::Relaxed) > ON_THE_WAY {
            thread::sleep(Duration::from_micros(100));
        }
    }
    bench.report("as fast as one NDJSON file takes them");
}

/// At [`PACE`].
fn paced(what: &str, more: Vec<Sink>) {
    one_cpu();
    let mut bench = Bench::start(more);
    while bench.begin.elapsed() < TIME {
        let due = (bench.begin.elapsed().as_secs_f64() * PACE as f64) as u64;
        while bench.emitted < due {
            let events = (due - bench.emitted).min(BURST);
            bench.emit(events);
        }
        thread::sleep(Duration::from_millis(1));
    }
    bench.report(&format!("{PACE} events/s into {what}"));
}

/// A writer that never comes back.
struct Stuck;

impl Write for Stuck {
    fn write(&mut self, _: &[u8]) -> io::Result<usize> {
        loop {
            thread::park();
        }
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A terminal and a file that stand still, a receiver of OTLP that never answers over
/// either transport.
fn stalled() -> Vec<Sink> {
    let mut sinks = vec![
        Sink::start("sink.stdout", "terminal", Human::new(false, true), Stuck).unwrap(),
        Sink::start("sink.other", "other", Json, Stuck).unwrap(),
    ];
    for scheme in ["grpc", "http"] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("{scheme}://{}", listener.local_addr().unwrap());
        // It listens as long as the process lives.
        std::mem::forget(listener);
        let options = Options::from_env(|_| None).unwrap();
        let endpoint = options.endpoint(&url).unwrap();
        let otlp = Otlp::new(endpoint, options, "node-1").unwrap();
        sinks.push(Sink::hand_to("sink.otlp", url, otlp).unwrap());
    }
    sinks
}

/// A stale SYN of one of many clients, services and servers.
fn record(number: u64) -> SynRecord {
    let [.., a, b, c] = number.to_be_bytes();
    SynRecord {
        header: Header::new(Kind::Stale, 0, clock::monotonic()),
        netns: 4_026_531_840,
        seq: (number as u32).wrapping_mul(2_654_435_761),
        client: Endpoint::new(
            Addr::v4([10, a, b, c]),
            (32_768 + u16::from(c)).to_be_bytes(),
        ),
        vip: Endpoint::new(Addr::v4([203, 0, 113, c % 32]), 443_u16.to_be_bytes()),
        dest: Endpoint::new(Addr::v4([198, 51, 100, b]), 8_443_u16.to_be_bytes()),
        dest_flags: 1,
        state: ConnState::TimeWait as u16,
        protocol: 6,
        ..SynRecord::default()
    }
}

/// This process, with every thread that it starts, on one of the CPUs it may use.
fn one_cpu() {
    let own = Pid::from_raw(0);
    let may = sched_getaffinity(own).unwrap();
    let mut one = CpuSet::new();
    let last = (0..CpuSet::count()).rfind(|cpu| may.is_set(*cpu).unwrap());
    one.set(last.unwrap()).unwrap();
    sched_setaffinity(own, &one).unwrap();
}

/// Of all threads so far.
fn cpu_time() -> Duration {
    let usage = getrusage(UsageWho::RUSAGE_SELF).unwrap();
    let of = |time: nix::sys::time::TimeVal| {
        Duration::from_micros(u64::try_from(time.tv_sec() * 1_000_000 + time.tv_usec()).unwrap())
    };
    of(usage.user_time()) + of(usage.system_time())
}

/// In bytes.
fn peak_rss() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:"));
    let kilobytes = line.unwrap().split_whitespace().nth(1).unwrap();
    kilobytes.parse::<u64>().unwrap() * 1_024
}
