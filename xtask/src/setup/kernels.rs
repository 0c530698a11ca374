//! Debian's kernels for the guest: which there are, and the few files of each that a guest needs.

use std::fmt;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};
use clap::ValueEnum;

use crate::cache::{self, Cache};
use crate::output::say;
use crate::process;
use crate::setup::apt::{Apt, Offer};
use crate::setup::tools;

/// A kernel of the matrix that everything is tested on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, ValueEnum)]
pub(crate) enum Label {
    /// Debian 11
    #[value(name = "5.10")]
    V5_10,
    /// Debian 12
    #[value(name = "6.1")]
    V6_1,
    /// Debian 13
    #[value(name = "6.12")]
    V6_12,
    /// Backported to Debian 13
    #[value(name = "6.18")]
    V6_18,
    /// Backported to Debian 13
    #[value(name = "7.2")]
    V7_2,
    /// The highest released version that any suite offers
    #[value(name = "newest")]
    Newest,
}

impl Label {
    /// All kernels of the matrix, oldest first.
    pub(crate) const ALL: [Self; 6] = [
        Self::V5_10,
        Self::V6_1,
        Self::V6_12,
        Self::V6_18,
        Self::V7_2,
        Self::Newest,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::V5_10 => "5.10",
            Self::V6_1 => "6.1",
            Self::V6_12 => "6.12",
            Self::V6_18 => "6.18",
            Self::V7_2 => "7.2",
            Self::Newest => "newest",
        }
    }

    /// The Debian release this kernel belongs to; other suites rebuild it under the same version.
    fn home(self) -> &'static str {
        match self {
            Self::V5_10 => "bullseye",
            Self::V6_1 => "bookworm",
            Self::V6_12 | Self::V6_18 => "trixie",
            Self::V7_2 | Self::Newest => "",
        }
    }
}

impl fmt::Display for Label {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

/// A kernel in the cache.
#[derive(Clone, Debug)]
pub(crate) struct Kernel {
    /// What `uname -r` prints in the guest.
    pub(crate) release: String,
    directory: PathBuf,
}

impl Kernel {
    /// The image to boot.
    pub(crate) fn image(&self) -> PathBuf {
        self.directory.join("vmlinuz")
    }

    /// A directory to be found as `/lib/modules/RELEASE` in the guest.
    pub(crate) fn modules(&self) -> PathBuf {
        self.directory.join("lib/modules").join(&self.release)
    }

    fn at(directory: &Path) -> Result<Self> {
        let directory = directory
            .canonicalize()
            .with_context(|| format!("cannot read {}", directory.display()))?;
        let release = directory
            .file_name()
            .and_then(|name| name.to_str())
            .with_context(|| format!("no kernel release: {}", directory.display()))?
            .to_owned();
        Ok(Self { release, directory })
    }
}

/// The kernel `label`, brought into the cache if it is not there.
pub(crate) fn kernel(cache: &Cache, label: Label) -> Result<Kernel> {
    let link = by_label(cache, label);
    if link.exists() {
        return Kernel::at(&link);
    }
    resolve(cache, label).with_context(|| format!("cannot bring kernel {label}"))
}

/// Where kernels are kept. The number counts what [`PARTS`] has been, so that a kernel kept without a part that has come
/// since is brought again.
const KEPT: &str = "kernels/2";

fn by_label(cache: &Cache, label: Label) -> PathBuf {
    cache.path(KEPT).join("by-label").join(label.name())
}

/// Looks for the kernel `label` again, so that a newer version of it replaces the one in the cache.
pub(crate) fn forget(cache: &Cache, label: Label) -> Result<()> {
    cache::remove_file(&by_label(cache, label))
}

fn resolve(cache: &Cache, label: Label) -> Result<Kernel> {
    let apt = Apt::open(cache)?;
    let busybox = tools::busybox(cache)?;
    let mut offers =
        apt.search("^linux-(image|binary|binary-unsigned)-.*-cloud-amd64(-unsigned)?$")?;
    let modules: Vec<String> = apt
        .search("^linux-modules-.*-cloud-amd64$")?
        .into_iter()
        .map(|offer| offer.package)
        .collect();
    offers.retain(|offer| offer.suite.starts_with(label.home()));
    let candidates = candidates(&offers, &modules, label);
    let mut problem = None;
    // A suite's list may still name a version whose files are gone from the archive.
    for candidate in candidates.iter().take(3) {
        let piece = format!("{KEPT}/{}", candidate.release);
        let made = cache.piece(&piece, |into| {
            say!(
                "bringing kernel {} ({label}, from {}) into the cache",
                candidate.release,
                candidate.suite
            );
            fill(&apt, candidate, &busybox, into)
        });
        match made {
            Ok(directory) => {
                let link = by_label(cache, label);
                replace_link(&Path::new("..").join(&candidate.release), &link)?;
                return Kernel::at(&directory);
            }
            Err(error) => {
                say!("{error:#}");
                problem.get_or_insert(error);
            }
        }
    }
    Err(problem.unwrap_or_else(|| {
        anyhow::anyhow!("no suite offers a linux-image of {label} for cloud-amd64")
    }))
}

/// A kernel that a suite offers.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Candidate {
    release: String,
    version: Vec<u32>,
    suite: String,
    packages: Vec<String>,
}

