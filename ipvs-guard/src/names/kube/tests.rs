//! The real client against an API server of our own: lists in pages and watches, as
//! JSON over HTTP on loopback.

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{Arc, Mutex},
    thread,
    time::{Duration, Instant},
};

use futures_util::stream;
use http_body_util::{BodyExt as _, StreamBody, combinators::BoxBody};
use hyper::{
    Request, Response,
    body::{Bytes, Frame, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::{
    net::TcpListener,
    sync::{mpsc, oneshot},
};

use super::{
    runtime,
    watch::{ENDPOINTS, SERVICES},
    watch_by,
};
use crate::{
    event::{Class, Event, Transport},
    names::{Names, Shared},
};

/// Long enough for a slow machine; nothing waits for it when all is well.
const PATIENCE: Duration = Duration::from_secs(90);

#[derive(Default)]
struct Kind {
    objects: Vec<Value>,
    watches: Vec<mpsc::UnboundedSender<String>>,
    lists: usize,
    most_asked: usize,
    /// The next watch is told that it is too old.
    too_old: bool,
}

#[derive(Default)]
struct State {
    services: Kind,
    slices: Kind,
    version: u64,
}

impl State {
    fn kind(&mut self, path: &str) -> Option<&mut Kind> {
        match path {
            "/api/v1/services" => Some(&mut self.services),
            "/apis/discovery.k8s.io/v1/endpointslices" => Some(&mut self.slices),
            _ => None,
        }
    }

    /// Changes an object and tells those who watch.
    fn change(&mut self, what: &str, mut object: Value) {
        self.version += 1;
        object["metadata"]["resourceVersion"] = self.version.to_string().into();
        let kind = if object["kind"] == "Service" {
            &mut self.services
        } else {
            &mut self.slices
        };
        kind.objects
            .retain(|other| other["metadata"]["name"] != object["metadata"]["name"]);
        if what != "DELETED" {
            kind.objects.push(object.clone());
        }
        let line = format!("{}\n", json!({"type": what, "object": object}));
        kind.watches
            .retain(|watch| watch.send(line.clone()).is_ok());
    }
}

/// An API server until it is dropped, with all its connections.
struct Server {
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Server {
    fn start(address: SocketAddr, state: Arc<Mutex<State>>) -> Self {
        let (stop, stopped) = oneshot::channel();
        let (listens, address_told) = std::sync::mpsc::channel();
        let thread = thread::spawn(move || {
            runtime().unwrap().block_on(async move {
                let begin = Instant::now();
                let listener = loop {
                    match TcpListener::bind(address).await {
                        Ok(listener) => break listener,
                        Err(error) => assert!(begin.elapsed() < PATIENCE, "{error}"),
                    }
                    tokio::time::sleep(Duration::from_millis(50)).await;
                };
                listens.send(listener.local_addr().unwrap()).unwrap();
                tokio::select! {
                    () = serve(listener, state) => {}
                    _ = stopped => {}
                }
            });
        });
        Self {
            address: address_told.recv().unwrap(),
            stop: Some(stop),
            thread: Some(thread),
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.take();
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

async fn serve(listener: TcpListener, state: Arc<Mutex<State>>) {
    while let Ok((connection, _)) = listener.accept().await {
        let state = Arc::clone(&state);
        tokio::spawn(async move {
            let service = service_fn(|request| {
                let answer = answer(&request, &state);
                async move { Ok::<_, Infallible>(answer) }
            });
            // The client may go at any time.
            drop(
                http1::Builder::new()
                    .serve_connection(TokioIo::new(connection), service)
                    .await,
            );
        });
    }
}

type Answer = Response<BoxBody<Bytes, Infallible>>;

fn answer(request: &Request<Incoming>, state: &Mutex<State>) -> Answer {
    let mut state = state.lock().unwrap();
    let query = request.uri().query().unwrap_or_default();
    let asked = |name: &str| {
        query
            .split('&')
            .find_map(|part| part.strip_prefix(name)?.strip_prefix('='))
    };
    let version = state.version;
    let path = request.uri().path();
    let kind_name = if path.ends_with("services") {
        ("v1", "ServiceList")
    } else {
        ("discovery.k8s.io/v1", "EndpointSliceList")
    };
    if asked("watch").is_some_and(|watch| watch != "0" && watch != "false") {
        let kind = state.kind(path).unwrap();
        let old = std::mem::take(&mut kind.too_old);
        let (sender, lines) = mpsc::unbounded_channel();
        if old {
            let status = json!({"type": "ERROR", "object": {
                "kind": "Status", "apiVersion": "v1", "status": "Failure",
                "reason": "Expired", "code": 410, "message": "too old resource version",
            }});
            sender.send(format!("{status}\n")).unwrap();
        } else {
            kind.watches.push(sender);
        }
        return lines_of(lines);
    }
    let kind = state.kind(path).unwrap();
    kind.lists += 1;
    let limit: usize = asked("limit").map_or(usize::MAX, |text| text.parse().unwrap());
    kind.most_asked = kind.most_asked.max(limit);
    let from: usize = asked("continue").map_or(0, |text| text.parse().unwrap());
    let items: Vec<_> = kind.objects.iter().skip(from).take(limit).collect();
    let mut meta = json!({"resourceVersion": version.to_string()});
    if from + items.len() < kind.objects.len() {
        meta["continue"] = (from + items.len()).to_string().into();
    }
    let list = json!({
        "apiVersion": kind_name.0, "kind": kind_name.1, "metadata": meta, "items": items,
    });
    let (sender, lines) = mpsc::unbounded_channel();
    sender.send(list.to_string()).unwrap();
    lines_of(lines)
}

/// A body of what comes from the channel, until its sender has gone.
fn lines_of(lines: mpsc::UnboundedReceiver<String>) -> Answer {
    let frames = stream::unfold(lines, |mut lines| async move {
        let line = lines.recv().await?;
        Some((Ok(Frame::data(Bytes::from(line))), lines))
    });
    Response::builder()
        .header("content-type", "application/json")
        .body(StreamBody::new(frames).boxed())
        .unwrap()
}

fn service(name: &str, address: &str, port: u16) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": name, "namespace": "shop"},
        "spec": {"clusterIP": address, "clusterIPs": [address],
                 "ports": [{"port": port, "protocol": "TCP", "nodePort": 30_080}]},
    })
}

fn slice(name: &str, service: &str, pods: &[(&str, &str)]) -> Value {
    let endpoints: Vec<Value> = pods
        .iter()
        .map(|(pod, address)| {
            json!({
                "addresses": [address], "nodeName": "node-2",
                "conditions": {"ready": true},
                "targetRef": {"kind": "Pod", "name": pod, "namespace": "shop"},
            })
        })
        .collect();
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": name, "namespace": "shop",
                     "labels": {"kubernetes.io/service-name": service}},
        "addressType": "IPv4", "endpoints": endpoints,
        "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
    })
}

