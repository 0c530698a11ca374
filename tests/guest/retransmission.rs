//! What is reuse, and what only a SYN that is sent once more.

use std::{thread, time::Duration};

use ipvs_guard::{
    lab::topology::{Families, backend_device, client_address},
    netlink::ipvs::{Family, ServiceId},
};

use crate::support::{
    agent::{Agent, is_retransmission, key},
    capture::Capture,
    healthy, incident,
    syn::Sender,
};

fn sender(topology: &ipvs_guard::lab::topology::Topology, family: Family) -> Sender {
    let ServiceId::Address { address, .. } = topology.service(family) else {
        panic!("the topology's service has an address");
    };
    Sender::new(topology.client(), client_address(family), address)
}

/// Scheduled while the weight was positive, repeated when it was 0.
#[test]
fn a_scheduled_syn_repeated_after_the_drain_began_is_no_reuse() {
    for family in [Family::Inet, Family::Inet6] {
        let topology = incident(Families::Dual);
        // Neighbours are found: no SYN has to wait for one.
        healthy(&topology, family, 39_000..39_010);
        topology.mute_backend(0).unwrap();
        topology.mute_backend(1).unwrap();
        let agent = Agent::watch_in(topology.node(), &[]);
        let capture = Capture::start(topology.node(), &backend_device(0));
        let sender = sender(&topology, family);
        for port in 41_000..41_020 {
            sender.send(port, 0x700 + u32::from(port));
        }
        topology.set_weight(0, 0).unwrap();
        for port in 41_000..41_020 {
            sender.send(port, 0x700 + u32::from(port));
        }
        let captured = capture.finish().len();
        let ended = agent.stop();
        assert_eq!(captured, 20, "ten of each round went to the first backend");
        assert_eq!(
            ended.class("ipvs.stale_reuse"),
            Vec::<serde_json::Value>::new()
        );
    }
}

/// The same with an agent that did not see the first SYN.
#[test]
fn an_agent_that_starts_late_takes_no_repeated_syn_for_reuse() {
    let topology = incident(Families::Inet);
    healthy(&topology, Family::Inet, 39_000..39_010);
    topology.mute_backend(0).unwrap();
    topology.mute_backend(1).unwrap();
    let sender = sender(&topology, Family::Inet);
    for port in 41_000..41_020 {
        sender.send(port, 7);
    }
    topology.set_weight(0, 0).unwrap();
    let agent = Agent::watch_in(topology.node(), &["--event", "stale_reuse"]);
    for _ in 0..2 {
        for port in 41_000..41_020 {
            sender.send(port, 7);
        }
    }
    thread::sleep(Duration::from_millis(300));
    assert_eq!(agent.stop().events(), Vec::<serde_json::Value>::new());
}

/// A half-open entry that is used again, before and after the agent knew it.
#[test]
fn a_new_syn_on_an_unanswered_stale_one_is_a_new_incident() {
    let topology = incident(Families::Inet);
    healthy(&topology, Family::Inet, 42_000..42_020);
    topology.mute_backend(0).unwrap();
    topology.set_weight(0, 0).unwrap();
    let agent = Agent::watch_in(topology.node(), &["--event", "stale_reuse"]);
    let capture = Capture::start(topology.node(), &backend_device(0));
    let sender = sender(&topology, Family::Inet);
    for seq in [
        1_000_000, 1_000_000, 2_000_000, 2_000_000, 2_000_000, 3_000_000,
    ] {
        for port in 42_000..42_020 {
            sender.send(port, seq);
        }
    }
    let captured = capture.finish().len();
    let events = agent.stop().events();
    assert_eq!(captured, 60, "ten ports, six SYNs each");
    assert_eq!(events.len(), captured);
    for seq in [1_000_000, 2_000_000, 3_000_000] {
        let of_seq = || events.iter().filter(|event| key(event).1 == seq);
        assert_eq!(
            of_seq().filter(|event| !is_retransmission(event)).count(),
            10
        );
        assert_eq!(of_seq().next().unwrap()["tcp.retransmission"], false);
    }
}
