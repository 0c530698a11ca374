//! The sinks against the receivers that people run: what a receiver has got is the
//! truth. On this machine and on loopback, for they need no IPVS; as root.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod collector;
mod feed;
mod file;
mod journald;
mod logrotate;
mod otlp;
mod otlp_trouble;
mod rsyslog;
mod support;
mod trouble;
