//! Whether the agent lives, and whether it sees what it is to see.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use crate::clock::monotonic;

/// The agent's main loop turns five times a second; longer than this and it hangs.
const ALIVE: Duration = Duration::from_secs(10);

/// What `/healthz`, `/readyz` and `ipvs_guard_probe_attached` say.
#[derive(Debug, Default)]
pub struct Health {
    /// When the main loop turned last (`CLOCK_MONOTONIC`, nanoseconds).
    turned: AtomicU64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    stage: Stage,
    /// Each probe that is needed, and whether it is attached.
    probes: BTreeMap<&'static str, bool>,
}

/// How far the agent is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Stage {
    /// It looks at the machine.
    #[default]
    Starting,
    /// ip_vs is not there, or went.
    WaitingForIpvs,
    /// The layout is proved, programs are loaded and attached.
    Attaching,
    /// All probes are attached; enforcement begins when it is known who answers.
    Listening,
    /// Every probe that is needed is attached.
    Ready,
    /// Probes are being detached: the agent ends.
    Ending,
}

impl Stage {
    const fn reason(self) -> Option<&'static str> {
        Some(match self {
            Self::Starting => "starting",
            Self::WaitingForIpvs => "waiting for ip_vs: it is not loaded",
            Self::Attaching => "proving the kernel layout and attaching probes",
            Self::Listening => "listening for which destinations answer before enforcing",
            Self::Ending => "ending",
            Self::Ready => return None,
        })
    }
}

impl Health {
    /// The main loop turns.
    pub fn turn(&self) {
        self.turned.store(monotonic(), Ordering::Relaxed);
    }

    /// The agent is at another stage.
    pub fn enter(&self, stage: Stage) {
        self.turn();
        self.state().stage = stage;
    }

    /// Probes that are needed; none is attached.
    pub fn need(&self, probes: impl Iterator<Item = &'static str>) {
        self.state().probes = probes.map(|probe| (probe, false)).collect();
    }

    /// Probes that are attached: all that are needed here.
    pub fn attached(&self, probes: impl Iterator<Item = &'static str>) {
        self.state().probes = probes.map(|probe| (probe, true)).collect();
    }

    /// Every probe is gone.
    pub fn detached(&self) {
        for attached in self.state().probes.values_mut() {
            *attached = false;
        }
    }

    /// Whether the main loop turns; else why it is taken to hang.
    ///
    /// # Errors
    /// The reason, in a line.
    pub fn is_alive(&self) -> Result<(), String> {
        self.is_alive_at(monotonic())
    }

    fn is_alive_at(&self, now: u64) -> Result<(), String> {
        let since = Duration::from_nanos(now.saturating_sub(self.turned.load(Ordering::Relaxed)));
        if since <= ALIVE {
            return Ok(());
        }
        Err(format!(
            "the main loop has not turned for {} s",
            since.as_secs()
        ))
    }

    /// Whether every probe that is needed is attached; else what it waits for.
    ///
    /// # Errors
    /// The reason, in a line.
    pub fn is_ready(&self) -> Result<(), String> {
        self.is_alive()?;
        let state = self.state();
        if let Some(reason) = state.stage.reason() {
            return Err(reason.to_owned());
        }
        let missing: Vec<&str> = state
            .probes
            .iter()
            .filter(|(_, attached)| !**attached)
            .map(|(probe, _)| *probe)
            .collect();
        if missing.is_empty() {
            return Ok(());
        }
        Err(format!("not attached: {}", missing.join(", ")))
    }

    /// Each probe that is needed, and whether it is attached.
    pub(super) fn probes(&self) -> BTreeMap<&'static str, bool> {
        self.state().probes.clone()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_ready_while_every_probe_is_attached() {
        let health = Health::default();
        health.need(["commit", "dest_update"].into_iter());
        health.turn();
        assert_eq!(health.is_ready(), Err("starting".to_owned()));
        health.enter(Stage::WaitingForIpvs);
        assert!(health.is_ready().unwrap_err().contains("ip_vs"));
        assert!(health.probes().values().all(|attached| !attached));
        health.enter(Stage::Ready);
        assert_eq!(
            health.is_ready(),
            Err("not attached: commit, dest_update".to_owned())
        );
        health.attached(["commit", "dest_update"].into_iter());
        assert_eq!(health.is_ready(), Ok(()));
        health.detached();
        assert!(health.is_ready().is_err());
        assert_eq!(health.probes().len(), 2);
    }

    #[test]
    fn a_loop_that_does_not_turn_is_neither_alive_nor_ready() {
        let health = Health::default();
        health.enter(Stage::Ready);
        let now = monotonic();
        assert_eq!(health.is_alive_at(now), Ok(()));
        let later = now + ALIVE.as_nanos() as u64 + 1_000_000_000;
        assert!(
            health
                .is_alive_at(later)
                .unwrap_err()
                .contains("not turned")
        );
        health.turned.store(0, Ordering::Relaxed);
        if monotonic() > ALIVE.as_nanos() as u64 {
            assert!(health.is_ready().is_err());
        }
    }
}
