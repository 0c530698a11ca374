//! A backend: answers each request with its number and closes first, as HTTP/1.0
//! servers do. So the client's port is free again at once, and the IPVS entry
//! ends in TIME_WAIT on the node.

use std::io;
use std::net::SocketAddr;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::watch;

use super::LabError;
use crate::netns::NetNs;

/// Connections waiting to be accepted. Also the kernel's limit for a new
/// namespace (net.core.somaxconn from 5.4).
const BACKLOG: u32 = 4096;

/// How long accepting rests when it failed, which it does for want of
/// descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(10);

/// A server that runs until it is dropped.
#[derive(Debug)]
pub(super) struct Server {
    stop: Option<watch::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Starts server `number` in a namespace, on a thread that stays in it.
    pub(super) fn start(
        netns: &NetNs,
        number: usize,
        addresses: &[SocketAddr],
    ) -> Result<Self, LabError> {
        let failed = |source| LabError::Io {
            what: format!("starting backend {number}"),
            source,
        };
        let runtime = runtime().map_err(failed)?;
        netns
            .run(|| listen_and_serve(runtime, number, addresses))?
            .map_err(failed)
    }
}

/// An event loop of one thread. To be made outside the namespace it is for: with
/// the first one tokio makes a pair of sockets that the process keeps for ever,
/// and with them the namespace they were made in.
pub(super) fn runtime() -> io::Result<Runtime> {
    Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .build()
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.stop.take());
        if self
            .thread
            .take()
            .is_some_and(|thread| thread.join().is_err())
        {
            log::warn!("a backend of the lab ended in a panic");
        }
    }
}

fn listen_and_serve(
    runtime: Runtime,
    number: usize,
    addresses: &[SocketAddr],
) -> io::Result<Server> {
    let listeners = {
        let _inside = runtime.enter();
        addresses
            .iter()
            .map(|address| listen(*address))
            .collect::<io::Result<Vec<_>>>()?
    };
    let (stop, stopped) = watch::channel(());
    let thread = thread::Builder::new()
        .name(format!("backend{number}"))
        .spawn(move || serve(&runtime, number, listeners, stopped))?;
    Ok(Server {
        stop: Some(stop),
        thread: Some(thread),
    })
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() {
        TcpSocket::new_v4()
    } else {
        TcpSocket::new_v6()
    }?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

fn serve(
    runtime: &Runtime,
    number: usize,
    listeners: Vec<TcpListener>,
    mut stopped: watch::Receiver<()>,
) {
    runtime.block_on(async {
        for listener in listeners {
            tokio::spawn(accept(listener, number));
        }
        // Only the sender's end is waited for; what was accepted ends with the runtime.
        while stopped.changed().await.is_ok() {}
    });
}

async fn accept(listener: TcpListener, number: usize) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                tokio::spawn(answer(stream, number));
            }
            Err(error) => {
                log::debug!("backend {number} cannot accept: {error}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// A client that went away is its own affair, so errors end the connection only.
async fn answer(mut stream: TcpStream, number: usize) {
    let mut request = [0; 64];
    if stream
        .read(&mut request)
        .await
        .is_ok_and(|length| length > 0)
    {
        let answer = format!("{number}\n");
        if let Err(error) = stream.write_all(answer.as_bytes()).await {
            log::debug!("backend {number} cannot answer: {error}");
        }
    }
}
