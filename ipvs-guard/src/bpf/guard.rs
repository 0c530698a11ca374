//! The maps that enforcement goes by.

use std::{
    io,
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
    sync::atomic::{AtomicU64, Ordering},
};

use aya::maps::{HashMap, Map, MapData, MapError};
use ipvs_guard_common::{
    addr::Endpoint,
    guard::{Flow, FlowKey, Heart, NOTE, NOTES, NOTES_HEADER, Real, RealNote, SURVEY, SURVEYED},
};
use memmap2::{MmapOptions, MmapRaw};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::{
    load::{BpfError, Loaded},
    run::Run,
};
use crate::clock::monotonic;

type Bytes<const N: usize> = [u8; N];
const ENDPOINT: usize = size_of::<Endpoint>();
const REAL: usize = size_of::<Real>();
const FLOW_KEY: usize = size_of::<FlowKey>();
const FLOW: usize = size_of::<Flow>();

/// Flows and real servers.
pub struct GuardMaps {
    flows: HashMap<MapData, Bytes<FLOW_KEY>, Bytes<FLOW>>,
    reals: HashMap<MapData, Bytes<ENDPOINT>, Bytes<REAL>>,
    noter: OwnedFd,
    surveyor: OwnedFd,
}

pub(super) const ONCE: Run = Run {
    repeat: 1,
    flags: 0,
};

/// A map refused an entry.
#[derive(Debug, thiserror::Error)]
#[error("map {map}: {source}")]
pub struct GuardMapError {
    map: &'static str,
    source: MapError,
}

impl GuardMaps {
    /// Takes both maps.
    ///
    /// # Errors
    /// [`BpfError`] when this build does not have them.
    pub fn take(loaded: &mut Loaded) -> Result<Self, BpfError> {
        Ok(Self {
            flows: HashMap::try_from(loaded.take("FLOWS")?)
                .map_err(|error| BpfError::Load(error.into()))?,
            reals: HashMap::try_from(loaded.take("REALS")?)
                .map_err(|error| BpfError::Load(error.into()))?,
            noter: runnable(loaded, NOTE)?,
            surveyor: runnable(loaded, SURVEY)?,
        })
    }

    /// Makes real servers known, or has them forgotten, and fills in what is known
    /// of them. By a program, as [`Self::note_flows`].
    ///
    /// # Errors
    /// That of running the program.
    pub fn survey(&self, notes: &mut [RealNote]) -> io::Result<()> {
        for chunk in notes.chunks_mut(SURVEYED) {
            let mut frame = vec![0u8; NOTES_HEADER];
            frame.extend_from_slice(chunk.as_bytes());
            let (tried, _) = ONCE.on(self.surveyor.as_fd(), &frame)?;
            let filled = tried.bytes.get(NOTES_HEADER..).unwrap_or_default();
            for (note, bytes) in chunk.iter_mut().zip(filled.chunks(size_of::<RealNote>())) {
                if let Ok(read) = RealNote::read_from_bytes(bytes) {
                    *note = read;
                }
            }
        }
        Ok(())
    }

    /// Sets what is known of a real server.
    ///
    /// # Errors
    /// [`GuardMapError`] when the map is full.
    pub fn set_real(&mut self, endpoint: &Endpoint, real: &Real) -> Result<(), GuardMapError> {
        done("REALS", self.reals.insert(bytes(endpoint), bytes(real), 0))
    }

    /// Sets what is known of a flow.
    ///
    /// # Errors
    /// [`GuardMapError`] when the kernel refuses it.
    pub fn set_flow(&mut self, key: &FlowKey, flow: &Flow) -> Result<(), GuardMapError> {
        done("FLOWS", self.flows.insert(bytes(key), bytes(flow), 0))
    }

    /// Notes up to [`NOTES`] flows; of one that is known, the SYN that was answered
    /// last is kept. By a program: a system call on the map would keep the probes on
    /// this CPU from running meanwhile, and there can be ten thousands.
    ///
    /// # Errors
    /// That of running the program.
    pub fn note_flows(&self, flows: &[(FlowKey, Flow)]) -> io::Result<()> {
        for chunk in flows.chunks(NOTES) {
            let mut frame = vec![0u8; NOTES_HEADER];
            for (key, flow) in chunk {
                frame.extend_from_slice(key.as_bytes());
                frame.extend_from_slice(flow.as_bytes());
            }
            ONCE.on(self.noter.as_fd(), &frame)?;
        }
        Ok(())
    }
}

