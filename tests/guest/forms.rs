//! Resets are right whatever form a stale SYN has, and what is no stale SYN of a
//! known flow is not touched.

use std::net::{IpAddr, SocketAddr};

use etherparse::{
    IpFragOffset, IpHeaders, IpNumber, Ipv6FragmentHeader, Ipv6RawExtHeader, TcpOptionElement,
};
use ipvs_guard::{
    bpf::{BpfError, Devices, GuardMaps, HeartMap, Loaded, Options, Packet},
    clock::monotonic,
};
use ipvs_guard_common::{
    addr::Endpoint,
    config,
    filter::Filter,
    guard::{FLOWS, FORGET, Flow, FlowKey, Policy, REALS, RESET, Real, RealNote},
    layout::KernelLayout,
    stats::Stat,
};
use nix::errno::Errno;

use crate::support::packet::{Read, Segment, TCP};

const SEQ: u32 = 0xffff_ffff;
const VLAN: u16 = 0x8100;
const SERVICE_VLAN: u16 = 0x88a8;
/// `TC_ACT_UNSPEC`, `XDP_PASS`.
const PASSED: [i32; 2] = [-1, 2];
/// `TC_ACT_REDIRECT`, `XDP_TX`.
const ANSWERED: [i32; 2] = [7, 3];
const SECOND: u64 = 1_000_000_000;

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn endpoint(address: SocketAddr) -> Endpoint {
    Endpoint::new(address.ip().into(), address.port().to_be_bytes())
}

/// Client and virtual service of the flows that are stale.
fn flows() -> [(SocketAddr, SocketAddr); 2] {
    [
        (address("192.0.2.2:40000"), address("203.0.113.1:80")),
        (
            address("[2001:db8:1::2]:40000"),
            address("[2001:db8:3::1]:80"),
        ),
    ]
}

/// The programs, and maps by which a SYN of [`flows`] is stale.
struct Bench {
    loaded: Loaded,
    maps: GuardMaps,
    heart: HeartMap,
    _devices: Devices,
    flow: Flow,
    real: Real,
}

impl Bench {
    fn new() -> Self {
        // Nothing here looks into the kernel's structures.
        let layout = KernelLayout::unresolved();
        let policy = Policy {
            action: RESET,
            states: u32::MAX,
            flow_ns: 60 * SECOND,
            ..Policy::default()
        };
        let mut loaded = Loaded::new(&Options {
            layout: &layout,
            mode: config::ENFORCE | config::STALE,
            filter: Filter::default(),
            proof_comm: "",
            policy,
        })
        .unwrap();
        let heart = HeartMap::take(&mut loaded).unwrap();
        let maps = GuardMaps::take(&mut loaded).unwrap();
        let mut devices = Devices::new(&mut loaded, false).unwrap();
        // That of lo.
        devices.set_mac(1, [0; 6]).unwrap();
        let mut bench = Self {
            loaded,
            maps,
            heart,
            _devices: devices,
            flow: Flow {
                deadline: u64::MAX,
                generation: 7,
                dest: endpoint(address("198.51.100.2:8080")),
                ..Flow::default()
            },
            real: Real {
                generation: 7,
                answered: 0,
            },
        };
        bench.reset();
        bench
    }

    /// Sets everything to what makes the SYNs stale.
    fn reset(&mut self) {
        self.heart.beat(u64::MAX);
        self.heart.settle(u64::MAX);
        let (flow, real) = (self.flow, self.real);
        self.set(&flow, &real);
    }

    fn set(&mut self, flow: &Flow, real: &Real) {
        self.maps.set_real(&self.flow.dest, real).unwrap();
        for (client, vip) in flows() {
            let key = FlowKey {
                client: endpoint(client),
                vip: endpoint(vip),
            };
            self.maps.set_flow(&key, flow).unwrap();
        }
    }

