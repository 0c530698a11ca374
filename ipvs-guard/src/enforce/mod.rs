//! Enforcement: what is done about stale SYNs, on which devices, and for whom.

mod guard;
mod heal;
mod leftovers;
mod lock;
mod pending;
mod plan;
mod responder;
mod scanner;
mod tally;

use std::time::Duration;

use ipvs_guard_common::guard::{self as abi, Policy};

use crate::event;

pub use self::{
    guard::{Guard, check_interfaces},
    leftovers::{Leftover, sweep},
    lock::{Lock, LockError},
    tally::{Healed, Tally},
};

/// What is done about a stale SYN.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Action {
    /// Drop it.
    Drop,
    /// Answer it with a reset.
    Reset,
    /// Re-point its entry to a living destination of the service, so that nothing
    /// fails; reset where that cannot be.
    Heal,
}

/// A destination that answered within this time is not reset, when the user does
/// not say otherwise.
pub const UNLESS_ANSWERING: Duration = Duration::from_secs(3);

/// What is enforced.
#[derive(Clone, Debug)]
pub struct Settings {
    /// What is done.
    pub action: Action,
    /// Say what would be done, do nothing.
    pub dry_run: bool,
    /// How long a destination is left alone after its weight became 0.
    pub grace: Duration,
    /// A destination that answered within this time is left alone. When not given,
    /// nothing is healed any later for it, and nothing reset within
    /// [`UNLESS_ANSWERING`].
    pub unless_answering: Option<Duration>,
    /// How long a stale flow is remembered at most.
    pub ttl: Duration,
    /// Entry states acted on, bit n for `ip_vs_conn.state` n.
    pub states: u32,
    /// Answers a second at most; 0: no limit.
    pub max_rate: u32,
    /// Let persistence templates of destinations of weight 0 end, too.
    pub heal_persistent: bool,
    /// Devices by name; empty: all that carry traffic of IPVS.
    pub interfaces: Vec<String>,
}

impl Settings {
    /// What the programs are told; `netns` is the inode of the one namespace that
    /// is enforced, `now` is `CLOCK_MONOTONIC` in nanoseconds.
    pub fn policy(&self, netns: u32, now: u64) -> Policy {
        Policy {
            grace_ns: nanoseconds(self.grace),
            unless_answering_ns: nanoseconds(self.resets_unless()),
            heal_unless_answering_ns: nanoseconds(self.unless_answering.unwrap_or_default()),
            flow_ns: nanoseconds(self.ttl),
            started: now,
            netns,
            states: self.states,
            max_rate: self.max_rate,
            action: match self.action {
                Action::Drop => abi::DROP,
                Action::Reset => abi::RESET,
                Action::Heal => abi::HEAL,
            },
            dry_run: self.dry_run.into(),
            pad: 0,
        }
    }

    /// What a stale SYN's event says when all goes well.
    pub fn result(&self) -> event::Action {
        match (self.action, self.dry_run) {
            (Action::Drop, false) => event::Action::Dropped,
            (Action::Reset, false) => event::Action::Reset,
            (Action::Heal, false) => event::Action::Healed,
            (Action::Drop, true) => event::Action::WouldDrop,
            (Action::Reset, true) => event::Action::WouldReset,
            (Action::Heal, true) => event::Action::WouldHeal,
        }
    }

    /// A destination that answered within this time is not reset.
    pub(super) fn resets_unless(&self) -> Duration {
        self.unless_answering.unwrap_or(UNLESS_ANSWERING)
    }

    /// A destination that answered within this time is not enforced at all.
    fn acts_unless(&self) -> Duration {
        match self.action {
            Action::Heal => self.unless_answering.unwrap_or_default(),
            Action::Drop | Action::Reset => self.resets_unless(),
        }
    }
}

/// Centuries are as good as for ever.
fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
