//! Receivers of OTLP that are no use, or not now: one line, all counted, bounded.

use std::{fs, net::TcpListener, time::Duration};

use ipvs_guard::sink::Sink;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, date_time_ymd};

use crate::{
    collector::{Certificate, Collector, Manner, Transport},
    feed::{Feed, PATIENCE, WAITING, Written, said, wait_until},
    otlp::otlp_sink,
};

/// More events than fit, into a receiver at `url` that takes none, beside a file. The
/// line that was said about it.
fn into_nothing(url: &str, variables: &[(&str, &str)]) -> String {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("events.json");
    let mut feed = Feed::beside(&file, otlp_sink(url, variables));
    feed.events(20_000);
    wait_until("it is said", || !said(url).is_empty());
    feed.events(20_000);
    let emitted = feed.emitted();
    feed.finish(Duration::from_secs(2));
    let written = Written::read(&file);
    written.has_all(emitted);
    let lost = written.lost_at("sink.otlp");
    let mut lines = said(url);
    let left = lines.pop().unwrap();
    let left: u64 = left
        .strip_suffix(" events not taken before the end")
        .and_then(|line| line.rsplit(' ').next())
        .and_then(|number| number.parse().ok())
        .unwrap_or_else(|| panic!("{left}"));
    assert_eq!(lost + left, emitted, "{lost} lost, {left} left");
    assert!(left <= WAITING, "{left} waited");
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert!(!lines[0].contains('\n'));
    lines.remove(0)
}

#[test]
fn a_name_that_does_not_resolve() {
    // As long as a resolver without an answer of its own may take.
    let patient = [("OTEL_EXPORTER_OTLP_TIMEOUT", "100000")];
    let line = into_nothing("grpc://collector.invalid:4317", &patient);
    assert!(line.contains("lookup"), "{line}");
    let line = into_nothing("http://collector.invalid:4318", &patient);
    assert!(line.contains("lookup"), "{line}");
}

#[test]
fn a_receiver_that_accepts_and_never_reads() {
    for scheme in ["grpc", "http"] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("{scheme}://{}", listener.local_addr().unwrap());
        let line = into_nothing(&url, &[("OTEL_EXPORTER_OTLP_LOGS_TIMEOUT", "300")]);
        assert!(line.contains("no answer within 300 ms"), "{line}");
    }
}

#[test]
fn nobody_listens() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("grpc://{}", listener.local_addr().unwrap());
    drop(listener);
    let line = into_nothing(&url, &[]);
    assert!(line.contains("refused"), "{line}");
}

#[test]
fn an_http_url_of_a_receiver_of_grpc_is_told_so() {
    let collector = Collector::start(Transport::Grpc, None);
    let url = collector.url().replace("grpc", "http");
    let line = into_nothing(&url, &[]);
    assert!(line.contains("has a URL of grpc: or grpcs:"), "{line}");
    assert!(collector.taken.lock().unwrap().requests.is_empty());
    let url = collector.url().replace("grpc", "http");
    let sink = otlp_sink(&url, &[("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")]);
    let mut feed = Feed::into(vec![sink]);
    feed.events(10);
    feed.finish(PATIENCE);
    assert_eq!(collector.taken.lock().unwrap().sequence().len(), 10);
}

/// An authority, in a file, and a certificate of its making for localhost.
fn certificates(folder: &std::path::Path, expired: bool) -> (String, Certificate) {
    let authority_key = KeyPair::generate().unwrap();
    let mut authority = CertificateParams::default();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let own = authority.self_signed(&authority_key).unwrap();
    let file = folder.join("ca.pem");
    fs::write(&file, own.pem()).unwrap();
    let issuer = Issuer::new(authority, authority_key);
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(["localhost".to_owned()]).unwrap();
    if expired {
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(2021, 1, 1);
    }
    let certificate = params.signed_by(&key, &issuer).unwrap();
    let certificate = Certificate {
        chain: certificate.pem(),
        key: key.serialize_pem(),
    };
    (file.display().to_string(), certificate)
}

#[test]
fn tls_holds_with_the_authority_that_is_named() {
    for transport in [Transport::Grpc, Transport::Http] {
        let folder = tempfile::tempdir().unwrap();
        let (ca, certificate) = certificates(folder.path(), false);
        let collector = Collector::start(transport, Some(certificate));
        let sink: Sink = otlp_sink(&collector.url(), &[("OTEL_EXPORTER_OTLP_CERTIFICATE", &ca)]);
        let mut feed = Feed::into(vec![sink]);
        feed.events(1_000);
        feed.finish(PATIENCE);
        assert_eq!(collector.taken.lock().unwrap().sequence().len(), 1_000);
    }
}

