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
