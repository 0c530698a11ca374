//! The tests on real IPVS: one program, run in a guest of each kernel.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use super::clock::TestClock;
use super::tally::{self, Tally};
use crate::build;
use crate::cache::Cache;
use crate::output::say;
use crate::process;
use crate::setup::kernels::Label;
use crate::vm::{Guest, GuestFile, Outcome};

/// Where the guest has the tests.
const TESTS: &str = "/usr/bin/guest-tests";
/// Kernels on which more is tried, as every field of the layout in a wrong place: the
/// structures are those of 5.10 to 6.18 on the one, and the new ones on the other.
const THOROUGH: [Label; 2] = [Label::V6_1, Label::V7_2];
/// Of more tests than these that failed on a kernel, none is run a second time.
const SECOND: usize = 3;
/// What one guest may take; one that stands still is noticed long before.
const DEADLINE: Duration = Duration::from_secs(50 * 60);

/// Builds the program of tests and returns it as a file for the guest.
pub(crate) fn program(cache: &Cache) -> Result<GuestFile> {
    let output = build::cargo(cache, "test")?
        // Optimised as the program is: an emulated machine is slow enough, and
        // what was compiled for the one serves the other.
        .args([
            "--release",
            "--package",
            "ipvs-guard-tests",
            "--test",
            "guest",
        ])
        .args([
            "--no-run",
            "--quiet",
            "--message-format=json-render-diagnostics",
        ])
        .stderr(Stdio::inherit())
        .output()
        .context("cargo test --no-run")?;
    if !output.status.success() {
        bail!("the tests of the guest do not build");
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let program = executable(&text).context("cargo named no program of tests")?;
    // Most of it is debug information, which would have to be unpacked in each guest.
    let stripped = program.with_extension("stripped");
    let status = Command::new("strip")
        .arg("--strip-debug")
        .arg("-o")
        .args([&stripped, &program])
        .status()
        .context("strip: install binutils")?;
    if !status.success() {
        bail!("strip {}: {status}", program.display());
    }
    Ok(GuestFile {
        source: stripped,
        path: TESTS.into(),
        mode: 0o755,
    })
}

/// The tests whose names hold `filter`, as the program of tests lists them.
fn listed(tests: &GuestFile, filter: &str, more: &[&str]) -> Result<String> {
    process::capture(
        Command::new(&tests.source)
            .args(["--list", "--format", "terse"])
            .args(more)
            .args(["--", filter]),
    )
}

/// The path after `"executable":` in cargo's messages.
fn executable(messages: &str) -> Option<PathBuf> {
    messages.lines().find_map(|line| {
        let rest = line.split("\"executable\":\"").nth(1)?;
        Some(PathBuf::from(rest.split('"').next()?))
    })
}

pub(super) fn run(
    cache: &Cache,
    kernels: &[Label],
    jobs: usize,
    filter: Option<&str>,
    tally: &mut Tally,
) -> Result<()> {
    say!("the program");
    build::program(cache)?;
    say!("the tests on real IPVS");
    let tests = program(cache)?;
    if let Some(filter) = filter {
        // Asked here: to tell it of a guest that ran nothing, one would have to boot on each kernel.
        let all = listed(&tests, filter, &[])?;
        if all == listed(&tests, filter, &["--ignored"])? {
            bail!("no test matches {filter}");
        }
    }
    let queue = Mutex::new(kernels.iter().copied().collect::<VecDeque<_>>());
    let done = Mutex::new(Vec::new());
    let next = || queue.lock().ok().and_then(|mut queue| queue.pop_front());
    let which: Vec<&str> = filter.into_iter().collect();
    thread::scope(|scope| {
        for _ in 0..jobs.min(kernels.len()) {
            scope.spawn(|| {
                while let Some(kernel) = next() {
                    let outcome = boot(cache, kernel, &tests, &which, "");
                    if let Ok(mut done) = done.lock() {
                        done.push((kernel, outcome));
                    }
                }
            });
        }
    });
    let done = done.into_inner().unwrap_or_else(|e| e.into_inner());
    for (kernel, outcome) in done {
        let name = format!("kernel {kernel}");
        match outcome {
            Ok(outcome) => {
                let text = outcome.text();
                tally.tests(&name, &text, outcome.status() == 0);
                calm(tally, &name, &outcome);
                let failed = tally::failures(&text);
                if (1..=SECOND).contains(&failed.len()) {
                    again(cache, kernel, &tests, &failed, tally);
                }
            }
            Err(error) => tally.step(&format!("{name}: {error:#}"), false),
        }
    }
    Ok(())
}

/// Runs what failed on `kernel` once more, now with nothing beside it: guests are mostly
/// emulated, and two at once take time from each other. Where all of it passes, the
/// failures are told as unsteady.
fn again(cache: &Cache, kernel: Label, tests: &GuestFile, failed: &[&str], tally: &mut Tally) {
    say!("kernel {kernel}: once more, alone: {}", failed.join(", "));
    let mut which = vec!["--exact"];
    which.extend(failed);
    let name = format!("kernel {kernel}, alone");
    match boot(cache, kernel, tests, &which, "-alone") {
        Ok(outcome) => {
            calm(tally, &name, &outcome);
            if outcome.status() == 0 && tally::passed(&outcome.text()) == failed.len() as u64 {
                tally.unsteady(&format!("kernel {kernel}"), failed);
            }
        }
        Err(error) => tally.step(&format!("{name}: {error:#}"), false),
    }
}

fn calm(tally: &mut Tally, name: &str, outcome: &Outcome) {
    let calm = outcome.kernel_warnings.is_empty();
    tally.step(&format!("{name}: the kernel warned"), calm);
}

/// Runs the tests `which` names on `kernel` and prints what they measured.
fn boot(
    cache: &Cache,
    kernel: Label,
    tests: &GuestFile,
    which: &[&str],
    run: &str,
) -> Result<Outcome> {
    let mut clock = TestClock::default();
    let mut log = log(&format!("{kernel}{run}")).ok();
    let outcome = guest(kernel, tests, which).run(cache, &mut |bytes| {
        clock.observe(bytes);
        // For whoever wants to watch; the outcome has all of it.
        log = log.take().filter(|mut log| log.write_all(bytes).is_ok());
    });
    report(kernel, &outcome, &clock);
    outcome
}

/// A file that has what the guest prints as it comes.
fn log(name: &str) -> Result<File> {
    let folder = build::workspace().join("target/guests");
    fs::create_dir_all(&folder)?;
    Ok(File::create(folder.join(format!("{name}.log")))?)
}

fn guest(kernel: Label, tests: &GuestFile, which: &[&str]) -> Guest {
    // One after the other: they remove ip_vs, or fill the machine.
    let mut command = vec![TESTS, "--test-threads=1", "--nocapture"];
    command.extend(which);
    let mut tools = Vec::new();
    if THOROUGH.contains(&kernel) {
        command.splice(0..0, ["env", "IPVS_GUARD_THOROUGH=1"]);
        // Sets weights as it does on real nodes.
        tools.push("keepalived".to_owned());
    }
    Guest {
        tools,
        files: vec![tests.clone()],
        wire: true,
        load: vec!["virtio_net".into()],
        deadline: Some(DEADLINE),
        ..Guest::new(kernel, command)
    }
}

/// Prints what a guest's tests measured, and all of it where one failed.
fn report(kernel: Label, outcome: &Result<Outcome>, clock: &TestClock) {
    let Ok(outcome) = outcome else { return };
    say!(
        "kernel {kernel}: exit status {} after {:.0} s{}",
        outcome.status(),
        outcome.elapsed.as_secs_f32(),
        if outcome.restarted {
            ", started twice"
        } else {
            ""
        }
    );
    for (name, took) in clock.slowest() {
        eprintln!("  {kernel}  {:.0} s for {name}", took.as_secs_f32());
    }
    let text = outcome.text();
    for line in text.lines() {
        let failed = outcome.status() != 0;
        let figure = ["exact ", "storm: ", "end: ", "enforce "]
            .iter()
            .find_map(|name| line.find(name));
        match figure {
            _ if failed => eprintln!("  {kernel}  {line}"),
            Some(at) => eprintln!("  {kernel}  {}", &line[at..]),
            None => {}
        }
    }
    for warning in &outcome.kernel_warnings {
        eprintln!("  {kernel}  kernel: {warning}");
    }
}
