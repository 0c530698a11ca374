//! Every stale SYN is reported once, and nothing else is.

use std::collections::BTreeMap;

use ipvs_guard::{
    lab::{
        client::Outcome,
        topology::{Families, backend_address, backend_device},
    },
    netlink::ipvs::Family,
};

use crate::support::{
    agent::{Agent, is_retransmission, key},
    capture::{Capture, Syn},
    crowded_limits, healthy, incident,
};

/// 1,000 connections, 500 of them stale, with 10,000 healthy ones beside.
#[test]
fn ipv4_reports_are_the_captured_syns() {
    reports_are_the_captured_syns(Family::Inet, 1_000, 10_000);
}

#[test]
fn ipv6_reports_are_the_captured_syns() {
    reports_are_the_captured_syns(Family::Inet6, 200, 400);
}

fn reports_are_the_captured_syns(family: Family, connections: u16, beside: u16) {
    let families = match family {
        Family::Inet => Families::Inet,
        Family::Inet6 => Families::Inet6,
    };
    let topology = incident(families);
    let agent = Agent::watch_in(topology.node(), &[]);
    let reused = 40_000..40_000 + connections;
    healthy(&topology, family, reused.clone());
    topology.mute_backend(0).unwrap();
    topology.set_weight(0, 0).unwrap();
    let dead = backend_address(0, family);
    let stale_ports: Vec<u16> = topology
        .connections()
        .unwrap()
        .iter()
        .filter(|entry| entry.destination == dead)
        .map(|entry| entry.client.port())
        .collect();
    let capture = Capture::start(topology.node(), &backend_device(0));

    let ports: Vec<u16> = reused.collect();
    let attempts = std::thread::scope(|scope| {
        let load = scope.spawn(|| healthy(&topology, family, 10_000..10_000 + beside));
        let attempts = topology
            .connect_all(family, &ports, crowded_limits())
            .unwrap();
        load.join().unwrap();
        attempts
    });
    let sent = capture.finish();
    let ended = agent.stop();

    assert_eq!(attempts.len(), usize::from(connections));
    let mut truth: BTreeMap<Syn, usize> = BTreeMap::new();
    for syn in sent {
        *truth.entry(syn).or_default() += 1;
    }
    // Each port whose entry leads to the dead server sent a SYN there, but for
    // what the client's own kernel refused (EADDRNOTAVAIL).
    let refused = |port: u16| {
        attempts.iter().any(|attempt| {
            attempt.port == port && matches!(attempt.outcome, Outcome::Failed { .. })
        })
    };
    for port in &stale_ports {
        let sent = truth.keys().filter(|syn| syn.port == *port).count();
        assert!(
            sent == 1 || (sent == 0 && refused(*port)),
            "port {port}: {sent}"
        );
    }
    assert!(truth.len() <= stale_ports.len());
    assert!(
        truth.len() * 100 >= usize::from(connections) * 49,
        "round robin: {} stale of {connections}",
        truth.len()
    );

    let mut incidents: BTreeMap<Syn, usize> = BTreeMap::new();
    let mut reports: BTreeMap<Syn, usize> = BTreeMap::new();
    let stale = ended.class("ipvs.stale_reuse");
    for event in &stale {
        let (port, seq) = key(event);
        *reports.entry(Syn { port, seq }).or_default() += 1;
        if !is_retransmission(event) {
            *incidents.entry(Syn { port, seq }).or_default() += 1;
        }
        assert_eq!(event["ipvs.dest.weight"], 0);
        assert_eq!(event["ipvs.dest.available"], true);
        assert_eq!(event["ipvs.forwarding"], "masq");
        let expected = if family == Family::Inet {
            "ipv4"
        } else {
            "ipv6"
        };
        assert_eq!(event["network.type"], expected);
        assert_eq!(event["netns.inode"], topology.node().inode());
    }
    assert_eq!(ended.lost(), 0);
    assert_eq!(
        reports, truth,
        "every packet sent to the dead server, and no other"
    );
    assert_eq!(incidents.len(), truth.len());
    assert!(
        incidents.values().all(|count| *count == 1),
        "an incident is told once"
    );
    println!(
        "exact {family:?}: {} incidents and {} retransmissions reported; captured: {} stale \
         connections, {} SYNs; healthy beside: {beside}",
        incidents.len(),
        stale.len() - incidents.len(),
        truth.len(),
        truth.values().sum::<usize>(),
    );
}
