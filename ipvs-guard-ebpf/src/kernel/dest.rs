//! `struct ip_vs_dest` and `struct ip_vs_service`.

use ipvs_guard_common::{addr::Endpoint, layout::FieldId};

use super::read::{self, Fault};

/// A destination.
#[derive(Clone, Copy)]
pub(crate) struct Dest(u64);

impl Dest {
    /// The destination at a kernel address.
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
    pub(crate) fn weight(self) -> Result<i32, Fault> {
        read::uint(self.0, FieldId::DestWeight).map(|weight| weight as i32)
    }

    #[inline(always)]
    pub(crate) fn flags(self) -> Result<u32, Fault> {
        read::uint(self.0, FieldId::DestFlags)
    }

    /// Its virtual service, which it holds on to until it is freed.
    #[inline(always)]
    pub(crate) fn service(self) -> Result<Service, Fault> {
        read::pointer(self.0, FieldId::DestSvc).map(Service::at)
    }

    /// The real server.
    #[inline(always)]
    pub(crate) fn real(self, out: &mut Endpoint) -> Result<(), Fault> {
        read::endpoint(
            self.0,
            FieldId::DestAf,
            FieldId::DestAddr,
            FieldId::DestPort,
            out,
        )
    }
}

/// What a destination is to become (`struct ip_vs_dest_user_kern`).
#[derive(Clone, Copy)]
pub(crate) struct Request(u64);

impl Request {
    /// The request at a kernel address.
    #[inline(always)]
    pub(crate) const fn at(address: u64) -> Self {
        Self(address)
    }

    #[inline(always)]
    pub(crate) fn weight(self) -> Result<i32, Fault> {
        read::uint(self.0, FieldId::UdestWeight).map(|weight| weight as i32)
    }
}

/// A virtual service.
#[derive(Clone, Copy)]
pub(crate) struct Service(u64);

impl Service {
    /// The service at a kernel address.
    #[inline(always)]
    pub(crate) const fn at(address: u64) -> Self {
        Self(address)
    }

    #[inline(always)]
    pub(crate) fn af(self) -> Result<u16, Fault> {
        read::uint(self.0, FieldId::SvcAf).map(|af| af as u16)
    }

    #[inline(always)]
    pub(crate) fn protocol(self) -> Result<u16, Fault> {
        read::uint(self.0, FieldId::SvcProtocol).map(|protocol| protocol as u16)
    }

    #[inline(always)]
    pub(crate) fn fwmark(self) -> Result<u32, Fault> {
        read::uint(self.0, FieldId::SvcFwmark)
    }

    /// Its virtual address and port.
    #[inline(always)]
    pub(crate) fn vip(self, out: &mut Endpoint) -> Result<(), Fault> {
        read::endpoint(
            self.0,
            FieldId::SvcAf,
            FieldId::SvcAddr,
            FieldId::SvcPort,
            out,
        )
    }

    /// Inode of its network namespace.
    #[inline(always)]
    pub(crate) fn netns(self) -> Result<u32, Fault> {
        super::conn::netns(read::pointer(self.0, FieldId::SvcIpvs)?)
    }
}
