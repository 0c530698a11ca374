//! Devices that come and go under a guard, and those it cannot cover.

use std::{
    process::Command,
    thread,
    time::{Duration, Instant},
};

use ipvs_guard::{
    lab::{
        client::Outcome,
        topology::{
            CLIENT_DEVICE, Families, ONLY_DEVICE, Topology, backend_address, backend_device,
            client_address,
        },
    },
    netlink::{ipvs::Family, route::RouteSocket},
    netns::NetNs,
};
use ipvs_guard_common::state::ConnState;
use nix::{errno::Errno, sys::signal::Signal};

use crate::{
    enforce::{AT_ONCE, is_refused, stale_ports},
    support::{
        agent::{Agent, netns_path},
        capture::Capture,
        healthy, incident, limits, tc,
    },
};

/// How soon a device is covered.
const SOON: Duration = Duration::from_secs(1);

fn routes(netns: &NetNs) -> RouteSocket {
    netns.run(RouteSocket::open).unwrap().unwrap()
}

/// Takes the client's link away.
fn unplug_client(topology: &Topology) {
    routes(topology.node()).delete_link(CLIENT_DEVICE).unwrap();
}

/// Puts another in its place, with the same names and addresses.
fn plug_client(topology: &Topology) {
    let address = client_address(Family::Inet);
    let gateway = "192.0.2.1".parse().unwrap();
    let mut node = routes(topology.node());
    let mut client = routes(topology.client());
    node.add_veth(CLIENT_DEVICE, ONLY_DEVICE, topology.client())
        .unwrap();
    node.set_up(CLIENT_DEVICE, true).unwrap();
    client.set_up(ONLY_DEVICE, true).unwrap();
    node.add_address(CLIENT_DEVICE, gateway, 24).unwrap();
    client.add_address(ONLY_DEVICE, address, 24).unwrap();
    client.add_default_route(ONLY_DEVICE, gateway).unwrap();
}

/// Connects from these ports, all of which must be refused.
fn assert_all_refused(topology: &Topology, ports: &[u16]) {
    assert!(!ports.is_empty());
    for attempt in topology.connect_all(Family::Inet, ports, limits()).unwrap() {
        assert!(is_refused(&attempt), "{attempt}");
    }
}

fn ports_to(topology: &Topology, backend: usize) -> Vec<u16> {
    let address = backend_address(backend, Family::Inet);
    let entries = topology.connections().unwrap();
    let there = entries.iter().filter(|entry| entry.destination == address);
    there.map(|entry| entry.client.port()).collect()
}

/// A server that came after the guard was ready: the first SYNs to it are met at
/// its device, which no guard of the start can have covered.
#[test]
fn a_device_that_appears_is_covered() {
    let mut topology = incident(Families::Inet);
    // A drain is under way, as in the middle of a rolling update.
    topology.set_weight(1, 0).unwrap();
    let agent = Agent::enforce_in(topology.node(), &AT_ONCE);
    let number = topology.add_backend().unwrap();
    let came = Instant::now();
    healthy(&topology, Family::Inet, 40_000..40_060);
    thread::sleep(SOON.saturating_sub(came.elapsed()));
    let stale = ports_to(&topology, number);
    assert_eq!(stale.len(), 30);
    let capture = Capture::start(topology.node(), &backend_device(number));
    topology.mute_backend(number).unwrap();
    // An agent that is stopped reads no connection table: each of these SYNs is
    // sent by IPVS.
    agent.signal(Signal::SIGSTOP);
    topology.set_weight(number, 0).unwrap();
    assert_all_refused(&topology, &stale);
    agent.signal(Signal::SIGCONT);
    assert_eq!(capture.finish().len(), 0, "SYNs at the new device");
    let ended = agent.stop();
    let events = ended.incidents();
    assert_eq!(events.len(), 30);
    assert!(
        ended
            .class("ipvs.stale_reuse")
            .iter()
            .all(|event| event["event.action"] == "reset")
    );
}

