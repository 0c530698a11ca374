//! Clients and servers behind other devices than veth are met like any, on the way
//! in and on the way out, and checksums are right whoever completes them.

use std::{
    collections::BTreeSet,
    fs,
    net::{IpAddr, SocketAddr},
    ops::Range,
};

use ipvs_guard::{
    lab::{
        client::{Attempt, Outcome, connect_all},
        topology::{
            CLIENT_DEVICE, Families, ONLY_DEVICE, Topology, backend_address, backend_device,
            client_address,
        },
    },
    netlink::{
        ipvs::{Destination, Family, Service, ServiceId},
        route::RouteSocket,
    },
    netns::{NetNs, sysctl},
};
use ipvs_guard_common::state::ConnState;
use nix::errno::Errno;

use crate::support::{
    PATIENCE,
    agent::Agent,
    capture::Capture,
    device::{Tun, set_checksum_offload},
    incident, limits,
    packet::{Read, Segment},
    run, short_limits,
    syn::Sender,
    wait_until,
};

const FAMILIES: [Family; 2] = [Family::Inet, Family::Inet6];
const SEQ: u32 = 0x7fff_fff0;

/// Where SYNs are met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Met {
    /// On their way out, after IPVS.
    Out,
    /// On their way in, before it.
    In,
}

