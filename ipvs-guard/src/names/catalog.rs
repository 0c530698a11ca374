//! What the API server told, object by object, bounded, and the table that comes of it.

use std::{
    collections::{HashMap, VecDeque},
    time::{Duration, Instant},
};

/// How long the names of what has gone are kept: IPVS has entries of an established
/// connection for 15 min by default, and it is the dead whose names matter here.
pub(super) const AFTERLIFE: Duration = Duration::from_secs(20 * 60);

/// An object's namespace and name.
pub(super) type Id = (String, String);

/// Objects of one kind, each with the names `N` that it gives to places `P`.
pub(super) struct Catalog<P, N> {
    objects: HashMap<Id, Object<P, N>>,
    departed: VecDeque<(Instant, P, N)>,
    /// Of the last list that began.
    round: u32,
    /// Places with a name, those of what has departed left out.
    count: usize,
    most: usize,
    left_out: u64,
}

struct Object<P, N> {
    round: u32,
    names: Vec<(P, N)>,
}

impl<P: Clone + PartialEq, N: Clone + PartialEq> Catalog<P, N> {
    /// One that names so many places at most, and an eighth of that of what has gone.
    pub(super) fn new(most: usize) -> Self {
        Self {
            objects: HashMap::new(),
            departed: VecDeque::new(),
            round: 0,
            count: 0,
            most,
            left_out: 0,
        }
    }

    /// All objects are going to be told anew.
    pub(super) fn begin(&mut self) {
        self.round = self.round.wrapping_add(1);
    }

    /// All have been told since [`Self::begin`]: others are gone. Whether there were any.
    pub(super) fn end(&mut self, now: Instant) -> bool {
        let round = self.round;
        let gone: Vec<Id> = self
            .objects
            .iter()
            .filter(|(_, object)| object.round != round)
            .map(|(id, _)| id.clone())
            .collect();
        for id in &gone {
            self.remove(id, now);
        }
        !gone.is_empty()
    }

    /// The object `id` gives these names; whether that is new. One too many is left out
    /// and counted.
    pub(super) fn put(&mut self, id: Id, names: Vec<(P, N)>, now: Instant) -> bool {
        let round = self.round;
        if let Some(known) = self.objects.get_mut(&id) {
            known.round = round;
            if known.names == names {
                return false;
            }
        }
        let before = self.take(&id);
        let stays = |place: &P| names.iter().any(|(other, _)| other == place);
        for (place, name) in before.iter().flatten().filter(|(place, _)| !stays(place)) {
            self.depart(place.clone(), name.clone(), now);
        }
        if self.count + names.len() > self.most {
            self.left_out += names.len() as u64;
            return before.is_some();
        }
        if names.is_empty() {
            return before.is_some();
        }
        self.count += names.len();
        self.objects.insert(id, Object { round, names });
        true
    }

    /// The object has gone; whether it was known.
    pub(super) fn remove(&mut self, id: &Id, now: Instant) -> bool {
        let Some(names) = self.take(id) else {
            return false;
        };
        for (place, name) in names {
            self.depart(place, name, now);
        }
        true
    }

    fn take(&mut self, id: &Id) -> Option<Vec<(P, N)>> {
        let object = self.objects.remove(id)?;
        self.count -= object.names.len();
        Some(object.names)
    }

    fn depart(&mut self, place: P, name: N, now: Instant) {
        self.departed.push_back((now, place, name));
        while self.departed.len() > self.most / 8 {
            self.departed.pop_front();
        }
    }

    /// Forgets what departed long ago; whether there was any.
    pub(super) fn forget(&mut self, now: Instant) -> bool {
        let before = self.departed.len();
        self.departed
            .retain(|(at, _, _)| now.duration_since(*at) < AFTERLIFE);
        self.departed.len() != before
    }

    /// How many names were left out since the last call.
    pub(super) fn left_out(&mut self) -> u64 {
        std::mem::take(&mut self.left_out)
    }

    /// Names of what has gone, oldest first.
    pub(super) fn departed(&self) -> impl Iterator<Item = (&P, &N)> {
        self.departed.iter().map(|(_, place, name)| (place, name))
    }

    /// Names of what is there.
    pub(super) fn present(&self) -> impl Iterator<Item = (&P, &N)> {
        let names = self.objects.values().flat_map(|object| &object.names);
        names.map(|(place, name)| (place, name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(name: &str) -> Id {
        ("space".into(), name.into())
    }

    fn places(catalog: &Catalog<u32, &'static str>) -> (Vec<u32>, Vec<u32>) {
        let mut present: Vec<u32> = catalog.present().map(|(place, _)| *place).collect();
        present.sort_unstable();
        (
            present,
            catalog.departed().map(|(place, _)| *place).collect(),
        )
    }

    #[test]
    fn a_new_list_takes_away_what_it_lacks() {
        let now = Instant::now();
        let mut catalog = Catalog::new(100);
        catalog.begin();
        assert!(catalog.put(id("a"), vec![(1, "x"), (2, "y")], now));
        assert!(catalog.put(id("b"), vec![(3, "z")], now));
        assert!(!catalog.end(now));
        catalog.begin();
        assert!(!catalog.put(id("a"), vec![(1, "x"), (2, "y")], now));
        assert!(catalog.end(now));
        assert_eq!(places(&catalog), (vec![1, 2], vec![3]));
        assert!(catalog.put(id("a"), vec![(2, "y")], now));
        assert_eq!(places(&catalog), (vec![2], vec![3, 1]));
    }

    #[test]
    fn the_departed_are_forgotten_in_time() {
        let now = Instant::now();
        let mut catalog = Catalog::new(100);
        catalog.put(id("a"), vec![(1, "x")], now);
        assert!(catalog.remove(&id("a"), now));
        assert!(!catalog.remove(&id("a"), now));
        assert!(!catalog.forget(now + AFTERLIFE / 2));
        assert!(catalog.forget(now + AFTERLIFE));
        assert_eq!(places(&catalog), (vec![], vec![]));
    }

    #[test]
    fn it_is_bounded() {
        let now = Instant::now();
        let mut catalog = Catalog::new(80);
        for number in 0..1_000_u32 {
            let name = number.to_string();
            catalog.put(id(&name), vec![(number, "x")], now);
        }
        assert_eq!(places(&catalog).0.len(), 80);
        assert_eq!((catalog.left_out(), catalog.left_out()), (920, 0));
        for number in 0..80_u32 {
            catalog.remove(&id(&number.to_string()), now);
        }
        // The youngest stay; there is room again.
        assert_eq!(places(&catalog), (vec![], (70..80).collect()));
        assert!(catalog.put(id("new"), vec![(1, "x")], now));
    }
}
