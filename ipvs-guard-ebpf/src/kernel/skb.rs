//! The TCP header of a packet in `struct sk_buff`.

use ipvs_guard_common::{
    addr::{Addr, Endpoint},
    event::SkbRecord,
    layout::FieldId,
    tcp,
};
use network_types::ip::{IpProto, Ipv4Hdr, Ipv6Hdr};

use super::read::{self, Fault};
use crate::maps;

const TCP: u8 = IpProto::Tcp as u8;
/// IPv6 extension headers that are stepped over at most.
const EXTENSIONS: u32 = 6;

/// What the layout makes of `struct sk_buff`, for its proof.
#[inline(always)]
pub(crate) fn survey(skb: u64, out: &mut SkbRecord) -> Result<(), Fault> {
    out.head = read::pointer(skb, FieldId::SkbHead)?;
    out.network_header = read::uint(skb, FieldId::SkbNetworkHeader)?;
    out.transport_header = read::uint(skb, FieldId::SkbTransportHeader)?;
    out.tail = read::uint(skb, FieldId::SkbTail)?;
    Ok(())
}

/// Where the headers of a packet are.
pub(crate) struct Packet {
    network: u64,
    transport: u64,
    end: u64,
}

/// A SYN without ACK.
pub(crate) struct Syn {
    pub(crate) seq: u32,
    pub(crate) packet: Packet,
}

impl Packet {
    /// Finds the headers; `Fault` when they cannot be read or are not TCP.
    #[inline(always)]
    pub(crate) fn read(skb: u64) -> Result<Self, Fault> {
        let buffer = Buffer::read(skb)?;
        let network = buffer.head + buffer.network_header;
        // No IPv6 header is that short, and an IPv4 header of this length has no
        // options: nothing of it is of interest. This is the way of most packets.
        let length = buffer.transport_header.wrapping_sub(buffer.network_header);
        let transport = if length == Ipv4Hdr::LEN as u64 {
            network + length
        } else {
            network + behind(network)?
        };
        let end = buffer.head + buffer.tail;
        if transport + size_of::<tcp::Start>() as u64 > end {
            return Err(Fault(FieldId::SkbTail));
        }
        Ok(Self {
            network,
            transport,
            end,
        })
    }

    /// Copies the packet from its network header on; `None` when it is too long or
    /// not all of it is in the linear part.
    #[inline(always)]
    pub(crate) fn copy<const N: usize>(&self, out: &mut [u8; N]) -> Option<u32> {
        let first: [u8; 8] = read::value(self.network, FieldId::SkbHead).ok()?;
        let length = match first[0] >> 4 {
            4 => u64::from(u16::from_be_bytes([first[2], first[3]])),
            _ => u64::from(u16::from_be_bytes([first[4], first[5]])) + Ipv6Hdr::LEN as u64,
        };
        if self.network + length > self.end {
            return None;
        }
        read::bytes(self.network, length, out)
    }

    /// The packet as a SYN, if it is one.
    #[inline(always)]
    pub(crate) fn syn(self) -> Result<Option<Syn>, Fault> {
        let start = read::value(self.transport, FieldId::SkbHead)?;
        Ok(tcp::syn_seq(start).map(|seq| Syn { seq, packet: self }))
    }

    /// Source and destination of a TCP packet; `None` for any other.
    #[inline(always)]
    pub(crate) fn endpoints(&self) -> Result<Option<(Endpoint, Endpoint)>, Fault> {
        let ports: [[u8; 2]; 2] = read::value(self.transport, FieldId::SkbHead)?;
        let first: [u8; Ipv4Hdr::LEN] = read::value(self.network, FieldId::SkbHead)?;
        let (src, dst) = match first[0] >> 4 {
            4 if first[9] == TCP => {
                let at =
                    |at: usize| Addr::v4([first[at], first[at + 1], first[at + 2], first[at + 3]]);
                (at(12), at(16))
            }
            6 => {
                let addresses: [[u8; 16]; 2] = read::value(self.network + 8, FieldId::SkbHead)?;
                (Addr::v6(addresses[0]), Addr::v6(addresses[1]))
            }
            _ => return Ok(None),
        };
        Ok(Some((
            Endpoint::new(src, ports[0]),
            Endpoint::new(dst, ports[1]),
        )))
    }
}

