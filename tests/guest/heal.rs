//! Stale entries lead to living servers again, and nothing fails.

use std::{net::IpAddr, thread, time::Duration};

use ipvs_guard::{
    lab::{
        client::Attempt,
        topology::{Families, Topology},
    },
    netlink::ipvs::Family,
};
use ipvs_guard_common::guard::MARK;
use serde_json::Value;

use crate::{
    enforce::{is_refused, stale_ports},
    support::{
        PATIENCE,
        agent::{Agent, Ended},
        healthy, incident, limits,
        long::Long,
        table_grows, thorough, wait_until,
    },
};

pub(crate) const HEAL: [&str; 2] = ["--action", "heal"];

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
pub(crate) fn actions(ended: &Ended) -> Vec<Value> {
    ended
        .class("ipvs.stale_reuse")
        .into_iter()
        .filter(|event| event["tcp.retransmission"] == false)
        .map(|event| event["event.action"].clone())
        .collect()
}

/// Waits until no entry leads to the first backend.
pub(crate) fn wait_until_empty(topology: &Topology, family: Family) {
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
