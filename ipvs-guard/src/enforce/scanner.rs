//! The slow side of enforcement, on a thread of its own: reads services,
//! destinations and the connection table, and keeps the maps in step.

use std::{
    collections::HashSet,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, RecvTimeoutError},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use foldhash::{HashMap, HashMapExt as _};
use ipvs_guard_common::{
    addr::Endpoint,
    filter::Filter,
    guard::{FLOWS, FORGET, Flow, FlowKey, KNOW, NOTES, Policy, RENEW, Real, RealNote},
    state::Forwarding,
};

use super::{
    heal::{Changes, Fate, Mender, Target, Targets},
    plan::{self, Draining, Planned, Reschedules},
    tally::Tally,
};
use crate::{
    bpf::{GuardMaps, HeartMap},
    clock::monotonic,
    netlink::{
        conntable::{ConnEntry, ConnTable, ConnTableError},
        ipvs::{DestinationStatus, IpvsSocket, Protocol, ServiceId},
    },
    netns::sysctl,
    say::say,
};

const SECOND: u64 = 1_000_000_000;
/// How often everything is looked at while nothing happens.
const EVERY: Duration = Duration::from_secs(2);
/// The same where entries are healed as they close.
const EVERY_HEALING: Duration = Duration::from_millis(700);
/// Life of a flow that is noted while healing: its entry can be healed as soon as
/// there is a destination.
const FLOW_HEALING: u64 = 2 * SECOND;
/// A flow whose entry lives on is noted anew when less than this is left of its life.
const RENEWED: u64 = 6 * SECOND;
/// How soon it is looked again after a change: the probe tells of it before it is
/// made, and the first look may still see what was before.
const AGAIN: Duration = Duration::from_millis(200);
/// A scan takes this share of the time at most.
const SHARE: u32 = 10;

/// Tells the scanner that a weight or destination changed.
pub(super) struct Changed;

type Key = (ServiceId, SocketAddr);
/// What the programs know of each real server.
type Reals = HashMap<Endpoint, Real>;

/// What it keeps between two scans.
pub(super) struct Scanner {
    ipvs: IpvsSocket,
    maps: GuardMaps,
    heart: Arc<HeartMap>,
    filter: Filter,
    policy: Policy,
    known: HashSet<SocketAddr>,
    since: HashMap<Key, u64>,
    reschedules: Option<Reschedules>,
    noted: HashMap<FlowKey, Noted>,
    last_drain: LastDrain,
    /// A destination has weight 0.
    drains: bool,
    healing: Option<Healing>,
    /// When healing has something to do, after the scan that found it.
    due: Option<Duration>,
    tally: Arc<Tally>,
}

/// What healing needs beside the rest.
pub(super) struct Healing {
    pub(super) mender: Mender,
    pub(super) targets: Arc<Mutex<Targets>>,
    /// Set where a weight or destination changes.
    pub(super) changed: Arc<AtomicBool>,
    /// Templates, too.
    pub(super) persistent: bool,
    /// In this pass.
    pub(super) acts: bool,
}

/// The count of drains begun, and when it was first seen to be that.
#[derive(Default)]
struct LastDrain {
    begun: u64,
    seen: Option<Instant>,
}

impl LastDrain {
    /// Whether the weight of that drain must be in place by now: it is counted
    /// before the kernel sets it.
    fn is_settled(&mut self, begun: u64) -> bool {
        if self.begun != begun {
            *self = Self {
                begun,
                seen: Some(Instant::now()),
            };
        }
        self.seen.is_none_or(|seen| seen.elapsed() >= AGAIN)
    }
}

/// A flow as it was written last. What the programs do to it since is theirs: a
/// flow that a SYN made void is noted again once its entry says so.
struct Noted {
    generation: u64,
    deadline: u64,
}

/// What a scan found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Found {
    /// Services in scope.
    pub(super) services: usize,
    /// Their destinations of weight 0.
    pub(super) draining: usize,
}

