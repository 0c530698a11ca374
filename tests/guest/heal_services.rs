//! Healing where an entry does not tell its service: by firewall mark, of all ports,
//! under a persistence template, by direct routing, and in a tunnel.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener},
    thread,
};

use ipvs_guard::{
    lab::{
        client::{Attempt, connect_all},
        topology::{Families, Topology, backend_address},
    },
    netlink::{
        ipvs::{Destination, Family, Service, ServiceId},
        route::RouteSocket,
    },
    netns::sysctl,
};
use ipvs_guard_common::state::Forwarding;

use crate::support::{
    PATIENCE, agent::Agent, incident, limits, nft, run, short_limits, wait_until,
};

/// What unpacks tunnelled packets on a server, once the module `ipip` is there.
const DECAPSULATES: &str = "tunl0";

/// Where clients connect to, beside the topology's own service.
fn target(topology: &Topology, port: u16) -> SocketAddr {
    let ServiceId::Address { address, .. } = topology.service(Family::Inet) else {
        panic!("the topology's service has an address");
    };
    SocketAddr::new(address.ip(), port)
}

/// A service and its two destinations.
struct Served<'a> {
    topology: &'a Topology,
    id: ServiceId,
    target: SocketAddr,
    port: u16,
    forwarding: Forwarding,
}

impl Served<'_> {
    fn destination(&self, number: usize, weight: u32) -> Destination {
        let address = SocketAddr::new(backend_address(number, Family::Inet).ip(), self.port);
        Destination {
            forwarding: self.forwarding,
            ..Destination::masq(address, weight)
        }
    }

    fn begin(&self, persistence: Option<u32>) {
        let mut ipvs = self.topology.open_ipvs().unwrap();
        let mut service = Service::new(self.id, "rr");
        service.persistence = persistence;
        ipvs.add_service(&service).unwrap();
        for number in 0..2 {
            ipvs.add_destination(&self.id, &self.destination(number, 1))
                .unwrap();
        }
    }

    fn drain(&self, number: usize) {
        let mut ipvs = self.topology.open_ipvs().unwrap();
        ipvs.set_destination(&self.id, &self.destination(number, 0))
            .unwrap();
    }

    fn connect(&self, ports: &[u16]) -> Vec<Attempt> {
        connect_all(self.topology.client(), self.target, ports, limits()).unwrap()
    }

    fn healthy(&self, ports: &[u16]) {
        for attempt in self.connect(ports) {
            assert!(attempt.is_answered(), "{attempt}");
        }
    }

    /// Client ports of the entries that lead to a backend; 0 is a template.
    fn ports_to(&self, number: usize) -> Vec<u16> {
        let ip = backend_address(number, Family::Inet).ip();
        let mut ports: Vec<u16> = self
            .topology
            .connections()
            .unwrap()
            .into_iter()
            .filter(|entry| entry.destination.ip() == ip)
            .map(|entry| entry.client.port())
            .collect();
        ports.sort_unstable();
        ports
    }
}

fn ports(from: u16, count: u16) -> Vec<u16> {
    (from..from + count).collect()
}

#[test]
fn services_by_firewall_mark_are_healed() {
    const MARK: u32 = 7;
    let topology = incident(Families::Inet);
    nft::mark(topology.node(), MARK);
    let served = Served {
        topology: &topology,
        id: ServiceId::Fwmark {
            mark: MARK,
            family: Family::Inet,
        },
        target: target(&topology, 81),
        port: 8_080,
        forwarding: Forwarding::Masq,
    };
    served.begin(None);
    let agent = Agent::enforce_in(topology.node(), &["--action", "heal"]);
    let ports = ports(41_000, 40);
    served.healthy(&ports);
    assert_eq!(served.ports_to(0).len(), 20);
    topology.mute_backend(0).unwrap();
    served.drain(0);
    wait_until("no entry of the dead server", PATIENCE, || {
        served.ports_to(0).is_empty()
    });
    served.healthy(&ports);
    // They count for the marked service's destination.
    let mut ipvs = topology.open_ipvs().unwrap();
    let counts: Vec<u32> = ipvs
        .destinations(&served.id)
        .unwrap()
        .iter()
        .map(|status| status.active + status.inactive)
        .collect();
    assert_eq!(counts.iter().sum::<u32>(), 40, "{counts:?}");
    agent.stop();
}

