//! Network namespaces: making private ones, entering them, finding the one an
//! event names.
//!
//! A namespace belongs to a thread, so every entry here happens on a thread of
//! its own that ends with the work: the calling thread never moves.

mod find;
pub mod sysctl;

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::thread;

use nix::errno::Errno;
use nix::sched::{CloneFlags, setns, unshare};

pub use find::find;

/// The namespace of the calling thread. Not `/proc/self`: that is the thread
/// group leader's, which need not be where this thread is.
const OWN: &str = "/proc/thread-self/ns/net";

/// What went wrong with a network namespace.
#[derive(Debug, thiserror::Error)]
pub enum NetNsError {
    /// The kernel answered EPERM or EACCES.
    #[error("{call} on {object}: not permitted, {needed} is needed")]
    Privilege {
        /// The call that was refused.
        call: &'static str,
        /// The namespace or file it was made on.
        object: String,
        /// What would have helped.
        needed: &'static str,
    },
    /// There is no such namespace or file.
    #[error("{call} on {object}: no such network namespace")]
    NotFound {
        /// The call that found nothing.
        call: &'static str,
        /// The path or inode number asked for.
        object: String,
    },
    /// Anything else the kernel answered.
    #[error("{call} on {object}: {source}")]
    Kernel {
        /// The call that failed.
        call: &'static str,
        /// The namespace or file it was made on.
        object: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// No thread could be started to enter the namespace with.
    #[error("starting a thread for {object}: {source}")]
    Thread {
        /// The namespace to be entered.
        object: String,
        /// Why not.
        source: io::Error,
    },
}

impl NetNsError {
    fn new(call: &'static str, object: impl Into<String>, source: io::Error) -> Self {
        let object = object.into();
        match source.raw_os_error().map(Errno::from_raw) {
            Some(Errno::EPERM | Errno::EACCES) => Self::Privilege {
                call,
                needed: match call {
                    "open" => to_open(&object),
                    _ => "CAP_SYS_ADMIN",
                },
                object,
            },
            Some(Errno::ENOENT) => Self::NotFound { call, object },
            _ => Self::Kernel {
                call,
                object,
                source,
            },
        }
    }

    /// Whether more privilege would have helped.
    pub fn is_privilege(&self) -> bool {
        matches!(self, Self::Privilege { .. })
    }
}

/// A handle on a network namespace, which lives at least as long as the handle.
///
/// The handle is a file descriptor and nothing else: no name, no mount. A
/// namespace made by [`NetNs::new`] is therefore gone with its last descriptor,
/// thread and socket, however the process ends.
#[derive(Debug)]
pub struct NetNs {
    fd: OwnedFd,
    inode: u32,
}

impl NetNs {
    /// Makes a new, empty network namespace (its `lo` is down).
    ///
    /// # Errors
    /// [`NetNsError::Privilege`] without CAP_SYS_ADMIN.
    pub fn new() -> Result<Self, NetNsError> {
        let object = "a new network namespace";
        spawn(object, || {
            unshare(CloneFlags::CLONE_NEWNET)
                .map_err(|errno| NetNsError::new("unshare(CLONE_NEWNET)", object, errno.into()))?;
            Self::current()
        })?
    }

    /// The network namespace of the calling thread.
    ///
    /// # Errors
    /// When /proc is not mounted or cannot be read.
    pub fn current() -> Result<Self, NetNsError> {
        Self::open(Path::new(OWN))
    }

    /// The namespace behind a path: `/proc/PID/ns/net`, `/run/netns/NAME`.
    ///
    /// # Errors
    /// [`NetNsError::NotFound`] when there is nothing or something else than a
    /// namespace at `path`.
    pub fn open(path: &Path) -> Result<Self, NetNsError> {
        let object = || path.display().to_string();
        let file = File::open(path).map_err(|e| NetNsError::new("open", object(), e))?;
        let meta = file
            .metadata()
            .map_err(|e| NetNsError::new("fstat", object(), e))?;
        let own = std::fs::metadata(OWN).map_err(|e| NetNsError::new("stat", OWN, e))?;
        if meta.dev() != own.dev() || !is_network(&file) {
            return Err(NetNsError::NotFound {
                call: "open",
                object: object(),
            });
        }
        Ok(Self {
            fd: file.into(),
            inode: inode_number(&meta),
        })
    }

    /// The number in `net:[4026531840]`, which the kernel calls `ns.inum`.
    pub fn inode(&self) -> u32 {
        self.inode
    }

    /// A path under which this process, and only it, can open the namespace.
    pub fn path(&self) -> PathBuf {
        use std::os::fd::AsRawFd as _;
        PathBuf::from(format!("/proc/self/fd/{}", self.fd.as_raw_fd()))
    }

    /// Moves the calling thread into the namespace, for good. For the beginning of
    /// a process that has no other thread yet.
    ///
    /// # Errors
    /// [`NetNsError::Privilege`] without CAP_SYS_ADMIN over the namespace.
    pub fn enter(&self) -> Result<(), NetNsError> {
        setns(&self.fd, CloneFlags::CLONE_NEWNET)
            .map_err(|errno| NetNsError::new("setns", self.to_string(), errno.into()))
    }

