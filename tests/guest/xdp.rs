//! Enforcement in a network card's driver.

use std::{net::IpAddr, thread, time::Duration};

use ipvs_guard::{
    lab::{
        client::{Outcome, connect_all},
        topology::Families,
    },
    netlink::{
        ipvs::{Family, ServiceId},
        route::RouteSocket,
    },
    netns::NetNs,
};
use nix::errno::Errno;

use crate::support::{PATIENCE, agent::Agent, incident, limits, wait_until};

/// The two cards of the guest, which a wire connects.
const NODE: &str = "eth0";
const CLIENT: &str = "eth1";

/// The client comes over a card: where its driver runs XDP, a known stale flow is
/// refused there, elsewhere by TC, and a line says so.
#[test]
fn a_card_refuses_stale_syns_in_its_driver() {
    let topology = incident(Families::Inet);
    let client = NetNs::new().unwrap();
    // Cards of an earlier namespace are on their way back.
    let mut here = RouteSocket::open().unwrap();
    wait_until("the cards", PATIENCE, || {
        here.link(NODE).is_ok() && here.link(CLIENT).is_ok()
    });
    here.move_link(NODE, topology.node()).unwrap();
    here.move_link(CLIENT, &client).unwrap();
    let near: IpAddr = "192.0.2.129".parse().unwrap();
    let far: IpAddr = "192.0.2.130".parse().unwrap();
    let mut node = topology.node().run(RouteSocket::open).unwrap().unwrap();
    let mut other = client.run(RouteSocket::open).unwrap().unwrap();
    for (socket, name, address) in [(&mut node, NODE, near), (&mut other, CLIENT, far)] {
        socket.set_up(name, true).unwrap();
        socket.add_address(name, address, 30).unwrap();
    }
    other.add_default_route(CLIENT, near).unwrap();
    let ServiceId::Address { address, .. } = topology.service(Family::Inet) else {
        panic!("the topology's service has an address");
    };
    let ports: Vec<u16> = (40_000..40_200).collect();
    let connect = || connect_all(&client, address, &ports, limits()).unwrap();

    let args = ["--unless-answering", "0s", "--log-level", "info"];
    let agent = Agent::enforce_in(topology.node(), &args);
    for attempt in connect() {
        assert!(attempt.is_answered(), "{attempt}");
    }
    topology.mute_backend(0).unwrap();
    topology.set_weight(0, 0).unwrap();
    // The table is read in the meantime.
    thread::sleep(Duration::from_secs(2));
    let attempts = connect();
    let refused = Outcome::Failed {
        errno: Errno::ECONNREFUSED,
    };
    let count = attempts
        .iter()
        .filter(|attempt| attempt.outcome == refused)
        .count();
    let ended = agent.stop();
    let by_driver = ended.stderr.contains("eth0 is covered by XDP");
    let by_tc = ended.stderr.contains("eth0 is covered by TC");
    let said = ended.stderr.contains("eth0: the driver refuses XDP");
    assert!(by_driver || (by_tc && said), "{}", ended.stderr);
    let events = ended.incidents();
    assert_eq!(events.len(), count);
    // The entry of a connection that was reset is gone before its port is tried again.
    let other = attempts
        .iter()
        .find(|attempt| !attempt.is_answered() && attempt.outcome != refused);
    assert!(
        other.is_none(),
        "{}, {:?}",
        other.unwrap(),
        ended.class("ipvs.loss")
    );
    assert!(count >= 90, "{count} refused");
    assert!(
        ended
            .class("ipvs.stale_reuse")
            .iter()
            .all(|event| event["event.action"] == "reset")
    );
    println!(
        "enforce on a card by {}: {count} of {count} stale SYNs refused",
        if by_driver { "XDP" } else { "TC" }
    );
}
