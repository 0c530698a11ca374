//! Masquerading, set up as `nft` does.

use ipvs_guard::netns::NetNs;
use nix::{libc, sys::socket::SockProtocol};

use super::{
    netlink::{Body, Netlink},
    run,
};

const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const NFTABLES: u8 = 10;
const NEW_TABLE: u16 = 0x0a00;
const NEW_CHAIN: u16 = 0x0a03;
const NEW_RULE: u16 = 0x0a06;
/// IPv4 and IPv6.
const INET: u8 = 1;
const POSTROUTING: u32 = 4;
const SRCNAT: u32 = 100;
const NAME: &str = "masquerade";

/// `struct nfgenmsg`.
fn header(family: u8, resource: u8) -> Body {
    Body(vec![family, 0, 0, resource])
}

/// Masquerades everything that leaves the namespace:
/// `table inet … { chain … { type nat hook postrouting priority srcnat; masquerade } }`.
pub(crate) fn masquerade(netns: &NetNs) {
    for module in ["nft_chain_nat", "nft_masq"] {
        run("modprobe", &[module]);
    }
    let table = header(INET, 0).text(1, NAME);
    let hook = Body::default()
        .attribute(1, &POSTROUTING.to_be_bytes())
        .attribute(2, &SRCNAT.to_be_bytes());
    let chain = header(INET, 0)
        .text(1, NAME)
        .text(3, NAME)
        .nest(4, hook)
        .text(7, "nat");
    let expression = Body::default().text(1, "masq").nest(2, Body::default());
    let rule = header(INET, 0)
        .text(1, NAME)
        .text(2, NAME)
        .nest(4, Body::default().nest(1, expression));
    let new = libc::NLM_F_ACK | libc::NLM_F_CREATE;
    Netlink::open(netns, SockProtocol::NetlinkNetFilter)
        .exchange(&[
            (BATCH_BEGIN, 0, header(0, NFTABLES)),
            (NEW_TABLE, new, table),
            (NEW_CHAIN, new, chain),
            (NEW_RULE, new | libc::NLM_F_APPEND, rule),
            (BATCH_END, 0, header(0, NFTABLES)),
        ])
        .unwrap();
}