/// Of a service of all ports, which is always persistent, with `--heal-persistent`
/// the template ends as well: new ports are served, too.
#[test]
fn services_of_all_ports_and_templates_are_healed() {
    for persistent in [false, true] {
        let topology = incident(Families::Inet);
        // The topology's own service would have the connections.
        topology.open_ipvs().unwrap().flush().unwrap();
        let served = Served {
            topology: &topology,
            id: ServiceId::tcp(target(&topology, 0)),
            target: target(&topology, 8_080),
            port: 0,
            forwarding: Forwarding::Masq,
        };
        served.begin(Some(300));
        let mut args = vec!["--action", "heal"];
        args.extend(persistent.then_some("--heal-persistent"));
        let agent = Agent::enforce_in(topology.node(), &args);
        let old = ports(41_000, 20);
        served.healthy(&old);
        let chosen = usize::from(served.ports_to(0).is_empty());
        assert_eq!(served.ports_to(chosen).len(), 21, "and the template");
        topology.mute_backend(chosen).unwrap();
        served.drain(chosen);
        wait_until("no connection to the dead server", PATIENCE, || {
            let left = served.ports_to(chosen);
            left.is_empty() || (!persistent && left == [0])
        });
        served.healthy(&old);
        let new = connect_all(
            topology.client(),
            served.target,
            &ports(42_000, 4),
            short_limits(),
        )
        .unwrap();
        for attempt in new {
            assert_eq!(attempt.is_answered(), persistent, "{attempt}");
        }
        agent.stop();
    }
}

/// Servers of the virtual address itself, as direct routing has them.
fn serve_directly(topology: &Topology, target: SocketAddr) {
    for device in ["all", "client", "backend0", "backend1"] {
        // The servers' answers come from an address of the node's.
        for (name, value) in [("accept_local", "1"), ("rp_filter", "0")] {
            let name = format!("net/ipv4/conf/{device}/{name}");
            topology.set_sysctl(&name, value).unwrap();
        }
    }
    for number in 0..2 {
        let listener = topology
            .backend(number)
            .unwrap()
            .run(|| {
                let mut routes = RouteSocket::open().unwrap();
                routes.add_address("lo", target.ip(), 32).unwrap();
                if routes.link(DECAPSULATES).is_ok() {
                    routes.set_up(DECAPSULATES, true).unwrap();
                    for device in ["all", DECAPSULATES] {
                        let name = format!("net/ipv4/conf/{device}/rp_filter");
                        sysctl::write(&name, "0").unwrap();
                    }
                }
                TcpListener::bind(target).unwrap()
            })
            .unwrap();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut asked = [0; 2];
                // A client may have gone again.
                if stream.read_exact(&mut asked).is_ok() {
                    let _gone = writeln!(stream, "{number}");
                }
            }
        });
    }
}

/// Entries and SYNs of a service whose servers have the virtual address themselves.
fn heals(port: u16, forwarding: Forwarding) {
    let topology = incident(Families::Inet);
    let target = target(&topology, port);
    serve_directly(&topology, target);
    let served = Served {
        topology: &topology,
        id: ServiceId::tcp(target),
        target,
        port,
        forwarding,
    };
    served.begin(None);
    let agent = Agent::enforce_in(topology.node(), &["--action", "heal"]);
    let ports = ports(41_000, 40);
    served.healthy(&ports);
    let stale = served.ports_to(0);
    assert_eq!(stale.len(), 20);
    topology.mute_backend(0).unwrap();
    // Half of them come before the table is read.
    served.drain(0);
    served.healthy(&stale[..10]);
    wait_until("no entry of the dead server", PATIENCE, || {
        served.ports_to(0).is_empty()
    });
    served.healthy(&ports);
    let events = agent.stop().class("ipvs.stale_reuse");
    assert!(!events.is_empty(), "none was in flight");
    for event in &events {
        assert_eq!(event["event.action"], "healed", "{event}");
    }
}

#[test]
fn direct_routing_is_healed() {
    heals(82, Forwarding::Dr);
}

#[test]
fn tunnelled_destinations_are_healed() {
    // Its device appears in every namespace.
    run("modprobe", &["ipip"]);
    heals(83, Forwarding::Tun);
    run("rmmod", &["ipip"]);
}
