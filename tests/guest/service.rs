//! Under a service manager: what it is told, and what the agent's threads may still do.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::net::UnixDatagram,
    process::Command,
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use nix::sys::signal::Signal;

use crate::{
    lifecycle::unload,
    support::{PATIENCE, agent::Agent, incident, load_ipvs, wait_until},
};
use ipvs_guard::lab::topology::Families;

/// Bits of the capabilities that sinks keep: DAC_OVERRIDE and NET_BIND_SERVICE.
const SINKS: u64 = 1 << 1 | 1 << 10;
/// Bits of those that are needed to attach: NET_ADMIN, NET_RAW, SYS_ADMIN.
const WORK: u64 = 1 << 12 | 1 << 13 | 1 << 21;

#[test]
fn the_service_manager_is_told_and_a_hangup_ends_nothing() {
    let path = std::env::temp_dir().join(format!("notify-{}", std::process::id()));
    let socket = UnixDatagram::bind(&path).unwrap();
    let told = Arc::new(Mutex::new(String::new()));
    thread::spawn({
        let told = Arc::clone(&told);
        move || {
            let mut bytes = [0; 4096];
            while let Ok(length) = socket.recv(&mut bytes) {
                told.lock()
                    .unwrap()
                    .push_str(&String::from_utf8_lossy(&bytes[..length]));
            }
        }
    });
    let holds = |text: &str, times: usize| {
        wait_until(text, PATIENCE, || {
            told.lock().unwrap().matches(text).count() >= times
        });
    };
    unload();
    let mut command = Command::new("ipvs-guard");
    command
        .arg("watch")
        .env("NOTIFY_SOCKET", &path)
        .env("WATCHDOG_USEC", "900000");
    let agent = Agent::spawn(command);
    holds("STATUS=waiting: ip_vs is not loaded", 1);
    holds("WATCHDOG=1", 2);
    assert!(!told.lock().unwrap().contains("READY=1"));
    load_ipvs();
    agent.wait_for("ready:");
    holds("READY=1", 1);
    holds("STATUS=ready: ", 1);
    let pings = told.lock().unwrap().matches("WATCHDOG=1").count();
    holds("WATCHDOG=1", pings + 3);
    agent.signal(Signal::SIGHUP);
    let pings = told.lock().unwrap().matches("WATCHDOG=1").count();
    holds("WATCHDOG=1", pings + 2);
    // A loop that stands still does not ping.
    agent.signal(Signal::SIGSTOP);
    thread::sleep(Duration::from_millis(500));
    let pings = told.lock().unwrap().matches("WATCHDOG=1").count();
    thread::sleep(Duration::from_secs(2));
    assert_eq!(told.lock().unwrap().matches("WATCHDOG=1").count(), pings);
    agent.signal(Signal::SIGCONT);
    assert!(agent.stop().status.success());
    holds("STOPPING=1", 1);
    fs::remove_file(path).unwrap();
}

/// `CAP_SYS_PTRACE`.
const FIND: u64 = 1 << 19;

/// Name, permitted and effective capabilities of each thread.
fn threads(agent: &Agent) -> Vec<(String, u64, u64)> {
    let folder = format!("/proc/{}/task", agent.id());
    fs::read_dir(folder)
        .unwrap()
        .filter_map(|task| fs::read_to_string(task.unwrap().path().join("status")).ok())
        .map(|status| {
            let fields: BTreeMap<&str, &str> = status
                .lines()
                .filter_map(|line| line.split_once(':'))
                .map(|(key, value)| (key, value.trim()))
                .collect();
            let bits = |key: &str| u64::from_str_radix(fields[key], 16).unwrap();
            assert_eq!(fields["NoNewPrivs"], "1");
            // DAC_READ_SEARCH, SYS_MODULE and the like are gone for good.
            assert_eq!(bits("CapBnd") & (1 << 2 | 1 << 16), 0);
            (fields["Name"].to_owned(), bits("CapPrm"), bits("CapEff"))
        })
        .collect()
}

#[test]
fn threads_give_up_what_they_do_not_need() {
    load_ipvs();
    let agent = Agent::watch(&[]);
    // The thread that opened the session idles for a while.
    wait_until("one main thread and one sink", PATIENCE, || {
        threads(&agent).len() == 2
    });
    for (name, permitted, effective) in threads(&agent) {
        if name.starts_with("sink.") {
            assert_eq!(permitted & !SINKS, 0, "{name}");
        } else {
            assert_eq!(permitted & WORK, WORK, "{name} could not attach again");
            assert_eq!(effective, 0, "{name}");
        }
    }
    unload();
    agent.wait_for("ipvs-guard: ip_vs was removed");
    load_ipvs();
    agent.wait_for_nth("ready:", 2);
    drop(agent);

    let topology = incident(Families::Inet);
    let agent = Agent::enforce_in(topology.node(), &[]);
    for (name, permitted, _) in threads(&agent) {
        assert_eq!(
            permitted & !(SINKS | WORK | FIND | 1 << 24 | 0b11 << 38),
            0,
            "{name}"
        );
    }
}
