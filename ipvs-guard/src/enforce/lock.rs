//! One agent enforces a network namespace.

use std::{
    io,
    os::{
        linux::net::SocketAddrExt as _,
        unix::net::{SocketAddr, UnixListener},
    },
};

/// Abstract socket names belong to a network namespace, and go with their
/// process: no file that a killed agent could leave.
const NAME: &str = "ipvs-guard/enforce";

/// Held while this process enforces the network namespace it is in.
#[derive(Debug)]
pub struct Lock(#[expect(dead_code, reason = "held for its name")] UnixListener);

/// Why it cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another process has it.
    #[error("another ipvs-guard enforces this network namespace")]
    Taken,
    /// The kernel refused the socket.
    #[error("abstract socket {NAME}: {0}")]
    Io(#[from] io::Error),
}

impl Lock {
    /// Takes it.
    ///
    /// # Errors
    /// [`LockError::Taken`] when another agent has it.
    pub fn take() -> Result<Self, LockError> {
        let address = SocketAddr::from_abstract_name(NAME)?;
        match UnixListener::bind_addr(&address) {
            Ok(listener) => Ok(Self(listener)),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => Err(LockError::Taken),
            Err(error) => Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_one_at_a_time() {
        let Ok(held) = Lock::take() else {
            // Somebody enforces on the machine that tests.
            return;
        };
        assert!(matches!(Lock::take(), Err(LockError::Taken)));
        drop(held);
        assert!(Lock::take().is_ok());
    }
}
