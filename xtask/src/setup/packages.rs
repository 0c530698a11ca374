//! Debian packages with all they depend on, unpacked for the guest rather than installed anywhere.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use crate::cache::{self, Cache};
use crate::output::say;
use crate::setup::apt::Apt;

/// Where the guest's tools come from, whatever this machine runs.
pub(crate) const SUITE: &str = "trixie";
const PROGRAMS: &str = "programs";

/// Unpacked packages that can be the root directory of a process.
pub(crate) struct Tree {
    /// The root directory.
    pub(crate) root: PathBuf,
    /// The programs of the packages that were asked for, as paths in the tree.
    pub(crate) programs: Vec<String>,
}

/// The packages `names` and what they need to run.
pub(crate) fn tree(cache: &Cache, names: &[String]) -> Result<Tree> {
    let names: BTreeSet<&str> = names.iter().map(String::as_str).collect();
    let names: Vec<&str> = names.into_iter().collect();
    let piece = format!("packages/{}", names.join("+"));
    let made = cache.piece(&piece, |into| {
        let apt = Apt::open(cache)?;
        say!(
            "bringing {} for the guests into the cache",
            names.join(" and ")
        );
        let packages = apt
            .complete(&names, SUITE)
            .with_context(|| format!("Debian {SUITE} has no {}", names.join(" or no ")))?;
        let root = into.join("root");
        let (own, others): (Vec<String>, Vec<String>) = packages.into_iter().partition(|package| {
            package
                .split_once('=')
                .is_some_and(|(name, _)| names.contains(&name))
        });
        apt.unpack(&own, &root)?;
        let programs = programs(&root)?;
        if !others.is_empty() {
            apt.unpack(&others, &root)?;
        }
        for (link, target) in [
            ("bin", "usr/bin"),
            ("sbin", "usr/sbin"),
            ("lib", "usr/lib"),
            ("lib64", "usr/lib64"),
        ] {
            if !root.join(link).exists() {
                symlink(target, root.join(link))?;
            }
        }
        for waste in ["doc", "man", "locale", "info", "lintian", "bug"] {
            cache::remove(&root.join("usr/share").join(waste))?;
        }
        fs::write(into.join(PROGRAMS), programs.join("\n"))?;
        Ok(())
    })?;
    let programs = fs::read_to_string(made.join(PROGRAMS))?;
    Ok(Tree {
        root: made.join("root"),
        programs: programs.lines().map(str::to_owned).collect(),
    })
}

fn programs(root: &Path) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for directory in ["usr/bin", "usr/sbin", "bin", "sbin"] {
        let Ok(entries) = fs::read_dir(root.join(directory)) else {
            continue;
        };
        for entry in entries {
            found.push(format!(
                "/{directory}/{}",
                entry?.file_name().to_string_lossy()
            ));
        }
    }
    found.sort();
    Ok(found)
}
