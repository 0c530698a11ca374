//! ip_vs that is not there yet, goes and comes back; ends of every kind.

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use ipvs_guard::{
    lab::topology::{CLIENT_DEVICE, Families, Topology, backend_address, backend_device},
    netlink::ipvs::{Destination, Family, Service},
};
use nix::sys::signal::Signal;

use crate::{
    enforce::{AT_ONCE, is_refused},
    support::{
        PATIENCE, agent::Agent, capture::Capture, healthy, incident, is_loaded, limits, load_ipvs,
        short_limits, tc, wait_until,
    },
};

/// Everything of ip_vs; it stays while an ending namespace still uses it.
pub(crate) fn unload() {
    wait_until("unloading ip_vs", PATIENCE, || {
        for module in ["ip_vs_rr", "ip_vs_wlc", "ip_vs"] {
            if is_loaded(module) {
                let args = [module];
                let _in_use = std::process::Command::new("rmmod")
                    .args(args)
                    .output()
                    .unwrap();
            }
        }
        !is_loaded("ip_vs")
    });
}

#[test]
fn it_waits_for_ip_vs_and_survives_its_removal_and_return() {
    unload();
    let agent = Agent::start(&["--event", "stale_reuse"]);
    agent.wait_for("ipvs-guard: waiting: ip_vs is not loaded");
    thread::sleep(Duration::from_millis(500));
    assert!(!is_loaded("ip_vs"), "waiting must not load it");
    for round in 1..=2 {
        load_ipvs();
        agent.wait_for_nth("ready:", round);
        let topology = incident(Families::Inet);
        healthy(&topology, Family::Inet, 46_000..46_010);
        topology.mute_backend(0).unwrap();
        topology.set_weight(0, 0).unwrap();
        let ports: Vec<u16> = (46_000..46_010).collect();
        topology
            .connect_all(Family::Inet, &ports, short_limits())
            .unwrap();
        drop(topology);
        unload();
        agent.wait_for_nth("ipvs-guard: ip_vs was removed", round);
    }
    let ended = agent.stop();
    let incidents = ended
        .events()
        .iter()
        .filter(|event| event["tcp.retransmission"] == false)
        .count();
    assert_eq!(incidents, 10, "five in each stay of ip_vs");
    load_ipvs();
}

/// Services that a guard's namespace has when ip_vs is there anew, and a
/// connection from each port.
fn furnish(topology: &Topology, ports: &[u16]) {
    // ip_vs comes back with the defaults, and its netlink family with another number.
    for name in ["conn_reuse_mode", "expire_nodest_conn"] {
        topology
            .set_sysctl(&format!("net/ipv4/vs/{name}"), "0")
            .unwrap();
    }
    let id = topology.service(Family::Inet);
    let mut ipvs = topology.open_ipvs().unwrap();
    ipvs.add_service(&Service::new(id, "rr")).unwrap();
    for number in 0..2 {
        let destination = Destination::masq(backend_address(number, Family::Inet), 1);
        ipvs.add_destination(&id, &destination).unwrap();
    }
    for attempt in topology.connect_all(Family::Inet, ports, limits()).unwrap() {
        assert!(attempt.is_answered(), "{attempt}");
    }
}

/// A guard keeps its namespace alive, and acts on what is there after a return of
/// ip_vs: on nothing that was before.
#[test]
fn a_guard_survives_the_removal_and_return_of_ip_vs() {
    let topology = incident(Families::Inet);
    topology.open_ipvs().unwrap().flush().unwrap();
    let agent = Agent::enforce_in(topology.node(), &AT_ONCE);
    let ports: Vec<u16> = (47_000..47_020).collect();
    for round in 1..=2 {
        if round == 2 {
            unload();
            agent.wait_for("ipvs-guard: ip_vs was removed");
            for device in [CLIENT_DEVICE, &backend_device(0)] {
                assert_eq!(tc::filters(topology.node(), device), []);
            }
            thread::sleep(Duration::from_millis(500));
            assert!(!is_loaded("ip_vs"), "waiting must not load it");
            load_ipvs();
            agent.wait_for_nth("ready:", round);
        }
        furnish(&topology, &ports);
        let capture = Capture::start(topology.node(), &backend_device(0));
        let id = topology.service(Family::Inet);
        let mut ipvs = topology.open_ipvs().unwrap();
        let drained = Destination::masq(backend_address(0, Family::Inet), 0);
        ipvs.set_destination(&id, &drained).unwrap();
        // The way out is not watched in calm times: the server lives, and answers
        // what comes to it in the first moment of its drain.
        thread::sleep(Duration::from_millis(500));
        let attempts = topology
            .connect_all(Family::Inet, &ports, limits())
            .unwrap();
        let refused = attempts.iter().filter(|a| is_refused(a)).count();
        assert_eq!(refused, 10, "in stay {round}");
        assert_eq!(capture.finish().len(), 0, "SYNs at the server's device");
        ipvs.flush().unwrap();
    }
    let ended = agent.stop();
    assert_eq!(ended.incidents().len(), 20);
}

#[test]
fn each_signal_ends_it_well() {
    load_ipvs();
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let agent = Agent::watch(&[]);
        let begin = Instant::now();
        agent.signal(signal);
        let ended = agent.wait();
        assert!(ended.status.success(), "{}", ended.stderr);
        println!("end: {:.3} s after {signal}", begin.elapsed().as_secs_f64());
    }
}

#[test]
fn a_limit_ends_it() {
    load_ipvs();
    let agent = Agent::watch(&["--duration", "3s"]);
    let begin = Instant::now();
    assert!(agent.wait().status.success());
    // Readiness is looked for every 20 ms, on a machine that is busy.
    assert!(begin.elapsed() > Duration::from_millis(1_500));

    let topology = incident(Families::Inet);
    let agent = Agent::watch_in(topology.node(), &["--max-events", "3"]);
    for _ in 0..4 {
        topology.set_weight(0, 0).unwrap();
        topology.set_weight(0, 1).unwrap();
    }
    let ended = agent.wait();
    assert_eq!(ended.events().len(), 3);
}

/// Whatever was loaded goes with the process.
#[test]
fn a_killed_agent_leaves_nothing() {
    load_ipvs();
    let probes = || {
        let list = fs::read_to_string("/sys/kernel/debug/kprobes/list").unwrap();
        list.lines().count()
    };
    // Those of an earlier test may still be on their way out.
    let mut before = (probes(), programs());
    wait_until("probes and programs at rest", PATIENCE, || {
        thread::sleep(Duration::from_secs(1));
        let now = (probes(), programs());
        std::mem::replace(&mut before, now) == now
    });
    let agent = Agent::watch(&["--trace", "--event", "stale_reuse,rescheduled,drain_ended"]);
    assert!(probes() > before.0, "probes are attached");
    assert!(programs() > before.1, "programs are loaded");
    agent.signal(Signal::SIGKILL);
    agent.wait();
    // The kernel frees them after a grace period.
    wait_until("probes and programs gone", PATIENCE, || {
        (probes(), programs()) == before
    });
}

fn programs() -> usize {
    ipvs_guard::bpf::loaded_programs()
}
