//! What a killed agent leaves: TC filters, on kernels where they have no link of
//! their own, which let everything pass, for nobody moves their heart; and a sync
//! daemon, which hears nobody, for its device went with the agent.

use super::heal;
use crate::{
    bpf::remove_leftovers,
    netlink::{NetlinkError, route::RouteSocket},
};

/// A program, or the kernel's sync daemon, that was removed from a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leftover {
    /// The device.
    pub device: String,
    /// The program.
    pub program: &'static str,
}

/// Removes what is left on the devices of this thread's network namespace. To be
/// called with the [`super::Lock`] held: those of a living agent look the same.
///
/// # Errors
/// What the kernel answered, by device.
pub fn sweep() -> Result<Vec<Leftover>, SweepError> {
    let mut found = Vec::new();
    if let Some(device) = heal::sweep()? {
        found.push(Leftover {
            device,
            program: "sync daemon",
        });
    }
    let mut socket = RouteSocket::open()?;
    for device in socket.devices()? {
        let programs =
            remove_leftovers(&mut socket, &device).map_err(|source| SweepError::Device {
                device: device.name.clone(),
                source,
            })?;
        found.extend(programs.into_iter().map(|program| Leftover {
            device: device.name.clone(),
            program,
        }));
    }
    Ok(found)
}

/// Why it cannot be told or done.
#[derive(Debug, thiserror::Error)]
pub enum SweepError {
    /// The devices cannot be listed.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// The filters of a device cannot be listed or removed.
    #[error("filters of {device}: {source}")]
    Device {
        /// The device.
        device: String,
        /// What the kernel answered.
        source: NetlinkError,
    },
}
