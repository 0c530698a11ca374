//! Incidents by service and destination, for the summary.

use std::{
    collections::{HashMap, HashSet},
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use crate::event::{Action, Class, Event};

/// Pairs of service and destination that are told apart.
const MAX_ROWS: usize = 1_024;
/// Clients that are told apart in each.
const MAX_CLIENTS: usize = 256;

type Endpoint = (Option<IpAddr>, Option<u16>);

#[derive(Default)]
struct Tally {
    incidents: u64,
    retransmissions: u64,
    acted: u64,
    clients: HashSet<IpAddr>,
    clients_capped: bool,
}

/// Counts incidents.
pub(super) struct Aggregate {
    tallies: HashMap<(Endpoint, Endpoint), Tally>,
    /// What no row was left for.
    others: Tally,
}

impl Aggregate {
    pub(super) fn new() -> Self {
        Self {
            tallies: HashMap::new(),
            others: Tally::default(),
        }
    }

    pub(super) fn count(&mut self, event: &Event) {
        if event.class != Class::StaleReuse {
            return;
        }
        let key = (
            (event.service_address, event.service_port),
            (event.real_address, event.real_port),
        );
        let tally = if self.tallies.len() < MAX_ROWS || self.tallies.contains_key(&key) {
            self.tallies.entry(key).or_default()
        } else {
            &mut self.others
        };
        if event.retransmission == Some(true) {
            tally.retransmissions += 1;
        } else {
            tally.incidents += 1;
            let acted = matches!(
                event.action,
                Action::Dropped | Action::Reset | Action::Healed
            );
            tally.acted += u64::from(acted);
        }
        if let Some(client) = event.client_address
            && !tally.clients.contains(&client)
        {
            if tally.clients.len() < MAX_CLIENTS {
                tally.clients.insert(client);
            } else {
                tally.clients_capped = true;
            }
        }
    }

    pub(super) fn summary(&self, watched: Watched, lost: u64) -> Summary {
        let mut rows: Vec<_> = self
            .tallies
            .iter()
            .map(|((service, real), tally)| tally.row(text(service), text(real)))
            .collect();
        rows.sort_by(|a, b| {
            b.incidents
                .cmp(&a.incidents)
                .then_with(|| (&a.service, &a.destination).cmp(&(&b.service, &b.destination)))
        });
        if self.others.incidents + self.others.retransmissions > 0 {
            rows.push(self.others.row("others".into(), "others".into()));
        }
        Summary {
            rows,
            lost,
            stale_watched: true,
            filtered: false,
            watched,
        }
    }
}

impl Tally {
    fn row(&self, service: String, destination: String) -> SummaryRow {
        SummaryRow {
            service,
            destination,
            incidents: self.incidents,
            retransmissions: self.retransmissions,
            acted: self.acted,
            clients: self.clients.len(),
            clients_capped: self.clients_capped,
        }
    }
}

fn text(endpoint: &Endpoint) -> String {
    match *endpoint {
        (Some(address), Some(port)) => SocketAddr::new(address, port).to_string(),
        (Some(address), None) => address.to_string(),
        (None, _) => "-".into(),
    }
}

/// Incidents by service and destination, most first.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    /// A row a pair.
    pub rows: Vec<SummaryRow>,
    /// Events lost anywhere.
    pub lost: u64,
    /// Whether stale SYNs were watched for.
    pub stale_watched: bool,
    /// Whether filters left some of them out.
    pub filtered: bool,
    /// How long.
    pub watched: Watched,
}

/// How far watching came.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Watched {
    /// From ready to the end.
    For(Duration),
    /// ip_vs never came.
    NoIpvs,
    /// It ended before every probe was attached.
    #[default]
    NotReady,
}

impl Summary {
    /// Incidents of all rows.
    pub fn incidents(&self) -> u64 {
        self.rows.iter().map(|row| row.incidents).sum()
    }

    /// Those of them that were acted on.
    pub fn acted(&self) -> u64 {
        self.rows.iter().map(|row| row.acted).sum()
    }
}

/// The incidents of one service at one destination.
#[derive(Clone, Debug)]
pub struct SummaryRow {
    /// Virtual service, `ADDR:PORT`.
    pub service: String,
    /// Real server, `ADDR:PORT`.
    pub destination: String,
    /// Connections that a stale SYN began.
    pub incidents: u64,
    /// Further SYNs of the same incidents.
    pub retransmissions: u64,
    /// Incidents whose SYN was dropped or answered, or whose entry was healed.
    pub acted: u64,
    /// Client addresses seen.
    pub clients: usize,
    /// There were more clients than are told apart.
    pub clients_capped: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;

    fn stale(port: u16, retransmission: bool) -> Event {
        let mut event = Event::new(Class::StaleReuse, Clock::now(), "h".into());
        event.client_address = Some("10.0.0.1".parse().unwrap());
        event.service_address = Some("10.0.0.2".parse().unwrap());
        event.service_port = Some(port);
        event.retransmission = Some(retransmission);
        event
    }

    #[test]
    fn a_retransmission_is_no_incident() {
        let mut aggregate = Aggregate::new();
        aggregate.count(&stale(80, false));
        aggregate.count(&stale(80, true));
        let summary = aggregate.summary(Watched::NotReady, 0);
        assert_eq!(summary.incidents(), 1);
        assert_eq!(summary.rows[0].retransmissions, 1);
        assert_eq!(summary.rows[0].clients, 1);
    }

    #[test]
    fn rows_are_bounded_and_nothing_goes_uncounted() {
        let mut aggregate = Aggregate::new();
        for port in 0..MAX_ROWS as u16 + 10 {
            aggregate.count(&stale(port, false));
        }
        let summary = aggregate.summary(Watched::NotReady, 0);
        assert_eq!(summary.rows.len(), MAX_ROWS + 1);
        assert_eq!(summary.incidents(), MAX_ROWS as u64 + 10);
    }
}
