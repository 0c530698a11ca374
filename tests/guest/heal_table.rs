//! Healing of whole tables: their counters, many drains, and ends in the middle.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use ipvs_guard::{
    lab::topology::{Families, Topology, backend_address},
    netlink::{
        conntable::ConnTable,
        ipvs::{Family, ServiceId},
        route::RouteSocket,
    },
};
use ipvs_guard_common::{guard::MARK, state::ConnState};
use nix::sys::signal::Signal;

use crate::{
    lifecycle::unload,
    support::{
        PATIENCE,
        agent::{Agent, netns_path},
        healthy, incident, load_ipvs,
        sync::{Entry, Feeder},
        table_grows, thorough, wait_until,
    },
};

const HEAL: [&str; 2] = ["--action", "heal"];
/// The case of the second field report.
const FIELD: usize = 14_048;

/// That many stale entries to the first backend.
fn fill(topology: &Topology, count: usize) {
    let ServiceId::Address { address: vip, .. } = topology.service(Family::Inet) else {
        panic!("the topology's service has an address");
    };
    let server = backend_address(0, Family::Inet);
    let entry = |number: usize| -> Entry {
        let [_, a, b, c] = (number as u32 / 60_000 + 1).to_be_bytes();
        let client = SocketAddr::from(([10, a, b, c], (number % 60_000) as u16 + 1_024));
        [client, vip, server]
    };
    let entries: Vec<Entry> = (0..count).map(entry).collect();
    let feeder = Feeder::start(topology);
    // What was lost the first time is made the next.
    for _ in 0..8 {
        feeder.make(&entries, 3_000);
        thread::sleep(Duration::from_millis(300));
        if left(topology) as usize == count {
            break;
        }
    }
    feeder.stop();
    let made = topology.destination(0, Family::Inet).unwrap();
    assert_eq!((made.active, made.inactive as usize), (0, count));
}

/// Entries that lead to the first backend, as its counters have it.
fn left(topology: &Topology) -> u32 {
    let status = topology.destination(0, Family::Inet).unwrap();
    status.active + status.inactive
}

/// The counters of every destination are what the table has. What changes between the
/// two readings is in one of them only; a counter that is wrong stays so.
fn assert_consistent(topology: &Topology) {
    wait_until("the counters are those of the table", PATIENCE, || {
        is_consistent(topology)
    });
}

fn is_consistent(topology: &Topology) -> bool {
    let mut counts: HashMap<SocketAddr, (u32, u32)> = HashMap::new();
    for entry in topology.connections().unwrap() {
        let (active, inactive) = counts.entry(entry.destination).or_default();
        match entry.state {
            Some(ConnState::Established | ConnState::SynRecv) => *active += 1,
            _ => *inactive += 1,
        }
    }
    (0..2).all(|number| {
        let status = topology.destination(number, Family::Inet).unwrap();
        let counted = counts.get(&status.destination.address).copied();
        let (active, inactive) = counted.unwrap_or_default();
        let found = (status.active, status.inactive);
        if table_grows() {
            found.0 + found.1 == active + inactive
        } else {
            found == (active, inactive)
        }
    })
}

fn own_devices(topology: &Topology) -> usize {
    let list = || RouteSocket::open().unwrap().devices().unwrap();
    let devices = topology.node().run(list).unwrap();
    let mine = devices.iter().filter(|d| d.name.starts_with("ipvsg-"));
    mine.count()
}

fn daemons(topology: &Topology) -> usize {
    topology.open_ipvs().unwrap().daemons().unwrap().len()
}

#[test]
fn a_large_table_is_healed_and_counted_right() {
    let topology = incident(Families::Inet);
    fill(&topology, FIELD);
    let agent = Agent::enforce_in(topology.node(), &HEAL);
    topology.set_weight(0, 0).unwrap();
    let alive = || topology.destination(1, Family::Inet).unwrap();
    wait_until("the healing", PATIENCE, || {
        let now = alive();
        let counted = (now.active == 0) || table_grows();
        counted && (now.active + now.inactive) as usize >= FIELD && left(&topology) <= 50
    });
    thread::sleep(Duration::from_millis(200));
    // An old entry that was in use at its end lives for another minute behind the new.
    let lingering = left(&topology);
    println!("enforce heal: {FIELD} entries, of which {lingering} linger");
    assert!(lingering <= 50);
    if thorough() {
        wait_until("their end", PATIENCE, || left(&topology) == 0);
    }
    let alive = topology.destination(1, Family::Inet).unwrap();
    assert_eq!((alive.active + alive.inactive) as usize, FIELD);
    println!(
        "enforce heal: {} of them are counted as active",
        alive.active
    );
    let mut entries = topology.connections().unwrap();
    entries.retain(|entry| entry.client.ip() != IpAddr::from(MARK));
    assert_eq!(entries.len(), FIELD + left(&topology) as usize);
    for entry in &entries {
        assert_eq!(entry.state, Some(ConnState::TimeWait));
        assert!(entry.expires <= 3_000);
    }
    agent.stop();
}

