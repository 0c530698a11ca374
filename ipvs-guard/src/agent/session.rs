//! One stay of ip_vs: layout resolved and proved, programs loaded and attached.

use std::sync::Arc;

use ipvs_guard_common::config;

use super::Settings;
use crate::{
    bpf::{Attachments, BpfError, Counters, Loaded, Options},
    clock::monotonic,
    enforce::{self, Guard},
    event::Class,
    failure::Failure,
    kernel::{
        layout::{self, Alternative, DEST_AVAILABLE, Source},
        symbols::{Hook, Host, Symbols},
    },
    preflight::proof::{self, ProofError},
};

/// Everything that lives as long as ip_vs stays loaded.
pub(super) struct Session {
    pub(super) loaded: Loaded,
    pub(super) counters: Arc<Counters>,
    pub(super) attachments: Attachments,
    pub(super) available_bit: u32,
    pub(super) guard: Option<Guard>,
}

impl Session {
    /// Resolves and proves the layout, then attaches what `settings` need.
    /// `fresh`: ip_vs was there before the agent.
    pub(super) fn open(settings: &Settings, fresh: bool) -> Result<Self, Failure> {
        let symbols = Symbols::read(&Host::default()).map_err(|error| {
            Failure::Missing(format!(
                "/proc/kallsyms: {error}; it needs CONFIG_KALLSYMS and a mounted /proc"
            ))
        })?;
        let layout = proved_layout(settings, &symbols)?;
        let mode = mode(settings);
        let policy = settings
            .enforce
            .as_ref()
            .map(|enforce| enforce.policy(settings.filter.netns, monotonic()))
            .unwrap_or_default();
        let mut loaded = Loaded::new(&Options {
            layout: &layout.layout,
            mode,
            filter: settings.filter,
            proof_comm: "",
            policy,
        })
        .map_err(from_bpf)?;
        let counters = Arc::new(loaded.counters().map_err(from_bpf)?);
        let mut attachments = Attachments::default();
        for (hook, program) in probes(settings) {
            // A kernel without it (CONFIG_IP_VS_NFCT) has no conntrack to wait for.
            if hook == Hook::Untrack && symbols.resolve(hook).is_err() {
                continue;
            }
            attachments
                .add(&mut loaded, &symbols, hook, program)
                .map_err(from_bpf)?;
        }
        let guard = match &settings.enforce {
            Some(enforce) => Some(Guard::start(
                &mut loaded,
                &counters,
                enforce.clone(),
                settings.filter,
                policy,
                fresh,
                &tally(settings),
            )?),
            None => None,
        };
        Ok(Self {
            guard,
            loaded,
            counters,
            attachments,
            available_bit: DEST_AVAILABLE,
        })
    }
}

/// The probes that `settings` need, in the order in which they are attached.
pub(super) fn probes(settings: &Settings) -> Vec<(Hook, &'static str)> {
    let wants = |class| settings.classes.contains(&class);
    let enforces = settings.enforce.is_some();
    let heals = settings
        .enforce
        .as_ref()
        .is_some_and(|enforce| enforce.action == enforce::Action::Heal);
    let mut probes = Vec::new();
    if wants(Class::Rescheduled) || enforces {
        probes.push((Hook::Expire, "expire"));
    }
    if wants(Class::DrainStarted) || wants(Class::DrainEnded) || enforces {
        probes.push((Hook::ConfigUpdate, "dest_update"));
        probes.push((Hook::Delete, "dest_delete"));
    }
    if traces(settings) {
        // Returns before entries: no call is entered whose return is not seen.
        probes.extend([
            (Hook::In, "trace_out"),
            (Hook::Lookup, "trace_found"),
            (Hook::Lookup, "trace_lookup"),
            (Hook::In, "trace_in"),
        ]);
    }
    if heals {
        probes.push((Hook::Untrack, "untrack"));
    }
    if mode(settings) != 0 {
        probes.push((Hook::Commit, "commit"));
    }
    probes
}

/// What the programs are to do.
fn mode(settings: &Settings) -> u32 {
    let wants = |class| settings.classes.contains(&class);
    let mut mode = 0;
    for (wanted, bit) in [
        (wants(Class::StaleReuse), config::STALE),
        (wants(Class::Rescheduled), config::RESCHEDULED),
        (traces(settings), config::TRACE),
        (settings.enforce.is_some(), config::ENFORCE | config::STALE),
    ] {
        if wanted {
            mode |= bit;
        }
    }
    mode
}

fn traces(settings: &Settings) -> bool {
    settings.trace && settings.classes.contains(&Class::Trace)
}

/// Where enforcement counts; nowhere that is read when nobody scrapes.
fn tally(settings: &Settings) -> Arc<enforce::Tally> {
    let scraped = settings.metrics.as_ref();
    scraped
        .and_then(|metrics| metrics.enforced.clone())
        .unwrap_or_default()
}

/// The first layout that the proof accepts.
fn proved_layout(settings: &Settings, symbols: &Symbols) -> Result<Alternative, Failure> {
    let source = Source::running(settings.btf.clone())
        .map_err(|error| Failure::Internal(anyhow::anyhow!("uname: {error}")))?;
    let resolved = layout::resolve(&source)?;
    let first = Alternative {
        layout: resolved.layout,
        origin: resolved.origin,
    };
    let mut refused = None;
    for candidate in std::iter::once(first).chain(resolved.alternatives) {
        match proof::prove(&candidate.layout, symbols, DEST_AVAILABLE) {
            Ok(()) => {
                log::info!("{}, proved on a connection of its own", candidate.origin);
                return Ok(candidate);
            }
            Err(error @ ProofError::Field { .. }) => {
                log::info!("{}: {error}", candidate.origin);
                refused.get_or_insert(error);
            }
            Err(error) => return Err(from_proof(error)),
        }
    }
    Err(refused.map_or_else(
        || Failure::Internal(anyhow::anyhow!("no kernel layout to prove")),
        from_proof,
    ))
}

fn from_proof(error: ProofError) -> Failure {
    match error {
        ProofError::Bpf(error) => from_bpf(error),
        error @ (ProofError::Field { .. } | ProofError::Unseen(_)) => {
            Failure::Missing(error.to_string())
        }
        ProofError::Stage(error) => {
            Failure::Internal(error.context("proving the kernel layout in a private namespace"))
        }
    }
}

fn from_bpf(error: BpfError) -> Failure {
    match error {
        BpfError::Load(_) | BpfError::Symbol { .. } | BpfError::Attach { .. } => {
            Failure::Missing(format!("{error}; this kernel cannot be watched"))
        }
        BpfError::Absent { .. } | BpfError::Map { .. } | BpfError::Trial { .. } => {
            Failure::Internal(error.into())
        }
    }
}
