//! From the bytes of a packet to its TCP header, with every step checked against
//! the packet's end.

use core::ptr;

use ipvs_guard_common::{
    addr::{Addr, Endpoint},
    reply::TCP_LEN,
};
use network_types::{
    eth::EthHdr,
    ip::{IpProto, Ipv4Hdr, Ipv6Hdr},
};

use crate::settled::settled;

pub(super) const SYN: u8 = 0x02;
pub(super) const RST: u8 = 0x04;
pub(super) const ACK: u8 = 0x10;

const TCP: u8 = IpProto::Tcp as u8;
const CARRIES_IPV4: u8 = IpProto::Ipv4 as u8;
const CARRIES_IPV6: u8 = IpProto::Ipv6 as u8;
const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;
const VLAN: u16 = 0x8100;
const SERVICE_VLAN: u16 = 0x88a8;
/// VLAN tags in the packet's bytes that are stepped over at most.
const TAGS: u32 = 2;
const TAG_LEN: usize = 4;
/// IPv6 extension headers that are stepped over at most.
const EXTENSIONS: u32 = 6;
/// No TCP header begins further in: the verifier wants a bound.
const FURTHEST: usize = 0x3ff;

/// The linear bytes of a packet, from its first header on.
#[derive(Clone, Copy)]
pub(super) struct Span {
    pub(super) start: usize,
    pub(super) end: usize,
}

/// Where the headers of a TCP segment are, in bytes from the packet's start.
#[derive(Clone, Copy)]
pub(super) struct Tcp {
    pub(super) network: usize,
    pub(super) transport: usize,
    pub(super) v4: bool,
    /// The header itself, as long as nothing changes the packet.
    header: *const [u8; TCP_LEN],
}

impl Tcp {
    /// `N` bytes of the header.
    #[inline(always)]
    fn field<const N: usize>(&self, at: usize) -> [u8; N] {
        // SAFETY: `Span::tcp` has checked that all of the header is there, and the
        // fields asked for are within.
        unsafe { ptr::read_unaligned(self.header.cast::<u8>().add(at).cast()) }
    }

    #[inline(always)]
    pub(super) fn flags(&self) -> u8 {
        let [flags] = self.field(13);
        flags
    }

    #[inline(always)]
    pub(super) fn seq(&self) -> u32 {
        u32::from_be_bytes(self.field(4))
    }
}

impl Span {
    /// Where the `size` bytes at `offset` begin, if all of them are within the
    /// packet.
    #[inline(always)]
    fn place(&self, offset: usize, size: usize) -> Option<usize> {
        let from = self.start + offset;
        (from + size <= self.end).then_some(from)
    }

    /// The same for an offset that is computed from the packet's bytes.
    #[inline(always)]
    fn far_place(&self, offset: usize, size: usize) -> Option<usize> {
        // The verifier goes by the register that was compared: otherwise the
        // compiler computes the address a second time for its use.
        let from = settled(self.start + offset);
        (from + size <= self.end).then_some(from)
    }

    /// What is at `offset`. `T` is bytes.
    #[inline(always)]
    pub(super) fn at<T: Copy>(&self, offset: usize) -> Option<T> {
        let from = self.place(offset, size_of::<T>())?;
        // SAFETY: inside the packet, which the verifier checks again; arrays of
        // bytes take any value and any alignment.
        Some(unsafe { ptr::read_unaligned(from as *const T) })
    }

