//! `--metrics`: figures for Prometheus, and whether the agent lives and is ready.

mod counts;
mod draining;
mod exposition;
mod health;
mod labels;
mod negotiation;
mod server;

use std::{fmt, path::PathBuf, sync::Arc};

use ipvs_guard_common::filter::Filter;

pub use self::{
    counts::{Counts, MAX_PAIRS},
    draining::MAX_DRAINING,
    exposition::NAMES,
    health::{Health, Stage},
    negotiation::Form,
    server::Server,
};
use self::{draining::Draining, exposition::Snapshot};
use crate::enforce::Tally;

/// Everything that a scrape tells, written by the agent and read by the server.
#[derive(Debug)]
pub struct Metrics {
    /// Events and losses.
    pub counts: Counts,
    /// Whether the agent lives and is ready.
    pub health: Health,
    /// What was enforced; there with `enforce` alone.
    pub enforced: Option<Arc<Tally>>,
}

impl Metrics {
    /// With nothing counted yet.
    pub fn new(enforced: Option<Arc<Tally>>) -> Self {
        Self {
            counts: Counts::default(),
            health: Health::default(),
            enforced,
        }
    }

    /// All of it as text, without the connections of draining destinations.
    ///
    /// # Errors
    /// None that can happen: text grows in memory.
    pub fn text(self: &Arc<Self>, form: Form) -> Result<String, fmt::Error> {
        Snapshot::take(self, None).encode(form)
    }

    fn draining(self: &Arc<Self>, scope: Scope) -> std::io::Result<Draining> {
        Draining::start(Arc::clone(self), scope)
    }
}

/// Whose connections to draining destinations are counted.
#[derive(Clone, Debug, Default)]
pub struct Scope {
    /// What is let through; its namespace, or the agent's own and those that drains
    /// began in.
    pub filter: Filter,
    /// Where that namespace is, if the user said so.
    pub netns: Option<PathBuf>,
}