/// The kernels among `offers` that `label` means, newest first. Up to 7.0 image and modules are one package, from 7.1 on
/// they are two; a package may be there signed, unsigned, or both.
fn candidates(offers: &[Offer], modules: &[String], label: Label) -> Vec<Candidate> {
    let mut found: Vec<Candidate> = Vec::new();
    for offer in offers {
        let Some((release, is_whole)) = release_of(&offer.package) else {
            continue;
        };
        let Some(version) = released_version(&offer.version) else {
            continue;
        };
        let fits = label == Label::Newest
            || version
                .iter()
                .take(2)
                .map(u32::to_string)
                .collect::<Vec<_>>()
                .join(".")
                == label.name();
        let modules_package = format!("linux-modules-{release}");
        let is_split = modules.contains(&modules_package);
        // With the files in two packages the image is an empty one, and without a third number it is a mere pointer.
        if !fits || is_whole == is_split || release.split(['.', '-', '+']).nth(2) == Some("cloud") {
            continue;
        }
        let mut packages = vec![format!("{}={}", offer.package, offer.version)];
        if is_split {
            packages.push(format!("{modules_package}={}", offer.version));
        }
        found.push(Candidate {
            release: release.to_owned(),
            version,
            suite: offer.suite.clone(),
            packages,
        });
    }
    let is_unsigned = |candidate: &Candidate| candidate.packages[0].contains("unsigned");
    found.sort_by(|a, b| {
        b.version
            .cmp(&a.version)
            .then(is_unsigned(a).cmp(&is_unsigned(b)))
            .then(b.release.cmp(&a.release))
    });
    found
}

/// The release (`6.1.0-56-cloud-amd64`) a package holds the image of, and whether it would hold the modules too.
fn release_of(package: &str) -> Option<(&str, bool)> {
    if let Some(rest) = package.strip_prefix("linux-image-") {
        return Some((rest.strip_suffix("-unsigned").unwrap_or(rest), true));
    }
    let rest = package.strip_prefix("linux-binary-")?;
    Some((rest.strip_prefix("unsigned-").unwrap_or(rest), false))
}

/// The numbers of a package version, unless it is that of a release candidate.
fn released_version(version: &str) -> Option<Vec<u32>> {
    let upstream = version.rsplit_once('-').map_or(version, |parts| parts.0);
    upstream
        .split('.')
        .map(|number| number.parse().ok())
        .collect()
}

