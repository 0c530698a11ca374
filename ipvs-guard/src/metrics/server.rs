//! The HTTP server: on a thread of its own, so that nothing waits for a slow scraper.

use std::{convert::Infallible, io, net, sync::Arc, thread, time::Duration};

use bytes::Bytes;
use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode,
    body::Incoming,
    header::{ACCEPT, ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, oneshot},
    time::{sleep, timeout},
};

use super::{Metrics, Scope, draining::Draining, exposition::Snapshot, negotiation::Form};

/// Connections at once; the next one waits to be taken.
const CONNECTIONS: usize = 8;
/// How long a request's head may take.
const HEAD: Duration = Duration::from_secs(5);
/// How long a connection may take in all: it is for one request.
const CONNECTION: Duration = Duration::from_secs(15);
/// Of a request's head.
const BUFFER: usize = 16 << 10;
/// After a connection that could not be taken, for want of descriptors for instance.
const PAUSE: Duration = Duration::from_millis(100);

const TEXT: &str = "text/plain; charset=utf-8";
const INDEX: &str = "ipvs-guard: /metrics, /healthz, /readyz\n";

/// A running server; it ends when dropped.
pub struct Server {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Server {
    /// Serves `metrics` on `listener`, with the connections of draining destinations in
    /// `scope`.
    ///
    /// # Errors
    /// That of starting a thread or its event loop.
    pub fn start(
        listener: net::TcpListener,
        metrics: Arc<Metrics>,
        scope: Scope,
    ) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let draining = metrics.draining(scope)?;
        let site = Arc::new(Site { metrics, draining });
        let (stop, stopped) = oneshot::channel();
        let thread = thread::Builder::new()
            .name("metrics".into())
            .spawn(move || {
                runtime.block_on(async {
                    tokio::select! {
                        () = accept(listener, &site) => {}
                        _ = stopped => {}
                    }
                });
            })?;
        Ok(Self {
            stop: Some(stop),
            thread: Some(thread),
        })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _panicked = thread.join();
        }
    }
}

/// What is served.
struct Site {
    metrics: Arc<Metrics>,
    draining: Draining,
}

async fn accept(listener: net::TcpListener, site: &Arc<Site>) {
    let listener = match TcpListener::from_std(listener) {
        Ok(listener) => listener,
        Err(error) => return log::error!("--metrics: {error}"),
    };
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let mut failing = false;
    // The semaphore is never closed.
    while let Ok(place) = Arc::clone(&places).acquire_owned().await {
        match listener.accept().await {
            Ok((stream, _)) => {
                failing = false;
                let site = Arc::clone(site);
                tokio::spawn(async move {
                    let _place = place;
                    let _slow = timeout(CONNECTION, serve(stream, site)).await;
                });
            }
            Err(error) => {
                if !failing {
                    log::warn!("--metrics: taking a connection: {error}");
                }
                failing = true;
                sleep(PAUSE).await;
            }
        }
    }
}

async fn serve(stream: TcpStream, site: Arc<Site>) {
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .max_buf_size(BUFFER)
        // An idle connection would keep others from their place.
        .keep_alive(false)
        .serve_connection(
            TokioIo::new(stream),
            service_fn(|request| {
                let site = Arc::clone(&site);
                async move { Ok::<_, Infallible>(site.answer(&request).await) }
            }),
        );
    if let Err(error) = connection.await {
        log::debug!("--metrics: {error}");
    }
}

impl Site {
    async fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            let mut refused = plain(StatusCode::METHOD_NOT_ALLOWED, "GET or HEAD\n");
            refused
                .headers_mut()
                .insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            return refused;
        }
        match request.uri().path() {
            "/metrics" => self.metrics(accept_of(request)).await,
            "/healthz" => verdict(self.metrics.health.is_alive()),
            "/readyz" => verdict(self.metrics.health.is_ready()),
            "/" => plain(StatusCode::OK, INDEX),
            _ => plain(StatusCode::NOT_FOUND, INDEX),
        }
    }

    async fn metrics(&self, accept: String) -> Response<Full<Bytes>> {
        let form = Form::wanted(&accept);
        let draining = self.draining.latest().await;
        match Snapshot::take(&self.metrics, draining).encode(form) {
            Ok(text) => response(StatusCode::OK, form.content_type(), text),
            Err(error) => plain(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
        }
    }
}

