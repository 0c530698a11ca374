//! Which entries of the connection table are stale flows. Pure: the scanner reads
//! what goes in and writes what comes out.

use std::net::SocketAddr;

use foldhash::{HashMap, HashSet};
use ipvs_guard_common::{
    addr::Endpoint,
    filter::Filter,
    guard::{FlowKey, SURE_LIFE_NS},
    state::{ConnState, Forwarding},
};

use crate::netlink::{
    conntable::ConnEntry,
    ipvs::{Protocol, ServiceId},
};

const SECOND: u64 = 1_000_000_000;
/// How long a weight is 0 before whole tables are healed, in nanoseconds: one that rises
/// again at once would find entries re-pointed that new connections are on. SYNs are
/// held back from the first moment.
const SETTLED_NS: u64 = 300_000_000;

/// A destination of weight 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Drain {
    /// When it began (`CLOCK_MONOTONIC`, nanoseconds).
    since: u64,
    forwarding: Forwarding,
}

/// Destinations of weight 0.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Draining {
    by_address: HashMap<(SocketAddr, SocketAddr), Drain>,
    /// Of services by firewall mark: the table does not tell an entry's mark.
    by_mark: HashMap<SocketAddr, Drain>,
    /// Destinations that do not drain, in services of an address and by mark.
    living: HashSet<(SocketAddr, SocketAddr)>,
    living_by_mark: HashSet<SocketAddr>,
}

impl Draining {
    /// `destination` of `service` drains `since` then.
    pub(super) fn add(
        &mut self,
        service: &ServiceId,
        destination: SocketAddr,
        forwarding: Forwarding,
        since: u64,
    ) {
        let drain = Drain { since, forwarding };
        match service {
            ServiceId::Address { address, .. } => {
                self.by_address.insert((*address, destination), drain);
            }
            ServiceId::Fwmark { .. } => {
                self.by_mark.insert(destination, drain);
            }
        }
    }

    /// `destination` of `service` does not drain: its entries are healthy, although the same
    /// real server may drain in another service.
    pub(super) fn add_living(&mut self, service: &ServiceId, destination: SocketAddr) {
        match service {
            ServiceId::Address { address, .. } => {
                self.living.insert((*address, destination));
            }
            ServiceId::Fwmark { .. } => {
                self.living_by_mark.insert(destination);
            }
        }
    }

    /// Each destination, once for every service that it drains in.
    pub(super) fn destinations(&self) -> impl Iterator<Item = SocketAddr> {
        let by_address = self.by_address.keys().map(|(_, destination)| *destination);
        by_address.chain(self.by_mark.keys().copied())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.by_address.is_empty() && self.by_mark.is_empty()
    }

    /// Whether whole tables are healed at `now` for one of these drains.
    pub(super) fn any_due(&self, grace_ns: u64, now: u64) -> bool {
        let settled = grace_ns.max(SETTLED_NS);
        self.since_all()
            .any(|since| since.saturating_add(settled) <= now)
    }

    /// Nanoseconds until whole tables are healed for the next of the drains that are not
    /// due yet.
    pub(super) fn next_due(&self, grace_ns: u64, now: u64) -> Option<u64> {
        let settled = grace_ns.max(SETTLED_NS);
        self.since_all()
            .filter_map(|since| since.saturating_add(settled).checked_sub(now))
            .filter(|left| *left > 0)
            .min()
    }

    fn since_all(&self) -> impl Iterator<Item = u64> {
        let marks = self.by_mark.values();
        let drains = self.by_address.values().chain(marks);
        drains.map(|drain| drain.since)
    }

    /// The drain of an entry's destination.
    fn of(&self, entry: &ConnEntry) -> Option<Drain> {
        let any_port = |address: SocketAddr| SocketAddr::new(address.ip(), 0);
        let of_all_ports = any_port(entry.destination);
        // As the kernel looks for its service (`ip_vs_service_find`, 5.10 to 7.3): what is
        // found first has it, draining or not.
        for pair in [
            (entry.service, entry.destination),
            (any_port(entry.service), of_all_ports),
        ] {
            if let Some(drain) = self.by_address.get(&pair) {
                return Some(*drain);
            }
            if self.living.contains(&pair) {
                return None;
            }
        }
        if self.by_mark.is_empty() {
            return None;
        }
        // Which mark it had is not known: where it can be healthy it is taken for that.
        let lives = |destination| self.living_by_mark.contains(destination);
        let drain = self.by_mark.get(&entry.destination);
        let drain = drain.or_else(|| self.by_mark.get(&of_all_ports));
        drain
            .filter(|_| !lives(&entry.destination) && !lives(&of_all_ports))
            .copied()
    }
}

