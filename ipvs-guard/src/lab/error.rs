use std::io;

use crate::netlink::NetlinkError;
use crate::netlink::conntable::ConnTableError;
use crate::netns::NetNsError;
use crate::netns::sysctl::SysctlError;

/// Why the lab could not be run.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// Capabilities are missing.
    #[error("the lab needs {missing}: run it as root")]
    Privilege {
        /// Their names.
        missing: String,
    },
    /// A part of the kernel is missing.
    #[error("{what}: {remedy}")]
    Missing {
        /// What is missing.
        what: String,
        /// What would help.
        remedy: &'static str,
    },
    /// More was asked for than the lab has.
    #[error("the lab has no {what}")]
    NoSuch {
        /// What was asked for.
        what: String,
    },
    /// Its connections failed before anything was wrong on purpose.
    #[error("the lab's own network does not work: connection {attempt}")]
    Unhealthy {
        /// The first connection that failed.
        attempt: String,
    },
    /// The guard did not become ready.
    #[error("the lab's guard: {reason}")]
    Guard {
        /// What it said last.
        reason: String,
        /// By its exit code.
        kind: Kind,
    },
    /// A namespace.
    #[error(transparent)]
    NetNs(#[from] NetNsError),
    /// A netlink call.
    #[error(transparent)]
    Netlink(NetlinkError),
    /// A sysctl.
    #[error(transparent)]
    Sysctl(SysctlError),
    /// The connection table.
    #[error(transparent)]
    ConnTable(ConnTableError),
    /// A socket or thread.
    #[error("{what}: {source}")]
    Io {
        /// What was attempted.
        what: String,
        /// The kernel's answer.
        source: io::Error,
    },
}

/// Errors by what the user can do about them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Give it more privilege.
    Privilege,
    /// Load a module, or use another kernel.
    Missing,
    /// Nothing that is known.
    Internal,
}

impl LabError {
    /// What the user can do about it.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Privilege { .. } => Kind::Privilege,
            Self::NetNs(error) if error.is_privilege() => Kind::Privilege,
            Self::Netlink(error) if error.is_privilege() => Kind::Privilege,
            Self::Sysctl(SysctlError::Privilege { .. }) => Kind::Privilege,
            Self::Missing { .. } => Kind::Missing,
            Self::Guard { kind, .. } => *kind,
            Self::NoSuch { .. }
            | Self::Unhealthy { .. }
            | Self::NetNs(_)
            | Self::Netlink(_)
            | Self::Sysctl(_)
            | Self::ConnTable(_)
            | Self::Io { .. } => Kind::Internal,
        }
    }

    fn no_ip_vs() -> Self {
        Self::Missing {
            what: "ip_vs is not loaded".to_owned(),
            remedy: "run modprobe ip_vs",
        }
    }
}

impl From<NetlinkError> for LabError {
    fn from(error: NetlinkError) -> Self {
        if matches!(error, NetlinkError::FamilyAbsent) {
            Self::no_ip_vs()
        } else {
            Self::Netlink(error)
        }
    }
}

impl From<SysctlError> for LabError {
    fn from(error: SysctlError) -> Self {
        match error {
            SysctlError::Absent { name } => Self::Missing {
                what: format!("sysctl {name} does not exist"),
                remedy: "this kernel is built without it",
            },
            SysctlError::ReadOnly { .. } => Self::Missing {
                what: error.to_string(),
                remedy: "the lab sets sysctls of its own namespaces; run it on the node itself, or in \
                         a container with a writable /proc/sys",
            },
            SysctlError::Privilege { .. } | SysctlError::Kernel { .. } => Self::Sysctl(error),
        }
    }
}

impl From<ConnTableError> for LabError {
    fn from(error: ConnTableError) -> Self {
        if matches!(error, ConnTableError::Absent) {
            Self::no_ip_vs()
        } else {
            Self::ConnTable(error)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_read_only_proc_is_told_once_and_with_advice() {
        let name = "net/ipv4/ip_forward".to_owned();
        let error = LabError::from(SysctlError::ReadOnly { name });
        assert_eq!(error.kind(), Kind::Missing);
        let line = error.to_string();
        assert!(
            line.starts_with("sysctl net/ipv4/ip_forward: /proc/sys is read-only here: the lab")
        );
    }
}
