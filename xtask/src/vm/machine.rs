//! One start of QEMU.

use std::fs;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::accel::Accel;
use super::channel::Channel;
use super::{End, Guest, Outcome};
use crate::setup::tools::Qemu;

/// How long QEMU gets to restore the terminal and end.
const GRACE: Duration = Duration::from_secs(2);

/// A panic ends the guest. The self-tests of the kernel's ciphers and the detours against speculation, which emulation has
/// none of, would take half of the start. The log holds warnings and worse: each character is dear. An emulated processor's
/// time stamps are the same on all of them, but the kernel does not believe it and asks a device for the time instead. Network
/// namespaces that a test leaves take dozens of RCU grace periods each to go, which delay the next tests.
const KERNEL_OPTIONS: &str = "console=ttyS0 panic=-1 loglevel=5 cryptomgr.notests mitigations=off tsc=reliable \
                              init_on_alloc=0 hardened_usercopy=off rcupdate.rcu_expedited=1";

/// Five-level page tables and the string instructions' "fast" variants are slow under emulation.
const EMULATED_CPU: &str = "max,-la57,-erms,-fsrm";

/// The guest writes to this file every second.
const PULSE: &str = "pulse";

/// A guest without pulse and output for this long stands still for good.
const STALL: Duration = Duration::from_secs(60);

/// Everything one start needs.
pub(crate) struct Machine<'a> {
    pub(crate) guest: &'a Guest,
    pub(crate) qemu: &'a Qemu,
    pub(crate) image: PathBuf,
    pub(crate) initramfs: PathBuf,
    pub(crate) directory: &'a Path,
    pub(crate) token: String,
    pub(crate) accel: Accel,
}

