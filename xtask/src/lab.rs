//! `cargo xtask lab`: the incident, and `watch` reporting it as it happens.

use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::build;
use crate::cache::Cache;
use crate::output::say;
use crate::setup::kernels::Label;
use crate::vm::Guest;

/// Runs both; the program is the first argument.
const SCRIPT: &str = r#"
program=$1
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
said=$folder/said shown=$folder/shown
mkfifo "$folder/out"
# watch writes to a pipe, so that what it has shown can be looked at: colours have to be asked for.
[ -t 1 ] && export CLICOLOR_FORCE=1
tee "$shown" <"$folder/out" &
copy=$!
"$program" watch --format human >"$folder/out" 2>"$said" &
watch=$!
until grep -q '^ready:' "$said"; do
    kill -0 $watch 2>/dev/null || { cat "$said"; wait $watch; exit $?; }
    sleep 0.1
done
cat "$said"
"$program" lab --action none
status=$?
# The drain ends when the kernel takes the lab's namespaces down, which it does in its own time.
left=300
while grep -q 'drain_started.* 203\.0\.113\.1:80 ' "$shown" &&
    ! grep -q 'drain_ended.* 203\.0\.113\.1:80 ' "$shown"; do
    [ $left -gt 0 ] || { echo "lab: drain_ended did not come within 30 s" >&2; break; }
    kill -0 $watch 2>/dev/null || break
    left=$((left - 1))
    sleep 0.1
done
kill -INT $watch
wait $watch
wait $copy
exit $status
"#;

/// Reproduces the incident and shows watch reporting it: here where this kernel has IPVS, else in a guest
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Boot this kernel, whatever this one has
    #[arg(long)]
    kernel: Option<Label>,
}

/// Runs `cargo xtask lab`.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let cache = Cache::open()?;
    let program = build::program(&cache)?;
    if args.kernel.is_none() && here() {
        say!("this kernel has IPVS: the lab runs on it, in namespaces of its own");
        let status = Command::new("sh")
            .args(["-c", SCRIPT, "lab"])
            .arg(&program)
            .status()
            .context("sh")?;
        return Ok(exit(status.code().unwrap_or(1)));
    }
    let kernel = args.kernel.unwrap_or(Label::V6_12);
    say!("booting kernel {kernel} with real IPVS");
    let guest = Guest {
        load: vec!["ip_vs".into(), "ip_vs_rr".into()],
        deadline: Some(Duration::from_secs(180)),
        ..Guest::new(kernel, ["sh", "-c", SCRIPT, "lab", "/usr/bin/ipvs-guard"])
    };
    Ok(exit(guest.stream(&cache)?.status()))
}

/// Whether this kernel has IPVS loaded and lets this user use it.
fn here() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let root = status
        .lines()
        .any(|line| line.starts_with("Uid:") && line.split_whitespace().nth(2) == Some("0"));
    root && Path::new("/proc/net/ip_vs").exists()
        && Path::new("/sys/bus/event_source/devices/kprobe").exists()
}

fn exit(status: i32) -> ExitCode {
    ExitCode::from(u8::try_from(status).unwrap_or(1))
}
