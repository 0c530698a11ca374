//! How urgent an event is, in the words of syslog.

use crate::event::{Action, Class, Event};

/// Severity of RFC 5424, those that events have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Something that was to be done did not come off.
    Error = 3,
    /// A client was hit, or events were lost.
    Warning = 4,
    /// Normal, and worth knowing.
    Notice = 5,
    /// As it should be.
    Informational = 6,
    /// For whoever looks closely.
    Debug = 7,
}

impl Severity {
    /// Its number in syslog and journald: the lower, the more urgent.
    pub const fn number(self) -> u8 {
        self as u8
    }

    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warning => "warning",
            Self::Notice => "notice",
            Self::Informational => "info",
            Self::Debug => "debug",
        }
    }
}

/// How urgent `event` is.
pub const fn severity(event: &Event) -> Severity {
    match (event.class, event.action) {
        (_, Action::Failed) => Severity::Error,
        // The client's connection goes where it should.
        (Class::StaleReuse, Action::Healed) => Severity::Notice,
        (Class::StaleReuse | Class::Loss, _) => Severity::Warning,
        (Class::DrainStarted | Class::DrainEnded, _) => Severity::Notice,
        (Class::Rescheduled, _) => Severity::Informational,
        (Class::Trace, _) => Severity::Debug,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_hurts_a_client_is_more_urgent_than_what_does_not() {
        let time = "2026-11-21T00:00:00Z".parse().unwrap();
        let of = |class, action| {
            let mut event = Event::new(class, time, "h".into());
            event.action = action;
            severity(&event)
        };
        let observed = of(Class::StaleReuse, Action::Observed);
        assert_eq!((observed.number(), observed.name()), (4, "warning"));
        assert_eq!(of(Class::StaleReuse, Action::Reset), observed);
        assert_eq!(of(Class::StaleReuse, Action::WouldHeal), observed);
        assert_eq!(of(Class::Loss, Action::Observed), observed);
        assert!(of(Class::StaleReuse, Action::Failed) < observed);
        assert!(of(Class::StaleReuse, Action::Healed) > observed);
        assert_eq!(of(Class::DrainEnded, Action::Observed).number(), 5);
        assert_eq!(of(Class::Rescheduled, Action::Observed).number(), 6);
        assert_eq!(of(Class::Trace, Action::Observed).number(), 7);
    }
}