    /// Whether the kernel checks the sums of what a TC program changed: from 6.15, and
    /// in stable releases that took it over.
    fn has_sums(&mut self) -> bool {
        let (client, vip) = flows()[0];
        let frame = Segment::syn(client, vip, SEQ).frame();
        !matches!(
            self.loaded.try_packet(Packet::TcSummed, &frame),
            Err(BpfError::Trial { source, .. })
                if source.raw_os_error() == Some(Errno::EINVAL as i32)
        )
    }

    fn assert_answered(&mut self, packet: Packet, what: &str, syn: &Segment) {
        let what = &format!("{packet:?}, {what}");
        let frame = syn.frame();
        let tried = self.loaded.try_packet(packet, &frame);
        let tried = tried.unwrap_or_else(|error| panic!("{what}: {error}"));
        assert_eq!(tried.action, ANSWERED[index(packet)], "{what}");
        let (network, end) = (syn.network(), syn.transport() + TCP);
        let bytes = tried.bytes;
        assert_eq!(bytes.len(), end, "{what}: bytes of the reset");
        assert_eq!(bytes[..6], frame[6..12], "{what}: whom it goes to");
        assert_eq!(bytes[6..12], frame[..6], "{what}: whom it comes from");
        assert_eq!(bytes[12..network], frame[12..network], "{what}: tags");
        // Options and extension headers stay as they are.
        let fixed = match syn.ip {
            IpHeaders::Ipv4(..) => 20,
            IpHeaders::Ipv6(..) => 40,
        };
        let options = network + fixed..syn.transport();
        assert_eq!(bytes[options.clone()], frame[options], "{what}: options");
        let (client, vip) = ends(syn);
        // Strict about every length, too.
        let read = Read::frame(&bytes).unwrap_or_else(|| panic!("{what}: {bytes:02x?}"));
        read.assert_resets(what, client, vip, syn.tcp.sequence_number);
    }

    fn assert_passed(&mut self, packet: Packet, what: &str, frame: &[u8]) {
        match self.loaded.try_packet(packet, frame) {
            Ok(tried) => {
                assert_eq!(tried.action, PASSED[index(packet)], "{packet:?}, {what}");
                assert_eq!(tried.bytes, frame, "{packet:?}, {what}");
            }
            // The kernel hands no such packet to TC programs (from 6.18).
            Err(BpfError::Trial { source, .. })
                if packet != Packet::Xdp
                    && frame.len() < 14 + 40
                    && source.raw_os_error() == Some(Errno::EINVAL as i32) => {}
            Err(error) => panic!("{packet:?}, {what}: {error}"),
        }
    }
}

fn index(packet: Packet) -> usize {
    usize::from(packet == Packet::Xdp)
}

/// Client and virtual service of a SYN.
fn ends(syn: &Segment) -> (SocketAddr, SocketAddr) {
    let (from, to): (IpAddr, IpAddr) = match &syn.ip {
        IpHeaders::Ipv4(header, _) => (header.source.into(), header.destination.into()),
        IpHeaders::Ipv6(header, _) => (header.source.into(), header.destination.into()),
    };
    (
        SocketAddr::new(from, syn.tcp.source_port),
        SocketAddr::new(to, syn.tcp.destination_port),
    )
}

/// Options as clients send them.
fn with_tcp_options(syn: &mut Segment) {
    use TcpOptionElement::*;
    syn.tcp
        .set_options(&[
            MaximumSegmentSize(1460),
            SelectiveAcknowledgementPermitted,
            Timestamp(0x0102_0304, 0),
            Noop,
            WindowScale(7),
        ])
        .unwrap();
}

/// Options of IPv4: router alert, then room for addresses; extension headers of
/// IPv6: hop by hop of 8 bytes, destination options of 24.
fn with_network_options(syn: &mut Segment, most: bool) {
    match &mut syn.ip {
        IpHeaders::Ipv4(header, _) => {
            header.options = if most {
                let mut options = [1; 40];
                options[..4].copy_from_slice(&[0x94, 4, 0, 0]);
                options.into()
            } else {
                [0x94, 4, 0, 0].into()
            };
        }
        IpHeaders::Ipv6(_, extensions) => {
            let pad = |length: usize| {
                let mut padding = vec![0; length];
                padding[..2].copy_from_slice(&[1, length as u8 - 2]);
                Ipv6RawExtHeader::new_raw(IpNumber::TCP, &padding).unwrap()
            };
            extensions.hop_by_hop_options = Some(pad(6));
            if most {
                extensions.destination_options = Some(pad(22));
            }
        }
    }
}

