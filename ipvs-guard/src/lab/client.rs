//! The clients: many connections from chosen source ports, and what became of
//! each.

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpSocket;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::LabError;
use super::server::runtime;
use crate::netns::NetNs;

/// Bounds of [`connect_all`].
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections under way at once. Each takes a descriptor here, and one in
    /// the server that answers it.
    pub parallel: usize,
    /// Time for one connection, from its first SYN to the server's close.
    pub timeout: Duration,
}

impl Default for Limits {
    /// 256 at once, which with their servers stays under the usual limit of 1024
    /// descriptors; 10 s each, which is more than it takes the node to find that
    /// a neighbour is gone (3 s).
    fn default() -> Self {
        Self {
            parallel: 256,
            timeout: Duration::from_secs(10),
        }
    }
}

/// One connection and what became of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// Its source port.
    pub port: u16,
    /// What became of it.
    pub outcome: Outcome,
    /// From its first SYN to its end.
    pub duration: Duration,
}

impl Attempt {
    /// Whether a backend answered.
    pub fn is_answered(&self) -> bool {
        matches!(self.outcome, Outcome::Answered { .. })
    }
}

impl fmt::Display for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "from port {}: {} after {:?}",
            self.port, self.outcome, self.duration
        )
    }
}

/// What became of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A backend answered and closed.
    Answered {
        /// Its number.
        backend: usize,
    },
    /// The kernel reported an error.
    Failed {
        /// Which: EHOSTUNREACH, ECONNREFUSED, ...
        errno: Errno,
    },
    /// Nothing came in time.
    TimedOut,
    /// Something else than a backend's number came.
    Garbled,
}

/// The connection before has not ended on the client's side: no packet was sent.
const PORT_IN_USE: Outcome = Outcome::Failed {
    errno: Errno::EADDRNOTAVAIL,
};
/// How long such a port is left alone until it is tried again.
const PORT_PAUSE: Duration = Duration::from_millis(5);

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Answered { backend } => write!(f, "answered by backend {backend}"),
            // The name only: the text is another on each C library.
            Self::Failed { errno } => write!(f, "{errno:?}"),
            Self::TimedOut => f.write_str("timed out"),
            Self::Garbled => f.write_str("garbled answer"),
        }
    }
}

impl From<io::Error> for Outcome {
    fn from(error: io::Error) -> Self {
        match error.raw_os_error() {
            Some(errno) => Self::Failed {
                errno: Errno::from_raw(errno),
            },
            None => Self::Garbled,
        }
    }
}

/// Connects from each of these source ports of a namespace, in their order as
/// far as `limits` let them go at once, asks, and reads to the server's close.
/// The results are in the order of the ports.
///
/// Ports are bound with SO_REUSEADDR, so those of earlier connections do; one whose
/// connection has not ended yet is waited for.
///
/// # Errors
/// When the namespace cannot be entered or no event loop can be had; a failing
/// connection is none.
pub fn connect_all(
    netns: &NetNs,
    target: SocketAddr,
    ports: &[u16],
    limits: Limits,
) -> Result<Vec<Attempt>, LabError> {
    let failed = |source| LabError::Io {
        what: format!("connecting to {target}"),
        source,
    };
    let runtime = runtime().map_err(failed)?;
    netns
        .run(|| runtime.block_on(all(target, ports, limits)))?
        .map_err(failed)
}

async fn all(target: SocketAddr, ports: &[u16], limits: Limits) -> io::Result<Vec<Attempt>> {
    let permits = Arc::new(Semaphore::new(
        limits.parallel.clamp(1, Semaphore::MAX_PERMITS),
    ));
    let mut running = JoinSet::new();
    let mut attempts = Vec::with_capacity(ports.len());
    for (place, port) in ports.iter().copied().enumerate() {
        let permit = Arc::clone(&permits)
            .acquire_owned()
            .await
            .map_err(io::Error::other)?;
        running.spawn(async move {
            let attempt = attempt(target, port, limits.timeout).await;
            drop(permit);
            (place, attempt)
        });
        while let Some(done) = running.try_join_next() {
            attempts.push(done.map_err(io::Error::other)?);
        }
    }
    while let Some(done) = running.join_next().await {
        attempts.push(done.map_err(io::Error::other)?);
    }
    attempts.sort_unstable_by_key(|(place, _)| *place);
    Ok(attempts.into_iter().map(|(_, attempt)| attempt).collect())
}

