//! What `ipvs-guard` hands out, taken by the programs that people run for it, from
//! Debian's packages.
//!
//! `cargo xtask test` fetches them and says where they are in `IPVS_GUARD_RECEIVERS`.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod chroot;
mod prometheus;