/// Enforces so that SYNs to the first backend are met there and nowhere else. Its
/// weight is 0 already, so every stale flow is known once the agent is ready.
fn enforce(topology: &Topology, met: Met) -> Agent {
    let device = backend_device(0);
    let mut args = vec!["--unless-answering", "0s"];
    if met == Met::Out {
        args.extend(["--interface", &device]);
    }
    Agent::enforce_in(topology.node(), &args)
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn service(topology: &Topology, family: Family) -> SocketAddr {
    let ServiceId::Address { address, .. } = topology.service(family) else {
        panic!("the topology's service has an address");
    };
    address
}

/// Entries of a client that lead to the first backend, and their states.
fn stale(topology: &Topology, client: IpAddr, family: Family) -> Vec<(u16, Option<ConnState>)> {
    let dead = backend_address(0, family);
    let entries = topology.connections().unwrap();
    let own = entries
        .iter()
        .filter(|entry| entry.client.ip() == client && entry.destination == dead);
    own.map(|entry| (entry.client.port(), entry.state))
        .collect()
}

fn ports(stale: &[(u16, Option<ConnState>)]) -> Vec<u16> {
    stale.iter().map(|(port, _)| *port).collect()
}

/// A SYN that was met on its way in has never been to IPVS, any other has.
fn assert_met(topology: &Topology, client: IpAddr, family: Family, met: Met) {
    for (port, state) in stale(topology, client, family) {
        let untouched = state == Some(ConnState::TimeWait);
        assert_eq!(untouched, met == Met::In, "port {port}: {state:?}");
    }
}

fn assert_refused(what: &str, attempts: &[Attempt]) {
    let refused = Outcome::Failed {
        errno: Errno::ECONNREFUSED,
    };
    for attempt in attempts {
        assert_eq!(attempt.outcome, refused, "{what}: {attempt}");
    }
}

/// One connection from each port of a client, answered.
fn healthy(topology: &Topology, client: &NetNs, family: Family, ports: Range<u16>) {
    let ports: Vec<u16> = ports.collect();
    let attempts = connect_all(client, service(topology, family), &ports, limits()).unwrap();
    for attempt in attempts {
        assert!(attempt.is_answered(), "{attempt}");
    }
    // A server that is muted too early never acknowledges the client's last segment,
    // and the port stays taken.
    let sockets = |table: &str| fs::read_to_string(table).unwrap().lines().count() - 1;
    wait_until("closed sockets", PATIENCE, || {
        client
            .run(|| sockets("/proc/thread-self/net/tcp") + sockets("/proc/thread-self/net/tcp6"))
            .unwrap()
            == 0
    });
}

/// Opens a connection through a device whose packets are read and written here, and
/// closes it from the client's side: its entry is in TIME_WAIT then.
fn open_and_close(tun: &Tun, client: SocketAddr, vip: SocketAddr) {
    tun.send(&Segment::syn(client, vip, SEQ).packet());
    let answer = tun.receive("SYN-ACK", |bytes| {
        Read::packet(bytes).filter(|read| read.to == client && read.is_syn_ack())
    });
    let mut fin = Segment::new(client, vip, SEQ + 1);
    fin.tcp.fin = true;
    fin.tcp.ack = true;
    fin.tcp.acknowledgment_number = answer.seq.wrapping_add(1);
    tun.send(&fin.packet());
}

/// A client behind a device without link-layer header, whose packets are read and
/// written here.
struct Bare {
    tun: Tun,
}

impl Bare {
    const CLIENTS: [&str; 2] = ["203.0.113.130", "2001:db8:4::2"];

    fn new(topology: &Topology) -> Self {
        let near = [(ip("203.0.113.129"), 30), (ip("2001:db8:4::1"), 64)];
        let tun = Tun::new(topology.node(), "tun0", &near);
        for (client, family) in Self::CLIENTS.map(ip).into_iter().zip(FAMILIES) {
            for port in 40_000..40_004 {
                let client = SocketAddr::new(client, port);
                open_and_close(&tun, client, service(topology, family));
            }
            wait_until("TIME_WAIT", PATIENCE, || {
                let stale = stale(topology, client, family);
                let closed = |(_, state): &(u16, _)| *state == Some(ConnState::TimeWait);
                stale.len() == 2 && stale.iter().all(closed)
            });
        }
        Self { tun }
    }

    fn assert_reset(&self, topology: &Topology, agent: &Agent, met: Met) {
        for (client, family) in Self::CLIENTS.map(ip).into_iter().zip(FAMILIES) {
            let vip = service(topology, family);
            let ports = ports(&stale(topology, client, family));
            assert_eq!(ports.len(), 2);
            agent.aside(|| {
                for port in ports {
                    let client = SocketAddr::new(client, port);
                    let seq = 77_000 + met as u32;
                    self.tun.send(&Segment::syn(client, vip, seq).packet());
                    let what = format!("{met:?}, {client}");
                    // The servers repeat what they sent when the connection was closed.
                    let answer = self.tun.receive(&what, |bytes| {
                        Read::packet(bytes)
                            .filter(|read| read.to == client && (read.tcp.rst || read.is_syn_ack()))
                    });
                    answer.assert_resets(&what, client, vip, seq);
                }
            });
            assert_met(topology, client, family, met);
        }
    }
}

/// A client on a VLAN of a device: the tag is beside the packet in the kernel, and
/// both the device and its VLAN's are covered.
struct Tagged {
    client: NetNs,
}

impl Tagged {
    const NETWORKS: [(&str, &str, u8); 2] = [
        ("203.0.113.133", "203.0.113.134", 30),
        ("2001:db8:5::1", "2001:db8:5::2", 64),
    ];

    fn new(topology: &Topology) -> Self {
        run("modprobe", &["8021q"]);
        let client = NetNs::new().unwrap();
        client
            .run(|| sysctl::write("net/ipv6/conf/default/accept_dad", "0"))
            .unwrap()
            .unwrap();
        let mut near = topology.node().run(RouteSocket::open).unwrap().unwrap();
        let mut far = client.run(RouteSocket::open).unwrap().unwrap();
        near.add_veth("trunk", ONLY_DEVICE, &client).unwrap();
        near.add_vlan("trunk.7", "trunk", 7).unwrap();
        far.add_vlan("eth0.7", ONLY_DEVICE, 7).unwrap();
        for device in ["trunk", "trunk.7"] {
            near.set_up(device, true).unwrap();
        }
        for device in [ONLY_DEVICE, "eth0.7"] {
            far.set_up(device, true).unwrap();
        }
        for (gateway, address, prefix) in Self::NETWORKS {
            near.add_address("trunk.7", ip(gateway), prefix).unwrap();
            far.add_address("eth0.7", ip(address), prefix).unwrap();
            far.add_default_route("eth0.7", ip(gateway)).unwrap();
        }
        for family in FAMILIES {
            healthy(topology, &client, family, 40_000..40_010);
        }
        Self { client }
    }

    fn assert_refused(&self, topology: &Topology, agent: &Agent, met: Met) {
        for ((_, address, _), family) in Self::NETWORKS.into_iter().zip(FAMILIES) {
            let ports = ports(&stale(topology, ip(address), family));
            assert_eq!(ports.len(), 5);
            let vip = service(topology, family);
            let attempts = agent.aside(|| connect_all(&self.client, vip, &ports, short_limits()));
            let attempts = attempts.unwrap();
            assert_refused(&format!("{met:?}, VLAN, {family:?}"), &attempts);
            assert_met(topology, ip(address), family, met);
        }
    }
}

/// The client's device may leave the checksum of its SYNs to be completed, and the
/// node's that of its resets.
fn assert_checksums(topology: &Topology, agent: &Agent, met: Met) {
    for (node, client) in [(true, true), (true, false), (false, true), (false, false)] {
        set_checksum_offload(topology.node(), CLIENT_DEVICE, node);
        set_checksum_offload(topology.client(), ONLY_DEVICE, client);
        let capture = Capture::of(topology.client(), ONLY_DEVICE, |bytes, leaving| {
            Read::frame(bytes).filter(|read| !leaving && read.tcp.rst)
        });
        let mut expected = BTreeSet::new();
        let what = format!("{met:?}, offload: node {node}, client {client}");
        let ports = FAMILIES.map(|family| {
            let address = client_address(family);
            let ports = ports(&stale(topology, address, family));
            assert_eq!(ports.len(), 5, "{what}, {family:?}");
            expected.extend(ports.iter().map(|port| SocketAddr::new(address, *port)));
            (family, ports)
        });
        agent.aside(|| {
            for (family, ports) in &ports {
                let attempts = topology.connect_all(*family, ports, short_limits());
                assert_refused(&what, &attempts.unwrap());
            }
        });
        let resets = capture.finish();
        let to: BTreeSet<SocketAddr> = resets.iter().map(|reset| reset.to).collect();
        assert_eq!(to, expected, "{what}");
        assert_eq!(resets.len(), expected.len(), "{what}: {resets:?}");
        for reset in &resets {
            assert!(reset.ip_is_right, "{reset:?}");
            // Completed by nobody if both sides leave that to a device.
            let right = !(node && client);
            assert_eq!(reset.tcp_is_right, right, "{what}: {reset:?}");
        }
    }
    for family in FAMILIES {
        assert_met(topology, client_address(family), family, met);
    }
}

#[test]
fn forms_of_devices_are_met_on_both_ways() {
    let topology = incident(Families::Dual);
    let bare = Bare::new(&topology);
    let tagged = Tagged::new(&topology);
    for family in FAMILIES {
        healthy(&topology, topology.client(), family, 40_000..40_010);
    }
    topology.mute_backend(0).unwrap();
    topology.set_weight(0, 0).unwrap();
    for met in [Met::In, Met::Out] {
        let agent = enforce(&topology, met);
        bare.assert_reset(&topology, &agent, met);
        tagged.assert_refused(&topology, &agent, met);
        assert_checksums(&topology, &agent, met);
        agent.stop();
    }
}

/// A real server behind a device without link-layer header.
#[test]
fn forms_of_devices_server_without_link_layer() {
    let topology = incident(Families::Dual);
    let near = [(ip("203.0.113.129"), 30), (ip("2001:db8:4::1"), 64)];
    let servers = [ip("203.0.113.130"), ip("2001:db8:4::2")];
    let tun = Tun::new(topology.node(), "tun0", &near);
    let args = ["--unless-answering", "0s", "--interface", "tun0"];
    // The way out is watched while anything drains: it is to be before the agent stands
    // still.
    topology.set_weight(1, 0).unwrap();
    let agent = Agent::enforce_in(topology.node(), &args);
    let mut ipvs = topology.open_ipvs().unwrap();
    for (server, family) in servers.into_iter().zip(FAMILIES) {
        let server = SocketAddr::new(server, 8080);
        let vip = SocketAddr::new(service(&topology, family).ip(), 7_007);
        let id = ServiceId::tcp(vip);
        ipvs.add_service(&Service::new(id, "rr")).unwrap();
        ipvs.add_destination(&id, &Destination::masq(server, 1))
            .unwrap();
        let client = SocketAddr::new(client_address(family), 40_000);
        let sender = Sender::new(topology.client(), client.ip(), vip);
        sender.send(client.port(), SEQ);
        let syn = tun.receive("SYN", |bytes| {
            Read::packet(bytes).filter(|read| read.to == server && read.tcp.syn)
        });
        let mut answer = Segment::syn(server, syn.from, 5);
        answer.tcp.ack = true;
        answer.tcp.acknowledgment_number = SEQ + 1;
        tun.send(&answer.packet());
        // The client knows of no such connection, and a reset alone leaves the entry
        // in SYN_RECV.
        let is_reset =
            |bytes: &[u8]| Read::packet(bytes).filter(|read| read.to == server && read.tcp.rst);
        tun.receive("RST", is_reset);
        answer.tcp.syn = false;
        answer.tcp.fin = true;
        answer.tcp.sequence_number += 1;
        tun.send(&answer.packet());
        tun.receive("RST", is_reset);
        let capture = Capture::of(topology.client(), ONLY_DEVICE, |bytes, leaving| {
            (!leaving).then(|| Read::frame(bytes)).flatten()
        });
        let mut read = agent.aside(|| {
            ipvs.set_destination(&id, &Destination::masq(server, 0))
                .unwrap();
            sender.send(client.port(), 77_000);
            capture.finish()
        });
        read.retain(|read| read.from == vip);
        assert_eq!(read.len(), 1, "{server}: {read:?}");
        read[0].assert_resets("server", client, vip, 77_000);
    }
    let ended = agent.stop();
    let events = ended.incidents();
    assert_eq!(events.len(), 2);
    assert!(
        ended
            .class("ipvs.stale_reuse")
            .iter()
            .all(|event| event["event.action"] == "reset")
    );
}
