//! Where stale entries can go: the destinations of each service. Pure.

use std::{hash::BuildHasher as _, net::SocketAddr};

use foldhash::{HashMap, fast::RandomState};
use ipvs_guard_common::state::Forwarding;

use crate::netlink::ipvs::ServiceId;

/// A destination, as a place to go to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::enforce) struct Target {
    pub(in crate::enforce) address: SocketAddr,
    pub(in crate::enforce) forwarding: Forwarding,
    pub(in crate::enforce) weight: u32,
    /// It has as many connections as it may.
    pub(in crate::enforce) full: bool,
    /// Entries that a pass may move there; `None`: any number. One that comes to its
    /// upper threshold gets no new connections either, until it is well below
    /// (`ip_vs_bind_dest`, 5.10 to 7.3).
    pub(in crate::enforce) room: Option<u32>,
    /// It is tunnelled to in a form that the program on the way out does not look into.
    pub(in crate::enforce) opaque: bool,
}

impl Target {
    pub(in crate::enforce) const fn new(
        address: SocketAddr,
        forwarding: Forwarding,
        weight: u32,
    ) -> Self {
        Self {
            address,
            forwarding,
            weight,
            full: false,
            room: None,
            opaque: false,
        }
    }

    /// The same with an upper threshold, which is none if 0, of so many connections.
    pub(in crate::enforce) const fn bounded(self, most: u32, connections: u32) -> Self {
        if most == 0 {
            return self;
        }
        let calm = most / 4 * 3;
        Self {
            full: connections >= most,
            room: Some(calm.saturating_sub(connections)),
            ..self
        }
    }
}

/// Where an entry goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::enforce) struct Choice {
    pub(in crate::enforce) destination: SocketAddr,
    /// Of the service, or 0.
    pub(in crate::enforce) fwmark: u32,
    /// How packets get there.
    pub(in crate::enforce) forwarding: Forwarding,
}

/// Why an entry has nowhere to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::enforce) enum Nowhere {
    /// No destination of weight above 0 that is reached by the same method.
    NoneAlive,
    /// It can be of several services: an entry does not tell its firewall mark.
    Ambiguous,
    /// No service has its destination.
    Unknown,
    /// The destination that it would go to has no room for entries that wait for nobody.
    Full,
}

/// Every TCP service and its destinations.
#[derive(Debug, Default)]
pub(in crate::enforce) struct Targets {
    services: HashMap<ServiceId, Vec<Target>>,
    /// Those of them by firewall mark.
    marks: Vec<ServiceId>,
    /// One of them has an upper threshold.
    is_bounded: bool,
    hasher: RandomState,
}

impl Targets {
    /// Takes what was read just now.
    pub(in crate::enforce) fn renew(&mut self, now: HashMap<ServiceId, Vec<Target>>) {
        self.is_bounded = now.values().flatten().any(|target| target.room.is_some());
        self.marks = now
            .keys()
            .filter(|id| matches!(id, ServiceId::Fwmark { .. }))
            .copied()
            .collect();
        self.services = now;
    }

    /// Whether nothing was read yet.
    pub(in crate::enforce) fn is_empty(&self) -> bool {
        self.services.is_empty()
    }

    /// The weight of a destination changes, or it goes: 0. Its service has a firewall
    /// mark, or this address if that is 0.
    pub(in crate::enforce) fn set_weight(
        &mut self,
        fwmark: u32,
        service: SocketAddr,
        destination: SocketAddr,
        weight: u32,
    ) {
        for (id, targets) in &mut self.services {
            let is_its = match id {
                ServiceId::Fwmark { mark, .. } => *mark == fwmark,
                ServiceId::Address { address, .. } => fwmark == 0 && *address == service,
            };
            let target = targets.iter_mut().find(|t| t.address == destination);
            if let Some(target) = target.filter(|_| is_its) {
                target.weight = weight;
            }
        }
    }

    /// Whether a SYN of `service` to `destination` leaves without being recognised.
    pub(in crate::enforce) fn is_opaque(
        &self,
        service: SocketAddr,
        destination: SocketAddr,
    ) -> bool {
        let any_port = SocketAddr::new(destination.ip(), 0);
        let is_it = |target: &&Target| [destination, any_port].contains(&target.address);
        match self.service_of(service, destination) {
            Ok(id) => {
                let mut targets = self.services.get(&id).into_iter().flatten();
                targets.find(is_it).is_some_and(|target| target.opaque)
            }
            Err(_) => true,
        }
    }

