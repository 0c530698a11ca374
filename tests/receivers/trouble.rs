//! Receivers that are not there, or not as they should be.

use std::{
    fs,
    net::TcpListener,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use ipvs_guard::{
    pipeline::Summary,
    sink::{Sink, Syslog},
};

use crate::support::{event, listen, said, wait_until};

fn sink(what: &'static str, url: &str) -> Sink {
    listen();
    Sink::hand_to(
        "sink.syslog",
        what,
        Syslog::new(url.parse().unwrap()).unwrap(),
    )
    .unwrap()
}

fn resident_kib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmRSS:"))
        .unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn a_receiver_that_never_reads_costs_counted_events_and_no_memory() {
    const EVENTS: u32 = 400_000;
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = socket.local_addr().unwrap().port();
    let sink = sink("deaf", &format!("tcp://127.0.0.1:{port}"));
    for number in 0..EVENTS / 2 {
        sink.offer(&event(number));
    }
    wait_until("a complaint", || !said("deaf").is_empty());
    let before = resident_kib();
    for number in EVENTS / 2..EVENTS {
        sink.offer(&event(number));
    }
    let grown = resident_kib().saturating_sub(before);
    // The events of one half alone would be 40 MiB and more.
    assert!(grown < 16 << 10, "{grown} KiB more");
    let line = said("deaf");
    assert!(line[0].contains("does not read"), "{line:?}");
    assert_eq!(line.len(), 1, "{line:?}");
    let lost = sink.lost();
    let left = sink.finish(Summary::default(), Duration::from_millis(100));
    // None was read, so none may count as delivered but what is out of doubt: nothing.
    assert_eq!(lost + left, u64::from(EVENTS), "{lost} lost, {left} left");
}

#[test]
fn what_is_not_there_is_said_once_and_counted() {
    let folder = tempfile::tempdir().unwrap();
    let missing = format!("unix://{}/log", folder.path().display());
    for (what, url, reason) in [
        (
            "no name",
            "tcp://no-such-host.invalid",
            "no-such-host.invalid",
        ),
        ("no socket", missing.as_str(), "No such file"),
        ("no tcp", "tcp://127.0.0.1:1", "refused"),
        ("no udp", "udp://127.0.0.1:1", "refused"),
        ("no tcp6", "tcp://[::1]:1", ""),
    ] {
        let sink = sink(what, url);
        for number in 0..20_000 {
            sink.offer(&event(number));
        }
        wait_until(what, || !said(what).is_empty());
        let lost = sink.lost();
        let left = sink.finish(Summary::default(), Duration::from_millis(500));
        assert_eq!(lost + left, 20_000, "{what}: {lost} lost, {left} left");
        let lines = said(what);
        assert!(lines[0].contains(reason), "{lines:?}");
        // One for the beginning, one for the end.
        assert_eq!(lines.len(), 2, "{lines:?}");
    }
}

#[test]
fn a_receiver_that_comes_and_goes_is_said_once() {
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = socket.local_addr().unwrap().port();
    let accepted = Arc::new(AtomicUsize::new(0));
    let _waits_to_the_end = thread::spawn({
        let accepted = Arc::clone(&accepted);
        move || {
            for connection in socket.incoming() {
                drop(connection);
                accepted.fetch_add(1, Ordering::Relaxed);
            }
        }
    });
    let sink = sink("flaps", &format!("tcp://127.0.0.1:{port}"));
    for number in 0..100 {
        sink.offer(&event(number));
    }
    wait_until("some connections", || accepted.load(Ordering::Relaxed) > 4);
    let lines = said("flaps");
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert_eq!(sink.lost(), 0);
}
