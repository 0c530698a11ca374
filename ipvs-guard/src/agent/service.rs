//! What a service manager such as systemd is told (`sd_notify`).

use std::{
    env,
    time::{Duration, Instant},
};

use sd_notify::NotifyState;

/// The service manager that has started the agent.
pub(super) struct ServiceManager {
    watchdog: Option<Watchdog>,
    complained: bool,
}

struct Watchdog {
    every: Duration,
    last: Instant,
}

impl ServiceManager {
    /// The one that started this process, if one did.
    pub(super) fn of_process() -> Option<Self> {
        env::var_os("NOTIFY_SOCKET").map(|_| Self {
            watchdog: sd_notify::watchdog_enabled().map(|limit| Watchdog {
                // It asks for twice in that time.
                every: limit / 3,
                last: Instant::now(),
            }),
            complained: false,
        })
    }

    /// Every probe is attached.
    pub(super) fn ready(&mut self, what: &str) {
        let status = format!("ready: {what}");
        self.tell(&[NotifyState::Ready, NotifyState::Status(&status)]);
    }

    /// What the agent is at.
    pub(super) fn status(&mut self, text: &str) {
        self.tell(&[NotifyState::Status(text)]);
    }

    /// The main loop goes round. May be called as often as wanted.
    pub(super) fn alive(&mut self) {
        let now = Instant::now();
        let Some(watchdog) = &mut self.watchdog else {
            return;
        };
        if now.duration_since(watchdog.last) >= watchdog.every {
            watchdog.last = now;
            self.tell(&[NotifyState::Watchdog]);
        }
    }

    /// The agent ends.
    pub(super) fn stopping(&mut self) {
        self.tell(&[NotifyState::Stopping]);
    }

    fn tell(&mut self, state: &[NotifyState<'_>]) {
        if let Err(error) = sd_notify::notify(state)
            && !self.complained
        {
            self.complained = true;
            log::error!("NOTIFY_SOCKET: {error}; the service manager is not told");
        }
    }
}
