//! `--metrics`: what a scrape says is what the events and the connection table say.

use std::{
    collections::BTreeMap,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    process::{Child, Command},
    thread,
    time::Duration,
};

use ipvs_guard::{
    lab::topology::{Families, Topology, backend_address},
    netlink::ipvs::Family,
};
use ipvs_guard_common::state::ConnState;

use crate::{
    enforce::{AT_ONCE, is_refused},
    lifecycle::unload,
    support::{
        PATIENCE,
        agent::{Agent, Ended, is_retransmission},
        healthy, incident, limits, load_ipvs, short_limits, wait_until,
    },
};

const ADDRESS: &str = "127.0.0.1:9470";

/// Status and body of an answer.
fn get(path: &str) -> (u16, String) {
    let address: SocketAddr = ADDRESS.parse().unwrap();
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: guest\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, body.to_owned())
}

/// Samples of a metric, by their labels as they are written.
fn samples(metric: &str) -> BTreeMap<String, u64> {
    let (status, text) = get("/metrics");
    assert_eq!(status, 200, "{text}");
    text.lines()
        .filter_map(|line| line.strip_prefix(metric)?.rsplit_once(' '))
        .map(|(labels, value)| (labels.to_owned(), value.parse().unwrap()))
        .collect()
}

/// The sum over the samples whose labels hold all of `labels`.
fn sum(metric: &str, labels: &[&str]) -> u64 {
    samples(metric)
        .iter()
        .filter(|(have, _)| labels.iter().all(|label| have.contains(label)))
        .map(|(_, value)| value)
        .sum()
}

/// Incidents by the labels that their series has, from the events themselves.
fn told(ended: &Ended) -> BTreeMap<String, u64> {
    let mut told = BTreeMap::new();
    for event in ended.events() {
        let text = |key: &str| event[key].as_str().unwrap().to_owned();
        let class = text("event.name");
        if class == "ipvs.loss" {
            continue;
        }
        let end = |address: &str, port: &str| {
            let port = event[port].as_u64().unwrap() as u16;
            SocketAddr::new(text(address).parse().unwrap(), port)
        };
        let labels = format!(
            "{{class=\"{}\",action=\"{}\",service=\"{}\",destination=\"{}\"}}",
            class.trim_start_matches("ipvs."),
            text("event.action"),
            end("destination.address", "destination.port"),
            end("destination.nat.ip", "destination.nat.port"),
        );
        let again = class == "ipvs.stale_reuse" && is_retransmission(&event);
        *told.entry(labels).or_default() += u64::from(!again);
    }
    told
}

/// The series that have counted something.
fn counted() -> BTreeMap<String, u64> {
    let mut counted = samples("ipvs_guard_events_total");
    counted.retain(|_, value| *value > 0);
    counted
}

/// Entries of the table that lead to the first backend, by state.
fn table(topology: &Topology) -> BTreeMap<String, u64> {
    let drained = backend_address(0, Family::Inet);
    let mut table = BTreeMap::from([("ESTABLISHED".to_owned(), 0)]);
    for entry in topology.connections().unwrap() {
        if entry.destination == drained {
            let state = entry.state.unwrap().name().to_owned();
            *table.entry(state).or_default() += 1;
        }
    }
    table
}

/// The same as a scrape has it.
fn scraped() -> BTreeMap<String, u64> {
    let drained = format!("destination=\"{}\"", backend_address(0, Family::Inet));
    samples("ipvs_guard_draining_connections")
        .into_iter()
        .map(|(labels, value)| {
            assert!(labels.contains(&drained), "{labels}");
            let state = labels.split("state=\"").nth(1).unwrap();
            (state.trim_end_matches("\"}").to_owned(), value)
        })
        .collect()
}

/// A process that lives in the node's namespace.
struct Resident(Child);

impl Resident {
    fn start(topology: &Topology) -> Self {
        let child = topology
            .node()
            .run(|| Command::new("sleep").arg("3600").spawn().unwrap());
        Self(child.unwrap())
    }

