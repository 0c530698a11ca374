//! Packets put into a device as if they had come in there.

use std::{
    io,
    os::fd::{AsFd as _, OwnedFd},
};

use aya::programs::{
    TcAttachType,
    tc::{self, NlOptions, TcAttachOptions},
};
use ipvs_guard_common::guard::{GATE, SEND};

use super::{
    devices::is_there,
    guard::{ONCE, runnable},
    load::{BpfError, Loaded, full},
};

/// The program that does it.
pub struct Sender(OwnedFd);

impl Sender {
    /// Loads it.
    ///
    /// # Errors
    /// [`BpfError`] when the kernel refuses it.
    pub fn take(loaded: &mut Loaded) -> Result<Self, BpfError> {
        runnable(loaded, SEND).map(Self)
    }

    /// Keeps `device` to what is put into it here.
    ///
    /// # Errors
    /// [`BpfError`] when the kernel refuses the program there.
    pub fn guard(&self, loaded: &mut Loaded, device: &str) -> Result<(), BpfError> {
        let refused = |error: &dyn std::error::Error| {
            BpfError::Load(format!("{GATE}: {}", full(error)).into())
        };
        match tc::qdisc_add_clsact(device) {
            Ok(()) => {}
            Err(error) if is_there(&error) => {}
            Err(error) => return Err(refused(&error)),
        }
        // A filter on every kernel: it goes with the device. A link would go with this
        // process, when it is killed a moment before the device does.
        let filter = TcAttachOptions::Netlink(NlOptions::default());
        loaded
            .classifier(GATE)?
            .attach_with_options(device, TcAttachType::Ingress, filter)
            .map_err(|error| refused(&error))?;
        Ok(())
    }

    /// Sends a frame as [`SEND`] takes it: the last four bytes of its Ethernet source
    /// are the device's index.
    ///
    /// # Errors
    /// When the kernel refuses it: no such device, or it is down; ECANCELED when the
    /// heartbeat is over.
    pub fn send(&self, frame: &[u8]) -> io::Result<()> {
        let (tried, _) = ONCE.on(self.0.as_fd(), frame)?;
        match tried.action {
            0 => Ok(()),
            error => Err(io::Error::from_raw_os_error(error.saturating_neg())),
        }
    }
}
