//! Messages in datagrams (RFC 5426). The network tells only of some that were not taken:
//! those that met a closed port, by an ICMP message that comes a while after.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use tokio::{
    net::UdpSocket,
    time::{Instant, timeout_at},
};

use super::addresses;
use crate::{
    settings::Remote,
    sink::{local::Datagrams, remote::Trouble},
};

/// How long an answer to the first datagram, or to the last, is waited for.
const ANSWER: Duration = Duration::from_millis(100);

/// A receiver of datagrams.
pub(super) struct Udp {
    remote: Remote,
    open: Option<Open>,
}

struct Open {
    socket: UdpSocket,
    peer: SocketAddr,
    sent: Instant,
}

impl Udp {
    pub(super) const fn new(remote: Remote) -> Self {
        Self { remote, open: None }
    }

    pub(super) async fn send(&mut self, datagrams: &Datagrams) -> Result<usize, Trouble> {
        let (mut open, fresh) = match self.open.take() {
            Some(open) => (open, false),
            None => (self.connect().await?, true),
        };
        let away =
            |open: &Open, error: &io::Error| Trouble::Away(format!("{}: {error}", open.peer));
        if let Ok(Some(error)) = open.socket.take_error() {
            return Err(away(&open, &error));
        }
        // One alone, to see whether there is anybody.
        let most = if fresh { 1 } else { usize::MAX };
        let mut taken = 0;
        for datagram in datagrams.iter().take(most) {
            match open.socket.send(datagram).await {
                Ok(_) => taken += 1,
                Err(error) if error.raw_os_error() == Some(nix::libc::EMSGSIZE) => {
                    let reason = format!("{}: {error}", open.peer);
                    self.open = Some(open);
                    return if taken > 0 {
                        Ok(taken)
                    } else {
                        Err(Trouble::Refused { events: 1, reason })
                    };
                }
                // It is about an earlier one: none of them can be told to have arrived.
                Err(error) => return Err(away(&open, &error)),
            }
        }
        open.sent = Instant::now();
        let error = if fresh {
            open.answer().await
        } else {
            open.socket.take_error().ok().flatten()
        };
        if let Some(error) = error {
            return Err(away(&open, &error));
        }
        self.open = Some(open);
        Ok(taken)
    }

    pub(super) async fn watch(&mut self) -> Trouble {
        let Some(open) = &self.open else {
            return std::future::pending().await;
        };
        let trouble = Trouble::Away(format!("{}: {}", open.peer, open.refusal().await));
        self.open = None;
        trouble
    }

    pub(super) async fn close(&mut self) -> Result<(), Trouble> {
        let Some(open) = self.open.take() else {
            return Ok(());
        };
        match open.answer().await {
            Some(error) => Err(Trouble::Away(format!("{}: {error}", open.peer))),
            None => Ok(()),
        }
    }

    async fn connect(&self) -> Result<Open, Trouble> {
        let mut last = Trouble::Away(format!("{}: no address", self.remote));
        for peer in addresses(&self.remote).await? {
            match connect(peer).await {
                Ok(socket) => {
                    return Ok(Open {
                        socket,
                        peer,
                        sent: Instant::now(),
                    });
                }
                Err(error) => last = Trouble::Away(format!("{peer}: {error}")),
            }
        }
        Err(last)
    }
}

impl Open {
    /// Resolves when a datagram was refused.
    async fn refusal(&self) -> io::Error {
        loop {
            // What a receiver sends back means nothing in syslog.
            if let Err(error) = self.socket.recv(&mut [0; 1]).await {
                return error;
            }
        }
    }

    /// The refusal, if one comes in time.
    async fn answer(&self) -> Option<io::Error> {
        timeout_at(self.sent + ANSWER, self.refusal()).await.ok()
    }
}

async fn connect(peer: SocketAddr) -> io::Result<UdpSocket> {
    let any: SocketAddr = match peer {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(peer).await?;
    Ok(socket)
}