/// Words of `struct sk_buff` that hold all four fields in every kernel so far.
const SPAN: usize = 4;

/// Start of a packet's buffer, and bytes from there.
struct Buffer {
    head: u64,
    network_header: u64,
    transport_header: u64,
    tail: u64,
}

impl Buffer {
    /// One read where the fields are close: this is the path of every packet.
    #[inline(always)]
    fn read(skb: u64) -> Result<Self, Fault> {
        let first = usize::from(maps::field(FieldId::SkbTransportHeader).offset) & !7;
        let within = |id, width| {
            let offset = usize::from(maps::field(id).offset).wrapping_sub(first);
            offset < SPAN * 8 && offset % width == 0
        };
        if within(FieldId::SkbHead, 8)
            && within(FieldId::SkbTail, 4)
            && within(FieldId::SkbNetworkHeader, 2)
        {
            let span: [u64; SPAN] = read::value(skb + first as u64, FieldId::SkbTransportHeader)?;
            let part = |id, mask: u64| {
                let offset = usize::from(maps::field(id).offset).wrapping_sub(first);
                (span[(offset / 8) % SPAN] >> (offset % 8 * 8)) & mask
            };
            return Ok(Self {
                head: part(FieldId::SkbHead, u64::MAX),
                network_header: part(FieldId::SkbNetworkHeader, u16::MAX.into()),
                transport_header: part(FieldId::SkbTransportHeader, u16::MAX.into()),
                tail: part(FieldId::SkbTail, u32::MAX.into()),
            });
        }
        Ok(Self {
            head: read::pointer(skb, FieldId::SkbHead)?,
            network_header: read::uint(skb, FieldId::SkbNetworkHeader)?.into(),
            transport_header: read::uint(skb, FieldId::SkbTransportHeader)?.into(),
            tail: read::uint(skb, FieldId::SkbTail)?.into(),
        })
    }
}

/// Bytes from the network header to the TCP header.
#[inline(always)]
fn behind(network: u64) -> Result<u64, Fault> {
    let first: [u8; 8] = read::value(network, FieldId::SkbHead)?;
    match first[0] >> 4 {
        4 => Ok(u64::from(first[0] & 0xf) * 4),
        6 => behind_extensions(network, first[6]),
        _ => Err(Fault(FieldId::SkbNetworkHeader)),
    }
}

/// The same for IPv6, whose header says that `next` follows.
#[inline(always)]
fn behind_extensions(network: u64, next: u8) -> Result<u64, Fault> {
    const HOP_BY_HOP: u8 = IpProto::HopOpt as u8;
    const ROUTING: u8 = IpProto::Ipv6Route as u8;
    const FRAGMENT: u8 = IpProto::Ipv6Frag as u8;
    const AUTHENTICATION: u8 = IpProto::Ah as u8;
    const DESTINATION: u8 = IpProto::Ipv6Opts as u8;

    let mut next = next;
    let mut offset = Ipv6Hdr::LEN as u64;
    for _ in 0..EXTENSIONS {
        if next == TCP {
            break;
        }
        let [following, length, fragment_hi, fragment_lo] =
            read::value(network + offset, FieldId::SkbHead)?;
        offset += match next {
            HOP_BY_HOP | ROUTING | DESTINATION => (u64::from(length) + 1) * 8,
            AUTHENTICATION => (u64::from(length) + 2) * 4,
            // Only the first fragment carries the TCP header.
            FRAGMENT if fragment_hi == 0 && fragment_lo & 0xf8 == 0 => 8,
            _ => return Err(Fault(FieldId::SkbHead)),
        };
        next = following;
    }
    if next == TCP {
        Ok(offset)
    } else {
        Err(Fault(FieldId::SkbHead))
    }
}
