//! What a socket's peer has not got yet.

use std::{
    io,
    os::fd::{AsFd, AsRawFd as _},
};

use nix::libc;

nix::ioctl_read_bad!(siocoutq, libc::TIOCOUTQ, libc::c_int);

/// Bytes that were sent on `socket` and that a TCP peer has not acknowledged, or a local
/// one has not read (`SIOCOUTQ`).
pub(super) fn unsent(socket: &impl AsFd) -> io::Result<usize> {
    let mut bytes = 0;
    // SAFETY: the descriptor is open as long as `socket` is borrowed; the kernel writes
    // one int, for which there is room.
    unsafe { siocoutq(socket.as_fd().as_raw_fd(), &raw mut bytes) }?;
    Ok(usize::try_from(bytes).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;

    use super::*;

    #[test]
    fn what_was_not_read_is_seen() {
        let (one, other) = UnixDatagram::pair().unwrap();
        assert_eq!(unsent(&one).unwrap(), 0);
        one.send(b"text").unwrap();
        assert!(unsent(&one).unwrap() > 0);
        other.recv(&mut [0; 16]).unwrap();
        assert_eq!(unsent(&one).unwrap(), 0);
    }
}
