//! A rolling update under load: servers replaced one after the other, and nothing
//! fails.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use ipvs_guard::{
    lab::{
        client::{Attempt, Limits, connect_all},
        topology::{Families, Options, Topology},
    },
    netlink::ipvs::{Family, ServiceId},
    netns::NetNs,
};

use crate::support::{
    agent::{Agent, Ended},
    load_ipvs, nft, thorough,
};

/// As `ab -c 10` does, from so few ports that each is soon used again.
const PARALLEL: usize = 10;
const PORTS: u16 = 1_000;
const SERVERS: usize = 4;

struct Plan {
    conntrack: bool,
    guarded: bool,
    replaced: usize,
    /// From the drain of a server to the end of its device.
    draining: Duration,
    /// From there to its removal.
    gone: Duration,
    /// Connections at least.
    connections: usize,
}

fn topology(conntrack: bool) -> Topology {
    load_ipvs();
    let topology = Topology::build(&Options {
        backends: SERVERS,
        families: Families::Inet,
        conn_reuse_mode: Some(0),
        expire_nodest_conn: Some(false),
        conntrack: Some(conntrack),
        ..Options::default()
    })
    .unwrap();
    if conntrack {
        nft::masquerade(topology.node());
    }
    topology
}

/// The attempts of one rolling update, and how the guard ended if there was one.
fn update(plan: &Plan) -> (Vec<Attempt>, Option<Ended>) {
    let mut topology = topology(plan.conntrack);
    let client = NetNs::open(&topology.client().path()).unwrap();
    let ServiceId::Address { address, .. } = topology.service(Family::Inet) else {
        panic!("the topology's service has an address");
    };
    let agent = plan.guarded.then(|| {
        Agent::enforce_in(
            topology.node(),
            &["--action", "heal", "--log-level", "debug"],
        )
    });
    let over = AtomicBool::new(false);
    let attempts = thread::scope(|scope| {
        let load = scope.spawn(|| {
            let limits = Limits {
                parallel: PARALLEL,
                // Nobody waits for what fails without the guard.
                timeout: Duration::from_secs(if plan.guarded { 5 } else { 2 }),
            };
            let ports: Vec<u16> = (40_000..40_000 + PORTS).collect();
            let mut attempts = Vec::new();
            while !over.load(Ordering::Relaxed)
                || (plan.guarded && attempts.len() < plan.connections)
            {
                attempts.extend(connect_all(&client, address, &ports, limits).unwrap());
            }
            attempts
        });
        thread::sleep(Duration::from_secs(2));
        for old in 0..plan.replaced {
            topology.add_backend().unwrap();
            topology.set_weight(old, 0).unwrap();
            thread::sleep(plan.draining);
            topology.kill_backend(old).unwrap();
            thread::sleep(plan.gone);
            topology.remove_backend(old).unwrap();
        }
        over.store(true, Ordering::Relaxed);
        load.join().unwrap()
    });
    (attempts, agent.map(Agent::stop))
}

fn rolling(what: &str, plan: &Plan) -> usize {
    let begin = Instant::now();
    let (attempts, ended) = update(plan);
    let failed: Vec<&Attempt> = attempts.iter().filter(|a| !a.is_answered()).collect();
    let mut times: Vec<Duration> = attempts.iter().map(|attempt| attempt.duration).collect();
    times.sort_unstable();
    let median = times[times.len() / 2];
    let slowest = times[times.len() - 1];
    println!(
        "enforce rolling update {what}: {} connections in {:.0} s, {} failed, median {:.1} ms, \
         the slowest {:.1} ms ({:.1} medians)",
        attempts.len(),
        begin.elapsed().as_secs_f64(),
        failed.len(),
        median.as_secs_f64() * 1e3,
        slowest.as_secs_f64() * 1e3,
        slowest.as_secs_f64() / median.as_secs_f64(),
    );
    if let Some(ended) = ended.filter(|_| !failed.is_empty()) {
        println!("{}", ended.stderr);
        for attempt in failed.iter().take(5) {
            println!("    {attempt}");
            let port = format!("\"source.port\":{},", attempt.port);
            for event in ended.stdout.lines().filter(|line| line.contains(&port)) {
                println!("    {event}");
            }
        }
    }
    failed.len()
}

fn plan(conntrack: bool, guarded: bool) -> Plan {
    let full = thorough();
    Plan {
        conntrack,
        guarded,
        replaced: if full && guarded && !conntrack {
            SERVERS
        } else {
            1
        },
        draining: Duration::from_secs(2),
        gone: if full && guarded {
            Duration::from_secs(10)
        } else {
            Duration::from_secs(4)
        },
        connections: if full && !conntrack { 20_000 } else { 2_000 },
    }
}

#[test]
fn without_the_guard_a_rolling_update_fails() {
    if thorough() {
        assert!(rolling("without the guard", &plan(false, false)) > 0);
    }
}

#[test]
fn nothing_fails_in_a_rolling_update() {
    assert_eq!(rolling("healed", &plan(false, true)), 0);
}

/// The same where the node tracks and masquerades what it balances.
#[test]
fn nothing_fails_where_clients_are_masqueraded() {
    assert_eq!(rolling("healed and masqueraded", &plan(true, true)), 0);
}
