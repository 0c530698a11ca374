//! Whole IP packets of our own making, from raw sockets.

use std::{
    io,
    net::{IpAddr, SocketAddrV4, SocketAddrV6},
    os::fd::{AsRawFd as _, OwnedFd},
};

use nix::{
    errno::Errno,
    sys::socket::{
        AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, SockaddrIn6, sendto,
        socket,
    },
};

/// Sends packets of one family from the namespace it was opened in; they pass
/// LOCAL_OUT as any packet of the node does.
#[derive(Debug)]
pub(crate) struct RawSocket(OwnedFd);

impl RawSocket {
    /// A socket for packets to addresses of `to`'s family.
    pub(crate) fn open(to: IpAddr) -> io::Result<Self> {
        let family = match to {
            IpAddr::V4(_) => AddressFamily::Inet,
            IpAddr::V6(_) => AddressFamily::Inet6,
        };
        // Protocol RAW: the bytes are the whole packet, header and all.
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        Ok(Self(socket(
            family,
            SockType::Raw,
            flags,
            SockProtocol::Raw,
        )?))
    }

    /// Sends one packet.
    pub(crate) fn send(&self, packet: &[u8], to: IpAddr) -> Result<(), Errno> {
        let fd = self.0.as_raw_fd();
        let flags = MsgFlags::empty();
        match to {
            IpAddr::V4(ip) => {
                let to = SockaddrIn::from(SocketAddrV4::new(ip, 0));
                sendto(fd, packet, &to, flags)
            }
            IpAddr::V6(ip) => {
                let to = SockaddrIn6::from(SocketAddrV6::new(ip, 0, 0, 0));
                sendto(fd, packet, &to, flags)
            }
        }?;
        Ok(())
    }
}
