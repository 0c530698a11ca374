//! The sinks against the receivers that people run: what a receiver has got is the
//! truth. On this machine and on loopback, for they need no IPVS; as root.
//!
//! `cargo xtask test` fetches them and says where they are in `IPVS_GUARD_RECEIVERS`.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod chroot;
mod collector;
mod feed;
mod file;
mod journald;
mod logrotate;
mod otlp;
mod otlp_trouble;
mod prometheus;
mod rsyslog;
mod support;
mod trouble;
