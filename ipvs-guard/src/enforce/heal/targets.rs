//! Where stale entries can go: the destinations of each service. Pure.

use std::{collections::HashMap, net::SocketAddr};

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
    /// What it has been passed over by, in weights: smooth round robin.
    credit: i64,
}

impl Target {
    pub(in crate::enforce) const fn new(
        address: SocketAddr,
        forwarding: Forwarding,
        weight: u32,
        full: bool,
    ) -> Self {
        Self {
            address,
            forwarding,
            weight,
            full,
            credit: 0,
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
}

/// Every TCP service and its destinations.
#[derive(Debug, Default)]
pub(in crate::enforce) struct Targets(HashMap<ServiceId, Vec<Target>>);

impl Targets {
    /// Takes what was read just now; who is next in turn stays.
    pub(in crate::enforce) fn renew(&mut self, mut now: HashMap<ServiceId, Vec<Target>>) {
        for (service, targets) in &mut now {
            let Some(before) = self.0.get(service) else {
                continue;
            };
            for target in targets {
                let known = before.iter().find(|old| old.address == target.address);
                target.credit = known.map_or(0, |old| old.credit);
            }
        }
        self.0 = now;
    }

    /// Chooses by weight where the entry of `service` goes that leads to `from`.
    pub(in crate::enforce) fn choose(
        &mut self,
        service: SocketAddr,
        from: SocketAddr,
    ) -> Result<Choice, Nowhere> {
        let id = self.service_of(service, from)?;
        let targets = self.0.get_mut(&id).ok_or(Nowhere::Unknown)?;
        let same = |target: &Target| {
            target.address == from || target.address == SocketAddr::new(from.ip(), 0)
        };
        let forwarding = targets
            .iter()
            .find(|target| same(target))
            .map(|target| target.forwarding)
            .ok_or(Nowhere::Unknown)?;
        let family = from.is_ipv4();
        let mut total = 0;
        let mut best: Option<&mut Target> = None;
        for target in targets.iter_mut().filter(|target| {
            target.weight > 0
                && !target.full
                && target.forwarding == forwarding
                && target.address.is_ipv4() == family
        }) {
            let weight = i64::from(target.weight);
            total += weight;
            target.credit += weight;
            if best.as_ref().is_none_or(|best| target.credit > best.credit) {
                best = Some(target);
            }
        }
        let best = best.ok_or(Nowhere::NoneAlive)?;
        best.credit -= total;
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
            let targets = self.0.get(&id)?;
            has(targets).then_some(id)
        };
        let by_address =
            of_address(service).or_else(|| of_address(SocketAddr::new(service.ip(), 0)));
        let mut marks = self
            .0
            .iter()
            .filter(|(id, targets)| matches!(id, ServiceId::Fwmark { .. }) && has(targets));
        match (by_address, marks.next(), marks.next()) {
            (Some(id), None, None) => Ok(id),
            (None, Some((id, _)), None) => Ok(*id),
            (None, None, None) => Err(Nowhere::Unknown),
            _ => Err(Nowhere::Ambiguous),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::ipvs::Family;

    const SERVICE: &str = "203.0.113.1:80";

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn targets(list: &[(ServiceId, &[(&str, u32)])]) -> Targets {
        let mut targets = Targets::default();
        let of = |destinations: &[(&str, u32)]| {
            destinations
                .iter()
                .map(|(address, weight)| Target::new(at(address), Forwarding::Masq, *weight, false))
                .collect()
        };
        targets.renew(list.iter().map(|(id, d)| (*id, of(d))).collect());
        targets
    }

    #[test]
    fn destinations_are_chosen_by_weight() {
        let service = ServiceId::tcp(at(SERVICE));
        let mut targets = targets(&[(
            service,
            &[
                ("198.51.100.2:8080", 0),
                ("198.51.100.6:8080", 3),
                ("198.51.100.10:8080", 1),
            ],
        )]);
        let mut counts = HashMap::new();
        for _ in 0..400 {
            let choice = targets
                .choose(at(SERVICE), at("198.51.100.2:8080"))
                .unwrap();
            assert_eq!(choice.fwmark, 0);
            *counts.entry(choice.destination).or_insert(0) += 1;
        }
        assert_eq!(counts[&at("198.51.100.6:8080")], 300);
        assert_eq!(counts[&at("198.51.100.10:8080")], 100);
    }

    #[test]
    fn only_a_living_destination_of_the_same_method_will_do() {
        let service = ServiceId::tcp(at(SERVICE));
        let mut targets = targets(&[(
            service,
            &[("198.51.100.2:8080", 0), ("198.51.100.6:8080", 0)],
        )]);
        let from = at("198.51.100.2:8080");
        assert_eq!(targets.choose(at(SERVICE), from), Err(Nowhere::NoneAlive));
        for (forwarding, full) in [(Forwarding::Dr, false), (Forwarding::Masq, true)] {
            let list = targets.0.get_mut(&service).unwrap();
            list[1] = Target::new(at("198.51.100.6:8080"), forwarding, 1, full);
            assert_eq!(targets.choose(at(SERVICE), from), Err(Nowhere::NoneAlive));
        }
        assert_eq!(
            targets.choose(at("203.0.113.9:80"), from),
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
        let mut one = targets(&[(mark(7), list)]);
        assert_eq!(
            one.choose(at(SERVICE), from),
            Ok(Choice {
                destination: at("198.51.100.6:80"),
                fwmark: 7,
                forwarding: Forwarding::Masq,
            })
        );
        let mut two = targets(&[(mark(7), list), (mark(8), list)]);
        assert_eq!(two.choose(at(SERVICE), from), Err(Nowhere::Ambiguous));
        let all_ports = ServiceId::tcp(at("203.0.113.1:0"));
        let mut both = targets(&[(mark(7), list), (all_ports, list)]);
        assert_eq!(both.choose(at(SERVICE), from), Err(Nowhere::Ambiguous));
    }
}
