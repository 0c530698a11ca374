//! From the ring buffer's bytes to the sinks.

mod aggregate;
mod fanout;
mod losses;
pub(crate) mod ring;
mod translate;

use std::sync::Arc;

use ipvs_guard_common::decode::Record;
use tokio::sync::Notify;

use self::{aggregate::Aggregate, fanout::Fanout, translate::Translator};
pub use self::{
    aggregate::{Summary, SummaryRow, Watched},
    losses::Losses,
};
use crate::{
    clock::Clock,
    event::{Action, Class, Event},
    metrics::Metrics,
    names::Names,
    sink::Sink,
};

/// Decodes, counts and hands out what the kernel side reports.
pub struct Pipeline {
    translator: Translator,
    aggregate: Aggregate,
    fanout: Fanout,
    classes: Vec<Class>,
    losses: Losses,
    metrics: Option<Arc<Metrics>>,
    names: Names,
    /// Events that may still be handed out.
    left: u64,
}

impl Pipeline {
    /// A pipeline for `classes` into `sinks`, that ends after `max_events`.
    pub fn new(
        classes: Vec<Class>,
        sinks: Vec<Sink>,
        max_events: Option<u64>,
        host: Arc<str>,
        clock: Clock,
    ) -> Self {
        Self {
            translator: Translator::new(host, clock),
            aggregate: Aggregate::new(),
            fanout: Fanout::new(sinks),
            classes,
            losses: Losses::default(),
            metrics: None,
            names: Names::default(),
            left: max_events.unwrap_or(u64::MAX),
        }
    }

    /// Counts for scrapes from here on.
    pub fn count_into(&mut self, metrics: Arc<Metrics>) {
        self.metrics = Some(metrics);
        self.tell_losses();
    }

    /// What names services and destinations from now on.
    pub fn set_names(&mut self, names: Names) {
        self.names = names;
    }

    /// Bit of `ip_vs_dest.flags` that says "part of its service".
    pub fn set_available_bit(&mut self, mask: u32) {
        self.translator.set_available_bit(mask);
    }

    /// The clocks were read again.
    pub fn set_clock(&mut self, clock: Clock) {
        self.translator.set_clock(clock);
    }

    /// Takes one record from the ring buffer.
    pub fn record(&mut self, bytes: &[u8]) {
        if self.is_done() {
            return;
        }
        if let Some(record) = self.decode(bytes) {
            self.accept(&record, Action::Observed);
        }
    }

    /// A record from the ring buffer's bytes; what is none is counted as lost.
    pub fn decode(&mut self, bytes: &[u8]) -> Option<Record> {
        match ipvs_guard_common::decode::record(bytes) {
            Ok(record) => Some(record),
            Err(error) => {
                log::debug!("{error}");
                self.losses.add("decode", 1);
                None
            }
        }
    }

    /// Takes a record of which is known what was done.
    pub fn accept(&mut self, record: &Record, action: Action) {
        if self.is_done() {
            return;
        }
        if let Some(mut event) = self.translator.event(record) {
            if event.class == Class::StaleReuse {
                event.action = action;
            }
            self.aggregate.count(&event);
            self.hand_out(event);
        }
    }

    /// Reports what was lost since the last call; `totals` are the counters of
    /// the kernel side by stage.
    pub fn report_losses(&mut self, totals: &[(&'static str, u64)]) {
        for (stage, total) in totals {
            self.losses.set(stage, *total);
        }
        for sink in self.fanout.sinks() {
            self.losses.set(sink.stage(), sink.lost());
        }
        self.tell_losses();
        let wanted = self.classes.contains(&Class::Loss);
        if !wanted {
            return;
        }
        for (number, sink) in self.fanout.sinks().iter().enumerate() {
            for (stage, count) in self.losses.unreported(number) {
                // A report that finds a queue full is made again with the next ones.
                let event = Arc::new(self.translator.loss(stage, count));
                if sink.offer_report(&event) {
                    self.losses.settle(number, stage, count);
                }
            }
        }
    }

    /// A new kernel side starts its counters at 0.
    pub fn restart_losses(&mut self, stages: &[&'static str]) {
        self.losses.restart(stages);
    }

    /// Whether `max_events` have been handed out.
    pub const fn is_done(&self) -> bool {
        self.left == 0
    }

    /// Notified when the reader of the first sink, the terminal or a pipe, has gone.
    pub fn reader_gone(&self) -> Arc<Notify> {
        self.fanout
            .sinks()
            .first()
            .map_or_else(|| Arc::new(Notify::new()), Sink::gone)
    }

    /// Hands the summary out and ends the sinks within `patience`; `filtered`:
    /// the kernel side let only some events through.
    pub fn finish(self, watched: Watched, filtered: bool, patience: std::time::Duration) {
        let mut summary = self.aggregate.summary(watched, self.losses.total());
        summary.filtered = filtered;
        summary.stale_watched = self.classes.contains(&Class::StaleReuse);
        self.fanout.finish(&summary, patience);
    }

    fn tell_losses(&mut self) {
        let Some(metrics) = &self.metrics else { return };
        for sink in self.fanout.sinks() {
            self.losses.set(sink.stage(), sink.lost());
        }
        for (stage, total) in self.losses.totals() {
            metrics.counts.set_lost(stage, total);
        }
    }

    fn hand_out(&mut self, mut event: Event) {
        if self.left == 0 || !self.classes.contains(&event.class) {
            return;
        }
        self.left -= 1;
        if let Some(metrics) = &self.metrics {
            metrics.counts.count(&event);
        }
        self.names.tell(&mut event);
        self.fanout.offer(&Arc::new(event));
    }
}
