//! `ipvs-guard watch` as a process.

use std::{
    io::{BufRead as _, BufReader, Read as _},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use ipvs_guard::netns::NetNs;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

use super::{PATIENCE, wait_until};

const PROGRAM: &str = "ipvs-guard";

/// A running agent.
pub(crate) struct Agent {
    child: Child,
    stdout: Option<JoinHandle<String>>,
    /// Bytes that came on it so far.
    written: Arc<AtomicUsize>,
    stderr: Arc<Mutex<String>>,
    stderr_reader: Option<JoinHandle<()>>,
}

/// An agent that has ended.
pub(crate) struct Ended {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Agent {
    /// Starts `watch` with JSON on a pipe and waits until it is ready.
    pub(crate) fn watch(args: &[&str]) -> Self {
        let agent = Self::start(args);
        agent.wait_for("ready:");
        agent
    }

    /// Starts `watch` in the namespace of a test alone.
    pub(crate) fn watch_in(netns: &NetNs, args: &[&str]) -> Self {
        let path = netns_path(netns);
        let mut all = vec!["--netns", path.as_str()];
        all.extend_from_slice(args);
        Self::watch(&all)
    }

    /// Starts `enforce` in the namespace of a test and waits until it is ready.
    pub(crate) fn enforce_in(netns: &NetNs, args: &[&str]) -> Self {
        let agent = Self::start_enforcing(netns, args);
        agent.wait_for("ready:");
        agent
    }

    /// Starts `enforce` without waiting.
    pub(crate) fn start_enforcing(netns: &NetNs, args: &[&str]) -> Self {
        let mut command = Command::new(PROGRAM);
        command
            .args(["enforce", "--netns", &netns_path(netns)])
            .args(args);
        Self::spawn(command)
    }

    /// Starts `watch` without waiting.
    pub(crate) fn start(args: &[&str]) -> Self {
        let mut command = Command::new(PROGRAM);
        command.arg("watch").args(args);
        Self::spawn(command)
    }

    /// Starts any command of the agent.
    pub(crate) fn spawn(mut command: Command) -> Self {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut out = child.stdout.take().unwrap();
        let err = child.stderr.take().unwrap();
        let stderr = Arc::new(Mutex::new(String::new()));
        let written = Arc::new(AtomicUsize::new(0));
        let stdout = thread::spawn({
            let written = Arc::clone(&written);
            move || {
                let (mut text, mut chunk) = (Vec::new(), vec![0; 1 << 16]);
                while let Ok(count @ 1..) = out.read(&mut chunk) {
                    text.extend_from_slice(&chunk[..count]);
                    written.store(text.len(), Ordering::Relaxed);
                }
                String::from_utf8(text).unwrap()
            }
        });
        let stderr_reader = thread::spawn({
            let stderr = Arc::clone(&stderr);
            move || {
                for line in BufReader::new(err).lines() {
                    let mut text = stderr.lock().unwrap();
                    text.push_str(&line.unwrap());
                    text.push('\n');
                }
            }
        });
        Self {
            child,
            stdout: Some(stdout),
            written,
            stderr,
            stderr_reader: Some(stderr_reader),
        }
    }

    /// Waits until standard error has a line that begins so, and not fewer of
    /// them than `count`.
    pub(crate) fn wait_for_nth(&self, prefix: &str, count: usize) {
        wait_until(prefix, PATIENCE, || {
            let text = self.stderr();
            let there = text.lines().filter(|line| line.starts_with(prefix)).count() >= count;
            assert!(there || !self.has_ended(), "it ended: {text}");
            there
        });
    }

    /// Waits until standard error has a line that begins so.
    pub(crate) fn wait_for(&self, prefix: &str) {
        self.wait_for_nth(prefix, 1);
    }

    /// Whether the process is over: a zombie until it is waited for.
    fn has_ended(&self) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        let state = stat.rsplit(") ").next().unwrap();
        state.starts_with('Z')
    }

    /// Waits until it has written no event for two seconds: losses are told every second.
    pub(crate) fn wait_until_quiet(&self) {
        let mut before = self.written.load(Ordering::Relaxed);
        wait_until("quiet", PATIENCE, || {
            thread::sleep(Duration::from_secs(2));
            let now = self.written.load(Ordering::Relaxed);
            std::mem::replace(&mut before, now) == now
        });
    }

    /// What it has written to standard error so far.
    pub(crate) fn stderr(&self) -> String {
        self.stderr.lock().unwrap().clone()
    }

    /// The most memory it has had resident so far, in KiB.
    pub(crate) fn peak_kib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        line.unwrap()
            .trim()
            .trim_end_matches(" kB")
            .parse()
            .unwrap()
    }

    /// Its process.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// How many file descriptors it has open.
    pub(crate) fn descriptors(&self) -> usize {
        let folder = format!("/proc/{}/fd", self.child.id());
        std::fs::read_dir(folder).unwrap().count()
    }

    /// Sends a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).unwrap();
    }

    /// Does something while the agent stands still: what is answered meanwhile the
    /// programs have answered, which act for a second more at least. User space
    /// answers, too, when a program takes longer than it should, as on an emulated
    /// machine.
    pub(crate) fn aside<T>(&self, act: impl FnOnce() -> T) -> T {
        self.signal(Signal::SIGSTOP);
        let result = act();
        self.signal(Signal::SIGCONT);
        // It beats as soon as it runs.
        thread::sleep(Duration::from_millis(200));
        result
    }

    /// Ends it by SIGINT.
    pub(crate) fn stop(self) -> Ended {
        self.signal(Signal::SIGINT);
        self.wait()
    }

    /// Waits for its end.
    pub(crate) fn wait(mut self) -> Ended {
        let status = self.child.wait().unwrap();
        let stdout = self.stdout.take().unwrap().join().unwrap();
        self.stderr_reader.take().unwrap().join().unwrap();
        Ended {
            status,
            stdout,
            stderr: self.stderr(),
        }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            self.child.kill().unwrap();
            self.child.wait().unwrap();
        }
    }
}

/// A path under which another process can open the namespace of a test.
pub(crate) fn netns_path(netns: &NetNs) -> String {
    let own = netns.path();
    let fd = own.file_name().unwrap().to_str().unwrap();
    format!("/proc/{}/fd/{fd}", std::process::id())
}

impl Ended {
    /// Every event, and that it ended well.
    pub(crate) fn events(&self) -> Vec<Value> {
        assert!(self.status.success(), "{}: {}", self.status, self.stderr);
        self.stdout
            .lines()
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }

    /// The events of one class.
    pub(crate) fn class(&self, name: &str) -> Vec<Value> {
        self.events()
            .into_iter()
            .filter(|event| event["event.name"] == name)
            .collect()
    }

    /// Stale SYNs, each once however often its client sent it.
    pub(crate) fn incidents(&self) -> Vec<Value> {
        let mut stale = self.class("ipvs.stale_reuse");
        stale.retain(|event| !is_retransmission(event));
        stale
    }

    /// Events lost, of all stages, as the agent reports them.
    pub(crate) fn lost(&self) -> u64 {
        self.class("ipvs.loss")
            .iter()
            .map(|event| event["ipvs.loss.count"].as_u64().unwrap())
            .sum()
    }
}

/// Client port and sequence number of an event.
pub(crate) fn key(event: &Value) -> (u16, u32) {
    let number = |key: &str| event[key].as_u64().unwrap();
    (number("source.port") as u16, number("tcp.seq") as u32)
}

/// Whether it is the same SYN once more.
pub(crate) fn is_retransmission(event: &Value) -> bool {
    event["tcp.retransmission"].as_bool().unwrap()
}
