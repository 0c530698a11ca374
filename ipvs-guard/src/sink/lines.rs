//! Whole lines onto a stream that can fill up or close.

use std::{
    io::{self, Write},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use crate::say::counted;

/// The reader has closed its end.
#[derive(Debug)]
pub struct Closed;

/// Writes lines; counts those that a full disk or another error swallows.
pub struct LineWriter<W> {
    out: W,
    what: String,
    lost: Arc<AtomicU64>,
    /// The last write ended within a line.
    torn: bool,
    said: bool,
}

impl<W: Write> LineWriter<W> {
    /// A writer onto `out`, called `what` in messages.
    pub const fn new(out: W, what: String, lost: Arc<AtomicU64>) -> Self {
        Self {
            out,
            what,
            lost,
            torn: false,
            said: false,
        }
    }

    /// Writes lines that are no events, so that none of them counts as lost.
    ///
    /// # Errors
    /// [`Closed`] when nobody reads any more.
    pub fn write_text(&mut self, lines: &[u8]) -> Result<(), Closed> {
        self.attempt(lines, |_| 0)
    }

    /// Writes events, a line each. An error is said once on standard error, its
    /// lines are counted, and the next call tries again.
    ///
    /// # Errors
    /// [`Closed`] when nobody reads any more.
    pub fn write(&mut self, lines: &[u8]) -> Result<(), Closed> {
        self.attempt(lines, |lost| {
            lost.iter().filter(|byte| **byte == b'\n').count() as u64
        })
    }

    /// What is to be said on standard error when all has been written: the loss
    /// of a stream that failed cannot be told on that stream.
    pub fn last_words(&self) -> Option<String> {
        let lost = self.lost.load(Ordering::Relaxed);
        (self.said && lost > 0)
            .then(|| format!("{}: {} lost in all", self.what, counted(lost, "event")))
    }

    fn attempt(&mut self, lines: &[u8], events: fn(&[u8]) -> u64) -> Result<(), Closed> {
        if self.torn {
            match self.push(b"\n") {
                Ok(()) => self.torn = false,
                Err((_, error)) => return self.give_up(events(lines), error),
            }
        }
        match self.push(lines) {
            Ok(()) => Ok(()),
            Err((written, error)) => {
                self.torn = written > 0 && lines[written - 1] != b'\n';
                // A line that was begun is lost as much as those not begun.
                let whole = lines[..written]
                    .iter()
                    .rposition(|byte| *byte == b'\n')
                    .map_or(0, |end| end + 1);
                self.give_up(events(&lines[whole..]), error)
            }
        }
    }

    fn push(&mut self, bytes: &[u8]) -> Result<(), (usize, io::Error)> {
        let mut written = 0;
        while written < bytes.len() {
            match self.out.write(&bytes[written..]) {
                Ok(0) => return Err((written, io::ErrorKind::WriteZero.into())),
                Ok(n) => written += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err((written, error)),
            }
        }
        self.out.flush().map_err(|error| (written, error))
    }

    fn give_up(&mut self, events: u64, error: io::Error) -> Result<(), Closed> {
        self.lost.fetch_add(events, Ordering::Relaxed);
        if error.kind() == io::ErrorKind::BrokenPipe {
            return Err(Closed);
        }
        if !self.said {
            self.said = true;
            log::error!(
                "{}: {error}; events that do not fit are counted as ipvs.loss, the stream goes on",
                self.what
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A disk with room for so many bytes.
    struct Disk {
        room: usize,
        bytes: Vec<u8>,
    }

    impl Write for &mut Disk {
        fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
            if self.room == 0 {
                return Err(io::Error::from_raw_os_error(nix::libc::ENOSPC));
            }
            let n = buf.len().min(self.room);
            self.room -= n;
            self.bytes.extend_from_slice(&buf[..n]);
            Ok(n)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_full_disk_loses_counted_lines_and_the_stream_goes_on() {
        let mut disk = Disk {
            room: 7,
            bytes: Vec::new(),
        };
        let lost = Arc::new(AtomicU64::new(0));
        let mut writer = LineWriter::new(&mut disk, "test".into(), Arc::clone(&lost));
        writer.write(b"one\ntwo\nthree\n").unwrap();
        assert_eq!(lost.load(Ordering::Relaxed), 2);
        assert_eq!(writer.last_words().unwrap(), "test: 2 events lost in all");
        writer.write(b"four\n").unwrap();
        assert_eq!(lost.load(Ordering::Relaxed), 3);
        writer.out.room = 100;
        writer.write(b"five\n").unwrap();
        assert_eq!(lost.load(Ordering::Relaxed), 3);
        assert_eq!(String::from_utf8_lossy(&disk.bytes), "one\ntwo\nfive\n");
    }

    #[test]
    fn a_closed_pipe_is_told_apart() {
        let (reader, writer) = io::pipe().unwrap();
        drop(reader);
        let lost = Arc::new(AtomicU64::new(0));
        assert!(
            LineWriter::new(writer, "pipe".into(), lost)
                .write(b"x\n")
                .is_err()
        );
    }
}
