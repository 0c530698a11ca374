//! Connections that move data all the time, through a service of their own.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread::{self, Scope},
    time::Duration,
};

use ipvs_guard::{
    lab::topology::{Topology, backend_address},
    netlink::ipvs::{Destination, Family, Service, ServiceId},
};

const PORT: u16 = 7_009;
const BYTES: usize = 500;

/// The service, both of whose servers echo what they get.
pub(crate) struct Long<'a> {
    topology: &'a Topology,
    address: SocketAddr,
    over: AtomicBool,
    moved: AtomicUsize,
}

/// Ends the connections, also where a test fails.
pub(crate) struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl<'a> Long<'a> {
    pub(crate) fn serve(topology: &'a Topology) -> Self {
        let ServiceId::Address { address, .. } = topology.service(Family::Inet) else {
            panic!("the topology's service has an address");
        };
        let address = SocketAddr::new(address.ip(), PORT);
        let mut ipvs = topology.open_ipvs().unwrap();
        let id = ServiceId::tcp(address);
        ipvs.add_service(&Service::new(id, "rr")).unwrap();
        for number in 0..2 {
            let server = server(number);
            let listener = topology
                .backend(number)
                .unwrap()
                .run(|| TcpListener::bind(server).unwrap())
                .unwrap();
            thread::spawn(move || {
                for stream in listener.incoming() {
                    let stream = stream.unwrap();
                    thread::spawn(move || echo(stream));
                }
            });
            ipvs.add_destination(&id, &Destination::masq(server, 1))
                .unwrap();
        }
        Self {
            topology,
            address,
            over: AtomicBool::new(false),
            moved: AtomicUsize::new(0),
        }
    }

    /// Begins so many connections, which go on until what is given back is dropped.
    /// One that loses a byte, or is lost, fails the test.
    pub(crate) fn begin<'s>(&'s self, scope: &'s Scope<'s, '_>, count: usize) -> End<'s> {
        let connect = || TcpStream::connect(self.address).unwrap();
        let client = self.topology.client();
        for mut stream in client
            .run(|| (0..count).map(|_| connect()).collect::<Vec<_>>())
            .unwrap()
        {
            scope.spawn(move || {
                let mut round = 0u8;
                while !self.over.load(Ordering::Relaxed) {
                    round = round.wrapping_add(1);
                    stream.write_all(&[round; BYTES]).unwrap();
                    let mut back = [0; BYTES];
                    stream.read_exact(&mut back).unwrap();
                    assert_eq!(back, [round; BYTES]);
                    self.moved.fetch_add(BYTES, Ordering::Relaxed);
                    thread::sleep(Duration::from_millis(5));
                }
            });
        }
        End(&self.over)
    }

    pub(crate) fn set_weight(&self, number: usize, weight: u32) {
        let mut ipvs = self.topology.open_ipvs().unwrap();
        let destination = Destination::masq(server(number), weight);
        ipvs.set_destination(&ServiceId::tcp(self.address), &destination)
            .unwrap();
    }

    /// Bytes that came back.
    pub(crate) fn moved(&self) -> usize {
        self.moved.load(Ordering::Relaxed)
    }
}

fn server(number: usize) -> SocketAddr {
    SocketAddr::new(backend_address(number, Family::Inet).ip(), PORT)
}

fn echo(mut stream: TcpStream) {
    let mut bytes = [0; 2 * BYTES];
    while let Ok(count @ 1..) = stream.read(&mut bytes) {
        // The client may have gone.
        if stream.write_all(&bytes[..count]).is_err() {
            return;
        }
    }
}