/// Every form of the stale SYN of a flow.
fn forms((client, vip): (SocketAddr, SocketAddr)) -> Vec<(String, Segment)> {
    let mut forms = Vec::new();
    for tags in [vec![], vec![VLAN], vec![SERVICE_VLAN, VLAN]] {
        for (network_options, most) in [(false, false), (true, false), (true, true)] {
            for tcp_options in [false, true] {
                for payload in [0, 3, 1000] {
                    let mut syn = Segment::syn(client, vip, SEQ - payload);
                    syn.tags.clone_from(&tags);
                    if network_options {
                        with_network_options(&mut syn, most);
                    }
                    if tcp_options {
                        with_tcp_options(&mut syn);
                    }
                    syn.payload = vec![0xa5; payload as usize];
                    let name = format!(
                        "{client}, tags {tags:x?}, options of IP {network_options} {most}, of TCP \
                         {tcp_options}, payload {payload}"
                    );
                    forms.push((name, syn));
                }
            }
        }
    }
    forms
}

fn stale_syns_are_answered(bench: &mut Bench) {
    let has_sums = bench.has_sums();
    let (mut count, mut summed) = (0, 0);
    for flow in flows() {
        for (name, syn) in forms(flow) {
            for program in [Packet::Tc, Packet::Xdp] {
                bench.assert_answered(program, &name, &syn);
                count += 1;
            }
            // The kernel gives up the sum of a packet that becomes shorter.
            if has_sums && syn.tcp.header_len() + syn.payload.len() == TCP {
                bench.assert_answered(Packet::TcSummed, &name, &syn);
                summed += 1;
            }
        }
        // Congestion notification is asked for by other flags of a SYN.
        let mut syn = Segment::syn(flow.0, flow.1, SEQ);
        syn.tcp.ece = true;
        syn.tcp.cwr = true;
        for program in [Packet::Tc, Packet::Xdp] {
            bench.assert_answered(program, "ECN", &syn);
        }
    }
    println!("enforce forms: {count} resets right, {summed} with a device's sum");
}

/// An Ethernet frame is filled up to 60 bytes, whatever its packet says.
fn padding_is_no_part_of_the_answer(bench: &mut Bench) {
    let (client, vip) = flows()[0];
    let syn = Segment::syn(client, vip, SEQ);
    let mut frame = syn.frame();
    frame.resize(60, 0);
    for program in [Packet::Tc, Packet::Xdp] {
        let tried = bench.loaded.try_packet(program, &frame).unwrap();
        assert_eq!(tried.action, ANSWERED[index(program)]);
        assert_eq!(tried.bytes.len(), syn.transport() + TCP);
        let read = Read::frame(&tried.bytes).unwrap();
        read.assert_resets("padded", client, vip, SEQ);
    }
}

