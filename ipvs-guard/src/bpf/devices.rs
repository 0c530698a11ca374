//! The packet programs on the namespace's devices.
//!
//! From 6.6 on TC programs hang on links of their own (TCX) that go with the
//! process. Before, they are filters of a clsact qdisc, which stay when a process
//! is killed: they are found again by the programs' names.

use std::{collections::BTreeMap, io};

use aya::{
    maps::{HashMap, MapData},
    programs::{
        ProgramError, SchedClassifier, TcAttachType, XdpMode,
        tc::{self, SchedClassifierLinkId, TcError},
        xdp::XdpLinkId,
    },
};
use ipvs_guard_common::guard::{EGRESS, EGRESS_BARE, INGRESS, INGRESS_BARE, XDP};

use super::load::{BpfError, Loaded, full};
use crate::netlink::{
    NetlinkError,
    route::{Device, LinkLayer, Mac, RouteSocket},
    tc as tc_netlink,
};

/// How packets that come in by a device are met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Covered {
    /// By the driver, before the kernel has made a packet of them.
    Xdp,
    /// By TC.
    Tc,
}

struct Attached {
    index: u32,
    program: (&'static str, &'static str),
    ingress: Option<SchedClassifierLinkId>,
    xdp: Option<XdpLinkId>,
    egress: Option<SchedClassifierLinkId>,
    /// The clsact qdisc is ours to remove.
    made_qdisc: bool,
}

/// The devices that carry the programs now.
///
/// On the way out there is something to meet only while a destination drains; a
/// program there would cost every packet of calm times for nothing.
pub struct Devices {
    attached: BTreeMap<String, Attached>,
    /// Nothing is ever answered or dropped: TC on the way in serves, to see who lives.
    listens: bool,
    egress: bool,
    macs: HashMap<MapData, u32, [u8; 8]>,
}

impl Devices {
    /// None yet. Where it only `listens` there is neither XDP nor a program on the way out.
    ///
    /// # Errors
    /// [`BpfError`] when the kernel refuses the programs, or this build has no map
    /// for the devices' addresses.
    pub fn new(loaded: &mut Loaded, listens: bool) -> Result<Self, BpfError> {
        // What the kernel refuses here it refuses for every device.
        for program in [INGRESS, EGRESS, INGRESS_BARE, EGRESS_BARE] {
            loaded.classifier(program)?;
        }
        let macs = HashMap::try_from(loaded.take("MACS")?)
            .map_err(|error| BpfError::Load(error.into()))?;
        Ok(Self {
            attached: BTreeMap::new(),
            listens,
            egress: false,
            macs,
        })
    }

    /// Whether this very device carries them.
    pub fn has(&self, device: &Device) -> bool {
        self.attached
            .get(&device.name)
            .is_some_and(|attached| attached.index == device.index)
    }