/// The sysctls by which the kernel schedules a SYN anew: such a flow is healthy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Reschedules {
    /// `net.ipv4.vs.conn_reuse_mode`.
    pub(super) conn_reuse_mode: u32,
    /// `net.ipv4.vs.expire_nodest_conn`.
    pub(super) expire_nodest_conn: bool,
}

impl Reschedules {
    fn may_catch(self, state: ConnState) -> bool {
        self.expire_nodest_conn
            || (self.conn_reuse_mode != 0
                && matches!(
                    state,
                    ConnState::TimeWait | ConnState::Close | ConnState::FinWait
                ))
    }
}

/// A flow to be noted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Planned {
    pub(super) key: FlowKey,
    pub(super) dest: Endpoint,
    pub(super) deadline: u64,
    pub(super) not_before: u64,
    pub(super) state: ConnState,
    /// That of the destination: the table does not tell the entry's.
    pub(super) forwarding: Forwarding,
}

/// What an entry's stale flow comes to, if it is one; the table was read at `now`
/// or later.
pub(super) fn flow(
    entry: &ConnEntry,
    draining: &Draining,
    reschedules: Reschedules,
    filter: &Filter,
    states: u32,
    grace_ns: u64,
    now: u64,
) -> Option<Planned> {
    if entry.protocol != Protocol::Tcp || entry.client.port() == 0 {
        return None;
    }
    let state = entry.state?;
    if states & (1 << state as u32) == 0 || reschedules.may_catch(state) {
        return None;
    }
    let left = entry.expires * SECOND;
    let left = match state {
        ConnState::Close => left,
        // They go on to states of their own times, CLOSE's being the shortest: a reset
        // brings each of them there.
        ConnState::TimeWait
        | ConnState::Established
        | ConnState::FinWait
        | ConnState::CloseWait
        | ConnState::LastAck => left.min(SURE_LIFE_NS),
        // Half open: a SYN there may be the repetition of a healthy one.
        ConnState::None
        | ConnState::SynSent
        | ConnState::SynRecv
        | ConnState::SynAck
        | ConnState::Listen => return None,
    };
    let drain = draining.of(entry)?;
    admits(filter, entry).then(|| Planned {
        key: FlowKey {
            client: endpoint(entry.client),
            vip: endpoint(entry.service),
        },
        dest: endpoint(entry.destination),
        deadline: now + left,
        not_before: drain.since.saturating_add(grace_ns),
        state,
        forwarding: drain.forwarding,
    })
}

/// The state of a stale entry that can be re-pointed at `now`: nothing of its
/// connection can follow.
pub(super) fn mendable(
    entry: &ConnEntry,
    draining: &Draining,
    reschedules: Reschedules,
    filter: &Filter,
    states: u32,
    grace_ns: u64,
    now: u64,
) -> Option<ConnState> {
    let state = entry.state?;
    let closed = matches!(
        state,
        ConnState::TimeWait | ConnState::Close | ConnState::LastAck
    );
    if entry.protocol != Protocol::Tcp
        || entry.client.port() == 0
        || !closed
        || states & (1 << state as u32) == 0
        || reschedules.may_catch(state)
    {
        return None;
    }
    let grace_ns = grace_ns.max(SETTLED_NS);
    is_due(entry, draining, filter, grace_ns, now).then_some(state)
}

/// A real server that sent something within this time may yet repeat it, in nanoseconds.
pub(super) const SPEAKING_NS: u64 = 3 * SECOND;

/// Whether the last packet of a closing entry may be less than a second old. IPVS goes by
/// the packets that it has seen and not by their acknowledgement (`tcp_states`,
/// ip_vs_proto_tcp.c, 5.10 to 7.3): the last of them may have been lost, and be sent again.
pub(super) fn is_fresh(entry: &ConnEntry) -> bool {
    let whole = match entry.state {
        Some(ConnState::TimeWait) => 120,
        Some(ConnState::LastAck) => 30,
        // Nothing follows a reset.
        _ => return false,
    };
    // Every packet sets the timer anew; the table shows whole seconds that are left.
    (whole - 1..=whole).contains(&entry.expires)
}

/// Whether an entry is the persistence template of a destination of weight 0.
pub(super) fn is_stale_template(
    entry: &ConnEntry,
    draining: &Draining,
    filter: &Filter,
    grace_ns: u64,
    now: u64,
) -> bool {
    // Of a firewall mark it has no protocol.
    let kind = matches!(entry.protocol, Protocol::Tcp | Protocol::Other(0));
    kind && entry.client.port() == 0 && is_due(entry, draining, filter, grace_ns, now)
}

