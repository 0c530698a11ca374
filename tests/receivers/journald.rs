//! systemd-journald, and what journalctl finds.

use std::{
    collections::BTreeSet,
    fs,
    os::{
        fd::OwnedFd,
        unix::{
            fs::MetadataExt as _,
            net::{UnixDatagram, UnixStream},
        },
    },
    path::PathBuf,
};

use ipvs_guard::{
    event::{Class, Event},
    pipeline::Summary,
    sink::{Journald, Sink},
};
use nix::{
    sched::{CloneFlags, unshare},
    sys::socket::{setsockopt, sockopt},
    unistd::chroot,
};

use crate::support::{
    Daemon, PATIENCE, Place, event, is_read, killed_in_the_middle, listen, said, wait_until,
};

/// Leaves the kernel's log and its auditing alone: they are this machine's.
const CONFIG: &str = "[Journal]\nStorage=volatile\nReadKMsg=no\nAudit=no\n";

struct Journal(Place);

impl Journal {
    fn new() -> Self {
        let place = Place::new();
        fs::write(place.run().join("journald.conf"), CONFIG).unwrap();
        Self(place)
    }

    fn socket(&self) -> PathBuf {
        self.0.run().join("systemd/journal/socket")
    }

    fn start(&self) -> Daemon {
        let daemon = self.0.start(&["/usr/lib/systemd/systemd-journald"]);
        wait_until("journald", || is_read(&self.socket()));
        daemon
    }

    /// What journalctl finds, one object a line.
    fn find(&self, matches: &[&str]) -> Vec<serde_json::Value> {
        let mut command = vec![
            "/usr/bin/journalctl",
            "--quiet",
            "--no-pager",
            "--output=json",
        ];
        command.extend(matches);
        let found = self.0.command(&command).output().unwrap();
        String::from_utf8(found.stdout)
            .unwrap()
            .lines()
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect()
    }

    fn delivered(&self) -> BTreeSet<u32> {
        self.find(&[
            "--output-fields=IPVS_TCP_SEQ",
            "SYSLOG_IDENTIFIER=ipvs-guard",
        ])
        .iter()
        .filter_map(|entry| entry["IPVS_TCP_SEQ"].as_str()?.parse().ok())
        .collect()
    }

    fn sink(&self, what: &'static str) -> Sink {
        listen();
        Sink::hand_to("sink.journald", what, Journald::new(self.socket())).unwrap()
    }
}

#[test]
fn every_key_is_a_field_that_is_found() {
    let journal = Journal::new();
    let _daemon = journal.start();
    let sink = journal.sink("fields");
    let mut odd = (*event(7)).clone();
    odd.host = "line\nPRIORITY=0".into();
    sink.offer(&odd.into());
    let time = "2026-11-21T01:02:03Z".parse().unwrap();
    let mut loss = Event::new(Class::Loss, time, "node-1".into());
    loss.loss_count = Some(12);
    loss.loss_stage = Some("ring");
    sink.offer(&loss.into());
    let by_count = || journal.find(&["IPVS_LOSS_COUNT=12", "IPVS_LOSS_STAGE=ring"]);
    wait_until("both", || !by_count().is_empty());
    assert_eq!(sink.finish(Summary::default(), PATIENCE), 0);
    assert_eq!(by_count()[0]["MESSAGE"], "12 events lost at ring");

    let found = journal.find(&[
        "IPVS_EVENT_NAME=ipvs.stale_reuse",
        "IPVS_SOURCE_ADDRESS=192.0.2.2",
    ]);
    assert_eq!(found.len(), 1);
    for (field, value) in [
        ("MESSAGE_ID", "34ae964e868940578ee5049ecea1f5e5"),
        ("PRIORITY", "4"),
        ("SYSLOG_IDENTIFIER", "ipvs-guard"),
        ("IPVS_SEQUENCE", "1"),
        ("IPVS_TIME", "2026-11-21T01:02:03.123456789Z"),
        ("IPVS_SOURCE_PORT", "61001"),
        ("IPVS_DESTINATION_ADDRESS", "2001:db8::1"),
        ("IPVS_TCP_SEQ", "7"),
        ("IPVS_HOST_NAME", "line\nPRIORITY=0"),
    ] {
        assert_eq!(found[0][field], value, "{field}");
    }
}

#[test]
fn killed_during_events() {
    let journal = Journal::new();
    let sink = journal.sink("kill journald");
    killed_in_the_middle(sink, || journal.start(), || journal.delivered());
    let said = said("kill journald");
    assert!(
        said.len() <= 2 && said[0].contains("events wait"),
        "{said:?}"
    );
}

/// As under systemd: the socket is held by another process, and outlives journald.
#[test]
fn killed_while_its_socket_lives_on() {
    const SOCKET: &str = "/run/systemd/journal/socket";
    let journal = Journal::new();
    let place = journal.0.run().parent().unwrap().to_owned();
    fs::create_dir_all(journal.socket().parent().unwrap()).unwrap();
    // journald knows its sockets by their paths, which are those of its root directory.
    let bind = move || {
        unshare(CloneFlags::CLONE_FS).unwrap();
        chroot(&place).unwrap();
        UnixDatagram::bind(SOCKET).unwrap()
    };
    let socket = std::thread::spawn(bind).join().unwrap();
    // It takes what it is told of from number 3 on, by its own process id.
    setsockopt(&socket, sockopt::PassCred, &true).unwrap();
    let start = || {
        let mut command = journal.0.command(&["/usr/lib/systemd/systemd-journald"]);
        command.stdin(OwnedFd::from(socket.try_clone().unwrap()));
        let daemon = journal.0.spawn(command);
        let varlink = journal.socket().with_file_name("io.systemd.journal");
        wait_until("journald", || UnixStream::connect(&varlink).is_ok());
        daemon
    };
    let inode = || fs::metadata(journal.socket()).unwrap().ino();
    let before = inode();
    let sink = journal.sink("kill held");
    killed_in_the_middle(sink, start, || journal.delivered());
    assert_eq!(inode(), before, "journald made a socket of its own");
    let said = said("kill held");
    assert!(said[0].contains("its reader has ended"), "{said:?}");
}
