//! Connection entries made by the kernel's own protocol, as another node would send
//! them: many at once, and without the code under test.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket},
    os::fd::AsRawFd as _,
    thread,
    time::Duration,
};

use ipvs_guard::{
    lab::topology::Topology,
    netlink::{ipvs::Backup, route::RouteSocket},
};
use nix::libc;

const TIME_WAIT: u16 = 5;
/// `IP_VS_CONN_F_INACTIVE`.
const INACTIVE: u32 = 0x0100;
const PER_MESSAGE: usize = 38;

/// An IPv4 entry in TIME_WAIT: client, service, destination.
pub(crate) type Entry = [SocketAddr; 3];

/// A backup daemon on the node's loopback device, and a socket that reaches it.
pub(crate) struct Feeder<'a> {
    topology: &'a Topology,
    socket: UdpSocket,
}

/// Where the daemon listens.
pub(crate) const GROUP: (Ipv4Addr, u16) = (Ipv4Addr::new(224, 0, 0, 200), 55_555);
const SYNC_ID: u8 = 7;

impl<'a> Feeder<'a> {
    pub(crate) fn start(topology: &'a Topology) -> Self {
        topology
            .open_ipvs()
            .unwrap()
            .start_backup(&backup())
            .unwrap();
        Self::of(topology)
    }

    /// The same, having ended whatever daemon there is.
    pub(crate) fn in_place_of_any(topology: &'a Topology) -> Self {
        let mut ipvs = topology.open_ipvs().unwrap();
        while ipvs.start_backup(&backup()).is_err() {
            let _none = ipvs.stop_backup();
        }
        Self::of(topology)
    }

    fn of(topology: &'a Topology) -> Self {
        let up = || RouteSocket::open().unwrap().set_up("lo", true).unwrap();
        topology.node().run(up).unwrap();
        let socket = topology.node().run(|| towards("lo")).unwrap();
        Self { topology, socket }
    }

    /// Makes entries that live so many seconds.
    pub(crate) fn make(&self, entries: &[Entry], seconds: u32) {
        for (number, entries) in entries.chunks(PER_MESSAGE).enumerate() {
            let message = message(SYNC_ID, entries, seconds);
            self.socket.send_to(&message, GROUP).unwrap();
            // So that its queue never fills.
            if number % 8 == 7 {
                thread::sleep(Duration::from_millis(4));
            }
        }
    }

    pub(crate) fn stop(self) {
        thread::sleep(Duration::from_millis(300));
        self.topology.open_ipvs().unwrap().stop_backup().unwrap();
    }
}

fn backup() -> Backup {
    Backup {
        device: "lo".into(),
        group: GROUP.0,
        port: GROUP.1,
        sync_id: SYNC_ID,
    }
}

/// A socket whose multicasts leave by a device of this thread's namespace.
pub(crate) fn towards(device: &str) -> UdpSocket {
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    let index = nix::net::if_::if_nametoindex(device).unwrap();
    let to = libc::ip_mreqn {
        imr_multiaddr: libc::in_addr { s_addr: 0 },
        imr_address: libc::in_addr { s_addr: 0 },
        imr_ifindex: index.cast_signed(),
    };
    // SAFETY: the option takes this structure, which lives on.
    let set = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_IP,
            libc::IP_MULTICAST_IF,
            (&raw const to).cast(),
            size_of_val(&to) as u32,
        )
    };
    assert_eq!(set, 0);
    socket
}

/// A message of version 1.
pub(crate) fn message(sync_id: u8, entries: &[Entry], seconds: u32) -> Vec<u8> {
    const HEADER: u16 = 8;
    const ENTRY: u16 = 36;
    let size = HEADER + ENTRY * entries.len() as u16;
    let [a, b] = size.to_be_bytes();
    let mut message = vec![0, sync_id, a, b, entries.len() as u8, 1, 0, 0];
    for entry in entries {
        message.extend([0, 6]);
        message.extend(ENTRY.to_be_bytes());
        message.extend(INACTIVE.to_be_bytes());
        message.extend(TIME_WAIT.to_be_bytes());
        for end in entry {
            message.extend(end.port().to_be_bytes());
        }
        message.extend(0u32.to_be_bytes());
        message.extend(seconds.to_be_bytes());
        for end in entry {
            let IpAddr::V4(ip) = end.ip() else {
                panic!("{end} is not IPv4");
            };
            message.extend(ip.octets());
        }
    }
    message
}
