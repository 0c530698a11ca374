//! Talking to the kernel without `ip` or `ipvsadm`: links, addresses and routes,
//! the IPVS services, and the connection table.
//!
//! A netlink socket belongs to the network namespace it was opened in and can be
//! used from any thread afterwards, so only opening it happens inside
//! [`crate::netns::NetNs::run`]. All calls block; the kernel answers them at once.

pub mod conntable;
mod error;
pub mod ipvs;
pub mod route;
pub mod tc;
mod transport;

pub use error::NetlinkError;
