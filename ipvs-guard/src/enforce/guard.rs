//! The running side of enforcement: heartbeat, devices, SYNs under way.

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc::{SyncSender, sync_channel},
    },
    thread,
    time::{Duration, Instant},
};

use ipvs_guard_common::{
    decode::Record,
    event::{Header, SynRecord},
    filter::Filter,
    guard::Policy,
};

use super::{
    Action as Wanted, Settings,
    heal::{Channel, Ending, Mender, Rescues, SynNames, Targets, is_ours},
    pending::{self, Pending},
    plan::address,
    responder::Responder,
    scanner::{Changed, Healing, Scanner},
    tally::Tally,
};
use crate::{
    bpf::{BpfError, Counters, Covered, Devices, GuardMaps, HeartMap, Loaded},
    clock::monotonic,
    event::{Action, Transport},
    failure::Failure,
    netlink::route::{Device, LinkLayer, LinkMonitor, RouteSocket},
    say::say,
};

/// How long after a beat the programs still act: an agent that stops for longer
/// enforces nothing.
const HEART: Duration = Duration::from_millis(1_800);

/// How long it must be calm until the way out is watched no more: drains come in
/// rows.
const CALM: Duration = Duration::from_secs(20);

struct Healer {
    channel: Channel,
    rescues: Rescues,
    changed: Arc<AtomicBool>,
    targets: Arc<Mutex<Targets>>,
    syns: Arc<SynNames>,
}

impl Drop for Healer {
    /// However the agent ends: a daemon that stays would keep others out.
    fn drop(&mut self) {
        self.channel.close();
    }
}

impl Healer {
    /// A pass that has read the entry of this SYN tells nothing of it.
    fn leave_alone(&self, syn: &SynRecord) {
        if !self.syns.add(address(&syn.client), address(&syn.vip)) {
            // More than can be remembered: what was read is not told at all.
            self.changed.store(true, Ordering::Relaxed);
        }
    }

    /// What is sent on goes by the new weight at once, also before the destinations are
    /// read anew.
    fn follow(&self, record: &Record) {
        let (Record::DestUpdate(change) | Record::DestDelete(change)) = record else {
            return;
        };
        if change.fwmark == 0 && Transport::from_number(change.protocol) != Some(Transport::Tcp) {
            return;
        }
        self.targets
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .set_weight(
                change.fwmark,
                address(&change.vip),
                address(&change.dest),
                u32::try_from(change.weight_after).unwrap_or(0),
            );
    }
}

/// Everything that enforces as long as ip_vs stays loaded.
pub struct Guard {
    settings: Settings,
    devices: Devices,
    routes: RouteSocket,
    monitor: LinkMonitor,
    /// Devices that cannot be covered, said once.
    refused: BTreeSet<(u32, String)>,
    heart: Arc<HeartMap>,
    changes: SyncSender<Changed>,
    pending: Pending,
    responder: Responder,
    healer: Option<Healer>,
    /// Nothing is enforced before: who answers is listened for.
    armed_at: Instant,
    failing: bool,
    /// Since when no destination has weight 0.
    calm_since: Option<Instant>,
}

impl Guard {
    /// Covers the devices and reads the first state of everything. Nothing is
    /// enforced before the first [`Self::beat`].
    ///
    /// `fresh`: ip_vs was there before the agent, so a scope without a service is
    /// a mistake.
    ///
    /// # Errors
    /// [`Failure`], with nothing left behind.
    pub fn start(
        loaded: &mut Loaded,
        counters: &Arc<Counters>,
        settings: Settings,
        filter: Filter,
        policy: Policy,
        fresh: bool,
        tally: &Arc<Tally>,
    ) -> Result<Self, Failure> {
        let (healer, healing) = healer(loaded, counters, &settings, tally)?;
        let channel = healer.as_ref().map(|healer| healer.channel.clone());
        let tally = Arc::clone(tally);
        let started = Self::start_with(
            loaded, settings, filter, policy, fresh, tally, healer, healing,
        );
        if started.is_err()
            && let Some(channel) = channel
        {
            channel.close();
        }
        started
    }

