//! Packets of our own making, and resets as a client reads them.

use std::net::{IpAddr, SocketAddr};

use etherparse::{
    EtherType, IpHeaders, IpNumber, Ipv4Header, Ipv6Header, NetSlice, SlicedPacket, TcpHeader,
    TransportSlice,
};

/// Bytes of an Ethernet header.
pub(crate) const ETHERNET: usize = 14;
/// Bytes of a TCP header without options.
pub(crate) const TCP: usize = 20;
/// Ethernet address of whoever sends the frames.
const SENDER: [u8; 6] = [2, 0, 0, 0, 0, 1];

/// A TCP segment on its way, to be changed before it is written.
#[derive(Clone)]
pub(crate) struct Segment {
    /// Ethernet types of the VLAN tags before the network header.
    pub(crate) tags: Vec<u16>,
    pub(crate) ip: IpHeaders,
    pub(crate) tcp: TcpHeader,
    pub(crate) payload: Vec<u8>,
}

impl Segment {
    /// A segment without a flag.
    pub(crate) fn new(from: SocketAddr, to: SocketAddr, seq: u32) -> Self {
        let ip = match (from.ip(), to.ip()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                let (from, to) = (from.octets(), to.octets());
                let header = Ipv4Header::new(0, 17, IpNumber::TCP, from, to).unwrap();
                IpHeaders::Ipv4(header, Default::default())
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => IpHeaders::Ipv6(
                Ipv6Header {
                    hop_limit: 17,
                    source: from.octets(),
                    destination: to.octets(),
                    ..Default::default()
                },
                Default::default(),
            ),
            (from, to) => panic!("{from} and {to} are of two families"),
        };
        Self {
            tags: Vec::new(),
            ip,
            tcp: TcpHeader::new(from.port(), to.port(), seq, 64_240),
            payload: Vec::new(),
        }
    }

    /// A SYN.
    pub(crate) fn syn(from: SocketAddr, to: SocketAddr, seq: u32) -> Self {
        let mut segment = Self::new(from, to, seq);
        segment.tcp.syn = true;
        segment
    }

    /// Where its TCP header begins in its frame.
    pub(crate) fn transport(&self) -> usize {
        self.network() + self.ip.header_len()
    }

    /// Where its network header begins in its frame.
    pub(crate) fn network(&self) -> usize {
        ETHERNET + 4 * self.tags.len()
    }

    /// The packet, network header first.
    pub(crate) fn packet(&self) -> Vec<u8> {
        let Self {
            ip, tcp, payload, ..
        } = self;
        let (mut ip, mut tcp) = (ip.clone(), tcp.clone());
        ip.set_next_headers(IpNumber::TCP);
        ip.set_payload_len(tcp.header_len() + payload.len())
            .unwrap();
        tcp.checksum = match &mut ip {
            IpHeaders::Ipv4(header, _) => {
                header.header_checksum = header.calc_header_checksum();
                tcp.calc_checksum_ipv4(header, payload).unwrap()
            }
            IpHeaders::Ipv6(header, _) => tcp.calc_checksum_ipv6(header, payload).unwrap(),
        };
        let mut bytes = Vec::new();
        ip.write(&mut bytes).unwrap();
        bytes.extend_from_slice(&tcp.to_bytes());
        bytes.extend_from_slice(payload);
        bytes
    }

    /// The packet in an Ethernet frame to the address of `lo`, all zeros.
    pub(crate) fn frame(&self) -> Vec<u8> {
        let mut bytes = vec![0; 6];
        bytes.extend_from_slice(&SENDER);
        for (id, tag) in (7u16..).zip(&self.tags) {
            bytes.extend_from_slice(&tag.to_be_bytes());
            bytes.extend_from_slice(&id.to_be_bytes());
        }
        let kind = match self.ip {
            IpHeaders::Ipv4(..) => EtherType::IPV4,
            IpHeaders::Ipv6(..) => EtherType::IPV6,
        };
        bytes.extend_from_slice(&kind.0.to_be_bytes());
        bytes.extend_from_slice(&self.packet());
        bytes
    }
}

/// A TCP segment as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Read {
    pub(crate) from: SocketAddr,
    pub(crate) to: SocketAddr,
    pub(crate) seq: u32,
    pub(crate) ack: u32,
    pub(crate) tcp: TcpHeader,
    /// Bytes of payload.
    pub(crate) payload: usize,
    /// Whether the checksum of the IPv4 header is right; IPv6 has none.
    pub(crate) ip_is_right: bool,
    /// Whether the TCP checksum is right.
    pub(crate) tcp_is_right: bool,
    /// Time to live, or hop limit.
    pub(crate) ttl: u8,
}

impl Read {
    /// A packet that begins with the network header.
    pub(crate) fn packet(bytes: &[u8]) -> Option<Self> {
        Self::of(&SlicedPacket::from_ip(bytes).ok()?)
    }

    /// A frame.
    pub(crate) fn frame(bytes: &[u8]) -> Option<Self> {
        Self::of(&SlicedPacket::from_ethernet(bytes).ok()?)
    }

    fn of(sliced: &SlicedPacket<'_>) -> Option<Self> {
        let Some(TransportSlice::Tcp(tcp)) = &sliced.transport else {
            return None;
        };
        let (source, destination, ttl, ip_is_right, sum): (IpAddr, IpAddr, _, _, _) =
            match sliced.net.as_ref()? {
                NetSlice::Ipv4(ip) => {
                    let header = ip.header();
                    (
                        header.source_addr().into(),
                        header.destination_addr().into(),
                        header.ttl(),
                        header.to_header().calc_header_checksum() == header.header_checksum(),
                        tcp.calc_checksum_ipv4(header.source(), header.destination()),
                    )
                }
                NetSlice::Ipv6(ip) => {
                    let header = ip.header();
                    (
                        header.source_addr().into(),
                        header.destination_addr().into(),
                        header.hop_limit(),
                        true,
                        tcp.calc_checksum_ipv6(header.source(), header.destination()),
                    )
                }
                NetSlice::Arp(_) => return None,
            };
        Some(Self {
            from: SocketAddr::new(source, tcp.source_port()),
            to: SocketAddr::new(destination, tcp.destination_port()),
            seq: tcp.sequence_number(),
            ack: tcp.acknowledgment_number(),
            tcp: tcp.to_header(),
            payload: tcp.payload().len(),
            ip_is_right,
            tcp_is_right: sum.unwrap() == tcp.checksum(),
            ttl,
        })
    }

    /// Whether it is a SYN-ACK.
    pub(crate) fn is_syn_ack(&self) -> bool {
        self.tcp.syn && self.tcp.ack
    }

    /// That it is the reset by which the SYN of sequence number `seq` from `client`
    /// to `vip` is to be answered.
    pub(crate) fn assert_resets(&self, what: &str, client: SocketAddr, vip: SocketAddr, seq: u32) {
        assert_eq!((self.from, self.to), (vip, client), "{what}");
        let mut expected = TcpHeader::new(vip.port(), client.port(), 0, 0);
        expected.rst = true;
        expected.ack = true;
        expected.acknowledgment_number = seq.wrapping_add(1);
        expected.checksum = self.tcp.checksum;
        assert_eq!(self.tcp, expected, "{what}");
        assert_eq!((self.payload, self.ttl), (0, 64), "{what}");
        assert!(self.ip_is_right, "{what}: checksum of the IPv4 header");
        assert!(self.tcp_is_right, "{what}: TCP checksum");
    }
}