impl Machine<'_> {
    /// Starts QEMU, gives the command's output to `observe`, and ends QEMU.
    pub(crate) fn run(&self, observe: &mut dyn FnMut(&[u8])) -> Result<Outcome> {
        let log = self.directory.join("kernel.log");
        let errors = self.directory.join("qemu.errors");
        let started = Instant::now();
        let mut qemu = self.start(&log, &errors)?;
        let stdout = qemu.stdout.take().context("QEMU has no standard output")?;
        let mut output = Vec::new();
        let end = self.follow(stdout, started, &mut |bytes| {
            output.extend_from_slice(bytes);
            observe(bytes);
        });
        let elapsed = started.elapsed();
        stop(&mut qemu)?;
        let mut kernel_log =
            String::from_utf8_lossy(&fs::read(&log).unwrap_or_default()).replace('\r', "");
        if end == End::Died {
            kernel_log += &fs::read_to_string(&errors).unwrap_or_default();
        }
        Ok(Outcome {
            end,
            output,
            kernel_warnings: warnings(&kernel_log),
            kernel_log,
            elapsed,
            restarted: false,
        })
    }

    fn start(&self, log: &Path, errors: &Path) -> Result<Child> {
        let guest = self.guest;
        let mut command = self.qemu.command();
        command
            .args(["-nodefaults", "-no-user-config", "-no-reboot"])
            .args(["-display", "none", "-nic", "none"])
            .args(["-m", &guest.memory.to_string()])
            .arg("-kernel")
            .arg(&self.image)
            .arg("-initrd")
            .arg(&self.initramfs)
            .arg("-append")
            .arg(format!("{KERNEL_OPTIONS} {}", guest.append))
            .arg("-serial")
            .arg(format!("file:{}", log.display()))
            .args(["-chardev", "stdio,id=output,signal=off"])
            .args(["-device", "virtio-serial-pci"]);
        if guest.wire {
            for (end, mac) in [
                ("left", "02:00:00:00:00:01"),
                ("right", "02:00:00:00:00:02"),
            ] {
                command.args(["-netdev", &format!("hubport,id={end},hubid=0")]);
                command.args([
                    "-device",
                    &format!("virtio-net-pci,netdev={end},mac={mac},romfile="),
                ]);
            }
        }
        command.args([
            "-device",
            if guest.interactive {
                "virtconsole,chardev=output"
            } else {
                "virtserialport,chardev=output,name=output"
            },
        ]);
        command.args(["-chardev"]).arg(format!(
            "file,id=pulse,path={}",
            self.directory.join(PULSE).display()
        ));
        command.args(["-device", "virtserialport,chardev=pulse,name=pulse"]);
        match (self.accel, guest.icount) {
            (_, true) => {
                command.args(["-accel", "tcg,thread=single", "-cpu", EMULATED_CPU]);
                command.args(["-smp", "1", "-icount", "shift=0,sleep=off"]);
            }
            (Accel::Tcg, false) => {
                command.args(["-accel", "tcg,thread=multi", "-cpu", EMULATED_CPU]);
                command.args(["-smp", &guest.cpus.to_string()]);
            }
            (Accel::Kvm, false) => {
                command.args(["-accel", "kvm", "-cpu", "host"]);
                command.args(["-smp", &guest.cpus.to_string()]);
            }
        }
        let errors = fs::File::create(errors)?;
        command
            .stdin(if guest.interactive {
                Stdio::inherit()
            } else {
                // QEMU takes the end of its input for the end of the connection. Nothing is ever written here.
                Stdio::piped()
            })
            .stdout(Stdio::piped())
            .stderr(errors)
            .spawn()
            .context("cannot start QEMU; `cargo xtask setup qemu` brings it")
    }

    fn follow(
        &self,
        mut stdout: ChildStdout,
        started: Instant,
        output: &mut dyn FnMut(&[u8]),
    ) -> End {
        let (sender, receiver) = mpsc::channel();
        // Ends when QEMU does, which is before `run` returns.
        thread::spawn(move || {
            let mut buffer = vec![0; 1 << 16];
            loop {
                match stdout.read(&mut buffer) {
                    Ok(0) => break,
                    Ok(length) => {
                        if sender.send(buffer[..length].to_vec()).is_err() {
                            break;
                        }
                    }
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => (),
                    Err(_) => break,
                }
            }
        });
        let mut channel = Channel::new(&self.token);
        let watches = !self.guest.icount && !self.guest.interactive;
        let mut beats = 0;
        let mut last_sign = Instant::now();
        let end = loop {
            let left = match self.guest.deadline {
                Some(deadline) => deadline.saturating_sub(started.elapsed()),
                None => Duration::MAX,
            };
            match receiver.recv_timeout(left.min(Duration::from_secs(1))) {
                Ok(bytes) => {
                    last_sign = Instant::now();
                    if let Some(status) = channel.feed(&bytes, output) {
                        break End::Exited(status);
                    }
                }
                Err(RecvTimeoutError::Timeout) if left.is_zero() => break End::Deadline,
                Err(RecvTimeoutError::Timeout) => {
                    let now = self.beats();
                    if now != beats {
                        beats = now;
                        last_sign = Instant::now();
                    }
                    if watches && last_sign.elapsed() > STALL {
                        break End::Stalled;
                    }
                }
                Err(RecvTimeoutError::Disconnected) => break End::Died,
            }
        };
        channel.close(output);
        end
    }

    fn beats(&self) -> u64 {
        fs::metadata(self.directory.join(PULSE)).map_or(0, |pulse| pulse.len())
    }
}

/// Ends QEMU, politely at first: it restores the terminal's settings.
fn stop(qemu: &mut Child) -> Result<()> {
    if let Ok(id) = i32::try_from(qemu.id())
        && qemu.try_wait()?.is_none()
    {
        // QEMU may have ended by itself in this very moment.
        kill(Pid::from_raw(id), Signal::SIGTERM).ok();
    }
    let asked = Instant::now();
    while asked.elapsed() < GRACE {
        if qemu.try_wait()?.is_some() {
            return Ok(());
        }
        thread::sleep(Duration::from_millis(5));
    }
    qemu.kill()?;
    qemu.wait()?;
    Ok(())
}

/// Lines by which a kernel tells of a fault of its own.
fn warnings(log: &str) -> Vec<String> {
    const SIGNS: [&str; 9] = [
        "WARNING:",
        "BUG:",
        "kernel BUG",
        "Oops",
        "double fault",
        "Kernel panic",
        "INFO: rcu",
        "blocked for more than",
        "general protection fault",
    ];
    log.lines()
        .filter(|line| SIGNS.iter().any(|sign| line.contains(sign)))
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_kernel_s_complaints() {
        let log = "[ 1.0] IPVS: ipvs loaded.\n[ 2.0] WARNING: CPU: 0 PID: 1 at net/core\n[ 3.0] BUG: kernel NULL pointer\n";
        assert_eq!(
            warnings(log),
            [
                "[ 2.0] WARNING: CPU: 0 PID: 1 at net/core",
                "[ 3.0] BUG: kernel NULL pointer"
            ]
        );
    }
}