    #[allow(
        clippy::too_many_arguments,
        reason = "what the two parts of one start share"
    )]
    fn start_with(
        loaded: &mut Loaded,
        settings: Settings,
        filter: Filter,
        policy: Policy,
        fresh: bool,
        tally: Arc<Tally>,
        healer: Option<Healer>,
        healing: Option<Healing>,
    ) -> Result<Self, Failure> {
        let internal = |error: BpfError| Failure::Internal(error.into());
        let heart = Arc::new(HeartMap::take(loaded).map_err(internal)?);
        let maps = GuardMaps::take(loaded).map_err(internal)?;
        let mut scanner = Scanner::new(maps, Arc::clone(&heart), filter, policy, healing, tally)?;
        let found = scanner.scan()?;
        if found.services == 0 && fresh && !filter.vip.is_empty() {
            return Err(Failure::Usage(
                "--vip: no virtual TCP service of this network namespace matches; ipvsadm -Ln \
                 lists them"
                    .into(),
            ));
        }
        let (changes, inbox) = sync_channel(1);
        thread::Builder::new()
            .name("scanner".into())
            .spawn(move || scanner.run(&inbox))
            .map_err(|error| Failure::Internal(error.into()))?;
        let listening = if found.draining > 0 {
            settings.acts_unless()
        } else {
            Duration::ZERO
        };
        let mut guard = Self {
            devices: Devices::new(loaded, settings.dry_run).map_err(internal)?,
            // Before the first listing: nothing that comes in between is missed.
            monitor: LinkMonitor::open().map_err(|error| Failure::Internal(error.into()))?,
            routes: RouteSocket::open().map_err(|error| Failure::Internal(error.into()))?,
            refused: BTreeSet::new(),
            heart,
            changes,
            pending: Pending::default(),
            responder: Responder::default(),
            healer,
            armed_at: Instant::now() + listening,
            failing: false,
            calm_since: None,
            settings,
        };
        guard.follow_drains(loaded);
        if let Err(failure) = guard.cover_first(loaded) {
            guard.devices.clear(loaded);
            return Err(failure);
        }
        Ok(guard)
    }

    fn cover_first(&mut self, loaded: &mut Loaded) -> Result<(), Failure> {
        let present = self
            .routes
            .devices()
            .map_err(|error| Failure::Internal(error.into()))?;
        all_there(&self.settings.interfaces, &present)?;
        if self.healer.is_some() {
            // A SYN that leaves unmet and is answered may not be sent once more: the
            // way out is always watched.
            self.devices.set_egress(loaded, true);
        }
        for device in &present {
            if !self.wants(device) {
                continue;
            }
            if let Err(reason) = self.cover(loaded, device)
                && !self.settings.interfaces.is_empty()
            {
                return Err(Failure::Missing(format!(
                    "--interface {}: {reason}; leave the device out, or free its TC",
                    device.name
                )));
            }
        }
        self.tell_cover(&present);
        Ok(())
    }

    /// Whether a SYN can leave unseen.
    fn tell_cover(&mut self, present: &[Device]) {
        let all = present.iter().all(|device| {
            !device.up
                || device.link_layer == LinkLayer::Loopback
                || is_ours(&device.name)
                || self.devices.has(device)
        });
        if let Some(healer) = &mut self.healer {
            healer.rescues.set_covers_all(all);
        }
    }

    fn wants(&self, device: &Device) -> bool {
        // A dry run has no use for programs that only see who answers, where that is not
        // asked for.
        let idle = self.settings.dry_run && self.settings.resets_unless().is_zero();
        if is_ours(&device.name) || idle {
            return false;
        }
        if self.settings.interfaces.is_empty() {
            matches!(device.link_layer, LinkLayer::Ethernet | LinkLayer::Bare)
        } else {
            self.settings.interfaces.contains(&device.name)
        }
    }

    fn cover(&mut self, loaded: &mut Loaded, device: &Device) -> Result<(), String> {
        match self.devices.add(loaded, device) {
            Ok((covered, refused)) => {
                if let Some(reason) = refused {
                    say(format_args!(
                        "ipvs-guard: {}: the driver refuses XDP ({reason}); TC ingress serves \
                         instead",
                        device.name
                    ));
                }
                let by = match covered {
                    Covered::Xdp => "XDP",
                    Covered::Tc => "TC",
                };
                log::info!("{} is covered by {by}", device.name);
                Ok(())
            }
            Err(reason) => {
                if self.refused.insert((device.index, device.name.clone())) {
                    say(format_args!(
                        "ipvs-guard: {}: not covered: {reason}",
                        device.name
                    ));
                }
                Err(reason)
            }
        }
    }

    /// Covers devices that came, forgets those that went.
    pub fn follow_devices(&mut self, loaded: &mut Loaded) {
        if !self.monitor.has_news() && !self.failing {
            return;
        }
        let present = match self.routes.devices() {
            Ok(present) => present,
            Err(error) => {
                if !self.failing {
                    say(format_args!(
                        "ipvs-guard: {error}; new devices are not covered"
                    ));
                }
                self.failing = true;
                return;
            }
        };
        self.failing = false;
        self.devices.retain(loaded, &present);
        self.refused
            .retain(|(index, _)| present.iter().any(|device| device.index == *index));
        let fresh: Vec<&Device> = present
            .iter()
            .filter(|device| {
                self.wants(device)
                    && !self.devices.has(device)
                    && !self.refused.contains(&(device.index, device.name.clone()))
            })
            .collect();
        for device in fresh {
            // A device that went meanwhile is no failure, and anything else is said.
            let _said = self.cover(loaded, device);
        }
        self.tell_cover(&present);
    }

    /// Whether enforcement has begun.
    pub fn is_armed(&self) -> bool {
        Instant::now() >= self.armed_at
    }

    /// Lets the programs act for a moment more.
    pub fn beat(&mut self) {
        if !self.is_armed() {
            return;
        }
        let life = HEART.as_nanos() as u64;
        let lapses = self.heart.lapses();
        self.heart.beat(monotonic().saturating_add(life));
        if self.heart.lapses() != lapses {
            say(format_args!(
                "ipvs-guard: held up for longer than {:.1} s: nothing was enforced meanwhile",
                HEART.as_secs_f32()
            ));
            if let Some(healer) = &mut self.healer {
                healer.rescues.give_up();
            }
        }
    }

    /// "reset on DEVICE, …".
    pub fn summary(&self) -> String {
        let action = match (self.settings.action, self.settings.dry_run) {
            (Wanted::Drop, false) => "drop",
            (Wanted::Reset, false) => "reset",
            (Wanted::Heal, false) => "heal",
            (Wanted::Heal, true) => "dry run of heal",
            (Wanted::Drop, true) => "dry run of drop",
            (Wanted::Reset, true) => "dry run of reset",
        };
        let names: Vec<&str> = self.devices.names().collect();
        if names.is_empty() && self.settings.dry_run {
            action.to_owned()
        } else if names.is_empty() {
            format!("{action}, on devices as they come")
        } else {
            format!("{action} on {}", names.join(", "))
        }
    }

    /// The event that a record comes to, and what was done; `None`: nothing yet.
    pub fn take(&mut self, record: Record) -> Option<(Record, Action)> {
        if let (Record::Stale(syn), Some(healer)) = (&record, &self.healer) {
            healer.leave_alone(syn);
        }
        match &record {
            Record::Stale(syn) if syn.header.has(Header::ARMED) && syn.header.has(Header::HELD) => {
                if syn.header.time < self.heart.valid_from() {
                    // Its repetition passed, and its entry may be a living connection's.
                    return Some((record, Action::Failed));
                }
                let lost = self.healer.as_mut()?.rescues.held(*syn)?;
                Some((Record::Stale(lost), Action::Failed))
            }
            Record::Packet(packet) => {
                let ended = self.healer.as_mut()?.rescues.packet(packet, pending::key);
                self.rescued(ended)
            }
            Record::Gone(gone) => {
                self.healer.as_mut()?.rescues.gone(gone);
                None
            }
            Record::Met(met) if met.header.has(Header::HELD) => {
                let ended = self.healer.as_mut()?.rescues.met(met);
                self.rescued(ended)
            }
            Record::Stale(syn) if syn.header.has(Header::ARMED) => {
                match self.pending.add(*syn, Instant::now()) {
                    None => None,
                    Some(syn) => self.unmet(syn),
                }
            }
            Record::Stale(syn) if syn.header.has(Header::WOULD_ACT) => {
                let action = match self.settings.action {
                    Wanted::Drop => Action::WouldDrop,
                    Wanted::Heal if syn.header.has(Header::HELD) => Action::WouldHeal,
                    Wanted::Reset | Wanted::Heal => Action::WouldReset,
                };
                Some((record, action))
            }
            Record::Met(met) => match self.pending.met(&met.key) {
                Some(syn) if met.header.has(Header::UNANSWERED) => {
                    let action = self.answer(&syn);
                    Some((Record::Stale(syn), action))
                }
                Some(syn) => Some((Record::Stale(syn), self.done())),
                // Its record found the ring full, and is counted there.
                None => None,
            },
            Record::Turned(_) => Some((record, self.done())),
            Record::DestUpdate(_) | Record::DestDelete(_) => {
                if let Some(healer) = &self.healer {
                    healer.changed.store(true, Ordering::Relaxed);
                    healer.follow(&record);
                }
                // A scan that is due already will see this change, too.
                let _due = self.changes.try_send(Changed);
                Some((record, Action::Observed))
            }
            Record::Stale(_)
            | Record::Rescheduled(_)
            | Record::Trace(_)
            | Record::Proof(_)
            | Record::ProofSkb(_)
            | Record::ProofFault(_) => Some((record, Action::Observed)),
        }
    }

    /// Watches the way out of the devices while destinations drain.
    pub fn follow_drains(&mut self, loaded: &mut Loaded) {
        if self.healer.is_some() || self.settings.dry_run {
            return;
        }
        if !self.heart.is_calm() {
            self.calm_since = None;
            if !self.devices.has_egress() {
                let mut failed = self.devices.set_egress(loaded, true);
                if !failed.is_empty() {
                    // A device often goes with the server that drains: such a one is
                    // not missed.
                    self.follow_devices(loaded);
                    failed = self.devices.set_egress(loaded, true);
                }
                for (device, reason) in failed {
                    say(format_args!("ipvs-guard: {device}: not covered: {reason}"));
                }
            }
        } else if self.devices.has_egress() {
            let since = *self.calm_since.get_or_insert_with(Instant::now);
            if since.elapsed() >= CALM {
                self.devices.set_egress(loaded, false);
            }
        }
    }

    /// When a SYN under way is overdue or, as long as the agent is not `ready`,
    /// enforcement begins.
    pub fn next_due(&mut self, ready: bool) -> Option<Instant> {
        if !ready {
            return Some(self.armed_at);
        }
        let rescues = self.healer.as_mut().map(|healer| &mut healer.rescues);
        let held = rescues.and_then(Rescues::next_due);
        self.pending.next_due().into_iter().chain(held).min()
    }

    /// A SYN that did not come to a device in time: it is answered from here.
    pub fn overdue(&mut self) -> Option<(Record, Action)> {
        let now = Instant::now();
        if let Some(healer) = &mut self.healer {
            let ended = healer
                .rescues
                .ready()
                .or_else(|| healer.rescues.overdue(now));
            if ended.is_some() {
                return self.rescued(ended);
            }
        }
        let syn = self.pending.overdue(now)?;
        self.unmet(syn)
    }

    /// A SYN that is left when the agent ends: it is answered, due or not.
    pub fn left(&mut self) -> Option<(Record, Action)> {
        let held = self
            .healer
            .as_mut()
            .and_then(|healer| healer.rescues.drain());
        if let Some(syn) = held {
            // An answer would be the end of what the client's next SYN can still do.
            return Some((Record::Stale(syn), Action::Failed));
        }
        let syn = self.pending.drain()?;
        self.unmet(syn)
    }

    fn rescued(&mut self, ended: Option<(SynRecord, Ending)>) -> Option<(Record, Action)> {
        match ended? {
            (syn, Ending::Healed) => Some((Record::Stale(syn), Action::Healed)),
            (syn, Ending::Refused) if syn.header.has(Header::PARTING) => {
                // Its entry leads to a living destination: the client's next SYN is served.
                Some((Record::Stale(syn), Action::Failed))
            }
            (syn, Ending::Refused) => self.unmet(syn),
            (syn, Ending::Lost) => Some((Record::Stale(syn), Action::Failed)),
            (syn, Ending::Unseen) => Some((Record::Stale(syn), Action::Observed)),
        }
    }

    /// What is due once in a while.
    pub fn rest(&self) {
        if let Some(healer) = &self.healer {
            healer.channel.rest();
        }
    }

    fn unmet(&mut self, syn: SynRecord) -> Option<(Record, Action)> {
        let action = match self.settings.action {
            Wanted::Reset | Wanted::Heal => self.answer(&syn),
            Wanted::Drop => Action::Failed,
        };
        Some((Record::Stale(syn), action))
    }

    const fn done(&self) -> Action {
        match self.settings.action {
            Wanted::Drop => Action::Dropped,
            Wanted::Reset | Wanted::Heal => Action::Reset,
        }
    }

    fn answer(&mut self, syn: &SynRecord) -> Action {
        match self.responder.reset(&syn.client, &syn.vip, syn.seq) {
            Ok(()) => Action::Reset,
            Err(reason) => {
                log::warn!("{reason}");
                Action::Failed
            }
        }
    }

    /// Ends enforcement: nothing is acted on from here on, and no program stays on a
    /// device.
    pub fn stop(&mut self, loaded: &mut Loaded) {
        self.heart.beat(0);
        self.devices.clear(loaded);
        if let Some(healer) = &self.healer {
            healer.channel.close();
        }
    }
}