/// What is not to be touched, by name.
fn others((client, vip): (SocketAddr, SocketAddr)) -> Vec<(&'static str, Vec<u8>)> {
    let syn = Segment::syn(client, vip, SEQ);
    let mut frames = Vec::new();
    let mut add = |name, change: &dyn Fn(&mut Segment)| {
        let mut changed = syn.clone();
        change(&mut changed);
        frames.push((name, changed.frame()));
    };
    add("SYN and ACK", &|it| it.tcp.ack = true);
    add("RST", &|it| {
        it.tcp.syn = false;
        it.tcp.rst = true;
    });
    add("SYN and RST", &|it| it.tcp.rst = true);
    add("FIN", &|it| {
        it.tcp.syn = false;
        it.tcp.fin = true;
    });
    add("no flag", &|it| it.tcp.syn = false);
    add("another virtual port", &|it| it.tcp.destination_port += 1);
    add("another client port", &|it| it.tcp.source_port += 1);
    add("another client", &|it| match &mut it.ip {
        IpHeaders::Ipv4(header, _) => header.source[3] ^= 1,
        IpHeaders::Ipv6(header, _) => header.source[15] ^= 1,
    });
    add("three tags", &|it| it.tags = vec![SERVICE_VLAN, VLAN, VLAN]);
    for (name, offset, more) in [
        ("first fragment", 0, true),
        ("fragment in between", 185, true),
        ("last fragment", 185, false),
        ("last fragment far behind", 0x1fff, false),
    ] {
        let offset = IpFragOffset::try_new(offset).unwrap();
        add(name, &|it| match &mut it.ip {
            IpHeaders::Ipv4(header, _) => {
                header.fragment_offset = offset;
                header.more_fragments = more;
            }
            IpHeaders::Ipv6(_, extensions) => {
                let header = Ipv6FragmentHeader::new(IpNumber::TCP, offset, more, 9);
                extensions.fragment = Some(header);
            }
        });
    }
    let network = syn.network();
    let mut raw = |name, changes: &[(usize, u8)]| {
        let mut frame = syn.frame();
        for (at, byte) in changes {
            frame[*at] = *byte;
        }
        frames.push((name, frame));
    };
    raw("another Ethernet address", &[(0, 2)]);
    raw("unknown type", &[(12, 0x88), (13, 0xb5)]);
    raw("ARP", &[(12, 0x08), (13, 0x06)]);
    if vip.is_ipv4() {
        raw("UDP", &[(network + 9, 17)]);
        raw("header of 16 bytes", &[(network, 0x44)]);
        raw("header of no bytes", &[(network, 0x40)]);
        raw("header beyond the end", &[(network, 0x4f)]);
        raw("version 6 in IPv4", &[(network, 0x65)]);
        raw("no payload by its length", &[(network + 3, 20)]);
        raw("half a TCP header by its length", &[(network + 3, 39)]);
    } else {
        raw("UDP", &[(network + 6, 17)]);
        raw("unknown extension", &[(network + 6, 253)]);
        raw("no next header", &[(network + 6, 59)]);
        raw("version 4 in IPv6", &[(network, 0x45)]);
        raw("no payload by its length", &[(network + 5, 0)]);
        raw("half a TCP header by its length", &[(network + 5, 19)]);
    }
    frames
}

fn other_packets_pass(bench: &mut Bench) {
    for flow in flows() {
        for (name, frame) in others(flow) {
            for program in [Packet::Tc, Packet::Xdp] {
                bench.assert_passed(program, &format!("{name} of {}", flow.0), &frame);
            }
        }
    }
}

/// Every part of a SYN, from the Ethernet header to all but the last byte of the
/// TCP header.
fn packets_cut_short_pass(bench: &mut Bench) {
    for (client, vip) in flows() {
        for tags in [vec![], vec![SERVICE_VLAN, VLAN]] {
            let mut syn = Segment::syn(client, vip, SEQ);
            if !tags.is_empty() {
                with_network_options(&mut syn, true);
            }
            syn.tags = tags;
            let frame = syn.frame();
            for length in 14..syn.transport() + TCP {
                for program in [Packet::Tc, Packet::Xdp] {
                    let what = format!("{length} bytes of {:x?}, {client}", syn.tags);
                    bench.assert_passed(program, &what, &frame[..length]);
                }
            }
        }
    }
}

