//! The way into the connection table: nobody else gets in by it, and no daemon of the
//! node's own is touched.

use std::{
    collections::HashSet,
    net::{Ipv4Addr, SocketAddr},
    process::Command,
    thread,
    time::Duration,
};

use ipvs_guard::{
    lab::topology::{Families, Topology, backend_address},
    netlink::{
        ipvs::{DaemonRole, Family, ServiceId},
        route::RouteSocket,
    },
};
use nix::sys::signal::Signal;

use crate::{
    enforce::{is_refused, stale_ports},
    heal::{HEAL, actions, wait_until_empty},
    support::{
        PATIENCE,
        agent::{Agent, netns_path},
        healthy, incident, limits,
        sync::{self, Feeder},
        wait_until,
    },
};

/// A device of the guard's in the node's namespace.
fn own_device(topology: &Topology) -> Option<String> {
    let devices = topology
        .node()
        .run(|| RouteSocket::open().unwrap().devices().unwrap())
        .unwrap();
    let mut names = devices.into_iter().map(|device| device.name);
    names.find(|name| name.starts_with("ipvsg-"))
}

fn has_daemon(topology: &Topology) -> bool {
    !topology.open_ipvs().unwrap().daemons().unwrap().is_empty()
}

/// The daemon runs only while there is something to tell it, and device and daemon
/// go with the agent, however it goes.
#[test]
fn device_and_daemon_go_with_the_agent() {
    let topology = incident(Families::Inet);
    let drained = |agent: &Agent| {
        topology.set_weight(0, 1).unwrap();
        healthy(&topology, Family::Inet, 40_000..40_040);
        topology.set_weight(0, 0).unwrap();
        wait_until_empty(&topology, Family::Inet);
        assert!(own_device(&topology).is_some(), "{}", agent.stderr());
    };
    let agent = Agent::enforce_in(topology.node(), &HEAL);
    assert!(!has_daemon(&topology));
    drained(&agent);
    wait_until("the daemon's rest", PATIENCE, || !has_daemon(&topology));
    drained(&agent);
    agent.stop();
    assert!(!has_daemon(&topology));
    assert_eq!(own_device(&topology), None);

    let agent = Agent::enforce_in(topology.node(), &HEAL);
    drained(&agent);
    agent.signal(Signal::SIGKILL);
    drop(agent);
    wait_until("the device's end", PATIENCE, || {
        own_device(&topology).is_none()
    });
    let left = has_daemon(&topology);
    let output = Command::new("ipvs-guard")
        .args(["cleanup", "--netns", &netns_path(topology.node())])
        .output()
        .unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success());
    assert_eq!(
        said.contains("removed sync daemon from ipvsg-"),
        left,
        "{said}"
    );
    assert!(!has_daemon(&topology));
}

/// Whoever sends to the daemon's group from the node itself is not heard.
#[test]
fn nobody_else_is_heard() {
    let topology = incident(Families::Inet);
    let agent = Agent::enforce_in(topology.node(), &HEAL);
    healthy(&topology, Family::Inet, 40_000..40_020);
    let before: HashSet<_> = entries(&topology);
    topology.set_weight(0, 0).unwrap();
    wait_until("the daemon", PATIENCE, || has_daemon(&topology));
    let device = own_device(&topology).unwrap();
    let sent = topology
        .node()
        .run(|| forge(&device, topology.service(Family::Inet)))
        .unwrap();
    assert!(sent > 0);
    thread::sleep(Duration::from_millis(300));
    let forged: SocketAddr = FORGED.parse().unwrap();
    let seen = topology.connections().unwrap();
    assert!(!seen.iter().any(|entry| entry.client == forged));
    assert!(before.len() == 20);
    agent.stop();

    // What was sent is what a daemon without the gate does take.
    let feeder = Feeder::start(&topology);
    topology
        .node()
        .run(|| forge("lo", topology.service(Family::Inet)))
        .unwrap();
    wait_until("the forged entry", PATIENCE, || {
        let seen = topology.connections().unwrap();
        seen.iter().any(|entry| entry.client == forged)
    });
    feeder.stop();
}

