//! The headers of a reset that answers a SYN.
//!
//! The SYN's own headers are turned round, so what lies between the network
//! header's fixed part and the TCP header (options, extension headers) stays.

use crate::addr::Endpoint;

/// Bytes of a TCP header without options.
pub const TCP_LEN: usize = 20;
/// Where its checksum is.
pub const TCP_CHECKSUM: usize = 16;
/// Time to live, or hop limit, of an answer.
const TTL: u8 = 64;
const TCP: u8 = 6;
/// Data offset of five words.
const OFFSET: u8 = 5 << 4;
const RST_ACK: u8 = 0x14;

/// A TCP header without its checksum, and the sum of the pseudo-header.
#[derive(Clone, Copy, Debug)]
pub struct Reset {
    /// The header, its checksum 0.
    pub header: [u8; TCP_LEN],
    /// Folded sum of the pseudo-header: what the checksum field holds of a packet
    /// whose checksum the device completes (`CHECKSUM_PARTIAL`).
    pub pseudo: u16,
}

impl Reset {
    /// RST and ACK from `from` to `to`, in answer to a SYN of sequence number
    /// `seq` (RFC 9293, 3.10.7.1: sequence number 0, acknowledging the SYN).
    #[inline(always)]
    pub fn new(from: &Endpoint, to: &Endpoint, seq: u32) -> Self {
        let [s0, s1] = from.port().to_be_bytes();
        let [d0, d1] = to.port().to_be_bytes();
        let [a, b, c, d] = seq.wrapping_add(1).to_be_bytes();
        let header = [
            s0, s1, d0, d1, 0, 0, 0, 0, a, b, c, d, OFFSET, RST_ACK, 0, 0, 0, 0, 0, 0,
        ];
        // The mapped form of an IPv4 address: twice its prefix sums to no change
        // but of what is taken off here.
        let mapped = if from.addr().is_v4() { 0xffff * 2 } else { 0 };
        let addresses = sum(from.addr().bytes(), 0) + sum(to.addr().bytes(), 0) - mapped;
        let pseudo = fold(addresses + u32::from(TCP) + TCP_LEN as u32);
        Self { header, pseudo }
    }

    /// The checksum of the whole segment.
    #[inline(always)]
    pub fn checksum(&self) -> [u8; 2] {
        (!fold(sum(&self.header, u32::from(self.pseudo)))).to_be_bytes()
    }

    /// The header with its checksum.
    #[inline(always)]
    pub fn complete(&self) -> [u8; TCP_LEN] {
        let mut header = self.header;
        let [hi, lo] = self.checksum();
        header[TCP_CHECKSUM] = hi;
        header[TCP_CHECKSUM + 1] = lo;
        header
    }
}

/// Turns the fixed part of an IPv4 header into that of a packet of `total` bytes
/// from `from` to `to`; its checksum follows from what it was.
#[inline(always)]
pub fn turn_ipv4(header: &mut [u8; 20], from: &Endpoint, to: &Endpoint, total: u16) {
    // RFC 1624: what changes goes out of the sum, and comes into it. The checksum
    // itself is in both sums and cancels out.
    let checksum = u16::from_be_bytes([header[10], header[11]]);
    let before = sum(header, 0);
    let [hi, lo] = total.to_be_bytes();
    header[2] = hi;
    header[3] = lo;
    header[8] = TTL;
    let mut i = 0;
    while i < 4 {
        header[12 + i] = from.addr().bytes()[12 + i];
        header[16 + i] = to.addr().bytes()[12 + i];
        i += 1;
    }
    let after = sum(header, 0);
    let change = u32::from(!checksum) + u32::from(!fold(before)) + u32::from(fold(after));
    let [hi, lo] = (!fold(change)).to_be_bytes();
    header[10] = hi;
    header[11] = lo;
}

/// Turns an IPv6 header into that of a packet from `from` to `to`, with `payload`
/// bytes behind it.
#[inline(always)]
pub fn turn_ipv6(header: &mut [u8; 40], from: &Endpoint, to: &Endpoint, payload: u16) {
    let [hi, lo] = payload.to_be_bytes();
    header[4] = hi;
    header[5] = lo;
    header[7] = TTL;
    let mut i = 0;
    while i < 16 {
        header[8 + i] = from.addr().bytes()[i];
        header[24 + i] = to.addr().bytes()[i];
        i += 1;
    }
}

