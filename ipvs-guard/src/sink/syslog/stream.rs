//! Counted messages in a stream (RFC 6587, 3.4.1), in TLS or not.
//!
//! The receiver sends nothing, so what can be read is its end: that is looked for before
//! each write and all the time in between.

use std::{
    fmt::Display, future::poll_fn, io, net::SocketAddr, pin::pin, sync::Arc, task::Poll,
    time::Duration,
};

use nix::sys::socket::{setsockopt, sockopt};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::TcpStream,
    task::yield_now,
    time::timeout,
};
use tokio_rustls::{TlsConnector, client::TlsStream, rustls::pki_types::ServerName};

use super::{PATIENCE, addresses};
use crate::{
    settings::{Remote, TlsFiles},
    sink::{local::Datagrams, remote::Trouble, tls::client_config, unsent::unsent},
};

/// After so long without a sign of life a silent connection is asked for one.
const KEEPALIVE: Duration = Duration::from_secs(30);
/// Bytes on their way to the receiver, of which the kernel takes twice as many: what does
/// not reach it is far less than what is kept to be sent again.
const SEND_BUFFER: usize = 256 << 10;
/// How long the receiver's end is waited for after ours.
const LAST_PATIENCE: Duration = Duration::from_millis(300);

/// A receiver of a stream.
pub(super) struct Stream {
    remote: Remote,
    tls: Option<TlsFiles>,
    open: Option<Box<dyn Wire>>,
}

/// A connection.
trait Wire: AsyncRead + AsyncWrite + Unpin + Send + Sync {
    fn tcp(&self) -> &TcpStream;
}

impl Wire for TcpStream {
    fn tcp(&self) -> &TcpStream {
        self
    }
}

impl Wire for TlsStream<TcpStream> {
    fn tcp(&self) -> &TcpStream {
        self.get_ref().0
    }
}

impl Stream {
    pub(super) const fn plain(remote: Remote) -> Self {
        Self {
            remote,
            tls: None,
            open: None,
        }
    }

    /// In TLS.
    ///
    /// # Errors
    /// What is wrong with `files`.
    pub(super) fn encrypted(remote: Remote, files: TlsFiles) -> Result<Self, String> {
        connector(&files)?;
        server_name(&remote)?;
        Ok(Self {
            remote,
            tls: Some(files),
            open: None,
        })
    }

    pub(super) async fn send(&mut self, messages: &Datagrams) -> Result<usize, Trouble> {
        let mut wire = match self.open.take() {
            Some(wire) => wire,
            None => self.connect().await?,
        };
        // What has come since is only seen after a turn of the event loop.
        yield_now().await;
        if let Some(error) = at_once(ended(&mut wire)).await {
            return Err(self.away(error));
        }
        let write = async {
            wire.write_all(&messages.bytes).await?;
            wire.flush().await
        };
        match timeout(PATIENCE, write).await {
            Ok(Ok(())) => {
                self.open = Some(wire);
                Ok(messages.ends.len())
            }
            Ok(Err(error)) => Err(self.away(error)),
            Err(_) => Err(self.away("it does not read what is sent")),
        }
    }

    /// Whether the receiver's TCP has all that was sent.
    pub(super) fn is_acknowledged(&self) -> bool {
        self.open
            .as_deref()
            .is_none_or(|wire| unsent(wire.tcp()).is_ok_and(|bytes| bytes == 0))
    }

    /// Resolves when the connection ends.
    pub(super) async fn watch(&mut self) -> Trouble {
        let Some(wire) = &mut self.open else {
            return std::future::pending().await;
        };
        let error = ended(wire).await;
        self.open = None;
        self.away(error)
    }

