//! What a killed guard leaves is found and removed, and nothing else is; one
//! guard at a time.

use std::{
    process::{Command, Output},
    slice,
};

use ipvs_guard::{
    lab::topology::{CLIENT_DEVICE, Families, backend_device},
    netlink::ipvs::Family,
    netns::NetNs,
};
use ipvs_guard_common::guard::{EGRESS, INGRESS};
use nix::sys::signal::Signal;

use crate::{
    enforce::AT_ONCE,
    support::{
        agent::{Agent, netns_path},
        healthy, incident,
        tc::{self, Filter},
    },
};

/// Runs a command of the agent in a namespace to its end.
fn run_in(netns: &NetNs, command: &str, args: &[&str]) -> Output {
    Command::new("ipvs-guard")
        .args([command, "--netns", &netns_path(netns)])
        .args(args)
        .output()
        .unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

fn devices() -> [String; 3] {
    [CLIENT_DEVICE.into(), backend_device(0), backend_device(1)]
}

/// Nothing but what was there before any guard.
fn assert_clean(node: &NetNs, foreign: &Filter) {
    assert_eq!(tc::filters(node, CLIENT_DEVICE), slice::from_ref(foreign));
    assert!(tc::has_clsact(node, CLIENT_DEVICE));
    for device in devices().iter().skip(1) {
        assert_eq!(tc::filters(node, device), [], "{device}");
        assert!(!tc::has_clsact(node, device), "{device}");
    }
}

fn assert_cleaned(node: &NetNs, expected: &str) {
    let output = run_in(node, "cleanup", &[]);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let mut said: Vec<&str> = text(&output.stdout).lines().collect();
    said.sort_unstable();
    assert_eq!(said.join("\n"), expected);
}

/// Starts a guard and kills it.
fn kill_one(node: &NetNs) {
    let agent = Agent::enforce_in(node, &AT_ONCE);
    agent.signal(Signal::SIGKILL);
    agent.wait();
}

#[test]
fn what_a_killed_guard_left_is_removed_and_nothing_else() {
    let topology = incident(Families::Inet);
    let node = topology.node();
    let foreign = ("flower".into(), None);
    tc::add_qdisc(node, CLIENT_DEVICE, "clsact");
    tc::add_flower(node, CLIENT_DEVICE);
    assert_cleaned(node, "nothing was left");
    // With a drain under way the way out has a program, too.
    topology.set_weight(1, 0).unwrap();

    kill_one(node);
    if tc::has_links() {
        assert_cleaned(node, "nothing was left");
    } else {
        let mut expected = Vec::new();
        for device in devices() {
            let left = tc::filters(node, &device);
            for program in [INGRESS, EGRESS] {
                let filter = ("bpf".into(), Some(program.into()));
                assert!(left.contains(&filter), "{device}: {left:?}");
                expected.push(format!("removed {program} from {device}"));
            }
        }
        expected.sort_unstable();
        assert_cleaned(node, &expected.join("\n"));
        assert_cleaned(node, "nothing was left");
    }
    assert_clean(node, &foreign);
    healthy(&topology, Family::Inet, 40_000..40_010);

    // The next guard does the same before it begins, and leaves nothing itself.
    kill_one(node);
    let agent = Agent::enforce_in(node, &AT_ONCE);
    let said = agent.stderr();
    for device in devices() {
        let line = format!("ipvs-guard: removed {INGRESS} from {device}: an agent was killed here");
        assert_eq!(said.contains(&line), !tc::has_links(), "{said}");
        let mine = tc::filters(node, &device)
            .into_iter()
            .filter(|filter| *filter != foreign)
            .count();
        assert_eq!(mine, if tc::has_links() { 0 } else { 2 }, "{device}");
    }
    refuses_others(node);
    assert!(agent.stop().status.success());
    assert_clean(node, &foreign);
}

/// Another guard in the namespace, or cleaning up under a living one, is refused.
fn refuses_others(node: &NetNs) {
    let filters = || devices().map(|device| tc::filters(node, &device));
    let before = filters();
    for command in ["enforce", "cleanup"] {
        let output = run_in(node, command, &[]);
        let stderr = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{command}: {stderr}");
        assert_eq!(stderr.lines().count(), 1, "{stderr}");
        assert!(stderr.contains("another ipvs-guard enforces this network namespace"));
        assert!(output.stdout.is_empty());
    }
    assert_eq!(filters(), before);
    // It is not the guard of another namespace.
    assert_cleaned(&NetNs::new().unwrap(), "nothing was left");
}