fn fill(apt: &Apt<'_>, candidate: &Candidate, busybox: &Path, into: &Path) -> Result<()> {
    let unpacked = into.join("unpacked");
    apt.unpack(&candidate.packages, &unpacked)?;
    let release = &candidate.release;
    let found = |paths: &[String]| {
        paths
            .iter()
            .map(|path| unpacked.join(path))
            .find(|path| path.exists())
    };
    let image = found(&[
        format!("boot/vmlinuz-{release}"),
        format!("usr/lib/modules/{release}/vmlinuz"),
        format!("usr/lib/modules/{release}/vmlinuz.unsigned"),
    ])
    .with_context(|| format!("{} holds no image", candidate.packages.join(" ")))?;
    let modules = found(&[
        format!("lib/modules/{release}"),
        format!("usr/lib/modules/{release}"),
    ])
    .with_context(|| format!("{} holds no modules", candidate.packages.join(" ")))?;
    fs::rename(image, into.join("vmlinuz"))?;
    let kept = into.join("lib/modules").join(release);
    for part in PARTS {
        keep(
            &modules.join("kernel").join(part),
            &kept.join("kernel").join(part),
        )?;
    }
    for list in ["modules.builtin", "modules.order"] {
        keep(&modules.join(list), &kept.join(list))?;
    }
    let map = unpacked.join(format!("boot/System.map-{release}"));
    keep(&map, &into.join("System.map"))?;
    cache::remove(&unpacked)?;
    decompress(&kept, busybox)?;
    process::show(
        Command::new(busybox)
            .args(["depmod", "-b"])
            .arg(into)
            .arg(release),
    )
    .with_context(|| format!("cannot list the modules of kernel {release}"))
}

/// What of a kernel's modules a guest may need: all of networking, and the devices QEMU or a test gives it.
const PARTS: [&str; 26] = [
    "arch/x86/crypto",
    "crypto",
    "drivers/char/virtio_console.ko*",
    "drivers/net/dummy.ko*",
    "drivers/net/geneve.ko*",
    "drivers/net/ifb.ko*",
    "drivers/net/ipvlan",
    "drivers/net/macvlan.ko*",
    "drivers/net/net_failover.ko*",
    "drivers/net/tun.ko*",
    "drivers/net/veth.ko*",
    "drivers/net/virtio_net.ko*",
    "drivers/net/vrf.ko*",
    "drivers/net/vxlan*",
    "drivers/virtio",
    "lib",
    "net/802",
    "net/8021q",
    "net/bridge",
    "net/core",
    "net/ipv4",
    "net/ipv6",
    "net/llc",
    "net/netfilter",
    "net/packet",
    "net/sched",
];

/// Moves `from`, whose name may end in `*`, to `to`'s directory. One that this kernel does not have is fine.
fn keep(from: &Path, to: &Path) -> Result<()> {
    let (Some(directory), Some(name), Some(target)) = (
        from.parent(),
        from.file_name().and_then(|name| name.to_str()),
        to.parent(),
    ) else {
        bail!("not a file name: {}", from.display());
    };
    let Ok(entries) = fs::read_dir(directory) else {
        return Ok(());
    };
    for entry in entries {
        let entry = entry?.file_name();
        let candidate = entry.to_string_lossy();
        let fits = match name.strip_suffix('*') {
            Some(prefix) => candidate.starts_with(prefix),
            None => candidate == name,
        };
        if fits {
            fs::create_dir_all(target)?;
            fs::rename(directory.join(&entry), target.join(&entry))?;
        }
    }
    Ok(())
}

