//! A SYN that was on its way to a destination of weight 0: held back, until its
//! entry leads to a living one, and then sent on as if it came in just now.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap},
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use ipvs_guard_common::{
    addr::Endpoint,
    event::{GoneRecord, Header, PacketRecord, SynRecord, VerdictRecord},
    guard::{CONN_TRACKED, VerdictKey},
    state::ConnState,
};

use super::{channel::Channel, mend::TCP, message::Entry, targets::Targets};
use crate::{
    netlink::route::{Device, LinkLayer, RouteSocket},
    rawip::RawSocket,
    say::say,
};

/// How long a SYN may take from the probe to the device. After that it waits for a
/// neighbour's address, or has nowhere to go.
const TO_DEVICE: Duration = Duration::from_millis(5);
/// How long the kernel may take to re-point an entry: the client repeats its SYN
/// after a second.
const TO_REPLACE: Duration = Duration::from_millis(500);
/// From the end of the old entry to the new one it is a moment, in the same thread.
const TO_FOLLOW: Duration = Duration::from_millis(1);
/// SYNs that are held back at once, at most.
const MOST: usize = 16_384;
/// Life of a new entry until its SYN comes, in seconds.
const LIFE: u32 = 5;

/// How a SYN that was held back ends.
pub(in crate::enforce) enum Ending {
    /// It was sent on to a living destination.
    Healed,
    /// It cannot: it is to be answered with a reset.
    Refused,
}

/// SYNs that are held back.
pub(in crate::enforce) struct Rescues {
    channel: Channel,
    targets: Arc<Mutex<Targets>>,
    routes: RouteSocket,
    raw: HashMap<bool, RawSocket>,
    /// Whether a SYN that did not come to a device has surely not left.
    covers_all: bool,
    /// The record before its packet's.
    last: Option<SynRecord>,
    held: HashMap<u64, Rescue>,
    places: HashMap<VerdictKey, u64>,
    due: BinaryHeap<Reverse<(Instant, u64, u32)>>,
    serial: u32,
    complained: Option<Instant>,
    /// The devices of the namespace, and when they were listed.
    devices: Vec<Device>,
    listed: Option<Instant>,
}

struct Rescue {
    syn: SynRecord,
    packet: Vec<u8>,
    /// How it is known on its way out.
    place: VerdictKey,
    /// Index of the device it came in by; 0: of this node; `None`: not known.
    came_by: Option<u32>,
    stage: Stage,
    serial: u32,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// It is on its way to a device.
    Leaving,
    /// The kernel was told.
    Told,
    /// The old entry is gone.
    Free,
}

impl Rescues {
    pub(in crate::enforce) fn new(
        channel: Channel,
        targets: Arc<Mutex<Targets>>,
        routes: RouteSocket,
        covers_all: bool,
    ) -> Self {
        Self {
            channel,
            targets,
            routes,
            raw: HashMap::new(),
            covers_all,
            last: None,
            held: HashMap::new(),
            places: HashMap::new(),
            due: BinaryHeap::new(),
            serial: 0,
            complained: None,
            devices: Vec::new(),
            listed: None,
        }
    }

    /// A SYN was held back; its packet follows. Gives back the one before if its packet
    /// was lost.
    pub(in crate::enforce) fn held(&mut self, syn: SynRecord) -> Option<SynRecord> {
        self.last.replace(syn)
    }

    /// The packet of that SYN. Gives back what cannot be held any longer.
    pub(in crate::enforce) fn packet(
        &mut self,
        record: &PacketRecord,
        place: impl Fn(&SynRecord) -> VerdictKey,
    ) -> Option<(SynRecord, Ending)> {
        let syn = self.last.take_if(|syn| syn.seq == record.seq)?;
        if self.held.contains_key(&record.conn) {
            // The same SYN once more, or the next one: the first is on its way.
            return Some((syn, Ending::Healed));
        }
        let packet = record.packet().and_then(sound);
        let Some(packet) = packet.filter(|_| self.held.len() < MOST) else {
            return Some((syn, Ending::Refused));
        };
        let place = place(&syn);
        let rescue = Rescue {
            syn,
            packet,
            place,
            came_by: None,
            stage: Stage::Leaving,
            serial: 0,
        };
        self.places.insert(place, record.conn);
        self.held.insert(record.conn, rescue);
        self.wake(record.conn, TO_DEVICE);
        None
    }

