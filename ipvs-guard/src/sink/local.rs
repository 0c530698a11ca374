//! A local datagram socket whose reader can be killed and come back.
//!
//! What the reader has not read dies with its socket, and the sender is told nothing:
//! the bytes on their way become 0 as if they had been read. So whether it is still the
//! same socket is looked at around each batch, and as long as events are in doubt.
//!
//! A socket that a supervisor holds outlives its reader. Then a stream to the same reader,
//! on which nothing is ever sent, is the witness: it ends when the reader does.

use std::{
    fs,
    io::{self, Read as _},
    os::unix::{
        fs::MetadataExt as _,
        net::{UnixDatagram as Probe, UnixStream},
    },
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::{
    net::UnixDatagram,
    time::{Instant, sleep, timeout},
};

use super::{remote::Trouble, unsent::unsent};

/// How often the socket is looked at.
const CHECK: Duration = Duration::from_millis(100);
/// How long the reader may take to read something.
const PATIENCE: Duration = Duration::from_secs(10);
/// The same at the end.
const LAST_PATIENCE: Duration = Duration::from_millis(300);

/// Datagrams in one piece of memory.
#[derive(Debug, Default)]
pub(super) struct Datagrams {
    pub(super) bytes: Vec<u8>,
    /// Where each of them ends.
    pub(super) ends: Vec<usize>,
}

impl Datagrams {
    pub(super) fn clear(&mut self) {
        self.bytes.clear();
        self.ends.clear();
    }

    /// What was appended to `bytes` is one.
    pub(super) fn end(&mut self) {
        self.ends.push(self.bytes.len());
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &[u8]> {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        starts
            .zip(&self.ends)
            .map(|(start, end)| &self.bytes[start..*end])
    }
}

/// The sender's side of such a socket.
pub(super) struct Local {
    path: PathBuf,
    /// Where the same reader takes streams.
    witness: Option<PathBuf>,
    /// How long what was sent is in doubt.
    doubt: Duration,
    open: Option<Open>,
}

struct Open {
    socket: UnixDatagram,
    identity: Identity,
    witness: Option<UnixStream>,
    sent: Instant,
}

/// Device, inode and time of birth: an inode's number is used again.
type Identity = (u64, u64, i64, i64);

impl Local {
    pub(super) const fn new(path: PathBuf, doubt: Duration) -> Self {
        Self {
            path,
            witness: None,
            doubt,
            open: None,
        }
    }

    /// Its reader takes streams at `witness`, if it can be connected to.
    pub(super) fn with_witness(self, witness: PathBuf) -> Self {
        Self {
            witness: Some(witness),
            ..self
        }
    }

    /// Sends all, or as many as the reader reads in time.
    pub(super) async fn send(&mut self, datagrams: &Datagrams) -> Result<usize, Trouble> {
        let mut open = match self.open.take() {
            Some(open) => open,
            None => self.connect().map_err(|error| self.away(&error))?,
        };
        open.check(&self.path).map_err(|error| self.away(&error))?;
        let mut taken = 0;
        for datagram in datagrams.iter() {
            match timeout(PATIENCE, open.socket.send(datagram)).await {
                Ok(Ok(_)) => taken += 1,
                Ok(Err(error)) if error.raw_os_error() == Some(nix::libc::EMSGSIZE) => {
                    self.open = Some(open);
                    return if taken > 0 {
                        Ok(taken)
                    } else {
                        Err(self.refused(&error))
                    };
                }
                Ok(Err(error)) => return Err(self.away(&error)),
                Err(_) if taken > 0 => break,
                Err(_) => return Err(self.away(&not_reading())),
            }
        }
        open.check(&self.path).map_err(|error| self.away(&error))?;
        open.sent = Instant::now();
        self.open = Some(open);
        Ok(taken)
    }

    /// Whether all that was sent has been read.
    pub(super) fn is_read(&self) -> bool {
        self.open.as_ref().is_none_or(Open::is_read)
    }

    /// Resolves when the reader goes while something is in doubt.
    pub(super) async fn watch(&mut self) -> Trouble {
        while let Some(open) = &self.open {
            if open.is_read() && open.sent.elapsed() > self.doubt {
                break;
            }
            sleep(CHECK).await;
            if let Err(error) = open.check(&self.path) {
                self.open = None;
                return self.away(&error);
            }
        }
        std::future::pending().await
    }

    /// Waits until all has been read.
    pub(super) async fn close(&mut self) -> Result<(), Trouble> {
        let Some(open) = self.open.take() else {
            return Ok(());
        };
        let begin = Instant::now();
        while !open.is_read() {
            if begin.elapsed() > LAST_PATIENCE {
                return Err(self.away(&not_reading()));
            }
            sleep(Duration::from_millis(2)).await;
        }
        open.check(&self.path).map_err(|error| self.away(&error))
    }

    fn connect(&self) -> io::Result<Open> {
        // Read before: a reader that comes in between is found by the next check.
        let identity = identity(&self.path)?;
        let witness = self.witness.as_deref().and_then(|path| {
            let stream = UnixStream::connect(path).ok()?;
            stream.set_nonblocking(true).ok()?;
            Some(stream)
        });
        let socket = UnixDatagram::unbound()?;
        socket.connect(&self.path)?;
        Ok(Open {
            socket,
            identity,
            witness,
            sent: Instant::now(),
        })
    }

    fn away(&self, error: &io::Error) -> Trouble {
        Trouble::Away(format!("{}: {error}", self.path.display()))
    }

    fn refused(&self, error: &io::Error) -> Trouble {
        Trouble::Refused {
            events: 1,
            reason: format!("{}: {error}", self.path.display()),
        }
    }
}

impl Open {
    /// Fails when the reader that this socket leads to is gone.
    fn check(&self, path: &Path) -> io::Result<()> {
        if identity(path)? != self.identity {
            return Err(io::Error::other("another socket is there now"));
        }
        if let Some(mut witness) = self.witness.as_ref() {
            match witness.read(&mut [0; 1]) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Ok(_) | Err(_) => return Err(io::Error::other("its reader has ended")),
            }
        }
        // A killed reader leaves the path, and nobody to connect to.
        Probe::unbound()?.connect(path)
    }

    fn is_read(&self) -> bool {
        unsent(&self.socket).is_ok_and(|bytes| bytes == 0)
    }
}

fn identity(path: &Path) -> io::Result<Identity> {
    let found = fs::metadata(path)?;
    Ok((found.dev(), found.ino(), found.mtime(), found.mtime_nsec()))
}

fn not_reading() -> io::Error {
    io::Error::other("nobody reads what was sent")
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    fn datagrams(texts: &[&str]) -> Datagrams {
        let mut datagrams = Datagrams::default();
        for text in texts {
            datagrams.bytes.extend_from_slice(text.as_bytes());
            datagrams.end();
        }
        datagrams
    }

    #[tokio::test]
    async fn a_reader_that_is_replaced_is_noticed_even_without_a_send() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let reader = Probe::bind(&path).unwrap();
        let mut local = Local::new(path.clone(), Duration::from_secs(60));
        assert_eq!(local.send(&datagrams(&["one", "two"])).await.unwrap(), 2);
        assert!(!local.is_read());
        drop(reader);
        fs::remove_file(&path).unwrap();
        let reader = Probe::bind(&path).unwrap();
        // As if it had been read.
        assert!(local.is_read());
        let Trouble::Away(reason) = local.watch().await else {
            panic!("not away");
        };
        assert!(reason.contains("another socket"), "{reason}");
        assert_eq!(local.send(&datagrams(&["three"])).await.unwrap(), 1);
        let mut buffer = [0; 16];
        assert_eq!(reader.recv(&mut buffer).unwrap(), 5);
        local.close().await.unwrap();
    }

    #[tokio::test]
    async fn a_killed_reader_and_a_missing_socket_are_told() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let mut local = Local::new(path.clone(), Duration::from_secs(60));
        let missing = local.send(&datagrams(&["one"])).await.unwrap_err();
        assert!(missing.to_string().contains("No such file"), "{missing}");
        let reader = Probe::bind(&path).unwrap();
        local.send(&datagrams(&["one"])).await.unwrap();
        drop(reader);
        let gone = local.send(&datagrams(&["two"])).await.unwrap_err();
        assert!(gone.to_string().contains("refused"), "{gone}");
    }

    #[tokio::test]
    async fn a_reader_of_a_socket_that_others_hold_has_a_witness() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let _held = Probe::bind(&path).unwrap();
        let streams = UnixListener::bind(folder.path().join("streams")).unwrap();
        let mut local =
            Local::new(path, Duration::from_secs(60)).with_witness(folder.path().join("streams"));
        local.send(&datagrams(&["one"])).await.unwrap();
        let (reader, _) = streams.accept().unwrap();
        local.send(&datagrams(&["two"])).await.unwrap();
        drop(reader);
        let ended = local.watch().await;
        assert!(ended.to_string().contains("ended"), "{ended}");
        local.send(&datagrams(&["three"])).await.unwrap();
    }

    #[tokio::test]
    async fn what_nobody_reads_is_not_taken_for_safe() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let _reader = Probe::bind(&path).unwrap();
        let mut local = Local::new(path, Duration::from_secs(60));
        local.send(&datagrams(&["one"])).await.unwrap();
        assert!(local.close().await.is_err());
    }
}
