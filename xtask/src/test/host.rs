//! What needs no IPVS.

use std::process::{Command, Stdio};

use anyhow::{Context as _, Result};

use super::tally::Tally;
use crate::build;
use crate::cache::Cache;
use crate::output::say;

/// Crates of the host; the eBPF crate is compiled by ipvs-guard's build script.
const HOST: [&str; 3] = ["--workspace", "--exclude", "ipvs-guard-ebpf"];

/// The programs of tests that `cargo test` leaves out, and `--all-targets` with it.
const PROGRAMS: [&str; 8] = [
    "--package",
    "ipvs-guard-tests",
    "--test",
    "guest",
    "--test",
    "receivers",
    "--test",
    "programs",
];

pub(super) fn run(cache: &Cache, tally: &mut Tally) -> Result<()> {
    say!("formatting");
    let formatted = Command::new("cargo")
        .args(["fmt", "--all", "--check"])
        .current_dir(build::workspace())
        .status()
        .context("cargo fmt")?;
    tally.step("cargo fmt --all --check", formatted.success());

    say!("lints");
    let all = [&HOST[..], &["--all-targets"]].concat();
    for targets in [&all[..], &PROGRAMS] {
        let linted = build::cargo(cache, "clippy")?
            .args(targets)
            .args(["--quiet", "--", "-D", "warnings"])
            .status()
            .context("cargo clippy")?;
        tally.step("cargo clippy", linted.success());
    }

    say!("tests of this machine");
    let output = build::cargo(cache, "test")?
        .args(HOST)
        .args(["--lib", "--bins", "--quiet", "--no-fail-fast"])
        .stderr(Stdio::inherit())
        .output()
        .context("cargo test")?;
    let text = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        eprint!("{text}");
    }
    tally.tests("cargo test", &text, output.status.success());

    if !nix::unistd::geteuid().is_root() {
        say!("left out, for it takes root: the packet programs on this kernel");
        return Ok(());
    }
    say!("the packet programs on this kernel");
    let output = build::cargo(cache, "test")?
        .args(["--package", "ipvs-guard-tests", "--test", "programs"])
        .args(["--quiet", "--", "--nocapture"])
        .stderr(Stdio::inherit())
        .output()
        .context("cargo test")?;
    let text = String::from_utf8_lossy(&output.stdout);
    eprint!("{text}");
    tally.tests("packet programs", &text, output.status.success());
    Ok(())
}
