//! Stale SYNs are refused at once, and nothing else is.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    ops::Range,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

use etherparse::{SlicedPacket, TransportSlice};

use ipvs_guard::{
    lab::{
        client::{Attempt, Limits, Outcome, connect_all},
        topology::{
            Families, ONLY_DEVICE, Topology, backend_address, backend_device, client_address,
        },
    },
    netlink::ipvs::{Destination, Family, Service, ServiceId},
};
use ipvs_guard_common::state::ConnState;
use nix::{
    errno::Errno,
    sys::{
        resource::{Resource, setrlimit},
        signal::Signal,
    },
};

use crate::support::{
    PATIENCE,
    agent::{Agent, Ended, is_retransmission},
    capture::Capture,
    healthy, incident, limits,
    long::Long,
    short_limits,
    syn::Sender,
    thorough, wait_until,
};

const PORTS: Range<u16> = 40_000..42_000;
/// Servers are taken for dead at once.
pub(crate) const AT_ONCE: [&str; 2] = ["--unless-answering", "0s"];

/// Client ports whose entry leads to the first backend.
pub(crate) fn stale_ports(topology: &Topology, family: Family) -> Vec<u16> {
    let dead = backend_address(0, family);
    topology
        .connections()
        .unwrap()
        .iter()
        .filter(|entry| entry.destination == dead)
        .map(|entry| entry.client.port())
        .collect()
}

pub(crate) fn is_refused(attempt: &Attempt) -> bool {
    let refused = Outcome::Failed {
        errno: Errno::ECONNREFUSED,
    };
    attempt.outcome == refused
}

/// Every stale port was refused, every other answered; prints the slowest.
fn assert_refused(what: &str, attempts: &[Attempt], stale: &[u16]) {
    for attempt in attempts {
        if stale.contains(&attempt.port) {
            assert!(is_refused(attempt), "stale: {attempt}");
        } else {
            assert!(attempt.is_answered(), "healthy: {attempt}");
        }
    }
    let refused = attempts.iter().filter(|attempt| is_refused(attempt));
    let slowest = refused.map(|attempt| attempt.duration).max().unwrap();
    println!(
        "enforce {what}: {} stale SYNs, {} refused, the slowest after {:.1} ms",
        stale.len(),
        stale.len(),
        slowest.as_secs_f64() * 1e3
    );
}

/// One event with `event.action: reset` for each stale port.
fn assert_reported(ended: &Ended, stale: &[u16]) {
    let mut reported: Vec<u16> = ended
        .class("ipvs.stale_reuse")
        .iter()
        .filter(|event| !is_retransmission(event))
        .map(|event| {
            assert_eq!(event["event.action"], "reset", "{event}");
            event["source.port"].as_u64().unwrap() as u16
        })
        .collect();
    reported.sort_unstable();
    let mut expected = stale.to_vec();
    expected.sort_unstable();
    assert_eq!(reported, expected);
    // The table's flows are written by system calls, during which a kprobe program
    // on that CPU is left out: such a run is counted, and was no SYN of ours.
    let lost = ended.class("ipvs.loss");
    let elsewhere = lost
        .iter()
        .filter(|loss| loss["ipvs.loss.stage"] != "probe");
    assert_eq!(elsewhere.count(), 0, "{lost:?}");
}

/// All of them on thorough kernels, a part on the others.
fn some_ports() -> Range<u16> {
    if thorough() { PORTS } else { 40_000..40_400 }
}

