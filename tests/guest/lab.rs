//! The lab shows the incident and leaves nothing behind.

use std::{
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use serde_json::Value;

use crate::support::{PATIENCE, agent::Agent, load_ipvs, wait_until};

fn lab(args: &[&str]) -> Command {
    let mut command = Command::new("ipvs-guard");
    command.arg("lab").args(args).stdin(Stdio::null());
    command
}

#[test]
fn half_of_the_reused_ports_fail_and_watch_reports_them() {
    load_ipvs();
    let agent = Agent::watch(&[]);
    let output = lab(&["--action", "none", "--format", "json"])
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let row = &report["rows"][0];
    assert_eq!(row["action"], "none");
    assert_eq!(row["connections"], 100);
    assert_eq!(row["failed"], 50, "{row}");
    assert_eq!(row["failures"]["EHOSTUNREACH"], 50, "{row}");
    let incidents = agent
        .stop()
        .class("ipvs.stale_reuse")
        .iter()
        .filter(|event| event["tcp.retransmission"] == false)
        .count();
    assert_eq!(incidents, 50);
}

/// Each action beside nothing, in one table.
#[test]
fn actions_stand_beside_the_unguarded_incident() {
    load_ipvs();
    let output = lab(&[
        "--action",
        "all",
        "--format",
        "json",
        "--drain-timeout",
        "0s",
    ])
    .output()
    .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let [none, drop, reset, heal] = report["rows"].as_array().unwrap().as_slice() else {
        panic!("{report}");
    };
    for row in [none, drop, reset] {
        // The entry of a connection that was reset is gone before its port is tried again.
        let failed = row["failed"].as_u64().unwrap();
        assert!((40..=50).contains(&failed), "{row}");
        println!(
            "enforce lab: {}: time to fail {}",
            row["action"], row["time_to_fail"]
        );
    }
    assert_eq!(none["failures"]["EHOSTUNREACH"], none["failed"]);
    assert_eq!(
        reset["failures"]["ECONNREFUSED"], reset["failed"],
        "{reset}"
    );
    assert_eq!(drop["failures"]["timed out"], drop["failed"]);
    assert_eq!(heal["failed"], 0, "{heal}");
    assert_eq!(heal["drain"]["active"], 0);
    assert_eq!(heal["drain"]["inactive"], 0);
    // No entry was refreshed: none is half open again.
    assert_eq!(reset["drain"]["active"], 0);
    assert_eq!(none["drain"]["active"], none["failed"]);
}

#[test]
fn a_killed_lab_leaves_nothing() {
    load_ipvs();
    let users = || {
        let modules = std::fs::read_to_string("/proc/modules").unwrap();
        let line = modules
            .lines()
            .find(|line| line.starts_with("ip_vs "))
            .unwrap()
            .to_owned();
        line.split(' ').nth(2).unwrap().parse::<u32>().unwrap()
    };
    // Namespaces of earlier tests may still be on their way out.
    let mut before = users();
    wait_until("ip_vs at rest", PATIENCE, || {
        thread::sleep(Duration::from_secs(1));
        let now = users();
        std::mem::replace(&mut before, now) == now
    });
    let mut running = lab(&[]).stdout(Stdio::null()).spawn().unwrap();
    wait_until("the lab's service", PATIENCE, || users() > before);
    thread::sleep(Duration::from_millis(300));
    running.kill().unwrap();
    running.wait().unwrap();
    // Its namespaces, and their services with them, go a moment later.
    wait_until("ip_vs at rest again", PATIENCE, || users() <= before);
}
