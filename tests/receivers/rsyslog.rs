//! rsyslog, with the configuration that the docs show.

use std::{
    collections::BTreeSet,
    fs,
    net::{TcpListener, TcpStream, UdpSocket},
    path::{Path, PathBuf},
};

use ipvs_guard::{
    event::Action,
    pipeline::Summary,
    sink::{Sink, Syslog},
};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, date_time_ymd};

use crate::support::{
    Daemon, PATIENCE, Place, event, is_read, killed_in_the_middle, listen, numbers, said,
    wait_until,
};

const DOCS: &str = include_str!("../../docs/export-syslog.md");
const NODE: &str = "node-1.example.net";

struct Rsyslog {
    place: Place,
    udp: u16,
    tcp: u16,
    tls: u16,
}

impl Rsyslog {
    fn new() -> Self {
        let rsyslog = Self {
            place: Place::new(),
            udp: UdpSocket::bind("127.0.0.1:0")
                .unwrap()
                .local_addr()
                .unwrap()
                .port(),
            tcp: free_port(),
            tls: free_port(),
        };
        let port = |port| format!("address=\"127.0.0.1\" port=\"{port}\"");
        let config = documented()
            .replace("/etc/rsyslog.d/ipvs-guard/", "/run/")
            .replace("/var/log/", "/run/")
            .replace("port=\"514\"", &port(rsyslog.udp))
            .replace("port=\"601\"", &port(rsyslog.tcp))
            .replace("port=\"6514\"", &port(rsyslog.tls));
        // What Debian's own configuration does, without this machine's /dev/log.
        let main =
            "global(workDirectory=\"/run\")\nmodule(load=\"imuxsock\" SysSock.Use=\"off\")\n";
        fs::write(rsyslog.path("rsyslog.conf"), format!("{main}{config}")).unwrap();
        Authority::new("ours").write(&rsyslog, false);
        rsyslog
    }

    fn path(&self, name: &str) -> PathBuf {
        self.place.run().join(name)
    }

    fn start(&self) -> Daemon {
        let daemon = self.place.start(&[
            "/usr/sbin/rsyslogd",
            "-n",
            "-i",
            "NONE",
            "-f",
            "/run/rsyslog.conf",
        ]);
        wait_until("rsyslog", || {
            TcpStream::connect(("127.0.0.1", self.tcp)).is_ok()
                && TcpStream::connect(("127.0.0.1", self.tls)).is_ok()
                && is_read(&self.path("ipvs-guard.sock"))
        });
        daemon
    }

    fn delivered(&self) -> BTreeSet<u32> {
        numbers(&fs::read_to_string(self.path("ipvs-guard.json")).unwrap_or_default())
    }

    fn tls_url(&self) -> String {
        let file = |name| self.path(name).display().to_string();
        format!(
            "tls://127.0.0.1:{}?ca={}&cert={}&key={}",
            self.tls,
            file("ca.pem"),
            file("node.pem"),
            file("node.key")
        )
    }

    fn local_url(&self) -> String {
        format!("unix://{}", self.path("ipvs-guard.sock").display())
    }
}

fn free_port() -> u16 {
    let socket = TcpListener::bind("127.0.0.1:0").unwrap();
    socket.local_addr().unwrap().port()
}

/// rsyslog's configuration as the docs have it.
fn documented() -> String {
    let after = DOCS
        .split("# /etc/rsyslog.d/ipvs-guard.conf\n")
        .nth(1)
        .unwrap();
    after.split("```").next().unwrap().to_owned()
}

fn sink(what: &'static str, url: &str) -> Sink {
    listen();
    let receiver = Syslog::new(url.parse().unwrap()).unwrap();
    Sink::hand_to("sink.syslog", what, receiver).unwrap()
}

/// An authority for certificates.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: String,
}

impl Authority {
    fn new(name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap().pem();
        Self {
            issuer: Issuer::new(params, key),
            certificate,
        }
    }

    /// Writes it, and what the receiver and the node need of it.
    fn write(&self, to: &Rsyslog, expired: bool) {
        fs::write(to.path("ca.pem"), &self.certificate).unwrap();
        self.issue(
            "127.0.0.1",
            expired,
            &to.path("cert.pem"),
            &to.path("key.pem"),
        );
        self.issue(NODE, false, &to.path("node.pem"), &to.path("node.key"));
    }

    fn issue(&self, name: &str, expired: bool, certificate: &Path, key_file: &Path) {
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        if expired {
            params.not_before = date_time_ymd(2020, 1, 1);
            params.not_after = date_time_ymd(2021, 1, 1);
        }
        let key = KeyPair::generate().unwrap();
        let signed = params.signed_by(&key, &self.issuer).unwrap();
        fs::write(certificate, signed.pem()).unwrap();
        fs::write(key_file, key.serialize_pem()).unwrap();
    }
}

