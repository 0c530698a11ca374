//! A reader that goes, a disk that is full.

use std::{
    fs::{self, File, OpenOptions},
    process::{Command, Stdio},
    time::Instant,
};

use ipvs_guard::{lab::topology::Families, netlink::ipvs::Family};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::support::{PATIENCE, healthy, incident, load_ipvs, short_limits, wait_until};

#[test]
fn a_closed_pipe_is_a_quiet_end() {
    load_ipvs();
    let (reader, writer) = std::io::pipe().unwrap();
    let errors = File::create("/run/closed-pipe").unwrap();
    let mut agent = Command::new("ipvs-guard")
        .arg("watch")
        .stdout(writer)
        .stderr(errors)
        .spawn()
        .unwrap();
    let said = || std::fs::read_to_string("/run/closed-pipe").unwrap();
    wait_until("ready", PATIENCE, || said().contains("ready:"));
    drop(reader);
    let begin = Instant::now();
    let status = agent.wait().unwrap();
    assert!(status.success());
    println!("ended {:?} after its reader", begin.elapsed());
    assert_eq!(said().lines().count(), 1, "{}", said());
}

#[test]
fn a_full_disk_is_said_once_and_counted() {
    let topology = incident(Families::Inet);
    let errors = File::create("/run/full-disk").unwrap();
    let mut agent = Command::new("ipvs-guard")
        .args(["watch", "--format", "json"])
        .stdout(Stdio::from(
            OpenOptions::new().write(true).open("/dev/full").unwrap(),
        ))
        .stderr(errors)
        .spawn()
        .unwrap();
    let said = || std::fs::read_to_string("/run/full-disk").unwrap();
    wait_until("ready", PATIENCE, || said().contains("ready:"));
    healthy(&topology, Family::Inet, 47_000..47_020);
    topology.set_weight(0, 0).unwrap();
    topology.mute_backend(0).unwrap();
    let ports: Vec<u16> = (47_000..47_020).collect();
    topology
        .connect_all(Family::Inet, &ports, short_limits())
        .unwrap();
    wait_until("the disk is full", PATIENCE, || {
        said().contains("No space left")
    });
    assert!(agent.try_wait().unwrap().is_none(), "it goes on");
    kill(Pid::from_raw(agent.id() as i32), Signal::SIGINT).unwrap();
    assert!(agent.wait().unwrap().success());
    assert_eq!(said().matches("No space left").count(), 1, "{}", said());
    let last = said().lines().last().unwrap().to_owned();
    assert!(last.ends_with("events lost in all"), "{}", said());
}

/// A reader that never reads costs the file of `--output` nothing, and whoever moves
/// that file away loses nothing either.
#[test]
fn a_file_has_every_event_beside_a_reader_that_stands_still() {
    const CHANGES: usize = 6_000;
    const FILE: &str = "/run/events.json";
    const MOVED: &str = "/run/events.moved.json";
    let topology = incident(Families::Inet);
    let (reader, writer) = std::io::pipe().unwrap();
    let errors = File::create("/run/file-sink").unwrap();
    let mut agent = Command::new("ipvs-guard")
        .args([
            "watch",
            "--output",
            FILE,
            "--event",
            "drain_started,drain_ended",
        ])
        .stdout(writer)
        .stderr(errors)
        .spawn()
        .unwrap();
    let said = || fs::read_to_string("/run/file-sink").unwrap();
    wait_until("ready", PATIENCE, || said().contains("ready:"));
    let drain = |times: usize| {
        for _ in 0..times {
            topology.set_weight(0, 0).unwrap();
            topology.set_weight(0, 1).unwrap();
        }
    };
    drain(CHANGES / 2);
    fs::rename(FILE, MOVED).unwrap();
    kill(Pid::from_raw(agent.id() as i32), Signal::SIGHUP).unwrap();
    drain(CHANGES / 2);
    // Ended earlier, it would write for so long as an end may take, and count the rest.
    let written = || {
        let of = |path| fs::read_to_string(path).unwrap_or_default();
        of(MOVED).matches("ipvs.drain_").count() + of(FILE).matches("ipvs.drain_").count()
    };
    wait_until("every event is in a file", PATIENCE, || {
        written() >= CHANGES * 2
    });
    kill(Pid::from_raw(agent.id() as i32), Signal::SIGINT).unwrap();
    assert!(agent.wait().unwrap().success());
    let count = |path| {
        let text = fs::read_to_string(path).unwrap();
        assert!(
            text.lines()
                .all(|line| line.starts_with('{') && line.ends_with('}'))
        );
        text.lines()
            .filter(|line| line.contains("ipvs.drain_"))
            .count()
    };
    let (before, after) = (count(MOVED), count(FILE));
    assert_eq!(before + after, CHANGES * 2, "{}", said());
    assert!(after > 0);
    drop(reader);
}