    /// Runs `work` on a fresh thread inside the namespace and waits for it.
    ///
    /// Sockets opened there stay in the namespace wherever they are used later,
    /// and so do threads started there. A panic of `work` is passed on. No
    /// privilege is needed when the caller is in the namespace already.
    ///
    /// # Errors
    /// [`NetNsError::Privilege`] without CAP_SYS_ADMIN over the namespace.
    pub fn run<T, F>(&self, work: F) -> Result<T, NetNsError>
    where
        T: Send,
        F: FnOnce() -> T + Send,
    {
        let object = self.to_string();
        spawn(&object, || {
            if Self::current()?.inode != self.inode {
                setns(&self.fd, CloneFlags::CLONE_NEWNET)
                    .map_err(|errno| NetNsError::new("setns", object.as_str(), errno.into()))?;
            }
            Ok(work())
        })?
    }
}

/// What it takes to open a namespace's file. That of a process is given to
/// whoever may trace the process (`proc_ns_get_link`, fs/proc/namespaces.c).
fn to_open(path: &str) -> &'static str {
    let of_a_process = path
        .strip_prefix("/proc/")
        .and_then(|rest| rest.split('/').next())
        .is_some_and(|name| name.parse::<u32>().is_ok());
    if of_a_process {
        "CAP_SYS_PTRACE"
    } else {
        "the right to read it, or CAP_DAC_READ_SEARCH,"
    }
}

/// Whether an open namespace is one of the network (NS_GET_NSTYPE, from 4.11).
fn is_network(namespace: &File) -> bool {
    nix::ioctl_none!(get_type, 0xb7, 0x3);
    // SAFETY: the call takes no argument and changes nothing.
    let kind = unsafe { get_type(std::os::fd::AsRawFd::as_raw_fd(namespace)) };
    kind == Ok(CloneFlags::CLONE_NEWNET.bits())
}

impl AsFd for NetNs {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl std::fmt::Display for NetNs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "net:[{}]", self.inode)
    }
}

fn spawn<T: Send>(object: &str, work: impl FnOnce() -> T + Send) -> Result<T, NetNsError> {
    thread::scope(|scope| {
        let handle = thread::Builder::new()
            .name("netns".to_owned())
            .spawn_scoped(scope, work)
            .map_err(|source| NetNsError::Thread {
                object: object.to_owned(),
                source,
            })?;
        handle
            .join()
            .or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// `ns.inum` is an `unsigned int` in the kernel (include/linux/ns_common.h), so
/// nothing is cut off.
fn inode_number(meta: &std::fs::Metadata) -> u32 {
    meta.ino() as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn current_is_what_proc_says() {
        let link = std::fs::read_link(OWN).unwrap();
        assert_eq!(
            NetNs::current().unwrap().to_string(),
            link.to_str().unwrap()
        );
    }

    #[test]
    fn a_file_that_is_no_namespace_is_refused() {
        assert!(matches!(
            NetNs::open(Path::new("/proc/version")),
            Err(NetNsError::NotFound { .. })
        ));
        assert!(matches!(
            NetNs::open(Path::new("/nonexistent")),
            Err(NetNsError::NotFound { .. })
        ));
    }

    #[test]
    fn a_refusal_names_what_would_help() {
        let refused = |call, path| NetNsError::new(call, path, Errno::EACCES.into()).to_string();
        for (call, path, needed) in [
            ("open", "/proc/1/ns/net", "CAP_SYS_PTRACE is needed"),
            ("open", "/proc/17/fd/3", "CAP_SYS_PTRACE is needed"),
            ("open", "/run/netns/x", "the right to read it"),
            ("setns", "net:[1]", "CAP_SYS_ADMIN is needed"),
        ] {
            assert!(refused(call, path).contains(needed), "{call} {path}");
        }
    }

    #[test]
    fn run_without_a_change_of_namespace_needs_no_privilege() {
        let here = NetNs::current().unwrap();
        assert_eq!(
            here.run(|| NetNs::current().unwrap().inode()).unwrap(),
            here.inode()
        );
    }

    /// The rest needs CAP_SYS_ADMIN, which not every machine that tests gives.
    fn private() -> Option<NetNs> {
        match NetNs::new() {
            Ok(ns) => Some(ns),
            Err(NetNsError::Privilege { .. }) => None,
            Err(other) => panic!("{other}"),
        }
    }

    #[test]
    fn a_new_namespace_is_another_and_the_caller_stays() {
        let before = NetNs::current().unwrap().inode();
        let Some(ns) = private() else { return };
        assert_ne!(ns.inode(), before);
        assert_eq!(
            ns.run(|| NetNs::current().unwrap().inode()).unwrap(),
            ns.inode()
        );
        assert_eq!(NetNs::current().unwrap().inode(), before);
    }

    #[test]
    fn a_namespace_held_by_a_thread_is_found_and_gone_afterwards() {
        let Some(ns) = private() else { return };
        let inode = ns.inode();
        assert_eq!(ns.run(|| find(inode).unwrap().inode()).unwrap(), inode);
        drop(ns);
        // The number is free for the next one, which may be that of a test beside.
        let gone = || matches!(find(inode), Err(NetNsError::NotFound { .. }));
        let waited = (0..200).any(|_| {
            gone() || {
                thread::sleep(std::time::Duration::from_millis(50));
                false
            }
        });
        assert!(waited, "net:[{inode}] is still there");
    }

    #[test]
    fn sysctls_are_those_of_the_namespace_entered() {
        let Some(ns) = private() else { return };
        let name = "net/ipv4/ip_default_ttl";
        let outside = sysctl::read(name).unwrap();
        ns.run(|| sysctl::write(name, "77")).unwrap().unwrap();
        assert_eq!(ns.run(|| sysctl::read(name)).unwrap().unwrap(), "77");
        assert_eq!(sysctl::read(name).unwrap(), outside);
    }
}
