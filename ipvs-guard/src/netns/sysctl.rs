//! Network sysctls of the calling thread's namespace.
//!
//! `/proc/sys/net` resolves by the task that opens it (`net_ctl_header_lookup`,
//! net/sysctl_net.c), so inside [`super::NetNs::run`] these are the namespace's.

use std::fs;
use std::io;
use std::path::PathBuf;

/// What went wrong with a sysctl.
#[derive(Debug, thiserror::Error)]
pub enum SysctlError {
    /// The kernel, or a module that is not loaded, does not have it.
    #[error("sysctl {name}: this kernel does not have it here")]
    Absent {
        /// Its path under /proc/sys.
        name: String,
    },
    /// Not permitted.
    #[error("sysctl {name}: not permitted, CAP_NET_ADMIN is needed")]
    Privilege {
        /// Its path under /proc/sys.
        name: String,
    },
    /// `/proc/sys` is mounted so that nothing can be written, as in most containers.
    #[error("sysctl {name}: /proc/sys is read-only here")]
    ReadOnly {
        /// Its path under /proc/sys.
        name: String,
    },
    /// Anything else the kernel answered.
    #[error("sysctl {name}: {source}")]
    Kernel {
        /// Its path under /proc/sys.
        name: String,
        /// The kernel's answer.
        source: io::Error,
    },
}

/// Reads a sysctl such as `net/ipv4/ip_forward`, without the closing newline.
///
/// # Errors
/// [`SysctlError::Absent`] when the kernel does not have it.
pub fn read(name: &str) -> Result<String, SysctlError> {
    let text = fs::read_to_string(path(name)).map_err(|e| error(name, e))?;
    Ok(text.trim_end().to_owned())
}

/// Writes a sysctl such as `net/ipv4/vs/conn_reuse_mode`.
///
/// # Errors
/// [`SysctlError::Absent`] when the kernel does not have it.
pub fn write(name: &str, value: &str) -> Result<(), SysctlError> {
    fs::write(path(name), value).map_err(|e| error(name, e))
}

fn path(name: &str) -> PathBuf {
    PathBuf::from("/proc/sys").join(name)
}

fn error(name: &str, source: io::Error) -> SysctlError {
    let name = name.to_owned();
    if source.kind() == io::ErrorKind::NotFound {
        SysctlError::Absent { name }
    } else if source.kind() == io::ErrorKind::PermissionDenied {
        SysctlError::Privilege { name }
    } else if source.kind() == io::ErrorKind::ReadOnlyFilesystem {
        SysctlError::ReadOnly { name }
    } else {
        SysctlError::Kernel { name, source }
    }
}
