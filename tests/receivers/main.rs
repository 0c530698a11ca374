//! What is handed out, taken by the programs that people run for it: what a receiver has
//! got is the truth. On this machine and on loopback, for it needs no IPVS; as root.
//!
//! `cargo xtask test` fetches the programs and says where they are in
//! `IPVS_GUARD_RECEIVERS` and the like.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(clippy::print_stdout, reason = "a test tells its figures")]

mod chart;
mod chroot;
mod collector;
mod feed;
mod file;
mod image;
mod journald;
mod logrotate;
mod manifests;
mod otlp;
mod otlp_trouble;
mod prometheus;
mod rsyslog;
mod said;
mod support;
mod systemd;
mod trouble;
