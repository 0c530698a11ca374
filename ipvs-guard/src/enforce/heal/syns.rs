//! The names of entries that a stale SYN came to, held back or not: a pass over the
//! table, which read them before, leaves them alone for a moment.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use super::message::Entry;

/// How long a SYN is remembered: longer than an entry that was read
/// can wait to be told of.
const MOMENT: Duration = Duration::from_secs(5);
/// How many there can be before those that are over are looked for.
const TIDY: usize = 1_024;
/// How many there can be at all.
const MOST: usize = 65_536;

/// Client and virtual service.
type Name = (SocketAddr, SocketAddr);

/// Shared by who holds SYNs back and who goes over the table.
#[derive(Debug, Default)]
pub(in crate::enforce) struct SynNames(Mutex<Names>);

#[derive(Debug, Default)]
struct Names {
    since: HashMap<Name, Instant>,
    tidy_at: usize,
}

impl SynNames {
    fn lock(&self) -> MutexGuard<'_, Names> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A stale SYN came. False when there are too many to remember it.
    #[must_use]
    pub(in crate::enforce) fn add(&self, client: SocketAddr, service: SocketAddr) -> bool {
        let mut names = self.lock();
        if names.since.len() >= names.tidy_at.max(TIDY) {
            names.since.retain(|_, since| since.elapsed() < MOMENT);
            names.tidy_at = names.since.len() * 2;
        }
        let room = names.since.len() < MOST;
        if room {
            names.since.insert((client, service), Instant::now());
        }
        room
    }

    /// Leaves those entries out that a SYN came to.
    pub(super) fn leave_out<N>(&self, entries: &mut Vec<(N, Entry)>) {
        let names = self.lock();
        if names.since.is_empty() {
            return;
        }
        entries.retain(|(_, entry)| {
            let since = names.since.get(&(entry.client, entry.service));
            since.is_none_or(|since| since.elapsed() >= MOMENT)
        });
    }
}

#[cfg(test)]
mod tests {
    use super::{super::message::mark, *};

    #[test]
    fn entries_of_syns_are_left_out() {
        let syns = SynNames::default();
        let [entry, _] = mark(1);
        let mut other = entry;
        other.client.set_port(10);
        assert!(syns.add(entry.client, entry.service));
        let mut entries = vec![((), entry), ((), other)];
        syns.leave_out(&mut entries);
        assert_eq!(entries, [((), other)]);
    }

    #[test]
    fn what_is_over_is_forgotten() {
        let syns = SynNames::default();
        let long_ago = Instant::now().checked_sub(MOMENT * 2).unwrap();
        let [entry, _] = mark(1);
        let name = |number: usize| SocketAddr::from((entry.client.ip(), number as u16 + 1));
        for number in 0..TIDY {
            let name = (name(number), entry.service);
            syns.lock().since.insert(name, long_ago);
        }
        assert!(syns.add(name(TIDY), entry.service));
        assert_eq!(syns.lock().since.len(), 1);
    }
}