fn client(address: SocketAddr) -> Shared {
    let config = kube::Config::new(format!("http://{address}").parse().unwrap());
    watch_by(runtime().unwrap(), config).unwrap()
}

/// Service, namespace, pod and node of a stale SYN from `service` to `pod`.
fn told(shared: &Shared, service: &str, pod: &str) -> [Option<String>; 4] {
    let mut names = Names::default();
    names.add(Arc::clone(shared));
    let time = "2026-11-21T00:00:00Z".parse().unwrap();
    let mut event = Event::new(Class::StaleReuse, time, "h".into());
    let service: SocketAddr = service.parse().unwrap();
    let pod: SocketAddr = pod.parse().unwrap();
    event.service_address = Some(service.ip());
    event.service_port = Some(service.port());
    event.real_address = Some(pod.ip());
    event.real_port = Some(pod.port());
    event.transport = Some(Transport::Tcp);
    names.tell(&mut event);
    [event.service, event.namespace, event.pod, event.node]
        .map(|text| text.map(|text| text.to_string()))
}

fn until(what: &str, met: impl Fn() -> bool) {
    let begin = Instant::now();
    while !met() {
        assert!(begin.elapsed() < PATIENCE, "{what} did not come");
        thread::sleep(Duration::from_millis(20));
    }
}

fn names(texts: [&str; 4]) -> [Option<String>; 4] {
    texts.map(|text| Some(text.to_owned()))
}

const LOCAL: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);

