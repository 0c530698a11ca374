//! Debian packages of any suite, without touching the machine's own package sources, lists or installed packages.

use std::fs;
use std::io::{self, IsTerminal as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, bail};

use crate::cache::Cache;
use crate::output::say;
use crate::process;

const KEYRINGS: [&str; 2] = [
    "/usr/share/keyrings/debian-archive-keyring.gpg",
    "/usr/share/keyrings/debian-archive-keyring.pgp",
];
const LIFETIME: Duration = Duration::from_secs(24 * 60 * 60);

/// One version of a package that some suite offers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Offer {
    /// Name of the package.
    pub(crate) package: String,
    /// Its Debian version.
    pub(crate) version: String,
    /// The suite that has it, such as `trixie-backports`.
    pub(crate) suite: String,
}

/// An APT state of our own in the cache.
pub(crate) struct Apt<'a> {
    cache: &'a Cache,
    root: PathBuf,
}

impl<'a> Apt<'a> {
    /// Opens the state; its package lists are read once a day.
    pub(crate) fn open(cache: &'a Cache) -> Result<Self> {
        let apt = Self {
            cache,
            root: cache.path("apt"),
        };
        let _lock = cache.lock("apt")?;
        if !apt.lists_are_fresh() {
            apt.configure(&machine_keyring()?)?;
            apt.update()?;
        }
        Ok(apt)
    }

    /// Forgets the package lists, so that the next [`Apt::open`] reads them anew.
    pub(crate) fn forget(cache: &Cache) -> Result<()> {
        let stamp = cache.path("apt/updated");
        if stamp.exists() {
            fs::remove_file(stamp)?;
        }
        Ok(())
    }

    /// All versions of all packages whose name matches the regular expression `pattern`.
    pub(crate) fn search(&self, pattern: &str) -> Result<Vec<Offer>> {
        let found =
            process::capture(
                self.command("apt-cache")
                    .args(["search", "--names-only", pattern]),
            )?;
        let names: Vec<&str> = found
            .lines()
            .filter_map(|line| line.split(' ').next())
            .collect();
        self.versions(&names)
    }

    /// All versions of the packages `names`, newest first for each package.
    pub(crate) fn versions(&self, names: &[&str]) -> Result<Vec<Offer>> {
        if names.is_empty() {
            return Ok(Vec::new());
        }
        let table = process::capture(self.command("apt-cache").arg("madison").args(names))?;
        Ok(table.lines().filter_map(parse_madison).collect())
    }

    /// Downloads the given packages (`name=version`) and unpacks them all below `into`.
    pub(crate) fn unpack(&self, packages: &[String], into: &Path) -> Result<()> {
        let downloads = tempfile::tempdir_in(&self.root)?;
        process::show(
            self.command("apt-get")
                .args(quiet())
                .arg("download")
                .args(packages)
                .current_dir(downloads.path()),
        )
        .with_context(|| format!("cannot download {}", packages.join(" ")))?;
        fs::create_dir_all(into)?;
        for entry in fs::read_dir(downloads.path())? {
            let package = entry?.path();
            process::show(Command::new("dpkg-deb").arg("-x").arg(&package).arg(into))
                .with_context(|| format!("cannot unpack {}", package.display()))?;
        }
        Ok(())
    }

    /// The packages that this machine lacks for `package` of `suite` to run, itself included, as `name=version`.
    pub(crate) fn lacking(&self, package: &str, suite: &str) -> Result<Vec<String>> {
        self.plan(&[package], suite, Path::new("/var/lib/dpkg/status"))
    }

    /// The packages `names` of `suite` and all that they depend on, as `name=version`.
    pub(crate) fn complete(&self, names: &[&str], suite: &str) -> Result<Vec<String>> {
        self.plan(names, suite, &self.root.join("status"))
    }

