//! What `ipvs-guard` does on real IPVS, held against the kernel's own truth:
//! packets that a socket captured, the connection table, its counters.
//!
//! Every test makes network namespaces of its own. They run one after the
//! other, for some remove ip_vs or fill the machine.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::print_stdout, reason = "a test tells its figures")]

mod cleanup;
mod cost;
mod devices;
mod drain;
mod enforce;
mod exact;
mod filters;
mod forms;
mod forms_devices;
mod heal;
mod heal_daemon;
mod heal_held_up;
mod heal_keepalived;
mod heal_rolling;
mod heal_services;
mod heal_table;
mod input;
mod lab;
mod layout;
mod lifecycle;
mod masquerade;
mod metrics;
mod output;
mod reschedule;
mod retransmission;
mod service;
mod storm;
mod support;
mod trace;
mod xdp;
