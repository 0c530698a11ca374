//! The object file of this build, loaded for one layout and one purpose.

use std::io;

use aya::{
    Ebpf, EbpfLoader,
    maps::{Array, MapData, RingBuf},
    programs::{KProbe, Program, ProgramError, SchedClassifier, Xdp},
};
use ipvs_guard_common::{
    config::{self, COMM_LEN},
    filter::Filter,
    guard::{self, Policy},
    layout::KernelLayout,
    policy::SLOTS,
};
use thiserror::Error;
use zerocopy::{FromBytes, IntoBytes};

use super::stats::Counters;
use crate::pipeline::ring::Ring;

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/ipvs-guard-ebpf"));

/// Entries of a map that has no use: the kernel takes no empty map.
const UNUSED_ENTRIES: u32 = 16;
/// Bytes of the ring buffer while the layout is proved.
const PROOF_RING: u32 = 64 << 10;

/// What went wrong between the agent and the kernel's BPF.
#[derive(Debug, Error)]
pub enum BpfError {
    /// The kernel refuses the programs or maps.
    #[error("loading the eBPF programs: {0}")]
    Load(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// A map or program that this build has is not there.
    #[error("the eBPF object has no {kind} {name}")]
    Absent {
        /// "map" or "program".
        kind: &'static str,
        /// Its name.
        name: &'static str,
    },
    /// The kernel has no function to attach a probe to.
    #[error("probe {program} has no place: {source}")]
    Symbol {
        /// The program.
        program: &'static str,
        /// What is missing.
        source: crate::kernel::symbols::SymbolError,
    },
    /// A probe cannot be attached.
    #[error("attaching probe {program} to {symbol}: {source}")]
    Attach {
        /// The program.
        program: &'static str,
        /// The kernel function.
        symbol: &'static str,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The counters cannot be mapped, or the ring buffer not be watched.
    #[error("{call} of map {map}: {source}")]
    Map {
        /// The call that failed.
        call: &'static str,
        /// The map.
        map: &'static str,
        /// Why.
        source: io::Error,
    },
    /// A packet cannot be tried on a program.
    #[error("BPF_PROG_TEST_RUN of {program}: {source}")]
    Trial {
        /// The program.
        program: &'static str,
        /// Why.
        source: io::Error,
    },
}

/// What the programs are told before they are loaded.
#[derive(Clone, Copy, Debug)]
pub struct Options<'a> {
    /// Where kernel fields are.
    pub layout: &'a KernelLayout,
    /// Bits of [`ipvs_guard_common::config`].
    pub mode: u32,
    /// What is wanted.
    pub filter: Filter,
    /// Name of the thread that proves the layout; empty otherwise.
    pub proof_comm: &'a str,
    /// What is enforced, with [`config::ENFORCE`].
    pub policy: Policy,
}

/// Loaded programs and maps; all vanish when this is dropped.
pub struct Loaded {
    ebpf: Ebpf,
}

impl Loaded {
    /// Loads the object.
    ///
    /// # Errors
    /// [`BpfError::Load`] when the kernel refuses it.
    pub fn new(options: &Options<'_>) -> Result<Self, BpfError> {
        let cpus = aya::util::nr_cpus().map_err(|(file, source)| {
            BpfError::Load(format!("number of processors from {file}: {source}").into())
        })?;
        let mut comm = [0u8; COMM_LEN];
        let name = options.proof_comm.as_bytes();
        let shown = name.len().min(COMM_LEN - 1);
        comm[..shown].copy_from_slice(&name[..shown]);
        let log_level = log::max_level() as u8;
        let uses = |bits: u32| options.mode & bits != 0;
        let size = |used: bool, entries: u32| if used { entries } else { UNUSED_ENTRIES };
        let proving = uses(config::PROVE);
        let heals = uses(config::ENFORCE) && options.policy.action == guard::HEAL;
        let mut ebpf = EbpfLoader::new()
            // What this purpose has no use for takes no memory.
            .map_max_entries(
                "EVENTS",
                if proving {
                    PROOF_RING
                } else {
                    config::RING_BYTES
                },
            )
            .map_max_entries("SEEN", size(uses(config::STALE), config::SEEN_ENTRIES))
            .map_max_entries("SCHEDULED", size(uses(config::STALE), SLOTS))
            .map_max_entries(
                "EXPIRED",
                size(uses(config::RESCHEDULED), config::EXPIRED_ENTRIES),
            )
            .map_max_entries(
                "TRACE_DEPTH",
                size(uses(config::TRACE), config::TRACE_TASKS),
            )
            .map_max_entries(
                "TRACE_FRAMES",
                size(uses(config::TRACE), config::TRACE_TASKS * 2),
            )
            .map_max_entries("FLOWS", size(uses(config::ENFORCE), guard::FLOWS))
            .map_max_entries("VERDICTS", size(uses(config::ENFORCE), guard::VERDICTS))
            .map_max_entries("HELD", size(heals, guard::HELD))
            .map_max_entries("PARTING", size(heals, guard::PARTING))
            .map_max_entries("PARTING_OF", size(heals, guard::PARTING))
            .map_max_entries("REALS", size(uses(config::ENFORCE), guard::REALS))
            .map_max_entries("DRAINS", size(uses(config::ENFORCE), guard::DRAINS))
            .map_max_entries("MACS", size(uses(config::ENFORCE), config::XDP_DEVICES))
            .override_global("POLICY", options.policy.as_bytes(), true)
            .override_global("LAYOUT", options.layout.as_bytes(), true)
            .override_global("MODE", &options.mode, true)
            .override_global("PROOF_COMM", &comm, true)
            .override_global(aya_log::LEVEL, &log_level, false)
            .map_max_entries("STATS", cpus as u32)
            .load(OBJECT)
            .map_err(|error| BpfError::Load(error.into()))?;
        let filter = ebpf.map_mut("FILTER").ok_or(BpfError::Absent {
            kind: "map",
            name: "FILTER",
        })?;
        let bytes: FilterBytes = options.filter.as_bytes().try_into().map_err(|_| {
            BpfError::Load("the filter has another size than the kernel side's".into())
        })?;
        Array::<_, FilterBytes>::try_from(filter)
            .and_then(|mut array| array.set(0, bytes, 0))
            .map_err(|error| BpfError::Load(error.into()))?;
        Ok(Self { ebpf })
    }

