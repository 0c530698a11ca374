//! A SYN that was on its way to a destination of weight 0: held back, until its
//! entry leads to a living one, and then sent on as if it came in just now.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap, VecDeque},
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use ipvs_guard_common::{
    event::{GoneRecord, Header, PacketRecord, SynRecord, VerdictRecord},
    guard::{CONN_TRACKED, VerdictKey},
    state::{ConnState, Forwarding},
};

use super::{
    channel::{Channel, ChannelError},
    message::{Entry, TCP},
    targets::{Choice, Targets},
};
use crate::{
    enforce::plan::address,
    netlink::route::{Device, LinkLayer, RouteSocket},
    rawip::RawSocket,
    say::say,
};

/// How long a SYN may take from the probe to the device, also where the processor is
/// taken away in between. After that it waits for a neighbour's address, or has nowhere
/// to go.
const TO_DEVICE: Duration = Duration::from_millis(20);
/// How long the kernel may take to re-point an entry. The client repeats its SYN after
/// one second and after three.
const TO_REPLACE: Duration = Duration::from_millis(2_500);
/// How often it is looked whether the daemon is past the message: its entry can have
/// been re-pointed by another one, or the message be lost.
const TO_LOOK: Duration = Duration::from_millis(200);
/// How soon a SYN that was sent on for such a reason is here again if it was in vain.
const TO_RETURN: Duration = Duration::from_millis(100);
/// How often that is tried.
const TRIES: u32 = 3;
/// How long after its record the packet of a SYN may come: other processors' records
/// can be in between, and a virtual processor can be taken away in between.
const TO_PACKET: Duration = Duration::from_millis(500);
/// How long a SYN waits for the conntrack of the entry before its own: the kernel's timer
/// that ends both is due at once. If it is not gone then, the SYN is held once more.
const TO_PART: Duration = Duration::from_millis(10);
/// The same where the SYN was held before its entry was re-pointed: an entry that was in
/// use then keeps its conntrack for a minute, which nobody can wait for.
const TO_UNTRACK: Duration = Duration::from_millis(50);
/// SYNs that are held back at once, at most.
const MOST: usize = 16_384;
/// Entries that are told of at once: less than a message has room for, so that the first
/// need not wait for the last.
const TOGETHER: usize = 38;
/// Life of a new entry until its SYN comes, in seconds.
const LIFE: u32 = 5;

/// How a SYN that was held back ends.
pub(in crate::enforce) enum Ending {
    /// It was sent on to a living destination.
    Healed,
    /// It cannot: it is to be answered with a reset.
    Refused,
    /// Its packet was lost: the client's next SYN is held in its place.
    Lost,
    /// It left by a device that is not watched, or waits to.
    Unseen,
}

/// Why a SYN was not sent on.
enum NotSent {
    /// The agent was held up.
    Late,
    /// What the kernel says to it.
    Refused(String),
}

/// SYNs that are held back.
pub(in crate::enforce) struct Rescues {
    channel: Channel,
    targets: Arc<Mutex<Targets>>,
    /// Since the last message that was worked through.
    thrown_away: Vec<u64>,
    /// Those that may be.
    ready: VecDeque<u64>,
    routes: RouteSocket,
    raw: HashMap<bool, RawSocket>,
    /// Whether a SYN that did not come to a device has surely not left.
    covers_all: bool,
    /// Records whose packet is to come.
    awaiting: VecDeque<(SynRecord, Instant)>,
    /// Those that were given up.
    lost: VecDeque<SynRecord>,
    /// When the daemon was asked last how far it is.
    asked: Option<Instant>,
    /// Entries that are to be told of, all at once.
    outbox: Vec<(u64, Entry)>,
    /// Those that cannot be told of.
    refused: VecDeque<u64>,
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
    entry: OldEntry,
    /// Where it is sent: told once more, its entry must not be moved once more.
    choice: Option<Choice>,
    tries: u32,
    /// How far the daemon was when it was looked at last.
    heard: u32,
    serial: u32,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// It is on its way to a device.
    Leaving,
    /// It goes nowhere, and its entry is being re-pointed.
    Waiting {
        /// Since when the kernel is told of it.
        since: Instant,
        /// By which message; `None`: by one that was under way, or will be.
        message: Option<u32>,
    },
    /// Its entry is the new one; the conntrack of the old one goes.
    Parting,
    /// It was sent on although it is not known what became of its entry.
    Tried,
}

/// What became of the entry that led to the draining destination.
#[derive(Clone, Copy, Default)]
struct OldEntry {
    thrown_away: bool,
    /// The message that did it is worked through: another entry is in its place.
    replaced: bool,
    /// Its conntrack went, too.
    untracked: bool,
}

