//! Devices of other kinds than the topology has.

use std::{
    fs::{File, OpenOptions},
    io::{Read as _, Write as _},
    net::IpAddr,
    os::fd::{AsFd as _, AsRawFd as _},
    os::unix::fs::OpenOptionsExt as _,
    time::{Duration, Instant},
};

use ipvs_guard::{netlink::route::RouteSocket, netns::NetNs};
use nix::{
    errno::Errno,
    libc,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{AddressFamily, SockFlag, SockType, socket},
};

use super::{PATIENCE, run};

/// `struct ifreq`, as far as it is used here.
#[repr(C)]
struct Request {
    name: [u8; libc::IFNAMSIZ],
    value: Value,
}

#[repr(C)]
union Value {
    flags: libc::c_short,
    data: *mut libc::c_void,
    /// As long as the kernel's.
    size: [u8; 24],
}

impl Request {
    fn new(device: &str) -> Self {
        let mut name = [0; libc::IFNAMSIZ];
        name[..device.len()].copy_from_slice(device.as_bytes());
        Self {
            name,
            value: Value { size: [0; 24] },
        }
    }
}

/// A device without link-layer header: packets written here come in by it, and
/// those that leave by it are read here.
pub(crate) struct Tun {
    file: File,
}

impl Tun {
    /// Makes it in `netns`, with networks `near` beyond it.
    pub(crate) fn new(netns: &NetNs, device: &str, near: &[(IpAddr, u8)]) -> Self {
        run("modprobe", &["tun"]);
        let file = netns
            .run(|| {
                let file = OpenOptions::new()
                    .read(true)
                    .write(true)
                    .custom_flags(libc::O_NONBLOCK)
                    .open("/dev/net/tun")
                    .unwrap();
                let mut request = Request::new(device);
                request.value.flags = (libc::IFF_TUN | libc::IFF_NO_PI) as libc::c_short;
                // SAFETY: the request is laid out as the kernel's and lives on.
                let result =
                    unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
                Errno::result(result).unwrap();
                let mut routes = RouteSocket::open().unwrap();
                routes.set_up(device, true).unwrap();
                for (address, prefix) in near {
                    routes.add_address(device, *address, *prefix).unwrap();
                }
                file
            })
            .unwrap();
        Self { file }
    }

    /// A packet comes in.
    pub(crate) fn send(&self, packet: &[u8]) {
        let written = (&self.file).write(packet).unwrap();
        assert_eq!(written, packet.len());
    }

    /// What `pick` makes of the next packet that it does not leave aside.
    pub(crate) fn receive<T>(&self, what: &str, pick: impl Fn(&[u8]) -> Option<T>) -> T {
        let deadline = Instant::now() + PATIENCE;
        let mut buffer = [0; 2048];
        loop {
            match (&self.file).read(&mut buffer) {
                Ok(length) => {
                    if let Some(picked) = pick(&buffer[..length]) {
                        return picked;
                    }
                }
                Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => {
                    assert!(Instant::now() < deadline, "{what}: nothing comes");
                    let mut fds = [PollFd::new(self.file.as_fd(), PollFlags::POLLIN)];
                    let pause = PollTimeout::try_from(Duration::from_millis(500)).unwrap();
                    poll(&mut fds, pause).unwrap();
                }
                Err(error) => panic!("{what}: {error}"),
            }
        }
    }
}

/// Lets a device complete the TCP checksums of what leaves by it, or not
/// (`ETHTOOL_STXCSUM`).
pub(crate) fn set_checksum_offload(netns: &NetNs, device: &str, on: bool) {
    const SIOCETHTOOL: libc::Ioctl = 0x8946;
    const ETHTOOL_STXCSUM: u32 = 0x17;

    netns
        .run(|| {
            let flags = SockFlag::SOCK_CLOEXEC;
            let socket = socket(AddressFamily::Inet, SockType::Datagram, flags, None).unwrap();
            // `struct ethtool_value`.
            let mut command = [ETHTOOL_STXCSUM, on.into()];
            let mut request = Request::new(device);
            request.value.data = (&raw mut command).cast();
            // SAFETY: both structures are laid out as the kernel's and live on.
            let result = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL, &raw mut request) };
            Errno::result(result).unwrap();
        })
        .unwrap();
}