fn stale_syns_are_refused(family: Family, ports: Range<u16>, die: impl Fn(&Topology)) {
    let families = match family {
        Family::Inet => Families::Inet,
        Family::Inet6 => Families::Inet6,
    };
    let topology = incident(families);
    let agent = Agent::enforce_in(topology.node(), &AT_ONCE);
    healthy(&topology, family, ports.clone());
    let stale = stale_ports(&topology, family);
    assert!(stale.len() * 100 >= ports.len() * 48);
    // Of a connection that was reset the entry goes after 10 s, before its port is
    // tried again: that SYN is scheduled anew.
    let brief: Vec<u16> = topology
        .connections()
        .unwrap()
        .iter()
        .filter(|entry| entry.state != Some(ConnState::TimeWait))
        .map(|entry| entry.client.port())
        .collect();
    let capture = Capture::start(topology.node(), &backend_device(0));
    die(&topology);
    topology.set_weight(0, 0).unwrap();
    // The way out is watched some milliseconds after a drain began.
    thread::sleep(Duration::from_millis(500));
    let ports: Vec<u16> = ports.filter(|port| !brief.contains(port)).collect();
    let stale: Vec<u16> = stale
        .into_iter()
        .filter(|port| ports.contains(port))
        .collect();
    // A few at a time: what they take is to be the kernel's and not the client's.
    let limits = Limits {
        parallel: 4,
        ..limits()
    };
    let attempts = topology.connect_all(family, &ports, limits).unwrap();
    let sent = capture.finish();
    let ended = agent.stop();
    assert_refused(&format!("{family:?}"), &attempts, &stale);
    assert_eq!(sent.len(), 0, "SYNs at the dead server's device");
    assert_reported(&ended, &stale);
}

#[test]
fn ipv4_clients_are_refused() {
    stale_syns_are_refused(Family::Inet, PORTS, |topology| {
        topology.mute_backend(0).unwrap()
    });
}

#[test]
fn ipv6_clients_are_refused() {
    stale_syns_are_refused(Family::Inet6, some_ports(), |topology| {
        topology.mute_backend(0).unwrap()
    });
}

/// The server's device is down: its neighbour is asked for in vain, and no SYN
/// comes to a device.
#[test]
fn clients_of_a_server_without_neighbour_are_refused() {
    stale_syns_are_refused(Family::Inet, some_ports(), |topology| {
        topology.kill_backend(0).unwrap()
    });
}

/// A client that is a process of the node itself: there is no device to answer on.
#[test]
fn clients_on_the_node_are_refused() {
    let topology = incident(Families::Inet);
    let agent = Agent::enforce_in(topology.node(), &AT_ONCE);
    let ports: Vec<u16> = (40_000..40_200).collect();
    let ServiceId::Address { address, .. } = topology.service(Family::Inet) else {
        panic!("the topology's service has an address");
    };
    let connect = || connect_all(topology.node(), address, &ports, limits()).unwrap();
    for attempt in connect() {
        assert!(attempt.is_answered(), "{attempt}");
    }
    let stale = stale_ports(&topology, Family::Inet);
    topology.mute_backend(0).unwrap();
    topology.set_weight(0, 0).unwrap();
    let attempts = connect();
    let ended = agent.stop();
    assert_refused("on the node", &attempts, &stale);
    assert_reported(&ended, &stale);
}

/// The entries of the first backend in TIME_WAIT: client port, and seconds left. One
/// of a connection that was reset is gone after 10 s.
fn time_waits(topology: &Topology) -> Vec<(u16, u64)> {
    let dead = backend_address(0, Family::Inet);
    let mut entries: Vec<_> = topology
        .connections()
        .unwrap()
        .into_iter()
        .filter(|entry| entry.destination == dead && entry.state == Some(ConnState::TimeWait))
        .map(|entry| (entry.client.port(), entry.expires))
        .collect();
    entries.sort_unstable();
    entries
}

/// Flows that are known to be stale never reach IPVS: no entry is refreshed.
#[test]
fn the_dead_server_drains_as_if_nobody_came() {
    let topology = incident(Families::Inet);
    let agent = Agent::enforce_in(topology.node(), &AT_ONCE);
    healthy(&topology, Family::Inet, 40_000..40_200);
    // What has not ended on both sides when the server goes never will.
    wait_until("the ends of all connections", PATIENCE, || {
        let ended = |state| matches!(state, Some(ConnState::TimeWait | ConnState::Close));
        let entries = topology.connections().unwrap();
        entries.iter().all(|entry| ended(entry.state))
    });
    topology.mute_backend(0).unwrap();
    topology.set_weight(0, 0).unwrap();
    // The table is read in the meantime.
    thread::sleep(Duration::from_secs(2));
    let before = time_waits(&topology);
    assert!(before.len() >= 90, "{} entries", before.len());
    let begin = Instant::now();
    let ports: Vec<u16> = before.iter().map(|(port, _)| *port).collect();
    for _ in 0..3 {
        let attempts = topology
            .connect_all(Family::Inet, &ports, limits())
            .unwrap();
        assert!(attempts.iter().all(is_refused));
        thread::sleep(Duration::from_millis(700));
    }
    let passed = begin.elapsed().as_secs();
    let after = time_waits(&topology);
    for ((port, before), (same, after)) in before.iter().zip(&after) {
        assert_eq!(port, same);
        assert!(
            after + passed <= before + 1,
            "port {port}: {before} s left, {after} s after {passed} s"
        );
    }
    assert_eq!(after.len(), before.len());
    assert_eq!(topology.destination(0, Family::Inet).unwrap().active, 0);
    let ended = agent.stop();
    let events = ended.incidents();
    assert_eq!(events.len(), 3 * before.len());
    assert!(
        ended
            .class("ipvs.stale_reuse")
            .iter()
            .all(|event| event["event.action"] == "reset")
    );
}

