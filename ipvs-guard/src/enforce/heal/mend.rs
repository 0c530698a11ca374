//! A pass over the connection table: every stale entry is re-pointed, and what
//! became of those of the pass before is seen.

use std::{
    collections::{HashMap, HashSet},
    fmt,
    hash::{BuildHasher as _, RandomState},
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use ipvs_guard_common::{
    guard::{CONN_INACTIVE, CONN_TEMPLATE},
    state::ConnState,
};

use super::{
    channel::{Channel, ChannelError},
    held::HeldNames,
    message::{Entry, TCP},
    targets::{Choice, Nowhere, Targets},
};
use crate::{
    enforce::{Healed, Tally},
    netlink::conntable::ConnEntry,
    say::say,
};

/// An entry with less life than this is left to end, in seconds.
const ENDING: u64 = 2;
/// Entries that are told of at once: a full message of IPv4.
const BATCH: usize = 38;
/// How long an entry that was read may wait to be told of.
const WAIT: Duration = Duration::from_millis(50);
/// After this it is not told of: it may have ended, and be another by now.
const STALE: Duration = Duration::from_secs(1);
/// How long a template that was to end is left alone.
const TEMPLATE_PAUSE: Duration = Duration::from_secs(5);
/// How often the user is told at most.
const SAY_EVERY: Duration = Duration::from_secs(5);

/// What became of entries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::enforce) struct Told {
    /// Found to lead to a living destination, or gone.
    pub(in crate::enforce) healed: u64,
    /// Still where they were.
    pub(in crate::enforce) failed: u64,
    /// Left to end by themselves.
    pub(in crate::enforce) ending: u64,
    /// Without a living destination of their service.
    pub(in crate::enforce) nowhere: u64,
    /// Of which the service is not known.
    pub(in crate::enforce) ambiguous: u64,
    /// Persistence templates that were let end.
    pub(in crate::enforce) templates: u64,
}

impl Told {
    const fn is_empty(&self) -> bool {
        self.healed + self.failed + self.templates == 0
    }
}

impl fmt::Display for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} entries healed", self.healed)?;
        for (count, what) in [
            (self.templates, "templates ended"),
            (self.failed, "failed"),
            (self.ending, "left to end by themselves"),
            (self.nowhere, "without a living destination"),
            (self.ambiguous, "of a service that is not known"),
        ] {
            if count > 0 {
                write!(f, ", {count} {what}")?;
            }
        }
        Ok(())
    }
}

/// What is to be done about an entry beside what was done here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::enforce) enum Fate {
    /// Nothing.
    Done,
    /// Its SYNs are to be answered with a reset.
    Reset,
}

/// Re-points entries.
pub(in crate::enforce) struct Mender {
    channel: Channel,
    targets: Arc<Mutex<Targets>>,
    hasher: RandomState,
    /// Names of the entries told of in the pass before, and in this one.
    before: HashSet<u64>,
    told: HashSet<u64>,
    /// Names of the entries told of that a pass which broke off did not come to.
    unjudged: HashSet<u64>,
    /// Of those of the pass before, the ones that lead to another destination now.
    moved: HashSet<u64>,
    /// Of these, the ones whose old entry lives on for a while, too.
    lingering: HashSet<u64>,
    /// Those of the pass before that did not seem to be re-pointed: a table that changes
    /// while it is read can hide an entry once.
    suspects: HashSet<u64>,
    /// Those that are still where they were, with their name.
    again: Vec<(u64, [Entry; 2])>,
    templates: HashMap<u64, Instant>,
    batch: Vec<Entry>,
    /// When the first of these was read.
    read_at: Instant,
    /// Templates that are to be told of.
    ending: Vec<Entry>,
    began: Instant,
    /// The message that was sent last.
    last: Option<u32>,
    /// SYNs that are held back: their entries are theirs.
    held: Arc<HeldNames>,
    /// A weight or destination has changed since the pass began.
    changed: Arc<AtomicBool>,
    this: Told,
    broken: Option<Instant>,
    said: Option<Instant>,
    unsaid: Told,
    tally: Arc<Tally>,
}

