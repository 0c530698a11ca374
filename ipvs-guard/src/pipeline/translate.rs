//! From kernel records to events.

use std::sync::Arc;

use ipvs_guard_common::{
    addr::Endpoint,
    decode::Record,
    event::{DestRecord, FlowRecord, Header, SynRecord, TraceRecord},
    state::{ConnState, Forwarding},
};

use crate::{
    clock::Clock,
    event::{Class, Event, Lookup, NetworkType, TraceDetail, Transport, Verdict},
};

/// Knows what a record does not say: the time of day and the host.
pub(super) struct Translator {
    host: Arc<str>,
    clock: Clock,
    available_bit: u32,
}

impl Translator {
    pub(super) const fn new(host: Arc<str>, clock: Clock) -> Self {
        Self {
            host,
            clock,
            available_bit: 1,
        }
    }

    pub(super) const fn set_available_bit(&mut self, mask: u32) {
        self.available_bit = mask;
    }

    pub(super) const fn set_clock(&mut self, clock: Clock) {
        self.clock = clock;
    }

    /// The event that a record stands for; `None` for a change of a
    /// destination that begins or ends no drain.
    pub(super) fn event(&self, record: &Record) -> Option<Event> {
        match record {
            Record::Stale(syn) => Some(self.syn(Class::StaleReuse, syn)),
            Record::Rescheduled(syn) => Some(self.syn(Class::Rescheduled, syn)),
            Record::DestUpdate(change) => {
                let added = change.header.has(Header::ADDED);
                let class = match (change.weight_before, change.weight_after) {
                    (before, 0) if added || before != 0 => Class::DrainStarted,
                    (0, after) if !added && after != 0 => Class::DrainEnded,
                    _ => return None,
                };
                let mut event = self.dest(class, change);
                event.weight = Some(change.weight_after);
                Some(event)
            }
            Record::DestDelete(change) if change.weight_before == 0 => {
                Some(self.dest(Class::DrainEnded, change))
            }
            Record::DestDelete(_)
            | Record::Proof(_)
            | Record::ProofSkb(_)
            | Record::ProofFault(_)
            | Record::Met(_)
            | Record::Packet(_)
            | Record::Gone(_) => None,
            Record::Turned(turned) => Some(self.turned(turned)),
            Record::Trace(trace) => Some(self.trace(trace)),
        }
    }

    /// `count` events were lost at `stage` just now.
    pub(super) fn loss(&self, stage: &'static str, count: u64) -> Event {
        let mut event = Event::new(Class::Loss, Clock::now(), Arc::clone(&self.host));
        event.loss_stage = Some(stage);
        event.loss_count = Some(count);
        event
    }

    fn base(&self, class: Class, header: Header) -> Event {
        Event::new(class, self.clock.at(header.time), Arc::clone(&self.host))
    }

    fn syn(&self, class: Class, syn: &SynRecord) -> Event {
        let mut event = self.base(class, syn.header);
        client(&mut event, &syn.client);
        service(&mut event, &syn.vip);
        real(&mut event, &syn.dest);
        event.transport = Transport::from_number(u16::from(syn.protocol));
        event.seq = Some(syn.seq);
        event.retransmission = Some(syn.header.has(Header::RETRANSMISSION));
        event.conn_state = ConnState::from_raw(syn.state);
        event.weight = Some(syn.weight);
        event.available = Some(syn.dest_flags & self.available_bit != 0);
        event.forwarding = Forwarding::from_flags(syn.conn_flags);
        event.netns = Some(syn.netns);
        event
    }

    /// A SYN that IPVS never saw: all that is known is of its flow.
    fn turned(&self, turned: &FlowRecord) -> Event {
        let mut event = self.base(Class::StaleReuse, turned.header);
        client(&mut event, &turned.flow.client);
        service(&mut event, &turned.flow.vip);
        real(&mut event, &turned.dest);
        event.transport = Some(Transport::Tcp);
        event.seq = Some(turned.seq);
        event.retransmission = Some(turned.header.has(Header::RETRANSMISSION));
        event.conn_state = u16::try_from(turned.state)
            .ok()
            .and_then(ConnState::from_raw);
        event.weight = Some(0);
        // One that is removed takes its flows along.
        event.available = Some(true);
        event.forwarding = Forwarding::from_flags(turned.conn_flags);
        event.netns = Some(turned.netns);
        event
    }

