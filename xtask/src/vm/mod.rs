//! A guest: a Debian kernel with real IPVS under QEMU, without network or disk, that runs one command.

mod accel;
mod channel;
mod initramfs;
mod machine;
mod scratch;

use std::fs;
use std::io::{self, IsTerminal as _, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::build::workspace;
use crate::cache::Cache;
use crate::output::say;
use crate::setup::kernels::{self, Kernel, Label};
use crate::setup::packages::{self, Tree};
use crate::setup::tools;
use accel::Accel;
use initramfs::Archive;
use scratch::Scratch;

/// Where `cargo xtask build` leaves the program, relative to the workspace.
const PROGRAM: &str = "target/dist/ipvs-guard";

/// Runs a command under a kernel with real IPVS, and ends as it ends
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The kernel to boot
    #[arg(long)]
    kernel: Label,
    /// Number of processors
    #[arg(long, default_value_t = 2)]
    cpus: u32,
    /// Memory in MiB
    #[arg(long, default_value_t = 2048)]
    memory: u32,
    /// Make guest time count executed instructions, one nanosecond each; takes one processor
    #[arg(long)]
    icount: bool,
    /// A kernel module to load before the command runs
    #[arg(long, value_name = "MODULE")]
    load: Vec<String>,
    /// A file of this machine to have in the guest
    #[arg(long, value_name = "FILE:GUEST_PATH", value_parser = parse_file)]
    file: Vec<GuestFile>,
    /// A Debian package to have in the guest; its programs are in /usr/bin, and a shell runs its own ones first. They run
    /// with /debian as their root directory, with the guest's /proc, /sys, /dev, /run, /tmp, /root and ipvs-guard in it
    #[arg(long, value_name = "PACKAGE")]
    tool: Vec<String>,
    /// Seconds the guest may take, after which it is ended for good; without it a command has 600, and a shell no limit
    #[arg(long, value_name = "SECONDS")]
    deadline: Option<u64>,
    /// More for the kernel's command line
    #[arg(long, default_value = "", allow_hyphen_values = true)]
    append: String,
    /// Leave the kernel's log in this file
    #[arg(long, value_name = "FILE")]
    kernel_log: Option<PathBuf>,
    /// What to run; a shell when left out, or the script on standard input if that is no terminal
    #[arg(last = true)]
    command: Vec<String>,
}

/// A file of the host that the guest has too.
#[derive(Clone, Debug)]
pub(crate) struct GuestFile {
    /// Path on the host.
    pub(crate) source: PathBuf,
    /// Path in the guest.
    pub(crate) path: String,
    /// Permission bits in the guest.
    pub(crate) mode: u32,
}

/// A guest to be run.
#[derive(Clone, Debug)]
pub(crate) struct Guest {
    /// The kernel it boots.
    pub(crate) kernel: Label,
    /// Number of processors.
    pub(crate) cpus: u32,
    /// Memory in MiB.
    pub(crate) memory: u32,
    /// Guest time counts executed instructions, one nanosecond each. Takes one processor.
    pub(crate) icount: bool,
    /// Kernel modules to load before the command runs.
    pub(crate) load: Vec<String>,
    /// Files it has besides the project's own program, which is `/usr/bin/ipvs-guard` when it has been built.
    pub(crate) files: Vec<GuestFile>,
    /// Debian packages it has. Their programs are in `/usr/bin` and see the guest's `/proc`, `/sys`, `/dev`, `/run`, `/tmp`
    /// and `/root`, and the project's own program. Busybox's shell prefers its own commands: give the path for one that it
    /// has too.
    pub(crate) tools: Vec<String>,
    /// What it runs, program and arguments.
    pub(crate) command: Vec<String>,
    /// How long it may take.
    pub(crate) deadline: Option<Duration>,
    /// A guest that takes longer is started once more: the deadline is for one that hangs, not for its command.
    pub(crate) second_chance: bool,
    /// More for the kernel's command line.
    pub(crate) append: String,
    /// It has two network cards that a wire connects.
    pub(crate) wire: bool,
    /// The command talks to the terminal xtask runs in.
    pub(crate) interactive: bool,
}

impl Guest {
    /// A guest with two processors, 2 GiB of memory and ten minutes of time.
    pub(crate) fn new<S: Into<String>>(
        kernel: Label,
        command: impl IntoIterator<Item = S>,
    ) -> Self {
        Self {
            kernel,
            cpus: 2,
            memory: 2048,
            icount: false,
            load: Vec::new(),
            files: Vec::new(),
            tools: Vec::new(),
            command: command.into_iter().map(Into::into).collect(),
            deadline: Some(Duration::from_secs(600)),
            second_chance: true,
            append: String::new(),
            wire: false,
            interactive: false,
        }
    }
}

