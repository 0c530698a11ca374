//! Builds the static release binary, the same bytes wherever it is built.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::cache::Cache;
use crate::output::say;
use crate::process;
use crate::setup;
use crate::setup::rust::Compiler;

const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Builds the static release binary at target/dist/ipvs-guard
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Build the last commit twice, in two clones with two cargo homes, and compare the bytes
    #[arg(long)]
    check_reproducible: bool,
}

/// Runs `cargo xtask build`.
pub(crate) fn run(args: &Args) -> Result<()> {
    let cache = Cache::open()?;
    if args.check_reproducible {
        check_reproducible(&cache)
    } else {
        let program = program(&cache)?;
        say!("built {}", program.display());
        Ok(())
    }
}

/// Builds the program in this workspace and returns where it is.
pub(crate) fn program(cache: &Cache) -> Result<PathBuf> {
    let compiler = setup::toolchain(cache)?;
    Place::here()?.build(&compiler)
}

/// `cargo SUBCOMMAND` in this workspace for the target that the program is
/// built for, with the same flags: what one command has compiled serves the next.
pub(crate) fn cargo(cache: &Cache, subcommand: &str) -> Result<Command> {
    let compiler = setup::toolchain(cache)?;
    let place = Place::here()?;
    let mut command = Command::new("cargo");
    command
        .args([subcommand, "--target", TARGET])
        .current_dir(&place.workspace)
        .env("CARGO_TARGET_DIR", &place.target)
        .env("CARGO_ENCODED_RUSTFLAGS", place.flags(&compiler));
    Ok(command)
}

/// The root of the workspace.
pub(crate) fn workspace() -> PathBuf {
    // Set by cargo when it runs xtask, so that a binary built in one clone works on the one it is run in.
    let manifest = env::var_os("CARGO_MANIFEST_DIR")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")), PathBuf::from);
    manifest
        .parent()
        .map_or(manifest.clone(), Path::to_path_buf)
}

/// Where a build happens; no path of it gets into the program.
struct Place {
    workspace: PathBuf,
    cargo_home: PathBuf,
    target: PathBuf,
}

impl Place {
    fn here() -> Result<Self> {
        let target = env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
        Ok(Self {
            workspace: workspace(),
            cargo_home: cargo_home()?,
            target: target.unwrap_or_else(|| workspace().join("target")),
        })
    }

    fn build(&self, compiler: &Compiler) -> Result<PathBuf> {
        process::show(
            Command::new("cargo")
                .args(["build", "--release", "--package", "ipvs-guard"])
                .args(["--target", TARGET])
                .current_dir(&self.workspace)
                .env("CARGO_HOME", &self.cargo_home)
                .env("CARGO_TARGET_DIR", &self.target)
                .env("CARGO_ENCODED_RUSTFLAGS", self.flags(compiler)),
        )
        .context("cannot build ipvs-guard")?;
        let built = self.target.join(TARGET).join("release/ipvs-guard");
        let dist = self.workspace.join("target/dist");
        fs::create_dir_all(&dist)?;
        // A copy that is renamed: a guest may be reading the former program.
        let fresh = dist.join(format!("ipvs-guard.{}", std::process::id()));
        fs::copy(&built, &fresh).with_context(|| format!("cannot copy {}", built.display()))?;
        let program = dist.join("ipvs-guard");
        fs::rename(&fresh, &program)?;
        Ok(program)
    }

    fn flags(&self, compiler: &Compiler) -> OsString {
        let source = compiler.source();
        // The last one that fits a path wins, so the more special ones come later.
        let names: [(&Path, String); 4] = [
            (&self.workspace, "/ipvs-guard".into()),
            (&self.target, "/ipvs-guard/target".into()),
            (&self.cargo_home, "/cargo".into()),
            (&source, format!("/rustc/{}", compiler.commit)),
        ];
        let mut flags = OsString::from("-Ctarget-feature=+crt-static");
        for (path, name) in names {
            flags.push("\u{1f}--remap-path-prefix=");
            flags.push(path);
            flags.push("=");
            flags.push(name);
        }
        flags
    }
}

fn cargo_home() -> Result<PathBuf> {
    match env::var_os("CARGO_HOME").filter(|home| !home.is_empty()) {
        Some(home) => Ok(home.into()),
        None => env::var_os("HOME")
            .map(|home| Path::new(&home).join(".cargo"))
            .context("no cargo home: set CARGO_HOME or HOME"),
    }
}

fn check_reproducible(cache: &Cache) -> Result<()> {
    let compiler = setup::toolchain(cache)?;
    let directory = tempfile::tempdir().context("cannot create a temporary directory")?;
    let own_home = cargo_home()?;
    let mut sums = Vec::new();
    for name in ["one", "another/and/deeper"] {
        let place = Place {
            workspace: directory.path().join(name).join("clone"),
            cargo_home: directory.path().join(name).join("cargo"),
            target: directory.path().join(name).join("clone/target"),
        };
        process::show(
            Command::new("git")
                .args(["clone", "--quiet", "--no-hardlinks"])
                .arg(workspace())
                .arg(&place.workspace),
        )?;
        borrow_home(&own_home, &place.cargo_home)?;
        say!("building in {}", place.workspace.display());
        let program = place.build(&compiler)?;
        let sum = process::capture(Command::new("sha256sum").arg(&program))?;
        let sum = sum.split(' ').next().unwrap_or_default().to_owned();
        say!("{sum}  {name}");
        sums.push(sum);
    }
    if sums[0] != sums[1] {
        bail!("two builds of one commit differ");
    }
    say!("two builds of one commit are the same bytes");
    Ok(())
}

/// Another path to the contents of the cargo home `own`, so that nothing is downloaded twice.
fn borrow_home(own: &Path, other: &Path) -> Result<()> {
    fs::create_dir_all(other)?;
    for entry in fs::read_dir(own).with_context(|| format!("cannot read {}", own.display()))? {
        let entry = entry?;
        symlink(entry.path(), other.join(entry.file_name()))?;
    }
    Ok(())
}
