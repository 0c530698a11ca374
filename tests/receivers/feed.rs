//! Events into sinks, as the kernel side hands them over, and what the sinks say.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::Read as _,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use crate::said;
use ipvs_guard::{
    clock::{self, Clock},
    event::Class,
    pipeline::{Pipeline, Watched},
    sink::{Json, LogFile, Rotation, Sink},
};
use ipvs_guard_common::{
    addr::{Addr, Endpoint},
    event::{Header, Kind, SynRecord},
    state::ConnState,
};
use zerocopy::IntoBytes as _;

/// How long a thing that must happen may take on a slow machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);
/// Events that wait for a sink at most, and that it has in hand besides.
pub(crate) const WAITING: u64 = 16_384 + 512;

/// Numbered events into `sinks`.
pub(crate) struct Feed {
    pipeline: Pipeline,
    next: u32,
    pace: Option<Pace>,
}

/// No faster than the file of a sink is written: a debug build on a busy machine is slow.
struct Pace {
    file: File,
    lines: u64,
}

impl Pace {
    fn wait_for(&mut self, lines: u64) {
        let mut buffer = vec![0; 64 << 10];
        wait_until("the file is written", || {
            while let read @ 1.. = self.file.read(&mut buffer).unwrap() {
                let ends = buffer[..read].iter().filter(|byte| **byte == b'\n');
                self.lines += ends.count() as u64;
            }
            self.lines >= lines
        });
    }
}

impl Feed {
    pub(crate) fn into(sinks: Vec<Sink>) -> Self {
        said::listen();
        Self {
            pipeline: Pipeline::new(
                Class::ALL.to_vec(),
                sinks,
                None,
                "node-1".into(),
                Clock::read().unwrap(),
            ),
            next: 0,
            pace: None,
        }
    }

    /// Into `sink` and a file at `path`, which is written as fast as events come.
    pub(crate) fn beside(path: &Path, sink: Sink) -> Self {
        let file = file_sink(path);
        Self {
            pace: Some(Pace {
                file: File::open(path).unwrap(),
                lines: 0,
            }),
            ..Self::into(vec![sink, file])
        }
    }

    /// So many more, in bursts that a file keeps up with; losses are reported as the
    /// agent does.
    pub(crate) fn events(&mut self, number: u32) {
        const BURST: u32 = 100;
        let end = self.next + number;
        while self.next < end {
            for seq in self.next..(self.next + BURST).min(end) {
                self.pipeline.record(record(seq).as_bytes());
            }
            self.next = (self.next + BURST).min(end);
            match &mut self.pace {
                // Some of them may be reports of losses.
                Some(pace) if self.next.is_multiple_of(2_000) || self.next == end => {
                    pace.wait_for(self.next.into());
                }
                Some(_) => {}
                None => thread::sleep(Duration::from_millis(2)),
            }
        }
        self.pipeline.report_losses(&[]);
    }

    /// Reports what was lost since.
    pub(crate) fn report(&mut self) {
        self.pipeline.report_losses(&[]);
    }

    pub(crate) const fn emitted(&self) -> u64 {
        self.next as u64
    }

    /// Ends the sinks.
    pub(crate) fn finish(self, patience: Duration) {
        self.pipeline
            .finish(Watched::For(Duration::from_secs(1)), false, patience);
    }
}

/// A stale SYN whose sequence number is `seq`.
pub(crate) fn record(seq: u32) -> SynRecord {
    let [_, b, c, d] = seq.to_be_bytes();
    SynRecord {
        header: Header::new(Kind::Stale, 0, clock::monotonic()),
        netns: 4_026_531_840,
        seq,
        client: Endpoint::new(Addr::v4([10, b, c, d]), 40_000_u16.to_be_bytes()),
        vip: Endpoint::new(Addr::v4([203, 0, 113, 1]), 80_u16.to_be_bytes()),
        dest: Endpoint::new(Addr::v4([198, 51, 100, 2]), 8080_u16.to_be_bytes()),
        dest_flags: 1,
        state: ConnState::TimeWait as u16,
        protocol: 6,
        ..SynRecord::default()
    }
}

/// A sink of NDJSON into the file at `path`.
pub(crate) fn file_sink(path: &Path) -> Sink {
    let rotation = Rotation {
        size: None,
        keep: 0,
    };
    let file = LogFile::open(path, rotation, Default::default()).unwrap();
    Sink::start("sink.file", format!("{}", path.display()), Json, file).unwrap()
}

/// What an NDJSON file has: sequence numbers of stale SYNs, and losses by stage.
#[derive(Debug, Default)]
pub(crate) struct Written {
    pub(crate) sequence: Vec<u32>,
    pub(crate) lost: BTreeMap<String, u64>,
    /// Lines that are no event.
    pub(crate) torn: usize,
}

impl Written {
    pub(crate) fn read(path: &Path) -> Self {
        let mut written = Self::default();
        written.add(path);
        written
    }

    pub(crate) fn add(&mut self, path: &Path) {
        for line in fs::read_to_string(path).unwrap().lines() {
            let Ok(event) = serde_json::from_str::<serde_json::Value>(line) else {
                self.torn += 1;
                continue;
            };
            if event["event.name"] == "ipvs.loss" {
                let stage = event["ipvs.loss.stage"].as_str().unwrap().to_owned();
                *self.lost.entry(stage).or_default() += event["ipvs.loss.count"].as_u64().unwrap();
            } else {
                let seq = event["tcp.seq"].as_u64().unwrap();
                self.sequence.push(u32::try_from(seq).unwrap());
            }
        }
    }

    pub(crate) fn lost_at(&self, stage: &str) -> u64 {
        self.lost.get(stage).copied().unwrap_or(0)
    }

    /// Each event once, in the order they were emitted.
    pub(crate) fn has_all(&self, emitted: u64) {
        let expect: Vec<u32> = (0..u32::try_from(emitted).unwrap()).collect();
        assert_eq!(self.sequence.len(), expect.len(), "lines");
        assert!(self.sequence == expect, "another order");
        assert_eq!(self.torn, 0, "torn lines");
        assert_eq!(self.lost_at("sink.file"), 0, "lost in the file");
    }
}

/// What was said at level error or warn about `what`.
pub(crate) fn said(what: &str) -> Vec<String> {
    said::lines(|line| line.contains(what))
}

/// Waits until `condition` holds.
pub(crate) fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "it never came: {what}");
        thread::sleep(Duration::from_millis(10));
    }
}
