//! The way into the connection table: a backup daemon of the kernel's, on a device
//! of our own, for as long as there is something to tell it.
//!
//! The device is one end of a veth pair whose other end is in a network namespace
//! that only this process holds. When the process ends, however it ends, the
//! namespace ends and takes the pair along: a daemon that was running then hears
//! nobody. On the device, a TC program lets nothing in that a process of the node
//! has sent; what is put into it by `BPF_PROG_TEST_RUN` is all there is.

use std::{
    fs::File,
    io::{self, Read as _},
    net::Ipv4Addr,
    os::fd::AsFd as _,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use etherparse::PacketBuilder;
use ipvs_guard_common::stats::Stat;
use nix::libc;

use super::message::{self, Entry};
use crate::{
    bpf::{Counters, Loaded, Sender},
    failure::Failure,
    netlink::{
        NetlinkError,
        ipvs::{Backup, DaemonRole, IpvsSocket},
        route::RouteSocket,
    },
    netns::{NetNs, sysctl},
};

/// How the names of our devices begin.
const PREFIX: &str = "ipvsg-";
/// Name of the far end.
const FAR: &str = "far";
/// A daemon that is told nothing for this long ends.
const REST: Duration = Duration::from_secs(1);
/// MTU of the device, which the daemon goes by (`start_sync_thread`): a frame of that
/// size is as much as `BPF_PROG_TEST_RUN` takes, a page without its head and tail.
const MTU: u32 = 3_600;
/// Bytes of entries in a message before its mark and behind all headers.
const MESSAGE: usize = MTU as usize - 120;
/// Messages that the daemon may have before it: more would wait where they can no
/// longer be taken back.
const AHEAD: u32 = 2;
/// How many ports are tried: one may be another program's.
const PORTS: u32 = 5;
/// How long it may take for one of them, on a machine that is busy.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long it is not tried again after it took nothing: it may only have had no time.
const DEAF: Duration = Duration::from_secs(5);
/// The same where something of the node's is in the way.
const PAUSE: Duration = Duration::from_secs(30);
/// How often that is looked at.
const LOOK: Duration = Duration::from_micros(200);

/// Why nothing can be told.
#[derive(Debug, thiserror::Error)]
pub(super) enum ChannelError {
    /// The node's own.
    #[error(
        "a backup sync daemon runs on {0} (ipvsadm -L --daemon): there can be one, and it is \
         not ours to use"
    )]
    Foreign(String),
    /// `net.ipv4.vs.backup_only`.
    #[error(
        "net.ipv4.vs.backup_only is set: IPVS would balance nothing while the table is changed"
    )]
    BackupOnly,
    /// Nothing comes out of it.
    #[error(
        "the backup daemon on {0} takes nothing: a firewall rule may drop UDP that comes in by it; \
         accept what comes in by {PREFIX}*"
    )]
    Deaf(String),
    /// `start_sync_thread` answers EINVAL.
    #[error(
        "the kernel starts no sync daemon (EINVAL), as it does where a service has a destination of \
         another address family"
    )]
    Refused,
    /// The kernel refuses it.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// A packet cannot be put into a device.
    #[error("putting a packet into a device: {0}")]
    Send(#[source] io::Error),
    /// The kernel side takes nothing from who was held up.
    #[error("held up for too long: what was known of entries is old")]
    Late,
}

impl ChannelError {
    /// How long it is not tried again.
    pub(super) const fn pause(&self) -> Duration {
        match self {
            Self::Deaf(_) => DEAF,
            Self::Foreign(_)
            | Self::BackupOnly
            | Self::Refused
            | Self::Netlink(_)
            | Self::Send(_) => PAUSE,
            Self::Late => Duration::ZERO,
        }
    }
}

/// Whether a device is one of ours.
pub(in crate::enforce) fn is_ours(device: &str) -> bool {
    device.starts_with(PREFIX)
}