#[test]
fn names_follow_the_cluster_through_dropped_and_expired_watches() {
    let state = Arc::new(Mutex::new(State::default()));
    {
        let mut state = state.lock().unwrap();
        state.change("ADDED", service("web", "10.96.0.10", 80));
        state.change("ADDED", slice("web-1", "web", &[("web-a", "10.1.0.1")]));
    }
    let server = Server::start(LOCAL, Arc::clone(&state));
    let shared = client(server.address);
    let is = |pod: &str, expect: [&str; 4]| told(&shared, "10.96.0.10:80", pod) == names(expect);
    let a = ["web", "shop", "web-a", "node-2"];
    until("the list", || is("10.1.0.1:8080", a));
    // By a node port, and by a destination of which only the slice is known.
    let node = told(&shared, "192.0.2.1:30080", "10.1.0.1:8080");
    assert_eq!(node, names(a));
    let fallback = told(&shared, "192.0.2.1:1", "10.1.0.1:8080");
    assert_eq!(fallback, names(a));

    until("a watch", || {
        state.lock().unwrap().slices.watches.len() == 1
    });
    let rolled = slice("web-1", "web", &[("web-b", "10.1.0.2")]);
    state.lock().unwrap().change("MODIFIED", rolled);
    until("the change", || {
        is("10.1.0.2:8080", ["web", "shop", "web-b", "node-2"])
    });
    // The dead are those that stale SYNs go to.
    assert!(is("10.1.0.1:8080", a));

    // The watches end without a word, and something happens before the next ones.
    {
        let mut state = state.lock().unwrap();
        state.services.watches.clear();
        state.slices.watches.clear();
    }
    until("a new watch", || {
        state.lock().unwrap().slices.watches.len() == 1
    });
    let rolled = slice("web-1", "web", &[("web-c", "10.1.0.1")]);
    state.lock().unwrap().change("MODIFIED", rolled);
    // A new owner of the address is its name from now on.
    until("the change", || {
        is("10.1.0.1:8080", ["web", "shop", "web-c", "node-2"])
    });

    // While no watch is open an object goes and one comes; the next watch is too old.
    {
        let mut state = state.lock().unwrap();
        state.services.too_old = true;
        state.slices.too_old = true;
        state.services.watches.clear();
        state.slices.watches.clear();
        state.change("DELETED", slice("web-1", "web", &[]));
        state.change("ADDED", slice("web-2", "web", &[("web-d", "10.1.0.1")]));
    }
    until("a list anew", || {
        is("10.1.0.1:8080", ["web", "shop", "web-d", "node-2"])
    });
    assert!(state.lock().unwrap().slices.lists >= 2);
}

#[test]
fn names_come_when_the_server_does_and_stay_when_it_goes() {
    let state = Arc::new(Mutex::new(State::default()));
    // A port that was free a moment ago.
    let address = {
        let listener = std::net::TcpListener::bind(LOCAL).unwrap();
        listener.local_addr().unwrap()
    };
    let shared = client(address);
    let web = || told(&shared, "10.96.0.10:80", "10.1.0.1:8080")[0].clone();
    assert_eq!(web(), None);
    state
        .lock()
        .unwrap()
        .change("ADDED", service("web", "10.96.0.10", 80));
    let server = Server::start(address, Arc::clone(&state));
    until("the server's list", || web().as_deref() == Some("web"));
    drop(server);
    state.lock().unwrap().services.watches.clear();
    assert_eq!(web().as_deref(), Some("web"));
    {
        let mut state = state.lock().unwrap();
        state.change("DELETED", service("web", "10.96.0.10", 80));
        state.change("ADDED", service("shop", "10.96.0.10", 80));
        // What was missed is not told again: a list is to be asked for.
        state.services.too_old = true;
    }
    assert_eq!(web().as_deref(), Some("web"));
    let _server = Server::start(address, Arc::clone(&state));
    until("the server's return", || web().as_deref() == Some("shop"));
}

#[test]
fn a_cluster_larger_than_the_cache_is_read_in_pages_and_bounded() {
    let state = Arc::new(Mutex::new(State::default()));
    let slices = ENDPOINTS / 100 + 100;
    {
        let mut state = state.lock().unwrap();
        for number in 0..slices {
            let pods: Vec<(String, String)> = (0..100)
                .map(|i| {
                    let address = format!("10.{}.{}.{i}", number / 250, number % 250);
                    (format!("pod-{number}-{i}"), address)
                })
                .collect();
            let pods: Vec<(&str, &str)> = pods.iter().map(|(p, a)| (&**p, &**a)).collect();
            state.change("ADDED", slice(&format!("slice-{number}"), "web", &pods));
        }
        state.change("ADDED", service("web", "10.96.0.10", 80));
    }
    let server = Server::start(LOCAL, Arc::clone(&state));
    let shared = client(server.address);
    until("the first pages", || {
        shared.load().len() >= ENDPOINTS / 100 * 100
    });
    until("the watch", || {
        state.lock().unwrap().slices.watches.len() == 1
    });
    assert!(shared.load().len() <= ENDPOINTS + SERVICES);
    assert!(shared.load().len() < slices * 100);
    let state = state.lock().unwrap();
    assert!(state.slices.most_asked <= 50, "{}", state.slices.most_asked);
    assert!(state.slices.lists >= slices / 50);
}
