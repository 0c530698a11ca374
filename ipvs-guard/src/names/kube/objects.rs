//! Which places a Kubernetes object names.

use std::{collections::HashSet, net::IpAddr, sync::Arc};

use k8s_openapi::api::{core::v1 as core, discovery::v1::EndpointSlice};

use crate::names::{Destination, Key, Service, catalog::Id};

/// Where a service answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Address(Key),
    /// Port and transport on each node.
    NodePort(u16, u8),
}

/// Texts that many objects have, once.
#[derive(Default)]
pub(super) struct Texts(HashSet<Arc<str>>);

impl Texts {
    fn one(&mut self, text: &str) -> Arc<str> {
        if let Some(known) = self.0.get(text) {
            return Arc::clone(known);
        }
        let text: Arc<str> = text.into();
        self.0.insert(Arc::clone(&text));
        text
    }

    /// Forgets those that nobody has any more.
    pub(super) fn tidy(&mut self) {
        self.0.retain(|text| Arc::strong_count(text) > 1);
    }
}

/// Namespace and name of an object; none of one that has no name.
pub(super) fn id(object: &impl kube::Resource) -> Option<Id> {
    let meta = object.meta();
    Some((
        meta.namespace.clone().unwrap_or_default(),
        meta.name.clone()?,
    ))
}

/// Cluster IPs, external IPs and load balancers' addresses by port, and node ports.
pub(super) fn of_service(service: &core::Service, texts: &mut Texts) -> Vec<(Place, Arc<Service>)> {
    let (Some((namespace, name)), Some(spec)) = (id(service), &service.spec) else {
        return Vec::new();
    };
    let ingress = service
        .status
        .iter()
        .filter_map(|status| status.load_balancer.as_ref()?.ingress.as_ref())
        .flatten()
        .filter_map(|ingress| ingress.ip.as_ref());
    let single = spec.cluster_ip.iter();
    let lists = [&spec.cluster_ips, &spec.external_ips];
    let mut addresses: Vec<IpAddr> = single
        .chain(lists.into_iter().flatten().flatten())
        .chain(ingress)
        // Headless services have "None" there.
        .filter_map(|text| text.parse().ok())
        .collect();
    addresses.sort_unstable();
    addresses.dedup();
    let named = Arc::new(Service::new(name, Some(texts.one(&namespace))));
    let mut places = Vec::new();
    for port in spec.ports.iter().flatten() {
        let Some(transport) = transport(port.protocol.as_deref()) else {
            continue;
        };
        if let Ok(number) = u16::try_from(port.port) {
            places.extend(addresses.iter().map(|address| {
                let key = Key::new(*address, number, transport);
                (Place::Address(key), Arc::clone(&named))
            }));
        }
        if let Some(number) = port.node_port.and_then(|port| u16::try_from(port).ok())
            && number != 0
        {
            places.push((Place::NodePort(number, transport), Arc::clone(&named)));
        }
    }
    places
}

/// The endpoints' addresses by port.
pub(super) fn of_slice(slice: &EndpointSlice, texts: &mut Texts) -> Vec<(Key, Arc<Destination>)> {
    let Some((namespace, _)) = id(slice) else {
        return Vec::new();
    };
    let namespace = texts.one(&namespace);
    let labels = slice.metadata.labels.as_ref();
    let service = labels
        .and_then(|labels| labels.get("kubernetes.io/service-name"))
        .map(|name| texts.one(name));
    let ports: Vec<(u16, u8)> = slice
        .ports
        .iter()
        .flatten()
        .filter_map(|port| {
            let transport = transport(port.protocol.as_deref())?;
            // Without one, every port is meant.
            let number = u16::try_from(port.port.unwrap_or(0)).ok()?;
            Some((number, transport))
        })
        .collect();
    let mut places = Vec::new();
    for endpoint in &slice.endpoints {
        let pod = endpoint
            .target_ref
            .as_ref()
            .filter(|target| target.kind.as_deref() == Some("Pod"))
            .and_then(|target| target.name.as_deref());
        let named = Arc::new(Destination::new(
            pod,
            Some(Arc::clone(&namespace)),
            endpoint.node_name.as_deref().map(|node| texts.one(node)),
            service.clone(),
        ));
        for address in endpoint
            .addresses
            .iter()
            .filter_map(|text| text.parse().ok())
        {
            places.extend(ports.iter().map(|(port, transport)| {
                (Key::new(address, *port, *transport), Arc::clone(&named))
            }));
        }
    }
    places
}

/// IP protocol number; TCP where none is named.
fn transport(protocol: Option<&str>) -> Option<u8> {
    match protocol {
        None | Some("TCP") => Some(6),
        Some("UDP") => Some(17),
        Some("SCTP") => Some(132),
        Some(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_service_has_all_its_addresses() {
        let service = json!({
            "metadata": {"name": "web", "namespace": "shop"},
            "spec": {
                "clusterIP": "10.96.0.10", "clusterIPs": ["10.96.0.10", "fd00::10"],
                "externalIPs": ["192.0.2.7"],
                "ports": [
                    {"port": 80, "nodePort": 30080},
                    {"port": 53, "protocol": "UDP"},
                    {"port": 99, "protocol": "ODD"}
                ]
            },
            "status": {"loadBalancer": {"ingress": [{"ip": "203.0.113.9"}, {"hostname": "x"}]}}
        });
        let service = serde_json::from_value(service).unwrap();
        let places = of_service(&service, &mut Texts::default());
        let places: Vec<Place> = places.into_iter().map(|(place, _)| place).collect();
        assert_eq!(places.len(), 9, "{places:?}");
        assert!(places.contains(&Place::NodePort(30_080, 6)));
        let balancer = Key::new("203.0.113.9".parse().unwrap(), 53, 17);
        assert!(places.contains(&Place::Address(balancer)));
        let headless = json!({
            "metadata": {"name": "db", "namespace": "shop"},
            "spec": {"clusterIP": "None", "ports": [{"port": 5432}]}
        });
        let headless = serde_json::from_value(headless).unwrap();
        assert!(of_service(&headless, &mut Texts::default()).is_empty());
    }

    #[test]
    fn names_that_nobody_has_are_forgotten() {
        let mut texts = Texts::default();
        let kept = texts.one("kept");
        drop(texts.one("gone"));
        texts.tidy();
        assert_eq!(texts.0.len(), 1);
        assert!(Arc::ptr_eq(&kept, &texts.one("kept")));
    }
}