/// A packet that a client got: where from, and whether it is a reset.
fn reset(packet: &[u8], leaving: bool) -> Option<u16> {
    let sliced = SlicedPacket::from_ethernet(packet).ok()?;
    let Some(TransportSlice::Tcp(tcp)) = sliced.transport else {
        return None;
    };
    (!leaving && tcp.rst()).then(|| tcp.destination_port())
}

/// Weights go to 0 and back while both servers live, beside long connections that move
/// data all the time: nobody is reset.
#[test]
fn servers_that_answer_are_left_alone() {
    let topology = incident(Families::Inet);
    let resets = Capture::of(topology.client(), ONLY_DEVICE, reset);
    let agent = Agent::enforce_in(topology.node(), &[]);
    let rounds = if thorough() { 20 } else { 4 };
    let done = AtomicUsize::new(0);
    let long = Long::serve(&topology);
    thread::scope(|scope| {
        let _end = long.begin(scope, 10);
        scope.spawn(|| {
            // The same ports over and over: many find an entry of the draining server.
            for _ in 0..rounds {
                healthy(&topology, Family::Inet, 20_000..21_000);
                done.fetch_add(1, Ordering::Relaxed);
            }
        });
        for drain in 0..100 {
            // As long as connections come, and evenly among them.
            wait_until("connections", PATIENCE, || {
                done.load(Ordering::Relaxed) * 100 >= (drain - 20).max(0) as usize * rounds
            });
            topology.set_weight(0, 0).unwrap();
            long.set_weight(0, 0);
            thread::sleep(Duration::from_millis(if thorough() { 200 } else { 50 }));
            topology.set_weight(0, 1).unwrap();
            long.set_weight(0, 1);
            thread::sleep(Duration::from_millis(10));
        }
    });
    let ended = agent.stop();
    assert_eq!(resets.finish(), Vec::<u16>::new(), "resets at the client");
    let stale = ended.class("ipvs.stale_reuse");
    for event in &stale {
        assert_eq!(event["event.action"], "observed");
    }
    println!(
        "enforce 100 drains of a server that lives: {} connections, all answered; {} reused a \
         stale entry, none was reset; {} bytes on 10 long ones, none lost",
        rounds * 1_000,
        stale.len(),
        long.moved(),
    );
}

/// As long as it answers it is left alone; resets begin by themselves after that.
#[test]
fn resets_begin_when_a_draining_server_stops_to_answer() {
    let topology = incident(Families::Inet);
    let agent = Agent::enforce_in(topology.node(), &["--unless-answering", "2s"]);
    healthy(&topology, Family::Inet, 40_000..40_100);
    topology.set_weight(0, 0).unwrap();
    for _ in 0..3 {
        healthy(&topology, Family::Inet, 40_000..40_100);
        thread::sleep(Duration::from_millis(700));
    }
    let stale = stale_ports(&topology, Family::Inet);
    assert_eq!(stale.len(), 50);
    topology.mute_backend(0).unwrap();
    thread::sleep(Duration::from_millis(2_500));
    let ports: Vec<u16> = (40_000..40_100).collect();
    let attempts = topology
        .connect_all(Family::Inet, &ports, limits())
        .unwrap();
    assert_refused("once it is gone", &attempts, &stale);
    agent.stop();
}

