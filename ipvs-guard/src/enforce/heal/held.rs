//! The names of entries whose SYN is held back, or was a moment ago: a pass over the
//! table, which read them before, leaves them alone.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use super::message::Entry;

/// How long a SYN that was sent on is remembered: longer than an entry that was read
/// can wait to be told of.
const MOMENT: Duration = Duration::from_secs(5);
/// How many there can be before those that are over are looked for.
const TIDY: usize = 1_024;

/// Client and virtual service.
type Name = (SocketAddr, SocketAddr);

/// Shared by who holds SYNs back and who goes over the table.
#[derive(Debug, Default)]
pub(in crate::enforce) struct HeldNames(Mutex<Names>);

#[derive(Debug, Default)]
struct Names {
    since: HashMap<Name, Instant>,
    tidy_at: usize,
}

impl HeldNames {
    fn lock(&self) -> MutexGuard<'_, Names> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A SYN is held back.
    pub(super) fn add(&self, client: SocketAddr, service: SocketAddr) {
        let mut names = self.lock();
        if names.since.len() >= names.tidy_at.max(TIDY) {
            names.since.retain(|_, since| since.elapsed() < MOMENT);
            names.tidy_at = names.since.len() * 2;
        }
        names.since.insert((client, service), Instant::now());
    }

    /// Leaves those entries out whose SYN is held back.
    pub(super) fn leave_out(&self, entries: &mut Vec<Entry>) {
        let names = self.lock();
        entries.retain(|entry| {
            let since = names.since.get(&(entry.client, entry.service));
            since.is_none_or(|since| since.elapsed() >= MOMENT)
        });
    }
}

#[cfg(test)]
mod tests {
    use super::{super::message::mark, *};

    #[test]
    fn entries_of_held_syns_are_left_out() {
        let held = HeldNames::default();
        let [entry, _] = mark(1);
        let mut other = entry;
        other.client.set_port(10);
        held.add(entry.client, entry.service);
        let mut entries = vec![entry, other];
        held.leave_out(&mut entries);
        assert_eq!(entries, [other]);
    }

    #[test]
    fn what_is_over_is_forgotten() {
        let held = HeldNames::default();
        let long_ago = Instant::now().checked_sub(MOMENT * 2).unwrap();
        let [entry, _] = mark(1);
        let name = |number: usize| SocketAddr::from((entry.client.ip(), number as u16 + 1));
        for number in 0..TIDY {
            let name = (name(number), entry.service);
            held.lock().since.insert(name, long_ago);
        }
        held.add(name(TIDY), entry.service);
        assert_eq!(held.lock().since.len(), 1);
    }
}
