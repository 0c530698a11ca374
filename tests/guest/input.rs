//! Bad input: an exit code and one line that tells what to do.

use std::{fs, os::unix::process::CommandExt as _, process::Command};

use crate::support::load_ipvs;

fn fails(mut command: Command) -> (Option<i32>, String) {
    let output = command.output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    assert!(output.stdout.is_empty());
    (output.status.code(), stderr)
}

fn watch(args: &[&str]) -> Command {
    let mut command = Command::new("ipvs-guard");
    command.arg("watch").args(args);
    command
}

#[test]
fn no_privilege_names_the_capabilities() {
    load_ipvs();
    for command in ["watch", "lab"] {
        let mut command = {
            let mut c = Command::new("ipvs-guard");
            c.arg(command);
            c
        };
        command.uid(65_534).gid(65_534);
        let (code, line) = fails(command);
        assert_eq!(code, Some(3), "{line}");
        assert!(line.contains("CAP_NET_ADMIN"), "{line}");
    }
}

#[test]
fn a_btf_file_that_does_not_serve_is_refused() {
    load_ipvs();
    fs::write("/run/garbage.btf", [0x9f, 0xeb, 1, 2, 3]).unwrap();
    let vmlinux = fs::read("/sys/kernel/btf/vmlinux").unwrap();
    fs::write("/run/cut.btf", &vmlinux[..vmlinux.len() / 2]).unwrap();
    for file in ["/nonexistent.btf", "/run/garbage.btf", "/run/cut.btf"] {
        let (code, line) = fails(watch(&["--btf", file]));
        assert_eq!(code, Some(2), "{line}");
        assert!(line.contains(file), "{line}");
    }
}

#[test]
fn a_namespace_that_is_none_is_refused() {
    for path in ["/nonexistent", "/etc", "/proc/self/ns/mnt"] {
        let (code, line) = fails(watch(&["--netns", path]));
        assert_eq!(code, Some(2), "{line}");
        assert!(line.contains(path), "{line}");
    }
}
