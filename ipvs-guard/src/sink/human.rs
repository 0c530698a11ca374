//! The form for people: aligned columns, colour where the terminal shows it,
//! and a summary at the end.

use std::fmt::{self, Display, Write as _};

use anstyle::{AnsiColor, Style};
use bytes::BytesMut;
use comfy_table::{CellAlignment, ColumnConstraint, Table, presets};
use ipvs_guard_common::state::{ConnState, Forwarding};

use super::Format;
use crate::{
    event::{Action, Class, Event},
    pipeline::{Summary, Watched},
    say::counted,
};

/// Names of the columns, each where its column is.
const HEADER: &str = "TIME (UTC)       EVENT          CLIENT                 \
                      SERVICE                 DESTINATION\n";

/// The human form.
#[derive(Debug)]
pub struct Human {
    colour: bool,
    many_namespaces: bool,
}

impl Human {
    /// `colour`: escape sequences are wanted. `many_namespaces`: events can
    /// come from several, so each line names its own.
    pub const fn new(colour: bool, many_namespaces: bool) -> Self {
        Self {
            colour,
            many_namespaces,
        }
    }

    fn style(&self, class: Class) -> Style {
        let style = Style::new();
        if !self.colour {
            return style;
        }
        match class {
            Class::StaleReuse => style.fg_color(Some(AnsiColor::Red.into())).bold(),
            Class::Loss => style.fg_color(Some(AnsiColor::Magenta.into())).bold(),
            Class::DrainStarted => style.fg_color(Some(AnsiColor::Yellow.into())),
            Class::DrainEnded | Class::Rescheduled => style.fg_color(Some(AnsiColor::Green.into())),
            Class::Trace => style.dimmed(),
        }
    }

    fn line(&self, event: &Event, out: &mut BytesMut) -> fmt::Result {
        let style = self.style(event.class);
        // The class is padded inside the colour, for escapes have no width.
        write!(
            out,
            "{}  {style}{:<13}{style:#}  ",
            event.time.strftime("%H:%M:%S%.6f"),
            event.class.short_name(),
        )?;
        match event.class {
            Class::Loss => write!(
                out,
                "{} lost at {}",
                counted(event.loss_count.unwrap_or(0), "event"),
                event.loss_stage.unwrap_or("?")
            )?,
            Class::DrainStarted | Class::DrainEnded => {
                write!(
                    out,
                    "{:<21}  {:<21} > {:<21}",
                    "",
                    Service(event).to_string(),
                    Real(event).to_string()
                )?;
                if let Some(weight) = event.weight {
                    write!(out, "  weight {weight}")?;
                } else {
                    write!(out, "  removed")?;
                }
            }
            Class::StaleReuse | Class::Rescheduled | Class::Trace => {
                write!(
                    out,
                    "{:<21}  {:<21} > {:<21}",
                    Client(event).to_string(),
                    Service(event).to_string(),
                    Real(event).to_string()
                )?;
                self.details(event, out)?;
            }
        }
        for (what, name) in [
            ("service", &event.service),
            ("namespace", &event.namespace),
            ("pod", &event.pod),
            ("node", &event.node),
        ] {
            if let Some(name) = name {
                write!(out, "  {what} {name}")?;
            }
        }
        if let (true, Some(netns)) = (self.many_namespaces, event.netns) {
            write!(out, "  netns {netns}")?;
        }
        out.write_char('\n')
    }

    fn details(&self, event: &Event, out: &mut BytesMut) -> fmt::Result {
        if event.action != Action::Observed {
            write!(out, "  {}", event.action.name())?;
        }
        if let Some(weight) = event.weight {
            write!(out, "  weight {weight}")?;
        }
        if let Some(state) = event.conn_state.map(ConnState::name) {
            write!(out, "  {state}")?;
        }
        if let Some(method) = event
            .forwarding
            .filter(|method| *method != Forwarding::Masq)
        {
            write!(out, "  {}", method.name())?;
        }
        if event.available == Some(false) {
            write!(out, "  removed")?;
        }
        if event.retransmission == Some(true) {
            write!(out, "  retransmission")?;
        }
        if let Some(trace) = &event.trace {
            write!(
                out,
                "  lookup {:?} {} ns, verdict {:?}, {} ns in all",
                trace.lookup, trace.lookup_ns, trace.verdict, trace.total_ns
            )?;
        }
        Ok(())
    }
}

