//! What the tests share.

pub(crate) mod agent;
pub(crate) mod capture;
pub(crate) mod device;
pub(crate) mod long;
pub(crate) mod netlink;
pub(crate) mod nft;
pub(crate) mod packet;
pub(crate) mod syn;
pub(crate) mod sync;
pub(crate) mod tc;

use std::{
    fs,
    ops::Range,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use ipvs_guard::{
    lab::{
        client::Limits,
        topology::{Families, Options, Topology},
    },
    netlink::ipvs::Family,
};

/// How long a thing that must happen may take on an emulated machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(240);

/// Whether this guest is one of those that take the longer way: an emulated machine
/// takes its time, and there are six.
pub(crate) fn thorough() -> bool {
    std::env::var_os("IPVS_GUARD_THOROUGH").is_some()
}

/// Loads ip_vs and a scheduler, as the first service on a node would.
pub(crate) fn load_ipvs() {
    run("modprobe", &["ip_vs_rr"]);
}

/// Runs a command that must succeed.
pub(crate) fn run(program: &str, args: &[&str]) {
    let output = Command::new(program).args(args).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {args:?}: {stderr}");
}

/// Whether the kernel resizes its connection table (7.x): while it does, an entry that
/// was re-pointed may be counted as active until its next packet or its end.
pub(crate) fn table_grows() -> bool {
    let release = nix::sys::utsname::uname().unwrap();
    let release = release.release().to_string_lossy().into_owned();
    let major: u32 = release.split('.').next().unwrap().parse().unwrap();
    major >= 7
}

/// Two backends, `conn_reuse_mode=0`, `expire_nodest_conn=0`: the incident.
pub(crate) fn incident(families: Families) -> Topology {
    load_ipvs();
    Topology::build(&Options {
        families,
        conn_reuse_mode: Some(0),
        expire_nodest_conn: Some(false),
        ..Options::default()
    })
    .unwrap()
}

/// One connection from each port, all of which must be answered.
pub(crate) fn healthy(topology: &Topology, family: Family, ports: Range<u16>) {
    let ports: Vec<u16> = ports.collect();
    let attempts = topology.connect_all(family, &ports, limits()).unwrap();
    for attempt in attempts {
        assert!(attempt.is_answered(), "healthy connection {attempt}");
    }
}

/// Long enough for an emulated machine to answer.
pub(crate) fn limits() -> Limits {
    Limits {
        parallel: 64,
        timeout: PATIENCE,
    }
}

/// Connections that are given up after two SYNs: one retransmission at 1 s.
pub(crate) fn short_limits() -> Limits {
    Limits {
        parallel: 2_000,
        timeout: Duration::from_millis(2_500),
    }
}

/// The same beside a load: what is answered gets the time for it, what is not
/// is sent once more at 1 s and at 3 s.
pub(crate) fn crowded_limits() -> Limits {
    Limits {
        parallel: 2_000,
        timeout: Duration::from_secs(6),
    }
}

/// Waits until `holds`, at most `patience`.
pub(crate) fn wait_until(what: &str, patience: Duration, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + patience;
    while !holds() {
        assert!(Instant::now() < deadline, "{what}: not within {patience:?}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// Whether the module is listed as loaded.
pub(crate) fn is_loaded(module: &str) -> bool {
    fs::read_to_string("/proc/modules")
        .unwrap()
        .lines()
        .any(|line| line.split(' ').next() == Some(module))
}
