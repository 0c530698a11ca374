//! Prometheus scrapes `--metrics`; promtool reads our text, rules and dashboard.

use std::{
    collections::BTreeSet,
    fs,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use ipvs_guard::{
    clock::Clock,
    enforce::{Healed, Tally},
    event::{Action, Class, Event},
    metrics::{Form, Metrics, NAMES, Scope, Server, Stage},
};
use serde_json::Value;

use crate::chroot::{self, FILES};

const PATIENCE: Duration = Duration::from_secs(120);
const PROMTOOL: &str = "/usr/bin/promtool";

fn deploy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy")
}

fn promtool(files: &Path, args: &[&str], input: &str) -> Output {
    let mut child = chroot::command(PROMTOOL, files)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(input.as_bytes())
        .unwrap();
    child.wait_with_output().unwrap()
}

fn said(output: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    format!("{}{}", text(&output.stdout), text(&output.stderr))
}

fn passes(files: &Path, args: &[&str]) {
    let output = promtool(files, args, "");
    assert!(output.status.success(), "{args:?}: {}", said(&output));
}

fn stale(action: Action, service: &str, port: u16) -> Event {
    let service: SocketAddr = service.parse().unwrap();
    let mut event = Event::new(Class::StaleReuse, Clock::now(), "node-1".into());
    event.action = action;
    event.service_address = Some(service.ip());
    event.service_port = Some(service.port());
    event.real_address = Some("198.51.100.2".parse().unwrap());
    event.real_port = Some(port);
    event
}

/// Everything that is counted, and some of it odd.
fn metrics() -> Arc<Metrics> {
    let tally = Arc::new(Tally::default());
    tally.set_flows(Some(4));
    tally.heal();
    tally.add(Healed {
        healed: 11,
        failed: 2,
        templates: 0,
    });
    let metrics = Arc::new(Metrics::new(Some(tally)));
    metrics.counts.expect(Class::ALL, Action::Reset);
    metrics.counts.set_lost("ring", 0);
    metrics.counts.set_lost("sink.file", 7);
    metrics
        .health
        .attached(["commit", "dest_update"].into_iter());
    metrics.health.enter(Stage::Ready);
    metrics
        .counts
        .count(&stale(Action::Reset, "203.0.113.1:80", 8080));
    metrics
        .counts
        .count(&stale(Action::Failed, "[2001:db8::1]:443", 8443));
    metrics
}

#[test]
fn promtool_finds_nothing_to_say_about_the_classic_form() {
    let folder = tempfile::tempdir().unwrap();
    let text = metrics().text(Form::Classic).unwrap();
    let output = promtool(folder.path(), &["check", "metrics"], &text);
    assert!(output.status.success(), "{}", said(&output));
    assert_eq!(said(&output), "");
    // It does find what is wrong.
    for wrong in [
        text.replace("events_total", "events"),
        text.replace("\"} ", "\"} x"),
        metrics().text(Form::OpenMetrics).unwrap(),
    ] {
        let output = promtool(folder.path(), &["check", "metrics"], &wrong);
        assert!(!output.status.success(), "{wrong}");
    }
}

#[test]
fn the_rules_hold_what_their_tests_say() {
    let folder = deploy().join("prometheus");
    let rules = format!("{FILES}/rules.yml");
    passes(&folder, &["check", "rules", "--lint-fatal", &rules]);
    let tests = format!("{FILES}/rules_test.yml");
    passes(&folder, &["test", "rules", &tests]);
    let text = fs::read_to_string(folder.join("rules.yml")).unwrap();
    let tested = fs::read_to_string(folder.join("rules_test.yml")).unwrap();
    for line in text.lines() {
        if let Some(alert) = line.trim().strip_prefix("- alert: ") {
            let fires = tested.split("- eval_time:").any(|part| {
                part.contains(&format!("alertname: {alert}\n")) && part.contains("exp_alerts")
            });
            assert!(fires, "no test of {alert} fires it");
        }
        names_what_there_is(line);
    }
}

