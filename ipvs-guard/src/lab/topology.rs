//! Client, node and backends, each in a network namespace of its own.
//!
//! ```text
//! client ── eth0 ═══ client ── node ── backend0 ═══ eth0 ── backend 0
//!                               │  └── backend1 ═══ eth0 ── backend 1
//!                              lo: the virtual address      ...
//! ```
//! The node forwards and runs IPVS, which masquerades TCP port 80 of the virtual
//! address to port 8080 of the backends; the backends' default route leads back
//! through it. All addresses are of the ranges for documentation.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::LabError;
use super::client::{Attempt, Limits, connect_all};
use super::server::Server;
use crate::netlink::NetlinkError;
use crate::netlink::conntable::{ConnEntry, ConnTable};
use crate::netlink::ipvs::{
    Destination, DestinationStatus, Family, IpvsSocket, Service, ServiceId, ServiceStatus,
};
use crate::netlink::route::RouteSocket;
use crate::netns::{NetNs, sysctl};

/// Most backends there can be: each takes four IPv4 addresses of 198.51.100.0/24.
pub const BACKENDS_MAX: usize = 64;

/// The virtual service's port.
pub const SERVICE_PORT: u16 = 80;
/// The backends' port.
pub const BACKEND_PORT: u16 = 8080;
/// The node's device towards the client.
pub const CLIENT_DEVICE: &str = "client";

/// The only device of the client and of each backend.
pub const ONLY_DEVICE: &str = "eth0";

/// The families in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Families {
    /// IPv4.
    Inet,
    /// IPv6.
    Inet6,
    /// Both, with a virtual service each.
    Dual,
}

impl Families {
    fn list(self) -> &'static [Family] {
        match self {
            Self::Inet => &[Family::Inet],
            Self::Inet6 => &[Family::Inet6],
            Self::Dual => &[Family::Inet, Family::Inet6],
        }
    }

    fn has(self, family: Family) -> bool {
        self.list().contains(&family)
    }
}

/// How the namespaces are to be set up. A sysctl that is none stays at the
/// kernel's default.
#[derive(Clone, Debug)]
pub struct Options {
    /// Number of backends, at most [`BACKENDS_MAX`].
    pub backends: usize,
    /// Families of client, service and backends.
    pub families: Families,
    /// Name of the IPVS scheduler.
    pub scheduler: String,
    /// Seconds a client stays with its backend; none for a service without
    /// persistence.
    pub persistence: Option<u32>,
    /// `net.ipv4.vs.conn_reuse_mode`.
    pub conn_reuse_mode: Option<u32>,
    /// `net.ipv4.vs.expire_nodest_conn`.
    pub expire_nodest_conn: Option<bool>,
    /// `net.ipv4.vs.conntrack`.
    pub conntrack: Option<bool>,
}

impl Default for Options {
    /// Two backends, IPv4, round robin.
    fn default() -> Self {
        Self {
            backends: 2,
            families: Families::Inet,
            scheduler: "rr".to_owned(),
            persistence: None,
            conn_reuse_mode: None,
            expire_nodest_conn: None,
            conntrack: None,
        }
    }
}

/// The namespaces, and IPVS between them. All of it is gone once this is.
#[derive(Debug)]
pub struct Topology {
    families: Families,
    client: NetNs,
    node: Node,
    backends: Vec<Backend>,
}

#[derive(Debug)]
struct Node {
    netns: NetNs,
    routes: Mutex<RouteSocket>,
    ipvs: Mutex<IpvsSocket>,
}

#[derive(Debug)]
struct Backend {
    netns: NetNs,
    routes: Mutex<RouteSocket>,
    _server: Server,
}

impl Topology {
    /// Sets everything up; IPVS is to be loaded.
    ///
    /// # Errors
    /// What is missing, or failed on the way.
    pub fn build(options: &Options) -> Result<Self, LabError> {
        let families = options.families;
        let node = Node::new(options)?;
        let client = host(families)?;
        {
            let mut near = lock(&node.routes);
            let mut far = client.run(RouteSocket::open)??;
            connect(
                &mut near,
                CLIENT_DEVICE,
                &mut far,
                &client,
                families,
                client_network,
            )?;
        }
        let mut topology = Self {
            families,
            client,
            node,
            backends: Vec::new(),
        };
        for _ in 0..options.backends {
            topology.add_backend()?;
        }
        Ok(topology)
    }

    /// The node's namespace, where IPVS is.
    pub fn node(&self) -> &NetNs {
        &self.node.netns
    }