impl Scanner {
    pub(super) fn new(
        maps: GuardMaps,
        heart: Arc<HeartMap>,
        filter: Filter,
        policy: Policy,
        healing: Option<Healing>,
        tally: Arc<Tally>,
    ) -> Result<Self> {
        Ok(Self {
            ipvs: IpvsSocket::open()?,
            maps,
            heart,
            filter,
            policy,
            known: HashSet::new(),
            since: HashMap::new(),
            reschedules: None,
            noted: HashMap::new(),
            last_drain: LastDrain::default(),
            drains: false,
            healing,
            due: None,
            tally,
        })
    }

    /// Scans until the other end of `changes` is gone.
    pub(super) fn run(mut self, changes: &Receiver<Changed>) {
        let mut failing = false;
        let mut pause = EVERY_HEALING;
        loop {
            let changed = match changes.recv_timeout(pause) {
                // Changes come in bursts: one scan serves them all.
                Ok(Changed) => {
                    while changes.try_recv().is_ok() {}
                    true
                }
                Err(RecvTimeoutError::Timeout) => false,
                Err(RecvTimeoutError::Disconnected) => return,
            };
            let begin = Instant::now();
            match self.scan() {
                Ok(_) => failing = false,
                Err(error) if !failing => {
                    failing = true;
                    self.tally.set_flows(None);
                    say(format_args!(
                        "ipvs-guard: {error:#}; stale SYNs are met on their way out only until it \
                         works again"
                    ));
                }
                Err(_) => {}
            }
            let every = match &self.healing {
                _ if changed => AGAIN,
                Some(healing) if self.drains || healing.mender.is_waiting() => EVERY_HEALING,
                Some(_) | None => EVERY,
            };
            let waited = self.healing.as_ref().map(|healing| healing.mender.waited());
            let busy = begin.elapsed().saturating_sub(waited.unwrap_or_default());
            pause = every.max(busy * SHARE);
            if let Some(due) = self.due {
                pause = pause.min(due);
            }
        }
    }

    /// One look at everything; two where real servers came that drain already.
    pub(super) fn scan(&mut self) -> Result<Found> {
        let (found, again) = self.look()?;
        if again {
            return Ok(self.look()?.0);
        }
        Ok(found)
    }

    /// What it found, and whether a draining real server was not known before. The
    /// generations are read first, then the weights, then the table: whatever
    /// changes meanwhile makes the flows void that are noted by it.
    fn look(&mut self) -> Result<(Found, bool)> {
        let begun = self.heart.drains_begun();
        let changes = Changes::since_now(&self.heart);
        if let Some(healing) = &self.healing {
            healing.changed.store(false, Ordering::Relaxed);
        }
        let reals = self.survey(&self.known, KNOW)?;
        let now = monotonic();
        let mut found = Found::default();
        let mut draining = Draining::default();
        let mut present = HashSet::new();
        let mut since = HashMap::new();
        let mut services = HashMap::new();
        let mut any = false;
        for status in self.ipvs.services()? {
            let id = status.service.id;
            if !is_tcp(&id) {
                continue;
            }
            let in_scope = self.admits_service(&id);
            found.services += usize::from(in_scope);
            let destinations = self.ipvs.destinations(&id)?;
            if self.healing.is_some() {
                services.insert(id, destinations.iter().map(target).collect());
            }
            for status in destinations {
                let destination = status.destination;
                if destination.forwarding == Forwarding::Local {
                    // It drains for nobody here, and its entries are no other's.
                    draining.add_living(&id, destination.address);
                    continue;
                }
                present.insert(destination.address);
                if destination.weight != 0 {
                    draining.add_living(&id, destination.address);
                    continue;
                }
                any = true;
                let key = (id, destination.address);
                let began = self.since.get(&key).copied().unwrap_or(
                    // Of the first scan: nobody knows since when.
                    if self.reschedules.is_none() {
                        self.policy.started
                    } else {
                        now
                    },
                );
                since.insert(key, began);
                if in_scope {
                    found.draining += 1;
                    draining.add(&id, destination.address, destination.forwarding, began);
                }
            }
        }
        self.since = since;
        self.drains = any;
        if let Some(healing) = &self.healing {
            let mut targets = healing
                .targets
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            // What was read before a change is older than what the change told.
            if targets.is_empty() || !healing.changed.load(Ordering::Relaxed) {
                targets.renew(services);
            }
        }
        // The gone ones first: in a map that is full the others need their places.
        let gone: HashSet<SocketAddr> = self.known.difference(&present).copied().collect();
        let new: HashSet<SocketAddr> = present.difference(&self.known).copied().collect();
        self.survey(&gone, FORGET)?;
        self.survey(&new, KNOW)?;
        self.known = present;
        let settled = self.last_drain.is_settled(begun) && !any;
        self.heart.settle(if settled {
            begun
        } else {
            begun.wrapping_sub(1)
        });
        let reschedules = reschedules();
        let changed = self.reschedules.is_some_and(|before| before != reschedules);
        self.reschedules = Some(reschedules);
        if changed {
            // The kernel may schedule anew what it did not before.
            self.survey(&self.known, RENEW)?;
        }
        if self.policy.dry_run == 0 && self.passes(&draining, now) {
            if let Some(flows) = self.pass(&draining, &reals, reschedules, changes, now)? {
                self.tally.set_flows(Some(flows));
            }
        } else {
            self.tally.set_flows(Some(0));
        }
        self.due = self.healing.as_ref().and_then(|healing| {
            let more = healing.mender.has_more().then_some(AGAIN);
            let next = draining.next_due(self.policy.grace_ns, now);
            next.map(Duration::from_nanos).into_iter().chain(more).min()
        });
        let again = changed
            || draining
                .destinations()
                .any(|address| new.contains(&address));
        Ok((found, again))
    }

