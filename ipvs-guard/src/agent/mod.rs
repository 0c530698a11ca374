//! The agent's life: wait for ip_vs, attach, stream, notice that ip_vs goes and
//! comes back, end cleanly.

mod service;
mod session;

use std::{
    future::pending,
    io::{self, IsTerminal as _},
    os::fd::AsFd as _,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::Context as _;
use ipvs_guard_common::filter::Filter;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    time::{Instant, MissedTickBehavior, interval, sleep_until},
};

use self::{service::ServiceManager, session::Session};
use crate::{
    bpf::{Attachments, KERNEL_STAGES},
    clock::Clock,
    enforce::{self, Guard},
    event::{Action, Class},
    failure::Failure,
    kernel::symbols::{Host, ModuleState, ModuleWatch},
    metrics::{Metrics, Stage},
    names::Names,
    pipeline::{Pipeline, Watched, ring::watch_readable},
    preflight, privilege,
    say::say,
    sink::Sink,
};

/// How often the state of ip_vs is looked at.
const MODULE_EVERY: Duration = Duration::from_millis(200);
/// How often losses are reported and clocks read again.
const LOSSES_EVERY: Duration = Duration::from_secs(1);
/// Records that are taken before anything else gets its turn.
const BURST: usize = 1_024;
/// From the wish to end to the end of the sinks, detaching included.
const PATIENCE: Duration = Duration::from_millis(800);
/// What the sinks get at least.
const LEAST_PATIENCE: Duration = Duration::from_millis(100);

/// What is watched.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Classes that are reported.
    pub classes: Vec<Class>,
    /// What the kernel side lets through.
    pub filter: Filter,
    /// Ends after this time: of waiting for ip_vs, and counted anew from the
    /// first readiness on.
    pub duration: Option<Duration>,
    /// Ends after so many events.
    pub max_events: Option<u64>,
    /// Follows each SYN through `ip_vs_in`.
    pub trace: bool,
    /// BTF to take the layout from.
    pub btf: Option<PathBuf>,
    /// What is done about stale SYNs; nothing when there is none.
    pub enforce: Option<enforce::Settings>,
    /// Set on SIGHUP, for sinks that open their file anew. Where nothing is to be read or
    /// opened anew and no service manager runs the agent, SIGHUP ends it as it ends any
    /// program.
    pub reopen: Option<Arc<AtomicBool>>,
    /// Where everything is counted for scrapes, if it is.
    pub metrics: Option<Arc<Metrics>>,
    /// What names services and destinations.
    pub names: Names,
}

enum Next {
    End,
    ModuleGone,
}