    /// The `N` bytes at `offset`, to change them.
    #[inline(always)]
    pub(super) fn part<const N: usize>(&self, offset: usize) -> Option<&'static mut [u8; N]> {
        let from = self.far_place(offset, N)?;
        // SAFETY: as in `at`; the packet is this program's to change, and no two
        // parts are held at once.
        Some(unsafe { &mut *(from as *mut [u8; N]) })
    }

    /// Whether it is plain to see that the packet is no SYN and no SYN-ACK: the way
    /// of most packets, so nothing is looked at that does not have to be.
    #[inline(always)]
    pub(super) fn is_no_syn(&self, link_layer: bool) -> bool {
        const PLAIN: u8 = 0x45;
        let network = if link_layer { EthHdr::LEN } else { 0 };
        // With the end of IPv4's flags all before it is there.
        let Some([flags]) = self.at::<[u8; 1]>(network + Ipv4Hdr::LEN + 13) else {
            return false;
        };
        let kind = |kind: u16| !link_layer || self.at(network - 2) == Some(kind.to_be_bytes());
        // Of anything but TCP the flags are some byte, and it is no SYN either way.
        if self.at::<[u8; 1]>(network) == Some([PLAIN]) {
            return kind(IPV4) && flags & SYN == 0;
        }
        let next = self.at::<[u8; 1]>(network + 6);
        let flags = self.at::<[u8; 1]>(network + Ipv6Hdr::LEN + 13);
        kind(IPV6) && next == Some([TCP]) && flags.is_some_and(|[flags]| flags & SYN == 0)
    }

    /// Finds the TCP header; `None` for anything else, fragments, and what
    /// cannot be parsed.
    #[inline(always)]
    pub(super) fn tcp(&self, link_layer: bool) -> Option<Tcp> {
        let (network, v4) = self.network(link_layer)?;
        self.segment(network, v4)
    }

    /// The same for a segment that IPVS has put into another IP packet, as it does for
    /// a tunnelled destination (`ip_vs_tunnel_xmit`, 5.10 to 7.3): without options and
    /// extensions, and not in UDP or GRE.
    #[inline(always)]
    pub(super) fn tunnelled(&self, link_layer: bool) -> Option<Tcp> {
        const IN_IPV4: [u8; 1] = [0x45];
        let (network, v4) = self.network(link_layer)?;
        let ([carried], outer) = if v4 {
            if self.at::<[u8; 1]>(network)? != IN_IPV4 {
                return None;
            }
            (self.at::<[u8; 1]>(network + 9)?, Ipv4Hdr::LEN)
        } else {
            (self.at::<[u8; 1]>(network + 6)?, Ipv6Hdr::LEN)
        };
        match carried {
            CARRIES_IPV4 => self.segment(network + outer, true),
            CARRIES_IPV6 => self.segment(network + outer, false),
            _ => None,
        }
    }

    #[inline(always)]
    fn network(&self, link_layer: bool) -> Option<(usize, bool)> {
        if link_layer {
            return self.behind_ethernet();
        }
        // Two bytes: kernels before 6.2 learn nothing from a comparison of the
        // packet's very begin with its end.
        match self.at::<[u8; 2]>(0)?[0] >> 4 {
            4 => Some((0, true)),
            6 => Some((0, false)),
            _ => None,
        }
    }

    /// The TCP header of the IP packet at `network`.
    #[inline(always)]
    fn segment(&self, network: usize, v4: bool) -> Option<Tcp> {
        let transport = if v4 {
            let header: [u8; 10] = self.at(network)?;
            let [fragment_hi, fragment_lo, protocol] = [header[6], header[7], header[9]];
            // More fragments, or not the first: of neither all is here.
            if protocol != TCP || fragment_hi & 0x3f != 0 || fragment_lo != 0 {
                return None;
            }
            let length = usize::from(header[0] & 0xf) * 4;
            let total = usize::from(u16::from_be_bytes([header[2], header[3]]));
            // What the kernel throws away is not answered: another version's header,
            // and a TCP header in what fills the frame up.
            if header[0] >> 4 != 4 || length < Ipv4Hdr::LEN || total < length + TCP_LEN {
                return None;
            }
            network + length
        } else {
            let header: [u8; 7] = self.at(network)?;
            let transport = match header[6] {
                TCP => network + Ipv6Hdr::LEN,
                next => self.behind_extensions(network, next)?,
            };
            let payload = usize::from(u16::from_be_bytes([header[4], header[5]]));
            // As above.
            if header[0] >> 4 != 6 || network + Ipv6Hdr::LEN + payload < transport + TCP_LEN {
                return None;
            }
            transport
        };
        let header = self.far_place(transport, TCP_LEN)?;
        Some(Tcp {
            network,
            transport,
            v4,
            header: header as *const [u8; TCP_LEN],
        })
    }

    #[inline(always)]
    fn behind_ethernet(&self) -> Option<(usize, bool)> {
        let mut network = EthHdr::LEN;
        let mut kind = u16::from_be_bytes(self.at(network - 2)?);
        for _ in 0..TAGS {
            if kind != VLAN && kind != SERVICE_VLAN {
                break;
            }
            network += TAG_LEN;
            kind = u16::from_be_bytes(self.at(network - 2)?);
        }
        match kind {
            IPV4 => Some((network, true)),
            IPV6 => Some((network, false)),
            _ => None,
        }
    }

    #[inline(always)]
    fn behind_extensions(&self, network: usize, first: u8) -> Option<usize> {
        const HOP_BY_HOP: u8 = IpProto::HopOpt as u8;
        const ROUTING: u8 = IpProto::Ipv6Route as u8;
        const AUTHENTICATION: u8 = IpProto::Ah as u8;
        const DESTINATION: u8 = IpProto::Ipv6Opts as u8;

        let mut next = first;
        let mut offset = network + Ipv6Hdr::LEN;
        for _ in 0..EXTENSIONS {
            if next == TCP {
                break;
            }
            let place = self.far_place(offset & FURTHEST, 2)?;
            // SAFETY: inside the packet, as was just checked.
            let [following, length] = unsafe { ptr::read_unaligned(place as *const [u8; 2]) };
            offset += match next {
                HOP_BY_HOP | ROUTING | DESTINATION => (usize::from(length) + 1) * 8,
                AUTHENTICATION => (usize::from(length) + 2) * 4,
                // A fragment, or what nobody here knows.
                _ => return None,
            };
            if offset > FURTHEST {
                return None;
            }
            next = following;
        }
        (next == TCP).then_some(offset & FURTHEST)
    }

    #[inline(always)]
    pub(super) fn source(&self, tcp: &Tcp) -> Option<Endpoint> {
        Some(Endpoint::new(self.address(tcp, 12, 8)?, tcp.field(0)))
    }

    #[inline(always)]
    pub(super) fn destination(&self, tcp: &Tcp) -> Option<Endpoint> {
        Some(Endpoint::new(self.address(tcp, 16, 24)?, tcp.field(2)))
    }

    #[inline(always)]
    fn address(&self, tcp: &Tcp, v4: usize, v6: usize) -> Option<Addr> {
        if tcp.v4 {
            Some(Addr::v4(self.at(tcp.network + v4)?))
        } else {
            Some(Addr::v6(self.at(tcp.network + v6)?))
        }
    }
}
