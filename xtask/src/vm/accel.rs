//! Whether guests run on the processor itself (KVM) or are emulated (TCG).

use std::fs::{self, OpenOptions};
use std::path::Path;
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use crate::cache::Cache;
use crate::output::say;
use crate::setup::tools::Qemu;

const DEVICE: &str = "/dev/kvm";
/// A kernel that finds no root file system panics within two seconds where KVM works.
const PATIENCE: Duration = Duration::from_secs(8);

/// What executes the guest's instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Accel {
    Kvm,
    Tcg,
}

/// Finds out what works here, once per start of this machine: the device may exist and still hang every guest.
pub(super) fn find(cache: &Cache, qemu: &Qemu, image: &Path) -> Result<Accel> {
    if OpenOptions::new()
        .read(true)
        .write(true)
        .open(DEVICE)
        .is_err()
    {
        return Ok(Accel::Tcg);
    }
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let boot = boot.trim();
    let answer = cache.path("kvm");
    let _lock = cache.lock("kvm")?;
    let known = fs::read_to_string(&answer).unwrap_or_default();
    if let Some(works) = known.strip_prefix(boot)
        && !boot.is_empty()
    {
        return Ok(if works.trim() == "works" {
            Accel::Kvm
        } else {
            Accel::Tcg
        });
    }
    say!("trying {DEVICE} (at most {} s, once)", PATIENCE.as_secs());
    let works = boots(qemu, image)?;
    let verdict = if works { "works" } else { "hangs" };
    if !works {
        say!("{DEVICE} runs no guest here: they are emulated");
    }
    fs::write(&answer, format!("{boot} {verdict}\n"))
        .with_context(|| format!("cannot write {}", answer.display()))?;
    Ok(if works { Accel::Kvm } else { Accel::Tcg })
}

fn boots(qemu: &Qemu, image: &Path) -> Result<bool> {
    let mut child = qemu
        .command()
        .args(["-nodefaults", "-no-user-config", "-no-reboot"])
        .args(["-display", "none", "-nic", "none", "-m", "512"])
        .args(["-accel", "kvm", "-cpu", "host", "-append", "panic=-1"])
        .arg("-kernel")
        .arg(image)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .context("cannot start QEMU")?;
    let started = Instant::now();
    while started.elapsed() < PATIENCE {
        if let Some(status) = child.try_wait()? {
            return Ok(status.success());
        }
        thread::sleep(Duration::from_millis(50));
    }
    child.kill()?;
    child.wait()?;
    Ok(false)
}