/// Each of our names in an expression is that of a metric.
fn names_what_there_is(expression: &str) {
    for (at, prefix) in expression.match_indices("ipvs_guard_") {
        let name: String = expression[at..]
            .chars()
            .take_while(|c| c.is_ascii_alphanumeric() || *c == '_')
            .collect();
        let recorded = expression[..at].ends_with("instance:");
        assert!(
            NAMES.contains(&name.as_str()) || recorded,
            "{prefix}: no metric is called {name}, in {expression}"
        );
    }
}

/// Every value of `key` in a JSON document, however deep.
fn values<'a>(document: &'a Value, key: &str, found: &mut Vec<&'a Value>) {
    match document {
        Value::Object(object) => {
            for (name, value) in object {
                if name == key {
                    found.push(value);
                }
                values(value, key, found);
            }
        }
        Value::Array(list) => list.iter().for_each(|value| values(value, key, found)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

#[test]
fn every_expression_of_the_dashboard_is_one_and_names_metrics_that_exist() {
    let text = fs::read_to_string(deploy().join("grafana/ipvs-guard.json")).unwrap();
    let dashboard: Value = serde_json::from_str(&text).unwrap();
    let mut expressions = Vec::new();
    values(&dashboard, "expr", &mut expressions);
    assert!(expressions.len() > 8);
    let mut rules = "groups:\n  - name: dashboard\n    rules:\n".to_owned();
    for (number, expression) in expressions.iter().enumerate() {
        let expression = expression.as_str().unwrap();
        names_what_there_is(expression);
        let plain = expression
            .replace("$__rate_interval", "5m")
            .replace("$__range", "1h")
            .replace("$job", ".*")
            .replace("$instance", ".*");
        assert!(!plain.contains('$'), "{expression}");
        let quoted = serde_json::to_string(&plain).unwrap();
        rules += &format!("      - record: dashboard:{number}\n        expr: {quoted}\n");
    }
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("dashboard.yml"), rules).unwrap();
    passes(
        folder.path(),
        &["check", "rules", &format!("{FILES}/dashboard.yml")],
    );

    let mut sources = Vec::new();
    values(&dashboard, "datasource", &mut sources);
    for source in sources {
        assert_eq!(source["uid"], "${datasource}");
    }
    let mut panels = Vec::new();
    values(&dashboard, "id", &mut panels);
    let numbers: BTreeSet<u64> = panels.iter().filter_map(|id| id.as_u64()).collect();
    let all = panels.iter().filter(|id| id.is_u64()).count();
    assert_eq!(numbers.len(), all, "two panels have one id");
}

/// A running Prometheus that scrapes an endpoint in both forms.
struct Prometheus {
    child: Child,
    address: SocketAddr,
}

impl Prometheus {
    fn start(folder: &Path, target: SocketAddr) -> Self {
        let address = TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap();
        let job = |name: &str, form: &str| {
            format!(
                "  - job_name: {name}\n    scrape_protocols: [{form}]\n    static_configs:\n      \
                 - targets: ['{target}']\n"
            )
        };
        let configuration = format!(
            "global:\n  scrape_interval: 1s\n  scrape_timeout: 1s\nscrape_configs:\n{}{}",
            job("openmetrics", "OpenMetricsText1.0.0"),
            job("classic", "PrometheusText0.0.4"),
        );
        fs::write(folder.join("prometheus.yml"), configuration).unwrap();
        let log = fs::File::options()
            .create(true)
            .append(true)
            .open(folder.join("log"))
            .unwrap();
        let child = chroot::command("/usr/bin/prometheus", folder)
            .arg(format!("--config.file={FILES}/prometheus.yml"))
            .arg(format!("--storage.tsdb.path={FILES}/data"))
            .arg(format!("--web.listen-address={address}"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        Self { child, address }
    }

    /// The result of an instant query; `None` while Prometheus does not answer.
    fn query(&self, expression: &str) -> Option<Vec<Value>> {
        let answer = self.get(&format!("/api/v1/query?query={}", encoded(expression)))?;
        assert_eq!(answer["status"], "success", "{answer}");
        Some(answer["data"]["result"].as_array().unwrap().clone())
    }

    fn get(&self, path: &str) -> Option<Value> {
        let mut stream = TcpStream::connect(self.address).ok()?;
        write!(stream, "GET {path} HTTP/1.0\r\n\r\n").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        serde_json::from_str(answer.split_once("\r\n\r\n")?.1).ok()
    }

    /// The one number that an expression has.
    fn number(&self, expression: &str) -> Option<f64> {
        let result = self.query(expression)?;
        result.first()?["value"][1].as_str()?.parse().ok()
    }

    fn wait_for(&self, folder: &Path, expression: &str, value: f64) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let now = self.number(expression);
            if now == Some(value) {
                return;
            }
            assert!(
                Instant::now() < deadline,
                "{expression} is {now:?} and not {value}: {}",
                fs::read_to_string(folder.join("log")).unwrap()
            );
            thread::sleep(Duration::from_millis(200));
        }
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

fn encoded(text: &str) -> String {
    text.bytes().map(|byte| format!("%{byte:02X}")).collect()
}

/// What Prometheus has of a job, without the labels that it adds.
fn series(prometheus: &Prometheus, job: &str) -> Vec<String> {
    let all = prometheus
        .query(&format!("{{__name__=~\"ipvs_guard_.*\", job=\"{job}\"}}"))
        .unwrap();
    let mut series: Vec<String> = all
        .iter()
        .map(|series| {
            let mut labels = series["metric"].as_object().unwrap().clone();
            labels.remove("job");
            labels.remove("instance");
            format!("{labels:?} {}", series["value"][1])
        })
        .collect();
    series.sort();
    series
}

#[test]
fn prometheus_reads_both_forms_and_loses_no_counts_by_a_kill() {
    const STALE: &str =
        "ipvs_guard_events_total{job=\"openmetrics\",action=\"reset\",destination!=\"other\"}";
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("data")).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let target = listener.local_addr().unwrap();
    let metrics = metrics();
    let _server = Server::start(listener, Arc::clone(&metrics), Scope::default()).unwrap();

    let prometheus = Prometheus::start(folder.path(), target);
    for job in ["openmetrics", "classic"] {
        let up = format!("up{{job=\"{job}\"}}");
        prometheus.wait_for(folder.path(), &up, 1.0);
    }
    prometheus.wait_for(folder.path(), STALE, 1.0);
    let both = ["openmetrics", "classic"].map(|job| series(&prometheus, job));
    assert_eq!(both[0], both[1]);
    let text = metrics.text(Form::Classic).unwrap();
    let samples = text.lines().filter(|line| !line.starts_with('#')).count();
    assert_eq!(both[0].len(), samples, "{text}");
    // It is told apart by the type: one form has infos, the other does not.
    let kinds = prometheus
        .get("/api/v1/targets/metadata?metric=ipvs_guard_build")
        .unwrap();
    assert_eq!(kinds["data"][0]["type"], "info", "{kinds}");
    let kinds = prometheus
        .get("/api/v1/targets/metadata?metric=ipvs_guard_events_total")
        .unwrap();
    assert_eq!(kinds["data"][0]["target"]["job"], "classic", "{kinds}");
    assert_eq!(kinds["data"][0]["type"], "counter");

    // Killed, and away while there are more.
    drop(prometheus);
    let more = stale(Action::Reset, "203.0.113.1:80", 8080);
    for _ in 0..10_000 {
        metrics.counts.count(&more);
    }
    let prometheus = Prometheus::start(folder.path(), target);
    prometheus.wait_for(folder.path(), STALE, 10_001.0);
    let resets = prometheus.number(&format!("resets({STALE}[1h])"));
    assert_eq!(resets, Some(0.0));
}

#[test]
fn the_configuration_of_the_docs_is_one_that_prometheus_takes() {
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/export-metrics.md");
    let text = fs::read_to_string(docs).unwrap();
    let block = text
        .split("```yaml\n")
        .nth(1)
        .and_then(|rest| rest.split("```").next())
        .unwrap();
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("prometheus.yml"), block).unwrap();
    fs::copy(
        deploy().join("prometheus/rules.yml"),
        folder.path().join("ipvs-guard.yml"),
    )
    .unwrap();
    let file = format!("{FILES}/prometheus.yml");
    passes(folder.path(), &["check", "config", &file]);
}

/// That a test is run as it is to be.
#[test]
fn the_tree_has_the_programs() {
    let folder = tempfile::tempdir().unwrap();
    let mut version: Command = chroot::command("/usr/bin/prometheus", folder.path());
    let output = version.arg("--version").output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
}
