//! The guard in the lab: `ipvs-guard enforce`, as anybody would start it, in the
//! node's namespace.

use std::{
    env,
    io::{self, BufRead as _, BufReader},
    os::{
        fd::{AsFd as _, AsRawFd as _},
        unix::ffi::OsStrExt as _,
    },
    process::{Child, Command, Stdio},
    thread,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::{Kind, LabError};
use crate::netns::NetNs;

/// A running guard; ended when dropped. Should the lab be killed, the pipe that
/// nobody reads any more ends it.
#[derive(Debug)]
pub(super) struct Guard(Child);

impl Guard {
    /// Starts this very program in `node`, with the defaults of `enforce` but for
    /// the action, and waits until it is ready.
    pub(super) fn start(node: &NetNs, action: &str) -> Result<Self, LabError> {
        let io = |what: &str| {
            let what = what.to_owned();
            move |source: io::Error| LabError::Io { what, source }
        };
        let netns = format!(
            "/proc/{}/fd/{}",
            std::process::id(),
            node.as_fd().as_raw_fd()
        );
        let mut command = Command::new("/proc/self/exe");
        // What the environment says is meant for the node's agent: its configuration, its
        // address of metrics, its service manager.
        for (name, _) in env::vars_os() {
            let name_is = |prefix: &str| name.as_bytes().starts_with(prefix.as_bytes());
            let of_the_node = ["IPVS_GUARD_", "NOTIFY_SOCKET", "WATCHDOG_"];
            // The kernel is the same.
            if name != "IPVS_GUARD_BTF" && of_the_node.into_iter().any(name_is) {
                command.env_remove(&name);
            }
        }
        let mut child = command
            .args(["enforce", "--action", action, "--format", "json"])
            .args(["--netns", &netns])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(io("starting the guard"))?;
        let (out, err) = (child.stdout.take(), child.stderr.take());
        let mut guard = Self(child);
        let (Some(mut out), Some(err)) = (out, err) else {
            return Err(LabError::Guard {
                reason: "it has no standard output".into(),
                kind: Kind::Internal,
            });
        };
        thread::spawn(move || io::copy(&mut out, &mut io::sink()));
        let mut lines = BufReader::new(err).lines();
        let mut last = String::from("it ended without a word");
        for line in &mut lines {
            let line = line.map_err(io("listening to the guard"))?;
            if line.starts_with("ready:") {
                thread::spawn(move || lines.for_each(drop));
                return Ok(guard);
            }
            last = line;
        }
        let status = guard.0.wait().map_err(io("waiting for the guard"))?;
        Err(LabError::Guard {
            reason: last.trim_start_matches("ipvs-guard: ").to_owned(),
            kind: match status.code() {
                Some(3) => Kind::Privilege,
                Some(4) => Kind::Missing,
                _ => Kind::Internal,
            },
        })
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        // Not to who has its number by now.
        let runs = matches!(self.0.try_wait(), Ok(None));
        if let (true, Ok(pid)) = (runs, i32::try_from(self.0.id())) {
            let _ended_already = kill(Pid::from_raw(pid), Signal::SIGTERM);
        }
        let _reaped = self.0.wait();
    }
}
