//! Links, addresses, routes and neighbours of one network namespace (rtnetlink).

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd as _};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage};
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVeth, InfoVlan, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType,
    LinkMessage,
};
use netlink_packet_route::neighbour::{NeighbourAttribute, NeighbourMessage, NeighbourState};
use netlink_packet_route::route::{
    RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::Socket;
use netlink_sys::protocols::NETLINK_ROUTE;

use super::NetlinkError;
use super::transport::Transport;

/// An Ethernet address.
pub type Mac = [u8; 6];

/// A device of the namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its interface index, valid in its own namespace only.
    pub index: u32,
    /// Its Ethernet address; none on devices without one.
    pub mac: Option<Mac>,
    /// Whether it is administratively up (IFF_UP).
    pub up: bool,
}

/// A device as a listing shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// Its interface index, valid in its own namespace only.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Whether it is set up (`IFF_UP`).
    pub up: bool,
    /// What stands before the network header of its packets.
    pub link_layer: LinkLayer,
    /// Its Ethernet address; none on devices without one.
    pub mac: Option<Mac>,
    /// Whether it is hardware, or looks like it: of no software kind
    /// (`IFLA_INFO_KIND`).
    pub physical: bool,
    /// Whether it is a part of a bond, bridge or team, or has VLANs on it: its
    /// packets have more to them than is in their bytes.
    pub shared: bool,
}

/// What stands before the network header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkLayer {
    /// An Ethernet header.
    Ethernet,
    /// Nothing: tunnels, PPP, WireGuard.
    Bare,
    /// The loopback device's, where nothing is forwarded.
    Loopback,
    /// Anything else.
    Other,
}

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "there are dozens, and more to come"
)]
impl From<LinkLayerType> for LinkLayer {
    fn from(kind: LinkLayerType) -> Self {
        match kind {
            LinkLayerType::Ether => Self::Ethernet,
            LinkLayerType::Loopback => Self::Loopback,
            LinkLayerType::None
            | LinkLayerType::Rawip
            | LinkLayerType::Ppp
            | LinkLayerType::Tunnel
            | LinkLayerType::Tunnel6
            | LinkLayerType::Sit => Self::Bare,
            _ => Self::Other,
        }
    }
}

/// Tells that devices of the namespace may have changed, for less than a listing of
/// hundreds costs.
#[derive(Debug)]
pub struct LinkMonitor(Socket);

impl LinkMonitor {
    /// Listens in the calling thread's network namespace from now on.
    ///
    /// # Errors
    /// When the kernel refuses the socket.
    pub fn open() -> Result<Self, NetlinkError> {
        /// `RTNLGRP_LINK`.
        const LINKS: u32 = 1;
        let open = || -> io::Result<Socket> {
            let mut socket = Socket::new(NETLINK_ROUTE)?;
            socket.bind_auto()?;
            socket.add_membership(LINKS)?;
            socket.set_non_blocking(true)?;
            Ok(socket)
        };
        open()
            .map(Self)
            .map_err(|error| NetlinkError::new("socket", "RTNLGRP_LINK".to_owned(), error))
    }

    /// Whether anything was said of a device since the last call, or was said and
    /// lost.
    pub fn has_news(&mut self) -> bool {
        let mut news = false;
        // Of a message only that it came is of interest: it may be cut off.
        let mut start = [0u8; 64];
        loop {
            match self.0.recv(&mut &mut start[..], 0) {
                Ok(_) => news = true,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return news,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // The queue was full: what it was is lost, that it was is not.
                Err(_) => return true,
            }
        }
    }
}

/// An rtnetlink socket of the namespace it was opened in.
#[derive(Debug)]
pub struct RouteSocket(pub(super) Transport);

impl RouteSocket {
    /// Opens a socket in the calling thread's network namespace.
    ///
    /// # Errors
    /// When the kernel refuses the socket.
    pub fn open() -> Result<Self, NetlinkError> {
        let transport = Transport::open(NETLINK_ROUTE)
            .map_err(|e| NetlinkError::new("socket", "NETLINK_ROUTE".to_owned(), e))?;
        Ok(Self(transport))
    }