impl Mender {
    pub(in crate::enforce) fn new(
        channel: Channel,
        targets: Arc<Mutex<Targets>>,
        held: Arc<HeldNames>,
        changed: Arc<AtomicBool>,
        tally: Arc<Tally>,
    ) -> Self {
        Self {
            channel,
            targets,
            hasher: RandomState::new(),
            before: HashSet::new(),
            told: HashSet::new(),
            unjudged: HashSet::new(),
            moved: HashSet::new(),
            lingering: HashSet::new(),
            suspects: HashSet::new(),
            again: Vec::new(),
            templates: HashMap::new(),
            batch: Vec::with_capacity(BATCH),
            read_at: Instant::now(),
            ending: Vec::new(),
            began: Instant::now(),
            last: None,
            held,
            changed,
            this: Told::default(),
            broken: None,
            said: None,
            unsaid: Told::default(),
            tally,
        }
    }

    /// Whether something was told whose outcome is to be seen, or said, yet.
    pub(in crate::enforce) fn is_waiting(&self) -> bool {
        !self.told.is_empty() || !self.unjudged.is_empty() || !self.unsaid.is_empty()
    }

    /// A pass begins.
    pub(in crate::enforce) fn begin(&mut self) {
        self.before = std::mem::take(&mut self.told);
        self.templates
            .retain(|_, ended| ended.elapsed() < TEMPLATE_PAUSE);
        // Of a pass that did not come to its end.
        self.batch.clear();
        self.ending.clear();
        self.again.clear();
        self.moved.clear();
        self.began = Instant::now();
        self.last = None;
        self.this = Told::default();
        if self.broken.is_some_and(|until| Instant::now() >= until) {
            self.broken = None;
        }
    }

    /// Between two entries: whether the pass is to go on.
    pub(in crate::enforce) fn goes_on(&mut self) -> bool {
        if !self.batch.is_empty() && self.read_at.elapsed() >= WAIT {
            self.flush();
        }
        !self.changed.load(Ordering::Relaxed)
    }

    /// An entry that leads to no draining destination.
    pub(in crate::enforce) fn see(&mut self, entry: &ConnEntry) {
        if !self.before.is_empty() {
            let name = self.name(entry);
            if self.before.contains(&name) {
                self.moved.insert(name);
            }
        }
    }

    /// A stale entry in a closed state: it is told of.
    pub(in crate::enforce) fn mend(&mut self, entry: &ConnEntry, state: ConnState) -> Fate {
        let name = self.name(entry);
        self.unjudged.remove(&name);
        if self.broken.is_some() {
            // It was not healed, and is not tried again for now.
            self.before.remove(&name);
            return Fate::Reset;
        }
        if entry.expires < ENDING {
            self.this.ending += 1;
            return Fate::Done;
        }
        let choice = self
            .targets
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .choose(entry.client, entry.service, entry.destination);
        match choice {
            Ok(choice) => {
                let told = replacement(
                    entry.client,
                    entry.service,
                    choice,
                    state,
                    u32::try_from(entry.expires).unwrap_or(u32::MAX),
                );
                self.told.insert(name);
                if self.before.contains(&name) {
                    self.again.push((name, told));
                } else {
                    self.put(told);
                }
                Fate::Done
            }
            Err(Nowhere::NoneAlive) => {
                self.this.nowhere += 1;
                Fate::Reset
            }
            Err(Nowhere::Ambiguous | Nowhere::Unknown) => {
                self.this.ambiguous += 1;
                Fate::Reset
            }
        }
    }

    /// A template of a destination of weight 0: it is let end, so that the client's
    /// next connection is scheduled anew.
    pub(in crate::enforce) fn end_template(&mut self, entry: &ConnEntry) {
        let name = self.name(entry);
        if self.broken.is_some() || self.templates.contains_key(&name) {
            return;
        }
        self.templates.insert(name, Instant::now());
        self.this.templates += 1;
        self.ending.push(Entry {
            protocol: entry.protocol.into(),
            flags: CONN_TEMPLATE,
            state: 0,
            client: entry.client,
            service: entry.service,
            destination: entry.destination,
            fwmark: 0,
            timeout: 1,
        });
    }