pub(super) fn runnable(loaded: &mut Loaded, program: &'static str) -> Result<OwnedFd, BpfError> {
    let fd = loaded
        .classifier(program)?
        .fd()
        .map_err(|error| BpfError::Load(error.into()))?
        .as_fd()
        .try_clone_to_owned();
    fd.map_err(|error| BpfError::Load(error.into()))
}

fn bytes<T: IntoBytes + Immutable, const N: usize>(value: &T) -> Bytes<N> {
    // The sizes are those of the map types above.
    value.as_bytes().try_into().unwrap_or([0; N])
}

fn done(map: &'static str, result: Result<(), MapError>) -> Result<(), GuardMapError> {
    result.map_err(|source| GuardMapError { map, source })
}

/// The mapped `HEART` map: beating costs no system call, which would keep
/// kprobes on this CPU from running meanwhile.
pub struct HeartMap {
    page: MmapRaw,
    /// How often a beat came too late, and when the last of these did.
    lapses: AtomicU64,
    valid_from: AtomicU64,
    /// Keeps the map alive.
    _map: MapData,
}

impl HeartMap {
    /// Takes and maps it.
    ///
    /// # Errors
    /// [`BpfError`] when it cannot be mapped.
    pub fn take(loaded: &mut Loaded) -> Result<Self, BpfError> {
        const NAME: &str = "HEART";
        let Map::Array(map) = loaded.take(NAME)? else {
            return Err(BpfError::Absent {
                kind: "array map",
                name: NAME,
            });
        };
        let page = MmapOptions::new()
            .len(size_of::<Heart>())
            .map_raw(map.fd().as_fd().as_raw_fd())
            .map_err(|source| BpfError::Map {
                call: "mmap",
                map: NAME,
                source,
            })?;
        Ok(Self {
            page,
            lapses: AtomicU64::new(0),
            valid_from: AtomicU64::new(0),
            _map: map,
        })
    }

    fn word(&self, offset: usize) -> *mut u64 {
        // SAFETY: within the mapping, which is as long as a Heart.
        unsafe { self.page.as_mut_ptr().add(offset).cast() }
    }

    /// Lets the programs act until `deadline` (`CLOCK_MONOTONIC`, nanoseconds).
    pub fn beat(&self, deadline: u64) {
        let (before, now) = (self.deadline(), monotonic());
        if before != 0 && before <= now && deadline > now {
            self.valid_from.store(now, Ordering::Relaxed);
            self.lapses.fetch_add(1, Ordering::Relaxed);
        }
        // SAFETY: aligned and within the page-aligned mapping; the kernel reads
        // whole words.
        unsafe {
            self.word(std::mem::offset_of!(Heart, deadline))
                .write_volatile(deadline);
        }
    }

    fn deadline(&self) -> u64 {
        // SAFETY: as in `beat`.
        unsafe {
            self.word(std::mem::offset_of!(Heart, deadline))
                .read_volatile()
        }
    }

    /// Whether the programs act.
    pub fn beats(&self) -> bool {
        monotonic() < self.deadline()
    }

    /// How often a beat came after the deadline of the one before: everything passed in
    /// between, and what was learnt before is old.
    pub fn lapses(&self) -> u64 {
        self.lapses.load(Ordering::Relaxed)
    }

    /// Since when no beat was late (`CLOCK_MONOTONIC`, nanoseconds).
    pub fn valid_from(&self) -> u64 {
        self.valid_from.load(Ordering::Relaxed)
    }

    /// [`Heart::drains_begun`].
    pub fn drains_begun(&self) -> u64 {
        // SAFETY: as in `beat`; the kernel writes whole words.
        unsafe {
            self.word(std::mem::offset_of!(Heart, drains_begun))
                .read_volatile()
        }
    }

    /// [`Heart::changes`].
    pub fn changes(&self) -> u64 {
        // SAFETY: as in `drains_begun`.
        unsafe {
            self.word(std::mem::offset_of!(Heart, changes))
                .read_volatile()
        }
    }

    /// Whether no destination has weight 0 ([`Heart::is_calm`]).
    pub fn is_calm(&self) -> bool {
        // SAFETY: as in `drains_begun`; this side writes the word.
        let settled = unsafe {
            self.word(std::mem::offset_of!(Heart, drains_settled))
                .read_volatile()
        };
        self.drains_begun() == settled
    }

    /// Sets [`Heart::drains_settled`].
    pub fn settle(&self, drains: u64) {
        // SAFETY: as in `beat`.
        unsafe {
            self.word(std::mem::offset_of!(Heart, drains_settled))
                .write_volatile(drains);
        }
    }
}