/// How a guest ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// The command ended with this exit status; a signal counts as 128 and its number.
    Exited(i32),
    /// The guest was gone before the command ended.
    Died,
    /// The deadline passed; where the guest has a second chance, twice.
    Deadline,
    /// It stood still, twice.
    Stalled,
}

/// What a guest left.
#[derive(Clone, Debug)]
pub(crate) struct Outcome {
    /// How it ended.
    pub(crate) end: End,
    /// What the command wrote to standard output and standard error.
    pub(crate) output: Vec<u8>,
    /// The kernel's log.
    pub(crate) kernel_log: String,
    /// Lines of the kernel's log that tell of a fault in the kernel.
    pub(crate) kernel_warnings: Vec<String>,
    /// From the start of QEMU to the end of the command.
    pub(crate) elapsed: Duration,
    /// The first start stood still or passed its deadline; all else here is of the second one.
    pub(crate) restarted: bool,
}

impl Outcome {
    /// The command's exit status, or what `timeout` and a shell would give for a command that had none.
    pub(crate) fn status(&self) -> i32 {
        match self.end {
            End::Exited(status) => status,
            End::Deadline | End::Stalled => 124,
            End::Died => 125,
        }
    }

    /// The output as text.
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.output).into_owned()
    }
}

impl Guest {
    /// Runs the guest; the command's output goes to standard output as it comes, and is kept as well.
    pub(crate) fn stream(&self, cache: &Cache) -> Result<Outcome> {
        let mut stdout = io::stdout().lock();
        let mut problem = None;
        let outcome = self.run(cache, &mut |bytes| {
            if problem.is_none()
                && let Err(error) = stdout.write_all(bytes).and_then(|()| stdout.flush())
            {
                problem = Some(error);
            }
        })?;
        match problem {
            Some(error) if error.kind() != io::ErrorKind::BrokenPipe => {
                Err(error).context("cannot write to standard output")
            }
            _ => Ok(outcome),
        }
    }

    /// Runs the guest; `observe` gets the command's output as it comes.
    pub(crate) fn run(&self, cache: &Cache, observe: &mut dyn FnMut(&[u8])) -> Result<Outcome> {
        let kernel = kernels::kernel(cache, self.kernel)?;
        let qemu = tools::qemu(cache)?;
        let busybox = tools::busybox(cache)?;
        let directory = Scratch::create(cache)?;
        let token = token();
        let initramfs = directory.path().join("initramfs");
        let mut archive = Archive::create(&initramfs)?;
        if !self.tools.is_empty() {
            add_tools(&mut archive, &packages::tree(cache, &self.tools)?)?;
        }
        self.fill(archive, &kernel, &busybox, &token)?;
        let accel = if self.icount {
            Accel::Tcg
        } else {
            accel::find(cache, &qemu, &kernel.image())?
        };
        let mut machine = machine::Machine {
            guest: self,
            qemu: &qemu,
            image: kernel.image(),
            initramfs,
            directory: directory.path(),
            token,
            accel,
        };
        let started = Instant::now();
        let first = machine.run(observe)?;
        let what = match first.end {
            End::Exited(_) | End::Died => return Ok(first),
            End::Deadline if !self.second_chance => return Ok(first),
            End::Deadline => "passed its deadline",
            End::Stalled => "stood still",
        };
        say!(
            "the guest with kernel {} {what} after {:.0} s: starting it once more",
            self.kernel,
            started.elapsed().as_secs_f32()
        );
        machine.accel = Accel::Tcg;
        let second = machine.run(observe)?;
        Ok(Outcome {
            restarted: true,
            ..second
        })
    }

    fn fill(
        &self,
        mut archive: Archive,
        kernel: &Kernel,
        busybox: &Path,
        token: &str,
    ) -> Result<()> {
        for directory in [
            "dev", "proc", "sys", "tmp", "run", "root", "bin", "usr/bin", "usr/sbin", "etc",
            "var/log",
        ] {
            archive.directory(directory)?;
        }
        archive.bytes("init", 0o755, include_bytes!("init.sh"))?;
        archive.file("bin/busybox", 0o755, busybox)?;
        // The kernel itself calls these.
        archive.link("sbin/modprobe", "/bin/busybox")?;
        archive.link("sbin/poweroff", "/bin/busybox")?;
        archive.link("var/run", "/run")?;
        archive.bytes("etc/passwd", 0o644, b"root:x:0:0:root:/root:/bin/sh\n")?;
        archive.bytes("etc/group", 0o644, b"root:x:0:\n")?;
        archive.bytes(
            "etc/hosts",
            0o644,
            b"127.0.0.1 localhost guest\n::1 localhost\n",
        )?;
        archive.tree(
            &format!("lib/modules/{}", kernel.release),
            &kernel.modules(),
        )?;
        let program = workspace().join(PROGRAM);
        if program.exists() {
            archive.file("usr/bin/ipvs-guard", 0o755, &program)?;
        }
        for file in &self.files {
            archive.file(&file.path, file.mode, &file.source)?;
        }
        archive.bytes("guest/token", 0o600, token.as_bytes())?;
        archive.bytes("guest/load", 0o644, self.load.join("\n").as_bytes())?;
        archive.bytes("guest/command", 0o755, script(&self.command).as_bytes())?;
        if !self.icount {
            archive.bytes("guest/pulse", 0o644, b"")?;
        }
        if self.interactive {
            archive.bytes("guest/interactive", 0o644, b"")?;
        }
        archive.finish()
    }
}