    /// The pass is over: the last ones are told of, and the user what became of those
    /// before. When it was not the `whole` table, what it did not come to is seen in a
    /// later one.
    pub(in crate::enforce) fn end(&mut self, whole: bool) {
        let mut before = std::mem::take(&mut self.before);
        let lingering = std::mem::take(&mut self.lingering);
        if !whole {
            let met: HashSet<u64> = self.again.iter().map(|(name, _)| *name).collect();
            before.retain(|name| {
                let seen = met.contains(name) || self.moved.contains(name);
                if !seen && !lingering.contains(name) {
                    self.unjudged.insert(*name);
                }
                seen
            });
        }
        // Told of as healed once already.
        let counted = lingering.intersection(&before).count();
        let before = before.len();
        let suspects = std::mem::take(&mut self.suspects);
        let (mut failed, mut open) = (0, 0);
        for (name, told) in std::mem::take(&mut self.again) {
            // An entry that was in use when it was thrown away lives for another minute,
            // behind the one in its place (`ip_vs_conn_expire`): told once more, that one
            // would be taken for closed, whatever it carries by now.
            if self.moved.contains(&name) {
                self.lingering.insert(name);
            } else if !suspects.contains(&name) {
                self.suspects.insert(name);
                open += 1;
            } else {
                failed += 1;
                if self.began.elapsed() < STALE {
                    self.put(told);
                } else {
                    self.told.remove(&name);
                }
            }
        }
        self.flush();
        for templates in std::mem::take(&mut self.ending).chunks(BATCH) {
            self.batch = templates.to_vec();
            self.read_at = Instant::now();
            self.flush();
        }
        if let Some(last) = self.last
            && self.broken.is_none()
            && !self.channel.wait(last, true)
        {
            self.fail(&self.channel.deaf());
        }
        self.this.failed += failed as u64;
        self.this.healed = before.saturating_sub(failed + counted + open) as u64;
        if whole {
            self.this.healed += std::mem::take(&mut self.unjudged).len() as u64;
        }
        self.moved = HashSet::new();
        self.report();
    }

    fn put(&mut self, told: [Entry; 2]) {
        if self.batch.is_empty() {
            self.read_at = Instant::now();
        }
        self.batch.extend(told);
        if self.batch.len() >= BATCH {
            self.flush();
        }
    }

    fn flush(&mut self) {
        let mut batch = std::mem::replace(&mut self.batch, Vec::with_capacity(BATCH));
        self.held.leave_out(&mut batch);
        // What would be told may be wrong by now; another pass is due.
        let stale = self.read_at.elapsed() >= STALE || self.changed.load(Ordering::Relaxed);
        if stale || self.broken.is_some() {
            return self.forget(&batch);
        }
        if batch.is_empty() {
            return;
        }
        let outcome = self.channel.replace(&batch).and_then(|last| {
            self.last = Some(last);
            if self.channel.wait(last, false) {
                Ok(())
            } else {
                Err(self.channel.deaf())
            }
        });
        if let Err(error) = outcome {
            self.forget(&batch);
            self.this.failed += batch
                .iter()
                .filter(|entry| entry.flags & CONN_INACTIVE == 0)
                .count() as u64;
            self.fail(&error);
        }
    }

    /// Nothing was told of these.
    fn forget(&mut self, batch: &[Entry]) {
        for entry in batch {
            let name = self.hasher.hash_one((entry.client, entry.service));
            self.told.remove(&name);
        }
    }

    fn fail(&mut self, error: &ChannelError) {
        self.broken = Some(Instant::now() + error.pause());
        say(format_args!(
            "ipvs-guard: not healing for {} s, stale SYNs are reset: {error}",
            error.pause().as_secs()
        ));
    }

    fn report(&mut self) {
        self.tally.add(Healed {
            healed: self.this.healed,
            failed: self.this.failed,
            templates: self.this.templates,
        });
        let sum = &mut self.unsaid;
        sum.healed += self.this.healed;
        sum.failed += self.this.failed;
        sum.templates += self.this.templates;
        // The same ones in each pass: only the latest are told.
        sum.ending = self.this.ending;
        sum.nowhere = self.this.nowhere;
        sum.ambiguous = self.this.ambiguous;
        let quiet = self.said.is_some_and(|said| said.elapsed() < SAY_EVERY);
        if sum.is_empty() || quiet {
            return;
        }
        say(format_args!("ipvs-guard: {sum}"));
        self.said = Some(Instant::now());
        self.unsaid = Told::default();
    }

    fn name(&self, entry: &ConnEntry) -> u64 {
        self.hasher.hash_one((entry.client, entry.service))
    }
}

/// An entry that takes the place of a stale one, and the second message that has it
/// counted as inactive: a first one of that flag would not replace anything
/// (`ip_vs_proc_conn`, 5.10 to 7.3).
fn replacement(
    client: SocketAddr,
    service: SocketAddr,
    choice: Choice,
    state: ConnState,
    timeout: u32,
) -> [Entry; 2] {
    let active = Entry {
        protocol: TCP,
        flags: choice.forwarding as u32,
        state: state as u16,
        client,
        service,
        destination: choice.destination,
        fwmark: choice.fwmark,
        timeout,
    };
    let inactive = Entry {
        flags: active.flags | CONN_INACTIVE,
        ..active
    };
    [active, inactive]
}
