//! Compiles the eBPF programs into the object that the agent embeds.

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result, bail};
use aya_build::{Package, Toolchain};

/// Set in the second run of this script.
const PREPARED: &str = "IPVS_GUARD_BUILD_PREPARED";

fn main() -> ExitCode {
    let result = if env::var_os(PREPARED).is_some() {
        compile()
    } else {
        prepare()
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Runs this script once more with the environment that compiling for eBPF needs.
fn prepare() -> Result<()> {
    for variable in ["IPVS_GUARD_CACHE", "XDG_CACHE_HOME", "PATH"] {
        println!("cargo:rerun-if-env-changed={variable}");
    }
    let linker = linker()?;
    println!("cargo:rerun-if-changed={}", linker.display());
    let status = Command::new(env::current_exe()?)
        .env(PREPARED, "1")
        .env("CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER", linker)
        // The stable compiler takes `-Z build-std` with this, and only the kernel's side is built so.
        .env("RUSTC_BOOTSTRAP", "1")
        // The object's type information names source files; the build directory must not be among them.
        .env("CARGO_UNSTABLE_TRIM_PATHS", "true")
        .env("CARGO_PROFILE_RELEASE_TRIM_PATHS", "all")
        // aya-build makes a warning of every line that cargo prints.
        .env("CARGO_TERM_QUIET", "true")
        .status()
        .context("cannot run the build script once more")?;
    if !status.success() {
        bail!("the eBPF programs do not compile");
    }
    Ok(())
}

fn compile() -> Result<()> {
    let manifest = env::var("CARGO_MANIFEST_DIR").context("CARGO_MANIFEST_DIR")?;
    let programs = format!("{manifest}/../ipvs-guard-ebpf");
    println!("cargo:rerun-if-changed={manifest}/../ipvs-guard-common");
    let toolchain = env::var("RUSTUP_TOOLCHAIN").unwrap_or_else(|_| "stable".into());
    aya_build::build_ebpf(
        [Package {
            name: "ipvs-guard-ebpf",
            root_dir: &programs,
            ..Package::default()
        }],
        Toolchain::Custom(&toolchain),
    )
}

/// The bpf-linker that `cargo xtask setup` built for this compiler, else one on the path.
fn linker() -> Result<PathBuf> {
    let rustc = env::var_os("RUSTC").context("RUSTC")?;
    let about = Command::new(&rustc)
        .arg("-vV")
        .output()
        .context("cannot run rustc")?;
    let about = String::from_utf8_lossy(&about.stdout).into_owned();
    let field = |name: &str| {
        about
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .map_or("", str::trim)
    };
    let commit = field("commit-hash:");
    let compiler = format!(
        "rustc-{}-{}",
        field("release:"),
        commit.get(..9).unwrap_or(commit)
    );
    let own = cache()
        .and_then(|cache| cache.join("bpf-linker").read_dir().ok())
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().ends_with(&compiler))
        .map(|entry| entry.path().join("bin/bpf-linker"));
    let path = env::var_os("PATH").unwrap_or_default();
    let others: Vec<PathBuf> = env::split_paths(&path)
        .map(|folder| folder.join("bpf-linker"))
        .collect();
    own.chain(others)
        .find(|linker| linker.exists())
        .context("bpf-linker is missing: run `cargo xtask setup`")
}

/// The cache directory, chosen as xtask chooses it.
fn cache() -> Option<PathBuf> {
    let variable = |name| env::var_os(name).filter(|value| !value.is_empty());
    variable("IPVS_GUARD_CACHE")
        .map(PathBuf::from)
        .or_else(|| variable("XDG_CACHE_HOME").map(|home| Path::new(&home).join("ipvs-guard")))
        .or_else(|| variable("HOME").map(|home| Path::new(&home).join(".cache/ipvs-guard")))
}
