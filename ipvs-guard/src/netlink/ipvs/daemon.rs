//! The daemons that keep the connection tables of two nodes in step
//! (`start_sync_thread`, net/netfilter/ipvs/ip_vs_sync.c).

use std::net::Ipv4Addr;

use netlink_packet_core::{DecodeError, DefaultNla};

use super::message::{Attributes, text, value};

/// `IPVS_DAEMON_ATTR_*`.
mod attribute {
    pub(super) const STATE: u16 = 1;
    pub(super) const MCAST_IFN: u16 = 2;
    pub(super) const SYNC_ID: u16 = 3;
    pub(super) const MCAST_GROUP: u16 = 5;
    pub(super) const MCAST_PORT: u16 = 7;
}

/// `IP_VS_STATE_MASTER`.
const MASTER: u32 = 1;
/// `IP_VS_STATE_BACKUP`.
const BACKUP: u32 = 2;

/// What a daemon does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DaemonRole {
    /// It sends.
    Master,
    /// It receives.
    Backup,
}

/// A daemon that runs in the namespace: one of each role at most.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DaemonStatus {
    /// What it does.
    pub role: DaemonRole,
    /// The device it does it on.
    pub device: String,
}

impl DaemonStatus {
    pub(super) fn parse(attributes: Attributes<'_>) -> Result<Self, DecodeError> {
        let role = match attributes.u32(attribute::STATE, "daemon state")? {
            MASTER => DaemonRole::Master,
            BACKUP => DaemonRole::Backup,
            other => return Err(DecodeError::from(format!("daemon state {other}"))),
        };
        let device = attributes
            .text(attribute::MCAST_IFN)?
            .ok_or_else(|| DecodeError::from("the device of a daemon is missing"))?;
        Ok(Self {
            role,
            device: device.to_owned(),
        })
    }
}

/// A daemon that receives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backup {
    /// The device it listens on.
    pub device: String,
    /// The group it joins there; from 4.3.
    pub group: Ipv4Addr,
    /// The UDP port; from 4.3.
    pub port: u16,
    /// Only messages of this number are taken; not 0.
    pub sync_id: u8,
}

impl Backup {
    pub(super) fn attributes(&self) -> Vec<DefaultNla> {
        vec![
            value(attribute::STATE, BACKUP.to_ne_bytes()),
            text(attribute::MCAST_IFN, &self.device),
            value(attribute::SYNC_ID, u32::from(self.sync_id).to_ne_bytes()),
            value(attribute::MCAST_GROUP, self.group.octets()),
            value(attribute::MCAST_PORT, self.port.to_ne_bytes()),
        ]
    }

    /// What names the one that is to end.
    pub(super) fn key() -> Vec<DefaultNla> {
        vec![value(attribute::STATE, BACKUP.to_ne_bytes())]
    }
}
