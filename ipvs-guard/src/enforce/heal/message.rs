//! Messages of the connection-sync protocol, version 1 (`struct ip_vs_sync_mesg`
//! and `struct ip_vs_sync_v4`/`v6`, net/netfilter/ipvs/ip_vs_sync.c, 5.10 to 7.3).

use std::net::{IpAddr, SocketAddr};

use ipvs_guard_common::{
    guard::{MARK, MARK_PORT},
    state::ConnState,
};

/// `IPPROTO_TCP`.
pub(super) const TCP: u8 = 6;
/// `struct ip_vs_sync_mesg`.
const HEADER: usize = 8;
/// `struct ip_vs_sync_v4`.
const ENTRY_V4: usize = 36;
/// `struct ip_vs_sync_v6`.
const ENTRY_V6: usize = 72;
/// `STYPE_F_INET6`.
const INET6: u8 = 1;
/// `SYNC_PROTO_VER`.
const VERSION: u8 = 1;

/// A connection entry as it is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    /// Transport protocol number; 0 in the template of a firewall mark.
    pub(super) protocol: u8,
    /// `IP_VS_CONN_F_*`.
    pub(super) flags: u32,
    /// `ip_vs_conn.state`.
    pub(super) state: u16,
    /// Client; port 0 in a template.
    pub(super) client: SocketAddr,
    /// Virtual service.
    pub(super) service: SocketAddr,
    /// Real server; of the client's family.
    pub(super) destination: SocketAddr,
    /// Firewall mark of the service, or 0.
    pub(super) fwmark: u32,
    /// Life in seconds; not 0.
    pub(super) timeout: u32,
}

impl Entry {
    /// Bytes it takes.
    pub(super) fn size(&self) -> usize {
        if self.client.is_ipv4() {
            ENTRY_V4
        } else {
            ENTRY_V6
        }
    }

    fn put(&self, out: &mut Vec<u8>) {
        let kind = if self.client.is_ipv4() { 0 } else { INET6 };
        out.extend([kind, self.protocol]);
        out.extend((self.size() as u16).to_be_bytes());
        out.extend(self.flags.to_be_bytes());
        out.extend(self.state.to_be_bytes());
        for end in [self.client, self.service, self.destination] {
            out.extend(end.port().to_be_bytes());
        }
        out.extend(self.fwmark.to_be_bytes());
        out.extend(self.timeout.to_be_bytes());
        for end in [self.client, self.service, self.destination] {
            match end.ip() {
                IpAddr::V4(ip) => out.extend(ip.octets()),
                IpAddr::V6(ip) => out.extend(ip.octets()),
            }
        }
    }
}

/// The two entries that end the message of this number: see
/// [`MARK`](ipvs_guard_common::guard::MARK).
pub(super) fn mark(message: u32) -> [Entry; 2] {
    /// Seconds.
    const LIFE: u32 = 1;
    let end = |address: [u8; 4]| SocketAddr::from((address, MARK_PORT));
    [message * 2, message * 2 + 1].map(|server| Entry {
        protocol: TCP,
        flags: 0,
        state: ConnState::Close as u16,
        client: end(MARK),
        service: end(MARK),
        destination: end(server.to_be_bytes()),
        fwmark: 0,
        timeout: LIFE,
    })
}

/// One message: up to 255 entries, which the kernel takes in this order.
pub(super) fn pack(sync_id: u8, entries: &[Entry]) -> Vec<u8> {
    let size = HEADER + entries.iter().map(Entry::size).sum::<usize>();
    let mut out = Vec::with_capacity(size);
    out.extend([0, sync_id]);
    out.extend((size as u16).to_be_bytes());
    out.extend([entries.len() as u8, VERSION, 0, 0]);
    for entry in entries {
        entry.put(&mut out);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_have_the_kernels_form() {
        let entry = Entry {
            protocol: 6,
            flags: 0x0100,
            state: 5,
            client: "192.0.2.1:40000".parse().unwrap(),
            service: "203.0.113.1:80".parse().unwrap(),
            destination: "198.51.100.6:8080".parse().unwrap(),
            fwmark: 7,
            timeout: 60,
        };
        let bytes = pack(9, &[entry]);
        let expected = [
            &[0, 9, 0, 44, 1, 1, 0, 0][..],
            &[0, 6, 0, 36, 0, 0, 1, 0, 0, 5],
            &[0x9c, 0x40, 0, 80, 0x1f, 0x90],
            &[0, 0, 0, 7, 0, 0, 0, 60],
            &[192, 0, 2, 1, 203, 0, 113, 1, 198, 51, 100, 6],
        ]
        .concat();
        assert_eq!(bytes, expected);
        let [first, second] = mark(0x0102_0304);
        assert_eq!(
            [first, second].map(|mark| mark.destination.to_string()),
            ["2.4.6.8:9", "2.4.6.9:9"]
        );
        let six = Entry {
            client: "[2001:db8::1]:40000".parse().unwrap(),
            service: "[2001:db8::2]:80".parse().unwrap(),
            destination: "[2001:db8::3]:80".parse().unwrap(),
            ..entry
        };
        let bytes = pack(9, &[six, entry]);
        assert_eq!(bytes.len(), HEADER + ENTRY_V6 + ENTRY_V4);
        assert_eq!(bytes[2..5], [0, 116, 2]);
        assert_eq!((bytes[8], bytes[11]), (1, 72));
    }
}
