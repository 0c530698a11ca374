//! One event to every sink.

use std::{sync::Arc, thread, time::Duration};

use crate::{event::Event, pipeline::Summary, sink::Sink};

/// The sinks of a pipeline.
pub(super) struct Fanout {
    sinks: Vec<Sink>,
}

impl Fanout {
    pub(super) const fn new(sinks: Vec<Sink>) -> Self {
        Self { sinks }
    }

    pub(super) fn sinks(&self) -> &[Sink] {
        &self.sinks
    }

    pub(super) fn offer(&self, event: &Arc<Event>) {
        for sink in &self.sinks {
            sink.offer(event);
        }
    }

    /// Hands over a report of losses, which is no event that could be lost;
    /// whether the first sink took it.
    pub(super) fn offer_report(&self, event: &Arc<Event>) -> bool {
        let mut taken = true;
        for (i, sink) in self.sinks.iter().enumerate() {
            let accepted = sink.offer_report(event);
            taken &= accepted || i > 0;
        }
        taken
    }

    /// Ends all of them at the same time: one that does not come to its end takes
    /// nothing from another's.
    pub(super) fn finish(self, summary: &Summary, patience: Duration) {
        thread::scope(|scope| {
            for sink in self.sinks {
                scope.spawn(move || sink.finish(summary.clone(), patience));
            }
        });
    }
}