fn is_due(
    entry: &ConnEntry,
    draining: &Draining,
    filter: &Filter,
    grace_ns: u64,
    now: u64,
) -> bool {
    let drain = draining.of(entry);
    drain.is_some_and(|drain| drain.since.saturating_add(grace_ns) <= now) && admits(filter, entry)
}

fn admits(filter: &Filter, entry: &ConnEntry) -> bool {
    let Filter {
        client, vip, dest, ..
    } = filter;
    // Most often there is none, and a table is long.
    [
        (client, entry.client),
        (vip, entry.service),
        (dest, entry.destination),
    ]
    .into_iter()
    .all(|(rules, end)| rules.is_empty() || rules.admits(&endpoint(end)))
}

/// As the maps have it.
pub(super) fn endpoint(address: SocketAddr) -> Endpoint {
    Endpoint::new(address.ip().into(), address.port().to_be_bytes())
}

/// The reverse of [`endpoint`].
pub(super) fn address(end: &Endpoint) -> SocketAddr {
    SocketAddr::new(end.addr().ip(), end.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(state: ConnState, expires: u64) -> ConnEntry {
        ConnEntry {
            protocol: Protocol::Tcp,
            client: "192.0.2.2:40000".parse().unwrap(),
            service: "203.0.113.1:80".parse().unwrap(),
            destination: "198.51.100.2:8080".parse().unwrap(),
            state: Some(state),
            expires,
        }
    }

    fn draining() -> Draining {
        let mut draining = Draining::default();
        let entry = entry(ConnState::TimeWait, 0);
        draining.add(
            &ServiceId::tcp(entry.service),
            entry.destination,
            Forwarding::Dr,
            7,
        );
        draining
    }

    fn planned(
        entry: &ConnEntry,
        draining: &Draining,
        reschedules: Reschedules,
    ) -> Option<Planned> {
        let filter = Filter::default();
        flow(entry, draining, reschedules, &filter, u32::MAX, 3, 100)
    }

    #[test]
    fn tables_are_healed_once_a_weight_has_settled() {
        let mut draining = draining();
        let due = 7 + SETTLED_NS;
        assert!(!draining.any_due(0, due - 1));
        assert_eq!(draining.next_due(0, due - 1), Some(1));
        assert!(draining.any_due(0, due));
        assert_eq!(draining.next_due(0, due), None);
        let other = entry(ConnState::TimeWait, 0);
        let elsewhere = "198.51.100.9:8080".parse().unwrap();
        draining.add(
            &ServiceId::tcp(other.service),
            elsewhere,
            Forwarding::Masq,
            due,
        );
        assert_eq!(draining.next_due(0, due), Some(SETTLED_NS));
        assert!(!draining.any_due(2 * SETTLED_NS, due));
    }

    #[test]
    fn a_flow_ends_no_later_than_its_entry_may() {
        for (state, expires, left) in [
            (ConnState::TimeWait, 119, Some(10)),
            (ConnState::TimeWait, 9, Some(9)),
            (ConnState::Close, 4, Some(4)),
            (ConnState::Established, 899, Some(10)),
            (ConnState::FinWait, 5, Some(5)),
            (ConnState::SynRecv, 59, None),
            (ConnState::None, 2, None),
        ] {
            let planned = planned(&entry(state, expires), &draining(), Reschedules::default());
            assert_eq!(
                planned.map(|flow| flow.deadline - 100),
                left.map(|left| left * SECOND),
                "{state:?}"
            );
            assert!(planned.is_none_or(|flow| flow.not_before == 10));
            assert!(planned.is_none_or(|flow| flow.forwarding == Forwarding::Dr));
        }
    }

    #[test]
    fn entries_of_other_destinations_are_no_flows() {
        let mut other = entry(ConnState::TimeWait, 9);
        other.destination.set_port(8081);
        assert_eq!(planned(&other, &draining(), Reschedules::default()), None);
        let mut template = entry(ConnState::TimeWait, 9);
        template.client.set_port(0);
        assert_eq!(
            planned(&template, &draining(), Reschedules::default()),
            None
        );
    }

    #[test]
    fn what_the_kernel_schedules_anew_is_left_to_it() {
        let reuse = Reschedules {
            conn_reuse_mode: 1,
            expire_nodest_conn: false,
        };
        let time_wait = entry(ConnState::TimeWait, 9);
        assert_eq!(planned(&time_wait, &draining(), reuse), None);
        assert!(planned(&entry(ConnState::LastAck, 9), &draining(), reuse).is_some());
        let nodest = Reschedules {
            expire_nodest_conn: true,
            ..reuse
        };
        assert_eq!(
            planned(&entry(ConnState::LastAck, 9), &draining(), nodest),
            None
        );
    }

    #[test]
    fn only_closed_entries_are_mended_and_only_after_the_grace() {
        let mendable = |entry: &ConnEntry, now| {
            let filter = Filter::default();
            let none = Reschedules::default();
            let grace = SETTLED_NS + 3;
            mendable(entry, &draining(), none, &filter, u32::MAX, grace, now)
        };
        let due = 7 + SETTLED_NS + 3;
        for raw in 0..=10 {
            let state = ConnState::from_raw(raw).unwrap();
            let closed = matches!(
                state,
                ConnState::TimeWait | ConnState::Close | ConnState::LastAck
            );
            assert_eq!(
                mendable(&entry(state, 9), due),
                closed.then_some(state),
                "{state:?}"
            );
            assert_eq!(mendable(&entry(state, 9), due - 1), None);
        }
        let mut template = entry(ConnState::TimeWait, 9);
        template.client.set_port(0);
        assert_eq!(mendable(&template, due), None);
        let filter = Filter::default();
        assert!(is_stale_template(&template, &draining(), &filter, 3, 10));
        assert!(!is_stale_template(
            &entry(ConnState::TimeWait, 9),
            &draining(),
            &filter,
            3,
            10
        ));
    }

    #[test]
    fn services_of_all_ports_and_by_mark_are_known_by_their_destination() {
        let time_wait = entry(ConnState::TimeWait, 9);
        let mut all_ports = Draining::default();
        let any = |mut address: SocketAddr| {
            address.set_port(0);
            address
        };
        all_ports.add(
            &ServiceId::tcp(any(time_wait.service)),
            any(time_wait.destination),
            Forwarding::Masq,
            1,
        );
        assert!(planned(&time_wait, &all_ports, Reschedules::default()).is_some());
        let mut marked = Draining::default();
        let mark = ServiceId::Fwmark {
            mark: 1,
            family: crate::netlink::ipvs::Family::Inet,
        };
        marked.add(&mark, time_wait.destination, Forwarding::Tun, 1);
        assert!(planned(&time_wait, &marked, Reschedules::default()).is_some());
    }

    #[test]
    fn a_real_server_drains_in_one_service_and_lives_in_another() {
        let time_wait = entry(ConnState::TimeWait, 9);
        let destination = time_wait.destination;
        let any = |address: SocketAddr| SocketAddr::new(address.ip(), 0);
        let drains =
            |draining: &Draining| planned(&time_wait, draining, Reschedules::default()).is_some();
        let mark = |mark| ServiceId::Fwmark {
            mark,
            family: crate::netlink::ipvs::Family::Inet,
        };
        let own = ServiceId::tcp(time_wait.service);
        let all_ports = ServiceId::tcp(any(time_wait.service));
        // The exact service has it, and it lives there.
        let mut draining = Draining::default();
        draining.add(&all_ports, any(destination), Forwarding::Masq, 1);
        assert!(drains(&draining));
        draining.add_living(&own, destination);
        assert!(!drains(&draining));
        // Which of two marks an entry had is not known.
        let mut draining = Draining::default();
        draining.add(&mark(1), destination, Forwarding::Dr, 1);
        assert!(drains(&draining));
        // Of a service of another address it is not.
        let elsewhere = ServiceId::tcp("203.0.113.9:80".parse().unwrap());
        draining.add_living(&elsewhere, destination);
        assert!(drains(&draining));
        draining.add_living(&mark(2), destination);
        assert!(!drains(&draining));
        // The exact service goes first, whatever lives elsewhere.
        draining.add(&own, destination, Forwarding::Masq, 1);
        assert!(drains(&draining));
    }

    #[test]
    fn an_entry_is_fresh_for_a_second_after_its_last_packet() {
        for (state, expires, fresh) in [
            (ConnState::TimeWait, 120, true),
            (ConnState::TimeWait, 119, true),
            (ConnState::TimeWait, 118, false),
            // Of a sync daemon.
            (ConnState::TimeWait, 900, false),
            (ConnState::LastAck, 29, true),
            (ConnState::LastAck, 28, false),
            (ConnState::Close, 10, false),
        ] {
            assert_eq!(
                is_fresh(&entry(state, expires)),
                fresh,
                "{state:?} {expires}"
            );
        }
    }
}
