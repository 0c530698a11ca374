//! Reading kernel structures.

pub(crate) mod conn;
pub(crate) mod dest;
pub(crate) mod read;
pub(crate) mod skb;