    /// What would be installed for `names` on top of what `status` says is installed.
    fn plan(&self, names: &[&str], suite: &str, status: &Path) -> Result<Vec<String>> {
        let base = suite.trim_end_matches("-backports");
        let suites = [base, suite, &format!("{base}-security")];
        let sources = fs::read_to_string(self.root.join("sources.list"))?;
        let own: String = sources
            .lines()
            .filter(|line| {
                line.split(' ')
                    .rev()
                    .nth(1)
                    .is_some_and(|name| suites.contains(&name))
            })
            .map(|line| format!("{line}\n"))
            .collect();
        let list = tempfile::NamedTempFile::with_suffix_in(".list", &self.root)?;
        fs::write(list.path(), own)?;
        let plan = process::capture(
            self.command("apt-get")
                .arg("-o")
                .arg(format!("Dir::Etc::sourcelist={}", list.path().display()))
                .arg("-o")
                .arg(format!("Dir::State::status={}", status.display()))
                // The binary cache is for the whole list of suites.
                .args(["-o", "Dir::Cache::pkgcache="])
                .args(["-o", "Dir::Cache::srcpkgcache="])
                .args(["--simulate", "--no-install-recommends"])
                .args(["--target-release", suite, "install"])
                .args(names),
        )?;
        Ok(plan.lines().filter_map(parse_install).collect())
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.arg("-c").arg(self.root.join("apt.conf"));
        command.env("LC_ALL", "C");
        command
    }

    fn lists_are_fresh(&self) -> bool {
        let stamp = fs::metadata(self.root.join("updated")).and_then(|stamp| stamp.modified());
        stamp.is_ok_and(|stamp| {
            SystemTime::now()
                .duration_since(stamp)
                .is_ok_and(|age| age < LIFETIME)
        })
    }

    fn configure(&self, keyring: &Path) -> Result<()> {
        let root = self.root.display();
        for directory in ["lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(self.root.join(directory))?;
        }
        fs::write(self.root.join("status"), "")?;
        let user = process::capture(Command::new("id").arg("-un"))?;
        let user = user.trim();
        fs::write(
            self.root.join("apt.conf"),
            format!(
                r#"Dir::State "{root}";
Dir::State::lists "{root}/lists";
Dir::State::status "{root}/status";
Dir::Cache "{root}/cache";
Dir::Cache::pkgcache "pkgcache.bin";
Dir::Cache::srcpkgcache "srcpkgcache.bin";
Dir::Etc::sourcelist "{root}/sources.list";
Dir::Etc::sourceparts "/dev/null";
Dir::Etc::preferences "/dev/null";
Dir::Etc::preferencesparts "/dev/null";
APT::Default-Release "";
APT::Sandbox::User "{user}";
Acquire::Languages "none";
Acquire::IndexTargets::deb::DEP-11::DefaultEnabled "false";
Acquire::IndexTargets::deb::CNF::DefaultEnabled "false";
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
"#
            ),
        )?;
        fs::write(self.root.join("sources.list"), sources(keyring)?)?;
        Ok(())
    }

    fn update(&self) -> Result<()> {
        say!("reading Debian's package lists (about 50 MB, once a day)");
        let mut problems = self.update_once()?;
        let mut keyring = PathBuf::new();
        // Each keyring verifies the suites of the next release, and with them the next keyring.
        while problems.iter().any(|line| is_key_problem(line)) {
            let newer = self.newer_keyring()?;
            if newer == keyring {
                break;
            }
            say!(
                "the Debian keyring is too old for some suites: taking the newest one it verifies"
            );
            self.configure(&newer)?;
            keyring = newer;
            problems = self.update_once()?;
        }
        // What is missing shows when a package is asked for; most pieces come from suites that were read.
        if let Some(problem) = problems.first() {
            say!("some package lists could not be read: {problem}");
        }
        if self.versions(&["busybox-static"])?.is_empty() {
            bail!("no package list could be read: `cargo xtask setup` needs Debian's archive");
        }
        fs::write(self.root.join("updated"), "")?;
        Ok(())
    }

    fn update_once(&self) -> Result<Vec<String>> {
        let output = self
            .command("apt-get")
            .args(quiet())
            .arg("update")
            .stdin(Stdio::null())
            .stdout(io::stderr())
            .stderr(Stdio::piped())
            .spawn()
            .and_then(Child::wait_with_output)
            .context("cannot run apt-get: `cargo xtask setup` needs a Debian machine")?;
        let errors = String::from_utf8_lossy(&output.stderr);
        Ok(errors
            .lines()
            .filter(|line| line.starts_with("E:") || line.starts_with("W:"))
            .map(str::to_owned)
            .collect())
    }

    fn newer_keyring(&self) -> Result<PathBuf> {
        let offers = self.versions(&["debian-archive-keyring"])?;
        let newest = offers.first().context(
            "no suite that this machine can verify has the package debian-archive-keyring",
        )?;
        let piece = format!("keyring/{}", newest.version);
        let unpacked = self.cache.piece(&piece, |into| {
            self.unpack(&[format!("{}={}", newest.package, newest.version)], into)
        })?;
        KEYRINGS
            .iter()
            .map(|path| unpacked.join(path.trim_start_matches('/')))
            .find(|path| path.exists())
            .context("the package debian-archive-keyring holds no keyring")
    }
}

