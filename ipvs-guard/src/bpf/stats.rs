//! Counters of the kernel side, read through a mapping of their map: a system
//! call on a map would keep kprobes on this CPU from running meanwhile
//! (`bpf_disable_instrumentation`, from 5.4).

use std::{os::fd::AsFd, os::fd::AsRawFd};

use aya::maps::{Map, MapData};
use ipvs_guard_common::stats::{STATS, Stat};
use memmap2::{MmapOptions, MmapRaw};

use super::load::{BpfError, Loaded};

/// Names of the stages whose counters begin at 0 with each load.
pub const KERNEL_STAGES: [&str; Stat::LOSSES.len() + 1] = {
    let mut stages = ["probe"; Stat::LOSSES.len() + 1];
    let mut i = 0;
    while i < Stat::LOSSES.len() {
        stages[i] = Stat::LOSSES[i].1;
        i += 1;
    }
    stages
};

/// The mapped `STATS` map: a row of [`STATS`] counters a CPU.
pub struct Counters {
    rows: MmapRaw,
    cells: usize,
    /// Keeps the map alive.
    _map: MapData,
}

impl Counters {
    pub(super) fn map(map: Map) -> Result<Self, BpfError> {
        let Map::Array(map) = map else {
            return Err(BpfError::Absent {
                kind: "array map",
                name: "STATS",
            });
        };
        let cpus = aya::util::nr_cpus().map_or(1, |cpus| cpus);
        let cells = cpus * STATS;
        let rows = MmapOptions::new()
            .len(cells * size_of::<u64>())
            .map_raw_read_only(map.fd().as_fd().as_raw_fd())
            .map_err(|source| BpfError::Map {
                call: "mmap",
                map: "STATS",
                source,
            })?;
        Ok(Self {
            rows,
            cells,
            _map: map,
        })
    }

    /// One counter, over all CPUs.
    pub fn get(&self, stat: Stat) -> u64 {
        self.each(stat).sum()
    }

    fn each(&self, stat: Stat) -> impl Iterator<Item = u64> {
        (stat as usize..self.cells).step_by(STATS).map(|cell| {
            // SAFETY: within the mapping, which is page-aligned and lives as long as
            // self; the kernel writes whole words.
            unsafe { self.rows.as_ptr().cast::<u64>().add(cell).read_volatile() }
        })
    }

    /// The highest value of one counter on any CPU.
    pub fn latest(&self, stat: Stat) -> u64 {
        self.each(stat).max().unwrap_or_default()
    }

    /// Every loss that the kernel side counts, by stage; `missed` is what
    /// [`Self::missed`] said last.
    pub fn losses(&self, missed: u64) -> Vec<(&'static str, u64)> {
        let mut losses: Vec<_> = Stat::LOSSES
            .iter()
            .map(|(stat, stage)| (*stage, self.get(*stat)))
            .collect();
        losses.push(("probe", missed));
        losses
    }

    /// Runs of the programs that the kernel left out because one was running on
    /// that CPU already (`recursion_misses`, from 5.12; 0 where it is not told).
    pub fn missed(&self, loaded: &Loaded) -> u64 {
        missed(loaded)
    }
}

fn missed(loaded: &Loaded) -> u64 {
    loaded
        .programs()
        .filter_map(|(_, program)| program.fd().ok())
        .filter_map(|fd| {
            let path = format!("/proc/self/fdinfo/{}", fd.as_fd().as_raw_fd());
            let text = std::fs::read_to_string(path).ok()?;
            let line = text
                .lines()
                .find_map(|line| line.strip_prefix("recursion_misses:"))?;
            line.trim().parse::<u64>().ok()
        })
        .sum()
}

/// Number of eBPF programs loaded on this node, whoever loaded them.
pub fn loaded_programs() -> usize {
    aya::programs::loaded_programs().count()
}