    /// The ring buffer.
    ///
    /// # Errors
    /// [`BpfError`] when it was taken already or cannot be watched.
    pub fn ring_buffer(&mut self) -> Result<RingBuf<MapData>, BpfError> {
        let map = self.ebpf.take_map("EVENTS").ok_or(BpfError::Absent {
            kind: "map",
            name: "EVENTS",
        })?;
        RingBuf::try_from(map).map_err(|error| BpfError::Load(error.into()))
    }

    /// The ring buffer, watched by the running tokio reactor.
    ///
    /// # Errors
    /// As [`Self::ring_buffer`].
    pub(crate) fn ring(&mut self) -> Result<Ring, BpfError> {
        Ring::new(self.ring_buffer()?).map_err(|source| BpfError::Map {
            call: "epoll_ctl",
            map: "EVENTS",
            source,
        })
    }

    /// The counters of the kernel side.
    ///
    /// # Errors
    /// [`BpfError`] when they cannot be mapped.
    pub fn counters(&mut self) -> Result<Counters, BpfError> {
        let map = self.ebpf.take_map("STATS").ok_or(BpfError::Absent {
            kind: "map",
            name: "STATS",
        })?;
        Counters::map(map)
    }

    /// What the programs log, for `--log-level debug`.
    pub(crate) fn logger(&mut self) -> Option<aya_log::EbpfLogger<&'static dyn log::Log>> {
        match aya_log::EbpfLogger::init(&mut self.ebpf) {
            Ok(logger) => Some(logger),
            Err(error) => {
                log::debug!("no log of the eBPF programs: {error}");
                None
            }
        }
    }

    /// Takes a map out, to be read and written by its owner.
    pub(super) fn take(&mut self, name: &'static str) -> Result<aya::maps::Map, BpfError> {
        self.ebpf
            .take_map(name)
            .ok_or(BpfError::Absent { kind: "map", name })
    }

    /// The probe `name`, loaded.
    pub(super) fn probe(&mut self, name: &'static str) -> Result<&mut KProbe, BpfError> {
        let probe: &mut KProbe = self.program(name)?;
        if probe.fd().is_err() {
            probe.load().map_err(refused)?;
        }
        Ok(probe)
    }

    /// The TC program `name`, loaded.
    pub(super) fn classifier(
        &mut self,
        name: &'static str,
    ) -> Result<&mut SchedClassifier, BpfError> {
        let classifier: &mut SchedClassifier = self.program(name)?;
        if classifier.fd().is_err() {
            classifier.load().map_err(refused)?;
        }
        Ok(classifier)
    }

    /// The XDP program `name`, loaded.
    pub(super) fn xdp(&mut self, name: &'static str) -> Result<&mut Xdp, BpfError> {
        let xdp: &mut Xdp = self.program(name)?;
        if xdp.fd().is_err() {
            xdp.load().map_err(refused)?;
        }
        Ok(xdp)
    }

    fn program<'a, T>(&'a mut self, name: &'static str) -> Result<&'a mut T, BpfError>
    where
        &'a mut T: TryFrom<&'a mut Program, Error = ProgramError>,
    {
        self.ebpf
            .program_mut(name)
            .ok_or(BpfError::Absent {
                kind: "program",
                name,
            })?
            .try_into()
            .map_err(|error: ProgramError| BpfError::Load(error.into()))
    }

    /// All programs, by name.
    pub(super) fn programs(&self) -> impl Iterator<Item = (&str, &Program)> {
        self.ebpf.programs()
    }
}

fn refused(error: ProgramError) -> BpfError {
    let ProgramError::LoadError {
        io_error,
        verifier_log,
    } = &error
    else {
        return BpfError::Load(full(&error).into());
    };
    log::debug!("{verifier_log}");
    // The reason is in the last lines, before the statistics.
    let text = verifier_log.to_string();
    let reason = text
        .lines()
        .rev()
        .map(str::trim)
        .find(|line| {
            let statistics = ["verification time", "stack depth", "processed "];
            !line.is_empty() && !statistics.iter().any(|start| line.starts_with(start))
        })
        .unwrap_or("no reason given");
    BpfError::Load(format!("{io_error}: {reason}").into())
}

/// An error with its causes: aya's own text leaves them out.
pub(super) fn full(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        text.push_str(": ");
        text.push_str(&next.to_string());
        cause = next.source();
    }
    text
}

type FilterBytes = [u8; size_of::<Filter>()];

const _: () = {
    // The map's value type here and on the kernel side are the same bytes.
    const fn is_plain<T: FromBytes + IntoBytes>() {}
    is_plain::<Filter>();
};
