//! The flags of the sinks that are for machines.

use std::{env, fs, path::Path};

use anyhow::Context as _;

use crate::{
    failure::Failure,
    settings::SyslogTarget,
    sink::{
        Journald, Sink, Syslog,
        otlp::{self, Otlp},
    },
};

/// Where /dev/log leads to under systemd.
const JOURNALD_DEV_LOG: &str = "/run/systemd/journal/dev-log";

#[derive(Debug, clap::Args)]
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
    #[arg(long, env = "IPVS_GUARD_JOURNALD")]
    journald: bool,
}

impl Args {
    /// Starts the sinks that were asked for.
    pub(super) fn sinks(self) -> Result<Vec<Sink>, Failure> {
        let Self {
            otlp,
            syslog,
            journald,
        } = self;
        let mut sinks = Vec::new();
        sinks.extend(otlp.as_deref().map(otlp_sink).transpose()?);
        sinks.extend(syslog.map(syslog_sink).transpose()?);
        if journald {
            let receiver = Journald::new(Journald::SOCKET);
            let sink = Sink::hand_to("sink.journald", "--journald", receiver);
            sinks.push(sink.context("starting the sink")?);
        }
        Ok(sinks)
    }
}

fn otlp_sink(url: &str) -> Result<Sink, Failure> {
    let what = format!("--otlp {}", otlp::shown(url));
    let refused = |error: String| Failure::Usage(format!("{what}: {error}"));
    let options = otlp::Options::from_env(|name| env::var(name).ok()).map_err(refused)?;
    let endpoint = options.endpoint(url).map_err(refused)?;
    let host = nix::unistd::gethostname().context("gethostname")?;
    let receiver = Otlp::new(endpoint, options, &host.to_string_lossy()).map_err(refused)?;
    Ok(Sink::hand_to("sink.otlp", what, receiver).context("starting the sink")?)
}

fn syslog_sink(target: SyslogTarget) -> Result<Sink, Failure> {
    let what = format!("--syslog {target}");
    if let SyslogTarget::Local(path) = &target
        && fs::canonicalize(path).is_ok_and(|path| path == Path::new(JOURNALD_DEV_LOG))
    {
        log::warn!("{what}: this is journald's, which does not read RFC 5424; use --journald");
    }
    let receiver =
        Syslog::new(target).map_err(|error| Failure::Usage(format!("{what}: {error}")))?;
    Ok(Sink::hand_to("sink.syslog", what, receiver).context("starting the sink")?)
}
