//! An agent that stands still for longer than the heartbeat: what it knew is old.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    os::fd::AsRawFd as _,
    thread,
    time::Duration,
};

use ipvs_guard::{
    lab::topology::{Families, Topology, backend_address},
    netlink::ipvs::{Destination, Family, Service, ServiceId},
};
use nix::sys::{
    signal::Signal,
    socket::{
        AddressFamily, SockFlag, SockType, SockaddrIn, bind, connect, setsockopt, socket,
        sockopt::ReuseAddr,
    },
};

use crate::{
    heal::{HEAL, actions},
    support::{PATIENCE, agent::Agent, incident},
};

const PORT: u16 = 7_010;
/// The first byte of a connection that the server is to end, and of one that stays.
const END: u8 = b'e';
const STAY: u8 = b's';

/// SYNs are held back, the agent stands still, and the clients' third ones pass to the
/// server, which lives: these connections go on when the agent does.
#[test]
fn no_living_connection_is_cut_when_it_goes_on() {
    let topology = incident(Families::Inet);
    let (service, servers) = serve(&topology);
    let open = |port: u16| topology.client().run(|| open(port, service)).unwrap();
    for port in 50_000..50_010 {
        let mut stream = open(port);
        stream.write_all(&[END]).unwrap();
        assert_eq!(stream.read(&mut [0]).unwrap(), 0);
    }
    let stale: Vec<u16> = topology
        .connections()
        .unwrap()
        .iter()
        .filter(|entry| entry.destination == servers[0])
        .map(|entry| entry.client.port())
        .collect();
    assert!(!stale.is_empty());

    let agent = Agent::enforce_in(topology.node(), &HEAL);
    agent.signal(Signal::SIGSTOP);
    let mut ipvs = topology.open_ipvs().unwrap();
    let drained = Destination::masq(servers[0], 0);
    ipvs.set_destination(&ServiceId::tcp(service), &drained)
        .unwrap();
    let mut streams: Vec<TcpStream> = thread::scope(|scope| {
        let opening: Vec<_> = stale
            .iter()
            .map(|port| scope.spawn(|| open(*port)))
            .collect();
        opening.into_iter().map(|one| one.join().unwrap()).collect()
    });
    for stream in &mut streams {
        stream.write_all(&[STAY]).unwrap();
    }
    agent.signal(Signal::SIGCONT);
    for _ in 0..30 {
        thread::sleep(Duration::from_millis(100));
        for stream in &mut streams {
            stream.write_all(b"x").unwrap();
            let mut back = [0];
            stream.read_exact(&mut back).unwrap();
            assert_eq!(&back, b"x");
        }
    }
    let said = agent.stderr();
    let ended = agent.stop();
    assert!(said.contains("held up for longer than 1.8 s"), "{said}");
    let actions = actions(&ended);
    assert!(!actions.is_empty());
    let healed = actions.iter().filter(|action| **action == "healed");
    assert_eq!(healed.count(), 0, "{actions:?}");
}

/// A service of its own, whose servers end a connection or echo what it says.
fn serve(topology: &Topology) -> (SocketAddr, [SocketAddr; 2]) {
    let ServiceId::Address { address, .. } = topology.service(Family::Inet) else {
        panic!("the topology's service has an address");
    };
    let address = SocketAddr::new(address.ip(), PORT);
    let id = ServiceId::tcp(address);
    let mut ipvs = topology.open_ipvs().unwrap();
    ipvs.add_service(&Service::new(id, "rr")).unwrap();
    let servers =
        [0, 1].map(|number| SocketAddr::new(backend_address(number, Family::Inet).ip(), PORT));
    for (number, server) in servers.into_iter().enumerate() {
        let listener = topology
            .backend(number)
            .unwrap()
            .run(|| TcpListener::bind(server).unwrap())
            .unwrap();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let stream = stream.unwrap();
                thread::spawn(move || answer(stream));
            }
        });
        ipvs.add_destination(&id, &Destination::masq(server, 1))
            .unwrap();
    }
    (address, servers)
}

fn answer(mut stream: TcpStream) {
    let mut byte = [0];
    if stream.read_exact(&mut byte).is_err() || byte == [END] {
        return;
    }
    while stream.read_exact(&mut byte).is_ok() && stream.write_all(&byte).is_ok() {}
}

/// A connection from a port of this thread's namespace.
fn open(port: u16, to: SocketAddr) -> TcpStream {
    let SocketAddr::V4(to) = to else {
        panic!("{to} is not IPv4");
    };
    let flags = SockFlag::SOCK_CLOEXEC;
    let socket = socket(AddressFamily::Inet, SockType::Stream, flags, None).unwrap();
    setsockopt(&socket, ReuseAddr, &true).unwrap();
    bind(socket.as_raw_fd(), &SockaddrIn::new(0, 0, 0, 0, port)).unwrap();
    connect(socket.as_raw_fd(), &SockaddrIn::from(to)).unwrap();
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}
