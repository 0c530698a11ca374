//! What the eBPF programs and the agent agree on: event records, kernel struct
//! layout, filters and the rules that tell a stale SYN from a healthy one.
//!
//! Everything here is plain data or pure functions, so it is tested on the host
//! and behaves the same on both sides of the ring buffer.
#![cfg_attr(not(test), no_std)]

pub mod addr;
pub mod config;
pub mod decode;
pub mod event;
pub mod filter;
pub mod guard;
pub mod layout;
pub mod policy;
pub mod reply;
pub mod state;
pub mod stats;
pub mod tcp;

/// Version of every structure in this crate that crosses the kernel boundary.
///
/// Both sides are built together; the number is in each record so that a record
/// of another build is refused and not misread.
pub const ABI_VERSION: u16 = 1;