#[inline(always)]
fn sum<const N: usize>(bytes: &[u8; N], start: u32) -> u32 {
    let mut total = start;
    let mut i = 0;
    while i + 1 < N {
        total += u32::from(u16::from_be_bytes([bytes[i], bytes[i + 1]]));
        i += 2;
    }
    total
}

#[inline(always)]
fn fold(sum: u32) -> u16 {
    let once = (sum & 0xffff) + (sum >> 16);
    ((once & 0xffff) + (once >> 16)) as u16
}

#[cfg(test)]
mod tests {
    use core::net::SocketAddr;

    use etherparse::{Ipv4HeaderSlice, Ipv6HeaderSlice, PacketBuilder, TcpHeaderSlice};
    use proptest::prelude::*;

    use super::*;

    fn endpoint(address: SocketAddr) -> Endpoint {
        Endpoint::new(address.ip().into(), address.port().to_be_bytes())
    }

    proptest! {
        #[test]
        fn an_ipv4_reset_is_valid(
            client: [u8; 4], vip: [u8; 4], cport: u16, vport: u16, seq: u32, ttl: u8, id: u16
        ) {
            let mut syn = Vec::new();
            PacketBuilder::ipv4(client, vip, ttl)
                .tcp(cport, vport, seq, 64_240)
                .syn()
                .write(&mut syn, &[])
                .unwrap();
            // A packet on its way has an identification; its checksum with it.
            let mut old: [u8; 20] = syn[..20].try_into().unwrap();
            old[4..6].copy_from_slice(&id.to_be_bytes());
            let checksum = etherparse::Ipv4Header::from_slice(&old).unwrap().0.calc_header_checksum();
            old[10..12].copy_from_slice(&checksum.to_be_bytes());

            let from = endpoint(SocketAddr::new(vip.into(), vport));
            let to = endpoint(SocketAddr::new(client.into(), cport));
            let mut header = old;
            turn_ipv4(&mut header, &from, &to, 40);
            let reset = Reset::new(&from, &to, seq).complete();
            let ip = Ipv4HeaderSlice::from_slice(&header).unwrap().to_header();
            let tcp = TcpHeaderSlice::from_slice(&reset).unwrap().to_header();
            prop_assert_eq!(ip.calc_header_checksum(), ip.header_checksum);
            prop_assert_eq!((ip.source, ip.destination, ip.total_len), (vip, client, 40));
            prop_assert_eq!(ip.identification, id);
            prop_assert_eq!(tcp.calc_checksum_ipv4(&ip, &[]).unwrap(), tcp.checksum);
            prop_assert!(tcp.rst && tcp.ack && !tcp.syn && !tcp.fin);
            prop_assert_eq!(tcp.acknowledgment_number, seq.wrapping_add(1));
            prop_assert_eq!((tcp.source_port, tcp.destination_port), (vport, cport));
        }

        #[test]
        fn an_ipv6_reset_is_valid(
            client: [u8; 16], vip: [u8; 16], cport: u16, vport: u16, seq: u32
        ) {
            // What an Endpoint takes for IPv4 is no address on any wire.
            let mapped = |a: [u8; 16]| std::net::Ipv6Addr::from(a).to_ipv4_mapped().is_some();
            prop_assume!(!mapped(client) && !mapped(vip));
            let mut syn = Vec::new();
            PacketBuilder::ipv6(client, vip, 3)
                .tcp(cport, vport, seq, 1)
                .syn()
                .write(&mut syn, &[])
                .unwrap();
            let from = endpoint(SocketAddr::new(vip.into(), vport));
            let to = endpoint(SocketAddr::new(client.into(), cport));
            let mut header = syn[..40].try_into().unwrap();
            turn_ipv6(&mut header, &from, &to, 20);
            let reset = Reset::new(&from, &to, seq).complete();
            let ip = Ipv6HeaderSlice::from_slice(&header).unwrap().to_header();
            let tcp = TcpHeaderSlice::from_slice(&reset).unwrap().to_header();
            prop_assert_eq!((ip.source, ip.destination, ip.payload_length), (vip, client, 20));
            prop_assert_eq!(tcp.calc_checksum_ipv6(&ip, &[]).unwrap(), tcp.checksum);
            prop_assert_eq!(tcp.acknowledgment_number, seq.wrapping_add(1));
        }
    }
}