    /// Creates a pair of connected Ethernet devices, the second in another
    /// namespace (`veth_newlink`, drivers/net/veth.c). Both start down.
    ///
    /// # Errors
    /// [`NetlinkError::Exists`] when a name is taken.
    pub fn add_veth(
        &mut self,
        name: &str,
        peer: &str,
        peer_netns: impl AsFd,
    ) -> Result<(), NetlinkError> {
        let mut other = LinkMessage::default();
        other
            .attributes
            .push(LinkAttribute::IfName(peer.to_owned()));
        other
            .attributes
            .push(LinkAttribute::NetNsFd(peer_netns.as_fd().as_raw_fd()));
        let mut message = LinkMessage::default();
        message
            .attributes
            .push(LinkAttribute::IfName(name.to_owned()));
        message.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(other))),
        ]));
        self.create("RTM_NEWLINK", RouteNetlinkMessage::NewLink(message), || {
            format!("veth {name} and {peer}")
        })
    }

    /// Moves a device to another namespace, where it is down and has no address. A
    /// hardware device comes back when that namespace ends.
    ///
    /// # Errors
    /// [`NetlinkError::NotFound`] when there is none of that name.
    pub fn move_link(&mut self, name: &str, netns: impl AsFd) -> Result<(), NetlinkError> {
        let mut message = by_name(name);
        message
            .attributes
            .push(LinkAttribute::NetNsFd(netns.as_fd().as_raw_fd()));
        self.send(
            "RTM_SETLINK",
            RouteNetlinkMessage::SetLink(message),
            0,
            || format!("{name} to another namespace"),
        )
    }

    /// Creates a device for the packets of `parent` that have a tag of VLAN `id`
    /// (IEEE 802.1Q). It starts down.
    ///
    /// # Errors
    /// [`NetlinkError::Exists`] when the name is taken or the VLAN has a device.
    pub fn add_vlan(&mut self, name: &str, parent: &str, id: u16) -> Result<(), NetlinkError> {
        let mut message = LinkMessage::default();
        message
            .attributes
            .push(LinkAttribute::IfName(name.to_owned()));
        message
            .attributes
            .push(LinkAttribute::Link(self.link(parent)?.index));
        message.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Vlan),
            LinkInfo::Data(InfoData::Vlan(vec![InfoVlan::Id(id)])),
        ]));
        self.create("RTM_NEWLINK", RouteNetlinkMessage::NewLink(message), || {
            format!("VLAN {id} of {parent} as {name}")
        })
    }

    /// Removes a device, and with a veth its peer.
    ///
    /// # Errors
    /// [`NetlinkError::NotFound`] when there is none of that name.
    pub fn delete_link(&mut self, name: &str) -> Result<(), NetlinkError> {
        let message = RouteNetlinkMessage::DelLink(by_name(name));
        self.send("RTM_DELLINK", message, 0, || name.to_owned())
    }

    /// Looks a device up by its name.
    ///
    /// # Errors
    /// [`NetlinkError::NotFound`] when there is none of that name.
    pub fn link(&mut self, name: &str) -> Result<Link, NetlinkError> {
        const CALL: &str = "RTM_GETLINK";
        let request = RouteNetlinkMessage::GetLink(by_name(name));
        let answers = self
            .0
            .request(request, 0)
            .map_err(|e| NetlinkError::new(CALL, name.to_owned(), e))?;
        for answer in answers {
            if let RouteNetlinkMessage::NewLink(message) = answer {
                return Ok(Link {
                    index: message.header.index,
                    mac: mac_of(&message),
                    up: message.header.flags.contains(LinkFlags::Up),
                });
            }
        }
        Err(NetlinkError::Malformed {
            call: CALL,
            object: name.to_owned(),
            reason: "no device in it".to_owned(),
        })
    }

    /// Index of the device by which packets to an address leave.
    ///
    /// # Errors
    /// [`NetlinkError::Kernel`] when there is no route.
    pub fn device_towards(&mut self, address: IpAddr) -> Result<u32, NetlinkError> {
        const CALL: &str = "RTM_GETROUTE";
        let mut message = RouteMessage::default();
        message.header.address_family = family(address);
        message.header.destination_prefix_length = if address.is_ipv4() { 32 } else { 128 };
        message
            .attributes
            .push(RouteAttribute::Destination(address.into()));
        let answers = self
            .0
            .request(RouteNetlinkMessage::GetRoute(message), 0)
            .map_err(|e| NetlinkError::new(CALL, address.to_string(), e))?;
        let device = answers.iter().find_map(|answer| {
            let RouteNetlinkMessage::NewRoute(route) = answer else {
                return None;
            };
            route.attributes.iter().find_map(|attribute| {
                let RouteAttribute::Oif(index) = attribute else {
                    return None;
                };
                Some(*index)
            })
        });
        device.ok_or_else(|| NetlinkError::Malformed {
            call: CALL,
            object: address.to_string(),
            reason: "no device in it".to_owned(),
        })
    }

    /// Every device of the namespace.
    ///
    /// # Errors
    /// When the kernel refuses the listing.
    pub fn devices(&mut self) -> Result<Vec<Device>, NetlinkError> {
        let request = RouteNetlinkMessage::GetLink(LinkMessage::default());
        let answers = self
            .0
            .dump(request)
            .map_err(|e| NetlinkError::new("RTM_GETLINK", "every device".to_owned(), e))?;
        let mut devices = Vec::new();
        let mut parents = Vec::new();
        for answer in &answers {
            if let RouteNetlinkMessage::NewLink(message) = answer {
                parents.extend(vlan_parent(message));
                devices.extend(device(message));
            }
        }
        for device in &mut devices {
            device.shared |= parents.contains(&device.index);
        }
        Ok(devices)
    }

    /// Sets a device up or down.
    ///
    /// # Errors
    /// [`NetlinkError::NotFound`] when there is none of that name.
    pub fn set_up(&mut self, name: &str, up: bool) -> Result<(), NetlinkError> {
        let mut message = by_name(name);
        message.header.change_mask = LinkFlags::Up;
        if up {
            message.header.flags = LinkFlags::Up;
        }
        self.send(
            "RTM_SETLINK",
            RouteNetlinkMessage::SetLink(message),
            0,
            || format!("{name} {}", if up { "up" } else { "down" }),
        )
    }

    /// Sets the largest packet of a device, in bytes without the link-layer header.
    ///
    /// # Errors
    /// What the kernel answered.
    pub fn set_mtu(&mut self, name: &str, mtu: u32) -> Result<(), NetlinkError> {
        let mut message = by_name(name);
        message.attributes.push(LinkAttribute::Mtu(mtu));
        self.send(
            "RTM_SETLINK",
            RouteNetlinkMessage::SetLink(message),
            0,
            || format!("{name} mtu {mtu}"),
        )
    }

    /// Adds an address to a device. It can be used at once: duplicate address
    /// detection is left out (IFA_F_NODAD).
    ///
    /// # Errors
    /// [`NetlinkError::Exists`] when the device has it already.
    pub fn add_address(
        &mut self,
        name: &str,
        address: IpAddr,
        prefix: u8,
    ) -> Result<(), NetlinkError> {
        let message = self.address(name, address, prefix)?;
        self.create(
            "RTM_NEWADDR",
            RouteNetlinkMessage::NewAddress(message),
            || format!("{address}/{prefix} on {name}"),
        )
    }

    /// Takes an address from a device.
    ///
    /// # Errors
    /// [`NetlinkError::NotFound`] when the device is not there; EADDRNOTAVAIL in
    /// [`NetlinkError::Kernel`] when it does not have the address.
    pub fn delete_address(
        &mut self,
        name: &str,
        address: IpAddr,
        prefix: u8,
    ) -> Result<(), NetlinkError> {
        let message = self.address(name, address, prefix)?;
        self.send(
            "RTM_DELADDR",
            RouteNetlinkMessage::DelAddress(message),
            0,
            || format!("{address}/{prefix} on {name}"),
        )
    }

    /// Adds the default route of the gateway's family through a device.
    ///
    /// # Errors
    /// [`NetlinkError::Exists`] when there is one; ENETUNREACH in
    /// [`NetlinkError::Kernel`] when the gateway is on no connected network.
    pub fn add_default_route(&mut self, name: &str, gateway: IpAddr) -> Result<(), NetlinkError> {
        let index = self.link(name)?.index;
        let mut message = RouteMessage::default();
        message.header.address_family = family(gateway);
        message.header.table = RouteHeader::RT_TABLE_MAIN;
        message.header.protocol = RouteProtocol::Static;
        message.header.scope = RouteScope::Universe;
        message.header.kind = RouteType::Unicast;
        message
            .attributes
            .push(RouteAttribute::Gateway(gateway.into()));
        message.attributes.push(RouteAttribute::Oif(index));
        self.create(
            "RTM_NEWROUTE",
            RouteNetlinkMessage::NewRoute(message),
            || format!("default via {gateway} on {name}"),
        )
    }

    /// Sets a neighbour entry that is never asked for and never expires
    /// (NUD_PERMANENT), in place of what was there.
    ///
    /// # Errors
    /// [`NetlinkError::NotFound`] when the device is not there.
    pub fn set_neighbour(
        &mut self,
        name: &str,
        address: IpAddr,
        mac: Mac,
    ) -> Result<(), NetlinkError> {
        let mut message = NeighbourMessage::default();
        message.header.family = family(address);
        message.header.ifindex = self.link(name)?.index;
        message.header.state = NeighbourState::Permanent;
        message
            .attributes
            .push(NeighbourAttribute::Destination(address.into()));
        message
            .attributes
            .push(NeighbourAttribute::LinkLayerAddress(mac.to_vec()));
        self.send(
            "RTM_NEWNEIGH",
            RouteNetlinkMessage::NewNeighbour(message),
            NLM_F_CREATE | NLM_F_REPLACE,
            || format!("{address} on {name}"),
        )
    }

    fn address(
        &mut self,
        name: &str,
        address: IpAddr,
        prefix: u8,
    ) -> Result<AddressMessage, NetlinkError> {
        let mut message = AddressMessage::default();
        message.header.family = family(address);
        message.header.prefix_len = prefix;
        message.header.flags = AddressHeaderFlags::Nodad;
        message.header.index = self.link(name)?.index;
        message.attributes.push(AddressAttribute::Local(address));
        message.attributes.push(AddressAttribute::Address(address));
        Ok(message)
    }

    fn create(
        &mut self,
        call: &'static str,
        message: RouteNetlinkMessage,
        object: impl FnOnce() -> String,
    ) -> Result<(), NetlinkError> {
        self.send(call, message, NLM_F_CREATE | NLM_F_EXCL, object)
    }

    fn send(
        &mut self,
        call: &'static str,
        message: RouteNetlinkMessage,
        flags: u16,
        object: impl FnOnce() -> String,
    ) -> Result<(), NetlinkError> {
        self.0
            .request(message, flags)
            .map_err(|e| NetlinkError::new(call, object(), e))?;
        Ok(())
    }
}

