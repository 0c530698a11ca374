//! The flags that hand figures and events to other programs.

use std::net::{SocketAddr, TcpListener};

use crate::{failure::Failure, settings};

#[derive(Debug, clap::Args)]
#[group(id = "export")]
pub(super) struct Args {
    /// Serve /metrics for Prometheus, /healthz and /readyz over HTTP on this address of
    /// the network namespace that the agent is started in; IPv6 as [ADDR]:PORT
    #[arg(
        long,
        value_name = "ADDR:PORT",
        value_parser = settings::listen_address,
        env = "IPVS_GUARD_METRICS"
    )]
    metrics: Option<SocketAddr>,
}

impl Args {
    /// The socket of `--metrics`. To be called before another namespace is entered: it
    /// is there that nobody could reach it.
    pub(super) fn listen(&self) -> Result<Option<TcpListener>, Failure> {
        let Some(address) = self.metrics else {
            return Ok(None);
        };
        TcpListener::bind(address).map(Some).map_err(|error| {
            Failure::Usage(format!(
                "--metrics {address}: {error}; give an address of this machine and a port that \
                 is free, such as 127.0.0.1:9470"
            ))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_cannot_be_had_is_a_line_of_usage() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let taken = taken.local_addr().map(|address| (taken, address)).unwrap();
        let foreign: SocketAddr = "192.0.2.1:9470".parse().unwrap();
        for (address, reason) in [(taken.1, "in use"), (foreign, "assign")] {
            let metrics = Some(address);
            let failure = Args { metrics }.listen().unwrap_err();
            assert_eq!(failure.code(), 2);
            let line = failure.to_string();
            assert!(
                line.starts_with(&format!("--metrics {address}: ")),
                "{line}"
            );
            assert!(line.contains(reason), "{line}");
        }
        assert!(Args { metrics: None }.listen().unwrap().is_none());
    }
}
