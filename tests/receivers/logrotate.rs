//! Debian's logrotate rotates the file of `--output` while it is written.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
};

use ipvs_guard::sink::{Json, LogFile, Rotation, Sink};
use tokio::signal::unix::{SignalKind, signal};

use crate::feed::{Feed, PATIENCE, Written};

const ROTATIONS: u32 = 20;
/// As many events for each.
const EVENTS: u32 = 500;

/// Root directory of the unpacked packages.
fn receivers() -> PathBuf {
    env::var_os("IPVS_GUARD_RECEIVERS")
        .expect("IPVS_GUARD_RECEIVERS is not set; run the tests with: cargo xtask test")
        .into()
}

/// One run of logrotate, which rotates whatever the file's size.
fn rotate(configuration: &Path) {
    // Debian's program with Debian's libraries, but this machine's files and shell.
    let root = receivers();
    let output = Command::new(root.join("lib64/ld-linux-x86-64.so.2"))
        .arg("--library-path")
        .arg(root.join("usr/lib/x86_64-linux-gnu"))
        .arg(root.join("usr/sbin/logrotate"))
        .args(["--force", "--state"])
        .arg(configuration.with_extension("state"))
        .arg(configuration)
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    assert_eq!(errors, "");
}

/// Ten thousand events while logrotate runs with `directives`.
fn rotated(directives: &str, reopen: Arc<AtomicBool>) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("events.json");
    let configuration = folder.path().join("logrotate.conf");
    let text = format!("{} {{\n  rotate 1000\n  {directives}\n}}\n", path.display());
    fs::write(&configuration, text).unwrap();
    let rotation = Rotation {
        size: None,
        keep: 5,
    };
    let file = LogFile::open(&path, rotation, reopen).unwrap();
    let sink = Sink::start("sink.file", "rotated", Json, file).unwrap();
    let mut feed = Feed::into(vec![sink]);
    for _ in 0..ROTATIONS {
        thread::scope(|scope| {
            scope.spawn(|| rotate(&configuration));
            feed.events(EVENTS);
        });
    }
    let emitted = feed.emitted();
    feed.finish(PATIENCE);
    let mut written = Written::default();
    let mut files = 0;
    for number in (1..=ROTATIONS).rev() {
        let older = path.with_extension(format!("json.{number}"));
        if older.exists() {
            written.add(&older);
            files += 1;
        }
    }
    written.add(&path);
    written.has_all(emitted);
    assert!(files > 5, "{files} were rotated");
}

#[test]
fn the_file_is_followed_when_it_is_moved() {
    rotated("nocreate\n  missingok", Arc::default());
}

#[test]
fn a_file_made_in_its_place_is_taken() {
    rotated("create 0640 root root\n  missingok", Arc::default());
}

#[test]
fn a_signal_has_it_opened_anew() {
    let reopen = Arc::new(AtomicBool::new(false));
    let signals = Arc::new(AtomicUsize::new(0));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let mut hangup = runtime.block_on(async { signal(SignalKind::hangup()).unwrap() });
    // As the agent does.
    runtime.spawn({
        let (reopen, signals) = (Arc::clone(&reopen), Arc::clone(&signals));
        async move {
            while hangup.recv().await.is_some() {
                reopen.store(true, Ordering::Relaxed);
                signals.fetch_add(1, Ordering::Relaxed);
            }
        }
    });
    let postrotate = format!(
        "nocreate\n  missingok\n  postrotate\n    kill -HUP {}\n  endscript",
        std::process::id()
    );
    rotated(&postrotate, reopen);
    assert!(signals.load(Ordering::Relaxed) > 0);
}