#[test]
fn an_expired_certificate() {
    for transport in [Transport::Grpc, Transport::Http] {
        let folder = tempfile::tempdir().unwrap();
        let (ca, certificate) = certificates(folder.path(), true);
        let collector = Collector::start(transport, Some(certificate));
        let variables = [("OTEL_EXPORTER_OTLP_CERTIFICATE", ca.as_str())];
        let line = into_nothing(&collector.url(), &variables);
        assert!(line.contains("expired"), "{line}");
        assert!(collector.taken.lock().unwrap().requests.is_empty());
    }
}

#[test]
fn a_certificate_of_an_unknown_authority() {
    let folder = tempfile::tempdir().unwrap();
    let (_, certificate) = certificates(folder.path(), false);
    let other = tempfile::tempdir().unwrap();
    let (ca, _) = certificates(other.path(), false);
    let collector = Collector::start(Transport::Grpc, Some(certificate));
    let variables = [("OTEL_EXPORTER_OTLP_CERTIFICATE", ca.as_str())];
    let line = into_nothing(&collector.url(), &variables);
    assert!(line.contains("invalid peer certificate"), "{line}");
}

#[test]
fn what_a_receiver_rejects_is_counted_and_not_sent_again() {
    for transport in [Transport::Grpc, Transport::Http] {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("events.json");
        let collector = Collector::start(transport, None);
        collector.taken.lock().unwrap().always = Some(Manner::Rejects(3));
        let url = collector.url();
        let mut feed = Feed::beside(&file, otlp_sink(&url, &[]));
        feed.events(1_000);
        let of = |events: usize| move || events;
        wait_until("all was handed over", || {
            let taken = collector.taken.lock().unwrap();
            taken.records.len() + taken.rejected >= of(1_000)()
        });
        // What the sink has counted meanwhile.
        wait_until("the losses are counted", || {
            feed.report();
            let rejected = collector.taken.lock().unwrap().rejected as u64;
            Written::read(&file).lost_at("sink.otlp") >= rejected.min(3)
        });
        collector.taken.lock().unwrap().always = None;
        feed.report();
        feed.finish(PATIENCE);
        let taken = collector.taken.lock().unwrap();
        let delivered = taken.sequence().len() as u64;
        assert!(delivered < 1_000);
        let stale = taken
            .records
            .iter()
            .filter(|r| r.event_name == "ipvs.stale_reuse");
        assert_eq!(stale.count() as u64, delivered, "some came twice");
        let lines = said(&url);
        assert!(lines[0].contains("rejected some: too old"), "{lines:?}");
        let lost = lines.last().unwrap();
        assert_eq!(
            *lost,
            format!("{url}: {} events lost in all", 1_000 - delivered),
            "{lines:?}"
        );
        assert_eq!(lines.len(), 2, "{lines:?}");
    }
}

#[test]
fn a_receiver_that_asks_for_time_gets_it() {
    for transport in [Transport::Grpc, Transport::Http] {
        let collector = Collector::start(transport, None);
        collector.taken.lock().unwrap().manners = vec![Manner::Busy(2)];
        let mut feed = Feed::into(vec![otlp_sink(&collector.url(), &[])]);
        feed.events(10);
        feed.finish(PATIENCE);
        let taken = collector.taken.lock().unwrap();
        assert_eq!(taken.sequence().len(), 10);
        let apart = taken.requests[1].0 - taken.requests[0].0;
        assert!(apart >= Duration::from_secs(2), "{apart:?}");
    }
}

#[test]
fn what_is_refused_for_good_is_lost_and_said_once() {
    for transport in [Transport::Grpc, Transport::Http] {
        let collector = Collector::start(transport, None);
        collector.taken.lock().unwrap().always = Some(Manner::Refuses);
        let url = collector.url();
        let mut feed = Feed::into(vec![otlp_sink(&url, &[])]);
        feed.events(2_000);
        feed.finish(PATIENCE);
        let lines = said(&url);
        assert_eq!(lines.len(), 2, "{lines:?}");
        assert!(lines[0].contains("who are you?"), "{lines:?}");
        assert_eq!(lines[1], format!("{url}: 2000 events lost in all"));
        assert!(collector.taken.lock().unwrap().records.is_empty());
    }
}
