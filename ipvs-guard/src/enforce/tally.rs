//! What enforcement did and does, for whoever counts.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// No number of flows is known.
const UNKNOWN: u64 = u64::MAX;

/// Counts that outlive a stay of ip_vs.
#[derive(Debug)]
pub struct Tally {
    flows: AtomicU64,
    heals: AtomicBool,
    healed: AtomicU64,
    failed: AtomicU64,
    templates: AtomicU64,
}

/// What became of entries that were to be healed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Healed {
    /// They lead to a living destination, or are gone.
    pub healed: u64,
    /// Attempts after which they were where they had been.
    pub failed: u64,
    /// Persistence templates that were let end.
    pub templates: u64,
}

impl Healed {
    /// Each by the value of the label `result`.
    pub fn results(&self) -> [(&'static str, u64); 3] {
        let Self {
            healed,
            failed,
            templates,
        } = *self;
        [
            ("healed", healed),
            ("failed", failed),
            ("template_ended", templates),
        ]
    }
}

impl Default for Tally {
    fn default() -> Self {
        Self {
            flows: AtomicU64::new(UNKNOWN),
            heals: AtomicBool::new(false),
            healed: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            templates: AtomicU64::new(0),
        }
    }
}

impl Tally {
    /// Flows that are turned away before IPVS now; `None` when that is not known.
    pub fn set_flows(&self, flows: Option<u64>) {
        self.flows
            .store(flows.unwrap_or(UNKNOWN), Ordering::Relaxed);
    }

    /// As [`Self::set_flows`] was told.
    pub fn flows(&self) -> Option<u64> {
        Some(self.flows.load(Ordering::Relaxed)).filter(|flows| *flows != UNKNOWN)
    }

    /// Entries are healed in this run.
    pub fn heal(&self) {
        self.heals.store(true, Ordering::Relaxed);
    }

    /// Counts what became of entries.
    pub fn add(&self, more: Healed) {
        let Healed {
            healed,
            failed,
            templates,
        } = more;
        for (count, more) in [
            (&self.healed, healed),
            (&self.failed, failed),
            (&self.templates, templates),
        ] {
            count.fetch_add(more, Ordering::Relaxed);
        }
    }

    /// What became of entries so far; `None` when none are healed in this run.
    pub fn healed(&self) -> Option<Healed> {
        let heals = self.heals.load(Ordering::Relaxed);
        heals.then(|| Healed {
            healed: self.healed.load(Ordering::Relaxed),
            failed: self.failed.load(Ordering::Relaxed),
            templates: self.templates.load(Ordering::Relaxed),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_known_is_none() {
        let tally = Tally::default();
        assert_eq!((tally.flows(), tally.healed()), (None, None));
        tally.heal();
        tally.set_flows(Some(0));
        let more = Healed {
            healed: 2,
            failed: 1,
            templates: 0,
        };
        tally.add(more);
        tally.add(more);
        assert_eq!(tally.flows(), Some(0));
        assert_eq!(
            tally.healed().map(|healed| healed.results()),
            Some([("healed", 4), ("failed", 2), ("template_ended", 0)])
        );
        tally.set_flows(None);
        assert_eq!(tally.flows(), None);
    }
}
