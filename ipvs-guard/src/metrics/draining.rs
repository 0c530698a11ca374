//! Connections of draining destinations, read from IPVS when a scrape asks and no more
//! often than that is cheap.

use std::{
    collections::{BTreeMap, HashMap},
    io,
    net::SocketAddr,
    path::Path,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use ipvs_guard_common::{addr::Endpoint, filter::Filter, state::ConnState};
use thiserror::Error;
use tokio::{
    sync::{mpsc, watch},
    time::timeout,
};

use super::{
    Metrics, Scope,
    labels::{Pair, Service},
};
use crate::{
    netlink::{
        NetlinkError,
        conntable::{ConnEntry, ConnTable, ConnTableError},
        ipvs::{IpvsSocket, Protocol, ServiceId},
    },
    netns::{self, NetNs, NetNsError},
};

/// Draining pairs of service and destination that have series of their own.
pub const MAX_DRAINING: usize = 256;
/// How often IPVS is read at most.
const EVERY: Duration = Duration::from_secs(5);
/// A reading takes this share of the time at most.
const SHARE: u32 = 20;
/// How long a scrape waits for a reading.
const PATIENCE: Duration = Duration::from_secs(3);
/// An older one says nothing about now.
const OLDEST: Duration = Duration::from_secs(90);
/// How long a reading of one namespace may take.
const LONGEST: Duration = Duration::from_secs(20);
/// How often the clock is looked at, in entries.
const STRIDE: usize = 4_096;
/// Entries in no state of TCP: of UDP and SCTP.
const NO_TCP_STATE: &str = "other";

/// What was read.
#[derive(Debug)]
pub(super) struct Reading {
    at: Instant,
    took: Duration,
    pub(super) rows: Vec<Row>,
}

/// Connections of one draining destination in one state.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Row {
    /// Labels of service and destination.
    pub(super) pair: [String; 2],
    pub(super) state: &'static str,
    pub(super) connections: u64,
}

/// Reads on a thread of its own.
pub(super) struct Draining {
    requests: mpsc::Sender<()>,
    readings: watch::Receiver<Option<Arc<Reading>>>,
}

