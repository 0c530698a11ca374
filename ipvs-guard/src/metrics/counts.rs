//! Events by class, action, service and destination, and losses by stage.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use super::labels::Pair;
use crate::event::{Action, Class, Event};

/// Pairs of service and destination that have series of their own.
pub const MAX_PAIRS: usize = 512;
/// A pair without an event for this long gives its place up when there is none left.
const IDLE: Duration = Duration::from_secs(60 * 60);
/// How often places are looked for at most: it is a walk over all pairs.
const SWEEP_EVERY: Duration = Duration::from_secs(60);
/// Namespaces with drains that are remembered.
const MAX_NAMESPACES: usize = 64;

/// Counts what the pipeline hands out. They never go back, whatever becomes of ip_vs.
#[derive(Debug, Default)]
pub struct Counts {
    events: Mutex<Events>,
    losses: Mutex<BTreeMap<&'static str, u64>>,
}

#[derive(Debug, Default)]
struct Events {
    pairs: HashMap<Pair, Row>,
    /// Of pairs that found no place.
    others: Vec<Count>,
    swept: Option<Instant>,
    /// What is done about a stale SYN in this run.
    action: Option<Action>,
    draining: BTreeSet<u32>,
}

#[derive(Debug)]
struct Row {
    seen: Instant,
    counts: Vec<Count>,
}

/// How many events there were of a class and action.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Count {
    pub(super) class: Class,
    pub(super) action: Action,
    pub(super) events: u64,
}

impl Counts {
    /// Begins at 0 what is going to be counted, so that a first increase is one:
    /// `classes` are reported, and `action` is what is done about a stale SYN.
    pub fn expect(&self, classes: &[Class], action: Action) {
        let mut events = self.events();
        for class in classes {
            match class {
                Class::StaleReuse => {
                    events.action = Some(action);
                    add(&mut events.others, *class, action, 0);
                }
                Class::Rescheduled | Class::DrainStarted | Class::DrainEnded => {
                    add(&mut events.others, *class, Action::Observed, 0);
                }
                Class::Loss | Class::Trace => {}
            }
        }
    }

    /// Counts an event. A retransmission is the same incident, and losses are counted
    /// by their stage.
    pub fn count(&self, event: &Event) {
        if event.class == Class::Loss {
            return;
        }
        let mut events = self.events();
        if event.class == Class::DrainStarted
            && let Some(netns) = event.netns
            && events.draining.len() < MAX_NAMESPACES
        {
            events.draining.insert(netns);
        }
        let more = u64::from(event.retransmission != Some(true));
        let action = events.action;
        let counts = events.of(Pair::of(event));
        add(counts, event.class, event.action, more);
        if event.class == Class::DrainStarted
            && let Some(action) = action
        {
            // Its first stale SYN is an increase then.
            add(counts, Class::StaleReuse, action, 0);
        }
    }

    /// Sets the count of losses of a stage.
    pub fn set_lost(&self, stage: &'static str, total: u64) {
        self.losses
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(stage, total);
    }

    /// Namespaces that drains began in.
    pub(super) fn draining(&self) -> Vec<u32> {
        self.events().draining.iter().copied().collect()
    }

    /// A namespace is gone.
    pub(super) fn forget_namespace(&self, netns: u32) {
        self.events().draining.remove(&netns);
    }

    /// Every count, with service and destination, in their order.
    pub(super) fn all(&self) -> Vec<([String; 2], Count)> {
        let (mut rows, others) = {
            let events = self.events();
            let rows: Vec<(Pair, Vec<Count>)> = events
                .pairs
                .iter()
                .map(|(pair, row)| (*pair, row.counts.clone()))
                .collect();
            (rows, events.others.clone())
        };
        rows.sort_unstable_by_key(|(pair, _)| *pair);
        let mut all = Vec::new();
        for (pair, counts) in rows {
            let labels = pair.labels();
            all.extend(counts.into_iter().map(|count| (labels.clone(), count)));
        }
        all.extend(others.into_iter().map(|count| (Pair::others(), count)));
        all
    }

