//! Clients whose traffic is masqueraded on its way out of the node.

use std::{net::IpAddr, ops::Range, thread, time::Duration};

use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use ipvs_guard::{
    lab::topology::{Families, Options, Topology, backend_address, backend_device, client_address},
    netlink::ipvs::Family,
};
use nix::sys::signal::Signal;

use crate::{
    enforce::{AT_ONCE, is_refused},
    support::{agent::Agent, capture::Capture, healthy, limits, load_ipvs, nft},
};

const FAMILIES: [Family; 2] = [Family::Inet, Family::Inet6];
const PORTS: Range<u16> = 40_000..40_060;

/// The source address of a TCP segment that leaves.
fn source(packet: &[u8], leaving: bool) -> Option<IpAddr> {
    let sliced = SlicedPacket::from_ethernet(packet).ok()?;
    // Not those of neighbour discovery, which are of the node.
    if !leaving || !matches!(sliced.transport, Some(TransportSlice::Tcp(_))) {
        return None;
    }
    match sliced.net? {
        NetSlice::Ipv4(ip) => Some(ip.header().source_addr().into()),
        NetSlice::Ipv6(ip) => Some(ip.header().source_addr().into()),
        NetSlice::Arp(_) => None,
    }
}

/// Three backends, of which the first will be mute and the second without a
/// neighbour.
fn topology(conntrack: bool) -> Topology {
    load_ipvs();
    let topology = Topology::build(&Options {
        backends: 3,
        families: Families::Dual,
        conn_reuse_mode: Some(0),
        expire_nodest_conn: Some(false),
        conntrack: Some(conntrack),
        ..Options::default()
    })
    .unwrap();
    nft::masquerade(topology.node());
    topology
}

fn masqueraded_clients_are_refused(conntrack: bool) {
    let topology = topology(conntrack);
    let agent = Agent::enforce_in(topology.node(), &AT_ONCE);
    let sources = Capture::of(topology.node(), &backend_device(2), source);
    for family in FAMILIES {
        healthy(&topology, family, PORTS);
    }
    let sources = sources.finish();
    let clients = FAMILIES.map(client_address);
    let direct = sources.iter().filter(|source| clients.contains(source));
    // IPVS keeps its packets from connection tracking, and so from masquerading,
    // unless it is told otherwise (net.ipv4.vs.conntrack).
    let expected = if conntrack { 0 } else { sources.len() };
    assert_eq!(direct.count(), expected, "of {}", sources.len());
    let entries = topology.connections().unwrap();
    let ports_to = |backend: usize, family: Family| -> Vec<u16> {
        let address = backend_address(backend, family);
        let there = entries.iter().filter(|entry| entry.destination == address);
        there.map(|entry| entry.client.port()).collect()
    };
    let connect = |family: Family, ports: &[u16]| {
        let stale = [ports_to(0, family), ports_to(1, family)].concat();
        for attempt in topology.connect_all(family, ports, limits()).unwrap() {
            if stale.contains(&attempt.port) {
                assert!(is_refused(&attempt), "stale: {attempt}");
            } else {
                assert!(attempt.is_answered(), "healthy: {attempt}");
            }
        }
    };
    let capture = Capture::start(topology.node(), &backend_device(0));
    topology.mute_backend(0).unwrap();
    topology.kill_backend(1).unwrap();
    // The resets of these come from user space: they are not masqueraded.
    topology.set_weight(1, 0).unwrap();
    for family in FAMILIES {
        connect(family, &ports_to(1, family));
    }
    // An agent that is stopped reads no connection table: these are met on their
    // way out, behind the masquerading.
    agent.signal(Signal::SIGSTOP);
    topology.set_weight(0, 0).unwrap();
    for family in FAMILIES {
        let stale = ports_to(0, family);
        assert_eq!(stale.len(), 20);
        connect(family, &stale);
    }
    agent.signal(Signal::SIGCONT);
    // And now all of them are turned before IPVS.
    thread::sleep(Duration::from_millis(300));
    for family in FAMILIES {
        connect(family, &PORTS.collect::<Vec<_>>());
    }
    let sent = capture.finish();
    let ended = agent.stop();
    assert_eq!(sent.len(), 0, "SYNs at the dead server's device");
    let events = ended.incidents();
    assert_eq!(events.len(), 160);
    assert!(
        ended
            .class("ipvs.stale_reuse")
            .iter()
            .all(|event| event["event.action"] == "reset")
    );
}

#[test]
fn masqueraded_clients_are_refused_with_conntrack() {
    masqueraded_clients_are_refused(true);
}

/// `net.ipv4.vs.conntrack` is 0 by default.
#[test]
fn clients_are_refused_beside_a_masquerade_without_conntrack() {
    masqueraded_clients_are_refused(false);
}