/// The tools have a root directory of their own: they need their libraries, and plug-ins at fixed paths.
fn add_tools(archive: &mut Archive, tools: &Tree) -> Result<()> {
    for directory in ["proc", "sys", "dev", "run", "tmp", "root"] {
        archive.directory(&format!("debian/{directory}"))?;
    }
    archive.tree("debian", &tools.root)?;
    // A place to mount the guest's own one on.
    archive.bytes("debian/usr/local/bin/ipvs-guard", 0o755, b"")?;
    for program in &tools.programs {
        if let Some((_, name)) = program.rsplit_once('/') {
            let script = format!("#!/bin/sh\nexec /bin/chroot /debian {program} \"$@\"\n");
            archive.bytes(&format!("usr/bin/{name}"), 0o755, script.as_bytes())?;
        }
    }
    Ok(())
}

/// Runs `cargo xtask vm`.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let cache = Cache::open()?;
    let interactive = args.command.is_empty() && io::stdin().is_terminal();
    let command = if interactive {
        vec!["sh".to_owned()]
    } else if args.command.is_empty() {
        let mut script = String::new();
        io::stdin()
            .read_to_string(&mut script)
            .context("cannot read the script on standard input")?;
        vec!["sh".to_owned(), "-c".to_owned(), script]
    } else {
        args.command.clone()
    };
    let guest = Guest {
        cpus: args.cpus,
        memory: args.memory,
        icount: args.icount,
        load: args.load.clone(),
        files: args.file.clone(),
        tools: args.tool.clone(),
        deadline: match args.deadline {
            Some(seconds) => Some(Duration::from_secs(seconds)),
            None => (!interactive).then_some(Duration::from_secs(600)),
        },
        second_chance: args.deadline.is_none(),
        append: args.append.clone(),
        interactive,
        ..Guest::new(args.kernel, command)
    };
    let outcome = guest.stream(&cache)?;
    if let Some(path) = &args.kernel_log {
        fs::write(path, &outcome.kernel_log)
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    for warning in &outcome.kernel_warnings {
        say!("the guest's kernel: {warning}");
    }
    match outcome.end {
        End::Exited(_) => (),
        End::Died => say!(
            "the guest was gone before the command ended{}",
            last_lines(&outcome)
        ),
        End::Stalled => say!("the guest stood still twice{}", last_lines(&outcome)),
        End::Deadline => say!(
            "the guest passed its deadline{}{}",
            if outcome.restarted { " twice" } else { "" },
            last_lines(&outcome)
        ),
    }
    Ok(ExitCode::from(u8::try_from(outcome.status()).unwrap_or(1)))
}

fn last_lines(outcome: &Outcome) -> String {
    let lines: Vec<&str> = outcome.kernel_log.lines().collect();
    let last = &lines[lines.len().saturating_sub(8)..];
    last.iter().map(|line| format!("\n  {line}")).collect()
}

/// A word that no command prints by chance.
fn token() -> String {
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |time| time.as_nanos());
    format!("\u{1e}guest-{now:x}-{:x}", std::process::id())
}

/// A shell script that runs exactly `command`.
fn script(command: &[String]) -> String {
    let words: Vec<String> = command
        .iter()
        .map(|word| format!("'{}'", word.replace('\'', r"'\''")))
        .collect();
    format!("exec {}\n", words.join(" "))
}

fn parse_file(text: &str) -> Result<GuestFile> {
    let Some((source, path)) = text.rsplit_once(':') else {
        bail!("not of the form FILE:GUEST_PATH");
    };
    use std::os::unix::fs::PermissionsExt as _;
    let mode = fs::metadata(source)
        .with_context(|| format!("cannot read {source}"))?
        .permissions()
        .mode();
    Ok(GuestFile {
        source: source.into(),
        path: path.to_owned(),
        mode: mode & 0o7777,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_every_word_of_a_command() {
        let command = ["echo", "it's", "$HOME", ""].map(str::to_owned);
        assert_eq!(script(&command), "exec 'echo' 'it'\\''s' '$HOME' ''\n");
    }
}