    fn end(&mut self) {
        let _ended_already = self.0.kill();
        self.0.wait().unwrap();
    }
}

impl Drop for Resident {
    fn drop(&mut self) {
        self.end();
    }
}

#[test]
fn counters_survive_the_removal_and_return_of_ip_vs_and_are_those_of_the_events() {
    unload();
    let agent = Agent::start(&["--metrics", ADDRESS]);
    agent.wait_for("ipvs-guard: waiting: ip_vs is not loaded");
    assert_eq!(get("/healthz"), (200, "ok\n".to_owned()));
    let (status, reason) = get("/readyz");
    assert_eq!(status, 503);
    assert!(reason.contains("ip_vs"), "{reason}");
    let probes = samples("ipvs_guard_probe_attached");
    assert_eq!(probes.len(), 3, "{probes:?}");
    assert!(probes.values().all(|attached| *attached == 0), "{probes:?}");
    assert_eq!(counted(), BTreeMap::new());
    let (mut before, mut incidents) = (BTreeMap::new(), 0);
    for round in 1..=2 {
        load_ipvs();
        agent.wait_for_nth("ready:", round);
        assert_eq!(get("/readyz"), (200, "ok\n".to_owned()));
        assert_eq!(sum("ipvs_guard_probe_attached", &[]), 3);
        assert_eq!(counted(), before);

        let topology = incident(Families::Inet);
        // As in a pod: a namespace that nothing but a descriptor holds is not found.
        let mut resident = Resident::start(&topology);
        let ports = 46_000..46_010;
        healthy(&topology, Family::Inet, ports.clone());
        topology.mute_backend(0).unwrap();
        topology.set_weight(0, 0).unwrap();
        topology
            .connect_all(Family::Inet, &ports.collect::<Vec<_>>(), short_limits())
            .unwrap();
        // Of an entry that a stale SYN has met; others may have ended before.
        let caught = table(&topology)[ConnState::SynRecv.name()];
        assert!(caught > 0, "{:?}", table(&topology));
        incidents += caught;
        let stale = ["class=\"stale_reuse\""];
        wait_until("the incidents are counted", PATIENCE, || {
            sum("ipvs_guard_events_total", &stale) == incidents
        });
        // Entries go on to other states and end meanwhile.
        wait_until("the scrape is the table", PATIENCE, || {
            let before = table(&topology);
            let now = scraped();
            now == before && table(&topology) == before
        });
        topology.remove_backend(0).unwrap();
        wait_until("a drain that is over has no series", PATIENCE, || {
            samples("ipvs_guard_draining_connections").is_empty()
        });
        resident.end();
        drop(topology);
        before = counted();
        unload();
        agent.wait_for_nth("ipvs-guard: ip_vs was removed", round);
        let (status, reason) = get("/readyz");
        assert_eq!(status, 503);
        assert!(reason.contains("ip_vs"), "{reason}");
        assert_eq!(get("/healthz").0, 200);
        assert_eq!(counted(), before, "counters stay");
        assert_eq!(sum("ipvs_guard_probe_attached", &[]), 0);
    }
    for of_enforce in [
        "ipvs_guard_enforced_flows",
        "ipvs_guard_healed_entries_total",
    ] {
        assert_eq!(sum(of_enforce, &[]), 0);
    }
    assert_eq!(sum("ipvs_guard_lost_events_total", &["stage=\"ring\""]), 0);
    println!("peak memory with --metrics: {} KiB", agent.peak_kib());
    let ended = agent.stop();
    assert_eq!(told(&ended), before);
    load_ipvs();
}

/// The user knows where the namespace is, also where it cannot be found.
#[test]
fn one_namespace_is_read_by_its_path() {
    let topology = incident(Families::Inet);
    healthy(&topology, Family::Inet, 46_100..46_110);
    topology.set_weight(0, 0).unwrap();
    let _agent = Agent::watch_in(topology.node(), &["--metrics", ADDRESS]);
    wait_until("the scrape is the table", PATIENCE, || {
        let before = table(&topology);
        let now = scraped();
        now == before && table(&topology) == before
    });
}