/// Ends the daemon that a killed agent left in this thread's namespace; returns its
/// device.
///
/// # Errors
/// What the kernel answered.
pub(in crate::enforce) fn sweep() -> Result<Option<String>, NetlinkError> {
    let mut ipvs = match IpvsSocket::open() {
        Ok(ipvs) => ipvs,
        Err(NetlinkError::FamilyAbsent) => return Ok(None),
        Err(error) => return Err(error),
    };
    let left = ipvs
        .daemons()?
        .into_iter()
        .find(|daemon| daemon.role == DaemonRole::Backup && is_ours(&daemon.device));
    let Some(daemon) = left else {
        return Ok(None);
    };
    match ipvs.stop_backup() {
        Ok(()) | Err(NetlinkError::NotFound { .. }) => Ok(Some(daemon.device)),
        Err(error) => Err(error),
    }
}

/// Shared by who tells of whole tables and who tells of single entries.
#[derive(Clone)]
pub(in crate::enforce) struct Channel {
    inner: Arc<Mutex<Inner>>,
    counters: Arc<Counters>,
}

struct Inner {
    ipvs: IpvsSocket,
    routes: RouteSocket,
    sender: Sender,
    device: String,
    index: u32,
    running: Option<Running>,
    /// Told so far, by all daemons.
    messages: u32,
    /// Since when it takes nothing.
    deaf: Option<Instant>,
    /// Holds the far end, and with it the pair.
    _far: NetNs,
}

struct Running {
    backup: Backup,
    used: Instant,
}

