//! `cargo xtask bench`: figures, for people. No test depends on one.

use std::time::Duration;

use anyhow::{Result, bail};

use crate::build;
use crate::cache::Cache;
use crate::output::say;
use crate::process;
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
    /// How long the stale entries of a whole table take to be healed, beside reading the table
    Heal {
        /// The kernel that has them
        #[arg(long, default_value = "6.1")]
        kernel: Label,
    },
    /// Events a second from the ring buffer's records to NDJSON in a file, on one CPU of this
    /// machine, and what memory they take
    Pipeline,
}

/// Runs `cargo xtask bench`.
pub(crate) fn run(args: &Args) -> Result<()> {
    let cache = Cache::open()?;
    match args.what {
        What::Cost { kernel } => {
            say!("kernel {kernel}, one processor, guest time is executed instructions");
            let counted = Guest {
                icount: true,
                cpus: 1,
                ..Guest::new(kernel, Vec::<String>::new())
            };
            measure(&cache, counted, "cost::")
        }
        What::Heal { kernel } => {
            say!("kernel {kernel}");
            let guest = Guest::new(kernel, Vec::<String>::new());
            measure(&cache, guest, "heal_table::pass")
        }
        What::Pipeline => process::show_all(build::cargo(&cache, "bench")?.args([
            "--package",
            "ipvs-guard",
            "--bench",
            "pipeline",
        ])),
    }
}

/// Runs the measurements whose names begin so.
fn measure(cache: &Cache, guest: Guest, measurements: &str) -> Result<()> {
    build::program(cache)?;
    let tests = guest_tests(cache)?;
    let command = [
        &tests.path,
        "--ignored",
        "--nocapture",
        "--test-threads=1",
        measurements,
    ];
    let guest = Guest {
        command: command.map(str::to_owned).to_vec(),
        files: vec![tests],
        load: vec!["ip_vs".into(), "ip_vs_rr".into()],
        deadline: Some(Duration::from_secs(15 * 60)),
        ..guest
    };
    let outcome = guest.stream(cache)?;
    if outcome.status() != 0 {
        bail!("the measurement ended with status {}", outcome.status());
    }
    Ok(())
}