/// A service of its own whose server echoes what it gets.
fn echo(topology: &Topology, port: u16) -> SocketAddr {
    let backend = backend_address(0, Family::Inet).ip();
    let listener = topology
        .backend(0)
        .unwrap()
        .run(|| TcpListener::bind((backend, port)).unwrap())
        .unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            thread::spawn(move || {
                let mut byte = [0];
                while stream.read_exact(&mut byte).is_ok() {
                    stream.write_all(&byte).unwrap();
                }
            });
        }
    });
    let ServiceId::Address { address, .. } = topology.service(Family::Inet) else {
        panic!("the topology's service has an address");
    };
    let address = SocketAddr::new(address.ip(), port);
    let id = ServiceId::tcp(address);
    let mut ipvs = topology.open_ipvs().unwrap();
    ipvs.add_service(&Service::new(id, "rr")).unwrap();
    let server = Destination::masq(SocketAddr::new(backend, port), 1);
    ipvs.add_destination(&id, &server).unwrap();
    address
}

fn drain(topology: &Topology, service: SocketAddr) {
    let backend = backend_address(0, Family::Inet).ip();
    let server = Destination::masq(SocketAddr::new(backend, service.port()), 0);
    let mut ipvs = topology.open_ipvs().unwrap();
    ipvs.set_destination(&ServiceId::tcp(service), &server)
        .unwrap();
}

/// A SYN of somebody else for a connection that lives, whatever is done about it.
#[test]
fn a_forged_syn_does_a_living_connection_no_harm() {
    const ROUNDS: u32 = 3;
    let connections = if thorough() { 1_000 } else { 50 };
    // Both ends of each are here.
    setrlimit(Resource::RLIMIT_NOFILE, 8_192, 8_192).unwrap();
    for action in ["reset", "drop", "heal"] {
        let topology = incident(Families::Inet);
        let service = echo(&topology, 7_007);
        let args = ["--action", action, "--unless-answering", "0s"];
        let agent = Agent::enforce_in(topology.node(), &args);
        let connect = || TcpStream::connect(service).unwrap();
        let mut streams: Vec<TcpStream> = topology
            .client()
            .run(|| (0..connections).map(|_| connect()).collect())
            .unwrap();
        let talk = |streams: &mut Vec<TcpStream>| {
            for stream in streams {
                stream.write_all(b"x").unwrap();
                let mut byte = [0];
                stream.read_exact(&mut byte).unwrap();
            }
        };
        talk(&mut streams);
        drain(&topology, service);
        thread::sleep(Duration::from_secs(1));
        let from = client_address(Family::Inet);
        let sender = Sender::new(topology.client(), from, service);
        for round in 0..ROUNDS {
            for stream in &streams {
                let port = stream.local_addr().unwrap().port();
                sender.send(port, 77_000 + round);
            }
            thread::sleep(Duration::from_millis(200));
            talk(&mut streams);
        }
        let ended = agent.stop();
        let acted = ended
            .class("ipvs.stale_reuse")
            .iter()
            .filter(|event| event["event.action"] != "observed")
            .count();
        assert_eq!(
            acted,
            connections * ROUNDS as usize,
            "{action}: {} {}",
            ended.stderr,
            ended.stdout.lines().last().unwrap_or_default()
        );
    }
}

/// A weight that rises again, or a destination that goes, clears its flows at once.
#[test]
fn a_drain_that_ends_ends_enforcement_at_once() {
    let topology = incident(Families::Inet);
    let agent = Agent::enforce_in(topology.node(), &AT_ONCE);
    healthy(&topology, Family::Inet, 40_000..40_100);
    topology.set_weight(0, 0).unwrap();
    thread::sleep(Duration::from_secs(1));
    let ports: Vec<u16> = (40_000..40_100).collect();
    let refused = |attempts: &[Attempt]| attempts.iter().filter(|a| is_refused(a)).count();
    let attempts = topology
        .connect_all(Family::Inet, &ports, limits())
        .unwrap();
    assert_eq!(refused(&attempts), 50);
    topology.set_weight(0, 1).unwrap();
    healthy(&topology, Family::Inet, 40_000..40_100);
    agent.stop();
}