/// Why there is no reading.
#[derive(Debug, Error)]
enum CensusError {
    #[error(transparent)]
    NetNs(#[from] NetNsError),
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    #[error(transparent)]
    Table(#[from] ConnTableError),
    #[error("the connection table takes longer than {} s to read", LONGEST.as_secs())]
    Slow,
}

/// Connections by state.
type States = BTreeMap<&'static str, u64>;

impl Draining {
    /// Starts the thread.
    pub(super) fn start(metrics: Arc<Metrics>, scope: Scope) -> io::Result<Self> {
        let (requests, inbox) = mpsc::channel(1);
        let (outbox, readings) = watch::channel(None);
        thread::Builder::new()
            .name("draining".into())
            .spawn(move || work(&metrics, &scope, inbox, &outbox))?;
        Ok(Self { requests, readings })
    }

    /// The state of now, or of a moment ago; `None` where it cannot be told.
    pub(super) async fn latest(&self) -> Option<Arc<Reading>> {
        let mut readings = self.readings.clone();
        let known = readings.borrow_and_update().clone();
        if let Some(reading) = known.filter(|reading| !reading.is_due()) {
            return Some(reading);
        }
        // One that is asked for already serves as well.
        let _asked = self.requests.try_send(());
        let _in_vain = timeout(PATIENCE, readings.changed()).await;
        let latest = readings.borrow().clone();
        latest.filter(|reading| reading.at.elapsed() < OLDEST)
    }
}

impl Reading {
    #[cfg(test)]
    pub(super) fn of(
        service: &str,
        destination: &str,
        state: &'static str,
        connections: u64,
    ) -> Self {
        Self {
            at: Instant::now(),
            took: Duration::ZERO,
            rows: vec![Row {
                pair: [service.to_owned(), destination.to_owned()],
                state,
                connections,
            }],
        }
    }

    fn is_due(&self) -> bool {
        self.at.elapsed() >= pause(self.took)
    }
}

/// From the begin of a reading that took so long to that of the next.
fn pause(took: Duration) -> Duration {
    EVERY.max((took * SHARE).min(OLDEST))
}

fn work(
    metrics: &Metrics,
    scope: &Scope,
    mut requests: mpsc::Receiver<()>,
    readings: &watch::Sender<Option<Arc<Reading>>>,
) {
    let mut said = false;
    let mut due = Instant::now();
    while requests.blocking_recv().is_some() {
        let at = Instant::now();
        if at < due {
            // What failed is not tried again at once, and nobody is to wait for it.
            readings.send_modify(|_| ());
            continue;
        }
        let reading = match read(metrics, scope) {
            Ok(rows) => Some(Arc::new(Reading {
                at,
                took: at.elapsed(),
                rows,
            })),
            Err(error) => {
                if !said {
                    log::warn!("--metrics: no connections of draining destinations: {error}");
                }
                said = true;
                None
            }
        };
        said &= reading.is_none();
        due = at + pause(at.elapsed());
        if readings.send(reading).is_err() {
            return;
        }
    }
}

fn read(metrics: &Metrics, scope: &Scope) -> Result<Vec<Row>, CensusError> {
    let filter = &scope.filter;
    let own = NetNs::current()?;
    let mut sums: BTreeMap<Pair, States> = BTreeMap::new();
    let mut add = |found: Vec<(Pair, States)>| {
        for (pair, states) in found {
            let sum = sums.entry(pair).or_default();
            for (state, connections) in states {
                *sum.entry(state).or_default() += connections;
            }
        }
    };
    if filter.netns == 0 || filter.netns == own.inode() {
        add(census(filter)?);
    }
    let others = match filter.netns {
        0 => metrics.counts.draining(),
        one => vec![one],
    };
    for inode in others.into_iter().filter(|inode| *inode != own.inode()) {
        match find(inode, scope.netns.as_deref()) {
            Ok(netns) => add(netns.run(|| census(filter))??),
            // Its drains went with it.
            Err(NetNsError::NotFound { .. }) => metrics.counts.forget_namespace(inode),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(rows(sums))
}

/// The namespace `inode`, which is not kept open: it is to end when its pod does.
fn find(inode: u32, path: Option<&Path>) -> Result<NetNs, NetNsError> {
    path.and_then(|path| NetNs::open(path).ok())
        .filter(|netns| netns.inode() == inode)
        .map_or_else(|| netns::find(inode), Ok)
}

/// Destinations of weight 0 of this thread's namespace, and their connections by state.
fn census(filter: &Filter) -> Result<Vec<(Pair, States)>, CensusError> {
    let mut drains = Drains::default();
    let mut ipvs = match IpvsSocket::open() {
        Ok(ipvs) => ipvs,
        Err(NetlinkError::FamilyAbsent) => return Ok(Vec::new()),
        Err(error) => return Err(error.into()),
    };
    for status in ipvs.services()? {
        let id = status.service.id;
        for status in ipvs.destinations(&id)? {
            let destination = status.destination;
            if destination.weight == 0 && admits(filter, &id, destination.address) {
                drains.add(id, destination.address);
            }
        }
    }
    if drains.found.is_empty() {
        return Ok(Vec::new());
    }
    let begin = Instant::now();
    let table = match ConnTable::open() {
        Ok(table) => table,
        Err(ConnTableError::Absent) => return Ok(Vec::new()),
        Err(error) => return Err(error.into()),
    };
    for (number, entry) in table.enumerate() {
        match entry {
            Ok(entry) => drains.count(&entry),
            Err(ConnTableError::Malformed { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        if number % STRIDE == 0 && begin.elapsed() > LONGEST {
            return Err(CensusError::Slow);
        }
    }
    Ok(drains.found)
}

/// As the probes have it: a service that is a mark has no address to be left out by.
fn admits(filter: &Filter, service: &ServiceId, destination: SocketAddr) -> bool {
    let endpoint = |of: SocketAddr| Endpoint::new(of.ip().into(), of.port().to_be_bytes());
    let service = match service {
        ServiceId::Address { address, .. } => filter.vip.admits(&endpoint(*address)),
        ServiceId::Fwmark { .. } => filter.vip.is_empty(),
    };
    service && filter.dest.admits(&endpoint(destination))
}

/// Draining destinations, and how an entry finds its own.
#[derive(Default)]
struct Drains {
    found: Vec<(Pair, States)>,
    by_address: HashMap<(Protocol, SocketAddr, SocketAddr), usize>,
    /// The table does not tell an entry's mark.
    by_mark: HashMap<SocketAddr, usize>,
}

impl Drains {
    fn add(&mut self, service: ServiceId, destination: SocketAddr) {
        let place = self.found.len();
        let label = match service {
            ServiceId::Address { protocol, address } => {
                self.by_address
                    .insert((protocol, address, destination), place);
                Service::Address(address.ip(), Some(address.port()))
            }
            ServiceId::Fwmark { mark, .. } => {
                self.by_mark.insert(destination, place);
                Service::Mark(mark)
            }
        };
        let pair = Pair {
            service: label,
            destination: Some(destination),
        };
        // A drain without connections is one of 0, not one that nobody knows of.
        let states = States::from([(ConnState::Established.name(), 0)]);
        self.found.push((pair, states));
    }

    fn count(&mut self, entry: &ConnEntry) {
        // A persistence template is no connection.
        if entry.client.port() == 0 {
            return;
        }
        let any_port = |address: SocketAddr| SocketAddr::new(address.ip(), 0);
        let ConnEntry {
            protocol,
            service,
            destination,
            ..
        } = *entry;
        let place = self
            .by_address
            .get(&(protocol, service, destination))
            .or_else(|| {
                let of_all_ports = (protocol, any_port(service), any_port(destination));
                self.by_address.get(&of_all_ports)
            })
            .or_else(|| self.by_mark.get(&destination))
            .or_else(|| self.by_mark.get(&any_port(destination)));
        if let Some((_, states)) = place.and_then(|place| self.found.get_mut(*place)) {
            let state = entry.state.map_or(NO_TCP_STATE, ConnState::name);
            *states.entry(state).or_default() += 1;
        }
    }
}

/// One row a pair and state; of the pairs beyond those that have series, the sums.
fn rows(sums: BTreeMap<Pair, States>) -> Vec<Row> {
    let mut rows = Vec::new();
    let mut others = States::new();
    for (number, (pair, states)) in sums.into_iter().enumerate() {
        if number < MAX_DRAINING {
            rows.extend(of_pair(&pair.labels(), states));
            continue;
        }
        for (state, connections) in states {
            *others.entry(state).or_default() += connections;
        }
    }
    rows.extend(of_pair(&Pair::others(), others));
    rows
}

fn of_pair(labels: &[String; 2], states: States) -> impl Iterator<Item = Row> {
    states.into_iter().map(|(state, connections)| Row {
        pair: labels.clone(),
        state,
        connections,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn entry(line: &str) -> ConnEntry {
        ConnEntry::parse(line).unwrap()
    }

    fn count(drains: &mut Drains, client_port: &str, state: &str) {
        let line = format!("TCP C0000202 {client_port} CB007101 0050 C6336402 1F90 {state} 9");
        drains.count(&entry(&line));
    }

    #[test]
    fn connections_are_counted_by_state_and_templates_are_none() {
        let mut drains = Drains::default();
        let destination = address("198.51.100.2:8080");
        drains.add(ServiceId::tcp(address("203.0.113.1:80")), destination);
        count(&mut drains, "9C40", "TIME_WAIT");
        count(&mut drains, "9C41", "TIME_WAIT");
        count(&mut drains, "9C42", "FIN_WAIT");
        count(&mut drains, "0000", "NONE");
        drains.count(&entry(
            "TCP C0000202 9C43 CB007101 0051 C6336402 1F90 CLOSE 9",
        ));
        drains.count(&entry(
            "UDP C0000202 9C44 CB007101 0050 C6336402 1F90 UDP 9",
        ));
        let (pair, states) = &drains.found[0];
        assert_eq!(pair.labels(), ["203.0.113.1:80", "198.51.100.2:8080"]);
        let states: Vec<_> = states.iter().map(|(state, n)| (*state, *n)).collect();
        assert_eq!(
            states,
            [("ESTABLISHED", 0), ("FIN_WAIT", 1), ("TIME_WAIT", 2)]
        );
    }

    #[test]
    fn services_of_all_ports_and_by_mark_are_known_by_their_destination() {
        let mut drains = Drains::default();
        drains.add(
            ServiceId::tcp(address("203.0.113.1:0")),
            address("198.51.100.2:0"),
        );
        count(&mut drains, "9C40", "ESTABLISHED");
        assert_eq!(drains.found[0].1["ESTABLISHED"], 1);
        let mut drains = Drains::default();
        let family = crate::netlink::ipvs::Family::Inet;
        drains.add(
            ServiceId::Fwmark { mark: 7, family },
            address("198.51.100.2:8080"),
        );
        count(&mut drains, "9C40", "CLOSE");
        assert_eq!(drains.found[0].0.labels()[0], "fwmark 7");
        assert_eq!(drains.found[0].1["CLOSE"], 1);
    }

    #[test]
    fn what_has_no_series_of_its_own_is_summed() {
        let sums = (0..MAX_DRAINING as u16 + 3).map(|port| {
            let pair = Pair {
                service: Service::Mark(1),
                destination: Some(SocketAddr::new("10.0.0.1".parse().unwrap(), port)),
            };
            (pair, States::from([("TIME_WAIT", 2)]))
        });
        let rows = rows(sums.collect());
        assert_eq!(rows.len(), MAX_DRAINING + 1);
        let last = rows.last().unwrap();
        assert_eq!((last.pair[0].as_str(), last.connections), ("other", 6));
    }

    #[test]
    fn the_longer_it_takes_the_seldomer_it_is_read() {
        for (took, expected) in [(0, 5), (100, 5), (1_000, 20), (4_500, 90), (20_000, 90)] {
            let paused = pause(Duration::from_millis(took));
            assert_eq!(paused, Duration::from_secs(expected), "{took} ms");
        }
    }

    #[test]
    fn filters_hold() {
        let mut filter = Filter::default();
        let service = ServiceId::tcp(address("203.0.113.1:80"));
        let destination = address("198.51.100.2:8080");
        assert!(admits(&filter, &service, destination));
        let other = crate::settings::Target::into("198.51.100.3".parse().unwrap());
        filter.dest.push(other).unwrap();
        assert!(!admits(&filter, &service, destination));
    }
}
