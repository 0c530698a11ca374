//! The text of a scrape, in both forms.

use std::{collections::BTreeMap, fmt, sync::Arc};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric, text},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge, info::Info},
    registry::Registry,
};

use super::{
    Metrics,
    counts::Count,
    draining::{Reading, Row},
    negotiation::Form,
};
use crate::enforce::Healed;

const PREFIX: &str = "ipvs_guard";
/// Every metric there can be, as a sample names it.
pub const NAMES: [&str; 7] = [
    "ipvs_guard_build_info",
    "ipvs_guard_events_total",
    "ipvs_guard_lost_events_total",
    "ipvs_guard_healed_entries_total",
    "ipvs_guard_enforced_flows",
    "ipvs_guard_draining_connections",
    "ipvs_guard_probe_attached",
];

/// Everything as it is at one moment, so that nobody waits for its text.
#[derive(Debug)]
pub(super) struct Snapshot {
    events: Vec<([String; 2], Count)>,
    lost: BTreeMap<&'static str, u64>,
    probes: BTreeMap<&'static str, bool>,
    flows: Option<u64>,
    healed: Healed,
    draining: Option<Arc<Reading>>,
}

impl Snapshot {
    pub(super) fn take(metrics: &Metrics, draining: Option<Arc<Reading>>) -> Self {
        let enforced = metrics.enforced.as_ref();
        Self {
            events: metrics.counts.all(),
            lost: metrics.counts.lost(),
            probes: metrics.health.probes(),
            // Where nothing is enforced there is none.
            flows: enforced.map_or(Some(0), |tally| tally.flows()),
            healed: enforced
                .and_then(|tally| tally.healed())
                .unwrap_or_default(),
            draining,
        }
    }

    pub(super) fn encode(self, form: Form) -> Result<String, fmt::Error> {
        let mut registry = Registry::with_prefix(PREFIX);
        registry.register_collector(Box::new(self));
        let mut out = String::new();
        text::encode(&mut out, &registry)?;
        Ok(match form {
            Form::OpenMetrics => out,
            Form::Classic => classic(&out),
        })
    }
}

impl Collector for Snapshot {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        let Self {
            events,
            lost,
            probes,
            flows,
            healed,
            draining,
        } = self;
        let out = &mut encoder;
        Info::new([("version", env!("CARGO_PKG_VERSION"))]).encode(out.encode_descriptor(
            "build",
            "The running ipvs-guard.",
            None,
            MetricType::Info,
        )?)?;
        counters(
            out,
            "events",
            "Events by what happened and what was done. A retransmission is the same incident.",
            events.iter().map(|([service, destination], count)| {
                let labels = [
                    ("class", count.class.short_name()),
                    ("action", count.action.name()),
                    ("service", service.as_str()),
                    ("destination", destination.as_str()),
                ];
                (labels, count.events)
            }),
        )?;
        counters(
            out,
            "lost_events",
            "Events that were lost, by where.",
            lost.iter()
                .map(|(stage, total)| ([("stage", *stage)], *total)),
        )?;
        counters(
            out,
            "healed_entries",
            "Connection entries of draining destinations, by what became of healing them.",
            healed
                .results()
                .into_iter()
                .map(|(result, total)| ([("result", result)], total)),
        )?;
        if let Some(flows) = flows {
            ConstGauge::new(*flows).encode(out.encode_descriptor(
                "enforced_flows",
                "Stale flows that are turned away before IPVS.",
                None,
                MetricType::Gauge,
            )?)?;
        }
        gauges(
            out,
            "draining_connections",
            "Entries of the connection table that lead to a destination of weight 0, by state.",
            draining.iter().flat_map(|reading| &reading.rows).map(
                |Row {
                     pair: [service, destination],
                     state,
                     connections,
                 }| {
                    let labels = [
                        ("service", service.as_str()),
                        ("destination", destination.as_str()),
                        ("state", *state),
                    ];
                    (labels, *connections)
                },
            ),
        )?;
        gauges(
            out,
            "probe_attached",
            "Whether a probe that is needed is attached.",
            probes
                .iter()
                .map(|(probe, attached)| ([("probe", *probe)], u64::from(*attached))),
        )
    }
}

/// A family of counters; nothing at all when it has none.
fn counters<L: EncodeLabelSet>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    rows: impl Iterator<Item = (L, u64)>,
) -> fmt::Result {
    let rows = rows.map(|(labels, value)| (labels, ConstCounter::new(value)));
    family(encoder, name, help, MetricType::Counter, rows)
}

fn gauges<L: EncodeLabelSet>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    rows: impl Iterator<Item = (L, u64)>,
) -> fmt::Result {
    let rows = rows.map(|(labels, value)| (labels, ConstGauge::new(value)));
    family(encoder, name, help, MetricType::Gauge, rows)
}

fn family<L: EncodeLabelSet, M: EncodeMetric>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    kind: MetricType,
    rows: impl Iterator<Item = (L, M)>,
) -> fmt::Result {
    let mut rows = rows.peekable();
    if rows.peek().is_none() {
        return Ok(());
    }
    let mut family = encoder.encode_descriptor(name, help, None, kind)?;
    for (labels, metric) in rows {
        metric.encode(family.encode_family(&labels)?)?;
    }
    Ok(())
}

