//! Qdiscs and filters of a device, as the kernel lists them.

use ipvs_guard::{netlink::route::RouteSocket, netns::NetNs};
use nix::{libc, sys::socket::SockProtocol};

use super::netlink::{Body, Netlink, attributes};

/// `struct tcmsg`.
const HEADER: usize = 20;
const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCA_BPF_NAME: u16 = 7;
const TCA_FLOWER_KEY_ETH_SRC: u16 = 6;
const TCA_FLOWER_KEY_ETH_SRC_MASK: u16 = 7;
/// `TC_H_CLSACT` and `TC_H_INGRESS` are one.
const CLSACT: u32 = 0xffff_fff1;
const HANDLE: u32 = 0xffff_0000;
/// Parents of filters (`TC_H_MIN_INGRESS`, `TC_H_MIN_EGRESS`).
const SIDES: [u32; 2] = [0xffff_fff2, 0xffff_fff3];

/// Whether this kernel has TC programs on links, which go with their process.
pub(crate) fn has_links() -> bool {
    let release = nix::sys::utsname::uname().unwrap();
    let release = release.release().to_str().unwrap();
    let mut numbers = release.split('.').map(|n| n.parse::<u32>().unwrap_or(0));
    (numbers.next(), numbers.next()) >= (Some(6), Some(6))
}

/// A filter: its kind and, of a BPF program, its name.
pub(crate) type Filter = (String, Option<String>);

fn message(netns: &NetNs, device: &str, handle: u32, parent: u32, info: u32) -> Body {
    let index = netns
        .run(|| RouteSocket::open().unwrap().link(device).unwrap().index)
        .unwrap();
    // The family, and what fills it up.
    let mut body = vec![0; 4];
    for word in [index, handle, parent, info] {
        body.extend(word.to_ne_bytes());
    }
    Body(body)
}

fn ask(netns: &NetNs, kind: u16, flags: i32, body: Body) -> Vec<Vec<u8>> {
    Netlink::open(netns, SockProtocol::NetlinkRoute)
        .exchange(&[(kind, flags, body)])
        .unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes.strip_suffix(b"\0").unwrap_or(bytes)).into_owned()
}

fn kind(payload: &[u8]) -> String {
    let found = attributes(&payload[HEADER..]);
    let kind = found.iter().find(|(kind, _)| *kind == TCA_KIND).unwrap();
    text(kind.1)
}

/// The filters of a device on both sides, each once.
pub(crate) fn filters(netns: &NetNs, device: &str) -> Vec<Filter> {
    let mut found = Vec::new();
    for parent in SIDES {
        let body = message(netns, device, 0, parent, 0);
        for payload in ask(netns, libc::RTM_GETTFILTER, libc::NLM_F_DUMP, body) {
            // A priority is listed itself, too, without a handle.
            if payload[8..12] == [0; 4] {
                continue;
            }
            let kind = kind(&payload);
            let options = attributes(&payload[HEADER..])
                .into_iter()
                .find(|(kind, _)| *kind == TCA_OPTIONS);
            let name = options.filter(|_| kind == "bpf").and_then(|(_, options)| {
                attributes(options)
                    .into_iter()
                    .find(|(kind, _)| *kind == TCA_BPF_NAME)
                    .map(|(_, name)| text(name))
            });
            found.push((kind, name));
        }
    }
    found
}

/// Whether a device has a clsact qdisc.
pub(crate) fn has_clsact(netns: &NetNs, device: &str) -> bool {
    let body = message(netns, device, 0, 0, 0);
    let index = body.0[4..8].to_vec();
    ask(netns, libc::RTM_GETQDISC, libc::NLM_F_DUMP, body)
        .iter()
        .any(|payload| payload[4..8] == index && kind(payload) == "clsact")
}

/// Puts a qdisc for filters, clsact or ingress, on a device.
pub(crate) fn add_qdisc(netns: &NetNs, device: &str, kind: &str) {
    let body = message(netns, device, HANDLE, CLSACT, 0).text(TCA_KIND, kind);
    let flags = libc::NLM_F_ACK | libc::NLM_F_CREATE | libc::NLM_F_EXCL;
    ask(netns, libc::RTM_NEWQDISC, flags, body);
}

/// Puts a filter on a device, for packets from an Ethernet address that nobody
/// has.
pub(crate) fn add_flower(netns: &NetNs, device: &str) {
    const PRIORITY: u32 = 100;
    let all = u32::from((libc::ETH_P_ALL as u16).to_be());
    let options = Body::default()
        .attribute(TCA_FLOWER_KEY_ETH_SRC, &[2, 0, 0, 0, 0, 99])
        .attribute(TCA_FLOWER_KEY_ETH_SRC_MASK, &[0xff; 6]);
    let body = message(netns, device, 1, SIDES[0], PRIORITY << 16 | all)
        .text(TCA_KIND, "flower")
        .nest(TCA_OPTIONS, options);
    let flags = libc::NLM_F_ACK | libc::NLM_F_CREATE | libc::NLM_F_EXCL;
    ask(netns, libc::RTM_NEWTFILTER, flags, body);
}