    fn dest(&self, class: Class, change: &DestRecord) -> Event {
        let mut event = self.base(class, change.header);
        if change.fwmark == 0 {
            service(&mut event, &change.vip);
            event.transport = Transport::from_number(change.protocol);
        } else {
            event.fwmark = Some(change.fwmark);
            event.network_type = match u32::from(change.af) {
                ipvs_guard_common::addr::AF_INET6 => Some(NetworkType::Ipv6),
                _ => Some(NetworkType::Ipv4),
            };
        }
        real(&mut event, &change.dest);
        event.netns = Some(change.netns);
        event
    }

    fn trace(&self, trace: &TraceRecord) -> Event {
        let mut event = self.base(Class::Trace, trace.header);
        client(&mut event, &trace.client);
        service(&mut event, &trace.vip);
        event.transport = Some(Transport::Tcp);
        event.seq = Some(trace.seq);
        if trace.header.has(Header::COMMITTED) {
            real(&mut event, &trace.dest);
            event.conn_state = ConnState::from_raw(trace.state);
            event.weight = Some(trace.weight);
            event.available = Some(trace.dest_flags & self.available_bit != 0);
            event.forwarding = Forwarding::from_flags(trace.conn_flags);
        }
        if trace.netns != 0 {
            event.netns = Some(trace.netns);
        }
        event.trace = Some(TraceDetail {
            lookup: if trace.header.has(Header::LOOKUP_HIT) {
                Lookup::Hit
            } else {
                Lookup::Miss
            },
            verdict: Verdict::from_number(trace.verdict),
            lookup_ns: trace.lookup_ns,
            total_ns: trace.total_ns,
        });
        event
    }
}

fn client(event: &mut Event, endpoint: &Endpoint) {
    event.client_address = Some(endpoint.addr().ip());
    event.client_port = Some(endpoint.port());
}

fn service(event: &mut Event, endpoint: &Endpoint) {
    let ip = endpoint.addr().ip();
    event.service_address = Some(ip);
    event.service_port = Some(endpoint.port());
    event.network_type = Some(ip.into());
}

fn real(event: &mut Event, endpoint: &Endpoint) {
    event.real_address = Some(endpoint.addr().ip());
    event.real_port = Some(endpoint.port());
}

#[cfg(test)]
mod tests {
    use ipvs_guard_common::event::Kind;

    use super::*;

    fn translator() -> Translator {
        Translator::new("h".into(), Clock::read().unwrap())
    }

    fn update(before: i32, after: i32, flags: u32) -> Option<Class> {
        let record = Record::DestUpdate(DestRecord {
            header: Header::new(Kind::DestUpdate, flags, 1),
            weight_before: before,
            weight_after: after,
            ..DestRecord::default()
        });
        translator().event(&record).map(|event| event.class)
    }

    #[test]
    fn drains_begin_and_end_with_the_weight() {
        assert_eq!(update(1, 0, 0), Some(Class::DrainStarted));
        assert_eq!(update(0, 0, 0), None);
        assert_eq!(update(0, 5, 0), Some(Class::DrainEnded));
        assert_eq!(update(3, 5, 0), None);
        assert_eq!(update(0, 0, Header::ADDED), Some(Class::DrainStarted));
        assert_eq!(update(0, 1, Header::ADDED), None);
    }

    #[test]
    fn removal_ends_a_drain_and_nothing_else() {
        let delete = |weight_before| {
            let record = Record::DestDelete(DestRecord {
                header: Header::new(Kind::DestDelete, 0, 1),
                weight_before,
                ..DestRecord::default()
            });
            translator().event(&record).map(|event| event.class)
        };
        assert_eq!(delete(0), Some(Class::DrainEnded));
        assert_eq!(delete(1), None);
    }

    #[test]
    fn the_available_bit_is_the_kernels() {
        let mut translator = translator();
        translator.set_available_bit(4);
        let record = |dest_flags| {
            Record::Stale(SynRecord {
                header: Header::new(Kind::Stale, 0, 1),
                dest_flags,
                ..SynRecord::default()
            })
        };
        let available = |flags| translator.event(&record(flags)).and_then(|e| e.available);
        assert_eq!(available(4), Some(true));
        assert_eq!(available(3), Some(false));
    }
}