    /// As [`Self::choose`], for an entry that nobody uses at the moment: it takes its
    /// destination's room.
    pub(in crate::enforce) fn place(
        &mut self,
        client: SocketAddr,
        service: SocketAddr,
        from: SocketAddr,
    ) -> Result<Choice, Nowhere> {
        let choice = self.choose(client, service, from)?;
        if self.is_bounded {
            let id = self.service_of(service, from)?;
            let targets = self.services.get_mut(&id).into_iter().flatten();
            let is_it = |target: &&mut Target| {
                target.address == choice.destination
                    || target.address == SocketAddr::new(choice.destination.ip(), 0)
            };
            let mut its = targets.filter(is_it);
            if let Some(room) = its.find_map(|target| target.room.as_mut()) {
                *room = room.checked_sub(1).ok_or(Nowhere::Full)?;
            }
        }
        Ok(choice)
    }

    /// Chooses by weight where the entry of `client` and `service` goes that leads to
    /// `from`: always the same destination as long as there are the same ones, whoever
    /// asks. An entry may be told of twice, and is not to be moved twice: the second
    /// time it can carry a living connection.
    pub(in crate::enforce) fn choose(
        &self,
        client: SocketAddr,
        service: SocketAddr,
        from: SocketAddr,
    ) -> Result<Choice, Nowhere> {
        let id = self.service_of(service, from)?;
        let targets = self.services.get(&id).ok_or(Nowhere::Unknown)?;
        let same = |target: &&Target| {
            target.address == from || target.address == SocketAddr::new(from.ip(), 0)
        };
        let forwarding = targets
            .iter()
            .find(same)
            .map(|target| target.forwarding)
            .ok_or(Nowhere::Unknown)?;
        // Rendezvous: each has a number of its own for this entry, the higher the more
        // it weighs, and the highest has it.
        let number = |target: &Target| {
            let hash = self.hasher.hash_one((client, service, target.address));
            let drawn = (hash as f64 + 1.0) / (u64::MAX as f64 + 2.0);
            -f64::from(target.weight) / drawn.ln()
        };
        let mut living = targets.iter().filter(|target| {
            target.weight > 0
                && !same(target)
                && !target.full
                && target.forwarding == forwarding
                && target.address.is_ipv4() == from.is_ipv4()
        });
        let first = living.next().ok_or(Nowhere::NoneAlive)?;
        let best = match living.next() {
            None => first,
            // A number takes a logarithm: one for each.
            Some(second) => {
                let rest = living.map(|target| (number(target), target));
                let two = [(number(first), first), (number(second), second)];
                let all = two.into_iter().chain(rest);
                all.max_by(|(one, _), (other, _)| one.total_cmp(other))
                    .map_or(first, |(_, target)| target)
            }
        };
        let port = match best.address.port() {
            0 => from.port(),
            port => port,
        };
        Ok(Choice {
            destination: SocketAddr::new(best.address.ip(), port),
            fwmark: match id {
                ServiceId::Fwmark { mark, .. } => mark,
                ServiceId::Address { .. } => 0,
            },
            forwarding,
        })
    }

