//! OTLP over gRPC and over HTTP: what arrives, and that nothing goes missing unsaid.

use ipvs_guard::sink::{
    Sink,
    otlp::{Options, Otlp},
};
use opentelemetry_proto::tonic::common::v1::any_value::Value;

use crate::{
    collector::{Collector, Transport, attribute},
    feed::{Feed, PATIENCE, Written, said, wait_until},
};

/// A sink for the receiver at `url`, with these variables in its environment.
pub(crate) fn otlp_sink(url: &str, variables: &[(&str, &str)]) -> Sink {
    let variable = |name: &str| {
        let mut of_name = variables.iter().filter(|(known, _)| *known == name);
        of_name.next().map(|(_, value)| (*value).to_owned())
    };
    let options = Options::from_env(variable).unwrap();
    let endpoint = options.endpoint(url).unwrap();
    let otlp = Otlp::new(endpoint, options, "node-1").unwrap();
    Sink::hand_to("sink.otlp", url, otlp).unwrap()
}

#[test]
fn an_event_arrives_as_a_log_record() {
    for transport in [Transport::Grpc, Transport::Http] {
        let collector = Collector::start(transport, None);
        let sink = otlp_sink(
            &collector.url(),
            &[
                ("OTEL_RESOURCE_ATTRIBUTES", "k8s.node.name=n1"),
                ("OTEL_EXPORTER_OTLP_HEADERS", "x-scope-orgid=tenant%201"),
            ],
        );
        let mut feed = Feed::into(vec![sink]);
        feed.events(3);
        feed.finish(PATIENCE);
        let taken = collector.taken.lock().unwrap();
        assert_eq!(taken.sequence(), [0, 1, 2]);
        let resource = &taken.resource.attributes;
        for (key, value) in [
            ("service.name", "ipvs-guard"),
            ("service.version", env!("CARGO_PKG_VERSION")),
            ("host.name", "node-1"),
            ("k8s.node.name", "n1"),
        ] {
            let expect = Some(Value::StringValue(value.into()));
            assert_eq!(attribute(resource, key), expect, "{key}");
        }
        let (_, headers) = &taken.requests[0];
        assert_eq!(headers["x-scope-orgid"], "tenant 1");
        let record = &taken.records[2];
        assert_eq!(record.event_name, "ipvs.stale_reuse");
        assert_eq!(
            (record.severity_number, record.severity_text.as_str()),
            (13, "WARN")
        );
        assert!(record.observed_time_unix_nano >= record.time_unix_nano);
        let body = record.body.clone().unwrap().value;
        let Some(Value::StringValue(body)) = body else {
            panic!("{body:?}");
        };
        assert!(body.contains("10.0.0.2:40000"), "{body}");
        for (key, value) in [
            ("source.address", Value::StringValue("10.0.0.2".into())),
            ("source.port", Value::IntValue(40_000)),
            ("tcp.seq", Value::IntValue(2)),
            ("tcp.retransmission", Value::BoolValue(false)),
            ("ipvs.conn.state", Value::StringValue("TIME_WAIT".into())),
            ("ipvs.dest.available", Value::BoolValue(true)),
            ("netns.inode", Value::IntValue(4_026_531_840)),
        ] {
            assert_eq!(attribute(&record.attributes, key), Some(value), "{key}");
        }
        assert_eq!(attribute(&record.attributes, "host.name"), None);
    }
}

/// While it is away events wait; there is room for all.
#[test]
fn ten_thousand_events_outlive_a_receiver_that_is_killed() {
    for transport in [Transport::Grpc, Transport::Http] {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("events.json");
        let mut collector = Collector::start(transport, None);
        let url = collector.url();
        let mut feed = Feed::beside(&file, otlp_sink(&url, &[]));
        feed.events(3_000);
        wait_until("the first events", || {
            !collector.taken.lock().unwrap().records.is_empty()
        });
        collector.kill();
        feed.events(4_000);
        wait_until("its absence is noticed", || !said(&url).is_empty());
        collector.restart();
        feed.events(3_000);
        let emitted = feed.emitted();
        feed.finish(PATIENCE);
        let written = Written::read(&file);
        written.has_all(emitted);
        let delivered = collector.taken.lock().unwrap().sequence().len() as u64;
        assert_eq!(delivered + written.lost_at("sink.otlp"), emitted);
        assert_eq!(delivered, 10_000);
        let lines = said(&url);
        assert_eq!(lines.len(), 2, "{lines:?}");
        assert!(lines[1].contains("events are taken again"), "{lines:?}");
    }
}

/// Away for longer than there is room: what does not fit is counted, to the last event.
#[test]
fn a_receiver_that_is_away_for_long_costs_counted_events() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("events.json");
    let mut collector = Collector::start(Transport::Grpc, None);
    let url = collector.url();
    let mut feed = Feed::beside(&file, otlp_sink(&url, &[]));
    feed.events(1_000);
    collector.kill();
    feed.events(30_000);
    collector.restart();
    wait_until("it is noticed that it is back", || said(&url).len() == 2);
    feed.events(1_000);
    wait_until("the receiver itself is told of the loss", || {
        feed.report();
        let taken = collector.taken.lock().unwrap();
        taken.records.iter().any(|r| r.event_name == "ipvs.loss")
    });
    let emitted = feed.emitted();
    feed.finish(PATIENCE);
    let written = Written::read(&file);
    written.has_all(emitted);
    let delivered = collector.taken.lock().unwrap().sequence().len() as u64;
    let lost = written.lost_at("sink.otlp");
    assert_eq!(delivered + lost, emitted, "{delivered} delivered");
    assert!(lost > 10_000, "{lost} lost");
    let last = said(&url).pop().unwrap();
    assert!(
        last.contains("lost in all") || last.contains("taken again"),
        "{last}"
    );
}