/// The server's device goes, as with a pod: no SYN has a way to leave by, and the
/// guard answers from user space, from then on before IPVS.
#[test]
fn a_server_whose_device_is_gone_is_answered_for() {
    let topology = incident(Families::Inet);
    let agent = Agent::enforce_in(topology.node(), &AT_ONCE);
    healthy(&topology, Family::Inet, 40_000..40_060);
    let stale = stale_ports(&topology, Family::Inet);
    assert_eq!(stale.len(), 30);
    routes(topology.node())
        .delete_link(&backend_device(0))
        .unwrap();
    topology.set_weight(0, 0).unwrap();
    // Without a route IPVS itself tells the client at once: whoever is first.
    let unreachable = Outcome::Failed {
        errno: Errno::EHOSTUNREACH,
    };
    let attempts = topology
        .connect_all(Family::Inet, &stale, limits())
        .unwrap();
    for attempt in &attempts {
        let told = is_refused(attempt) || attempt.outcome == unreachable;
        assert!(told, "{attempt}");
    }
    let refused = attempts.iter().filter(|attempt| is_refused(attempt));
    let expected = refused.count() + stale.len()..=2 * stale.len();
    healthy(&topology, Family::Inet, 50_000..50_020);
    thread::sleep(Duration::from_millis(500));
    assert_all_refused(&topology, &stale);
    let ended = agent.stop();
    let events = ended.class("ipvs.stale_reuse").len();
    assert!(expected.contains(&events), "{events} of {expected:?}");
    assert!(!ended.stderr.contains("not covered"), "{}", ended.stderr);
}

/// The client's device goes and another of its name comes: SYNs are turned there,
/// before IPVS.
#[test]
fn a_device_that_is_replaced_is_covered() {
    let topology = incident(Families::Inet);
    let agent = Agent::enforce_in(topology.node(), &AT_ONCE);
    healthy(&topology, Family::Inet, 40_000..40_060);
    let stale = stale_ports(&topology, Family::Inet);
    topology.mute_backend(0).unwrap();
    topology.set_weight(0, 0).unwrap();
    unplug_client(&topology);
    thread::sleep(Duration::from_millis(300));
    plug_client(&topology);
    thread::sleep(SOON);
    assert_all_refused(&topology, &stale);
    let entries = topology.connections().unwrap();
    let seen = entries
        .iter()
        .filter(|entry| entry.destination == backend_address(0, Family::Inet))
        .filter(|entry| entry.state != Some(ConnState::TimeWait));
    assert_eq!(seen.count(), 0, "entries that a SYN came to");
    let ended = agent.stop();
    assert_eq!(ended.incidents().len(), 30);
    assert!(!tc::has_clsact(topology.node(), CLIENT_DEVICE));
}

/// A device that is none, and one that cannot be covered: said by name, and
/// nothing stays on the others.
#[test]
fn a_start_that_fails_leaves_no_filter() {
    let topology = incident(Families::Inet);
    let node = topology.node();
    let backends = [backend_device(0), backend_device(1)];
    let also_lo = [CLIENT_DEVICE, &backends[0], "lo"].join(",");
    for (args, code, named) in [
        (["--interface", "client,nosuch"], 2, "nosuch"),
        (["--interface", &also_lo], 4, "lo"),
        (["--vip", "203.0.113.9"], 2, "--vip"),
        (["--netns", "all"], 2, "--netns"),
        (["--state", "nonsense"], 2, "nonsense"),
    ] {
        let mut command = Command::new("ipvs-guard");
        command.arg("enforce");
        if args[0] != "--netns" {
            command.args(["--netns", &netns_path(node)]);
        }
        let output = command.args(args).output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{args:?}: {stderr}");
        assert!(stderr.contains(named), "{args:?}: {stderr}");
        assert!(output.stdout.is_empty(), "{args:?}");
        for device in [CLIENT_DEVICE, &backends[0], &backends[1]] {
            assert_eq!(tc::filters(node, device), [], "{args:?} on {device}");
            assert!(!tc::has_clsact(node, device), "{args:?} on {device}");
        }
    }
    let attempts = topology
        .connect_all(Family::Inet, &[40_000], limits())
        .unwrap();
    assert!(matches!(attempts[0].outcome, Outcome::Answered { .. }));
}

/// An ingress qdisc holds the place of clsact where TC programs are filters: the
/// device is said not to be covered, or refused when it was asked for.
#[test]
fn a_device_with_an_ingress_qdisc_is_not_taken_for_covered() {
    let topology = incident(Families::Inet);
    let node = topology.node();
    let device = backend_device(0);
    tc::add_qdisc(node, &device, "ingress");
    let agent = Agent::enforce_in(node, &AT_ONCE);
    let said = agent.stderr();
    let refused = format!("ipvs-guard: {device}: not covered: it has a qdisc ingress");
    assert_eq!(said.contains(&refused), !tc::has_links(), "{said}");
    let ready = said.lines().find(|line| line.starts_with("ready:"));
    let named = ready.is_some_and(|line| line.contains(&device));
    assert_eq!(named, tc::has_links(), "{said}");
    let stale = {
        healthy(&topology, Family::Inet, 40_000..40_020);
        stale_ports(&topology, Family::Inet)
    };
    topology.mute_backend(0).unwrap();
    topology.set_weight(0, 0).unwrap();
    assert_all_refused(&topology, &stale);
    assert!(agent.stop().status.success());
    assert_eq!(tc::filters(node, &device), []);
}