impl Channel {
    /// Makes the device. No daemon runs yet.
    ///
    /// # Errors
    /// What the kernel refuses.
    pub(in crate::enforce) fn open(
        loaded: &mut Loaded,
        counters: Arc<Counters>,
    ) -> Result<Self, Failure> {
        let internal =
            |error: anyhow::Error| Failure::Internal(error.context("a device to heal entries by"));
        let [a, b, c, _] = random().map_err(|error| internal(error.into()))?;
        let device = format!("{PREFIX}{a:02x}{b:02x}{c:02x}");
        let open = || -> Result<_, anyhow::Error> {
            let far = NetNs::new()?;
            let mut routes = RouteSocket::open()?;
            routes.add_veth(&device, FAR, far.as_fd())?;
            routes.set_mtu(&device, MTU)?;
            // Nothing of the node's is to come near it.
            for (name, value) in [
                (format!("net/ipv6/conf/{device}/disable_ipv6"), "1"),
                (format!("net/ipv4/conf/{device}/arp_ignore"), "8"),
            ] {
                if let Err(error) = sysctl::write(&name, value) {
                    log::debug!("{name}: {error}");
                }
            }
            let index = routes.link(&device)?.index;
            Ok((far, routes, index))
        };
        let (far, mut routes, index) = open().map_err(internal)?;
        let shut = Sender::take(loaded).and_then(|sender| {
            sender.guard(loaded, &device)?;
            Ok(sender)
        });
        // It comes up behind its gate.
        let opened = shut.map_err(anyhow::Error::from).and_then(|sender| {
            routes.set_up(&device, true)?;
            Ok((sender, IpvsSocket::open()?))
        });
        let (sender, ipvs) = match opened {
            Ok(opened) => opened,
            Err(error) => {
                let _gone_with_its_namespace = routes.delete_link(&device);
                return Err(internal(error));
            }
        };
        Ok(Self {
            inner: Arc::new(Mutex::new(Inner {
                ipvs,
                routes,
                sender,
                device,
                index,
                running: None,
                messages: 0,
                deaf: None,
                _far: far,
            })),
            counters,
        })
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many entries like `entry` a message has room for.
    pub(super) fn room(entry: &Entry) -> usize {
        MESSAGE / entry.size()
    }

    /// Tells the kernel of entries, each of which is to take the place of another;
    /// returns the number of the message that had the last of them.
    ///
    /// # Errors
    /// When it cannot be told.
    pub(super) fn replace(&self, entries: &[Entry]) -> Result<u32, ChannelError> {
        let mut rest = entries;
        let mut last = 0;
        while !rest.is_empty() {
            let mut size = 0;
            let fits = rest
                .iter()
                .take_while(|entry| {
                    size += entry.size();
                    size <= MESSAGE
                })
                .count();
            // Pairs stay together: a SYN in between would find the entry half done.
            let even = if fits < rest.len() { fits & !1 } else { fits };
            let (now, later) = rest.split_at(even.max(1));
            last = self.lock().tell(now)?;
            rest = later;
        }
        Ok(last)
    }

    /// Tells nothing but that there is a message.
    ///
    /// # Errors
    /// When it cannot be told.
    pub(super) fn ask(&self) -> Result<u32, ChannelError> {
        self.lock().tell(&[])
    }

    /// SYNs that passed so far and of which nothing was told.
    pub(super) fn losses(&self) -> u64 {
        self.counters.get(Stat::SynLost)
    }

    /// Number of the last message that the daemon has worked through.
    pub(super) fn heard(&self) -> u32 {
        let latest = self.counters.latest(Stat::Heard);
        u32::try_from(latest).unwrap_or(u32::MAX)
    }

    /// Waits until the daemon has worked through the message `last`, or is so near to
    /// it that it may be told more; false when it does nothing.
    pub(super) fn wait(&self, last: u32, all: bool) -> bool {
        let enough = if all {
            last
        } else {
            last.saturating_sub(AHEAD)
        };
        let mut before = self.heard();
        let mut moved = Instant::now();
        loop {
            let now = self.heard();
            if now >= enough {
                return true;
            }
            if now != before {
                before = now;
                moved = Instant::now();
            } else if moved.elapsed() >= PATIENCE {
                return false;
            }
            thread::sleep(LOOK);
        }
    }

    /// The daemon took nothing of what it was told: it is told nothing for [`DEAF`].
    pub(super) fn deaf(&self) -> ChannelError {
        let mut inner = self.lock();
        inner.deaf = Some(Instant::now());
        inner.why_deaf()
    }

    /// Puts an IP packet into the device `index`, as if it came in there.
    ///
    /// # Errors
    /// When the kernel refuses it.
    pub(super) fn put_in(
        &self,
        index: u32,
        mac: Option<[u8; 6]>,
        packet: &[u8],
    ) -> Result<(), ChannelError> {
        const IPV4: [u8; 2] = [0x08, 0x00];
        const IPV6: [u8; 2] = [0x86, 0xdd];
        let kind = match packet.first().map(|first| first >> 4) {
            Some(4) => IPV4,
            _ => IPV6,
        };
        let mut frame = mac.unwrap_or_default().to_vec();
        frame.extend(source(index));
        frame.extend(kind);
        frame.extend_from_slice(packet);
        self.lock().sender.send(&frame).map_err(not_sent)
    }

    /// Ends the daemon if it was told nothing for a while.
    pub(in crate::enforce) fn rest(&self) {
        // Whoever holds it is using it.
        let Ok(mut inner) = self.inner.try_lock() else {
            return;
        };
        let idle = |running: &Running| running.used.elapsed() >= REST;
        if inner.running.as_ref().is_some_and(idle) {
            inner.stop();
        }
    }

    /// Ends the daemon and removes the device.
    pub(in crate::enforce) fn close(&self) {
        let mut inner = self.lock();
        inner.stop();
        let device = inner.device.clone();
        if let Err(error) = inner.routes.delete_link(&device) {
            log::debug!("{error}");
        }
    }
}

impl Inner {
    fn tell(&mut self, entries: &[Entry]) -> Result<u32, ChannelError> {
        if self.deaf.is_some_and(|since| since.elapsed() < DEAF) {
            return Err(self.why_deaf());
        }
        let index = self.index;
        let running = match &mut self.running {
            Some(running) => running,
            None => {
                let backup = self.start()?;
                self.running.insert(Running {
                    backup,
                    used: Instant::now(),
                })
            }
        };
        running.used = Instant::now();
        self.messages += 1;
        let marked = [entries, &message::mark(self.messages)].concat();
        let frame = frame(&running.backup, index, &marked).map_err(ChannelError::Send)?;
        self.sender.send(&frame).map_err(not_sent)?;
        Ok(self.messages)
    }

