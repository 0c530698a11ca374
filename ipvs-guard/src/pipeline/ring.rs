//! The reading end of the ring buffer.

use std::{io, os::fd::AsRawFd};

use aya::maps::{MapData, RingBuf};
use tokio::io::{Interest, unix::AsyncFd};

/// The ring buffer that the probes fill.
pub(crate) struct Ring {
    fd: AsyncFd<RingBuf<MapData>>,
}

impl Ring {
    /// Watches `buffer`.
    ///
    /// # Errors
    /// That of epoll_ctl(2).
    pub(crate) fn new(buffer: RingBuf<MapData>) -> io::Result<Self> {
        Ok(Self {
            fd: watch_readable(buffer)?,
        })
    }

    /// Waits for records and hands at most `most` of them to `each`; gives
    /// the number.
    ///
    /// # Errors
    /// That of epoll.
    pub(crate) async fn read(&mut self, most: usize, each: impl FnMut(&[u8])) -> io::Result<usize> {
        let mut guard = self.fd.readable_mut().await?;
        let taken = take(guard.get_inner_mut(), most, each);
        if taken < most {
            guard.clear_ready();
        }
        Ok(taken)
    }

    /// Hands what is there, at most `most`, to `each`.
    pub(crate) fn drain(&mut self, most: usize, each: impl FnMut(&[u8])) -> usize {
        take(self.fd.get_mut(), most, each)
    }
}

/// Registers a ring buffer, or what reads one, with the reactor.
///
/// # Errors
/// That of epoll_ctl(2).
pub(crate) fn watch_readable<T: AsRawFd>(reader: T) -> io::Result<AsyncFd<T>> {
    // SAFETY: aya's readers own their map's descriptor, and give the same one
    // for as long as they live.
    unsafe { AsyncFd::register_with_interest(reader, Interest::READABLE) }.map_err(Into::into)
}

fn take(ring: &mut RingBuf<MapData>, most: usize, mut each: impl FnMut(&[u8])) -> usize {
    let mut taken = 0;
    while taken < most
        && let Some(record) = ring.next()
    {
        each(&record);
        taken += 1;
    }
    taken
}
