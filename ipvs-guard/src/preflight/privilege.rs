//! The capabilities that watching needs.

use std::{fs, io, os::unix::fs::MetadataExt as _};

use caps::{CapSet, Capability};
use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit};

use crate::failure::Failure;

/// Each with what it is for.
const NEEDED: [(Capability, &str); 6] = [
    (Capability::CAP_BPF, "load eBPF programs"),
    (Capability::CAP_PERFMON, "attach kprobes"),
    (
        Capability::CAP_NET_ADMIN,
        "prove the kernel layout on a service of its own",
    ),
    (Capability::CAP_NET_RAW, "send the proof's SYN"),
    (
        Capability::CAP_SYS_ADMIN,
        "make a private network namespace",
    ),
    (Capability::CAP_SYS_RESOURCE, "lock the memory of maps"),
];

/// Inode of the initial user namespace on every kernel (`PROC_USER_INIT_INO`,
/// include/linux/proc_ns.h, from 3.8).
const INITIAL_USER_NAMESPACE: u64 = 0xEFFF_FFFD;

/// Checks that capabilities count here: those in a user namespace of its own are
/// all there and serve neither eBPF nor IPVS.
///
/// # Errors
/// [`Failure::Privilege`] in a user namespace other than the initial one.
pub fn check_user_namespace() -> Result<(), Failure> {
    // A kernel without user namespaces has no such file.
    let inode = fs::metadata("/proc/self/ns/user").map(|meta| meta.ino());
    user_namespace(inode)
}

fn user_namespace(inode: io::Result<u64>) -> Result<(), Failure> {
    if inode.is_ok_and(|inode| inode != INITIAL_USER_NAMESPACE) {
        return Err(Failure::Privilege(
            "missing privilege: capabilities in a user namespace other than the initial one do \
             not serve; run outside of unshare -U, rootless containers and user-namespace \
             remapping"
                .into(),
        ));
    }
    Ok(())
}

/// Checks the effective set of this thread.
///
/// # Errors
/// [`Failure::Privilege`] naming every capability that is missing.
pub fn check_privileges() -> Result<(), Failure> {
    check_user_namespace()?;
    let held = caps::read(None, CapSet::Effective)
        .map_err(|error| Failure::Internal(anyhow::anyhow!("reading capabilities: {error}")))?;
    // CAP_SYS_ADMIN stands for both where the kernel does not know them (before 5.8)
    // and, by the kernel's own rule, everywhere else.
    let stands_in = held.contains(&Capability::CAP_SYS_ADMIN);
    let missing: Vec<_> = NEEDED
        .iter()
        .filter(|(capability, _)| {
            if *capability == Capability::CAP_SYS_RESOURCE && !maps_lock_memory() {
                return false;
            }
            let covered =
                stands_in && matches!(capability, Capability::CAP_BPF | Capability::CAP_PERFMON);
            !held.contains(capability) && !covered
        })
        .map(|(capability, purpose)| format!("{capability} (to {purpose})"))
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    Err(Failure::Privilege(format!(
        "missing privilege: {}; run with sudo or grant these capabilities",
        missing.join(", ")
    )))
}

/// Whether the kernel counts maps against RLIMIT_MEMLOCK, as it did before 5.11,
/// and that limit is not lifted already.
fn maps_lock_memory() -> bool {
    if getrlimit(Resource::RLIMIT_MEMLOCK).is_ok_and(|(_, hard)| hard == RLIM_INFINITY) {
        return false;
    }
    let Ok(names) = nix::sys::utsname::uname() else {
        return false;
    };
    let release = names.release().to_string_lossy();
    let mut parts = release
        .split('.')
        .map_while(|part| part.parse::<u32>().ok());
    matches!((parts.next(), parts.next()), (Some(major), Some(minor)) if (major, minor) < (5, 11))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_user_namespace_is_a_missing_privilege() {
        assert!(user_namespace(Ok(INITIAL_USER_NAMESPACE)).is_ok());
        assert!(user_namespace(Err(io::ErrorKind::NotFound.into())).is_ok());
        let failure = user_namespace(Ok(4_026_532_000)).unwrap_err();
        assert_eq!(failure.code(), 3);
        assert!(failure.to_string().contains("user namespace"));
    }
}
