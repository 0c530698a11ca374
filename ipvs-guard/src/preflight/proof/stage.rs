//! The private namespace of the proof, and what is done in it. All on one
//! thread, for the probes tell its doings by its name.

use std::{
    ffi::CString,
    net::{IpAddr, SocketAddr, SocketAddrV4, SocketAddrV6},
};

use anyhow::{Context, Result};
use etherparse::PacketBuilder;
use ipvs_guard_common::state::Forwarding;
use nix::errno::Errno;

use crate::{
    netlink::{
        NetlinkError,
        ipvs::{Destination, IpvsSocket, Service, ServiceId},
        route::RouteSocket,
    },
    netns::NetNs,
    rawip::RawSocket,
};

/// Schedulers that serve as well as any other; one that is loaded already is
/// taken before the kernel is made to load one.
const SCHEDULERS: [&str; 8] = ["rr", "wrr", "lc", "wlc", "sed", "nq", "sh", "dh"];

/// A connection whose every field is known.
#[derive(Clone)]
pub(super) struct Case {
    pub(super) name: &'static str,
    pub(super) client: SocketAddr,
    pub(super) vip: SocketAddr,
    pub(super) dest: SocketAddr,
    pub(super) forwarding: Forwarding,
    pub(super) weight: u32,
    pub(super) seqs: [u32; 2],
}

/// The namespace and the cases that this kernel can have.
pub(super) struct Stage {
    netns: NetNs,
    comm: String,
    scheduler: &'static str,
    cases: Vec<Case>,
}

impl Stage {
    /// A namespace with its loopback device up and the virtual addresses on it.
    /// The destinations have no route: their SYNs end after the probe.
    pub(super) fn new() -> Result<Self> {
        let netns = NetNs::new()?;
        // Process ids repeat between containers; a namespace's inode is unique on
        // the node while the namespace lives.
        let comm = format!("ipvsg-{:x}", netns.inode());
        let mut cases = v4_cases();
        let v6 = v6_case();
        let with_v6 = netns.run(|| -> Result<bool> {
            let mut route = RouteSocket::open()?;
            route.set_up("lo", true)?;
            for case in &cases {
                route.add_address("lo", case.vip.ip(), 32)?;
            }
            match route.add_address("lo", v6.vip.ip(), 128) {
                Ok(()) => {}
                // IPv6 is switched off here: nothing to prove.
                Err(NetlinkError::Kernel { .. } | NetlinkError::Privilege { .. }) => {
                    return Ok(false);
                }
                Err(error) => return Err(error.into()),
            }
            Ok(true)
        })??;
        let scheduler = netns.run(|| scheduler(&cases[0]))??;
        if with_v6 && netns.run(|| has_service(&v6, scheduler))?? {
            cases.push(v6);
        }
        Ok(Self {
            netns,
            comm,
            scheduler,
            cases,
        })
    }

    /// Name of the thread that acts.
    pub(super) fn comm(&self) -> &str {
        &self.comm
    }

    /// Inode of the namespace.
    pub(super) fn netns(&self) -> u32 {
        self.netns.inode()
    }

    pub(super) fn cases(&self) -> &[Case] {
        &self.cases
    }

    /// Adds the service and its destination.
    pub(super) fn add(&self, case: &Case) -> Result<()> {
        self.act(|| {
            let mut ipvs = IpvsSocket::open()?;
            ipvs.add_service(&Service::new(ServiceId::tcp(case.vip), self.scheduler))?;
            ipvs.add_destination(&ServiceId::tcp(case.vip), &destination(case, case.weight))?;
            Ok(())
        })
    }

    /// Sets the destination's weight to 0.
    pub(super) fn drain(&self, case: &Case) -> Result<()> {
        self.act(|| {
            IpvsSocket::open()?
                .set_destination(&ServiceId::tcp(case.vip), &destination(case, 0))?;
            Ok(())
        })
    }

    /// Removes the destination and the service.
    pub(super) fn remove(&self, case: &Case) -> Result<()> {
        self.act(|| {
            IpvsSocket::open()?.delete_service(&ServiceId::tcp(case.vip))?;
            Ok(())
        })
    }

    /// Sends a SYN of the case's client to its virtual service.
    pub(super) fn send_syn(&self, case: &Case, seq: u32) -> Result<()> {
        self.act(|| send_syn(case, seq))
    }

    fn act(&self, work: impl FnOnce() -> Result<()> + Send) -> Result<()> {
        let comm = CString::new(self.comm.as_str()).context("thread name")?;
        self.netns.run(move || {
            nix::sys::prctl::set_name(&comm).context("prctl(PR_SET_NAME)")?;
            work()
        })?
    }
}

