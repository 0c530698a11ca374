//! SYNs whose verdict awaits them on their way out.

use std::{
    collections::{HashMap, VecDeque},
    time::{Duration, Instant},
};

use ipvs_guard_common::{event::SynRecord, guard::VerdictKey, state::Forwarding};

/// How long a SYN may take from the probe to the device: it is one call. After
/// that it waits for a neighbour's address, or left by a way without our program.
const PATIENCE: Duration = Duration::from_millis(5);
/// SYNs under way at most.
const MOST: usize = 65_536;

/// SYNs under way, the oldest first.
#[derive(Default)]
pub(super) struct Pending {
    records: HashMap<VerdictKey, SynRecord>,
    due: VecDeque<(Instant, VerdictKey)>,
}

impl Pending {
    /// A SYN was given a verdict; gives back one that there is no room for.
    pub(super) fn add(&mut self, syn: SynRecord, now: Instant) -> Option<SynRecord> {
        if self.records.len() >= MOST {
            return Some(syn);
        }
        let key = key(&syn);
        self.due.push_back((now + PATIENCE, key));
        self.records.insert(key, syn)
    }

    /// A SYN was met on its way out.
    pub(super) fn met(&mut self, key: &VerdictKey) -> Option<SynRecord> {
        self.records.remove(key)
    }

    /// When the next one is overdue.
    pub(super) fn next_due(&mut self) -> Option<Instant> {
        while let Some((due, key)) = self.due.front() {
            if self.records.contains_key(key) {
                return Some(*due);
            }
            self.due.pop_front();
        }
        None
    }

    /// One that is left, due or not.
    pub(super) fn drain(&mut self) -> Option<SynRecord> {
        self.next_due()?;
        let (_, key) = self.due.pop_front()?;
        self.records.remove(&key)
    }

    /// One that is overdue.
    pub(super) fn overdue(&mut self, now: Instant) -> Option<SynRecord> {
        if self.next_due()? > now {
            return None;
        }
        let (_, key) = self.due.pop_front()?;
        self.records.remove(&key)
    }
}

/// How the SYN of a record is known on its way out: `probe/enforce.rs` of the
/// kernel side makes the same.
pub(super) fn key(syn: &SynRecord) -> VerdictKey {
    let translated = Forwarding::from_flags(syn.conn_flags) == Some(Forwarding::Masq);
    let to = if translated { &syn.dest } else { &syn.vip };
    VerdictKey {
        addr: *to.addr(),
        port: to.port().to_be_bytes(),
        pad: [0; 2],
        seq: syn.seq,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn syn(seq: u32) -> SynRecord {
        SynRecord {
            seq,
            ..SynRecord::default()
        }
    }

    #[test]
    fn a_syn_is_met_once_or_overdue_once() {
        let mut pending = Pending::default();
        let now = Instant::now();
        assert_eq!(pending.add(syn(1), now), None);
        assert_eq!(pending.add(syn(2), now), None);
        assert_eq!(pending.met(&key(&syn(1))), Some(syn(1)));
        assert_eq!(pending.met(&key(&syn(1))), None);
        assert_eq!(pending.overdue(now), None);
        let later = now + PATIENCE;
        assert_eq!(pending.overdue(later), Some(syn(2)));
        assert_eq!(pending.overdue(later), None);
        assert_eq!(pending.next_due(), None);
    }

    #[test]
    fn there_is_a_most() {
        let mut pending = Pending::default();
        let now = Instant::now();
        for seq in 0..MOST as u32 {
            assert_eq!(pending.add(syn(seq), now), None);
        }
        assert!(pending.add(syn(u32::MAX), now).is_some());
    }
}
