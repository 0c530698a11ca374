//! Where the fields of kernel structures are: resolved in user space, used by
//! the probes.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Offset and width of one field, in bytes from the start of its structure.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Field {
    /// Bytes from the start of the structure.
    pub offset: u16,
    /// Bytes that the field takes: 1, 2, 4, 8 or 16.
    pub width: u16,
}

macro_rules! fields {
    ($($(#[$doc:meta])* $id:ident = $structure:literal $path:literal),+ $(,)?) => {
        /// A field that the probes read.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(usize)]
        pub enum FieldId { $($(#[$doc])* $id),+ }

        impl FieldId {
            /// Every field, in the order of [`KernelLayout`].
            pub const ALL: &'static [Self] = &[$(Self::$id),+];

            /// The structure's name in BTF.
            pub const fn structure(self) -> &'static str {
                match self { $(Self::$id => $structure),+ }
            }

            /// The member, dots between nested ones.
            pub const fn path(self) -> &'static str {
                match self { $(Self::$id => $path),+ }
            }
        }
    };
}

fields! {
    /// Address family of the client's side.
    ConnAf = "ip_vs_conn" "af",
    /// Transport protocol number.
    ConnProtocol = "ip_vs_conn" "protocol",
    /// Client port, network order.
    ConnCport = "ip_vs_conn" "cport",
    /// Destination port, network order.
    ConnDport = "ip_vs_conn" "dport",
    /// Virtual port, network order.
    ConnVport = "ip_vs_conn" "vport",
    /// Client address.
    ConnCaddr = "ip_vs_conn" "caddr",
    /// Virtual address.
    ConnVaddr = "ip_vs_conn" "vaddr",
    /// Destination address.
    ConnDaddr = "ip_vs_conn" "daddr",
    /// Address family of the destination's side.
    ConnDaf = "ip_vs_conn" "daf",
    /// `IP_VS_CONN_F_*`; the low three bits are the forwarding method.
    ConnFlags = "ip_vs_conn" "flags",
    /// TCP state before the packet at hand.
    ConnState = "ip_vs_conn" "state",
    /// Packets from the client so far.
    ConnInPkts = "ip_vs_conn" "in_pkts",
    /// The destination, or null.
    ConnDest = "ip_vs_conn" "dest",
    /// The namespace's IPVS state.
    ConnIpvs = "ip_vs_conn" "ipvs",
    /// Weight.
    DestWeight = "ip_vs_dest" "weight",
    /// Where the AVAILABLE bit is (`flags`; where there is one, `cflags`).
    DestFlags = "ip_vs_dest" "flags",
    /// Address family of the real server.
    DestAf = "ip_vs_dest" "af",
    /// Port of the real server, network order.
    DestPort = "ip_vs_dest" "port",
    /// Address of the real server.
    DestAddr = "ip_vs_dest" "addr",
    /// The virtual service it belongs to.
    DestSvc = "ip_vs_dest" "svc",
    /// Address family.
    SvcAf = "ip_vs_service" "af",
    /// Transport protocol number.
    SvcProtocol = "ip_vs_service" "protocol",
    /// Virtual address.
    SvcAddr = "ip_vs_service" "addr",
    /// Virtual port, network order.
    SvcPort = "ip_vs_service" "port",
    /// Firewall mark, or 0.
    SvcFwmark = "ip_vs_service" "fwmark",
    /// The namespace's IPVS state.
    SvcIpvs = "ip_vs_service" "ipvs",
    /// Weight asked for.
    UdestWeight = "ip_vs_dest_user_kern" "weight",
    /// The namespace.
    IpvsNet = "netns_ipvs" "net",
    /// Inode number that names the namespace.
    NetInum = "net" "ns.inum",
    /// Start of the packet buffer.
    SkbHead = "sk_buff" "head",
    /// Network header, bytes from the buffer's start.
    SkbNetworkHeader = "sk_buff" "network_header",
    /// Transport header, bytes from the buffer's start.
    SkbTransportHeader = "sk_buff" "transport_header",
    /// End of what the buffer holds of the packet, bytes from its start (of 64-bit kernels).
    SkbTail = "sk_buff" "tail",
}

/// Number of fields.
pub const FIELDS: usize = FieldId::ALL.len();

/// The layout of one kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct KernelLayout {
    fields: [Field; FIELDS],
}

impl KernelLayout {
    /// A layout with nothing resolved.
    pub const fn unresolved() -> Self {
        Self {
            fields: [Field {
                offset: 0,
                width: 0,
            }; FIELDS],
        }
    }

    /// Where `id` is.
    #[inline(always)]
    pub const fn field(&self, id: FieldId) -> Field {
        self.fields[id as usize]
    }

    /// Puts `id` at `field`.
    pub const fn set(&mut self, id: FieldId, field: Field) {
        self.fields[id as usize] = field;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_field_has_a_place_of_its_own() {
        let mut layout = KernelLayout::unresolved();
        for (i, &id) in FieldId::ALL.iter().enumerate() {
            layout.set(
                id,
                Field {
                    offset: i as u16 * 8,
                    width: 8,
                },
            );
        }
        for (i, &id) in FieldId::ALL.iter().enumerate() {
            assert_eq!(usize::from(layout.field(id).offset), i * 8);
            assert!(!id.structure().is_empty() && !id.path().is_empty());
        }
    }
}