#[test]
fn a_guard_counts_its_flows_and_what_it_did() {
    let topology = incident(Families::Inet);
    let args = [&AT_ONCE[..], &["--metrics", ADDRESS]].concat();
    let agent = Agent::enforce_in(topology.node(), &args);
    let ports: Vec<u16> = (47_000..47_020).collect();
    healthy(&topology, Family::Inet, 47_000..47_020);
    assert_eq!(samples("ipvs_guard_enforced_flows").get(""), Some(&0));
    topology.set_weight(0, 0).unwrap();
    let half_open = [
        ConnState::None,
        ConnState::SynRecv,
        ConnState::SynSent,
        ConnState::SynAck,
    ];
    wait_until("flows are those of the table", PATIENCE, || {
        let closing: u64 = table(&topology)
            .iter()
            .filter(|(state, _)| !half_open.iter().any(|open| open.name() == *state))
            .map(|(_, entries)| entries)
            .sum();
        closing > 0 && samples("ipvs_guard_enforced_flows").get("") == Some(&closing)
    });
    let attempts = topology
        .connect_all(Family::Inet, &ports, limits())
        .unwrap();
    let refused = attempts.iter().filter(|a| is_refused(a)).count() as u64;
    assert_eq!(refused, 10);
    let reset = ["class=\"stale_reuse\"", "action=\"reset\""];
    wait_until("what was reset is counted", PATIENCE, || {
        sum("ipvs_guard_events_total", &reset) == refused
    });
    wait_until("the scrape is the table", PATIENCE, || {
        let before = table(&topology);
        let now = scraped();
        now == before && table(&topology) == before
    });
    assert_eq!(
        sum("ipvs_guard_healed_entries_total", &[]),
        0,
        "nothing is healed in this run"
    );
    topology.set_weight(0, 1).unwrap();
    wait_until("no flow is left", PATIENCE, || {
        samples("ipvs_guard_enforced_flows").get("") == Some(&0)
    });
    let before = counted();
    assert_eq!(told(&agent.stop()), before);
}

#[test]
fn healed_entries_are_counted() {
    let topology = incident(Families::Inet);
    let args = ["--action", "heal", "--metrics", ADDRESS];
    let agent = Agent::enforce_in(topology.node(), &args);
    healthy(&topology, Family::Inet, 47_100..47_120);
    let stale: u64 = table(&topology).values().sum();
    assert_eq!(stale, 10);
    let healed = ["result=\"healed\""];
    assert_eq!(sum("ipvs_guard_healed_entries_total", &healed), 0);
    topology.set_weight(0, 0).unwrap();
    wait_until("no entry of the dead server", PATIENCE, || {
        table(&topology).values().sum::<u64>() == 0
    });
    wait_until("healed entries are counted", PATIENCE, || {
        sum("ipvs_guard_healed_entries_total", &healed) == stale
    });
    assert_eq!(
        sum("ipvs_guard_healed_entries_total", &["result=\"failed\""]),
        0
    );
    thread::sleep(Duration::from_secs(3));
    assert_eq!(
        sum("ipvs_guard_healed_entries_total", &healed),
        stale,
        "once each"
    );
    agent.stop();
}

#[test]
fn a_port_in_use_is_one_line() {
    load_ipvs();
    let _first = Agent::watch(&["--metrics", ADDRESS]);
    let output = Command::new("ipvs-guard")
        .args(["watch", "--metrics", ADDRESS])
        .output()
        .unwrap();
    let line = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{line}");
    assert_eq!(line.lines().count(), 1, "{line}");
    assert!(line.contains("--metrics 127.0.0.1:9470: "), "{line}");
    assert!(line.contains("in use"), "{line}");
}
