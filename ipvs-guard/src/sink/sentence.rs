//! An event in one line of text, for people who read a journal.

use std::fmt::{self, Display};

use ipvs_guard_common::state::ConnState;

use super::human::{Client, Real, Service};
use crate::{
    event::{Action, Class, Event},
    say::counted,
};

/// Shows an event as a sentence.
pub(super) struct Sentence<'a>(pub(super) &'a Event);

impl Display for Sentence<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let event = self.0;
        let (client, service, real) = (Client(event), Service(event), Real(event));
        match event.class {
            Class::StaleReuse => {
                write!(f, "stale SYN from {client} to {service}, entry of {real}")?;
                if let Some(state) = event.conn_state.map(ConnState::name) {
                    write!(f, " in {state}")?;
                }
                if event.action != Action::Observed {
                    write!(f, ": {}", event.action.name().replace('_', " "))?;
                }
                if event.retransmission == Some(true) {
                    write!(f, " (retransmission)")?;
                }
                Ok(())
            }
            Class::Rescheduled => {
                write!(
                    f,
                    "SYN from {client} to {service} scheduled anew, to {real}"
                )
            }
            Class::DrainStarted => write!(f, "drain of {real} of {service} started"),
            Class::DrainEnded if event.weight.is_none() => {
                write!(f, "drain of {real} of {service} ended: removed")
            }
            Class::DrainEnded => write!(f, "drain of {real} of {service} ended"),
            Class::Loss => write!(
                f,
                "{} lost at {}",
                counted(event.loss_count.unwrap_or(0), "event"),
                event.loss_stage.unwrap_or("an unknown place")
            ),
            Class::Trace => {
                write!(f, "SYN from {client} to {service}")?;
                if event.real_address.is_some() {
                    write!(f, ", to {real}")?;
                }
                if let Some(trace) = &event.trace {
                    write!(
                        f,
                        ": lookup {:?}, verdict {:?}, {} ns",
                        trace.lookup, trace.verdict, trace.total_ns
                    )?;
                }
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_person_reads_what_happened() {
        let time = "2026-11-21T00:00:00Z".parse().unwrap();
        let mut event = Event::new(Class::StaleReuse, time, "h".into());
        event.client_address = Some("2001:db8::2".parse().unwrap());
        event.client_port = Some(61_001);
        event.service_address = Some("2001:db8::1".parse().unwrap());
        event.service_port = Some(80);
        event.real_address = Some("192.0.2.7".parse().unwrap());
        event.real_port = Some(8080);
        event.conn_state = Some(ConnState::TimeWait);
        event.action = Action::WouldReset;
        event.retransmission = Some(true);
        assert_eq!(
            Sentence(&event).to_string(),
            "stale SYN from [2001:db8::2]:61001 to [2001:db8::1]:80, entry of 192.0.2.7:8080 in \
             TIME_WAIT: would reset (retransmission)"
        );
        event.class = Class::DrainEnded;
        assert_eq!(
            Sentence(&event).to_string(),
            "drain of 192.0.2.7:8080 of [2001:db8::1]:80 ended: removed"
        );
        let mut loss = Event::new(Class::Loss, time, "h".into());
        loss.loss_count = Some(1);
        loss.loss_stage = Some("ring");
        assert_eq!(Sentence(&loss).to_string(), "1 event lost at ring");
    }
}
