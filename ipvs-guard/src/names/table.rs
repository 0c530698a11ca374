//! Addresses and their names, as they are looked up for each event.

use std::{collections::HashMap, net::IpAddr, sync::Arc};

use crate::event::Event;

/// An address with port and transport; 0 means every port, every transport.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    address: IpAddr,
    port: u16,
    transport: u8,
}

impl Key {
    /// `transport` is the number of the IP protocol.
    pub const fn new(address: IpAddr, port: u16, transport: u8) -> Self {
        Self {
            address,
            port,
            transport,
        }
    }

    /// This one, then those that stand for more and more.
    fn widening(self) -> [Self; 3] {
        let every_transport = Self {
            transport: 0,
            ..self
        };
        let every_port = Self {
            port: 0,
            ..every_transport
        };
        [self, every_transport, every_port]
    }
}

/// Names of a virtual service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    name: Arc<str>,
    namespace: Option<Arc<str>>,
}

impl Service {
    /// A service of that name.
    pub fn new(name: impl Into<Arc<str>>, namespace: Option<impl Into<Arc<str>>>) -> Self {
        Self {
            name: name.into(),
            namespace: namespace.map(Into::into),
        }
    }
}

/// Names of a real server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Destination {
    pod: Option<Arc<str>>,
    namespace: Option<Arc<str>>,
    node: Option<Arc<str>>,
    /// Of which it is a server; none where it is one of several.
    service: Option<Arc<str>>,
}

impl Destination {
    /// A real server with what is known of it.
    pub fn new(
        pod: Option<&str>,
        namespace: Option<Arc<str>>,
        node: Option<Arc<str>>,
        service: Option<Arc<str>>,
    ) -> Self {
        Self {
            pod: pod.map(Into::into),
            namespace,
            node,
            service,
        }
    }
}

/// What names what. Made whole, and not changed once it is looked at.
#[derive(Debug, Default)]
pub struct Table {
    services: HashMap<Key, Arc<Service>>,
    /// Port and transport of services that every address of the node has.
    node_ports: HashMap<(u16, u8), Arc<Service>>,
    destinations: HashMap<Key, Arc<Destination>>,
}

impl Table {
    /// Names the service at `key`.
    pub fn name_service(&mut self, key: Key, service: impl Into<Arc<Service>>) {
        self.services.insert(key, service.into());
    }

    /// Names the service at a port of the node.
    pub fn name_node_port(&mut self, port: u16, transport: u8, service: impl Into<Arc<Service>>) {
        self.node_ports.insert((port, transport), service.into());
    }

    /// Names the real server at `key`.
    pub fn name_destination(&mut self, key: Key, destination: impl Into<Arc<Destination>>) {
        self.destinations.insert(key, destination.into());
    }

    /// As [`Self::name_destination`], of one more service where one has it already.
    pub(super) fn share_destination(&mut self, key: Key, destination: &Arc<Destination>) {
        self.destinations
            .entry(key)
            .and_modify(|known| {
                if known.service != destination.service {
                    Arc::make_mut(known).service = None;
                }
            })
            .or_insert_with(|| Arc::clone(destination));
    }

    /// Names a real server that has gone, unless another one has its address.
    pub(super) fn name_departed(&mut self, key: Key, destination: &Arc<Destination>) {
        self.destinations
            .entry(key)
            .or_insert_with(|| Arc::clone(destination));
    }

    /// How many addresses have names.
    pub fn len(&self) -> usize {
        self.services.len() + self.node_ports.len() + self.destinations.len()
    }

    /// Whether none has.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn service(&self, key: Key) -> Option<&Service> {
        key.widening()
            .iter()
            .find_map(|key| self.services.get(key))
            .or_else(|| self.node_ports.get(&(key.port, key.transport)))
            .map(Arc::as_ref)
    }

    fn destination(&self, key: Key) -> Option<&Destination> {
        let mut keys = key.widening().into_iter();
        keys.find_map(|key| self.destinations.get(&key))
            .map(Arc::as_ref)
    }

    /// Puts names into an event that has none of the kind yet.
    pub(super) fn tell(&self, event: &mut Event, transport: u8) {
        if event.service.is_none()
            && let (Some(address), Some(port)) = (event.service_address, event.service_port)
            && let Some(service) = self.service(Key::new(address, port, transport))
        {
            event.service = Some(Arc::clone(&service.name));
            if event.namespace.is_none() {
                event.namespace.clone_from(&service.namespace);
            }
        }
        if event.pod.is_none()
            && event.node.is_none()
            && let (Some(address), Some(port)) = (event.real_address, event.real_port)
            && let Some(destination) = self.destination(Key::new(address, port, transport))
        {
            event.pod.clone_from(&destination.pod);
            event.node.clone_from(&destination.node);
            if event.service.is_none() {
                event.service.clone_from(&destination.service);
            }
            if event.namespace.is_none() {
                event.namespace.clone_from(&destination.namespace);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_narrowest_key_names() {
        let address: IpAddr = "10.0.0.1".parse().unwrap();
        let mut table = Table::default();
        let none = None::<&str>;
        for (port, transport, name) in [(0, 0, "any"), (80, 0, "port"), (80, 6, "tcp")] {
            table.name_service(Key::new(address, port, transport), Service::new(name, none));
        }
        table.name_node_port(30_080, 6, Service::new("node port", none));
        let name = |address, port, transport| {
            let service = table.service(Key::new(address, port, transport))?;
            Some(service.name.to_string())
        };
        assert_eq!(name(address, 80, 6).unwrap(), "tcp");
        assert_eq!(name(address, 80, 17).unwrap(), "port");
        assert_eq!(name(address, 81, 6).unwrap(), "any");
        let node: IpAddr = "192.0.2.1".parse().unwrap();
        assert_eq!(name(node, 30_080, 6).unwrap(), "node port");
        assert_eq!(name(node, 30_080, 17), None);
    }

    #[test]
    fn a_server_of_two_services_tells_neither() {
        let key = Key::new("10.1.0.1".parse().unwrap(), 80, 6);
        let mut table = Table::default();
        for service in ["a", "a", "b"] {
            let destination = Destination::new(Some("pod"), None, None, Some(service.into()));
            table.share_destination(key, &Arc::new(destination));
        }
        let found = table.destination(key).unwrap();
        assert_eq!(
            (found.pod.as_deref(), found.service.as_deref()),
            (Some("pod"), None)
        );
    }
}