    /// Ends the connection from this side. A receiver that then ends it from its own
    /// has read all.
    pub(super) async fn close(&mut self) -> Result<(), Trouble> {
        let Some(mut wire) = self.open.take() else {
            return Ok(());
        };
        let end = async {
            wire.shutdown().await?;
            match wire.read(&mut [0; 64]).await {
                Err(error) if error.kind() != io::ErrorKind::UnexpectedEof => Err(error),
                Ok(_) | Err(_) => Ok(()),
            }
        };
        match timeout(LAST_PATIENCE, end).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(self.away(error)),
            // One that keeps its side open is no reason to call anything lost.
            Err(_) if unsent(wire.tcp()).is_ok_and(|bytes| bytes == 0) => Ok(()),
            Err(_) => Err(self.away("it does not read what is sent")),
        }
    }

    async fn connect(&self) -> Result<Box<dyn Wire>, Trouble> {
        let mut last = self.away("no address");
        for address in addresses(&self.remote).await? {
            match self.connect_to(address).await {
                Ok(wire) => return Ok(wire),
                Err(error) => last = Trouble::Away(format!("{address}: {error}")),
            }
        }
        Err(last)
    }

    async fn connect_to(&self, address: SocketAddr) -> Result<Box<dyn Wire>, String> {
        let tcp = in_time(TcpStream::connect(address)).await?;
        tune(&tcp).map_err(|error| error.to_string())?;
        let Some(files) = &self.tls else {
            return Ok(Box::new(tcp));
        };
        let connector = connector(files)?;
        let name = server_name(&self.remote)?;
        Ok(Box::new(in_time(connector.connect(name, tcp)).await?))
    }

    fn away(&self, error: impl Display) -> Trouble {
        Trouble::Away(format!("{}: {error}", self.remote))
    }
}

/// Resolves when the other side ends the connection, with how it did.
async fn ended(wire: &mut Box<dyn Wire>) -> io::Error {
    loop {
        match wire.read(&mut [0; 64]).await {
            Ok(0) => return io::Error::other("it closed the connection"),
            // What a receiver says means nothing in syslog.
            Ok(_) => {}
            Err(error) => return error,
        }
    }
}

/// What `future` comes to without waiting.
async fn at_once<T>(future: impl Future<Output = T>) -> Option<T> {
    let mut future = pin!(future);
    poll_fn(|context| {
        Poll::Ready(match future.as_mut().poll(context) {
            Poll::Ready(value) => Some(value),
            Poll::Pending => None,
        })
    })
    .await
}

async fn in_time<T>(future: impl Future<Output = io::Result<T>>) -> Result<T, String> {
    match timeout(PATIENCE, future).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("no answer in time".into()),
    }
}

/// Bounds what is on its way, and has a receiver noticed that vanished with its machine.
fn tune(tcp: &TcpStream) -> nix::Result<()> {
    let seconds = |time: Duration| u32::try_from(time.as_secs()).unwrap_or(u32::MAX);
    setsockopt(tcp, sockopt::SndBuf, &SEND_BUFFER)?;
    setsockopt(tcp, sockopt::KeepAlive, &true)?;
    setsockopt(tcp, sockopt::TcpKeepIdle, &seconds(KEEPALIVE))?;
    setsockopt(tcp, sockopt::TcpKeepInterval, &seconds(PATIENCE))?;
    // Later than one that does not read: that is told apart, by a write that takes too long.
    let patience = u32::try_from(KEEPALIVE.as_millis()).unwrap_or(u32::MAX);
    setsockopt(tcp, sockopt::TcpUserTimeout, &patience)
}

fn server_name(remote: &Remote) -> Result<ServerName<'static>, String> {
    ServerName::try_from(remote.host.clone())
        .map_err(|_| format!("{} is no name that a certificate can have", remote.host))
}

/// What makes TLS of a connection (RFC 5425): both sides by certificate where the
/// receiver asks. Reads the files, so that certificates can be renewed while this program
/// runs.
fn connector(files: &TlsFiles) -> Result<TlsConnector, String> {
    let identity = files.client.as_ref();
    let identity = identity.map(|(chain, key)| (chain.as_path(), key.as_path()));
    let config = client_config(files.ca.as_deref(), identity)?;
    Ok(TlsConnector::from(Arc::new(config)))
}