/// Runs until a signal, the duration, the number of events or a reader that
/// went ends it.
///
/// # Errors
/// [`Failure`] when the agent cannot work here.
pub async fn run(settings: Settings, sinks: Vec<Sink>) -> Result<(), Failure> {
    // What the user gave first, then what the user can do about it, then the kernel.
    preflight::check_btf(settings.btf.as_deref())?;
    preflight::check_proc()?;
    preflight::check_privileges()?;
    preflight::check_features()?;
    let clock = Clock::read().context("clock_gettime")?;
    let host = nix::unistd::gethostname().context("gethostname")?;
    let host = host.to_string_lossy().into_owned().into();
    let mut pipeline = Pipeline::new(
        settings.classes.clone(),
        sinks,
        settings.max_events,
        host,
        clock,
    );
    if let Some(metrics) = &settings.metrics {
        let action = settings
            .enforce
            .as_ref()
            .map_or(Action::Observed, enforce::Settings::result);
        metrics.counts.expect(&settings.classes, action);
        let programs = session::probes(&settings);
        metrics
            .health
            .need(programs.into_iter().map(|(_, program)| program));
        pipeline.count_into(Arc::clone(metrics));
    }
    let mut agent = Agent {
        pipeline,
        module: ModuleWatch::new(Host::default()),
        stop: Stop {
            interrupt: signal(SignalKind::interrupt()).context("signal(SIGINT)")?,
            terminate: signal(SignalKind::terminate()).context("signal(SIGTERM)")?,
            deadline: settings.duration.map(|duration| Instant::now() + duration),
        },
        service: ServiceManager::of_process(),
        settings,
        came: false,
        ready_at: None,
        ending_at: None,
    };
    agent.pipeline.set_names(agent.settings.names.clone());
    let (reopen, names) = (agent.settings.reopen.clone(), agent.settings.names.clone());
    if reopen.is_some() || names.has_file() || agent.service.is_some() {
        let mut hangup = signal(SignalKind::hangup()).context("signal(SIGHUP)")?;
        tokio::spawn(async move {
            while hangup.recv().await.is_some() {
                if let Some(reopen) = &reopen {
                    reopen.store(true, Ordering::Relaxed);
                }
                names.reload();
            }
        });
    }
    let outcome = agent.live().await;
    if let Some(service) = &mut agent.service {
        service.stopping();
    }
    let watched = match agent.ready_at {
        Some(at) => Watched::For(at.elapsed()),
        None if agent.came || outcome.is_err() => Watched::NotReady,
        None => Watched::NoIpvs,
    };
    let mut filter = agent.settings.filter;
    if agent.settings.enforce.is_some() {
        // Enforcing is for one namespace, whether or not the user names it.
        filter.netns = 0;
    }
    let filtered = filter != Filter::default();
    let detaching = agent.ending_at.map_or(Duration::ZERO, |at| at.elapsed());
    let patience = PATIENCE.saturating_sub(detaching).max(LEAST_PATIENCE);
    agent.pipeline.finish(watched, filtered, patience);
    outcome
}

struct Agent {
    settings: Settings,
    pipeline: Pipeline,
    module: ModuleWatch,
    stop: Stop,
    service: Option<ServiceManager>,
    /// ip_vs has been there.
    came: bool,
    ready_at: Option<Instant>,
    ending_at: Option<Instant>,
}

/// What ends the agent from outside.
struct Stop {
    interrupt: Signal,
    terminate: Signal,
    deadline: Option<Instant>,
}

