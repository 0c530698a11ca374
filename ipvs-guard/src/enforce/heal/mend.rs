//! A pass over the connection table: every stale entry is re-pointed, and what
//! became of those of the pass before is seen.

use std::{
    fmt,
    hash::BuildHasher as _,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use foldhash::{HashMap, HashMapExt as _, fast::RandomState};
use ipvs_guard_common::{
    guard::{CONN_INACTIVE, CONN_TEMPLATE},
    state::ConnState,
};

use super::{
    channel::{Channel, ChannelError},
    message::{Entry, TCP},
    syns::SynNames,
    targets::{Choice, Nowhere, Targets},
};
use crate::{
    bpf::HeartMap,
    enforce::{Healed, Tally},
    netlink::conntable::ConnEntry,
    say::say,
};

/// An entry with less life than this is left to end, in seconds.
const ENDING: u64 = 2;
/// Entries that are read before they are told of. Those that are told of change places
/// in the table, which would hide others from who reads on.
const WINDOW: usize = 16_384;
/// Rows between two looks at the clock.
const CLOCK: usize = 256;
/// How long the first of them waits: a large table takes long to read.
const WAIT: Duration = Duration::from_secs(1);
/// After this nothing that was read is told of: a machine on which it takes so long is
/// not to be relied on.
const STALE: Duration = Duration::from_secs(10);
/// What an entry that was in use when it was thrown away still lives, in seconds
/// (`ip_vs_conn_expire`, 5.10 to 7.3), behind the one in its place.
const LINGERS: u32 = 60;
/// By so much the two clocks may differ, in seconds.
const SLACK: u32 = 3;
/// A pass that told of more than this part of the table is followed by another at once.
const MANY: usize = 16;
/// How long a template that was to end is left alone.
const TEMPLATE_PAUSE: Duration = Duration::from_secs(5);
/// Templates of one message.
const TEMPLATES: usize = 16;
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
    /// Left where they are, for their place would come near its upper threshold.
    pub(in crate::enforce) full: u64,
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
            (
                self.full,
                "left, for living destinations are near their upper threshold",
            ),
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

/// What makes old what was read, from the moment that the weights were read: weights
/// that change and destinations that go, as the kernel side counts them, and beats that
/// came too late, between which SYNs passed.
pub(in crate::enforce) struct Changes {
    heart: Arc<HeartMap>,
    changes: u64,
    lapses: u64,
}

impl Changes {
    pub(in crate::enforce) fn since_now(heart: &Arc<HeartMap>) -> Self {
        Self {
            heart: Arc::clone(heart),
            changes: heart.changes(),
            lapses: heart.lapses(),
        }
    }

    fn are_none(&self) -> bool {
        self.heart.changes() == self.changes && self.heart.lapses() == self.lapses
    }

    fn beats(&self) -> bool {
        self.heart.beats()
    }
}

/// Re-points entries.
pub(in crate::enforce) struct Mender {
    channel: Channel,
    targets: Arc<Mutex<Targets>>,
    hasher: RandomState,
    /// Since when `told` counts its seconds.
    epoch: Instant,
    /// Entries that the kernel has been told of, when, and in which pass: as long as they
    /// can linger.
    told: HashMap<u64, (u32, u32)>,
    pass: u32,
    /// What was told in this pass or before has been looked after.
    settled: u32,
    /// How many of them nobody has looked after yet, and of these the ones from before
    /// this pass.
    open: u64,
    before: u64,
    templates: HashMap<u64, Instant>,
    /// Read, and not told of yet, with their names.
    window: Vec<(u64, Entry)>,
    /// When the first of these was read.
    read_at: Instant,
    /// Templates that are to be told of.
    ending: Vec<Entry>,
    began: Instant,
    /// Rows of the table that this pass has read, and entries that it told of.
    rows: usize,
    repointed: usize,
    /// Entries that the daemon did not take.
    untold: u64,
    /// This pass ended before the table did.
    cut: bool,
    /// The message that was sent last.
    last: Option<u32>,
    /// SYNs that came a moment ago: their entries are theirs.
    syns: Arc<SynNames>,
    /// A weight or destination has changed since the pass began, as the agent knows it.
    changed: Arc<AtomicBool>,
    /// The same as the kernel side knows it, which is sooner.
    changes: Option<Changes>,
    /// What the kernel side had lost when the pass began.
    losses: u64,
    /// How long this pass waited for the daemon.
    waited: Duration,
    /// That some have no room is said.
    crowded: bool,
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
        syns: Arc<SynNames>,
        changed: Arc<AtomicBool>,
        tally: Arc<Tally>,
    ) -> Self {
        let now = Instant::now();
        Self {
            channel,
            targets,
            hasher: RandomState::default(),
            epoch: now,
            told: HashMap::new(),
            pass: 0,
            settled: 0,
            open: 0,
            before: 0,
            templates: HashMap::new(),
            window: Vec::new(),
            read_at: now,
            ending: Vec::new(),
            began: now,
            rows: 0,
            repointed: 0,
            untold: 0,
            cut: false,
            last: None,
            syns,
            changed,
            changes: None,
            losses: 0,
            waited: Duration::ZERO,
            crowded: false,
            this: Told::default(),
            broken: None,
            said: None,
            unsaid: Told::default(),
            tally,
        }
    }

    /// Whether something was told whose outcome is to be seen, or said, yet.
    pub(in crate::enforce) fn is_waiting(&self) -> bool {
        self.open > 0 || !self.unsaid.is_empty()
    }

    /// How long the last pass waited for the daemon, and did nothing.
    pub(in crate::enforce) const fn waited(&self) -> Duration {
        self.waited
    }

    /// Whether another pass will find much to do.
    pub(in crate::enforce) fn has_more(&self) -> bool {
        // Where reports are lost there is a storm: the next pass comes in its turn.
        let lossy = self.channel.losses() != self.losses;
        self.broken.is_none() && !lossy && (self.cut || self.repointed * MANY > self.rows)
    }

    /// A pass begins; by `changes` it goes by the weights that were read.
    pub(in crate::enforce) fn begin(&mut self, changes: Changes) {
        self.changes = Some(changes);
        let now = self.seconds();
        self.told
            .retain(|_, (told, _)| now.saturating_sub(*told) <= LINGERS + SLACK);
        self.pass += 1;
        self.losses = self.channel.losses();
        self.waited = Duration::ZERO;
        self.templates
            .retain(|_, ended| ended.elapsed() < TEMPLATE_PAUSE);
        // Of a pass that did not come to its end.
        self.window.clear();
        self.ending.clear();
        self.began = Instant::now();
        self.before = self.open;
        self.rows = 0;
        self.repointed = 0;
        self.cut = false;
        self.last = None;
        self.this = Told::default();
        if self.broken.is_some_and(|until| Instant::now() >= until) {
            self.broken = None;
        }
    }

    /// Between two rows of the table: whether the pass is to go on.
    pub(in crate::enforce) fn goes_on(&mut self) -> bool {
        let full = self.window.len() >= WINDOW;
        // The clock is not asked for every row.
        let late = || self.rows.is_multiple_of(CLOCK) && self.read_at.elapsed() >= WAIT;
        if full || (!self.window.is_empty() && late()) {
            self.flush();
        }
        self.rows += 1;
        self.cut |= self.has_changed();
        !self.cut
    }

    /// A stale entry in a closed state: it is told of.
    pub(in crate::enforce) fn mend(&mut self, entry: &ConnEntry, state: ConnState) -> Fate {
        if self.broken.is_some() {
            return Fate::Reset;
        }
        if entry.expires <= ENDING {
            self.this.ending += 1;
            return Fate::Done;
        }
        let name = self.name(entry);
        if let Some((told, pass)) = self.told.get(&name) {
            if lingers(entry.expires, self.seconds().saturating_sub(*told)) {
                // Told once more, the one in its place would be taken for closed,
                // whatever it carries by now.
                return Fate::Done;
            }
            // One that was found healed has come back with its destination.
            if *pass > self.settled {
                self.this.failed += 1;
                self.open = self.open.saturating_sub(1);
                self.before = self.before.saturating_sub(1);
                let counted = (*told, self.settled);
                self.told.insert(name, counted);
            }
        }
        let choice = self
            .targets
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .place(entry.client, entry.service, entry.destination);
        match choice {
            Ok(choice) => {
                if self.window.is_empty() {
                    self.read_at = Instant::now();
                }
                self.window.push((name, replacement(entry, choice, state)));
                Fate::Done
            }
            Err(Nowhere::NoneAlive) => {
                self.this.nowhere += 1;
                Fate::Reset
            }
            Err(Nowhere::Full) => {
                // Its next SYN finds a place, as any connection does.
                self.this.full += 1;
                Fate::Done
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
    /// before.
    pub(in crate::enforce) fn end(&mut self) {
        if !self.cut {
            // The whole table was read, and they are not where they were.
            self.this.healed = std::mem::take(&mut self.before);
            self.open = self.open.saturating_sub(self.this.healed);
            self.settled = self.pass - 1;
        }
        self.flush();
        for templates in std::mem::take(&mut self.ending).chunks(TEMPLATES) {
            if !self.is_void() {
                let outcome = self.channel.replace(templates);
                if !matches!(outcome, Err(ChannelError::Late)) {
                    self.sent(outcome);
                }
            }
        }
        self.settle();
        self.this.failed += std::mem::take(&mut self.untold);
        log::debug!(
            "a pass over {} rows of the table took {:?}: {} told of, {} of those before \
             healed, {} failed",
            self.rows,
            self.began.elapsed(),
            self.repointed,
            self.this.healed,
            self.this.failed,
        );
        self.report();
    }

    /// What was read would be wrong by now: another pass is due.
    fn is_void(&self) -> bool {
        // A SYN whose report was lost may have begun a connection on what was read.
        self.broken.is_some()
            || self.has_changed()
            || self.channel.losses() != self.losses
            || self
                .changes
                .as_ref()
                .is_some_and(|changes| !changes.beats())
    }

    fn has_changed(&self) -> bool {
        let changes = self.changes.as_ref();
        self.changed.load(Ordering::Relaxed) || changes.is_some_and(|changes| !changes.are_none())
    }

    /// Tells of what was read.
    fn flush(&mut self) {
        let window = std::mem::take(&mut self.window);
        let per_message = window
            .first()
            .map_or(1, |(_, entry)| Channel::room(entry).max(2) / 2);
        for entries in window.chunks(per_message) {
            if self.is_void() || self.read_at.elapsed() >= STALE {
                self.cut = true;
                break;
            }
            let mut entries = entries.to_vec();
            self.syns.leave_out(&mut entries);
            // They have aged, and one that has ended may be another by now.
            let age = u32::try_from(self.read_at.elapsed().as_millis().div_ceil(1_000));
            let age = age.unwrap_or(u32::MAX);
            entries.retain_mut(|(_, entry)| {
                entry.timeout = entry.timeout.saturating_sub(age);
                u64::from(entry.timeout) >= ENDING
            });
            if entries.is_empty() {
                continue;
            }
            let pairs: Vec<Entry> = entries
                .iter()
                .flat_map(|(_, entry)| [*entry, inactive(entry)])
                .collect();
            let outcome = self.channel.replace(&pairs);
            if matches!(outcome, Err(ChannelError::Late)) {
                self.cut = true;
                break;
            }
            if self.sent(outcome) {
                let now = self.seconds();
                self.repointed += entries.len();
                self.open += entries.len() as u64;
                let told = (now, self.pass);
                self.told
                    .extend(entries.iter().map(|(name, _)| (*name, told)));
            } else {
                self.untold += entries.len() as u64;
            }
        }
        self.window = window;
        self.window.clear();
        self.settle();
    }

    /// A message was sent, or was not: waits until the daemon may be told more.
    fn sent(&mut self, outcome: Result<u32, ChannelError>) -> bool {
        let outcome = outcome.and_then(|last| {
            self.last = Some(last);
            let begin = Instant::now();
            let heard = self.channel.wait(last, false);
            self.waited += begin.elapsed();
            if heard {
                Ok(())
            } else {
                Err(self.channel.deaf())
            }
        });
        if let Err(error) = &outcome {
            self.fail(error);
        }
        outcome.is_ok()
    }

    /// Waits until all that was told is worked through: the table stands still then.
    fn settle(&mut self) {
        if let Some(last) = self.last.take()
            && self.broken.is_none()
        {
            let begin = Instant::now();
            let heard = self.channel.wait(last, true);
            self.waited += begin.elapsed();
            if !heard {
                self.fail(&self.channel.deaf());
            }
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
        let crowded = self.this.full > 0;
        if crowded && !self.crowded {
            say(format_args!(
                "ipvs-guard: {} entries are left where they are: living destinations are near \
                 their upper threshold",
                self.this.full
            ));
        }
        if crowded || !self.cut {
            self.crowded = crowded;
        }
        let quiet = self.said.is_some_and(|said| said.elapsed() < SAY_EVERY);
        if sum.is_empty() || quiet {
            return;
        }
        say(format_args!("ipvs-guard: {sum}"));
        self.said = Some(Instant::now());
        self.unsaid = Told::default();
    }

    fn seconds(&self) -> u32 {
        u32::try_from(self.epoch.elapsed().as_secs()).unwrap_or(u32::MAX)
    }

    fn name(&self, entry: &ConnEntry) -> u64 {
        self.hasher
            .hash_one((entry.client, entry.service, entry.destination))
    }
}

/// Whether an entry that was told of `ago` seconds ago and still leads to its old
/// destination is the one that was thrown away then, and only waits for its end.
fn lingers(expires: u64, ago: u32) -> bool {
    u64::from(LINGERS.saturating_sub(ago)).abs_diff(expires) <= u64::from(SLACK)
}

/// The entry that takes the place of a stale one.
fn replacement(entry: &ConnEntry, choice: Choice, state: ConnState) -> Entry {
    Entry {
        protocol: TCP,
        flags: choice.forwarding as u32,
        state: state as u16,
        client: entry.client,
        service: entry.service,
        destination: choice.destination,
        fwmark: choice.fwmark,
        timeout: u32::try_from(entry.expires).unwrap_or(u32::MAX),
    }
}

/// The second message of an entry, that has it counted as inactive: a first one of
/// that flag would not replace anything (`ip_vs_proc_conn`, 5.10 to 7.3).
fn inactive(entry: &Entry) -> Entry {
    Entry {
        flags: entry.flags | CONN_INACTIVE,
        ..*entry
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_thrown_away_lingers() {
        assert!(lingers(60, 0));
        assert!(lingers(41, 18));
        // A fresh one, and one that the message did not meet.
        assert!(!lingers(119, 1));
        assert!(!lingers(900, 18));
        // At its end it is nobody's.
        assert!(lingers(1, 61));
    }
}