    /// The one service that an entry can be of.
    fn service_of(&self, service: SocketAddr, from: SocketAddr) -> Result<ServiceId, Nowhere> {
        let has = |targets: &[Target]| {
            targets.iter().any(|target| {
                target.address == from || target.address == SocketAddr::new(from.ip(), 0)
            })
        };
        let of_address = |address| {
            let id = ServiceId::tcp(address);
            let targets = self.services.get(&id)?;
            has(targets).then_some(id)
        };
        let by_address =
            of_address(service).or_else(|| of_address(SocketAddr::new(service.ip(), 0)));
        let mut marks = self
            .marks
            .iter()
            .filter(|id| self.services.get(*id).is_some_and(|targets| has(targets)));
        match (by_address, marks.next(), marks.next()) {
            (Some(id), None, None) => Ok(id),
            (None, Some(id), None) => Ok(*id),
            (None, None, None) => Err(Nowhere::Unknown),
            _ => Err(Nowhere::Ambiguous),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::ipvs::Family;

    const CLIENT: &str = "192.0.2.2:40000";
    const SERVICE: &str = "203.0.113.1:80";

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn targets(list: &[(ServiceId, &[(&str, u32)])]) -> Targets {
        let mut targets = Targets::default();
        let of = |destinations: &[(&str, u32)]| {
            destinations
                .iter()
                .map(|(address, weight)| Target::new(at(address), Forwarding::Masq, *weight))
                .collect()
        };
        targets.renew(list.iter().map(|(id, d)| (*id, of(d))).collect());
        targets
    }

    #[test]
    fn destinations_are_chosen_by_weight() {
        let service = ServiceId::tcp(at(SERVICE));
        let targets = targets(&[(
            service,
            &[
                ("198.51.100.2:8080", 0),
                ("198.51.100.6:8080", 3),
                ("198.51.100.10:8080", 1),
            ],
        )]);
        let mut counts = HashMap::default();
        for port in 1..=40_000 {
            let client = SocketAddr::from(([192, 0, 2, 2], port));
            let choose = || targets.choose(client, at(SERVICE), at("198.51.100.2:8080"));
            let choice = choose().unwrap();
            assert_eq!(choice.fwmark, 0);
            assert_eq!(choose(), Ok(choice));
            *counts.entry(choice.destination).or_insert(0) += 1;
        }
        assert_eq!(counts.len(), 2);
        // A deviation of 87 is the usual one.
        let lighter: i32 = counts[&at("198.51.100.10:8080")];
        assert!((lighter - 10_000).abs() < 900, "{lighter}");
    }

    #[test]
    fn only_a_living_destination_of_the_same_method_will_do() {
        let service = ServiceId::tcp(at(SERVICE));
        let mut targets = targets(&[(
            service,
            &[("198.51.100.2:8080", 0), ("198.51.100.6:8080", 0)],
        )]);
        let from = at("198.51.100.2:8080");
        assert_eq!(
            targets.choose(at(CLIENT), at(SERVICE), from),
            Err(Nowhere::NoneAlive)
        );
        let mut withdrawn = Targets::default();
        let two = |weight| {
            ["198.51.100.2:8080", "198.51.100.6:8080"]
                .map(|text| Target::new(at(text), Forwarding::Masq, weight))
                .to_vec()
        };
        withdrawn.renew([(service, two(1))].into_iter().collect());
        withdrawn.set_weight(0, at(SERVICE), from, 0);
        let other = at("198.51.100.6:8080");
        withdrawn.set_weight(7, at(SERVICE), other, 0);
        withdrawn.set_weight(0, at("203.0.113.9:80"), other, 0);
        let choice = withdrawn.choose(at(CLIENT), at(SERVICE), from).unwrap();
        assert_eq!(choice.destination, other);
        for (forwarding, full) in [(Forwarding::Dr, false), (Forwarding::Masq, true)] {
            let list = targets.services.get_mut(&service).unwrap();
            list[1] =
                Target::new(at("198.51.100.6:8080"), forwarding, 1).bounded(u32::from(full) * 9, 9);
            assert_eq!(
                targets.choose(at(CLIENT), at(SERVICE), from),
                Err(Nowhere::NoneAlive)
            );
        }
        assert_eq!(
            targets.choose(at(CLIENT), at("203.0.113.9:80"), from),
            Err(Nowhere::Unknown)
        );
    }

    #[test]
    fn a_firewall_mark_is_found_by_its_destination_unless_it_is_ambiguous() {
        let mark = |mark| ServiceId::Fwmark {
            mark,
            family: Family::Inet,
        };
        let list: &[(&str, u32)] = &[("198.51.100.2:0", 0), ("198.51.100.6:0", 1)];
        let from = at("198.51.100.2:80");
        let one = targets(&[(mark(7), list)]);
        assert_eq!(
            one.choose(at(CLIENT), at(SERVICE), from),
            Ok(Choice {
                destination: at("198.51.100.6:80"),
                fwmark: 7,
                forwarding: Forwarding::Masq,
            })
        );
        let two = targets(&[(mark(7), list), (mark(8), list)]);
        assert_eq!(
            two.choose(at(CLIENT), at(SERVICE), from),
            Err(Nowhere::Ambiguous)
        );
        let all_ports = ServiceId::tcp(at("203.0.113.1:0"));
        let both = targets(&[(mark(7), list), (all_ports, list)]);
        assert_eq!(
            both.choose(at(CLIENT), at(SERVICE), from),
            Err(Nowhere::Ambiguous)
        );
    }

    #[test]
    fn a_pass_takes_the_room_below_an_upper_threshold_and_no_more() {
        let of = |connections| {
            let service = ServiceId::tcp(at(SERVICE));
            let [from, to] = ["198.51.100.2:8080", "198.51.100.6:8080"];
            let to = Target::new(at(to), Forwarding::Masq, 1).bounded(8, connections);
            let from = Target::new(at(from), Forwarding::Masq, 0);
            let mut targets = Targets::default();
            targets.renew([(service, vec![from, to])].into_iter().collect());
            targets
        };
        let place =
            |targets: &mut Targets| targets.place(at(CLIENT), at(SERVICE), at("198.51.100.2:8080"));
        let mut targets = of(4);
        assert!(place(&mut targets).is_ok() && place(&mut targets).is_ok());
        assert_eq!(place(&mut targets), Err(Nowhere::Full));
        // A SYN is a connection as any other.
        let choose =
            |targets: &Targets| targets.choose(at(CLIENT), at(SERVICE), at("198.51.100.2:8080"));
        assert!(choose(&targets).is_ok());
        assert_eq!(place(&mut of(7)), Err(Nowhere::Full));
        assert_eq!(choose(&of(8)), Err(Nowhere::NoneAlive));
    }
}