/// Nothing but a report in a dry run; nothing at all once the agent has gone,
/// however it went.
#[test]
fn a_dry_run_and_the_end_of_the_agent_leave_traffic_alone() {
    let topology = incident(Families::Inet);
    let args = ["--dry-run", "--unless-answering", "0s"];
    let agent = Agent::enforce_in(topology.node(), &args);
    healthy(&topology, Family::Inet, 40_000..40_100);
    topology.set_weight(0, 0).unwrap();
    healthy(&topology, Family::Inet, 40_000..40_100);
    let ended = agent.stop();
    let would = ended.incidents();
    assert_eq!(would.len(), 50);
    assert!(
        ended
            .class("ipvs.stale_reuse")
            .iter()
            .all(|event| event["event.action"] == "would_reset")
    );

    let enforcing = || {
        let agent = Agent::enforce_in(topology.node(), &AT_ONCE);
        let ports: Vec<u16> = (40_000..40_100).collect();
        let attempts = topology
            .connect_all(Family::Inet, &ports, limits())
            .unwrap();
        assert_eq!(attempts.iter().filter(|a| is_refused(a)).count(), 50);
        agent
    };
    // Stopped: after 2 s at most everything passes.
    let agent = enforcing();
    agent.signal(Signal::SIGSTOP);
    thread::sleep(Duration::from_secs(2));
    healthy(&topology, Family::Inet, 40_000..40_100);
    thread::sleep(Duration::from_secs(if thorough() { 8 } else { 1 }));
    healthy(&topology, Family::Inet, 40_000..40_100);
    agent.signal(Signal::SIGCONT);
    // It acts again, for the server is taken for dead at once.
    wait_until("enforcing again", PATIENCE, || {
        let attempts = topology
            .connect_all(Family::Inet, &[40_000, 40_001], limits())
            .unwrap();
        attempts.iter().any(is_refused)
    });
    // Killed: the same, and what is left is found and removed.
    agent.signal(Signal::SIGKILL);
    thread::sleep(Duration::from_secs(2));
    healthy(&topology, Family::Inet, 40_000..40_100);
    drop(agent);
    let agent = enforcing();
    agent.stop();
    healthy(&topology, Family::Inet, 40_000..40_100);
}

/// What is beyond the rate passes.
#[test]
fn the_rate_is_bounded() {
    let topology = incident(Families::Inet);
    let args = ["--max-rate", "5", "--unless-answering", "0s"];
    let agent = Agent::enforce_in(topology.node(), &args);
    healthy(&topology, Family::Inet, 40_000..40_400);
    topology.set_weight(0, 0).unwrap();
    thread::sleep(Duration::from_secs(1));
    let begin = Instant::now();
    let ports: Vec<u16> = (40_000..40_400).collect();
    let attempts = topology
        .connect_all(Family::Inet, &ports, limits())
        .unwrap();
    let seconds = begin.elapsed().as_secs() as usize + 2;
    let refused = attempts
        .iter()
        .filter(|attempt| is_refused(attempt))
        .count();
    let answered = attempts
        .iter()
        .filter(|attempt| attempt.is_answered())
        .count();
    assert!(
        (5..=5 * seconds).contains(&refused),
        "{refused} in {seconds} s"
    );
    assert_eq!(refused + answered, 400);
    agent.stop();
}

/// The dead server's clients get nothing with drop: what its help says.
#[test]
fn dropped_syns_go_nowhere() {
    let topology = incident(Families::Inet);
    let args = ["--action", "drop", "--unless-answering", "0s"];
    let agent = Agent::enforce_in(topology.node(), &args);
    healthy(&topology, Family::Inet, 40_000..40_100);
    topology.set_weight(0, 0).unwrap();
    thread::sleep(Duration::from_millis(500));
    let capture = Capture::start(topology.node(), &backend_device(0));
    let ports: Vec<u16> = (40_000..40_100).collect();
    let attempts = topology
        .connect_all(Family::Inet, &ports, short_limits())
        .unwrap();
    let timed_out = attempts
        .iter()
        .filter(|a| a.outcome == Outcome::TimedOut)
        .count();
    assert_eq!(timed_out, 50);
    assert_eq!(capture.finish().len(), 0, "SYNs at the server's device");
    let ended = agent.stop();
    let incidents = ended.class("ipvs.stale_reuse");
    assert!(
        incidents
            .iter()
            .all(|event| event["event.action"] == "dropped")
    );
    assert_eq!(
        incidents
            .iter()
            .filter(|event| !is_retransmission(event))
            .count(),
        50
    );
}