/// OpenMetrics text in Prometheus' own form: its samples are the same, but a family is
/// called like its samples, an info is a gauge, and there is no end mark.
fn classic(open_metrics: &str) -> String {
    let mut out = String::with_capacity(open_metrics.len());
    let mut help = None;
    for line in open_metrics.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            // Comes before the type, which says how the family is called.
            help = rest.split_once(' ');
        } else if let Some((name, kind)) = line
            .strip_prefix("# TYPE ")
            .and_then(|rest| rest.split_once(' '))
        {
            let (suffix, kind) = match kind {
                "counter" => ("_total", "counter"),
                "info" => ("_info", "gauge"),
                "unknown" => ("", "untyped"),
                other => ("", other),
            };
            if let Some((_, text)) = help.take().filter(|(of, _)| *of == name) {
                out.extend(["# HELP ", name, suffix, " ", text, "\n"]);
            }
            out.extend(["# TYPE ", name, suffix, " ", kind, "\n"]);
        } else if !line.starts_with('#') {
            out.extend([line, "\n"]);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        clock::Clock,
        enforce::Tally,
        event::{Action, Class, Event},
    };

    fn metrics(enforced: Option<Arc<Tally>>) -> Arc<Metrics> {
        let metrics = Arc::new(Metrics::new(enforced));
        metrics.health.need(["commit"].into_iter());
        let mut event = Event::new(Class::StaleReuse, Clock::now(), "h".into());
        event.service_address = Some("fd00::1".parse().unwrap());
        event.service_port = Some(80);
        event.real_address = Some("10.0.0.2".parse().unwrap());
        event.real_port = Some(8080);
        metrics.counts.count(&event);
        metrics.counts.set_lost("ring", 3);
        metrics
    }

    #[test]
    fn both_forms_have_the_same_samples() {
        let metrics = metrics(None);
        let samples = |form| -> Vec<String> {
            let text = metrics.text(form).unwrap();
            let samples = text.lines().filter(|line| !line.starts_with('#'));
            samples.map(str::to_owned).collect()
        };
        let expected = [
            format!(
                "ipvs_guard_build_info{{version=\"{}\"}} 1",
                env!("CARGO_PKG_VERSION")
            ),
            "ipvs_guard_events_total{class=\"stale_reuse\",action=\"observed\",\
             service=\"[fd00::1]:80\",destination=\"10.0.0.2:8080\"} 1"
                .to_owned(),
            "ipvs_guard_lost_events_total{stage=\"ring\"} 3".to_owned(),
            "ipvs_guard_healed_entries_total{result=\"healed\"} 0".to_owned(),
            "ipvs_guard_healed_entries_total{result=\"failed\"} 0".to_owned(),
            "ipvs_guard_healed_entries_total{result=\"template_ended\"} 0".to_owned(),
            "ipvs_guard_enforced_flows 0".to_owned(),
            "ipvs_guard_probe_attached{probe=\"commit\"} 0".to_owned(),
        ];
        assert_eq!(samples(Form::OpenMetrics), expected);
        assert_eq!(samples(Form::Classic), expected);
    }

    #[test]
    fn each_form_names_its_families_by_its_own_rule() {
        let metrics = metrics(None);
        let text = metrics.text(Form::OpenMetrics).unwrap();
        assert!(
            text.contains("# TYPE ipvs_guard_events counter\n"),
            "{text}"
        );
        assert!(text.contains("# TYPE ipvs_guard_build info\n"), "{text}");
        assert!(text.ends_with("\n# EOF\n"), "{text}");
        let text = metrics.text(Form::Classic).unwrap();
        assert!(
            text.contains("# TYPE ipvs_guard_events_total counter\n"),
            "{text}"
        );
        assert!(text.contains("# HELP ipvs_guard_events_total "), "{text}");
        assert!(
            text.contains("# TYPE ipvs_guard_build_info gauge\n"),
            "{text}"
        );
        assert!(!text.contains("EOF"), "{text}");
    }

    #[test]
    fn what_is_not_known_is_absent() {
        let text = metrics(None).text(Form::Classic).unwrap();
        assert!(!text.contains("draining_connections"), "{text}");
        let tally = Arc::new(Tally::default());
        let text = metrics(Some(Arc::clone(&tally)))
            .text(Form::Classic)
            .unwrap();
        assert!(!text.contains("enforced_flows"), "{text}");
        tally.set_flows(Some(5));
        tally.heal();
        let text = metrics(Some(tally)).text(Form::Classic).unwrap();
        assert!(text.contains("\nipvs_guard_enforced_flows 5\n"), "{text}");
        assert!(
            text.contains("ipvs_guard_healed_entries_total{result=\"failed\"} 0\n"),
            "{text}"
        );
    }

    #[test]
    fn every_name_is_known() {
        let tally = Arc::new(Tally::default());
        tally.set_flows(Some(5));
        tally.heal();
        let drained = Reading::of("10.0.0.1:80", "10.0.0.2:8080", "TIME_WAIT", 3);
        let snapshot = Snapshot::take(&metrics(Some(tally)), Some(Arc::new(drained)));
        let text = snapshot.encode(Form::Classic).unwrap();
        assert!(text.contains(
            "\nipvs_guard_draining_connections{service=\"10.0.0.1:80\",\
             destination=\"10.0.0.2:8080\",state=\"TIME_WAIT\"} 3\n"
        ));
        let families = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
        let names: Vec<_> = families.filter_map(|rest| rest.split(' ').next()).collect();
        assert_eq!(names, NAMES);
    }

    #[test]
    fn labels_are_escaped() {
        let mut snapshot = Snapshot::take(&metrics(None), None);
        let odd = "a\"b\\c\nd".to_owned();
        snapshot.events = vec![(
            [odd, String::new()],
            Count {
                class: Class::Trace,
                action: Action::Observed,
                events: 1,
            },
        )];
        let text = snapshot.encode(Form::Classic).unwrap();
        assert!(
            text.contains(r#"service="a\"b\\c\nd",destination="""#),
            "{text}"
        );
    }
}
