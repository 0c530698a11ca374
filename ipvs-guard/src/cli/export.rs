//! The flags that hand events and figures to other programs.

use std::{
    env, fs,
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
};

use anyhow::Context as _;

use crate::{
    failure::Failure,
    names::{self, KubeError, Names},
    settings::{self, SyslogTarget},
    sink::{
        Journald, Sink, Syslog,
        otlp::{self, Otlp},
    },
};

/// Where /dev/log leads to under systemd.
const JOURNALD_DEV_LOG: &str = "/run/systemd/journal/dev-log";

#[derive(Debug, Default, clap::Args)]
#[group(id = "export")]
pub(super) struct Args {
    /// Hand the events to this receiver of OpenTelemetry logs as well (OTLP):
    /// grpc://HOST[:4317], grpcs:// over TLS, or http://HOST:4318 and https:// for
    /// protobuf over HTTP; OpenTelemetry's OTEL_… variables hold
    #[arg(long, value_name = "URL", env = "IPVS_GUARD_OTLP")]
    otlp: Option<String>,

    /// Hand the events to this syslog receiver as well (RFC 5424): udp://HOST[:514],
    /// tcp://HOST[:601], tls://HOST[:6514] with ?ca=FILE for an authority of its own and
    /// cert=FILE&key=FILE for a certificate of this client, or unix:///dev/log
    #[arg(long, value_name = "URL", env = "IPVS_GUARD_SYSLOG")]
    syslog: Option<SyslogTarget>,

    /// Hand the events to journald as well, each key as a field: journalctl
    /// IPVS_EVENT_NAME=ipvs.stale_reuse
    #[arg(long, value_parser = settings::switch(), env = "IPVS_GUARD_JOURNALD")]
    journald: bool,

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

/// What was opened for other programs.
pub(super) struct Exports {
    pub(super) sinks: Vec<Sink>,
    /// Of `--metrics`.
    pub(super) listener: Option<TcpListener>,
}

impl Args {
    /// Whether the receivers can be such.
    pub(super) fn check(&self) -> Result<(), Failure> {
        // No value parser: its refusal would show what is secret in a URL.
        match &self.otlp {
            Some(url) => otlp::check(url).map_err(|error| not_taken(&of_otlp(url), &error)),
            None => Ok(()),
        }
    }

    /// Starts what was asked for. To be called before another namespace is entered: its
    /// receivers are out of reach from there, and nobody could reach its socket.
    pub(super) fn open(&self) -> Result<Exports, Failure> {
        let listener = self.listen()?;
        let mut sinks = Vec::new();
        sinks.extend(self.otlp.as_deref().map(otlp_sink).transpose()?);
        sinks.extend(self.syslog.clone().map(syslog_sink).transpose()?);
        if self.journald {
            let receiver = Journald::new(Journald::SOCKET);
            let sink = Sink::hand_to("sink.journald", "--journald", receiver);
            sinks.push(sink.context("starting the sink")?);
        }
        Ok(Exports { sinks, listener })
    }

    fn listen(&self) -> Result<Option<TcpListener>, Failure> {
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

fn otlp_sink(url: &str) -> Result<Sink, Failure> {
    let what = of_otlp(url);
    let refused = |error: String| not_taken(&what, &error);
    let options = otlp::Options::from_env(|name| env::var(name).ok()).map_err(refused)?;
    let endpoint = options.endpoint(url).map_err(refused)?;
    let host = nix::unistd::gethostname().context("gethostname")?;
    let receiver = Otlp::new(endpoint, options, &host.to_string_lossy()).map_err(refused)?;
    Ok(Sink::hand_to("sink.otlp", what, receiver).context("starting the sink")?)
}

fn of_otlp(url: &str) -> String {
    format!("--otlp {}", otlp::shown(url))
}

fn not_taken(what: &str, error: &str) -> Failure {
    Failure::Usage(format!("{what}: {error}"))
}

fn syslog_sink(target: SyslogTarget) -> Result<Sink, Failure> {
    let what = format!("--syslog {target}");
    if let SyslogTarget::Local(path) = &target
        && fs::canonicalize(path).is_ok_and(|path| path == Path::new(JOURNALD_DEV_LOG))
    {
        log::warn!("{what}: this is journald's, which does not read RFC 5424; use --journald");
    }
    let receiver = Syslog::new(target).map_err(|error| not_taken(&what, &error.to_string()))?;
    Ok(Sink::hand_to("sink.syslog", what, receiver).context("starting the sink")?)
}

#[derive(Debug, clap::Args)]
#[group(id = "naming")]
pub(super) struct NameArgs {
    /// Add the names of Kubernetes services, namespaces, pods and nodes to events; the
    /// API server is that of KUBECONFIG or of the pod's service account, and may be away
    #[arg(long, value_parser = settings::switch(), env = "IPVS_GUARD_KUBE")]
    kube: bool,

    /// Add the names in this TOML file to events; read anew on SIGHUP, and wins over
    /// --kube
    #[arg(long, value_name = "FILE", env = "IPVS_GUARD_NAMES")]
    names: Option<PathBuf>,
}

impl NameArgs {
    /// What names the addresses in events.
    pub(super) fn open(self) -> Result<Names, Failure> {
        let mut names = Names::default();
        if let Some(path) = self.names {
            names
                .read(&path)
                .map_err(|error| Failure::Usage(error.to_string()))?;
        }
        if self.kube {
            names.add(names::watch().map_err(|error| match error {
                KubeError::Config(_) | KubeError::Client(_) => Failure::Usage(error.to_string()),
                KubeError::Thread(_) => Failure::Internal(error.into()),
            })?);
            if let Ok(node) = std::env::var("NODE_NAME") {
                names.set_node(&node);
            }
        }
        Ok(names)
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
            let args = Args {
                metrics,
                ..Args::default()
            };
            let failure = args.listen().unwrap_err();
            assert_eq!(failure.code(), 2);
            let line = failure.to_string();
            assert!(
                line.starts_with(&format!("--metrics {address}: ")),
                "{line}"
            );
            assert!(line.contains(reason), "{line}");
        }
        assert!(Args::default().listen().unwrap().is_none());
    }
}