    /// Names of the devices.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.attached.keys().map(String::as_str)
    }

    /// Puts the programs on a device. What cannot be done whole is not done.
    ///
    /// Returns how packets that come in are met, and why not by XDP where the
    /// driver refused.
    ///
    /// # Errors
    /// What the kernel answered.
    pub fn add(
        &mut self,
        loaded: &mut Loaded,
        device: &Device,
    ) -> Result<(Covered, Option<String>), String> {
        let program = match device.link_layer {
            LinkLayer::Ethernet => (INGRESS, EGRESS),
            LinkLayer::Bare => (INGRESS_BARE, EGRESS_BARE),
            LinkLayer::Loopback | LinkLayer::Other => {
                return Err("no packets of IPVS are known by this link layer".into());
            }
        };
        let mut attached = Attached {
            index: device.index,
            program,
            ingress: None,
            xdp: None,
            egress: None,
            made_qdisc: false,
        };
        let outcome = self.fill(loaded, device, &mut attached);
        match outcome {
            Ok(outcome) => {
                self.attached.insert(device.name.clone(), attached);
                Ok(outcome)
            }
            Err(reason) => {
                detach(loaded, attached);
                Err(reason)
            }
        }
    }

    fn fill(
        &mut self,
        loaded: &mut Loaded,
        device: &Device,
        attached: &mut Attached,
    ) -> Result<(Covered, Option<String>), String> {
        let text = |error: BpfError| error.to_string();
        let (ingress, _) = attached.program;
        if !has_tcx() {
            attached.made_qdisc = match tc::qdisc_add_clsact(&device.name) {
                Ok(()) => true,
                Err(error) if is_there(&error) => {
                    only_clsact(device)?;
                    false
                }
                Err(error) => return Err(format!("qdisc clsact: {}", full(&error))),
            };
        }
        if !self.listens {
            // Even where it is taken off again: that it can be put on is known then.
            put_out(loaded, &device.name, attached)?;
            if !self.egress {
                take_out(loaded, attached);
            }
        }
        let mut refused = None;
        if let (true, Some(mac)) = (!self.listens && may_run_xdp(device), device.mac) {
            match loaded
                .xdp(XDP)
                .map_err(text)?
                .attach_to_if_index(device.index, XdpMode::Driver)
            {
                Ok(link) => {
                    attached.xdp = Some(link);
                    self.set_mac(device.index, mac)?;
                    return Ok((Covered::Xdp, None));
                }
                Err(error) => refused = Some(full(&error)),
            }
        }
        attached.ingress = Some(
            attach(
                loaded.classifier(ingress).map_err(text)?,
                &device.name,
                TcAttachType::Ingress,
            )
            .map_err(|error| format!("TC ingress: {}", full(&error)))?,
        );
        Ok((Covered::Tc, refused))
    }

    /// Whether the way out is watched.
    pub const fn has_egress(&self) -> bool {
        self.egress
    }

    /// Watches the way out of every device, or no more. Returns the devices where
    /// it could not be done, and why.
    pub fn set_egress(&mut self, loaded: &mut Loaded, wanted: bool) -> Vec<(String, String)> {
        let wanted = wanted && !self.listens;
        self.egress = wanted;
        let mut failed = Vec::new();
        for (name, attached) in &mut self.attached {
            if !wanted {
                take_out(loaded, attached);
            } else if let Err(reason) = put_out(loaded, name, attached) {
                failed.push((name.clone(), reason));
            }
        }
        failed
    }

    /// Lets the XDP program answer what comes in by the device `index` for the
    /// Ethernet address `mac`.
    ///
    /// # Errors
    /// When there are too many such devices.
    pub fn set_mac(&mut self, index: u32, mac: Mac) -> Result<(), String> {
        let [a, b, c, d, e, f] = mac;
        self.macs
            .insert(index, [a, b, c, d, e, f, 0, 0], 0)
            .map_err(|error| format!("map MACS: {error}"))
    }

    /// Forgets devices that are gone, by what is there now.
    pub fn retain(&mut self, loaded: &mut Loaded, devices: &[Device]) {
        let gone: Vec<String> = self
            .attached
            .iter()
            .filter(|(name, attached)| {
                !devices.iter().any(|device| {
                    device.name == **name
                        && device.index == attached.index
                        // A VLAN has come: TC serves from now on.
                        && (attached.xdp.is_none() || may_run_xdp(device))
                })
            })
            .map(|(name, _)| name.clone())
            .collect();
        for name in gone {
            if let Some(attached) = self.attached.remove(&name) {
                let _absent = self.macs.remove(&attached.index);
                detach(loaded, attached);
            }
        }
    }

    /// Takes the programs off every device.
    pub fn clear(&mut self, loaded: &mut Loaded) {
        for (_, attached) in std::mem::take(&mut self.attached) {
            detach(loaded, attached);
        }
    }
}

/// Whether the driver may answer for a device. Where VLANs are on it, or it is one
/// of several that make one, a card may have taken the tag off a packet's bytes,
/// and an answer from there would go without it.
fn may_run_xdp(device: &Device) -> bool {
    device.physical && !device.shared
}

fn attach(
    program: &mut SchedClassifier,
    device: &str,
    side: TcAttachType,
) -> Result<SchedClassifierLinkId, ProgramError> {
    program.attach(device, side)
}