    /// Losses by stage.
    pub(super) fn lost(&self) -> BTreeMap<&'static str, u64> {
        self.losses
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    fn events(&self) -> MutexGuard<'_, Events> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Events {
    /// The counts of a pair: its own, or those of all that have none.
    fn of(&mut self, pair: Pair) -> &mut Vec<Count> {
        let now = Instant::now();
        if !self.pairs.contains_key(&pair) && !self.has_place(now) {
            return &mut self.others;
        }
        let row = self.pairs.entry(pair).or_insert_with(|| Row {
            seen: now,
            counts: Vec::new(),
        });
        row.seen = now;
        &mut row.counts
    }

    fn has_place(&mut self, now: Instant) -> bool {
        if self.pairs.len() < MAX_PAIRS {
            return true;
        }
        let due = self
            .swept
            .is_none_or(|swept| now.duration_since(swept) >= SWEEP_EVERY);
        if due {
            self.swept = Some(now);
            self.pairs
                .retain(|_, row| now.duration_since(row.seen) < IDLE);
        }
        self.pairs.len() < MAX_PAIRS
    }
}

fn add(counts: &mut Vec<Count>, class: Class, action: Action, more: u64) {
    let known = counts
        .iter_mut()
        .find(|count| count.class == class && count.action == action);
    match known {
        Some(count) => count.events += more,
        None => counts.push(Count {
            class,
            action,
            events: more,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;

    fn event(class: Class, port: u16) -> Event {
        let mut event = Event::new(class, Clock::now(), "h".into());
        event.service_address = Some("10.0.0.1".parse().unwrap());
        event.service_port = Some(port);
        event.real_address = Some("10.0.0.2".parse().unwrap());
        event.real_port = Some(8080);
        event.netns = Some(7);
        event
    }

    fn total(counts: &Counts, class: Class) -> u64 {
        let of_class =
            |(_, count): &([String; 2], Count)| (count.class == class).then_some(count.events);
        counts.all().iter().filter_map(of_class).sum()
    }

    #[test]
    fn a_retransmission_is_the_same_incident() {
        let counts = Counts::default();
        let mut stale = event(Class::StaleReuse, 80);
        counts.count(&stale);
        stale.retransmission = Some(true);
        counts.count(&stale);
        assert_eq!(total(&counts, Class::StaleReuse), 1);
        let (labels, _) = &counts.all()[0];
        assert_eq!(labels, &["10.0.0.1:80", "10.0.0.2:8080"]);
    }

    #[test]
    fn pairs_are_bounded_and_none_goes_uncounted() {
        let counts = Counts::default();
        let ports = MAX_PAIRS as u16 + 100;
        for _ in 0..2 {
            for port in 0..ports {
                counts.count(&event(Class::StaleReuse, port));
            }
        }
        let all = counts.all();
        assert_eq!(all.len(), MAX_PAIRS + 1);
        assert_eq!(all.last().unwrap().0, Pair::others());
        assert_eq!(all.last().unwrap().1.events, 200);
        assert_eq!(total(&counts, Class::StaleReuse), 2 * u64::from(ports));
    }

    #[test]
    fn an_idle_pair_gives_its_place_up_and_a_busy_one_does_not() {
        let mut events = Events::default();
        let pair = |port| Pair::of(&event(Class::StaleReuse, port));
        for port in 0..MAX_PAIRS as u16 {
            add(
                events.of(pair(port)),
                Class::StaleReuse,
                Action::Observed,
                1,
            );
        }
        let now = Instant::now();
        assert!(!events.has_place(now + IDLE / 2));
        events.pairs.get_mut(&pair(3)).unwrap().seen = now + IDLE;
        assert!(events.has_place(now + IDLE + SWEEP_EVERY));
        assert_eq!(events.pairs.keys().collect::<Vec<_>>(), [&pair(3)]);
    }

    #[test]
    fn what_is_expected_begins_at_0() {
        let counts = Counts::default();
        counts.expect(&[Class::StaleReuse, Class::Loss], Action::Reset);
        let all = counts.all();
        assert_eq!(all.len(), 1);
        assert_eq!(all[0].0, Pair::others());
        assert_eq!(all[0].1.events, 0);
        counts.count(&event(Class::DrainStarted, 80));
        let of_pair: Vec<Count> = counts.all().into_iter().map(|(_, count)| count).collect();
        assert_eq!(
            of_pair[1],
            Count {
                class: Class::StaleReuse,
                action: Action::Reset,
                events: 0
            }
        );
        assert_eq!(counts.draining(), [7]);
    }
}
