//! Programs of Debian's packages, events to send, and what was said meanwhile.

use std::{
    collections::BTreeSet,
    env,
    fs::{self, File},
    io::Write,
    os::unix::net::UnixDatagram,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex},
    thread::{self, sleep},
    time::{Duration, Instant},
};

use ipvs_guard::{
    event::{Class, Event},
    pipeline::Summary,
    sink::{Json, Sink},
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::said;

/// What nothing here takes.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A receiver that runs in the tree of packages, in a mount namespace of its own.
pub(crate) struct Daemon {
    process: Child,
    /// What it says, for whoever looks into a failure.
    errors: PathBuf,
}

impl Daemon {
    /// The process does nothing from now on.
    pub(crate) fn freeze(&self) {
        kill(
            Pid::from_raw(self.process.id().cast_signed()),
            Signal::SIGSTOP,
        )
        .unwrap();
    }

    /// The process is gone at once, as by a crash.
    pub(crate) fn kill(mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It may have ended already.
        let _ended = self.process.kill();
        let _ended = self.process.wait();
        if thread::panicking() {
            eprintln!("{}", fs::read_to_string(&self.errors).unwrap_or_default());
        }
    }
}

/// A place for a receiver: its `/run` is the directory `run` here.
pub(crate) struct Place(tempfile::TempDir);

impl Place {
    pub(crate) fn new() -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        fs::create_dir(place.run()).unwrap();
        place
    }

    pub(crate) fn run(&self) -> PathBuf {
        self.0.path().join("run")
    }

    /// Starts a program, which stays in the foreground.
    pub(crate) fn start(&self, program: &[&str]) -> Daemon {
        self.spawn(self.command(program))
    }

    /// Starts what [`Place::command`] gave.
    pub(crate) fn spawn(&self, mut command: Command) -> Daemon {
        let errors = self.0.path().join("errors");
        let file = File::options()
            .create(true)
            .append(true)
            .open(&errors)
            .unwrap();
        let process = command.stderr(file).spawn().unwrap();
        Daemon { process, errors }
    }

    /// A program with the tree of packages as its root directory. It can write
    /// everywhere, and nothing of that lasts but what is in `/run`. A socket as its
    /// standard input is handed to it as systemd does.
    pub(crate) fn command(&self, program: &[&str]) -> Command {
        const ENTER: &str = r#"
            set -e
            stage=$2/stage
            mkdir -p "$stage"
            mount -t tmpfs tmpfs "$stage"
            mkdir "$stage/upper" "$stage/work" "$stage/root"
            mount -t overlay overlay "$stage/root" \
                -o "lowerdir=$1,upperdir=$stage/upper,workdir=$stage/work"
            cd "$stage/root"
            mkdir -p run proc sys dev tmp var/log var/lib etc/systemd
            echo 0123456789abcdef0123456789abcdef > etc/machine-id
            cp "$2"/run/journald.conf etc/systemd/ 2> /dev/null || true
            mount --bind "$2/run" run
            mount --rbind /proc proc
            mount --rbind /sys sys
            mount --rbind /dev dev
            shift 2
            if [ -S /dev/stdin ]; then
                export LISTEN_FDS=1 LISTEN_PID=$$
                exec 3<&0 < /dev/null
            fi
            exec chroot . "$@"
        "#;
        let mut command = Command::new("unshare");
        command
            .args([
                "--mount",
                "--propagation",
                "private",
                "sh",
                "-c",
                ENTER,
                "sh",
            ])
            .arg(root())
            .arg(self.0.path())
            .args(program)
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .stdin(Stdio::null());
        command
    }
}

/// The root directory of the packages.
fn root() -> PathBuf {
    env::var_os("IPVS_GUARD_RECEIVERS").map_or_else(
        || {
            panic!(
                "IPVS_GUARD_RECEIVERS is not set: run cargo xtask test, or set it to the \
                 directory that cargo xtask setup receivers prints"
            )
        },
        PathBuf::from,
    )
}

/// An event that is told from others by its number.
pub(crate) fn event(number: u32) -> Arc<Event> {
    let time = "2026-11-21T01:02:03.123456789Z".parse().unwrap();
    let mut event = Event::new(Class::StaleReuse, time, "node-1".into());
    event.client_address = Some("192.0.2.2".parse().unwrap());
    event.client_port = Some(61_001);
    event.service_address = Some("2001:db8::1".parse().unwrap());
    event.seq = Some(number);
    Arc::new(event)
}

pub(crate) fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !is_so() {
        assert!(
            begin.elapsed() < PATIENCE,
            "{what}: not within {PATIENCE:?}"
        );
        sleep(Duration::from_millis(20));
    }
}

/// Whether somebody reads the local socket at `path`.
pub(crate) fn is_read(path: &Path) -> bool {
    UnixDatagram::unbound().unwrap().connect(path).is_ok()
}

/// Offers 10,000 events to `sink`, kills the receiver in the middle of them and starts
/// it again a while later. Each must have been delivered or counted, and another sink
/// must have them all.
pub(crate) fn killed_in_the_middle(
    sink: Sink,
    start: impl Fn() -> Daemon,
    delivered: impl Fn() -> BTreeSet<u32>,
) {
    const EVENTS: u32 = 10_000;
    let copy = Copy::default();
    let other = Sink::start("sink.other", "other", Json, copy.clone()).unwrap();
    let mut daemon = Some(start());
    for number in 0..EVENTS {
        match number {
            // What comes now gets no further than its sockets.
            3_500 => daemon.as_ref().unwrap().freeze(),
            // TCP has acknowledged what came, and nobody has read it.
            3_600 => sleep(Duration::from_millis(300)),
            4_000 => daemon.take().unwrap().kill(),
            6_000 => daemon = Some(start()),
            _ => {}
        }
        sink.offer(&event(number));
        other.offer(&event(number));
        if number % 50 == 0 {
            sleep(Duration::from_millis(10));
        }
    }
    // At its end the agent has less patience; here the receiver has to come back first.
    wait_until("the last event", || {
        delivered().contains(&(EVENTS - 1)) || sink.lost() > 0
    });
    let lost = sink.lost();
    let left = sink.finish(Summary::default(), PATIENCE);
    let accounted = || delivered().len() as u64 + lost + left;
    wait_until("all events", || accounted() >= u64::from(EVENTS));
    assert_eq!(accounted(), u64::from(EVENTS), "{lost} lost, {left} left");
    println!("{} delivered, {lost} lost", delivered().len());
    assert_eq!(other.lost(), 0);
    assert_eq!(other.finish(Summary::default(), PATIENCE), 0);
    assert_eq!(numbers(&copy.text()).len(), EVENTS as usize);
}

/// The events of lines of JSON, by number; a line that a kill has cut is none.
pub(crate) fn numbers(lines: &str) -> BTreeSet<u32> {
    lines
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter_map(|event| u32::try_from(event["tcp.seq"].as_u64()?).ok())
        .collect()
}

/// What a sink has written.
#[derive(Clone, Default)]
pub(crate) struct Copy(Arc<Mutex<Vec<u8>>>);

impl Copy {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }
}

impl Write for Copy {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

pub(crate) use said::listen;

/// What the sink that is called `what` has said.
pub(crate) fn said(what: &str) -> Vec<String> {
    said::lines(|line| line.starts_with(what))
}
