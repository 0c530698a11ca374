//! What was lost, by stage.

use std::collections::BTreeMap;

/// Counters of losses, and what of them was reported.
#[derive(Debug, Default)]
pub struct Losses {
    stages: BTreeMap<&'static str, Counter>,
}

#[derive(Debug, Default)]
struct Counter {
    /// Up to the last restart of its source.
    before: u64,
    total: u64,
    /// To each sink.
    reported: Vec<u64>,
}

impl Losses {
    /// Adds to a counter that user space keeps.
    pub fn add(&mut self, stage: &'static str, count: u64) {
        self.stages.entry(stage).or_default().total += count;
    }

    /// Sets a counter to what its source says.
    pub fn set(&mut self, stage: &'static str, total: u64) {
        let counter = self.stages.entry(stage).or_default();
        counter.total = counter.total.max(counter.before + total);
    }

    /// The sources of `stages` begin at 0 again.
    pub fn restart(&mut self, stages: &[&'static str]) {
        for stage in stages {
            if let Some(counter) = self.stages.get_mut(stage) {
                counter.before = counter.total;
            }
        }
    }

    /// What was not reported yet to the sink of this number, by stage.
    pub fn unreported(&self, sink: usize) -> Vec<(&'static str, u64)> {
        let reported = |counter: &Counter| counter.reported.get(sink).copied().unwrap_or(0);
        self.stages
            .iter()
            .map(|(stage, counter)| (*stage, counter.total - reported(counter)))
            .filter(|(_, count)| *count > 0)
            .collect()
    }

    /// `count` losses at `stage` have been reported to the sink of this number.
    pub fn settle(&mut self, sink: usize, stage: &'static str, count: u64) {
        if let Some(counter) = self.stages.get_mut(stage) {
            if counter.reported.len() <= sink {
                counter.reported.resize(sink + 1, 0);
            }
            counter.reported[sink] += count;
        }
    }

    /// Losses so far, by stage.
    pub fn totals(&self) -> impl Iterator<Item = (&'static str, u64)> {
        self.stages
            .iter()
            .map(|(stage, counter)| (*stage, counter.total))
    }

    /// All losses of all stages.
    pub fn total(&self) -> u64 {
        self.stages.values().map(|counter| counter.total).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_loss_is_reported_once() {
        let mut losses = Losses::default();
        losses.set("ring", 3);
        losses.add("decode", 1);
        assert_eq!(losses.unreported(0), [("decode", 1), ("ring", 3)]);
        losses.settle(0, "ring", 3);
        assert_eq!(losses.unreported(0), [("decode", 1)]);
        losses.settle(0, "decode", 1);
        losses.set("ring", 5);
        assert_eq!(losses.unreported(0), [("ring", 2)]);
        losses.settle(0, "ring", 2);
        losses.restart(&["ring"]);
        losses.set("ring", 4);
        assert_eq!(losses.unreported(0), [("ring", 4)]);
        assert_eq!(losses.total(), 10);
    }

    #[test]
    fn a_sink_that_took_no_report_gets_it_later_and_another_not_twice() {
        let mut losses = Losses::default();
        losses.add("decode", 2);
        losses.settle(1, "decode", 2);
        losses.add("decode", 3);
        assert_eq!(losses.unreported(0), [("decode", 5)]);
        assert_eq!(losses.unreported(1), [("decode", 3)]);
    }
}
