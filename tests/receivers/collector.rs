//! A receiver of OTLP logs on the official service definitions: gRPC by tonic's server,
//! HTTP by hyper's. Started and killed as often as a test wants; what it has taken
//! outlives it.

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Instant,
};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;
use opentelemetry_proto::tonic::{
    collector::logs::v1::{
        ExportLogsPartialSuccess, ExportLogsServiceRequest, ExportLogsServiceResponse,
        logs_service_server::{LogsService, LogsServiceServer},
    },
    common::v1::{KeyValue, any_value::Value},
    logs::v1::LogRecord,
    resource::v1::Resource,
};
use prost::Message as _;
use rustls::ServerConfig;
use tokio::{net::TcpListener, runtime::Runtime};
use tokio_rustls::TlsAcceptor;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{
    Code, Request, Response, Status,
    transport::{Identity, Server, ServerTlsConfig},
};
use tonic_types::{ErrorDetails, StatusExt as _};

/// What a receiver answers.
#[derive(Clone, Debug)]
pub(crate) enum Manner {
    /// Takes all.
    Takes,
    /// Takes all of a request but so many.
    Rejects(usize),
    /// Does not take any now, and says after how many seconds it will.
    Busy(u64),
    /// Takes none, ever.
    Refuses,
}

/// What a receiver has been given.
#[derive(Debug, Default)]
pub(crate) struct Taken {
    pub(crate) records: Vec<LogRecord>,
    pub(crate) resource: Resource,
    pub(crate) rejected: usize,
    /// When requests came, with the headers that they had.
    pub(crate) requests: Vec<(Instant, http::HeaderMap)>,
    /// Answers to come; takes all when there is none.
    pub(crate) manners: Vec<Manner>,
    /// Holds from the last of them on.
    pub(crate) always: Option<Manner>,
}

impl Taken {
    /// Sequence numbers of what it has, each once.
    pub(crate) fn sequence(&self) -> Vec<u32> {
        let mut all: Vec<u32> = self.records.iter().filter_map(sequence).collect();
        all.sort_unstable();
        all.dedup();
        all
    }

    fn take(&mut self, headers: http::HeaderMap, request: ExportLogsServiceRequest) -> Manner {
        self.requests.push((Instant::now(), headers));
        let manner = self.manners.pop();
        let manner = manner
            .or_else(|| self.always.clone())
            .unwrap_or(Manner::Takes);
        let left_out = match manner {
            Manner::Takes => 0,
            Manner::Rejects(some) => some,
            Manner::Busy(_) | Manner::Refuses => return manner,
        };
        for of_resource in request.resource_logs {
            self.resource = of_resource.resource.unwrap();
            let scopes = of_resource.scope_logs;
            let mut records: Vec<_> = scopes.into_iter().flat_map(|s| s.log_records).collect();
            let rejected = left_out.min(records.len());
            self.rejected += rejected;
            self.records.extend(records.drain(rejected..));
        }
        manner
    }
}

/// The value of an attribute.
pub(crate) fn attribute(attributes: &[KeyValue], key: &str) -> Option<Value> {
    let mut found = attributes.iter().filter(|pair| pair.key == key);
    let value = found.next()?.value.clone()?.value;
    assert!(found.next().is_none(), "{key} twice");
    value
}

fn sequence(record: &LogRecord) -> Option<u32> {
    let value = attribute(&record.attributes, "tcp.seq")?;
    let Value::IntValue(seq) = value else {
        panic!("tcp.seq is {value:?}");
    };
    Some(u32::try_from(seq).unwrap())
}

/// Which of the two transports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transport {
    Grpc,
    Http,
}

/// A certificate and its key, in PEM.
#[derive(Clone, Debug)]
pub(crate) struct Certificate {
    pub(crate) chain: String,
    pub(crate) key: String,
}

/// A receiver that runs.
pub(crate) struct Collector {
    pub(crate) address: SocketAddr,
    pub(crate) taken: Arc<Mutex<Taken>>,
    transport: Transport,
    certificate: Option<Certificate>,
    runtime: Option<Runtime>,
}

impl Collector {
    pub(crate) fn start(transport: Transport, certificate: Option<Certificate>) -> Self {
        let mut collector = Self {
            address: SocketAddr::from(([127, 0, 0, 1], 0)),
            taken: Arc::default(),
            transport,
            certificate,
            runtime: None,
        };
        collector.restart();
        collector
    }

    pub(crate) fn url(&self) -> String {
        let scheme = match (self.transport, &self.certificate) {
            (Transport::Grpc, None) => "grpc",
            (Transport::Grpc, Some(_)) => "grpcs",
            (Transport::Http, None) => "http",
            (Transport::Http, Some(_)) => "https",
        };
        format!("{scheme}://localhost:{}", self.address.port())
    }

    /// Cuts every connection, requests under way included.
    pub(crate) fn kill(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }

    /// Listens where it did before.
    pub(crate) fn restart(&mut self) {
        self.kill();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let listener = runtime.block_on(async {
            loop {
                // What was cut a moment ago may still be closing.
                match TcpListener::bind(self.address).await {
                    Ok(listener) => return listener,
                    Err(_) => tokio::time::sleep(std::time::Duration::from_millis(10)).await,
                }
            }
        });
        self.address = listener.local_addr().unwrap();
        let taken = Arc::clone(&self.taken);
        let certificate = self.certificate.clone();
        match self.transport {
            Transport::Grpc => runtime.spawn(serve_grpc(listener, taken, certificate)),
            Transport::Http => runtime.spawn(serve_http(listener, taken, certificate)),
        };
        self.runtime = Some(runtime);
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.kill();
    }
}

struct Service(Arc<Mutex<Taken>>);

#[tonic::async_trait]
impl LogsService for Service {
    async fn export(
        &self,
        request: Request<ExportLogsServiceRequest>,
    ) -> Result<Response<ExportLogsServiceResponse>, Status> {
        let (metadata, _, message) = request.into_parts();
        let manner = self
            .0
            .lock()
            .unwrap()
            .take(metadata.into_headers(), message);
        match manner {
            Manner::Takes => Ok(Response::new(receipt(0))),
            Manner::Rejects(some) => Ok(Response::new(receipt(some))),
            Manner::Busy(seconds) => {
                let mut details = ErrorDetails::new();
                details.set_retry_info(Some(std::time::Duration::from_secs(seconds)));
                let code = Code::ResourceExhausted;
                Err(Status::with_error_details(code, "too much", details))
            }
            Manner::Refuses => Err(Status::unauthenticated("who are you?")),
        }
    }
}

fn receipt(rejected: usize) -> ExportLogsServiceResponse {
    ExportLogsServiceResponse {
        partial_success: (rejected > 0).then(|| ExportLogsPartialSuccess {
            rejected_log_records: rejected as i64,
            error_message: "too old".into(),
        }),
    }
}

async fn serve_grpc(
    listener: TcpListener,
    taken: Arc<Mutex<Taken>>,
    certificate: Option<Certificate>,
) {
    let mut server = Server::builder();
    if let Some(Certificate { chain, key }) = certificate {
        let tls = ServerTlsConfig::new().identity(Identity::from_pem(chain, key));
        server = server.tls_config(tls).unwrap();
    }
    server
        .add_service(LogsServiceServer::new(Service(taken)))
        .serve_with_incoming(TcpListenerStream::new(listener))
        .await
        .unwrap();
}

async fn serve_http(
    listener: TcpListener,
    taken: Arc<Mutex<Taken>>,
    certificate: Option<Certificate>,
) {
    let acceptor = certificate.map(|certificate| acceptor(&certificate));
    while let Ok((stream, _)) = listener.accept().await {
        let taken = Arc::clone(&taken);
        let acceptor = acceptor.clone();
        tokio::spawn(async move {
            let service = service_fn(move |request| answer(request, Arc::clone(&taken)));
            let http = hyper::server::conn::http1::Builder::new();
            // A client that breaks off is no concern of a receiver.
            let _ended = match acceptor {
                None => http.serve_connection(TokioIo::new(stream), service).await,
                Some(acceptor) => match acceptor.accept(stream).await {
                    Ok(stream) => http.serve_connection(TokioIo::new(stream), service).await,
                    Err(_) => return,
                },
            };
        });
    }
}

async fn answer(
    request: http::Request<Incoming>,
    taken: Arc<Mutex<Taken>>,
) -> Result<http::Response<Full<Bytes>>, Infallible> {
    const PROTOBUF: &str = "application/x-protobuf";
    let (head, body) = request.into_parts();
    let answer = http::Response::builder();
    if (head.method.as_str(), head.uri.path()) != ("POST", "/v1/logs")
        || head.headers[http::header::CONTENT_TYPE] != PROTOBUF
    {
        let nothing = answer.status(404).body(Full::default());
        return Ok(nothing.unwrap());
    }
    let Ok(body) = body.collect().await else {
        return Ok(answer.status(400).body(Full::default()).unwrap());
    };
    let message = ExportLogsServiceRequest::decode(body.to_bytes()).unwrap();
    let manner = taken.lock().unwrap().take(head.headers, message);
    let answer = answer.header(http::header::CONTENT_TYPE, PROTOBUF);
    let answer = match manner {
        Manner::Takes => answer.body(receipt(0).encode_to_vec()),
        Manner::Rejects(some) => answer.body(receipt(some).encode_to_vec()),
        Manner::Busy(seconds) => answer
            .status(503)
            .header(http::header::RETRY_AFTER, seconds)
            .body(Vec::new()),
        Manner::Refuses => {
            let status = tonic_types::Status {
                code: 16,
                message: "who are you?".into(),
                details: Vec::new(),
            };
            answer.status(401).body(status.encode_to_vec())
        }
    };
    Ok(answer.unwrap().map(|body| Full::new(Bytes::from(body))))
}

fn acceptor(certificate: &Certificate) -> TlsAcceptor {
    use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};

    let chain = CertificateDer::pem_slice_iter(certificate.chain.as_bytes());
    let chain = chain.collect::<Result<Vec<_>, _>>().unwrap();
    let key = PrivateKeyDer::from_pem_slice(certificate.key.as_bytes()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    TlsAcceptor::from(Arc::new(config))
}