#[test]
fn it_reads_every_key_over_each_way() {
    let rsyslog = Rsyslog::new();
    let _daemon = rsyslog.start();
    let ways = [
        format!("udp://127.0.0.1:{}", rsyslog.udp),
        format!("tcp://localhost:{}", rsyslog.tcp),
        rsyslog.tls_url(),
        rsyslog.local_url(),
    ];
    for (number, url) in (1..).zip(&ways) {
        let sink = sink("ways", url);
        let mut sent = (*event(number)).clone();
        sent.action = Action::Reset;
        sent.host = "n\u{f6}de \"1\"\\]".into();
        sink.offer(&sent.clone().into());
        wait_until(url, || rsyslog.delivered().contains(&number));
        assert_eq!(sink.finish(Summary::default(), PATIENCE), 0);
        let written = fs::read_to_string(rsyslog.path("ipvs-guard.json")).unwrap();
        let last: serde_json::Value =
            serde_json::from_str(written.lines().last().unwrap()).unwrap();
        assert_eq!(last, serde_json::to_value(&sent).unwrap(), "{url}");
    }
}

#[test]
fn killed_during_events_over_tcp() {
    let rsyslog = Rsyslog::new();
    let sink = sink("kill tcp", &format!("tcp://127.0.0.1:{}", rsyslog.tcp));
    killed_in_the_middle(sink, || rsyslog.start(), || rsyslog.delivered());
    is_said_twice("kill tcp");
}

#[test]
fn killed_during_events_over_tls() {
    let rsyslog = Rsyslog::new();
    let sink = sink("kill tls", &rsyslog.tls_url());
    killed_in_the_middle(sink, || rsyslog.start(), || rsyslog.delivered());
    is_said_twice("kill tls");
}

#[test]
fn killed_during_events_over_the_local_socket() {
    let rsyslog = Rsyslog::new();
    let sink = sink("kill local", &rsyslog.local_url());
    killed_in_the_middle(sink, || rsyslog.start(), || rsyslog.delivered());
    is_said_twice("kill local");
}

/// The events come no faster than rsyslog reads them, so the kill alone loses some.
#[test]
fn killed_during_events_over_udp() {
    let rsyslog = Rsyslog::new();
    let sink = sink("kill udp", &format!("udp://127.0.0.1:{}", rsyslog.udp));
    killed_in_the_middle(sink, || rsyslog.start(), || rsyslog.delivered());
    is_said_twice("kill udp");
}

/// That it went, and at most that it is back: that takes a while.
#[track_caller]
fn is_said_twice(what: &str) {
    let said = said(what);
    assert!(
        said.len() <= 2 && said[0].contains("events wait"),
        "{said:?}"
    );
}

#[test]
fn a_certificate_that_does_not_hold_is_said_once_and_nothing_is_lost() {
    let rsyslog = Rsyslog::new();
    Authority::new("ours").write(&rsyslog, true);
    let daemon = rsyslog.start();
    let sink = sink("expired", &rsyslog.tls_url());
    for number in 0..100 {
        sink.offer(&event(number));
    }
    wait_until("a complaint", || !said("expired").is_empty());
    // Another authority in its place, of which the sink has the file of before.
    daemon.kill();
    let ours = fs::read(rsyslog.path("ca.pem")).unwrap();
    Authority::new("another").write(&rsyslog, false);
    let theirs = fs::read(rsyslog.path("ca.pem")).unwrap();
    fs::write(rsyslog.path("ca.pem"), ours).unwrap();
    let daemon = rsyslog.start();
    let receiver = Syslog::new(rsyslog.tls_url().parse().unwrap()).unwrap();
    let unknown = Sink::hand_to("sink.syslog", "unknown", receiver).unwrap();
    unknown.offer(&event(100));
    wait_until("a complaint", || !said("unknown").is_empty());
    // Renewed while the sink runs.
    daemon.kill();
    fs::write(rsyslog.path("ca.pem"), theirs).unwrap();
    let _daemon = rsyslog.start();
    wait_until("all of them", || rsyslog.delivered().len() == 101);
    let expired = said("expired");
    assert!(expired[0].contains("certificate expired"), "{expired:?}");
    let foreign = said("unknown");
    assert!(foreign[0].contains("UnknownIssuer"), "{foreign:?}");
    for said in [expired, foreign] {
        assert!(said.len() <= 2, "{said:?}");
    }
    assert_eq!(sink.lost() + unknown.lost(), 0);
}

#[test]
fn without_a_certificate_of_its_own_it_is_told_why() {
    let rsyslog = Rsyslog::new();
    let _daemon = rsyslog.start();
    let url = rsyslog.tls_url();
    let sink = sink("nameless", url.split("&cert").next().unwrap());
    sink.offer(&event(1));
    wait_until("a complaint", || !said("nameless").is_empty());
    let line = said("nameless").remove(0);
    assert!(!rsyslog.delivered().contains(&1));
    assert!(
        line.contains("alert") || line.contains("closed") || line.contains("reset"),
        "{line}"
    );
}
