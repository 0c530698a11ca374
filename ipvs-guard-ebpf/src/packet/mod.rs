//! What the programs on the devices do: on the way in (TC or XDP), before IPVS
//! sees the packet, and on the way out, when it has decided.

pub(crate) mod egress;
pub(crate) mod ingress;
pub(crate) mod note;
mod parse;
pub(crate) mod send;
mod turn;