    /// The client's namespace.
    pub fn client(&self) -> &NetNs {
        &self.client
    }

    /// A backend's namespace.
    ///
    /// # Errors
    /// [`LabError::NoSuch`] when there are not as many.
    pub fn backend(&self, number: usize) -> Result<&NetNs, LabError> {
        Ok(&self.at(number)?.netns)
    }

    /// The virtual service, whether or not the topology has that family.
    pub fn service(&self, family: Family) -> ServiceId {
        ServiceId::tcp(SocketAddr::new(virtual_address(family), SERVICE_PORT))
    }

    /// A connection to the node's IPVS, for what the topology has no call for.
    ///
    /// # Errors
    /// When the namespace cannot be entered.
    pub fn open_ipvs(&self) -> Result<IpvsSocket, LabError> {
        Ok(self.node.netns.run(IpvsSocket::open)??)
    }

    /// Sets a sysctl of the node, such as `net/ipv4/vs/conn_reuse_mode`.
    ///
    /// # Errors
    /// When the kernel does not have it.
    pub fn set_sysctl(&self, name: &str, value: &str) -> Result<(), LabError> {
        Ok(self.node.netns.run(|| sysctl::write(name, value))??)
    }

    /// Adds a backend of weight 1 and returns its number.
    ///
    /// # Errors
    /// [`LabError::NoSuch`] when there are [`BACKENDS_MAX`].
    pub fn add_backend(&mut self) -> Result<usize, LabError> {
        let number = self.backends.len();
        if number >= BACKENDS_MAX {
            return Err(LabError::NoSuch {
                what: format!("backend {number}: {BACKENDS_MAX} are the most"),
            });
        }
        let netns = host(self.families)?;
        let mut routes = netns.run(RouteSocket::open)??;
        connect(
            &mut lock(&self.node.routes),
            &backend_device(number),
            &mut routes,
            &netns,
            self.families,
            |family| backend_network(number, family),
        )?;
        let addresses: Vec<_> = self
            .families
            .list()
            .iter()
            .map(|family| backend_address(number, *family))
            .collect();
        let server = Server::start(&netns, number, &addresses)?;
        for family in self.families.list() {
            let destination = Destination::masq(backend_address(number, *family), 1);
            lock(&self.node.ipvs).add_destination(&self.service(*family), &destination)?;
        }
        self.backends.push(Backend {
            netns,
            routes: Mutex::new(routes),
            _server: server,
        });
        Ok(number)
    }

    /// Sets a backend's weight in each service.
    ///
    /// # Errors
    /// [`LabError::NoSuch`] when there are not as many backends;
    /// [`NetlinkError::NotFound`] when it was removed.
    pub fn set_weight(&self, number: usize, weight: u32) -> Result<(), LabError> {
        self.at(number)?;
        for family in self.families.list() {
            let destination = Destination::masq(backend_address(number, *family), weight);
            lock(&self.node.ipvs).set_destination(&self.service(*family), &destination)?;
        }
        Ok(())
    }

    /// Removes a backend from each service; it keeps running.
    ///
    /// # Errors
    /// As [`Self::set_weight`].
    pub fn remove_backend(&self, number: usize) -> Result<(), LabError> {
        self.at(number)?;
        for family in self.families.list() {
            let destination = Destination::masq(backend_address(number, *family), 0);
            lock(&self.node.ipvs).delete_destination(&self.service(*family), &destination)?;
        }
        Ok(())
    }

    /// Takes a backend's interface down, as when a pod is gone: the node finds no
    /// neighbour, and after three seconds its clients get EHOSTUNREACH.
    ///
    /// IPv6 clients get it on 6.1, 6.12, 7.2 and 7.3. On 5.10 and 6.18 the
    /// kernel drops the node's own message on its way out (Ip6OutDiscards), so
    /// they wait for their own time-out.
    ///
    /// # Errors
    /// [`LabError::NoSuch`] when there are not as many.
    pub fn kill_backend(&self, number: usize) -> Result<(), LabError> {
        Ok(lock(&self.at(number)?.routes).set_up(ONLY_DEVICE, false)?)
    }