async fn attempt(target: SocketAddr, port: u16, timeout: Duration) -> Attempt {
    let deadline = Instant::now() + timeout;
    loop {
        let start = Instant::now();
        let outcome = match tokio::time::timeout(timeout, exchange(target, port)).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(error)) => error.into(),
            Err(_) => Outcome::TimedOut,
        };
        if outcome == PORT_IN_USE && Instant::now() + PORT_PAUSE < deadline {
            tokio::time::sleep(PORT_PAUSE).await;
            continue;
        }
        return Attempt {
            port,
            outcome,
            duration: start.elapsed(),
        };
    }
}

async fn exchange(target: SocketAddr, port: u16) -> io::Result<Outcome> {
    let (socket, any): (_, IpAddr) = match target {
        SocketAddr::V4(_) => (TcpSocket::new_v4()?, Ipv4Addr::UNSPECIFIED.into()),
        SocketAddr::V6(_) => (TcpSocket::new_v6()?, Ipv6Addr::UNSPECIFIED.into()),
    };
    socket.set_reuseaddr(true)?;
    socket.bind(SocketAddr::new(any, port))?;
    let mut stream = socket.connect(target).await?;
    stream.write_all(b"?\n").await?;
    let mut answer = Vec::with_capacity(16);
    stream.take(64).read_to_end(&mut answer).await?;
    Ok(parse(&answer))
}

fn parse(answer: &[u8]) -> Outcome {
    let number = std::str::from_utf8(answer)
        .ok()
        .and_then(|text| text.strip_suffix('\n')?.parse().ok());
    number.map_or(Outcome::Garbled, |backend| Outcome::Answered { backend })
}

#[cfg(test)]
mod tests {
    use super::super::server::Server;
    use super::*;
    use crate::netlink::route::RouteSocket;
    use crate::netns::NetNsError;

    #[test]
    fn answers_are_numbers() {
        assert_eq!(parse(b"12\n"), Outcome::Answered { backend: 12 });
        for wrong in [&b""[..], b"12", b"x\n", b"-1\n", b"\xff\n"] {
            assert_eq!(parse(wrong), Outcome::Garbled);
        }
    }

    /// Needs CAP_SYS_ADMIN, which not every machine that tests gives.
    fn private() -> Option<NetNs> {
        let netns = match NetNs::new() {
            Err(NetNsError::Privilege { .. }) => return None,
            other => other.unwrap(),
        };
        netns
            .run(RouteSocket::open)
            .unwrap()
            .unwrap()
            .set_up("lo", true)
            .unwrap();
        Some(netns)
    }

    #[test]
    fn each_port_connects_and_can_be_used_again_at_once() {
        let Some(netns) = private() else { return };
        let target: SocketAddr = "127.0.0.1:8080".parse().unwrap();
        let server = Server::start(&netns, 3, &[target]).unwrap();
        let ports: Vec<u16> = (40_000..42_000).collect();
        for _ in 0..2 {
            let attempts = connect_all(&netns, target, &ports, Limits::default()).unwrap();
            assert!(
                attempts
                    .iter()
                    .map(|attempt| attempt.port)
                    .eq(ports.iter().copied())
            );
            let failed = attempts
                .iter()
                .find(|attempt| attempt.outcome != Outcome::Answered { backend: 3 });
            assert_eq!(failed, None);
        }
        drop(server);
        let attempts = connect_all(&netns, target, &ports[..1], Limits::default()).unwrap();
        assert_eq!(
            attempts[0].outcome,
            Outcome::Failed {
                errno: Errno::ECONNREFUSED
            }
        );
        assert!(attempts[0].to_string().contains("ECONNREFUSED"));
    }

    #[test]
    fn silence_times_out() {
        let Some(netns) = private() else { return };
        let target: SocketAddr = "127.0.0.1:8080".parse().unwrap();
        let silent = netns
            .run(|| std::net::TcpListener::bind(target))
            .unwrap()
            .unwrap();
        let limits = Limits {
            timeout: Duration::from_millis(50),
            ..Limits::default()
        };
        let attempts = connect_all(&netns, target, &[40_000], limits).unwrap();
        assert_eq!(attempts[0].outcome, Outcome::TimedOut);
        drop(silent);
    }
}