/// Newer kernels ship their modules compressed; loading them uncompressed needs no tool in the guest.
fn decompress(directory: &Path, busybox: &Path) -> Result<()> {
    let mut packed = Vec::new();
    collect(directory, &mut packed)?;
    packed.retain(|path| path.extension().is_some_and(|extension| extension == "xz"));
    if packed.is_empty() {
        return Ok(());
    }
    let mut unxz = Command::new(busybox)
        .args(["xargs", "-0"])
        .arg(busybox)
        .arg("unxz")
        .stdin(Stdio::piped())
        .spawn()
        .context("cannot run busybox")?;
    if let Some(mut names) = unxz.stdin.take() {
        for path in &packed {
            names.write_all(path.as_os_str().as_encoded_bytes())?;
            names.write_all(&[0])?;
        }
    }
    if !unxz.wait()?.success() {
        bail!("cannot decompress the modules in {}", directory.display());
    }
    Ok(())
}

fn collect(directory: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            collect(&entry.path(), files)?;
        } else {
            files.push(entry.path());
        }
    }
    Ok(())
}

fn replace_link(target: &Path, link: &Path) -> Result<()> {
    let fresh = link.with_extension(format!("new-{}", std::process::id()));
    if let Some(parent) = link.parent() {
        fs::create_dir_all(parent)?;
    }
    cache::remove_file(&fresh)?;
    symlink(target, &fresh)?;
    fs::rename(&fresh, link)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offer(package: &str, version: &str, suite: &str) -> Offer {
        Offer {
            package: package.into(),
            version: version.into(),
            suite: suite.into(),
        }
    }

    fn first(offers: &[Offer], modules: &[&str], label: Label) -> Option<Vec<String>> {
        let modules: Vec<String> = modules.iter().map(|&name| name.to_owned()).collect();
        candidates(offers, &modules, label)
            .into_iter()
            .next()
            .map(|candidate| candidate.packages)
    }

    #[test]
    fn takes_the_newest_signed_image() {
        let offers = [
            offer(
                "linux-image-5.10.0-45-cloud-amd64",
                "5.10.260-1",
                "bullseye-security",
            ),
            offer(
                "linux-image-5.10.0-46-cloud-amd64-unsigned",
                "5.10.262-1",
                "bullseye-security",
            ),
            offer(
                "linux-image-5.10.0-46-cloud-amd64",
                "5.10.262-1",
                "bullseye-security",
            ),
            offer(
                "linux-image-6.1-cloud-amd64",
                "6.1.192-1~deb11u1",
                "bullseye-security",
            ),
        ];
        assert_eq!(
            first(&offers, &[], Label::V5_10),
            Some(vec!["linux-image-5.10.0-46-cloud-amd64=5.10.262-1".into()])
        );
        assert_eq!(first(&offers, &[], Label::V6_1), None);
    }

    #[test]
    fn takes_image_and_modules_from_two_packages_where_they_are_split() {
        let offers = [
            offer("linux-image-7.2.13+deb14-cloud-amd64", "7.2.13-1", "sid"),
            offer("linux-binary-7.2.13+deb14-cloud-amd64", "7.2.13-1", "sid"),
            offer(
                "linux-binary-unsigned-7.3.4+deb13-cloud-amd64",
                "7.3.4-1~bpo13+1",
                "trixie-backports",
            ),
            offer(
                "linux-binary-7.4-cloud-amd64",
                "7.4~rc7-1~exp1",
                "experimental",
            ),
        ];
        let modules = [
            "linux-modules-7.2.13+deb14-cloud-amd64",
            "linux-modules-7.3.4+deb13-cloud-amd64",
            "linux-modules-7.4-cloud-amd64",
        ];
        assert_eq!(
            first(&offers, &modules, Label::V7_2),
            Some(vec![
                "linux-binary-7.2.13+deb14-cloud-amd64=7.2.13-1".into(),
                "linux-modules-7.2.13+deb14-cloud-amd64=7.2.13-1".into(),
            ])
        );
        assert_eq!(
            first(&offers, &modules, Label::Newest),
            Some(vec![
                "linux-binary-unsigned-7.3.4+deb13-cloud-amd64=7.3.4-1~bpo13+1".into(),
                "linux-modules-7.3.4+deb13-cloud-amd64=7.3.4-1~bpo13+1".into(),
            ])
        );
    }
}
