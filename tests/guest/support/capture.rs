//! The truth about packets: an AF_PACKET socket on a device.

use std::{
    os::fd::{AsRawFd as _, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use etherparse::{SlicedPacket, TransportSlice};
use ipvs_guard::{netlink::route::RouteSocket, netns::NetNs};
use nix::{
    libc,
    sys::{
        socket::{
            AddressFamily, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, recvfrom,
            setsockopt, socket, sockopt,
        },
        time::TimeVal,
    },
};

/// A SYN without ACK that left by the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Syn {
    pub(crate) port: u16,
    pub(crate) seq: u32,
}

/// A running capture of what `T` is made of.
pub(crate) struct Capture<T = Syn> {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Vec<T>>,
}

impl Capture {
    /// Captures the SYNs that leave `netns` by `device` from now on.
    pub(crate) fn start(netns: &NetNs, device: &str) -> Self {
        Self::of(
            netns,
            device,
            |packet, leaving| {
                if leaving { syn(packet) } else { None }
            },
        )
    }
}

impl<T: Send + 'static> Capture<T> {
    /// Captures what `pick` makes of a packet on `device` of `netns` and whether it
    /// leaves.
    pub(crate) fn of(
        netns: &NetNs,
        device: &str,
        pick: impl Fn(&[u8], bool) -> Option<T> + Send + 'static,
    ) -> Self {
        let (fd, index) = netns
            .run(|| {
                let fd = socket(
                    AddressFamily::Packet,
                    SockType::Raw,
                    SockFlag::SOCK_CLOEXEC,
                    SockProtocol::EthAll,
                )
                .unwrap();
                (fd, RouteSocket::open().unwrap().link(device).unwrap().index)
            })
            .unwrap();
        setsockopt(&fd, sockopt::RcvBufForce, &(64 << 20)).unwrap();
        setsockopt(&fd, sockopt::ReceiveTimeout, &TimeVal::new(0, 100_000)).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let thread = thread::spawn({
            let stop = Arc::clone(&stop);
            move || collect(&fd, index, &stop, pick)
        });
        Self { stop, thread }
    }

    /// What was captured, in order. Panics if the socket dropped any packet.
    pub(crate) fn finish(self) -> Vec<T> {
        // What is on its way through a device now is in the socket soon.
        thread::sleep(Duration::from_millis(200));
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}

fn collect<T>(
    fd: &OwnedFd,
    index: u32,
    stop: &AtomicBool,
    pick: impl Fn(&[u8], bool) -> Option<T>,
) -> Vec<T> {
    let mut picked = Vec::new();
    let mut buffer = [0u8; 256];
    loop {
        match recvfrom::<LinkAddr>(fd.as_raw_fd(), &mut buffer) {
            Ok((length, Some(from))) => {
                let leaving = from.pkttype() == libc::PACKET_OUTGOING;
                if from.ifindex() == index as usize {
                    picked.extend(pick(&buffer[..length.min(buffer.len())], leaving));
                }
            }
            Ok((_, None)) => {}
            Err(nix::errno::Errno::EAGAIN) if stop.load(Ordering::Relaxed) => break,
            Err(nix::errno::Errno::EAGAIN | nix::errno::Errno::EINTR) => {}
            Err(errno) => panic!("recvfrom: {errno}"),
        }
    }
    assert_eq!(drops(fd), 0, "the capture is not complete");
    picked
}

fn syn(packet: &[u8]) -> Option<Syn> {
    let sliced = SlicedPacket::from_ethernet(packet).ok()?;
    let Some(TransportSlice::Tcp(tcp)) = sliced.transport else {
        return None;
    };
    (tcp.syn() && !tcp.ack()).then(|| Syn {
        port: tcp.source_port(),
        seq: tcp.sequence_number(),
    })
}

/// Packets that found the socket's buffer full (PACKET_STATISTICS).
fn drops(fd: &OwnedFd) -> u32 {
    let mut stats = [0u32; 2];
    let mut length = size_of_val(&stats) as libc::socklen_t;
    // SAFETY: the buffer is as long as said, and of the two numbers of
    // `struct tpacket_stats`.
    let result = unsafe {
        libc::getsockopt(
            fd.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_STATISTICS,
            stats.as_mut_ptr().cast(),
            &raw mut length,
        )
    };
    assert_eq!(result, 0, "getsockopt(PACKET_STATISTICS)");
    let [_packets, drops] = stats;
    drops
}

/// A message flag that the socket calls of this crate need nowhere else.
pub(crate) const NO_FLAGS: MsgFlags = MsgFlags::empty();
