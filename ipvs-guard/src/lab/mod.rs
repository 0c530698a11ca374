//! The incident in a bottle: IPVS, its clients and servers in private network
//! namespaces on this kernel.
//!
//! Nothing of the node is touched, and nothing can stay behind: everything is
//! held by descriptors, threads and sockets of this process. All the node may
//! notice is that the kernel loads the scheduler's module when it is not there.

pub mod client;
mod error;
mod guard;
mod report;
mod server;
pub mod topology;

use std::thread;
use std::time::{Duration, Instant};

use caps::{CapSet, Capability};
use clap::{Args, ValueEnum};
use ipvs_guard_common::state::ConnState;
use serde::Serialize;

pub use error::{Kind, LabError};
pub use report::{Drain, Report, Row, Spread};

use crate::netlink::conntable::ConnEntry;
use crate::netlink::ipvs::{Family, IpvsSocket};
use client::Limits;
use guard::Guard;
use topology::Topology;

/// The first source port. Above the range that clients are given by themselves
/// (net.ipv4.ip_local_port_range), so that none of these is taken.
const FIRST_PORT: u16 = 61_000;
/// As many ports as there are from [`FIRST_PORT`] on.
const CONNECTIONS_MAX: i64 = (u16::MAX - FIRST_PORT) as i64 + 1;

/// How often the counters are read while the dead server should drain.
const DRAIN_POLL: Duration = Duration::from_millis(50);

/// How long the withdrawn backend is silent before clients come again, where a
/// guard is shown: it leaves alone who answered within the last 3 s.
const SILENCE: Duration = Duration::from_millis(3_500);

/// The backend that is withdrawn.
const WITHDRAWN: usize = 0;

/// What is done about stale SYNs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Action {
    /// Nothing: the incident as it happens on an unguarded node.
    None,
    /// `enforce --action drop`, beside none.
    Drop,
    /// `enforce --action reset`, beside none.
    Reset,
    /// `enforce --action heal`, beside none.
    Heal,
    /// Each of them.
    All,
}

impl Action {
    /// What is tried, one after the other.
    const fn steps(self) -> &'static [Step] {
        match self {
            Self::None => &[Step::None],
            Self::Drop => &[Step::None, Step::Drop],
            Self::Reset => &[Step::None, Step::Reset],
            Self::Heal => &[Step::None, Step::Heal],
            Self::All => &[Step::None, Step::Drop, Step::Reset, Step::Heal],
        }
    }
}

/// What is tried in a row of the report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Step {
    /// No guard.
    None,
    /// `enforce --action drop`.
    Drop,
    /// `enforce --action reset`.
    Reset,
    /// `enforce --action heal`.
    Heal,
}

impl Step {
    /// As `enforce --action` names it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Drop => "drop",
            Self::Reset => "reset",
            Self::Heal => "heal",
        }
    }
}

/// How the report is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// A table.
    Human,
    /// One JSON object.
    Json,
}

/// What the lab is to do.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// What is done about stale SYNs
    #[arg(long, env = "IPVS_GUARD_ACTION", value_enum, default_value_t = Action::None)]
    pub action: Action,

    /// Connections to make before the backend is withdrawn, and again after it
    #[arg(long, env = "IPVS_GUARD_CONNECTIONS", value_name = "N", default_value_t = 100,
          value_parser = clap::value_parser!(u16).range(2..=CONNECTIONS_MAX))]
    pub connections: u16,

    /// How long to wait for the withdrawn backend to lose its connections, once the
    /// last one was tried; 0s to look once
    #[arg(long, env = "IPVS_GUARD_DRAIN_TIMEOUT", value_name = "T", default_value = "3s",
          value_parser = crate::settings::time)]
    pub drain_timeout: Duration,

    /// How to print the report
    #[arg(long, env = "IPVS_GUARD_FORMAT", value_enum, default_value_t = Format::Human)]
    pub format: Format,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            action: Action::None,
            connections: 100,
            drain_timeout: Duration::from_secs(3),
            format: Format::Human,
        }
    }
}

/// Whether the lab can run here: privileges and ip_vs. Loads nothing.
///
/// # Errors
/// What is missing.
pub fn check() -> Result<(), LabError> {
    let missing: Vec<_> = [Capability::CAP_NET_ADMIN, Capability::CAP_SYS_ADMIN]
        .into_iter()
        .filter(|capability| !caps::has_cap(None, CapSet::Effective, *capability).unwrap_or(false))
        .map(|capability| capability.to_string())
        .collect();
    if !missing.is_empty() {
        return Err(LabError::Privilege {
            missing: missing.join(" and "),
        });
    }
    IpvsSocket::open()?;
    Ok(())
}

/// Reproduces the incident: connections, a backend withdrawn (weight 0, then its
/// interface down), connections from the same source ports.
///
/// # Errors
/// What is missing to run it, or what failed on the way. Failing connections
/// are no error but the result.
pub fn run(options: &Options) -> Result<Report, LabError> {
    check()?;
    let silence = match options.action {
        Action::None => Duration::ZERO,
        Action::Drop | Action::Reset | Action::Heal | Action::All => SILENCE,
    };
    let mut rows = Vec::new();
    for step in options.action.steps() {
        rows.push(incident(options, *step, silence)?);
    }
    Ok(Report::new(options.connections.into(), silence, rows))
}

fn incident(options: &Options, step: Step, silence: Duration) -> Result<Row, LabError> {
    let topology = Topology::build(&topology::Options {
        conn_reuse_mode: Some(0),
        expire_nodest_conn: Some(false),
        ..topology::Options::default()
    })?;
    let ports: Vec<u16> = (FIRST_PORT..=u16::MAX)
        .take(options.connections.into())
        .collect();
    let limits = Limits::default();
    let _guard = match step {
        Step::None => None,
        Step::Drop | Step::Reset | Step::Heal => Some(Guard::start(topology.node(), step.name())?),
    };

    let before = topology.connect_all(Family::Inet, &ports, limits)?;
    if let Some(attempt) = before.iter().find(|attempt| !attempt.is_answered()) {
        return Err(LabError::Unhealthy {
            attempt: attempt.to_string(),
        });
    }
    closed(&topology, limits.timeout)?;
    let withdrawn = Instant::now();
    topology.set_weight(WITHDRAWN, 0)?;
    topology.kill_backend(WITHDRAWN)?;
    thread::sleep(silence);
    let after = topology.connect_all(Family::Inet, &ports, limits)?;
    let drain = drained(&topology, withdrawn, options.drain_timeout)?;
    Ok(Row::new(step, &after, drain))
}

/// Waits until every connection has ended on both sides: one whose last packet is on its way
/// when its server goes is none that a new one can take the place of.
fn closed(topology: &Topology, timeout: Duration) -> Result<(), LabError> {
    let deadline = Instant::now() + timeout;
    let ended =
        |entry: &ConnEntry| matches!(entry.state, Some(ConnState::TimeWait | ConnState::Close));
    while !topology.connections()?.iter().all(ended) && Instant::now() < deadline {
        thread::sleep(DRAIN_POLL);
    }
    Ok(())
}

/// Waits until no connection is left on the withdrawn backend.
fn drained(topology: &Topology, since: Instant, timeout: Duration) -> Result<Drain, LabError> {
    let deadline = Instant::now() + timeout;
    loop {
        let status = topology.destination(WITHDRAWN, Family::Inet)?;
        let drain = Drain::new(since.elapsed(), status.active, status.inactive);
        if drain.is_over() || Instant::now() >= deadline {
            return Ok(drain);
        }
        thread::sleep(DRAIN_POLL);
    }
}