    /// Takes a backend's addresses away but leaves the node its neighbour entry:
    /// packets still leave through the node's device (where a capture sees
    /// them), and nothing ever comes back.
    ///
    /// # Errors
    /// [`LabError::NoSuch`] when there are not as many.
    pub fn mute_backend(&self, number: usize) -> Result<(), LabError> {
        let mut backend = lock(&self.at(number)?.routes);
        let device = backend_device(number);
        let mac = backend
            .link(ONLY_DEVICE)?
            .mac
            .ok_or_else(|| LabError::NoSuch {
                what: format!("Ethernet address of backend {number}"),
            })?;
        for family in self.families.list() {
            let network = backend_network(number, *family);
            lock(&self.node.routes).set_neighbour(&device, network.far, mac)?;
            backend.delete_address(ONLY_DEVICE, network.far, network.prefix)?;
        }
        Ok(())
    }

    /// A backend's counters in the service of a family.
    ///
    /// # Errors
    /// [`LabError::NoSuch`] when the service does not have it.
    pub fn destination(
        &self,
        number: usize,
        family: Family,
    ) -> Result<DestinationStatus, LabError> {
        let address = backend_address(number, family);
        lock(&self.node.ipvs)
            .destinations(&self.service(family))?
            .into_iter()
            .find(|status| status.destination.address == address)
            .ok_or_else(|| LabError::NoSuch {
                what: format!("destination {address}"),
            })
    }

    /// The service's counters.
    ///
    /// # Errors
    /// [`LabError::NoSuch`] when the topology does not have that family.
    pub fn service_status(&self, family: Family) -> Result<ServiceStatus, LabError> {
        let id = self.service(family);
        lock(&self.node.ipvs)
            .services()?
            .into_iter()
            .find(|status| status.service.id == id)
            .ok_or_else(|| LabError::NoSuch {
                what: format!("service {id}"),
            })
    }

    /// The node's connection table.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn connections(&self) -> Result<Vec<ConnEntry>, LabError> {
        let entries = self
            .node
            .netns
            .run(|| ConnTable::open()?.collect::<Result<_, _>>())?;
        Ok(entries?)
    }

    /// [`connect_all`] from the client to the virtual service.
    ///
    /// # Errors
    /// [`LabError::NoSuch`] when the topology does not have that family.
    pub fn connect_all(
        &self,
        family: Family,
        ports: &[u16],
        limits: Limits,
    ) -> Result<Vec<Attempt>, LabError> {
        if !self.families.has(family) {
            return Err(LabError::NoSuch {
                what: format!("service of family {family:?}"),
            });
        }
        let target = SocketAddr::new(virtual_address(family), SERVICE_PORT);
        connect_all(&self.client, target, ports, limits)
    }

    fn at(&self, number: usize) -> Result<&Backend, LabError> {
        self.backends.get(number).ok_or_else(|| LabError::NoSuch {
            what: format!("backend {number}"),
        })
    }
}

impl Node {
    fn new(options: &Options) -> Result<Self, LabError> {
        let netns = host(options.families)?;
        netns.run(|| prepare_node(options))??;
        let mut routes = netns.run(RouteSocket::open)??;
        let mut ipvs = netns.run(IpvsSocket::open)??;
        for family in options.families.list() {
            let address = virtual_address(*family);
            routes.add_address("lo", address, host_prefix(*family))?;
            let id = ServiceId::tcp(SocketAddr::new(address, SERVICE_PORT));
            let mut service = Service::new(id, &options.scheduler);
            service.persistence = options.persistence;
            ipvs.add_service(&service)
                .map_err(|error| no_scheduler(error, &options.scheduler))?;
        }
        Ok(Self {
            netns,
            routes: Mutex::new(routes),
            ipvs: Mutex::new(ipvs),
        })
    }
}

/// A service that is new can lack nothing but its scheduler.
fn no_scheduler(error: NetlinkError, scheduler: &str) -> LabError {
    if matches!(error, NetlinkError::NotFound { .. }) {
        LabError::Missing {
            what: format!("the kernel has no IPVS scheduler {scheduler}"),
            remedy: "load its module, whose name is ip_vs_ and the scheduler's",
        }
    } else {
        error.into()
    }
}

fn prepare_node(options: &Options) -> Result<(), LabError> {
    sysctl::write("net/ipv4/ip_forward", "1")?;
    // Every failing connection is to be told so: with the usual limit of a
    // message a second to each client the numbers would depend on it.
    sysctl::write("net/ipv4/icmp_ratemask", "0")?;
    if options.families.has(Family::Inet6) {
        sysctl::write("net/ipv6/conf/all/forwarding", "1")?;
        // A set without type 1, unreachable: an empty one cannot be written.
        sysctl::write("net/ipv6/icmp/ratemask", "255")?;
    }
    let flag = |flag: bool| u32::from(flag);
    for (name, value) in [
        ("net/ipv4/vs/conn_reuse_mode", options.conn_reuse_mode),
        (
            "net/ipv4/vs/expire_nodest_conn",
            options.expire_nodest_conn.map(flag),
        ),
        ("net/ipv4/vs/conntrack", options.conntrack.map(flag)),
    ] {
        if let Some(value) = value {
            sysctl::write(name, &value.to_string())?;
        }
    }
    Ok(())
}

