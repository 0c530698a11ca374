//! How services and destinations are written in labels.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
};

use crate::event::Event;

/// What stands for every pair that has no series of its own.
pub(super) const OTHER: &str = "other";

/// A virtual service as events and IPVS know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Service {
    Address(IpAddr, Option<u16>),
    Mark(u32),
    /// Of an event that names none.
    Unknown,
}

/// A virtual service and one of its destinations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Pair {
    pub(super) service: Service,
    pub(super) destination: Option<SocketAddr>,
}

impl Pair {
    pub(super) fn of(event: &Event) -> Self {
        let service = match (event.fwmark, event.service_address) {
            (Some(mark), _) => Service::Mark(mark),
            (None, Some(address)) => Service::Address(address, event.service_port),
            (None, None) => Service::Unknown,
        };
        let destination = event
            .real_address
            .map(|address| SocketAddr::new(address, event.real_port.unwrap_or(0)));
        Self {
            service,
            destination,
        }
    }

    /// The values of the labels `service` and `destination`; empty is as good as no
    /// label.
    pub(super) fn labels(&self) -> [String; 2] {
        let destination = self.destination.map(|address| address.to_string());
        [self.service.to_string(), destination.unwrap_or_default()]
    }

    /// The same for all that have no series of their own.
    pub(super) fn others() -> [String; 2] {
        [OTHER.to_owned(), OTHER.to_owned()]
    }
}

impl fmt::Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::Address(address, Some(port)) => SocketAddr::new(address, port).fmt(f),
            Self::Address(address, None) => address.fmt(f),
            Self::Mark(mark) => write!(f, "fwmark {mark}"),
            Self::Unknown => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_are_written_as_in_the_human_form() {
        for (service, text) in [
            (
                Service::Address("10.0.0.1".parse().unwrap(), Some(80)),
                "10.0.0.1:80",
            ),
            (
                Service::Address("fd00::1".parse().unwrap(), Some(80)),
                "[fd00::1]:80",
            ),
            (
                Service::Address("fd00::1".parse().unwrap(), None),
                "fd00::1",
            ),
            (Service::Mark(7), "fwmark 7"),
            (Service::Unknown, ""),
        ] {
            assert_eq!(service.to_string(), text);
        }
    }
}
