//! Syslog receivers: RFC 5424 in datagrams, in a stream, in TLS, and on this machine.

mod message;
mod stream;
mod udp;

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use tokio::{net::lookup_host, time::timeout};

use self::{message::Encoder, stream::Stream, udp::Udp};
use super::{
    local::Local,
    remote::{Receiver, Trouble},
};
use crate::{
    event::Event,
    settings::{Remote, SyslogTarget},
};

/// How long a name, a connection or a write may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Hands events to a syslog receiver.
pub struct Syslog {
    encoder: Encoder,
    way: Way,
}

enum Way {
    Udp(Udp),
    Stream(Box<Stream>),
    Local(Local),
}

impl Syslog {
    /// Hands events to the receiver at `target`; nothing is opened yet.
    ///
    /// # Errors
    /// What is wrong with the files that it names.
    pub fn new(target: SyslogTarget) -> Result<Self, String> {
        let way = match target {
            SyslogTarget::Udp(remote) => Way::Udp(Udp::new(remote)),
            SyslogTarget::Tcp(remote) => Way::Stream(Box::new(Stream::plain(remote))),
            SyslogTarget::Tls(remote, files) => {
                Way::Stream(Box::new(Stream::encrypted(remote, files)?))
            }
            SyslogTarget::Local(path) => Way::Local(Local::new(path, Self::DOUBT)),
        };
        let counted = matches!(way, Way::Stream(_));
        Ok(Self {
            encoder: Encoder::new(counted),
            way,
        })
    }
}

impl Receiver for Syslog {
    /// Syslog acknowledges nothing. What TCP has acknowledged, or a socket's reader has
    /// read, is in the memory of a program that may be killed before it stores it.
    const DOUBT: Duration = Duration::from_secs(5);

    async fn deliver(&mut self, events: &[Arc<Event>]) -> Result<usize, Trouble> {
        let messages = self.encoder.encode(events);
        let taken = match &mut self.way {
            Way::Udp(udp) => udp.send(messages).await,
            Way::Stream(stream) => stream.send(messages).await,
            Way::Local(local) => local.send(messages).await,
        }?;
        self.encoder.taken(taken);
        Ok(taken)
    }

    fn has_arrived(&self) -> bool {
        match &self.way {
            Way::Udp(_) => true,
            Way::Stream(stream) => stream.is_acknowledged(),
            Way::Local(local) => local.is_read(),
        }
    }

    async fn watch(&mut self) -> Trouble {
        match &mut self.way {
            Way::Udp(udp) => udp.watch().await,
            Way::Stream(stream) => stream.watch().await,
            Way::Local(local) => local.watch().await,
        }
    }

    fn again(&mut self, events: usize) {
        self.encoder.again(events);
    }

    async fn close(&mut self) -> Result<(), Trouble> {
        match &mut self.way {
            Way::Udp(udp) => udp.close().await,
            Way::Stream(stream) => stream.close().await,
            Way::Local(local) => local.close().await,
        }
    }
}

/// The addresses of `remote`; asked anew for each connection, for they change.
async fn addresses(remote: &Remote) -> Result<Vec<SocketAddr>, Trouble> {
    let Remote { host, port } = remote;
    let away = |error: io::Error| Trouble::Away(format!("{host}: {error}"));
    let found: Vec<_> = timeout(PATIENCE, lookup_host((host.as_str(), *port)))
        .await
        .map_err(|_| away(io::Error::other("the name was not resolved in time")))?
        .map_err(away)?
        .collect();
    if found.is_empty() {
        return Err(away(io::Error::other("the name has no address")));
    }
    Ok(found)
}