/// Puts the program on the way out of a device.
fn put_out(loaded: &mut Loaded, device: &str, attached: &mut Attached) -> Result<(), String> {
    if attached.egress.is_none() {
        let program = loaded
            .classifier(attached.program.1)
            .map_err(|error| error.to_string())?;
        let link = attach(program, device, TcAttachType::Egress)
            .map_err(|error| format!("TC egress: {}", full(&error)))?;
        attached.egress = Some(link);
    }
    Ok(())
}

/// Takes it off; a device that has gone took it along.
fn take_out(loaded: &mut Loaded, attached: &mut Attached) {
    if let (Some(link), Ok(program)) = (
        attached.egress.take(),
        loaded.classifier(attached.program.1),
    ) {
        let _gone = program.detach(link);
    }
}

/// Whether TC programs can have links of their own (aya asks the same).
pub(super) fn has_tcx() -> bool {
    use aya::util::KernelVersion;
    KernelVersion::current().is_ok_and(|version| version >= KernelVersion::new(6, 6, 0))
}

/// Takes off what is on, by index: the device may have another name now, and one
/// that has gone took it along.
fn detach(loaded: &mut Loaded, mut attached: Attached) {
    take_out(loaded, &mut attached);
    let Attached {
        index,
        program: (ingress, _),
        ingress: link,
        xdp,
        egress: _,
        made_qdisc,
    } = attached;
    if let (Some(link), Ok(classifier)) = (link, loaded.classifier(ingress)) {
        let _gone = classifier.detach(link);
    }
    if let (Some(link), Ok(program)) = (xdp, loaded.xdp(XDP)) {
        let _gone = program.detach(link);
    }
    if made_qdisc {
        match RouteSocket::open() {
            Ok(mut socket) => remove_unused_qdisc(&mut socket, index),
            Err(error) => log::debug!("{error}"),
        }
    }
}

/// What has the place of clsact must be one: an ingress qdisc takes filters of
/// both sides, and runs them on the way in (`ingress_tcf_block`, 5.10 to 6.5).
fn only_clsact(device: &Device) -> Result<(), String> {
    let kind = RouteSocket::open()
        .and_then(|mut socket| tc_netlink::qdisc(&mut socket, device.index))
        .map_err(|error| error.to_string())?;
    match kind.as_deref() {
        Some("clsact") => Ok(()),
        Some(other) => Err(format!(
            "it has a qdisc {other}, which has no place for filters on the way out; tc qdisc \
             replace dev {} clsact",
            device.name
        )),
        // It went meanwhile.
        None => Err("qdisc clsact: it exists, and does not".into()),
    }
}

pub(super) fn is_there(error: &TcError) -> bool {
    let mut cause: Option<&dyn std::error::Error> = Some(error);
    while let Some(error) = cause {
        if error
            .downcast_ref::<io::Error>()
            .is_some_and(|error| error.kind() == io::ErrorKind::AlreadyExists)
        {
            return true;
        }
        cause = error.source();
    }
    false
}

/// Removes the filters that a killed agent left on a device of this namespace,
/// and the clsact qdisc that nobody else uses then. Returns the names of the
/// programs removed.
///
/// # Errors
/// What the kernel answered.
pub fn remove_leftovers(
    socket: &mut RouteSocket,
    device: &Device,
) -> Result<Vec<&'static str>, NetlinkError> {
    let mut removed = Vec::new();
    for filter in tc_netlink::filters(socket, device.index)? {
        let ours = [INGRESS, INGRESS_BARE, EGRESS, EGRESS_BARE]
            .into_iter()
            .find(|name| filter.program.as_deref() == Some(name));
        let Some(program) = ours else { continue };
        match tc_netlink::remove_filter(socket, device.index, &filter) {
            Ok(()) => removed.push(program),
            // The device went, and took it along.
            Err(NetlinkError::NotFound { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    if !removed.is_empty() {
        remove_unused_qdisc(socket, device.index);
    }
    Ok(removed)
}

/// Removes the clsact qdisc of a device if no filter is left on it.
fn remove_unused_qdisc(socket: &mut RouteSocket, index: u32) {
    if let Err(error) = tc_netlink::remove_unused_clsact(socket, index) {
        log::debug!("{error}");
    }
}