const FORGED: &str = "192.0.2.77:7777";

fn entries(topology: &Topology) -> HashSet<SocketAddr> {
    let entries = topology.connections().unwrap();
    entries.into_iter().map(|entry| entry.client).collect()
}

/// Sends an entry to every group and port that listens, as /proc/net/udp tells
/// anybody, by a device and under every number.
fn forge(device: &str, service: ServiceId) -> usize {
    let ServiceId::Address { address: vip, .. } = service else {
        panic!("the topology's service has an address");
    };
    let client: SocketAddr = FORGED.parse().unwrap();
    let entry = [client, vip, backend_address(1, Family::Inet)];
    let udp = std::fs::read_to_string("/proc/thread-self/net/udp").unwrap();
    let socket = sync::towards(device);
    let mut sent = 0;
    for line in udp.lines().skip(1) {
        let local = line.split_whitespace().nth(1).unwrap();
        let (group, port) = local.split_once(':').unwrap();
        let group = u32::from_str_radix(group, 16).unwrap().swap_bytes();
        let group = Ipv4Addr::from_bits(group);
        let port = u16::from_str_radix(port, 16).unwrap();
        if !group.is_multicast() {
            continue;
        }
        for id in 0..=255 {
            let message = sync::message(id, &[entry], 60);
            sent += usize::from(socket.send_to(&message, (group, port)).is_ok());
        }
    }
    sent
}

/// A daemon of the node's own is left alone, and what cannot be done is said.
#[test]
fn the_nodes_own_daemon_is_left_alone() {
    let topology = incident(Families::Inet);
    let feeder = Feeder::start(&topology);
    let args = ["--action", "heal", "--unless-answering", "0s"];
    let agent = Agent::enforce_in(topology.node(), &args);
    healthy(&topology, Family::Inet, 40_000..40_040);
    topology.mute_backend(0).unwrap();
    topology.set_weight(0, 0).unwrap();
    agent.wait_for("ipvs-guard: not healing for 30 s, stale SYNs are reset: a backup sync daemon");
    let stale = stale_ports(&topology, Family::Inet);
    assert_eq!(stale.len(), 20);
    for attempt in topology
        .connect_all(Family::Inet, &stale, limits())
        .unwrap()
    {
        assert!(is_refused(&attempt), "{attempt}");
    }
    let ended = agent.stop();
    assert!(actions(&ended).iter().all(|action| *action == "reset"));
    let daemons = topology.open_ipvs().unwrap().daemons().unwrap();
    assert_eq!(daemons.len(), 1);
    assert_eq!(daemons[0].role, DaemonRole::Backup);
    assert_eq!(daemons[0].device, "lo");
    feeder.stop();
}

/// Whoever ends our daemon and begins one of its own, as keepalived does when it starts,
/// keeps it.
#[test]
fn a_daemon_that_took_the_place_of_ours_is_left_alone() {
    let topology = incident(Families::Inet);
    let agent = Agent::enforce_in(topology.node(), &HEAL);
    healthy(&topology, Family::Inet, 40_000..40_040);
    topology.set_weight(0, 0).unwrap();
    wait_until("the daemon", PATIENCE, || has_daemon(&topology));
    let feeder = Feeder::in_place_of_any(&topology);
    // Ours would be ended a second after the last message.
    thread::sleep(Duration::from_millis(2_500));
    let of_the_node = || {
        let daemons = topology.open_ipvs().unwrap().daemons().unwrap();
        daemons.len() == 1 && daemons[0].device == "lo"
    };
    assert!(of_the_node(), "{}", agent.stderr());
    agent.stop();
    assert!(of_the_node());
    feeder.stop();
}
