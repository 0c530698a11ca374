//! Resets from user space, for SYNs that no device program could answer: the
//! client is a process of the node, or the SYN never came to a device.

use std::net::IpAddr;

use etherparse::{IpHeaders, PacketBuilder, PacketBuilderStep};
use ipvs_guard_common::addr::Endpoint;

use crate::rawip::RawSocket;

/// Sends resets.
#[derive(Default)]
pub(super) struct Responder {
    v4: Option<RawSocket>,
    v6: Option<RawSocket>,
}

impl Responder {
    /// Answers a SYN of sequence number `seq` from `client` in the name of `vip`.
    pub(super) fn reset(
        &mut self,
        client: &Endpoint,
        vip: &Endpoint,
        seq: u32,
    ) -> Result<(), String> {
        let packet = packet(client, vip, seq)?;
        let to = client.addr().ip();
        let socket = match to {
            IpAddr::V4(_) => &mut self.v4,
            IpAddr::V6(_) => &mut self.v6,
        };
        if socket.is_none() {
            let opened = RawSocket::open(to).map_err(|error| format!("raw socket: {error}"))?;
            *socket = Some(opened);
        }
        let Some(socket) = socket else {
            return Err("no raw socket".into());
        };
        socket
            .send(&packet, to)
            .map_err(|errno| format!("sending a reset to {to}: {errno}"))
    }
}

fn packet(client: &Endpoint, vip: &Endpoint, seq: u32) -> Result<Vec<u8>, String> {
    const TTL: u8 = 64;
    let step: PacketBuilderStep<IpHeaders> = match (vip.addr().ip(), client.addr().ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => PacketBuilder::ipv4(from.octets(), to.octets(), TTL),
        (IpAddr::V6(from), IpAddr::V6(to)) => PacketBuilder::ipv6(from.octets(), to.octets(), TTL),
        (from, to) => return Err(format!("{from} and {to} are of two families")),
    };
    let step = step
        .tcp(vip.port(), client.port(), 0, 0)
        .rst()
        .ack(seq.wrapping_add(1));
    let mut bytes = Vec::with_capacity(step.size(0));
    step.write(&mut bytes, &[])
        .map_err(|error| error.to_string())?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use etherparse::{NetSlice, SlicedPacket, TransportSlice};

    use super::*;

    fn endpoint(text: &str) -> Endpoint {
        let address: SocketAddr = text.parse().unwrap();
        Endpoint::new(address.ip().into(), address.port().to_be_bytes())
    }

    #[test]
    fn a_reset_acknowledges_the_syn_in_the_name_of_the_service() {
        for (client, vip) in [
            ("192.0.2.1:40000", "203.0.113.1:80"),
            ("[2001:db8::1]:40000", "[2001:db8::2]:80"),
        ] {
            let bytes = packet(&endpoint(client), &endpoint(vip), u32::MAX).unwrap();
            let sliced = SlicedPacket::from_ip(&bytes).unwrap();
            let Some(TransportSlice::Tcp(tcp)) = sliced.transport else {
                panic!("no TCP");
            };
            assert!(tcp.rst() && tcp.ack() && !tcp.syn());
            assert_eq!(tcp.acknowledgment_number(), 0);
            assert_eq!((tcp.source_port(), tcp.destination_port()), (80, 40_000));
            let sum = match sliced.net.unwrap() {
                NetSlice::Ipv4(ip) => {
                    tcp.calc_checksum_ipv4(ip.header().source(), ip.header().destination())
                }
                NetSlice::Ipv6(ip) => {
                    tcp.calc_checksum_ipv6(ip.header().source(), ip.header().destination())
                }
                NetSlice::Arp(_) => panic!("no IP"),
            };
            assert_eq!(sum.unwrap(), tcp.checksum());
        }
    }
}
