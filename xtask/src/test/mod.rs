//! `cargo xtask test`: everything that must hold, on this machine and on real IPVS.

mod clock;
mod guest;
mod host;
mod receivers;
mod tally;

use std::process::ExitCode;
use std::time::Instant;

use anyhow::Result;

use crate::cache::Cache;
use crate::output::say;
use crate::setup::kernels::Label;

pub(crate) use guest::program as guest_tests;
pub(crate) use receivers::root as receivers;
use tally::Tally;

/// Runs formatting, lints, host tests, and the tests on real IPVS over the kernel matrix
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only this kernel of the matrix, and nothing on this machine; may be given several times
    #[arg(long)]
    kernel: Vec<Label>,
    /// Guests at once
    #[arg(long, default_value_t = 2)]
    jobs: usize,
    /// Only the tests whose names hold this
    filter: Option<String>,
}

/// Runs `cargo xtask test`; ends with the counts.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let begin = Instant::now();
    let cache = Cache::open()?;
    let mut tally = Tally::default();
    let kernels = if args.kernel.is_empty() {
        if args.filter.is_none() {
            host::run(&cache, &mut tally)?;
            receivers::run(&cache, &mut tally)?;
        }
        Label::ALL.to_vec()
    } else {
        args.kernel.clone()
    };
    guest::run(
        &cache,
        &kernels,
        args.jobs.max(1),
        args.filter.as_deref(),
        &mut tally,
    )?;
    say!(
        "all of it took {:.1} min",
        begin.elapsed().as_secs_f64() / 60.0
    );
    Ok(tally.close())
}