impl Format for Human {
    fn header(&self) -> Option<&'static str> {
        Some(HEADER)
    }

    fn event(&mut self, event: &Event, out: &mut BytesMut) {
        let start = out.len();
        // Formatting into memory does not fail; a half line must not stay.
        if self.line(event, out).is_err() {
            out.truncate(start);
        }
    }

    fn summary(&mut self, summary: &Summary, out: &mut BytesMut) {
        let start = out.len();
        if write_summary(summary, out).is_err() {
            out.truncate(start);
        }
    }
}

fn write_summary(summary: &Summary, out: &mut BytesMut) -> fmt::Result {
    let time = match summary.watched {
        Watched::For(time) => format!("{:.1} s", time.as_secs_f64()),
        Watched::NoIpvs => return writeln!(out, "\nip_vs never came: nothing was watched."),
        // Why is said on standard error, or whoever ended it knows.
        Watched::NotReady => return Ok(()),
    };
    let filters = if summary.filtered {
        " within the filters given"
    } else {
        ""
    };
    writeln!(out)?;
    if !summary.stale_watched {
        writeln!(out, "Watched {time}; stale SYNs were not asked for.")?;
    } else if summary.rows.is_empty() {
        writeln!(out, "No stale SYN in {time}{filters}.")?;
    } else {
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        table.set_header([
            "SERVICE",
            "DESTINATION",
            "INCIDENTS",
            "RETRANSMITTED SYNS",
            "CLIENTS",
            "ACTED ON",
        ]);
        for row in &summary.rows {
            table.add_row([
                row.service.clone(),
                row.destination.clone(),
                row.incidents.to_string(),
                row.retransmissions.to_string(),
                if row.clients_capped {
                    format!("{}+", row.clients)
                } else {
                    row.clients.to_string()
                },
                row.acted.to_string(),
            ]);
        }
        let acted = summary.acted();
        if acted == 0
            && let Some(column) = table.column_mut(5)
        {
            column.set_constraint(ColumnConstraint::Hidden);
        }
        for column in 2..6 {
            if let Some(column) = table.column_mut(column) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        for line in table.lines() {
            writeln!(out, "{}", line.trim_end())?;
        }
        let incidents = counted(summary.incidents(), "stale SYN");
        if acted == 0 {
            writeln!(
                out,
                "{incidents}{filters} reused a port and went to a destination of weight 0 in {time}."
            )?;
        } else {
            writeln!(
                out,
                "{incidents}{filters} reused a port of a connection to a destination of weight 0 in \
                 {time}; {acted} of them were acted on."
            )?;
        }
        writeln!(
            out,
            "To stop them: net.ipv4.vs.conn_reuse_mode=1, and net.ipv4.vs.expire_nodest_conn=1 \
             beside it, have such SYNs scheduled anew (from 5.9 on without delay)."
        )?;
    }
    if summary.lost > 0 {
        writeln!(
            out,
            "{} lost, see the loss lines: the figures are a lower bound.",
            counted(summary.lost, "event")
        )?;
    }
    Ok(())
}

pub(super) struct Client<'a>(pub(super) &'a Event);
pub(super) struct Service<'a>(pub(super) &'a Event);
pub(super) struct Real<'a>(pub(super) &'a Event);

impl Display for Client<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        endpoint(f, self.0.client_address, self.0.client_port)
    }
}

impl Display for Service<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.fwmark {
            Some(mark) => write!(f, "fwmark {mark}"),
            None => endpoint(f, self.0.service_address, self.0.service_port),
        }
    }
}

