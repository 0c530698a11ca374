//! The unit, judged by systemd.

use std::{collections::BTreeSet, fs};

use crate::chroot::{FILES, output, run, workspace};

const UNIT: &str = "ipvs-guard.service";

fn unit() -> String {
    fs::read_to_string(workspace("deploy/systemd").join(UNIT)).unwrap()
}

/// What the unit may be exposed at most, in tenths; the kernel's network and eBPF are what
/// it is for.
const EXPOSURE: u32 = 25;

#[test]
fn systemd_finds_no_fault_with_the_unit() {
    let files = tempfile::tempdir().unwrap();
    fs::write(files.path().join(UNIT), unit()).unwrap();
    let path = format!("{FILES}/{UNIT}");
    let verified = run(
        files.path(),
        &["systemd-analyze", "verify", "--man=no", &path],
    );
    let said = String::from_utf8_lossy(&verified.stderr);
    assert!(verified.status.success(), "{said}");
    // It warns of keys that it does not know, and succeeds.
    let about: Vec<&str> = said
        .lines()
        .filter(|line| line.contains("ipvs-guard"))
        .collect();
    assert_eq!(about, [] as [&str; 0]);

    // The test can fail.
    let wrong = unit().replace("ProtectSystem=strict", "ProtectSytem=strict");
    fs::write(files.path().join(UNIT), wrong).unwrap();
    let verified = run(
        files.path(),
        &["systemd-analyze", "verify", "--man=no", &path],
    );
    assert!(String::from_utf8_lossy(&verified.stderr).contains("ProtectSytem"));
}

#[test]
fn the_unit_is_little_exposed() {
    let files = tempfile::tempdir().unwrap();
    fs::write(files.path().join(UNIT), unit()).unwrap();
    let threshold = format!("--threshold={EXPOSURE}");
    let path = format!("{FILES}/{UNIT}");
    let analyze = [
        "systemd-analyze",
        "security",
        "--offline=true",
        "--no-pager",
    ];
    let judged = run(files.path(), &[&analyze[..], &[&threshold, &path]].concat());
    let said = String::from_utf8_lossy(&judged.stdout);
    let overall = said
        .lines()
        .find(|line| line.contains("Overall exposure level"));
    eprintln!("systemd: {}", overall.unwrap_or_default());
    assert!(judged.status.success(), "{said}");
}

#[test]
fn the_filter_lets_every_call_through_that_was_seen() {
    let files = tempfile::tempdir().unwrap();
    let mut allowed = BTreeSet::new();
    for line in unit().lines() {
        let Some(list) = line.strip_prefix("SystemCallFilter=") else {
            continue;
        };
        let (words, away) = match list.strip_prefix('~') {
            Some(rest) => (rest, true),
            None => (list, false),
        };
        for word in words.split_whitespace() {
            for call in calls(files.path(), word) {
                if away {
                    allowed.remove(&call);
                } else {
                    allowed.insert(call);
                }
            }
        }
    }
    let seen = fs::read_to_string(workspace("tests/receivers/syscalls.txt")).unwrap();
    let seen: Vec<&str> = seen
        .lines()
        .filter(|line| !line.starts_with('#'))
        .flat_map(str::split_whitespace)
        .collect();
    assert!(seen.len() > 40, "{seen:?}");
    let refused: Vec<&str> = seen
        .into_iter()
        // By systemd itself, before the filter is there.
        .filter(|call| *call != "execve" && !allowed.contains(*call))
        .collect();
    assert_eq!(refused, [] as [&str; 0]);
    for call in [
        "ptrace",
        "mount",
        "init_module",
        "reboot",
        "setuid",
        "kexec_load",
    ] {
        assert!(!allowed.contains(call), "{call}");
    }
}

/// The system calls that a word of `SystemCallFilter=` stands for.
fn calls(files: &std::path::Path, word: &str) -> Vec<String> {
    if !word.starts_with('@') {
        return vec![word.to_owned()];
    }
    output(
        files,
        &["systemd-analyze", "syscall-filter", "--no-pager", word],
    )
    .lines()
    .map(str::trim)
    .filter(|line| !line.is_empty() && !line.starts_with('#') && *line != word)
    .flat_map(|line| calls(files, line))
    .collect()
}
