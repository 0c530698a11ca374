//! Addresses as the records carry them.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// `AF_INET`, as `ip_vs_conn.af` holds it.
pub const AF_INET: u32 = 2;
/// `AF_INET6`, as `ip_vs_conn.af` holds it.
pub const AF_INET6: u32 = 10;

/// The second word of a mapped IPv4 address, without the address; and where
/// that goes in it: its upper half in memory.
const MAPPED: u64 = u64::from_ne_bytes([0, 0, 0xff, 0xff, 0, 0, 0, 0]);
/// The bytes of that word which are no part of the address.
const V4_MASK: u64 = u64::from_ne_bytes([0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0]);
const V4_SHIFT: u32 = if cfg!(target_endian = "little") {
    32
} else {
    0
};

/// An IPv4 or IPv6 address in 16 bytes, IPv4 in its mapped form `::ffff:a.b.c.d`.
///
/// Aligned, for BPF reads what is not byte by byte.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C, align(8))]
pub struct Addr {
    bytes: [u8; 16],
}

impl Addr {
    /// The address from a kernel `union nf_inet_addr` (two words as they are in
    /// memory) of address family `af`; `None` for any other family.
    #[inline(always)]
    pub fn from_kernel(raw: [u64; 2], af: u32) -> Option<Self> {
        match af {
            AF_INET => {
                let [lo, _]: [u32; 2] = zerocopy::transmute!(raw[0]);
                Some(Self::from_words([0, MAPPED | u64::from(lo) << V4_SHIFT]))
            }
            AF_INET6 => Some(Self::from_words(raw)),
            _ => None,
        }
    }

    #[inline(always)]
    fn from_words(words: [u64; 2]) -> Self {
        Self {
            bytes: zerocopy::transmute!(words),
        }
    }

    /// An IPv4 address from its four bytes in network order.
    #[inline(always)]
    pub const fn v4(b: [u8; 4]) -> Self {
        Self {
            bytes: [
                0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, b[0], b[1], b[2], b[3],
            ],
        }
    }

    /// An IPv6 address from its 16 bytes in network order.
    #[inline(always)]
    pub const fn v6(bytes: [u8; 16]) -> Self {
        Self { bytes }
    }

    /// Whether it is an IPv4 address.
    #[inline(always)]
    pub fn is_v4(&self) -> bool {
        let [first, second] = self.words();
        first == 0 && second & V4_MASK == MAPPED
    }

    /// The 16 bytes, network order.
    #[inline(always)]
    pub const fn bytes(&self) -> &[u8; 16] {
        &self.bytes
    }

    /// The mask of a network: `bits` one bits (0 to 128), then zeros.
    pub const fn mask(bits: u8) -> Self {
        let ones = if bits == 0 {
            0
        } else {
            u128::MAX << (128 - if bits > 128 { 128 } else { bits as u32 })
        };
        Self {
            bytes: ones.to_be_bytes(),
        }
    }

    /// Whether the bits that `mask` names equal those of `other`.
    #[inline(always)]
    pub fn matches(&self, other: &Self, mask: &Self) -> bool {
        let ([a, b], [c, d], [m, n]) = (self.words(), other.words(), mask.words());
        (a ^ c) & m == 0 && (b ^ d) & n == 0
    }

    #[inline(always)]
    fn words(&self) -> [u64; 2] {
        zerocopy::transmute!(self.bytes)
    }

    /// The standard library's form, IPv4 unmapped.
    pub fn ip(&self) -> IpAddr {
        let v6 = Ipv6Addr::from(self.bytes);
        match v6.to_ipv4_mapped() {
            Some(v4) => IpAddr::V4(v4),
            None => IpAddr::V6(v6),
        }
    }
}

impl From<IpAddr> for Addr {
    fn from(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(v4) => v4.into(),
            IpAddr::V6(v6) => Self { bytes: v6.octets() },
        }
    }
}

impl From<Ipv4Addr> for Addr {
    fn from(v4: Ipv4Addr) -> Self {
        Self::v4(v4.octets())
    }
}

/// An address and a port.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Endpoint {
    addr: Addr,
    port: [u8; 2],
    pad: [u8; 6],
}

impl Endpoint {
    /// All zero: `[::]:0`.
    pub const UNSPECIFIED: Self = Self {
        addr: Addr { bytes: [0; 16] },
        port: [0; 2],
        pad: [0; 6],
    };

    /// An endpoint from an address and the port's two bytes in network order.
    #[inline(always)]
    pub const fn new(addr: Addr, port_be: [u8; 2]) -> Self {
        Self {
            addr,
            port: port_be,
            pad: [0; 6],
        }
    }

    /// The address.
    #[inline(always)]
    pub const fn addr(&self) -> &Addr {
        &self.addr
    }

    /// The port as a number.
    #[inline(always)]
    pub const fn port(&self) -> u16 {
        u16::from_be_bytes(self.port)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addr(s: &str) -> Addr {
        Addr::from(s.parse::<IpAddr>().unwrap())
    }

    #[test]
    fn kernel_addresses_keep_their_family() {
        let mut raw = [0xaau8; 16];
        raw[..4].copy_from_slice(&[10, 0, 0, 7]);
        let words = |bytes: [u8; 16]| -> [u64; 2] { zerocopy::transmute!(bytes) };
        let v4 = Addr::from_kernel(words(raw), AF_INET).unwrap();
        assert_eq!(v4, Addr::v4([10, 0, 0, 7]));
        assert_eq!(v4.ip().to_string(), "10.0.0.7");
        let v6 = Addr::from_kernel(words(addr("2001:db8::1").bytes), AF_INET6).unwrap();
        assert_eq!(v6.ip().to_string(), "2001:db8::1");
        assert_eq!(Addr::from_kernel(words(raw), 7), None);
    }

    #[test]
    fn prefixes_match_at_every_length() {
        let same = |a: &str, b: &str, bits| addr(a).matches(&addr(b), &Addr::mask(bits));
        assert!(same("2001:db8:0:1::", "2001:db8:0:1::8000", 112));
        assert!(!same("2001:db8:0:1::", "2001:db8:0:1::8000", 113));
        assert!(same("2001:db8:0:1::", "::", 0));
        assert!(same("2001:db8:0:1::", "2001:db8:0:1::", 128));
        assert!(same("10.1.2.3", "10.1.0.0", 96 + 16));
        assert!(!same("10.1.2.3", "10.1.0.0", 96 + 23));
        assert!(!same("2001:db8::1", "2001:db9::", 32));
    }
}
