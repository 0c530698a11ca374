//! Sinks against the receivers that people run, from Debian's packages, on this machine.

use std::path::PathBuf;
use std::process::Stdio;

use anyhow::{Context as _, Result};

use super::tally::Tally;
use crate::build;
use crate::cache::Cache;
use crate::image;
use crate::output::say;
use crate::setup::{helm, packages};

/// What the tests run.
const PACKAGES: [&str; 6] = [
    "logrotate",
    "prometheus",
    "rsyslog",
    "rsyslog-openssl",
    "skopeo",
    "systemd",
];

/// The root directory of the unpacked receivers.
pub(crate) fn root(cache: &Cache) -> Result<PathBuf> {
    Ok(packages::tree(cache, &PACKAGES.map(str::to_owned))?.root)
}

pub(super) fn run(cache: &Cache, tally: &mut Tally) -> Result<()> {
    say!("sinks against real receivers");
    let root = root(cache)?;
    let helm = helm::helm(cache)?;
    let image = image::archive(cache)?;
    let output = build::cargo(cache, "test")?
        .args(["--package", "ipvs-guard-tests", "--test", "receivers"])
        .args(["--quiet", "--no-fail-fast"])
        .env("IPVS_GUARD_RECEIVERS", root)
        .env("IPVS_GUARD_HELM", helm)
        .env("IPVS_GUARD_IMAGE", image)
        .stderr(Stdio::inherit())
        .output()
        .context("cargo test")?;
    let text = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        eprint!("{text}");
    }
    tally.tests("receivers", &text, output.status.success());
    Ok(())
}