/// Drains in a row: no entry, daemon, device or descriptor is left over.
#[test]
fn many_drains_leave_nothing_over() {
    let topology = incident(Families::Inet);
    let agent = Agent::enforce_in(topology.node(), &HEAL);
    let drains = if thorough() { 1_000 } else { 100 };
    let mut before = None;
    for drain in 0..drains {
        let number = drain % 2;
        topology.set_weight(number, 0).unwrap();
        if drain % 25 == 0 {
            healthy(&topology, Family::Inet, 30_000..30_020);
            // Long enough for a pass over the table.
            thread::sleep(Duration::from_millis(1_000));
        }
        topology.set_weight(number, 1).unwrap();
        if drain == 20 {
            before = Some(agent.descriptors());
        }
    }
    wait_until("the daemon's rest", PATIENCE, || daemons(&topology) == 0);
    // A pass may have the table open just now.
    let (before, after) = (before.unwrap(), agent.descriptors());
    assert!(after <= before + 2, "{before} descriptors, then {after}");
    assert_eq!(own_devices(&topology), 1);
    wait_until("the marks' end", PATIENCE, || {
        let entries = topology.connections().unwrap();
        !entries.iter().any(|e| e.client.ip() == IpAddr::from(MARK))
    });
    assert_consistent(&topology);
    println!("enforce heal: {drains} drains, nothing left over");
    agent.stop();
    assert_eq!((daemons(&topology), own_devices(&topology)), (0, 0));
}

/// A killed agent's half pass leaves the table consistent, a second agent is refused
/// while the first lives, and the next one finishes the work.
#[test]
fn an_end_in_the_middle_leaves_the_table_consistent() {
    let topology = incident(Families::Inet);
    fill(&topology, FIELD);
    let agent = Agent::enforce_in(topology.node(), &HEAL);
    topology.set_weight(0, 0).unwrap();
    wait_until("a part of the healing", PATIENCE, || {
        left(&topology) < FIELD as u32 - 500
    });
    let second = Command::new("ipvs-guard")
        .args(["enforce", "--netns", &netns_path(topology.node())])
        .args(HEAL)
        .output()
        .unwrap();
    assert_eq!(second.status.code(), Some(1));
    agent.signal(Signal::SIGKILL);
    drop(agent);
    wait_until("the device's end", PATIENCE, || own_devices(&topology) == 0);
    thread::sleep(Duration::from_millis(1_500));
    println!(
        "enforce heal: killed with {} of {FIELD} entries not healed yet",
        left(&topology)
    );
    assert_consistent(&topology);

    let agent = Agent::enforce_in(topology.node(), &HEAL);
    wait_until("the healing", PATIENCE, || left(&topology) <= 50);
    thread::sleep(Duration::from_millis(2_500));
    assert_consistent(&topology);
    agent.stop();
}

/// The services go and ip_vs with them, while entries are being healed.
#[test]
fn ip_vs_can_go_in_the_middle() {
    let topology = incident(Families::Inet);
    fill(&topology, FIELD);
    let agent = Agent::enforce_in(topology.node(), &HEAL);
    topology.set_weight(0, 0).unwrap();
    wait_until("a part of the healing", PATIENCE, || {
        left(&topology) < FIELD as u32 - 500
    });
    topology.open_ipvs().unwrap().flush().unwrap();
    unload();
    agent.wait_for("ipvs-guard: ip_vs was removed");
    assert_eq!(own_devices(&topology), 0);
    load_ipvs();
    agent.wait_for_nth("ready:", 2);
    let ended = agent.stop();
    assert!(ended.status.success());
    assert_eq!(own_devices(&topology), 0);
}

/// Prints how long the case of the field report takes beside reading the table alone.
#[test]
#[ignore = "a measurement: cargo xtask bench heal"]
fn pass_of_the_field_report() {
    measure(FIELD);
}

/// The same for a table that is full.
#[test]
#[ignore = "a measurement: cargo xtask bench heal"]
fn pass_of_a_large_table() {
    measure(250_000);
}

fn measure(count: usize) {
    let topology = incident(Families::Inet);
    fill(&topology, count);
    let read = || {
        let begin = Instant::now();
        let entries = topology
            .node()
            .run(|| ConnTable::open().unwrap().filter(Result::is_ok).count())
            .unwrap();
        assert!(entries >= count);
        begin.elapsed()
    };
    let alone = read().min(read());
    let args = ["--action", "heal", "--log-level", "debug"];
    let agent = Agent::enforce_in(topology.node(), &args);
    let begin = Instant::now();
    topology.set_weight(0, 0).unwrap();
    let alive = || topology.destination(1, Family::Inet).unwrap();
    let healed = || (alive().active + alive().inactive) as usize;
    wait_until("the first one", PATIENCE, || healed() > 0);
    let began = begin.elapsed();
    wait_until("the healing", 4 * PATIENCE, || healed() >= count);
    let healed = begin.elapsed();
    let memory = agent.peak_kib();
    for line in agent.stop().stderr.lines() {
        if let Some(at) = line.find("a pass over") {
            println!("    {}", &line[at..]);
        }
    }
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    println!(
        "{count} entries: read alone in {:.0} ms, all healed {:.0} ms after the weight became 0 \
         ({:.1} times), the first after {:.0} ms; the agent's peak memory {memory} KiB",
        ms(alone),
        ms(healed),
        ms(healed) / ms(alone),
        ms(began),
    );
}
