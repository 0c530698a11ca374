//! Stale entries lead to living servers again, and nothing fails.

use std::{
    collections::HashSet,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    process::Command,
    thread,
    time::Duration,
};

use ipvs_guard::{
    lab::{
        client::Attempt,
        topology::{Families, Topology, backend_address},
    },
    netlink::{
        ipvs::{DaemonRole, Family, ServiceId},
        route::RouteSocket,
    },
};
use ipvs_guard_common::guard::MARK;
use nix::sys::signal::Signal;
use serde_json::Value;

use crate::{
    enforce::{is_refused, stale_ports},
    support::{
        PATIENCE,
        agent::{Agent, Ended, netns_path},
        healthy, incident, limits,
        long::Long,
        sync::{self, Feeder},
        table_grows, thorough, wait_until,
    },
};

const HEAL: [&str; 2] = ["--action", "heal"];

fn families(family: Family) -> Families {
    match family {
        Family::Inet => Families::Inet,
        Family::Inet6 => Families::Inet6,
    }
}

/// All were answered; prints how fast.
fn assert_answered(what: &str, attempts: &[Attempt]) {
    let mut times: Vec<Duration> = attempts.iter().map(|attempt| attempt.duration).collect();
    times.sort_unstable();
    println!(
        "enforce heal {what}: {} connections, {} failed, median {:.1} ms, the slowest {:.1} ms",
        attempts.len(),
        attempts
            .iter()
            .filter(|attempt| !attempt.is_answered())
            .count(),
        times[times.len() / 2].as_secs_f64() * 1e3,
        times[times.len() - 1].as_secs_f64() * 1e3,
    );
    for attempt in attempts {
        assert!(attempt.is_answered(), "{attempt}");
    }
}

/// Actions of the incidents, repeated SYNs aside.
fn actions(ended: &Ended) -> Vec<Value> {
    ended
        .class("ipvs.stale_reuse")
        .into_iter()
        .filter(|event| event["tcp.retransmission"] == false)
        .map(|event| event["event.action"].clone())
        .collect()
}

/// Waits until no entry leads to the first backend.
fn wait_until_empty(topology: &Topology, family: Family) {
    wait_until("no entry of the dead server", PATIENCE, || {
        stale_ports(topology, family).is_empty()
    });
}

/// The entries of a server that is withdrawn are re-pointed at once.
#[test]
fn stale_entries_are_re_pointed() {
    for family in [Family::Inet, Family::Inet6] {
        let topology = incident(families(family));
        let agent = Agent::enforce_in(topology.node(), &HEAL);
        let ports = 40_000..40_200;
        healthy(&topology, family, ports.clone());
        let stale = stale_ports(&topology, family);
        assert!(stale.len() >= 96, "{}", stale.len());
        topology.set_weight(0, 0).unwrap();
        topology.kill_backend(0).unwrap();
        wait_until_empty(&topology, family);
        let dead = topology.destination(0, family).unwrap();
        assert_eq!((dead.active, dead.inactive), (0, 0));
        let alive = topology.destination(1, family).unwrap();
        let mut entries = topology.connections().unwrap();
        // The mark of the last message.
        entries.retain(|entry| entry.client.ip() != IpAddr::from(MARK));
        assert!(alive.active == 0 || table_grows(), "{}", alive.active);
        assert_eq!((alive.active + alive.inactive) as usize, entries.len());
        let attempts = topology
            .connect_all(family, &ports.collect::<Vec<_>>(), limits())
            .unwrap();
        assert_answered(&format!("{family:?}"), &attempts);
        let ended = agent.stop();
        assert_eq!(actions(&ended), Vec::<Value>::new(), "nothing was stale");
    }
}

/// SYNs that come before their entries are re-pointed are held back and sent on.
#[test]
fn syns_in_flight_are_sent_on() {
    for family in [Family::Inet, Family::Inet6] {
        let topology = incident(families(family));
        let agent = Agent::enforce_in(topology.node(), &["--action", "heal"]);
        healthy(&topology, family, 40_000..40_200);
        let stale = stale_ports(&topology, family);
        topology.mute_backend(0).unwrap();
        // They come before the table is read.
        topology.set_weight(0, 0).unwrap();
        let attempts = topology.connect_all(family, &stale, limits()).unwrap();
        assert_answered(&format!("in flight {family:?}"), &attempts);
        let ended = agent.stop();
        let healed = actions(&ended);
        assert!(
            healed.iter().all(|action| *action == "healed"),
            "{healed:?}"
        );
        assert!(healed.len() >= 10, "{} were in flight", healed.len());
        println!(
            "enforce heal: {} of {} were in flight",
            healed.len(),
            stale.len()
        );
    }
}

/// Where no server is left, clients are told at once.
#[test]
fn without_a_living_server_clients_are_refused() {
    let topology = incident(Families::Inet);
    let args = ["--action", "heal", "--unless-answering", "0s"];
    let agent = Agent::enforce_in(topology.node(), &args);
    healthy(&topology, Family::Inet, 40_000..40_100);
    for number in 0..2 {
        topology.mute_backend(number).unwrap();
        topology.set_weight(number, 0).unwrap();
    }
    thread::sleep(Duration::from_secs(1));
    let all: Vec<u16> = (40_000..40_100).collect();
    let attempts = topology.connect_all(Family::Inet, &all, limits()).unwrap();
    for attempt in &attempts {
        assert!(is_refused(attempt), "{attempt}");
    }
    let ended = agent.stop();
    let resets = actions(&ended);
    assert_eq!(resets.len(), 100);
    assert!(resets.iter().all(|action| *action == "reset"));
}

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

/// Connections that move data all the time, while short ones come from few ports and
/// both servers are drained in turn: not a byte is lost.
#[test]
fn long_connections_lose_nothing() {
    let topology = incident(Families::Inet);
    let long = Long::serve(&topology);
    let agent = Agent::enforce_in(topology.node(), &HEAL);
    let rounds = if thorough() { 20 } else { 6 };
    let ports: Vec<u16> = (20_000..20_100).collect();
    let mut short = Vec::new();
    thread::scope(|scope| {
        let _end = long.begin(scope, 20);
        for round in 0..rounds {
            let number = round % 2;
            let weigh = |weight| {
                long.set_weight(number, weight);
                topology.set_weight(number, weight).unwrap();
            };
            weigh(0);
            // Closed entries are healed within a second, and none is then on its way.
            for pause in [300, 1_000] {
                let attempts = topology.connect_all(Family::Inet, &ports, limits());
                short.extend(attempts.unwrap());
                thread::sleep(Duration::from_millis(pause));
            }
            weigh(1);
        }
    });
    let ended = agent.stop();
    if !short.iter().all(Attempt::is_answered) {
        println!("{}", ended.stderr);
    }
    assert_answered("beside long ones", &short);
    println!(
        "enforce heal beside 20 long connections: {rounds} drains, {} bytes echoed, none lost; {} \
         SYNs sent on",
        long.moved(),
        actions(&ended).len()
    );
}
