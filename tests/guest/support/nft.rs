//! Masquerading and marks, set up as `nft` does.

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
const PREROUTING: u32 = 0;
const POSTROUTING: u32 = 4;
const MANGLE: i32 = -150;
const SRCNAT: i32 = 100;
/// `NFT_REG_1`, `NFT_META_MARK`.
const REGISTER: u32 = 1;
const MARK: u32 = 3;

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
    let masquerade = Body::default().text(1, "masq").nest(2, Body::default());
    let rule = Body::default().nest(1, masquerade);
    add(netns, "masquerade", "nat", (POSTROUTING, SRCNAT), rule);
}

/// Marks everything that comes into the namespace:
/// `table inet … { chain … { type filter hook prerouting priority mangle; meta mark set … } }`.
pub(crate) fn mark(netns: &NetNs, mark: u32) {
    let value = Body::default().attribute(1, &mark.to_ne_bytes());
    let load = Body::default()
        .attribute(1, &REGISTER.to_be_bytes())
        .nest(2, value);
    let set = Body::default()
        .attribute(2, &MARK.to_be_bytes())
        .attribute(3, &REGISTER.to_be_bytes());
    let rule = Body::default()
        .nest(1, Body::default().text(1, "immediate").nest(2, load))
        .nest(1, Body::default().text(1, "meta").nest(2, set));
    add(netns, "mark", "filter", (PREROUTING, MANGLE), rule);
}

/// A table and a chain of one name, with one rule.
fn add(netns: &NetNs, name: &str, kind: &str, (hook, priority): (u32, i32), expressions: Body) {
    let table = header(INET, 0).text(1, name);
    let hook = Body::default()
        .attribute(1, &hook.to_be_bytes())
        .attribute(2, &priority.to_be_bytes());
    let chain = header(INET, 0)
        .text(1, name)
        .text(3, name)
        .nest(4, hook)
        .text(7, kind);
    let rule = header(INET, 0)
        .text(1, name)
        .text(2, name)
        .nest(4, expressions);
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
