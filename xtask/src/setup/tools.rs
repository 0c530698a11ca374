//! QEMU for the host and busybox for the guest.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::cache::Cache;
use crate::output::say;
use crate::process;
use crate::setup::apt::{Apt, Offer};
use crate::setup::packages::SUITE;

/// QEMU 7.2 corrupts guests from Linux 6.12 on.
const OLDEST_QEMU: u32 = 8;
const QEMU: &str = "qemu-system-x86_64";

/// A QEMU that can be run: the machine's own, or one unpacked in the cache.
pub(crate) struct Qemu {
    unpacked: Option<PathBuf>,
}

impl Qemu {
    /// A command that starts QEMU, to which its options are added. QEMU is killed when the thread that started it ends.
    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]);
        let Some(root) = &self.unpacked else {
            command.arg(QEMU);
            return command;
        };
        let libraries = ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"];
        let mut path: Vec<PathBuf> = libraries.map(|directory| root.join(directory)).to_vec();
        if let Some(own) = env::var_os("LD_LIBRARY_PATH") {
            path.extend(env::split_paths(&own));
        }
        command.arg(root.join("usr/bin").join(QEMU));
        for data in ["usr/share/qemu", "usr/share/seabios"] {
            command.arg("-L").arg(root.join(data));
        }
        command
            .env(
                "LD_LIBRARY_PATH",
                env::join_paths(path).unwrap_or_else(|_| OsString::new()),
            )
            .env(
                "QEMU_MODULE_DIR",
                root.join("usr/lib/x86_64-linux-gnu/qemu"),
            );
        command
    }
}

/// The QEMU on the machine's path if it is recent enough, else Debian's, unpacked in the cache.
pub(crate) fn qemu(cache: &Cache) -> Result<Qemu> {
    if let Ok(version) = process::capture(Command::new(QEMU).arg("--version"))
        && qemu_major(&version).is_some_and(|major| major >= OLDEST_QEMU)
    {
        return Ok(Qemu { unpacked: None });
    }
    let unpacked = cache.piece("qemu", |into| {
        let apt = Apt::open(cache)?;
        let suite = host_suite()?;
        let offers = apt.versions(&["qemu-system-x86"])?;
        let offer = choose_qemu(&offers, &suite)
            .with_context(|| format!("no QEMU {OLDEST_QEMU} or later for Debian {suite}"))?;
        say!(
            "bringing QEMU {} from {} into the cache",
            offer.version,
            offer.suite
        );
        let packages = apt.lacking("qemu-system-x86", &offer.suite)?;
        apt.unpack(&packages, into)
    })?;
    let qemu = Qemu {
        unpacked: Some(unpacked),
    };
    process::capture(qemu.command().arg("--version")).context(
        "the QEMU in the cache does not start; remove it and run `cargo xtask setup qemu`",
    )?;
    Ok(qemu)
}

/// A busybox that needs no library, for the guest and for the tools a minimal machine lacks.
pub(crate) fn busybox(cache: &Cache) -> Result<PathBuf> {
    let unpacked = cache.piece("busybox", |into| {
        let apt = Apt::open(cache)?;
        let offers = apt.versions(&["busybox-static"])?;
        let offer = offers
            .iter()
            .find(|offer| offer.suite == SUITE)
            .with_context(|| format!("Debian {SUITE} offers no busybox-static"))?;
        say!("bringing busybox {} into the cache", offer.version);
        apt.unpack(&[format!("busybox-static={}", offer.version)], into)
    })?;
    ["usr/bin/busybox", "bin/busybox"]
        .iter()
        .map(|path| unpacked.join(path))
        .find(|path| path.exists())
        .context("the package busybox-static holds no busybox")
}

fn host_suite() -> Result<String> {
    let release = fs::read_to_string(Path::new("/etc/os-release"))?;
    release
        .lines()
        .find_map(|line| line.strip_prefix("VERSION_CODENAME="))
        .map(|name| name.trim_matches('"').to_owned())
        .context("/etc/os-release names no Debian suite")
}

/// The machine's own suite comes first: its libraries are those that are installed.
fn choose_qemu<'a>(offers: &'a [Offer], suite: &str) -> Option<&'a Offer> {
    [suite.to_owned(), format!("{suite}-backports")]
        .iter()
        .find_map(|suite| {
            offers
                .iter()
                .filter(|offer| offer.suite == *suite)
                .find(|offer| {
                    let version = offer
                        .version
                        .split_once(':')
                        .map_or(&*offer.version, |v| v.1);
                    leading_number(version).is_some_and(|major| major >= OLDEST_QEMU)
                })
        })
}

fn qemu_major(text: &str) -> Option<u32> {
    leading_number(text.split_once("version ")?.1)
}

fn leading_number(text: &str) -> Option<u32> {
    text.split(|c: char| !c.is_ascii_digit())
        .next()?
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offer(version: &str, suite: &str) -> Offer {
        Offer {
            package: "qemu-system-x86".into(),
            version: version.into(),
            suite: suite.into(),
        }
    }

    #[test]
    fn takes_qemu_from_the_suite_of_the_machine() {
        let offers = [
            offer("1:11.1.3+ds-1", "sid"),
            offer("1:10.0.13+ds-0+deb13u1", "trixie"),
            offer("1:10.0.2+ds-2~bpo12+1", "bookworm-backports"),
            offer("1:7.2+dfsg-7", "bookworm"),
        ];
        assert_eq!(choose_qemu(&offers, "bookworm"), Some(&offers[2]));
        assert_eq!(choose_qemu(&offers, "trixie"), Some(&offers[1]));
        assert_eq!(choose_qemu(&offers, "bullseye"), None);
    }

    #[test]
    fn reads_the_version_of_qemu() {
        assert_eq!(
            qemu_major("QEMU emulator version 10.0.2 (Debian)"),
            Some(10)
        );
        assert_eq!(qemu_major("something else"), None);
    }
}