    /// A SYN was met on its way out: it goes nowhere.
    pub(in crate::enforce) fn met(&mut self, met: &VerdictRecord) -> Option<(SynRecord, Ending)> {
        let conn = *self.places.get(&met.key)?;
        let rescue = self.held.get_mut(&conn)?;
        if rescue.stage != Stage::Leaving {
            return None;
        }
        rescue.came_by = Some(met.came_by);
        self.tell(conn)
    }

    /// An entry was thrown away.
    pub(in crate::enforce) fn gone(&mut self, gone: &GoneRecord) -> Option<(SynRecord, Ending)> {
        let rescue = self.held.get_mut(&gone.conn)?;
        if rescue.stage != Stage::Told {
            return None;
        }
        let tracked = rescue.syn.conn_flags & CONN_TRACKED != 0;
        if gone.header.has(Header::UNTRACKED) {
            return self.finish(gone.conn);
        }
        if !tracked {
            rescue.stage = Stage::Free;
            self.wake(gone.conn, TO_FOLLOW);
        }
        None
    }

    /// When the next one is due.
    pub(in crate::enforce) fn next_due(&mut self) -> Option<Instant> {
        while let Some(Reverse((due, conn, serial))) = self.due.peek() {
            if self.held.get(conn).is_some_and(|r| r.serial == *serial) {
                return Some(*due);
            }
            self.due.pop();
        }
        None
    }

    /// One that is due.
    pub(in crate::enforce) fn overdue(&mut self, now: Instant) -> Option<(SynRecord, Ending)> {
        while self.next_due()? <= now {
            let Reverse((_, conn, _)) = self.due.pop()?;
            let stage = self.held.get(&conn)?.stage;
            let ended = match stage {
                Stage::Leaving if self.covers_all => self.tell(conn),
                Stage::Leaving => self.end(conn, Ending::Refused),
                Stage::Free => self.finish(conn),
                Stage::Told => {
                    self.complain(&self.channel.deaf().to_string());
                    self.end(conn, Ending::Refused)
                }
            };
            if ended.is_some() {
                return ended;
            }
        }
        None
    }

    /// Any that is left: the agent ends, and the client tries again by itself.
    pub(in crate::enforce) fn drain(&mut self) -> Option<SynRecord> {
        let conn = *self.held.keys().next()?;
        self.end(conn, Ending::Refused).map(|(syn, _)| syn)
    }

    /// Has the entry re-pointed.
    fn tell(&mut self, conn: u64) -> Option<(SynRecord, Ending)> {
        let rescue = self.held.get_mut(&conn)?;
        let address = |end: &Endpoint| SocketAddr::new(end.addr().ip(), end.port());
        let service = address(&rescue.syn.vip);
        let choice = self
            .targets
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .choose(service, address(&rescue.syn.dest));
        let Ok(choice) = choice else {
            self.complain(&format!(
                "no living destination of {service} to send connections to; stale SYNs are reset"
            ));
            return self.end(conn, Ending::Refused);
        };
        let entry = Entry {
            protocol: TCP,
            flags: choice.forwarding as u32,
            // As the SYN left it, and as it will find it.
            state: ConnState::SynRecv as u16,
            client: address(&rescue.syn.client),
            service,
            destination: choice.destination,
            fwmark: choice.fwmark,
            timeout: LIFE,
        };
        rescue.stage = Stage::Told;
        match self.channel.replace(&[entry]) {
            Ok(()) => {
                self.wake(conn, TO_REPLACE);
                None
            }
            Err(error) => {
                self.complain(&error.to_string());
                self.end(conn, Ending::Refused)
            }
        }
    }

    /// Sends the SYN on.
    fn finish(&mut self, conn: u64) -> Option<(SynRecord, Ending)> {
        let rescue = self.held.get(&conn)?;
        match self.send_on(rescue.came_by, rescue.syn, rescue.packet.clone()) {
            Ok(()) => self.end(conn, Ending::Healed),
            Err(reason) => {
                self.complain(&reason);
                self.end(conn, Ending::Refused)
            }
        }
    }