    /// Whether the table is to be read.
    fn passes(&self, draining: &Draining, now: u64) -> bool {
        match &self.healing {
            None => !draining.is_empty(),
            Some(healing) => {
                healing.mender.is_waiting() || draining.any_due(self.policy.grace_ns, now)
            }
        }
    }

    fn admits_service(&self, id: &ServiceId) -> bool {
        match id {
            ServiceId::Address { address, .. } if address.port() == 0 => {
                // Of all ports: which of them an entry has is seen there.
                true
            }
            ServiceId::Address { address, .. } => self.filter.vip.admits(&plan::endpoint(*address)),
            ServiceId::Fwmark { .. } => true,
        }
    }

    /// What the programs know of every real server, whose wishes are `wish`.
    fn survey(&self, addresses: &HashSet<SocketAddr>, wish: u32) -> Result<Reals> {
        let mut notes: Vec<RealNote> = addresses
            .iter()
            .map(|address| RealNote {
                endpoint: plan::endpoint(*address),
                wish,
                ..RealNote::default()
            })
            .collect();
        self.maps.survey(&mut notes).context("real servers")?;
        let known = |note: &RealNote| (note.endpoint, note.real);
        Ok(notes.iter().map(known).collect())
    }

    /// Goes through the connection table: notes the stale flows, or heals them. How many
    /// flows there are in force; `None` when it broke off, for something has changed.
    fn pass(
        &mut self,
        draining: &Draining,
        reals: &Reals,
        reschedules: Reschedules,
        changes: Changes,
        now: u64,
    ) -> Result<Option<u64>> {
        self.noted.retain(|_, flow| flow.deadline > now);
        let table = match ConnTable::open() {
            Ok(table) => table,
            Err(ConnTableError::Absent) => return Ok(Some(0)),
            Err(error) => return Err(error.into()),
        };
        let mut batch = Vec::with_capacity(NOTES);
        let (mut flows, mut whole) = (0, true);
        if let Some(healing) = &mut self.healing {
            // Nothing holds SYNs back before the first beat.
            healing.acts = self.heart.beats();
            healing.mender.begin(changes);
        }
        for entry in table {
            let entry = match entry {
                Ok(entry) => entry,
                Err(ConnTableError::Malformed { .. }) => continue,
                Err(error) => return Err(error).context("noting stale flows"),
            };
            if self.healing.as_mut().is_some_and(|h| !h.mender.goes_on()) {
                whole = false;
                break;
            }
            if self.heals(&entry, draining, reals, reschedules, now) {
                continue;
            }
            let planned = plan::flow(
                &entry,
                draining,
                reschedules,
                &self.filter,
                self.policy.states,
                self.policy.grace_ns,
                now,
            );
            let Some(planned) = planned else { continue };
            if let Some(real) = reals.get(&planned.dest) {
                flows += u64::from(planned.not_before <= now);
                batch.extend(self.note(&planned, real.generation, now));
            }
            if batch.len() >= NOTES {
                self.maps.note_flows(&batch).context("noting stale flows")?;
                batch.clear();
            }
        }
        self.maps.note_flows(&batch).context("noting stale flows")?;
        if let Some(healing) = &mut self.healing {
            healing.mender.end();
        }
        Ok(whole.then_some(flows.min(u64::from(FLOWS))))
    }

