//! The file of `--output`: rotated by itself, and on a disk that fills.

use std::{
    fs::{self, File},
    io::Write as _,
    path::Path,
    sync::Arc,
    thread,
};

use ipvs_guard::sink::{Json, LogFile, Rotation, Sink};
use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, unshare},
};

use crate::feed::{Feed, PATIENCE, Written, file_sink, said, wait_until};

#[test]
fn rotation_by_size_loses_and_tears_none_of_ten_thousand() {
    const SIZE: u64 = 64 << 10;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("events.json");
    let rotation = Rotation {
        size: Some(SIZE),
        keep: 1_000,
    };
    let file = LogFile::open(&path, rotation, Arc::default()).unwrap();
    let sink = Sink::start("sink.file", "rotated", Json, file).unwrap();
    let mut feed = Feed::into(vec![sink]);
    feed.events(10_000);
    let emitted = feed.emitted();
    feed.finish(PATIENCE);
    let mut written = Written::default();
    let files = fs::read_dir(folder.path()).unwrap().count();
    assert!(files > 10, "{files} files");
    for number in (1..files).rev() {
        let older = path.with_extension(format!("json.{number}"));
        assert!(fs::metadata(&older).unwrap().len() <= SIZE);
        written.add(&older);
    }
    written.add(&path);
    written.has_all(emitted);
}

/// In a mount namespace of this thread and those it starts.
#[test]
fn a_disk_that_fills_is_said_once_counted_and_used_again() {
    let watched = tempfile::tempdir().unwrap();
    let disk = tempfile::tempdir().unwrap();
    let (watched, disk) = (watched.path(), disk.path());
    thread::scope(|scope| scope.spawn(|| fill(watched, disk)).join().unwrap());
}

fn fill(watched: &Path, disk: &Path) {
    unshare(CloneFlags::CLONE_NEWNS).unwrap();
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, private, None::<&str>).unwrap();
    let size = Some("size=1m");
    mount(Some("tmpfs"), disk, Some("tmpfs"), MsFlags::empty(), size).unwrap();
    let path = disk.join("events.json");
    let ballast = disk.join("ballast");
    File::create(&ballast)
        .unwrap()
        .write_all(&vec![0; 512 << 10])
        .unwrap();
    let other = watched.join("events.json");
    let mut feed = Feed::into(vec![file_sink(&path), file_sink(&other)]);
    feed.events(5_000);
    let what = path.display().to_string();
    wait_until("the disk is full", || !said(&what).is_empty());
    wait_until("every event is written or lost", || {
        feed.report();
        let written = Written::read(&path).sequence.len() as u64;
        written + Written::read(&other).lost_at("sink.file") == 5_000
    });
    fs::remove_file(&ballast).unwrap();
    feed.events(500);
    wait_until("it is written on", || {
        Written::read(&path).sequence.last() == Some(&5_499)
    });
    feed.report();
    let emitted = feed.emitted();
    feed.finish(PATIENCE);
    let seen = Written::read(&other);
    assert_eq!(seen.sequence.len() as u64, emitted);
    let written = Written::read(&path);
    let lost = seen.lost_at("sink.file");
    assert!(lost > 0);
    assert_eq!(written.sequence.len() as u64 + lost, emitted);
    assert!(written.torn <= 1, "{} torn lines", written.torn);
    let lines = said(&what);
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert!(lines[0].contains("No space left on device"), "{lines:?}");
    assert_eq!(lines[1], format!("{what}: {lost} events lost in all"));
}
