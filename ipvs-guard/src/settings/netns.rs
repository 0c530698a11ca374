//! `--netns all|self|PATH`.

use std::{convert::Infallible, path::PathBuf, str::FromStr};

use crate::{
    failure::Failure,
    netns::{NetNs, NetNsError},
    preflight::check_proc,
};

/// Which network namespaces are watched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Every one on the node.
    All,
    /// The one that the agent runs in.
    Own,
    /// The one behind a path such as /run/netns/NAME or /proc/PID/ns/net.
    Path(PathBuf),
}

impl FromStr for Scope {
    type Err = Infallible;

    fn from_str(s: &str) -> Result<Self, Infallible> {
        Ok(match s {
            "all" => Self::All,
            "self" => Self::Own,
            path => Self::Path(path.into()),
        })
    }
}

impl Scope {
    /// Inode of the one namespace that is watched, or `None` for all.
    ///
    /// # Errors
    /// A usage failure when the path is no network namespace, one of privilege
    /// when it may not be opened.
    pub fn inode(&self) -> Result<Option<u32>, Failure> {
        Ok(self.open()?.map(|netns| netns.inode()))
    }

    /// The one namespace, or `None` for all.
    ///
    /// # Errors
    /// As [`Self::inode`].
    pub fn open(&self) -> Result<Option<NetNs>, Failure> {
        let netns = match self {
            Self::All => return Ok(None),
            Self::Own => NetNs::current(),
            Self::Path(path) => NetNs::open(path),
        };
        match netns {
            Ok(netns) => Ok(Some(netns)),
            Err(error) => {
                check_proc()?;
                Err(self.refused(error))
            }
        }
    }

    fn refused(&self, error: NetNsError) -> Failure {
        let Self::Path(path) = self else {
            return Failure::Internal(error.into());
        };
        let path = path.display();
        if error.is_privilege() {
            Failure::Privilege(format!(
                "--netns {path}: {error}; run with sudo or grant it"
            ))
        } else {
            Failure::Usage(format!(
                "--netns {path}: {error}; give all, self, or a path such as /run/netns/NAME"
            ))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_right_is_no_usage_error() {
        let scope: Scope = "/proc/1/ns/net".parse().unwrap();
        let error = |needed| NetNsError::Privilege {
            call: "open",
            object: "/proc/1/ns/net".into(),
            needed,
        };
        let failure = scope.refused(error("CAP_SYS_PTRACE"));
        assert_eq!(failure.code(), 3);
        assert!(failure.to_string().contains("CAP_SYS_PTRACE is needed"));
        let failure = Scope::Path("/nonexistent".into()).inode().unwrap_err();
        assert_eq!(failure.code(), 2);
    }
}
