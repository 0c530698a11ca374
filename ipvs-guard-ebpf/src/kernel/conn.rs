//! `struct ip_vs_conn`.

use ipvs_guard_common::{addr::Endpoint, layout::FieldId};

use super::{
    dest::Dest,
    read::{self, Fault},
};

/// A connection entry.
#[derive(Clone, Copy)]
pub(crate) struct Conn(u64);

impl Conn {
    /// The entry at a kernel address.
    #[inline(always)]
    pub(crate) const fn at(address: u64) -> Self {
        Self(address)
    }

    /// Its address, which names it as long as it lives.
    #[inline(always)]
    pub(crate) const fn key(self) -> u64 {
        self.0
    }

    #[inline(always)]
    pub(crate) fn state(self) -> Result<u16, Fault> {
        read::uint(self.0, FieldId::ConnState).map(|state| state as u16)
    }

    /// Its destination; `Fault` when there is none.
    #[inline(always)]
    pub(crate) fn dest(self) -> Result<Dest, Fault> {
        read::pointer(self.0, FieldId::ConnDest).map(Dest::at)
    }

    #[inline(always)]
    pub(crate) fn in_pkts(self) -> Result<u32, Fault> {
        read::uint(self.0, FieldId::ConnInPkts)
    }

    #[inline(always)]
    pub(crate) fn flags(self) -> Result<u32, Fault> {
        read::uint(self.0, FieldId::ConnFlags)
    }

    #[inline(always)]
    pub(crate) fn protocol(self) -> Result<u8, Fault> {
        read::uint(self.0, FieldId::ConnProtocol).map(|protocol| protocol as u8)
    }

    /// Inode of its network namespace.
    #[inline(always)]
    pub(crate) fn netns(self) -> Result<u32, Fault> {
        netns(read::pointer(self.0, FieldId::ConnIpvs)?)
    }

    #[inline(always)]
    pub(crate) fn client(self, out: &mut Endpoint) -> Result<(), Fault> {
        read::endpoint(
            self.0,
            FieldId::ConnAf,
            FieldId::ConnCaddr,
            FieldId::ConnCport,
            out,
        )
    }

    /// The virtual service.
    #[inline(always)]
    pub(crate) fn vip(self, out: &mut Endpoint) -> Result<(), Fault> {
        read::endpoint(
            self.0,
            FieldId::ConnAf,
            FieldId::ConnVaddr,
            FieldId::ConnVport,
            out,
        )
    }

    /// The real server.
    #[inline(always)]
    pub(crate) fn real(self, out: &mut Endpoint) -> Result<(), Fault> {
        read::endpoint(
            self.0,
            FieldId::ConnDaf,
            FieldId::ConnDaddr,
            FieldId::ConnDport,
            out,
        )
    }
}

/// Inode of the namespace of a `struct netns_ipvs`.
#[inline(always)]
pub(crate) fn netns(ipvs: u64) -> Result<u32, Fault> {
    let net = read::pointer(ipvs, FieldId::IpvsNet)?;
    read::uint(net, FieldId::NetInum)
}
