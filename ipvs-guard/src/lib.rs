//! Observes and guards IPVS: the agent's parts, from the kernel's probes to the
//! sinks, for the `ipvs-guard` command and for the tests.

pub mod agent;
pub mod bpf;
pub mod cli;
pub mod clock;
pub mod enforce;
pub mod event;
pub mod failure;
pub mod kernel;
pub mod lab;
pub mod metrics;
pub mod names;
pub mod netlink;
pub mod netns;
pub mod pipeline;
pub mod preflight;
pub mod privilege;
mod rawip;
mod say;
pub mod settings;
pub mod sink;
