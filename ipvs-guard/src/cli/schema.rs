//! `ipvs-guard schema`.

use anyhow::Context as _;

use crate::{event::Event, failure::Failure};

/// Print the JSON Schema of the events
#[derive(Debug, clap::Args)]
pub(super) struct Args {}

pub(super) fn run(Args {}: &Args) -> Result<(), Failure> {
    let mut text = serde_json::to_vec_pretty(&Event::schema()).context("writing the schema")?;
    text.push(b'\n');
    super::print(&text)
}