    fn send_on(
        &mut self,
        came_by: Option<u32>,
        syn: SynRecord,
        packet: Vec<u8>,
    ) -> Result<(), String> {
        let client = syn.client.addr().ip();
        let index = match came_by {
            Some(index) => index,
            None => self
                .routes
                .device_towards(client)
                .map_err(|error| error.to_string())?,
        };
        let device = self.device(index)?;
        let Some(device) = device.filter(|device| device.link_layer != LinkLayer::Loopback) else {
            return self.send_from_here(syn.vip.addr().ip(), &packet);
        };
        self.channel
            .put_in(device.index, device.mac, &packet)
            .map_err(|error| error.to_string())
    }

    fn device(&mut self, index: u32) -> Result<Option<Device>, String> {
        const GOOD_FOR: Duration = Duration::from_secs(1);
        if index == 0 {
            return Ok(None);
        }
        let known = |device: &&Device| device.index == index;
        let fresh = self.listed.is_some_and(|at| at.elapsed() < GOOD_FOR);
        if !fresh || !self.devices.iter().any(|device| device.index == index) {
            self.devices = self.routes.devices().map_err(|error| error.to_string())?;
            self.listed = Some(Instant::now());
        }
        Ok(self.devices.iter().find(known).cloned())
    }

    fn send_from_here(&mut self, to: IpAddr, packet: &[u8]) -> Result<(), String> {
        let socket = match self.raw.entry(to.is_ipv4()) {
            std::collections::hash_map::Entry::Occupied(known) => known.into_mut(),
            std::collections::hash_map::Entry::Vacant(place) => {
                place.insert(RawSocket::open(to).map_err(|error| format!("raw socket: {error}"))?)
            }
        };
        socket
            .send(packet, to)
            .map_err(|errno| format!("sending a SYN to {to}: {errno}"))
    }

    fn end(&mut self, conn: u64, ending: Ending) -> Option<(SynRecord, Ending)> {
        let rescue = self.held.remove(&conn)?;
        self.places.remove(&rescue.place);
        Some((rescue.syn, ending))
    }

    fn wake(&mut self, conn: u64, after: Duration) {
        self.serial = self.serial.wrapping_add(1);
        if let Some(rescue) = self.held.get_mut(&conn) {
            rescue.serial = self.serial;
        }
        self.due
            .push(Reverse((Instant::now() + after, conn, self.serial)));
    }

    /// Once a second: a storm has one cause.
    fn complain(&mut self, reason: &str) {
        const EVERY: Duration = Duration::from_secs(1);
        if self.complained.is_none_or(|at| at.elapsed() >= EVERY) {
            self.complained = Some(Instant::now());
            say(format_args!("ipvs-guard: {reason}"));
        }
    }
}

/// The packet with its TCP checksum made right: a device was to do that, or one has
/// checked it already.
fn sound(packet: &[u8]) -> Option<Vec<u8>> {
    const CHECKSUM: usize = 16;
    let sliced = SlicedPacket::from_ip(packet).ok()?;
    let Some(TransportSlice::Tcp(tcp)) = sliced.transport else {
        return None;
    };
    let sum = match sliced.net? {
        NetSlice::Ipv4(ip) => {
            tcp.calc_checksum_ipv4(ip.header().source(), ip.header().destination())
        }
        NetSlice::Ipv6(ip) => {
            tcp.calc_checksum_ipv6(ip.header().source(), ip.header().destination())
        }
        NetSlice::Arp(_) => return None,
    };
    let sum = sum.ok()?;
    let at = tcp.slice().as_ptr() as usize - packet.as_ptr() as usize + CHECKSUM;
    let mut packet = packet.to_vec();
    packet
        .get_mut(at..at + 2)?
        .copy_from_slice(&sum.to_be_bytes());
    Some(packet)
}

#[cfg(test)]
mod tests {
    use etherparse::PacketBuilder;

    use super::*;

    #[test]
    fn a_checksum_is_made_right_and_nothing_else() {
        let step = PacketBuilder::ipv6([1; 16], [2; 16], 9)
            .tcp(1, 2, 3, 4)
            .syn();
        let mut right = Vec::new();
        step.write(&mut right, b"early").unwrap();
        let mut wrong = right.clone();
        wrong[40 + 16] ^= 0x55;
        assert_eq!(sound(&wrong).unwrap(), right);
        assert_eq!(sound(&right[..50]), None);
    }
}