fn by_name(name: &str) -> LinkMessage {
    let mut message = LinkMessage::default();
    message
        .attributes
        .push(LinkAttribute::IfName(name.to_owned()));
    message
}

fn device(message: &LinkMessage) -> Option<Device> {
    let name = message.attributes.iter().find_map(|attribute| {
        let LinkAttribute::IfName(name) = attribute else {
            return None;
        };
        Some(name.clone())
    })?;
    let part_of = |attribute: &LinkAttribute| matches!(attribute, LinkAttribute::Controller(_));
    Some(Device {
        index: message.header.index,
        name,
        up: message.header.flags.contains(LinkFlags::Up),
        link_layer: message.header.link_layer_type.into(),
        mac: mac_of(message),
        physical: kind(message).is_none(),
        shared: message.attributes.iter().any(part_of),
    })
}

fn kind(message: &LinkMessage) -> Option<&InfoKind> {
    message.attributes.iter().find_map(|attribute| {
        let LinkAttribute::LinkInfo(parts) = attribute else {
            return None;
        };
        parts.iter().find_map(|part| {
            let LinkInfo::Kind(kind) = part else {
                return None;
            };
            Some(kind)
        })
    })
}

/// Index of the device that a VLAN is on.
fn vlan_parent(message: &LinkMessage) -> Option<u32> {
    if kind(message) != Some(&InfoKind::Vlan) {
        return None;
    }
    message.attributes.iter().find_map(|attribute| {
        let LinkAttribute::Link(index) = attribute else {
            return None;
        };
        Some(*index)
    })
}