/// APT draws its progress on a terminal, and would list every file elsewhere.
fn quiet() -> Option<&'static str> {
    (!io::stderr().is_terminal()).then_some("-qq")
}

fn machine_keyring() -> Result<PathBuf> {
    KEYRINGS
        .iter()
        .map(PathBuf::from)
        .find(|path| path.exists())
        .context("no Debian keyring on this machine: apt-get install debian-archive-keyring")
}

/// The sources of every suite that a piece may come from, at the mirrors that this machine uses.
fn sources(keyring: &Path) -> Result<String> {
    let targets = process::capture(Command::new("apt-get").args([
        "indextargets",
        "--format",
        "$(CREATED_BY) $(COMPONENT) $(RELEASE) $(REPO_URI)",
    ]))?;
    let mut archive = None;
    let mut security = None;
    for target in targets.lines() {
        let fields: Vec<&str> = target.split(' ').collect();
        let ["Packages", "main", release, uri] = fields[..] else {
            continue;
        };
        if release.ends_with("-security") {
            security.get_or_insert(uri.to_owned());
        } else if !release.contains('-') {
            archive.get_or_insert(uri.to_owned());
        }
    }
    let Some(archive) = archive else {
        bail!(
            "this machine has no Debian package source to take packages from: see sources.list(5)"
        );
    };
    let keyring = keyring.display();
    let mut list = String::new();
    let mut add = |uri: &str, suite: &str, options: &str| {
        list += &format!("deb [arch=amd64 signed-by={keyring}{options}] {uri} {suite} main\n");
    };
    for suite in [
        "bullseye",
        "bookworm",
        "bookworm-backports",
        "trixie",
        "trixie-backports",
    ] {
        add(&archive, suite, "");
    }
    // The signatures of these run out, where a mirror is behind and where a suite is past its end of life. What comes
    // from them for good is kernels, and those run in guests only.
    let lasting = " check-valid-until=no";
    for suite in ["forky", "sid"] {
        add(&archive, suite, lasting);
    }
    match security {
        Some(security) => {
            for suite in ["bullseye-security", "bookworm-security", "trixie-security"] {
                add(&security, suite, lasting);
            }
        }
        None => say!("this machine has no security source: kernels may be older than the newest"),
    }
    Ok(list)
}

fn is_key_problem(line: &str) -> bool {
    ["NO_PUBKEY", "is not signed", "Missing key", "public key"]
        .iter()
        .any(|sign| line.contains(sign))
}

/// Reads `package | version | address suite/component architecture Packages`.
fn parse_madison(line: &str) -> Option<Offer> {
    let mut columns = line.split('|').map(str::trim);
    let (package, version, place) = (columns.next()?, columns.next()?, columns.next()?);
    let mut place = place.split(' ');
    let suite = place.nth(1)?.split('/').next()?;
    (place.next_back()? == "Packages").then(|| Offer {
        package: package.to_owned(),
        version: version.to_owned(),
        suite: suite.to_owned(),
    })
}

/// Reads `Inst package [installed] (version origin [architecture])`.
fn parse_install(line: &str) -> Option<String> {
    let rest = line.strip_prefix("Inst ")?;
    let package = rest.split(' ').next()?;
    let version = rest.split_once('(')?.1.split(' ').next()?;
    Some(format!("{package}={version}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_a_line_of_madison() {
        let line = " qemu-system-x86 | 1:10.0.2+ds-2 | https://mirror.example/debian trixie/main amd64 Packages";
        assert_eq!(
            parse_madison(line),
            Some(Offer {
                package: "qemu-system-x86".into(),
                version: "1:10.0.2+ds-2".into(),
                suite: "trixie".into(),
            })
        );
        assert_eq!(
            parse_madison("qemu | 1 | https://mirror.example/debian trixie/main Sources"),
            None
        );
    }

    #[test]
    fn reads_a_planned_installation() {
        assert_eq!(
            parse_install("Inst libfdt1 [1.5] (1.6.1-4+b1 Debian:12.15/oldstable [amd64])"),
            Some("libfdt1=1.6.1-4+b1".into())
        );
        assert_eq!(
            parse_install("Conf libfdt1 (1.6.1-4+b1 Debian [amd64])"),
            None
        );
    }
}