impl Rescue {
    /// Whether its entry leads to another destination for sure.
    const fn has_new_entry(&self) -> bool {
        let tracked = self.syn.conn_flags & CONN_TRACKED != 0;
        self.entry.replaced && (self.entry.untracked || !tracked)
    }
}

impl Rescues {
    pub(in crate::enforce) fn new(
        channel: Channel,
        targets: Arc<Mutex<Targets>>,
        routes: RouteSocket,
    ) -> Self {
        Self {
            channel,
            targets,
            thrown_away: Vec::new(),
            ready: VecDeque::new(),
            routes,
            raw: HashMap::new(),
            covers_all: false,
            awaiting: VecDeque::new(),
            lost: VecDeque::new(),
            asked: None,
            outbox: Vec::new(),
            refused: VecDeque::new(),
            held: HashMap::new(),
            places: HashMap::new(),
            due: BinaryHeap::new(),
            serial: 0,
            complained: None,
            devices: Vec::new(),
            listed: None,
        }
    }

    /// Whether every device by which a SYN could leave is watched.
    pub(in crate::enforce) const fn set_covers_all(&mut self, covers_all: bool) {
        self.covers_all = covers_all;
    }

    /// The agent was held up: SYNs have passed since, and what is held may be the one
    /// before that of a living connection. Nothing is told or sent on.
    pub(in crate::enforce) fn give_up(&mut self) {
        let awaiting = self.awaiting.drain(..).map(|(syn, _)| syn);
        let held = self.held.drain().map(|(_, rescue)| rescue.syn);
        self.lost.extend(awaiting.chain(held));
        self.places.clear();
        self.outbox.clear();
        self.refused.clear();
        self.ready.clear();
        self.thrown_away.clear();
        self.due.clear();
    }

    /// A SYN was held back; its packet follows. Gives back one whose packet was lost.
    pub(in crate::enforce) fn held(&mut self, syn: SynRecord) -> Option<SynRecord> {
        self.awaiting.push_back((syn, Instant::now()));
        if self.awaiting.len() > MOST {
            self.awaiting.pop_front().map(|(lost, _)| lost)
        } else {
            None
        }
    }