impl Display for Real<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        endpoint(f, self.0.real_address, self.0.real_port)
    }
}

fn endpoint(
    f: &mut fmt::Formatter<'_>,
    address: Option<std::net::IpAddr>,
    port: Option<u16>,
) -> fmt::Result {
    match (address, port) {
        (Some(address), Some(port)) => std::net::SocketAddr::new(address, port).fmt(f),
        (Some(address), None) => address.fmt(f),
        (None, _) => f.write_str("-"),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::pipeline::SummaryRow;

    fn stale() -> Event {
        let time = "2026-11-21T01:02:03.000004Z".parse().unwrap();
        let mut e = Event::new(Class::StaleReuse, time, "h".into());
        e.client_address = Some("10.0.0.1".parse().unwrap());
        e.client_port = Some(40000);
        e.service_address = Some("10.96.0.10".parse().unwrap());
        e.service_port = Some(80);
        e.real_address = Some("10.244.1.7".parse().unwrap());
        e.real_port = Some(8080);
        e.weight = Some(0);
        e.conn_state = Some(ConnState::TimeWait);
        e
    }

    #[test]
    fn the_header_stands_above_its_columns() {
        let mut out = BytesMut::new();
        Human::new(false, false).event(&stale(), &mut out);
        let text = String::from_utf8(out.to_vec()).unwrap();
        let lines = [HEADER, text.trim_end()];
        assert!(lines[0].starts_with("TIME (UTC)"));
        assert_eq!(
            lines[1],
            "01:02:03.000004  stale_reuse    10.0.0.1:40000         10.96.0.10:80         > \
             10.244.1.7:8080        weight 0  TIME_WAIT"
        );
        assert_eq!(lines[0].find("CLIENT"), lines[1].find("10.0.0.1"));
        assert_eq!(lines[0].find("DESTINATION"), lines[1].find("10.244.1.7"));
    }

    #[test]
    fn colour_only_when_wanted() {
        let mut out = BytesMut::new();
        Human::new(true, false).event(&stale(), &mut out);
        assert!(out.contains(&0x1b));
    }

    fn told(summary: &Summary) -> String {
        let mut out = BytesMut::new();
        Human::new(false, false).summary(summary, &mut out);
        String::from_utf8(out.to_vec()).unwrap()
    }

    fn one_row() -> Summary {
        Summary {
            rows: vec![SummaryRow {
                service: "10.96.0.10:80".into(),
                destination: "10.244.1.7:8080".into(),
                incidents: 12,
                retransmissions: 3,
                acted: 0,
                clients: 2,
                clients_capped: false,
            }],
            lost: 1,
            stale_watched: true,
            filtered: false,
            watched: Watched::For(Duration::from_millis(1500)),
        }
    }

    #[test]
    fn the_summary_tells_what_to_do() {
        let text = told(&one_row());
        assert!(text.contains("12 stale SYNs reused a port"), "{text}");
        assert!(text.contains("conn_reuse_mode=1"));
        assert!(text.contains("\n1 event lost, see"));
    }

    #[test]
    fn one_incident_is_one_syn_and_filters_are_told() {
        let mut summary = one_row();
        summary.filtered = true;
        summary.rows[0].incidents = 1;
        let text = told(&summary);
        let line = "1 stale SYN within the filters given reused a port and went to a \
                    destination of weight 0 in 1.5 s.";
        assert!(text.contains(line), "{text}");
        summary.rows.clear();
        let text = told(&summary);
        assert!(text.contains("No stale SYN in 1.5 s within the filters given."));
    }

    #[test]
    fn what_was_not_watched_is_not_said_to_be_free_of_incidents() {
        let mut summary = Summary {
            stale_watched: true,
            watched: Watched::NoIpvs,
            ..Summary::default()
        };
        assert_eq!(told(&summary), "\nip_vs never came: nothing was watched.\n");
        summary.watched = Watched::NotReady;
        assert_eq!(told(&summary), "");
    }
}