/// A new namespace that behaves the same on every machine: IPv4 settings of a
/// new one are copies of the machine's own (`devinet_init_net`, unless
/// net.core.devconf_inherit_init_net says otherwise).
fn host(families: Families) -> Result<NetNs, LabError> {
    let netns = NetNs::new()?;
    netns.run(|| -> Result<(), LabError> {
        sysctl::write("net/ipv4/ip_forward", "0")?;
        for scope in ["all", "default"] {
            sysctl::write(&format!("net/ipv4/conf/{scope}/rp_filter"), "0")?;
        }
        if families.has(Family::Inet6) {
            for scope in ["all", "default"] {
                sysctl::write(&format!("net/ipv6/conf/{scope}/disable_ipv6"), "0")?;
                // The link-local address asks for neighbours when forwarding,
                // and cannot while it is checked for duplicates.
                sysctl::write(&format!("net/ipv6/conf/{scope}/accept_dad"), "0")?;
            }
        }
        RouteSocket::open()?.set_up("lo", true)?;
        Ok(())
    })??;
    Ok(netns)
}

/// Both ends of a link to the node.
#[derive(Clone, Copy, Debug)]
struct Network {
    near: IpAddr,
    far: IpAddr,
    prefix: u8,
}

/// Links a namespace to the node, which becomes its default gateway.
fn connect(
    node: &mut RouteSocket,
    device: &str,
    other: &mut RouteSocket,
    netns: &NetNs,
    families: Families,
    network: impl Fn(Family) -> Network,
) -> Result<(), LabError> {
    node.add_veth(device, ONLY_DEVICE, netns)?;
    node.set_up(device, true)?;
    other.set_up(ONLY_DEVICE, true)?;
    for family in families.list() {
        let Network { near, far, prefix } = network(*family);
        node.add_address(device, near, prefix)?;
        other.add_address(ONLY_DEVICE, far, prefix)?;
        other.add_default_route(ONLY_DEVICE, near)?;
    }
    Ok(())
}

fn client_network(family: Family) -> Network {
    match family {
        Family::Inet => Network {
            near: Ipv4Addr::new(192, 0, 2, 1).into(),
            far: Ipv4Addr::new(192, 0, 2, 2).into(),
            prefix: 24,
        },
        Family::Inet6 => Network {
            near: documentation(1, 0, 1),
            far: documentation(1, 0, 2),
            prefix: 64,
        },
    }
}

fn backend_network(number: usize, family: Family) -> Network {
    // BACKENDS_MAX keeps the number well under 64.
    let number = number as u8;
    match family {
        Family::Inet => {
            let first = number.wrapping_mul(4);
            Network {
                near: Ipv4Addr::new(198, 51, 100, first | 1).into(),
                far: Ipv4Addr::new(198, 51, 100, first | 2).into(),
                prefix: 30,
            }
        }
        Family::Inet6 => {
            let number = u16::from(number);
            Network {
                near: documentation(2, number, 1),
                far: documentation(2, number, 2),
                prefix: 64,
            }
        }
    }
}

fn virtual_address(family: Family) -> IpAddr {
    match family {
        Family::Inet => Ipv4Addr::new(203, 0, 113, 1).into(),
        Family::Inet6 => documentation(3, 0, 1),
    }
}

fn documentation(part: u16, network: u16, host: u16) -> IpAddr {
    Ipv6Addr::new(0x2001, 0xdb8, part, network, 0, 0, 0, host).into()
}

fn host_prefix(family: Family) -> u8 {
    match family {
        Family::Inet => 32,
        Family::Inet6 => 128,
    }
}

/// The client's address.
pub fn client_address(family: Family) -> IpAddr {
    client_network(family).far
}

/// A backend's address and port.
pub fn backend_address(number: usize, family: Family) -> SocketAddr {
    SocketAddr::new(backend_network(number, family).far, BACKEND_PORT)
}

/// The node's device towards a backend.
pub fn backend_device(number: usize) -> String {
    format!("backend{number}")
}

/// What the lock guards is a socket, of which a panic elsewhere leaves nothing
/// half done.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