fn syns_of_flows_that_are_not_stale_pass(bench: &mut Bench) {
    let programs = [Packet::Tc, Packet::Xdp];
    let syns = flows().map(|(client, vip)| Segment::syn(client, vip, SEQ));
    let now = monotonic();
    let (flow, real) = (bench.flow, bench.real);
    let later = now + 3_600 * SECOND;
    let cases: [(&str, Flow, Real); 5] = [
        ("stale", flow, real),
        (
            "deadline over",
            Flow {
                deadline: now,
                ..flow
            },
            real,
        ),
        (
            "not yet",
            Flow {
                not_before: later,
                ..flow
            },
            real,
        ),
        (
            "another generation of the flow",
            Flow {
                generation: 6,
                ..flow
            },
            real,
        ),
        (
            "another generation of the real server",
            flow,
            Real {
                generation: 8,
                ..real
            },
        ),
    ];
    let check = |bench: &mut Bench, what: &str, answered: bool| {
        for syn in &syns {
            for program in programs {
                if answered {
                    bench.assert_answered(program, what, syn);
                } else {
                    bench.assert_passed(program, what, &syn.frame());
                }
            }
        }
    };
    for (what, flow, real) in cases {
        bench.set(&flow, &real);
        check(bench, what, what == "stale");
    }
    bench.reset();
    let dest = bench.flow.dest;
    let mut note = RealNote {
        endpoint: dest,
        wish: FORGET,
        ..RealNote::default()
    };
    bench.maps.survey(std::slice::from_mut(&mut note)).unwrap();
    check(bench, "unknown real server", false);
    bench.reset();
    bench.heart.beat(monotonic());
    check(bench, "the heart stands still", false);
    bench.reset();
    bench.heart.settle(bench.heart.drains_begun());
    check(bench, "nothing drains", false);
    bench.reset();
    check(bench, "stale again", true);
}

/// One after the other: loading the programs takes longer than all of them.
/// With more flows than the map holds the oldest pass, the latest are answered, and
/// nothing else happens; with more real servers the surplus is counted.
fn full_maps_let_pass(bench: &mut Bench) {
    let (client, vip) = flows()[0];
    let keys: Vec<FlowKey> = (0..FLOWS * 2)
        .map(|number| {
            let [_, a, b, c] = number.to_be_bytes();
            let other = SocketAddr::new([10, a, b, c].into(), client.port());
            FlowKey {
                client: endpoint(other),
                vip: endpoint(vip),
            }
        })
        .collect();
    let all: Vec<_> = keys.iter().map(|key| (*key, bench.flow)).collect();
    bench.maps.note_flows(&all).unwrap();
    let frame = |key: &FlowKey| {
        let from = SocketAddr::new(key.client.addr().ip(), key.client.port());
        Segment::syn(from, vip, SEQ).frame()
    };
    let mut answered = |key: &FlowKey| {
        let frame = frame(key);
        let tried = bench.loaded.try_packet(Packet::Tc, &frame).unwrap();
        if tried.action == PASSED[0] {
            assert_eq!(tried.bytes, frame);
        }
        tried.action == ANSWERED[0]
    };
    let count = keys.iter().step_by(64).filter(|key| answered(key)).count();
    assert!(
        (1..=FLOWS as usize / 64).contains(&count),
        "{count} answered"
    );

    let mut notes: Vec<RealNote> = (0..REALS + 100)
        .map(|number| {
            let [_, a, b, c] = number.to_be_bytes();
            RealNote {
                endpoint: endpoint(SocketAddr::new([10, a, b, c].into(), 80)),
                ..RealNote::default()
            }
        })
        .collect();
    let counters = bench.loaded.counters().unwrap();
    bench.maps.survey(&mut notes).unwrap();
    let known = notes.iter().filter(|note| note.real.generation != 0);
    // One is there from the beginning.
    assert_eq!(known.count(), REALS as usize - 1);
    assert_eq!(counters.get(Stat::GuardFull), 101);
}

#[test]
fn forms_of_packets() {
    let mut bench = Bench::new();
    stale_syns_are_answered(&mut bench);
    padding_is_no_part_of_the_answer(&mut bench);
    other_packets_pass(&mut bench);
    packets_cut_short_pass(&mut bench);
    syns_of_flows_that_are_not_stale_pass(&mut bench);
    full_maps_let_pass(&mut bench);
}
