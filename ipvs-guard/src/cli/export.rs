//! The flags of the sinks that are for machines.

use std::env;

use anyhow::Context as _;

use crate::{
    failure::Failure,
    sink::{
        Sink,
        otlp::{self, Otlp},
    },
};

#[derive(Debug, clap::Args)]
#[group(id = "export")]
pub(super) struct Args {
    /// Hand the events to this receiver of OpenTelemetry logs as well (OTLP):
    /// grpc://HOST[:4317], grpcs:// over TLS, or http://HOST:4318 and https:// for
    /// protobuf over HTTP; OpenTelemetry's OTEL_… variables hold
    #[arg(long, value_name = "URL", env = "IPVS_GUARD_OTLP")]
    otlp: Option<String>,
}

impl Args {
    /// Starts the sinks that were asked for.
    pub(super) fn sinks(self) -> Result<Vec<Sink>, Failure> {
        let Self { otlp } = self;
        let mut sinks = Vec::new();
        if let Some(url) = otlp {
            sinks.push(otlp_sink(&url)?);
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