    /// The packet of that SYN. Gives back what cannot be held any longer.
    pub(in crate::enforce) fn packet(
        &mut self,
        record: &PacketRecord,
        place: impl Fn(&SynRecord) -> VerdictKey,
    ) -> Option<(SynRecord, Ending)> {
        let client = record.packet().and_then(client);
        let mine = |syn: &SynRecord| {
            syn.seq == record.seq && client.is_none_or(|client| client == address(&syn.client))
        };
        let at = self.awaiting.iter().rposition(|(syn, _)| mine(syn))?;
        let (syn, _) = self.awaiting.remove(at)?;
        if let Some(first) = self.held.get_mut(&record.conn) {
            // The same SYN once more, or the next one: the first is on its way.
            if first.stage == Stage::Tried {
                first.stage = Stage::Leaving;
                self.wake(record.conn, TO_DEVICE);
            }
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
            entry: OldEntry::default(),
            choice: None,
            tries: 0,
            heard: 0,
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
        self.left(conn)
    }

    /// An entry was thrown away, or a message is worked through.
    pub(in crate::enforce) fn gone(&mut self, gone: &GoneRecord) {
        if gone.header.has(Header::HEARD) {
            let mut waiting = Vec::new();
            for conn in self.thrown_away.drain(..) {
                if let Some(rescue) = self.held.get_mut(&conn) {
                    rescue.entry.replaced = true;
                    if rescue.has_new_entry() {
                        self.ready.push_back(conn);
                    } else if matches!(rescue.stage, Stage::Waiting { .. }) {
                        waiting.push(conn);
                    }
                }
            }
            for conn in waiting {
                self.wake(conn, TO_UNTRACK);
            }
            return;
        }
        let Some(rescue) = self.held.get_mut(&gone.conn) else {
            return;
        };
        if gone.header.has(Header::UNTRACKED) {
            rescue.entry.untracked = true;
            self.ready.push_back(gone.conn);
        } else if !rescue.entry.thrown_away {
            rescue.entry.thrown_away = true;
            self.thrown_away.push(gone.conn);
        }
    }

    /// Tells of what came together.
    fn flush(&mut self) {
        while !self.outbox.is_empty() {
            let count = self.outbox.len().min(TOGETHER);
            let (conns, entries): (Vec<u64>, Vec<Entry>) = self.outbox.drain(..count).unzip();
            match self.channel.replace(&entries) {
                Ok(last) => {
                    for conn in &conns {
                        if let Some(rescue) = self.held.get_mut(conn)
                            && let Stage::Waiting { message, .. } = &mut rescue.stage
                        {
                            *message = Some(last);
                        }
                    }
                }
                Err(ChannelError::Late) => {
                    for conn in conns {
                        let late = self.end(conn, Ending::Lost);
                        self.lost.extend(late.map(|(syn, _)| syn));
                    }
                }
                Err(error) => {
                    self.complain(&error.to_string());
                    self.refused.extend(conns);
                }
            }
        }
    }

    /// One that can be sent on, or cannot be held any longer.
    pub(in crate::enforce) fn ready(&mut self) -> Option<(SynRecord, Ending)> {
        self.flush();
        while let Some(conn) = self.refused.pop_front() {
            let ended = self.end(conn, Ending::Refused);
            if ended.is_some() {
                return ended;
            }
        }
        while let Some(conn) = self.ready.pop_front() {
            let ready = self.held.get(&conn).is_some_and(|rescue| {
                matches!(rescue.stage, Stage::Waiting { .. }) && rescue.has_new_entry()
            });
            if ready {
                return self.finish(conn);
            }
        }
        None
    }

    /// When the next one is due.
    pub(in crate::enforce) fn next_due(&mut self) -> Option<Instant> {
        if !(self.ready.is_empty() && self.outbox.is_empty() && self.lost.is_empty()) {
            return Some(Instant::now());
        }
        self.next_timer().into_iter().chain(self.next_lost()).min()
    }

    fn next_lost(&self) -> Option<Instant> {
        self.awaiting.front().map(|(_, since)| *since + TO_PACKET)
    }

    fn next_timer(&mut self) -> Option<Instant> {
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
        if let Some(syn) = self.lost.pop_front() {
            return Some((syn, Ending::Lost));
        }
        if self.next_lost().is_some_and(|due| due <= now) {
            return self
                .awaiting
                .pop_front()
                .map(|(syn, _)| (syn, Ending::Lost));
        }
        while self.next_timer()? <= now {
            let Reverse((_, conn, _)) = self.due.pop()?;
            let Some(rescue) = self.held.get(&conn) else {
                continue;
            };
            let ended = match rescue.stage {
                Stage::Leaving if self.would_be_met(&rescue.syn) => self.left(conn),
                // It may have left, and be answered.
                Stage::Leaving => self.end(conn, Ending::Unseen),
                Stage::Waiting { since, message } => self.look(conn, since, message),
                Stage::Parting => self.finish(conn),
                Stage::Tried => self.end(conn, Ending::Healed),
            };
            if ended.is_some() {
                return ended;
            }
        }
        None
    }

    /// Whether a SYN that leaves is met, so that one which is not met has not left.
    fn would_be_met(&self, syn: &SynRecord) -> bool {
        let tunnelled = Forwarding::from_flags(syn.conn_flags) == Some(Forwarding::Tun);
        let is_opaque = || {
            let targets = self.targets.lock().unwrap_or_else(PoisonError::into_inner);
            targets.is_opaque(address(&syn.vip), address(&syn.dest))
        };
        self.covers_all && !(tunnelled && is_opaque())
    }

    /// Any that is left: the agent ends, and the client repeats its SYN by itself.
    pub(in crate::enforce) fn drain(&mut self) -> Option<SynRecord> {
        if let Some(syn) = self.lost.pop_front() {
            return Some(syn);
        }
        if let Some((syn, _)) = self.awaiting.pop_front() {
            return Some(syn);
        }
        let conn = *self.held.keys().next()?;
        self.end(conn, Ending::Refused).map(|(syn, _)| syn)
    }

    /// The SYN goes nowhere any more.
    fn left(&mut self, conn: u64) -> Option<(SynRecord, Ending)> {
        let rescue = self.held.get_mut(&conn)?;
        if rescue.syn.header.has(Header::PARTING) {
            rescue.stage = Stage::Parting;
            self.wake(conn, TO_PART);
            return None;
        }
        if rescue.tries == 0 && rescue.entry.thrown_away {
            // A message of the pass over the table came first.
            if rescue.has_new_entry() {
                return self.finish(conn);
            }
            rescue.stage = Stage::Waiting {
                since: Instant::now(),
                message: None,
            };
            let wait = if rescue.entry.replaced {
                TO_UNTRACK
            } else {
                TO_LOOK
            };
            self.wake(conn, wait);
            return None;
        }
        self.tell(conn)
    }

    /// Has the entry re-pointed.
    fn tell(&mut self, conn: u64) -> Option<(SynRecord, Ending)> {
        let rescue = self.held.get_mut(&conn)?;
        let (client, service) = (address(&rescue.syn.client), address(&rescue.syn.vip));
        let from = address(&rescue.syn.dest);
        let choose = || {
            let targets = self.targets.lock().unwrap_or_else(PoisonError::into_inner);
            targets.choose(client, service, from).ok()
        };
        rescue.choice = rescue.choice.or_else(choose);
        let Some(choice) = rescue.choice else {
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
            client,
            service,
            destination: choice.destination,
            fwmark: choice.fwmark,
            timeout: LIFE,
        };
        let since = match rescue.stage {
            Stage::Waiting { since, .. } => since,
            Stage::Leaving | Stage::Parting | Stage::Tried => Instant::now(),
        };
        rescue.stage = Stage::Waiting {
            since,
            message: None,
        };
        rescue.heard = self.channel.heard();
        self.outbox.push((conn, entry));
        self.wake(conn, TO_LOOK);
        None
    }

    /// The entry is not known to be re-pointed after a while.
    fn look(
        &mut self,
        conn: u64,
        since: Instant,
        message: Option<u32>,
    ) -> Option<(SynRecord, Ending)> {
        let heard = self.channel.heard();
        let rescue = self.held.get_mut(&conn)?;
        if message.is_some_and(|message| heard < message) {
            let moved = std::mem::replace(&mut rescue.heard, heard) != heard;
            if since.elapsed() < TO_REPLACE {
                if !moved {
                    self.ask();
                }
                self.wake(conn, TO_LOOK);
                return None;
            }
            if !moved {
                self.complain(&self.channel.deaf().to_string());
            }
            return self.end(conn, Ending::Refused);
        }
        rescue.tries += 1;
        if rescue.tries > TRIES {
            self.complain("an entry stays as it is whatever the backup daemon is told");
            return self.end(conn, Ending::Refused);
        }
        // If it was re-pointed, well; otherwise it is held back once more.
        rescue.stage = Stage::Tried;
        rescue.entry = OldEntry::default();
        let (came_by, syn, packet) = (rescue.came_by, rescue.syn, rescue.packet.clone());
        self.wake(conn, TO_RETURN);
        match self.send_on(came_by, syn, packet) {
            Ok(()) => None,
            Err(error) => self.not_sent(conn, &error),
        }
    }

    /// The daemon has no time, or what it was told last was lost: a message that re-points
    /// nothing tells which. The same once more could come behind the SYN, and would take
    /// its entry back to SYN_RECV.
    fn ask(&mut self) {
        if self.asked.is_some_and(|at| at.elapsed() < TO_LOOK) {
            return;
        }
        self.asked = Some(Instant::now());
        if let Err(error) = self.channel.ask() {
            self.complain(&error.to_string());
        }
    }

    /// Sends the SYN on.
    fn finish(&mut self, conn: u64) -> Option<(SynRecord, Ending)> {
        let rescue = self.held.get(&conn)?;
        match self.send_on(rescue.came_by, rescue.syn, rescue.packet.clone()) {
            Ok(()) => self.end(conn, Ending::Healed),
            Err(error) => self.not_sent(conn, &error),
        }
    }

    fn not_sent(&mut self, conn: u64, error: &NotSent) -> Option<(SynRecord, Ending)> {
        match error {
            NotSent::Late => self.end(conn, Ending::Lost),
            NotSent::Refused(reason) => {
                self.complain(reason);
                self.end(conn, Ending::Refused)
            }
        }
    }

    fn send_on(
        &mut self,
        came_by: Option<u32>,
        syn: SynRecord,
        packet: Vec<u8>,
    ) -> Result<(), NotSent> {
        let client = syn.client.addr().ip();
        let index = match came_by {
            Some(index) => index,
            None => self
                .routes
                .device_towards(client)
                .map_err(|error| NotSent::Refused(error.to_string()))?,
        };
        let device = self.device(index).map_err(NotSent::Refused)?;
        let Some(device) = device.filter(|device| device.link_layer != LinkLayer::Loopback) else {
            let sent = self.send_from_here(syn.vip.addr().ip(), &packet);
            return sent.map_err(NotSent::Refused);
        };
        self.channel
            .put_in(device.index, device.mac, &packet)
            .map_err(|error| {
                if matches!(error, ChannelError::Late) {
                    NotSent::Late
                } else {
                    NotSent::Refused(error.to_string())
                }
            })
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

/// Who sent a packet.
fn client(packet: &[u8]) -> Option<SocketAddr> {
    let sliced = SlicedPacket::from_ip(packet).ok()?;
    let Some(TransportSlice::Tcp(tcp)) = sliced.transport else {
        return None;
    };
    let ip: IpAddr = match sliced.net? {
        NetSlice::Ipv4(ip) => ip.header().source_addr().into(),
        NetSlice::Ipv6(ip) => ip.header().source_addr().into(),
        NetSlice::Arp(_) => return None,
    };
    Some(SocketAddr::new(ip, tcp.source_port()))
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
