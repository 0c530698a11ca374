//! `ipvs-guard lab`.

use anyhow::Context as _;

use crate::{
    failure::Failure,
    lab::{self, Format, Kind, Options},
    preflight,
};

/// Reproduce the incident in private network namespaces on this kernel
///
/// Needs ip_vs loaded, touches nothing of the node and leaves nothing behind, even
/// when killed.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    options: Options,
}

pub(super) fn run(Args { options }: &Args) -> Result<(), Failure> {
    preflight::check_proc()?;
    preflight::check_user_namespace()?;
    let report = lab::run(options).map_err(|error| match error.kind() {
        Kind::Privilege => Failure::Privilege(error.to_string()),
        Kind::Missing => Failure::Missing(error.to_string()),
        Kind::Internal => Failure::Internal(error.into()),
    })?;
    let text = match options.format {
        Format::Human => report.human(),
        Format::Json => {
            let mut text = serde_json::to_string_pretty(&report).context("writing the report")?;
            text.push('\n');
            text
        }
    };
    super::print(text.as_bytes())
}