fn v4_cases() -> Vec<Case> {
    // Of RFC 5737 and 2544: no route of this namespace leads to them.
    let address = |s: [u8; 4], port| SocketAddr::V4(SocketAddrV4::new(s.into(), port));
    vec![
        Case {
            name: "IPv4, masquerading",
            client: address([198, 51, 100, 7], 40_961),
            vip: address([198, 18, 0, 2], 5_077),
            dest: address([203, 0, 113, 9], 6_113),
            forwarding: Forwarding::Masq,
            weight: 7,
            seqs: [0x1a2b_3c4d, 0x5e6f_7081],
        },
        Case {
            name: "IPv4, direct routing",
            client: address([198, 51, 100, 8], 40_962),
            vip: address([198, 18, 0, 3], 5_078),
            dest: address([203, 0, 113, 10], 5_078),
            forwarding: Forwarding::Dr,
            weight: 11,
            seqs: [0x2b3c_4d5e, 0x6f70_8192],
        },
    ]
}

fn v6_case() -> Case {
    // Of RFC 3849.
    let address = |last: u16, port| {
        let ip = [0x2001, 0xdb8, 0x1111, 0x2222, 0x3333, 0x4444, 0x5555, last];
        SocketAddr::V6(SocketAddrV6::new(ip.into(), port, 0, 0))
    };
    Case {
        name: "IPv6, masquerading",
        client: address(0x6661, 40_963),
        vip: address(0x6662, 5_079),
        dest: address(0x6663, 6_115),
        forwarding: Forwarding::Masq,
        weight: 13,
        seqs: [0x3c4d_5e6f, 0x7081_92a3],
    }
}

fn destination(case: &Case, weight: u32) -> Destination {
    let mut destination = Destination::masq(case.dest, weight);
    destination.forwarding = case.forwarding;
    destination
}

/// The first scheduler that a service can be made with.
fn scheduler(case: &Case) -> Result<&'static str> {
    let modules = std::fs::read_to_string("/proc/modules").unwrap_or_default();
    let loaded = |name: &str| {
        let module = format!("ip_vs_{name} ");
        modules.lines().any(|line| line.starts_with(&module))
    };
    let (first, rest): (Vec<_>, Vec<_>) = SCHEDULERS.into_iter().partition(|name| loaded(name));
    for name in first.into_iter().chain(rest) {
        if has_service(case, name)? {
            return Ok(name);
        }
    }
    anyhow::bail!(
        "no scheduler of {}: modprobe ip_vs_rr",
        SCHEDULERS.join(", ")
    )
}

/// Whether the kernel takes a service like that of `case`; it is removed again.
fn has_service(case: &Case, scheduler: &str) -> Result<bool> {
    let mut ipvs = IpvsSocket::open()?;
    let id = ServiceId::tcp(case.vip);
    match ipvs.add_service(&Service::new(id, scheduler)) {
        Ok(()) => {
            ipvs.delete_service(&id)?;
            Ok(true)
        }
        Err(NetlinkError::NotFound { .. }) => Ok(false),
        Err(NetlinkError::Kernel { source, .. })
            if source.raw_os_error() == Some(Errno::EAFNOSUPPORT as i32) =>
        {
            Ok(false)
        }
        Err(error) => Err(error.into()),
    }
}

/// Sends a SYN from a raw socket: it passes LOCAL_OUT, where IPVS takes it.
fn send_syn(case: &Case, seq: u32) -> Result<()> {
    let packet = |ip: etherparse::PacketBuilderStep<etherparse::IpHeaders>| -> Result<Vec<u8>> {
        let step = ip
            .tcp(case.client.port(), case.vip.port(), seq, 64_240)
            .syn();
        let mut bytes = Vec::with_capacity(step.size(0));
        step.write(&mut bytes, &[]).context("building a SYN")?;
        Ok(bytes)
    };
    let bytes = match (case.client.ip(), case.vip.ip()) {
        (IpAddr::V4(client), IpAddr::V4(vip)) => {
            packet(PacketBuilder::ipv4(client.octets(), vip.octets(), 64))?
        }
        (IpAddr::V6(client), IpAddr::V6(vip)) => {
            packet(PacketBuilder::ipv6(client.octets(), vip.octets(), 64))?
        }
        (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => {
            anyhow::bail!("client and virtual service of two families")
        }
    };
    let socket = RawSocket::open(case.vip.ip()).context("socket(SOCK_RAW)")?;
    match socket.send(&bytes, case.vip.ip()) {
        // IPVS took the packet; that it found no route for it is as intended.
        Ok(()) | Err(Errno::EPERM | Errno::EHOSTUNREACH | Errno::ENETUNREACH) => Ok(()),
        Err(errno) => Err(errno).context("sending a SYN"),
    }
}
