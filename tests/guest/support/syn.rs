//! SYNs of our own making, from a raw socket.

use std::{
    net::{IpAddr, SocketAddr, SocketAddrV4, SocketAddrV6},
    os::fd::{AsRawFd as _, OwnedFd},
};

use etherparse::PacketBuilder;
use ipvs_guard::netns::NetNs;
use nix::{
    errno::Errno,
    sys::socket::{
        AddressFamily, SockFlag, SockProtocol, SockType, SockaddrIn, SockaddrIn6, sendto, socket,
    },
};

use super::capture::NO_FLAGS;

/// Sends SYNs from a namespace.
pub(crate) struct Sender {
    fd: OwnedFd,
    from: IpAddr,
    to: SocketAddr,
}

impl Sender {
    /// From `from` in `netns` to `to`.
    pub(crate) fn new(netns: &NetNs, from: IpAddr, to: SocketAddr) -> Self {
        let family = match to {
            SocketAddr::V4(_) => AddressFamily::Inet,
            SocketAddr::V6(_) => AddressFamily::Inet6,
        };
        let fd = netns
            .run(|| {
                let flags = SockFlag::SOCK_CLOEXEC;
                socket(family, SockType::Raw, flags, SockProtocol::Raw).unwrap()
            })
            .unwrap();
        Self { fd, from, to }
    }

    /// One SYN.
    pub(crate) fn send(&self, port: u16, seq: u32) {
        let mut bytes = Vec::with_capacity(64);
        let ip = match (self.from, self.to.ip()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                PacketBuilder::ipv4(from.octets(), to.octets(), 64)
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                PacketBuilder::ipv6(from.octets(), to.octets(), 64)
            }
            (from, to) => panic!("{from} and {to} are of two families"),
        };
        ip.tcp(port, self.to.port(), seq, 64_240)
            .syn()
            .write(&mut bytes, &[])
            .unwrap();
        loop {
            let fd = self.fd.as_raw_fd();
            let sent = match self.to {
                SocketAddr::V4(to) => {
                    let to = SockaddrIn::from(SocketAddrV4::new(*to.ip(), 0));
                    sendto(fd, &bytes, &to, NO_FLAGS)
                }
                SocketAddr::V6(to) => {
                    let to = SockaddrIn6::from(SocketAddrV6::new(*to.ip(), 0, 0, 0));
                    sendto(fd, &bytes, &to, NO_FLAGS)
                }
            };
            match sent {
                Ok(_) => return,
                Err(Errno::ENOBUFS | Errno::EINTR) => std::thread::yield_now(),
                Err(errno) => panic!("sending a SYN: {errno}"),
            }
        }
    }
}