    fn start(&mut self) -> Result<Backup, ChannelError> {
        let set = |value: String| value != "0";
        if sysctl::read("net/ipv4/vs/backup_only").is_ok_and(set) {
            return Err(ChannelError::BackupOnly);
        }
        let mut backup = self.draw()?;
        let mut started = self.ipvs.start_backup(&backup);
        for _ in 0..PORTS {
            if !matches!(&started, Err(NetlinkError::Kernel { source, .. })
                if source.kind() == io::ErrorKind::AddrInUse)
            {
                break;
            }
            backup = self.draw()?;
            started = self.ipvs.start_backup(&backup);
        }
        match started {
            Ok(()) => Ok(backup),
            Err(NetlinkError::Kernel { source, .. })
                if source.kind() == io::ErrorKind::InvalidInput =>
            {
                Err(ChannelError::Refused)
            }
            Err(NetlinkError::Exists { .. }) => {
                let device = self.foreign()?;
                Err(ChannelError::Foreign(
                    device.unwrap_or_else(|| "a device".to_owned()),
                ))
            }
            Err(error) => Err(error.into()),
        }
    }

    fn draw(&self) -> Result<Backup, ChannelError> {
        let [a, b, c, d] = random().map_err(ChannelError::Send)?;
        Ok(Backup {
            device: self.device.clone(),
            // Of the block that no router forwards: the kernel takes a message
            // without a source address only there (`ip_mc_validate_source`).
            group: Ipv4Addr::new(224, 0, 0, 128 | a),
            port: u16::from_be_bytes([0xc0 | b, c]),
            sync_id: d.max(1),
        })
    }

    fn stop(&mut self) {
        // Another may have ended ours and begun one of its own, as keepalived does when
        // it starts: the kernel's command names none.
        if self.running.take().is_none() {
            return;
        }
        let stopped = match self.foreign() {
            Ok(None) => self.ipvs.stop_backup(),
            Ok(Some(_)) => return,
            // Whose it is is not known: one of ours hears nobody, and is swept up later.
            Err(error) => Err(error),
        };
        if let Err(error) = stopped {
            // With ip_vs it went by itself.
            log::debug!("{error}");
        }
    }

    fn why_deaf(&mut self) -> ChannelError {
        match self.foreign() {
            Ok(Some(device)) => ChannelError::Foreign(device),
            Ok(None) | Err(_) => ChannelError::Deaf(self.device.clone()),
        }
    }

    /// The device of a backup daemon that is not ours.
    fn foreign(&mut self) -> Result<Option<String>, NetlinkError> {
        let daemons = self.ipvs.daemons()?;
        let mut backups = daemons
            .into_iter()
            .filter(|daemon| daemon.role == DaemonRole::Backup);
        Ok(backups
            .find(|daemon| daemon.device != self.device)
            .map(|daemon| daemon.device))
    }
}

fn not_sent(error: io::Error) -> ChannelError {
    match error.raw_os_error() {
        Some(libc::ECANCELED) => ChannelError::Late,
        _ => ChannelError::Send(error),
    }
}

/// What the sending program reads the device from.
fn source(index: u32) -> [u8; 6] {
    let [a, b, c, d] = index.to_be_bytes();
    [2, 0, a, b, c, d]
}

fn frame(backup: &Backup, index: u32, entries: &[Entry]) -> io::Result<Vec<u8>> {
    const TTL: u8 = 1;
    let payload = message::pack(backup.sync_id, entries);
    let [_, b, c, d] = backup.group.octets();
    let group = [1, 0, 0x5e, b & 0x7f, c, d];
    let step = PacketBuilder::ethernet2(source(index), group)
        .ipv4([0; 4], backup.group.octets(), TTL)
        .udp(backup.port, backup.port);
    let mut frame = Vec::with_capacity(step.size(payload.len()));
    step.write(&mut frame, &payload).map_err(io::Error::other)?;
    Ok(frame)
}

fn random() -> io::Result<[u8; 4]> {
    let mut bytes = [0; 4];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes)
}