fn mac_of(message: &LinkMessage) -> Option<Mac> {
    message.attributes.iter().find_map(|attribute| {
        let LinkAttribute::Address(bytes) = attribute else {
            return None;
        };
        bytes.as_slice().try_into().ok()
    })
}

fn family(address: IpAddr) -> AddressFamily {
    match address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::{SocketAddr, TcpListener, TcpStream};

    use super::*;
    use crate::netns::{NetNs, NetNsError};

    #[test]
    fn lo_is_found_and_a_name_nobody_has_is_not() {
        let mut socket = RouteSocket::open().unwrap();
        assert_eq!(socket.link("lo").unwrap().index, 1);
        let devices = socket.devices().unwrap();
        let lo = devices.iter().find(|device| device.name == "lo").unwrap();
        assert_eq!((lo.index, lo.link_layer), (1, LinkLayer::Loopback));
        assert!(matches!(
            socket.link("nobody0"),
            Err(NetlinkError::NotFound { .. })
        ));
    }

    #[test]
    fn a_device_that_comes_or_goes_is_news() {
        let Ok(ns) = NetNs::new() else { return };
        let mut monitor = ns.run(LinkMonitor::open).unwrap().unwrap();
        assert!(!monitor.has_news());
        let mut socket = ns.run(RouteSocket::open).unwrap().unwrap();
        socket.set_up("lo", true).unwrap();
        assert!(monitor.has_news());
        assert!(!monitor.has_news());
    }

    /// Needs CAP_SYS_ADMIN, which not every machine that tests gives.
    #[test]
    fn two_namespaces_talk_over_a_pair_of_devices() {
        let (left, right) = match (NetNs::new(), NetNs::new()) {
            (Ok(left), Ok(right)) => (left, right),
            (Err(NetNsError::Privilege { .. }), _) => return,
            other => panic!("{other:?}"),
        };
        let mut l = left.run(RouteSocket::open).unwrap().unwrap();
        let mut r = right.run(RouteSocket::open).unwrap().unwrap();
        l.add_veth("l0", "r0", &right).unwrap();
        assert!(matches!(
            l.add_veth("l0", "r1", &right),
            Err(NetlinkError::Exists { .. })
        ));

        for (mine, theirs) in [("192.0.2.1", "192.0.2.2"), ("2001:db8::1", "2001:db8::2")] {
            let (mine, theirs): (IpAddr, IpAddr) = (mine.parse().unwrap(), theirs.parse().unwrap());
            let prefix = if mine.is_ipv4() { 24 } else { 64 };
            for (socket, name, own, other) in
                [(&mut l, "l0", mine, theirs), (&mut r, "r0", theirs, mine)]
            {
                socket.set_up(name, true).unwrap();
                socket.add_address(name, own, prefix).unwrap();
                socket.add_default_route(name, other).unwrap();
            }
            l.set_neighbour("l0", theirs, r.link("r0").unwrap().mac.unwrap())
                .unwrap();
            r.set_neighbour("r0", mine, l.link("l0").unwrap().mac.unwrap())
                .unwrap();
            assert!(l.link("l0").unwrap().up);

            let address = SocketAddr::new(theirs, 80);
            let listener = right.run(|| TcpListener::bind(address)).unwrap().unwrap();
            let mut client = left.run(|| TcpStream::connect(address)).unwrap().unwrap();
            client.write_all(b"x").unwrap();
            let mut byte = [0];
            listener.accept().unwrap().0.read_exact(&mut byte).unwrap();
            assert_eq!(&byte, b"x");

            r.delete_address("r0", theirs, prefix).unwrap();
            assert!(right.run(|| TcpListener::bind(address)).unwrap().is_err());
        }
        l.delete_link("l0").unwrap();
        assert!(matches!(r.link("r0"), Err(NetlinkError::NotFound { .. })));
    }
}