/// Several headers of that name are one list.
fn accept_of(request: &Request<Incoming>) -> String {
    let values = request.headers().get_all(ACCEPT).iter();
    let texts: Vec<&str> = values.filter_map(|value| value.to_str().ok()).collect();
    texts.join(",")
}

fn verdict(outcome: Result<(), String>) -> Response<Full<Bytes>> {
    match outcome {
        Ok(()) => plain(StatusCode::OK, "ok\n"),
        Err(reason) => plain(StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")),
    }
}

fn plain(status: StatusCode, text: impl Into<Bytes>) -> Response<Full<Bytes>> {
    response(status, TEXT, text)
}

fn response(
    status: StatusCode,
    content_type: &'static str,
    text: impl Into<Bytes>,
) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(text.into()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};

    use super::*;
    use crate::metrics::health::Stage;

    fn server() -> (Server, net::SocketAddr, Arc<Metrics>) {
        let listener = net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let metrics = Arc::new(Metrics::new(None));
        let server = Server::start(listener, Arc::clone(&metrics), Scope::default()).unwrap();
        (server, address, metrics)
    }

    fn ask(address: net::SocketAddr, request: &str) -> String {
        let mut stream = net::TcpStream::connect(address).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    fn get(address: net::SocketAddr, path: &str) -> String {
        ask(address, &format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n"))
    }

    #[test]
    fn health_and_readiness_are_answered() {
        let (_server, address, metrics) = server();
        metrics.health.enter(Stage::WaitingForIpvs);
        assert!(get(address, "/healthz").starts_with("HTTP/1.1 200 OK\r\n"));
        let answer = get(address, "/readyz");
        assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
        assert!(answer.ends_with("ip_vs: it is not loaded\n"), "{answer}");
        metrics.health.enter(Stage::Ready);
        let answer = get(address, "/readyz");
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    }

    #[test]
    fn what_is_asked_wrongly_is_answered_so() {
        let (_server, address, _) = server();
        assert!(get(address, "/metric").starts_with("HTTP/1.1 404 "));
        let post = "POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n";
        let answer = ask(address, post);
        assert!(answer.starts_with("HTTP/1.1 405 "), "{answer}");
        assert!(
            answer.to_lowercase().contains("allow: get, head"),
            "{answer}"
        );
        assert!(ask(address, "nonsense\r\n\r\n").starts_with("HTTP/1.1 400 "));
        let long = format!("GET / HTTP/1.1\r\nx: {}\r\n\r\n", "y".repeat(BUFFER * 2));
        let mut stream = net::TcpStream::connect(address).unwrap();
        // It may be refused before all of it was sent, and reset then.
        let _cut = stream.write_all(long.as_bytes());
        let mut answer = Vec::new();
        let _reset = stream.read_to_end(&mut answer);
        assert!(!answer.starts_with(b"HTTP/1.1 200"));
    }

    #[test]
    fn a_scraper_that_says_nothing_keeps_nobody_from_an_answer() {
        let (_server, address, metrics) = server();
        metrics.health.enter(Stage::Ready);
        let silent: Vec<_> = (0..CONNECTIONS - 1)
            .map(|_| net::TcpStream::connect(address).unwrap())
            .collect();
        assert!(get(address, "/readyz").starts_with("HTTP/1.1 200 "));
        // More of them than there are places: they are sent away in time.
        let more = net::TcpStream::connect(address).unwrap();
        assert!(get(address, "/readyz").starts_with("HTTP/1.1 200 "));
        drop((silent, more));
    }

    #[test]
    fn the_port_is_free_when_it_has_ended() {
        let (server, address, _) = server();
        drop(server);
        assert!(net::TcpStream::connect(address).is_err());
    }
}
