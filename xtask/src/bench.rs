//! `cargo xtask bench`: figures, for people. No test depends on one.

use std::time::Duration;

use anyhow::{Result, bail};

use crate::build;
use crate::cache::Cache;
use crate::output::say;
use crate::setup::kernels::Label;
use crate::test::guest_tests;
use crate::vm::Guest;

/// Measures and prints
#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Subcommand)]
enum What {
    /// Executed instructions per short connection through IPVS, without the agent and with it
    Cost {
        /// The kernel that executes them
        #[arg(long, default_value = "6.1")]
        kernel: Label,
    },
}

/// Runs `cargo xtask bench`.
pub(crate) fn run(args: &Args) -> Result<()> {
    let cache = Cache::open()?;
    match args.what {
        What::Cost { kernel } => cost(&cache, kernel),
    }
}

/// In a guest whose clock counts instructions, one nanosecond each.
fn cost(cache: &Cache, kernel: Label) -> Result<()> {
    build::program(cache)?;
    let tests = guest_tests(cache)?;
    say!("kernel {kernel}, one processor, guest time is executed instructions");
    let program = tests.path.clone();
    let guest = Guest {
        icount: true,
        cpus: 1,
        files: vec![tests],
        load: vec!["ip_vs".into(), "ip_vs_rr".into()],
        deadline: Some(Duration::from_secs(15 * 60)),
        ..Guest::new(
            kernel,
            [
                program.as_str(),
                "--ignored",
                "--nocapture",
                "--test-threads=1",
                "cost::",
            ],
        )
    };
    let outcome = guest.stream(cache)?;
    if outcome.status() != 0 {
        bail!("the measurement ended with status {}", outcome.status());
    }
    Ok(())
}