impl Stop {
    /// Resolves when the agent is to end.
    async fn requested(&mut self) {
        let deadline = async {
            match self.deadline {
                Some(deadline) => sleep_until(deadline).await,
                None => pending().await,
            }
        };
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            () = deadline => {}
        }
    }

    /// Resolves when a signal ends the agent.
    async fn signalled(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

impl Agent {
    async fn live(&mut self) -> Result<(), Failure> {
        loop {
            let waited = !self.module_is_live()?;
            let Some(generation) = self.wait_for_module().await? else {
                return Ok(());
            };
            self.came = true;
            self.enter(Stage::Attaching);
            // The thread that opens the session has what this one has.
            privilege::rise();
            let settings = self.settings.clone();
            let fresh = !waited && self.ready_at.is_none();
            let mut opening = tokio::task::spawn_blocking(move || Session::open(&settings, fresh));
            let mut alive = interval(MODULE_EVERY);
            let opened = loop {
                tokio::select! {
                    opened = &mut opening => break opened.context("opening the session")?,
                    // The duration is of watching: it does not run meanwhile.
                    () = self.stop.signalled() => return Ok(()),
                    _ = alive.tick() => {
                        self.turn();
                        self.alive();
                    }
                }
            };
            let session = match opened {
                Ok(session) => session,
                // It may have gone in the meantime: no fault of anybody's.
                Err(_) if self.module_state()? != generation => continue,
                Err(failure) => return Err(failure),
            };
            match self.stream(session, generation).await? {
                Next::End => return Ok(()),
                Next::ModuleGone => {
                    self.enter(Stage::WaitingForIpvs);
                    self.pipeline.restart_losses(&KERNEL_STAGES);
                    say(format_args!(
                        "ipvs-guard: ip_vs was removed; waiting for it to come back"
                    ));
                    self.status("ip_vs was removed; waiting for it to come back");
                }
            }
        }
    }

    fn module_is_live(&mut self) -> Result<bool, Failure> {
        let state = self.module_state()?;
        Ok(matches!(
            state,
            ModuleState::BuiltIn | ModuleState::Live { .. }
        ))
    }

    fn module_state(&mut self) -> Result<ModuleState, Failure> {
        Ok(self.module.state().context("the state of module ip_vs")?)
    }

    /// Waits until ip_vs is there; `None` when the agent is to end before.
    async fn wait_for_module(&mut self) -> Result<Option<ModuleState>, Failure> {
        let mut said = self.ready_at.is_some();
        loop {
            match self.module_state()? {
                state @ (ModuleState::BuiltIn | ModuleState::Live { .. }) => {
                    return Ok(Some(state));
                }
                ModuleState::Absent | ModuleState::Changing => {}
            }
            self.enter(Stage::WaitingForIpvs);
            if !said {
                said = true;
                say(format_args!(
                    "ipvs-guard: waiting: ip_vs is not loaded; it comes with the first service \
                     of kube-proxy, kube-router or keepalived, or with: modprobe ip_vs"
                ));
                self.status("waiting: ip_vs is not loaded");
            }
            self.alive();
            tokio::select! {
                () = tokio::time::sleep(MODULE_EVERY) => {}
                () = self.stop.requested() => return Ok(None),
            }
            if reader_closed() {
                return Ok(None);
            }
        }
    }

    async fn stream(&mut self, session: Session, live: ModuleState) -> Result<Next, Failure> {
        let Session {
            mut loaded,
            counters,
            attachments,
            available_bit,
            mut guard,
        } = session;
        self.pipeline.set_available_bit(available_bit);
        if let Some(metrics) = &self.settings.metrics {
            let programs = attachments.done.iter().map(|(program, _)| *program);
            metrics.health.attached(programs);
        }
        self.enter(Stage::Listening);
        let mut ring = loaded.ring().map_err(|e| Failure::Internal(e.into()))?;
        let mut logger = BpfLog::new(&mut loaded);
        let reader_gone = self.pipeline.reader_gone();
        let mut module_tick = interval(MODULE_EVERY);
        let mut losses_tick = interval(LOSSES_EVERY);
        module_tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        losses_tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut ready = false;
        let next = loop {
            self.turn();
            if !ready && guard.as_ref().is_none_or(Guard::is_armed) {
                ready = true;
                self.say_ready(&attachments, guard.as_ref());
                if guard.is_none() {
                    privilege::rest(live == ModuleState::BuiltIn);
                }
            }
            let due = guard.as_mut().and_then(|guard| guard.next_due(ready));
            tokio::select! {
                biased;
                () = self.stop.requested() => break Next::End,
                () = reader_gone.notified() => break Next::End,
                _ = module_tick.tick() => {
                    self.alive();
                    if reader_closed() {
                        break Next::End;
                    }
                    if self.module_state()? != live {
                        break Next::ModuleGone;
                    }
                    if let Some(guard) = &mut guard {
                        guard.beat();
                        guard.follow_devices(&mut loaded);
                        guard.rest();
                    }
                }
                () = overdue(due) => {
                    // Before anything old is taken for new.
                    if let Some(guard) = &mut guard {
                        guard.beat();
                    }
                    // What it waits for may be here already.
                    ring.drain(BURST, |bytes| take(&mut self.pipeline, guard.as_mut(), bytes));
                    if let Some(guard) = &mut guard {
                        while let Some((record, action)) = guard.overdue() {
                            self.pipeline.accept(&record, action);
                        }
                    }
                }
                _ = losses_tick.tick() => {
                    let missed = counters.missed(&loaded);
                    self.pipeline.report_losses(&counters.losses(missed));
                    self.pipeline.set_clock(Clock::read().context("clock_gettime")?);
                }
                () = logger.flush() => {}
                read = ring.read(BURST, |bytes| take(&mut self.pipeline, guard.as_mut(), bytes)) => {
                    read.context("reading the ring buffer")?;
                }
            }
            if let Some(guard) = &mut guard {
                guard.follow_drains(&mut loaded);
            }
            if self.pipeline.is_done() {
                break Next::End;
            }
        };
        self.ending_at = Some(Instant::now());
        self.enter(Stage::Ending);
        if let Some(metrics) = &self.settings.metrics {
            metrics.health.detached();
            if let Some(tally) = &metrics.enforced {
                tally.set_flows(Some(0));
            }
        }
        let missed = counters.missed(&loaded);
        if let Some(guard) = &mut guard {
            guard.stop(&mut loaded);
        }
        // No probe runs after this; what they left is still reported.
        drop(loaded);
        while ring.drain(BURST, |bytes| {
            take(&mut self.pipeline, guard.as_mut(), bytes)
        }) > 0
        {}
        if let Some(guard) = &mut guard {
            while let Some((record, action)) = guard.left() {
                self.pipeline.accept(&record, action);
            }
        }
        self.pipeline.report_losses(&counters.losses(missed));
        Ok(next)
    }

    /// The main loop turns, for whoever asks whether it does.
    fn turn(&self) {
        if let Some(metrics) = &self.settings.metrics {
            metrics.health.turn();
        }
    }

    fn enter(&self, stage: Stage) {
        if let Some(metrics) = &self.settings.metrics {
            metrics.health.enter(stage);
        }
    }

    fn say_ready(&mut self, attachments: &Attachments, guard: Option<&Guard>) {
        if self.ready_at.is_none() {
            self.ready_at = Some(Instant::now());
            self.stop.deadline = self.settings.duration.map(|time| Instant::now() + time);
        }
        self.enter(Stage::Ready);
        let what = match guard {
            None => attachments.summary(),
            Some(guard) => format!("{}; {}", guard.summary(), attachments.summary()),
        };
        say(format_args!("ready: {what}"));
        if let Some(service) = &mut self.service {
            service.ready(&what);
        }
    }

    fn alive(&mut self) {
        if let Some(service) = &mut self.service {
            service.alive();
        }
    }

    fn status(&mut self, text: &str) {
        if let Some(service) = &mut self.service {
            service.status(text);
        }
    }
}

/// One record, to the guard first where there is one.
fn take(pipeline: &mut Pipeline, guard: Option<&mut Guard>, bytes: &[u8]) {
    let Some(guard) = guard else {
        return pipeline.record(bytes);
    };
    if let Some(record) = pipeline.decode(bytes)
        && let Some((record, action)) = guard.take(record)
    {
        pipeline.accept(&record, action);
    }
}

/// Resolves at `due`; never when there is none.
async fn overdue(due: Option<std::time::Instant>) {
    match due {
        Some(due) => sleep_until(due.into()).await,
        None => pending().await,
    }
}

/// What the programs log, when that is wanted.
struct BpfLog(Option<tokio::io::unix::AsyncFd<aya_log::EbpfLogger<&'static dyn log::Log>>>);

impl BpfLog {
    fn new(loaded: &mut crate::bpf::Loaded) -> Self {
        if !log::log_enabled!(log::Level::Debug) {
            return Self(None);
        }
        Self(
            loaded
                .logger()
                .and_then(|logger| watch_readable(logger).ok()),
        )
    }

    async fn flush(&mut self) {
        let Some(logger) = &mut self.0 else {
            return pending().await;
        };
        match logger.readable_mut().await {
            Ok(mut guard) => {
                guard.get_inner_mut().flush();
                guard.clear_ready();
            }
            Err(_) => self.0 = None,
        }
    }
}

/// Whether standard output is a pipe or socket that nobody reads any more.
fn reader_closed() -> bool {
    let stdout = io::stdout();
    if stdout.is_terminal() {
        return false;
    }
    let mut fds = [PollFd::new(stdout.as_fd(), PollFlags::empty())];
    poll(&mut fds, PollTimeout::ZERO).is_ok_and(|n| n > 0)
        && fds[0]
            .revents()
            .is_some_and(|events| events.intersects(PollFlags::POLLERR | PollFlags::POLLHUP))
}
