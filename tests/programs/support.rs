//! What the forms share with the tests on real IPVS.

#[allow(dead_code, reason = "the tests on real IPVS use the rest")]
#[path = "../guest/support/packet.rs"]
pub(crate) mod packet;
