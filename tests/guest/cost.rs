//! What the agent costs a short connection. Run by `cargo xtask bench cost` in a
//! guest whose clock counts executed instructions, one nanosecond each.

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    thread,
    time::{Duration, Instant},
};

use etherparse::PacketBuilder;
use ipvs_guard::{
    bpf::{HeartMap, Loaded, Options, Packet},
    lab::topology::Families,
    netlink::ipvs::{Destination, Family, Service, ServiceId},
};

use ipvs_guard_common::{
    config,
    filter::Filter,
    guard::{Policy, RESET},
    layout::KernelLayout,
};

use crate::support::{agent::Agent, incident};

const CONNECTIONS: u32 = 2_000;
const ROUNDS: usize = 3;
/// The backend's ports: of the server that answers with nothing but its close,
/// and of the one that takes a request and gives a response, as HTTP/1.0 does.
const BARE: u16 = 9_090;
const TALKING: u16 = 9_091;
const REQUEST: [u8; 100] = [b'q'; 100];
const RESPONSE: [u8; 1_000] = [b'r'; 1_000];

#[test]
#[ignore = "a measurement, for `cargo xtask bench cost`"]
fn instructions_per_short_connection() {
    let topology = incident(Families::Inet);
    let backend = ipvs_guard::lab::topology::backend_address(0, Family::Inet).ip();
    let listen = |port| {
        let listen = || TcpListener::bind((backend, port)).unwrap();
        topology.backend(0).unwrap().run(listen).unwrap()
    };
    let (bare, talking) = (listen(BARE), listen(TALKING));
    thread::spawn(move || while let Ok((_stream, _peer)) = bare.accept() {});
    thread::spawn(move || {
        while let Ok((mut stream, _peer)) = talking.accept() {
            stream.read_exact(&mut [0; REQUEST.len()]).unwrap();
            stream.write_all(&RESPONSE).unwrap();
        }
    });
    let ServiceId::Address { address, .. } = topology.service(Family::Inet) else {
        panic!("the topology's service has an address");
    };
    let mut ipvs = topology.open_ipvs().unwrap();
    for (kind, port, request) in [
        ("that carries nothing", BARE, &REQUEST[..0]),
        ("with a request and a response", TALKING, &REQUEST[..]),
    ] {
        // A service of its own: an entry of the other's would be found again.
        let address = SocketAddr::new(address.ip(), port);
        let id = ServiceId::tcp(address);
        ipvs.add_service(&Service::new(id, "rr")).unwrap();
        let server = Destination::masq(SocketAddr::new(backend, port), 1);
        ipvs.add_destination(&id, &server).unwrap();
        let connect = || {
            let mut stream = TcpStream::connect(address).unwrap();
            stream.write_all(request).unwrap();
            let mut answer = Vec::with_capacity(2 * RESPONSE.len());
            stream.read_to_end(&mut answer).unwrap();
            assert_eq!(answer.is_empty(), request.is_empty());
        };
        let measure = || {
            topology
                .client()
                .run(|| {
                    let begin = Instant::now();
                    for _ in 0..CONNECTIONS {
                        connect();
                    }
                    begin.elapsed() / CONNECTIONS
                })
                .unwrap()
        };
        measure();
        let (mut without, mut watch, mut enforce) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            without.push(measure());
            let agent = Agent::watch(&[]);
            watch.push(measure());
            assert!(agent.stop().status.success());
            let agent = Agent::enforce_in(topology.node(), &[]);
            enforce.push(measure());
            assert!(agent.stop().status.success());
        }
        let (without, watch, enforce) = (median(without), median(watch), median(enforce));
        let more = |with: Duration| (with.as_secs_f64() / without.as_secs_f64() - 1.0) * 100.0;
        println!(
            "cost: a short connection {kind}: {} instructions without the agent, {} with watch: \
             {:+.2}%, {} with enforce: {:+.2}% (medians of {ROUNDS} rounds of {CONNECTIONS} \
             connections)",
            without.as_nanos(),
            watch.as_nanos(),
            more(watch),
            enforce.as_nanos(),
            more(enforce)
        );
    }
}

/// What the packet programs add to a packet that is not theirs.
#[test]
#[ignore = "a measurement, for `cargo xtask bench cost`"]
fn packets_of_others() {
    const TIMES: u32 = 100_000;
    let layout = KernelLayout::unresolved();
    let mut loaded = Loaded::new(&Options {
        layout: &layout,
        mode: config::ENFORCE | config::STALE,
        filter: Filter::default(),
        proof_comm: "",
        policy: Policy {
            action: RESET,
            states: u32::MAX,
            ..Policy::default()
        },
    })
    .unwrap();
    let heart = HeartMap::take(&mut loaded).unwrap();
    heart.beat(u64::MAX);
    let frame = |from: &str, to: &str, udp: bool| {
        let (from, to): (SocketAddr, SocketAddr) = (from.parse().unwrap(), to.parse().unwrap());
        let ethernet = PacketBuilder::ethernet2([0; 6], [0; 6]);
        let ip = match (from.ip(), to.ip()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => ethernet.ipv4(from.octets(), to.octets(), 64),
            (IpAddr::V6(from), IpAddr::V6(to)) => ethernet.ipv6(from.octets(), to.octets(), 64),
            _ => panic!("of two families"),
        };
        let mut bytes = Vec::new();
        if udp {
            ip.udp(from.port(), to.port()).write(&mut bytes, &[0; 64])
        } else {
            ip.tcp(from.port(), to.port(), 1, 1)
                .ack(1)
                .write(&mut bytes, &[0; 64])
        }
        .unwrap();
        bytes
    };
    let (v4, v6) = (
        ("192.0.2.2:4", "203.0.113.1:80"),
        ("[2001:db8::2]:4", "[2001:db8::1]:80"),
    );
    let frames = [
        ("IPv4 TCP", frame(v4.0, v4.1, false)),
        ("IPv6 TCP", frame(v6.0, v6.1, false)),
        ("IPv4 UDP", frame(v4.0, v4.1, true)),
    ];
    for (when, settled) in [("nothing drains", 0), ("a server drains", 1)] {
        heart.settle(settled);
        for (what, frame) in &frames {
            for (program, idle) in [
                (Packet::Tc, Packet::TcIdle),
                (Packet::Xdp, Packet::XdpIdle),
                (Packet::TcOut, Packet::TcIdle),
            ] {
                let mut time = |packet| loaded.time_packet(packet, frame, TIMES).unwrap();
                let (idle, own) = (time(idle).as_nanos(), time(program).as_nanos());
                println!(
                    "cost: {what} packet of others, {when}: {program:?} {own} instructions a run, \
                     a program that only passes {idle}: {:.2} times",
                    own as f64 / idle as f64
                );
            }
        }
    }
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}
