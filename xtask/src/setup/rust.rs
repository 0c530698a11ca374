//! The compiler, its linker, the source of its standard library, and the linker for eBPF.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::cache::{self, Cache};
use crate::output::say;
use crate::process;
use crate::setup::apt::Apt;

/// The release that everything is built with; aya 0.14 and the pinned eBPF crates go with it.
const RELEASE: &str = "1.95";
const BPF_LINKER: &str = "0.13.0";

/// The compiler that cargo runs here.
pub(crate) struct Compiler {
    /// Its version, such as `1.95.0`.
    pub(crate) release: String,
    /// The commit it was built from.
    pub(crate) commit: String,
    /// Where its libraries are.
    pub(crate) sysroot: PathBuf,
    llvm_major: String,
}

impl Compiler {
    /// Asks the compiler about itself.
    pub(crate) fn find() -> Result<Self> {
        let about = process::capture(Command::new("rustc").arg("-vV"))?;
        let sysroot = process::capture(Command::new("rustc").args(["--print", "sysroot"]))?;
        let field = |name: &str| {
            about
                .lines()
                .find_map(|line| line.strip_prefix(name))
                .map(str::trim)
                .with_context(|| format!("rustc -vV prints no {name}"))
        };
        let release = field("release:")?;
        if !release.starts_with(&format!("{RELEASE}.")) {
            bail!(
                "this is Rust {release} but the project is built with {RELEASE}: rustup default {RELEASE}.0"
            );
        }
        let llvm = field("LLVM version:")?;
        Ok(Self {
            release: release.to_owned(),
            commit: field("commit-hash:")?.to_owned(),
            sysroot: PathBuf::from(sysroot.trim()),
            llvm_major: llvm.split('.').next().unwrap_or(llvm).to_owned(),
        })
    }

    /// Where the source of the standard library is to be found.
    pub(crate) fn source(&self) -> PathBuf {
        self.sysroot.join("lib/rustlib/src/rust")
    }
}

/// Makes sure that there is a C linker, which Rust uses for every program.
pub(crate) fn linker() -> Result<()> {
    if !process::exists("cc") {
        bail!("no C linker (cc) on this machine: apt-get install gcc libc6-dev");
    }
    Ok(())
}

/// Makes sure that the source of the standard library is there, which the eBPF programs' `core` is built from.
pub(crate) fn source(cache: &Cache, compiler: &Compiler) -> Result<()> {
    let place = compiler.source();
    let is_there = || place.join("library/core/src/lib.rs").exists();
    if is_there() {
        return Ok(());
    }
    say!("bringing the source of Rust's standard library");
    if process::exists("rustup")
        && process::capture(Command::new("rustup").args(["component", "add", "rust-src"])).is_ok()
        && is_there()
    {
        return Ok(());
    }
    let unpacked = cache.piece(&format!("rust-src/{}", compiler.release), |into| {
        let apt = Apt::open(cache)?;
        let offers = apt.versions(&["rust-src"])?;
        let offer = offers
            .iter()
            .find(|offer| offer.version.starts_with(&format!("{}+", compiler.release)))
            .with_context(|| {
                format!(
                    "rustup cannot bring rust-src, and Debian has none of Rust {}: rustup component add rust-src",
                    compiler.release
                )
            })?;
        say!("taking rust-src {} from {}", offer.version, offer.suite);
        let whole = into.join("whole");
        apt.unpack(&[format!("rust-src={}", offer.version)], &whole)?;
        let library = whole.join(format!("usr/src/rustc-{}/library", compiler.release));
        fs::rename(&library, into.join("library"))
            .with_context(|| format!("the package rust-src holds no {}", library.display()))?;
        cache::remove(&whole)
    })?;
    link(&unpacked, &place).with_context(|| {
        format!(
            "cannot link the source of the standard library to {}",
            place.display()
        )
    })
}

/// The folder of a bpf-linker that uses this compiler's own LLVM. `ipvs-guard/build.rs` looks in the same place.
pub(crate) fn bpf_linker(cache: &Cache, compiler: &Compiler) -> Result<PathBuf> {
    let commit = compiler.commit.get(..9).unwrap_or(&compiler.commit);
    let piece = format!(
        "bpf-linker/{BPF_LINKER}-rustc-{}-{commit}",
        compiler.release
    );
    let folder = cache.piece(&piece, |into| {
        say!("building bpf-linker {BPF_LINKER} (about two minutes)");
        let libraries = compiler.sysroot.join("lib");
        let llvm = llvm_library(&libraries, &compiler.llvm_major)?;
        let work = tempfile::tempdir().context("cannot create a temporary directory")?;
        let prefix = work.path().join("llvm");
        fs::create_dir_all(prefix.join("lib"))?;
        symlink(&llvm, prefix.join("lib/libLLVM.so"))?;
        process::show(
            Command::new("cargo")
                .args(["install", "bpf-linker", "--locked", "--version", BPF_LINKER])
                .args(["--no-default-features", "--features"])
                .arg(format!("llvm-{}", compiler.llvm_major))
                .arg("--root")
                .arg(into)
                .arg("--target-dir")
                .arg(work.path().join("target"))
                .current_dir(work.path())
                .env("LLVM_PREFIX", &prefix)
                .env_remove("CARGO_ENCODED_RUSTFLAGS")
                .env(
                    "RUSTFLAGS",
                    format!("-C link-arg=-Wl,-rpath,{}", libraries.display()),
                ),
        )
        .context("cannot build bpf-linker")
    })?;
    Ok(folder.join("bin"))
}

fn llvm_library(libraries: &Path, major: &str) -> Result<PathBuf> {
    let prefix = format!("libLLVM.so.{major}");
    fs::read_dir(libraries)
        .with_context(|| format!("cannot read {}", libraries.display()))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| {
            path.file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with(&prefix))
        })
        .with_context(|| {
            format!(
                "the compiler brings no {prefix} in {}: use the compiler that rustup installs",
                libraries.display()
            )
        })
}

fn link(source: &Path, place: &Path) -> Result<()> {
    if let Some(parent) = place.parent() {
        fs::create_dir_all(parent)?;
    }
    if place.is_symlink() {
        fs::remove_file(place)?;
    } else if place.is_dir() {
        // Left by a package manager that removed the files only; fails if anything is in it.
        fs::remove_dir(place)?;
    }
    symlink(source, place)?;
    Ok(())
}