    /// Whether an entry is none to be noted: it is healed, or can be as soon as it is
    /// closed.
    fn heals(
        &mut self,
        entry: &ConnEntry,
        draining: &Draining,
        reals: &Reals,
        reschedules: Reschedules,
        now: u64,
    ) -> bool {
        let Some(healing) = &mut self.healing else {
            return false;
        };
        let (filter, grace) = (&self.filter, self.policy.grace_ns);
        if entry.client.port() == 0 {
            let ends = healing.persistent && healing.acts;
            if ends && plan::is_stale_template(entry, draining, filter, grace, now) {
                healing.mender.end_template(entry);
            }
            return true;
        }
        let states = self.policy.states;
        let state = plan::mendable(entry, draining, reschedules, filter, states, grace, now);
        let Some(state) = state else { return true };
        if !healing.acts {
            return true;
        }
        let (left_alone, fresh) = (self.policy.heal_unless_answering_ns, plan::is_fresh(entry));
        if left_alone != 0 || fresh {
            let real = reals.get(&plan::endpoint(entry.destination));
            let answered = |within: u64| {
                real.is_some_and(|real| {
                    real.answered != 0 && now.saturating_sub(real.answered) < within
                })
            };
            // Its SYNs are left alone as well, or what it sent last may yet be repeated.
            if answered(left_alone) || (fresh && answered(plan::SPEAKING_NS)) {
                return true;
            }
        }
        healing.mender.mend(entry, state) == Fate::Done
    }

    /// The flow to be written; `None`: it stands there already, to the second of the
    /// table.
    fn note(&mut self, planned: &Planned, generation: u64, now: u64) -> Option<(FlowKey, Flow)> {
        let longest = match self.healing {
            Some(_) => self.policy.flow_ns.min(FLOW_HEALING),
            None => self.policy.flow_ns,
        };
        let latest = now.saturating_add(longest);
        let flow = Flow {
            deadline: planned.deadline.min(latest),
            not_before: planned.not_before,
            generation,
            dest: planned.dest,
            state: planned.state as u32,
            conn_flags: planned.forwarding as u32,
            ..Flow::default()
        };
        // A flow of long life is noted anew while there is some of it left.
        let enough = flow.deadline.min(now.saturating_add(RENEWED));
        let noted = self.noted.get(&planned.key).is_some_and(|noted| {
            noted.generation == generation && noted.deadline + SECOND >= enough
        });
        if noted {
            return None;
        }
        if self.noted.len() < FLOWS as usize {
            let noted = Noted {
                generation,
                deadline: flow.deadline,
            };
            self.noted.insert(planned.key, noted);
        }
        Some((planned.key, flow))
    }
}

fn target(status: &DestinationStatus) -> Target {
    let DestinationStatus {
        destination,
        active,
        inactive,
        ..
    } = status;
    const IPIP: u8 = 0;
    let target = Target::new(
        destination.address,
        destination.forwarding,
        destination.weight,
    )
    .bounded(
        destination.upper_threshold,
        active.saturating_add(*inactive),
    );
    Target {
        opaque: destination.tunnel.is_some_and(|tunnel| tunnel.kind != IPIP),
        ..target
    }
}

fn is_tcp(id: &ServiceId) -> bool {
    match id {
        ServiceId::Address { protocol, .. } => *protocol == Protocol::Tcp,
        ServiceId::Fwmark { .. } => true,
    }
}

/// What the kernel does by itself; a sysctl that is not there does nothing.
fn reschedules() -> Reschedules {
    let number = |name: &str| -> u32 {
        sysctl::read(name)
            .ok()
            .and_then(|text| text.parse().ok())
            .unwrap_or(0)
    };
    Reschedules {
        conn_reuse_mode: number("net/ipv4/vs/conn_reuse_mode"),
        expire_nodest_conn: number("net/ipv4/vs/expire_nodest_conn") != 0,
    }
}