/// Whether all of `--interface` are there: told at once, not when ip_vs comes.
///
/// # Errors
/// [`Failure::Usage`] naming the first that is not, and those that are.
pub fn check_interfaces(names: &[String]) -> Result<(), Failure> {
    if names.is_empty() {
        return Ok(());
    }
    let present = RouteSocket::open()
        .and_then(|mut routes| routes.devices())
        .map_err(|error| Failure::Internal(error.into()))?;
    all_there(names, &present)
}

fn all_there(names: &[String], present: &[Device]) -> Result<(), Failure> {
    let is_there = |name: &&String| present.iter().any(|device| device.name == **name);
    match names.iter().find(|name| !is_there(name)) {
        None => Ok(()),
        Some(name) => {
            let present: Vec<&str> = present.iter().map(|d| d.name.as_str()).collect();
            Err(Failure::Usage(format!(
                "--interface {name}: no such device in this network namespace; there are {}",
                present.join(", ")
            )))
        }
    }
}

/// What healing takes, if that is wanted.
fn healer(
    loaded: &mut Loaded,
    counters: &Arc<Counters>,
    settings: &Settings,
    tally: &Arc<Tally>,
) -> Result<(Option<Healer>, Option<Healing>), Failure> {
    if settings.action != Wanted::Heal || settings.dry_run {
        return Ok((None, None));
    }
    tally.heal();
    let channel = Channel::open(loaded, Arc::clone(counters))?;
    let targets = Arc::new(Mutex::new(Targets::default()));
    let syns = Arc::new(SynNames::default());
    let changed = Arc::new(AtomicBool::new(false));
    let routes = RouteSocket::open().map_err(|error| Failure::Internal(error.into()))?;
    let healer = Healer {
        rescues: Rescues::new(channel.clone(), Arc::clone(&targets), routes),
        channel: channel.clone(),
        changed: Arc::clone(&changed),
        targets: Arc::clone(&targets),
        syns: Arc::clone(&syns),
    };
    let healing = Healing {
        mender: Mender::new(
            channel,
            Arc::clone(&targets),
            syns,
            Arc::clone(&changed),
            Arc::clone(tally),
        ),
        targets,
        changed,
        persistent: settings.heal_persistent,
        acts: false,
    };
    Ok((Some(healer), Some(healing)))
}
