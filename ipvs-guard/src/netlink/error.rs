use std::io;

use nix::errno::Errno;

use super::transport::Failure;

/// What went wrong in a netlink call: which call, on what.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// The kernel answered EPERM or EACCES.
    #[error("{call} {object}: not permitted, CAP_NET_ADMIN is needed")]
    Privilege {
        /// The netlink command.
        call: &'static str,
        /// What it was asked for.
        object: String,
    },
    /// The kernel has no IPVS now: the module is not loaded.
    #[error("ip_vs is not loaded: the kernel has no generic netlink family IPVS")]
    FamilyAbsent,
    /// ENOENT, ESRCH, ENODEV: the object, or what it is part of, does not exist.
    #[error("{call} {object}: does not exist")]
    NotFound {
        /// The netlink command.
        call: &'static str,
        /// What it was asked for.
        object: String,
    },
    /// EEXIST: it is there already.
    #[error("{call} {object}: exists already")]
    Exists {
        /// The netlink command.
        call: &'static str,
        /// What it was asked for.
        object: String,
    },
    /// Any other error, from the kernel's answer or the socket.
    #[error("{call} {object}: {source}")]
    Kernel {
        /// The netlink command.
        call: &'static str,
        /// What it was asked for.
        object: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// An answer that is not what the protocol says.
    #[error("{call} {object}: unreadable answer: {reason}")]
    Malformed {
        /// The netlink command.
        call: &'static str,
        /// What it was asked for.
        object: String,
        /// What is wrong with it.
        reason: String,
    },
}

impl NetlinkError {
    pub(super) fn new(call: &'static str, object: String, failure: impl Into<Failure>) -> Self {
        match failure.into() {
            Failure::Io(source) => match source.raw_os_error().map(Errno::from_raw) {
                Some(Errno::EPERM | Errno::EACCES) => Self::Privilege { call, object },
                Some(Errno::ENOENT | Errno::ESRCH | Errno::ENODEV) => {
                    Self::NotFound { call, object }
                }
                Some(Errno::EEXIST) => Self::Exists { call, object },
                _ => Self::Kernel {
                    call,
                    object,
                    source,
                },
            },
            Failure::Malformed(reason) => Self::Malformed {
                call,
                object,
                reason,
            },
        }
    }

    /// Whether more privilege would have helped.
    pub fn is_privilege(&self) -> bool {
        matches!(self, Self::Privilege { .. })
    }
}
