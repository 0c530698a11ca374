//! keepalived sets the weights, by `inhibit_on_failure`: nothing fails either.

use std::{
    fs,
    net::{SocketAddr, TcpListener},
    os::unix::process::CommandExt as _,
    path::Path,
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use ipvs_guard::{
    lab::{
        client::{Attempt, Limits, connect_all},
        topology::{Families, Topology, backend_address},
    },
    netlink::ipvs::{Family, ServiceId},
    netns::NetNs,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::support::{PATIENCE, agent::Agent, incident, thorough, wait_until};

/// Where a backend is asked whether it is well.
const HEALTH: u16 = 9_000;
const CONFIGURATION: &str = "/run/keepalived.conf";

/// keepalived in the node's namespace.
struct Keepalived(Child);

impl Keepalived {
    fn start(topology: &Topology) -> Self {
        let ServiceId::Address { address, .. } = topology.service(Family::Inet) else {
            panic!("the topology's service has an address");
        };
        let servers: String = (0..2)
            .map(|number| {
                let server = backend_address(number, Family::Inet);
                format!(
                    "real_server {} {} {{\n weight 1\n inhibit_on_failure\n TCP_CHECK {{\n \
                     connect_port {HEALTH}\n connect_timeout 1\n retry 0\n }}\n}}\n",
                    server.ip(),
                    server.port()
                )
            })
            .collect();
        let text = format!(
            "virtual_server {} {} {{\n delay_loop 1\n lvs_sched rr\n lvs_method NAT\n protocol \
             TCP\n{servers}}}\n",
            address.ip(),
            address.port()
        );
        fs::write(CONFIGURATION, text).unwrap();
        let log = fs::File::create("/run/keepalived.log").unwrap();
        let start = || {
            Command::new("keepalived")
                .args(["--check", "--dont-fork", "--log-console"])
                .args(["--use-file", CONFIGURATION])
                .args(["--pid", "/run/keepalived.pid"])
                .args(["--checkers_pid", "/run/checkers.pid"])
                .stdout(Stdio::from(log.try_clone().unwrap()))
                .stderr(Stdio::from(log))
                .process_group(0)
                .spawn()
                .unwrap()
        };
        Self(topology.node().run(start).unwrap())
    }
}

impl Drop for Keepalived {
    fn drop(&mut self) {
        let _gone = kill(Pid::from_raw(self.0.id() as i32), Signal::SIGTERM);
        let _status = self.0.wait();
    }
}

/// Says that it is well as long as it is kept.
fn health(topology: &Topology, number: usize) -> TcpListener {
    let address = SocketAddr::new(backend_address(number, Family::Inet).ip(), HEALTH);
    let listen = || TcpListener::bind(address).unwrap();
    topology.backend(number).unwrap().run(listen).unwrap()
}

fn weights(topology: &Topology) -> Vec<u32> {
    let mut ipvs = topology.open_ipvs().unwrap();
    let listed = ipvs.destinations(&topology.service(Family::Inet));
    let listed = listed.unwrap_or_default();
    let mut by_address: Vec<_> = listed
        .iter()
        .map(|status| (status.destination.address, status.destination.weight))
        .collect();
    by_address.sort_unstable();
    by_address.into_iter().map(|(_, weight)| weight).collect()
}

#[test]
fn nothing_fails_where_keepalived_sets_the_weights() {
    if !thorough() {
        return;
    }
    assert!(Path::new("/usr/bin/keepalived").exists());
    let topology = incident(Families::Inet);
    topology.open_ipvs().unwrap().flush().unwrap();
    let well = [health(&topology, 0), health(&topology, 1)];
    let _keepalived = Keepalived::start(&topology);
    let log = || fs::read_to_string("/run/keepalived.log").unwrap();
    wait_until("keepalived's service", PATIENCE, || {
        weights(&topology) == [1, 1]
    });
    let agent = Agent::enforce_in(topology.node(), &["--action", "heal"]);
    let ServiceId::Address { address, .. } = topology.service(Family::Inet) else {
        panic!("the topology's service has an address");
    };
    let client = NetNs::open(&topology.client().path()).unwrap();
    let over = AtomicBool::new(false);
    let attempts: Vec<Attempt> = thread::scope(|scope| {
        let load = scope.spawn(|| {
            let limits = Limits {
                parallel: 10,
                timeout: Duration::from_secs(5),
            };
            let ports: Vec<u16> = (40_000..41_000).collect();
            let mut attempts = Vec::new();
            while !over.load(Ordering::Relaxed) {
                attempts.extend(connect_all(&client, address, &ports, limits).unwrap());
            }
            attempts
        });
        thread::sleep(Duration::from_secs(2));
        let [first, second] = well;
        drop(first);
        wait_until("keepalived's verdict", PATIENCE, || {
            weights(&topology) == [0, 1]
        });
        thread::sleep(Duration::from_secs(2));
        topology.kill_backend(0).unwrap();
        thread::sleep(Duration::from_secs(4));
        over.store(true, Ordering::Relaxed);
        let attempts = load.join().unwrap();
        drop(second);
        attempts
    });
    agent.stop();
    let failed: Vec<&Attempt> = attempts.iter().filter(|a| !a.is_answered()).collect();
    println!(
        "enforce heal with keepalived: {} connections, {} failed",
        attempts.len(),
        failed.len()
    );
    assert!(failed.is_empty(), "{failed:?}\n{}", log());
}
