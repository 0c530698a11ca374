//! Brings a machine with nothing but Rust to where everything builds and runs.

pub(crate) mod apt;
pub(crate) mod helm;
pub(crate) mod kernels;
pub(crate) mod packages;
pub(crate) mod rust;
pub(crate) mod tools;

use anyhow::Result;

use crate::cache::Cache;
use crate::output::say;
use apt::Apt;
use kernels::Label;
use rust::Compiler;

/// Brings what the other commands need into a cache; changes no package source of this machine
#[derive(clap::Args)]
pub(crate) struct Args {
    /// What to bring; everything when left out
    what: Vec<Piece>,
    /// Read Debian's package lists anew and bring newer versions of the kernels
    #[arg(long)]
    renew: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Piece {
    /// What the program is built with: a C linker, the standard library's source, bpf-linker
    Rust,
    /// An emulator that boots the guests, and the tools in them
    Qemu,
    /// The kernels that the guests run
    Kernels,
    /// The receivers that sinks are tested against; prints where they are
    Receivers,
}

/// Runs `cargo xtask setup`.
pub(crate) fn run(args: &Args) -> Result<()> {
    let cache = Cache::open()?;
    let wanted = |piece| args.what.is_empty() || args.what.contains(&piece);
    if args.renew {
        Apt::forget(&cache)?;
    }
    if wanted(Piece::Rust) {
        let compiler = toolchain(&cache)?;
        say!(
            "there is Rust {}, its source and bpf-linker",
            compiler.release
        );
    }
    if wanted(Piece::Qemu) {
        tools::qemu(&cache)?;
        tools::busybox(&cache)?;
        say!("there are QEMU and busybox");
    }
    if wanted(Piece::Kernels) {
        for label in Label::ALL {
            if args.renew {
                kernels::forget(&cache, label)?;
            }
            let kernel = kernels::kernel(&cache, label)?;
            say!("there is kernel {label}: {}", kernel.release);
        }
    }
    if wanted(Piece::Receivers) {
        say!(
            "there are the receivers, at {}",
            crate::test::receivers(&cache)?.display()
        );
        say!("there is Helm, at {}", helm::helm(&cache)?.display());
    }
    Ok(())
}

/// Everything that building the program needs.
pub(crate) fn toolchain(cache: &Cache) -> Result<Compiler> {
    let compiler = Compiler::find()?;
    rust::linker()?;
    rust::source(cache, &compiler)?;
    rust::bpf_linker(cache, &compiler)?;
    Ok(compiler)
}
