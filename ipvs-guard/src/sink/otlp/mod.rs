//! OTLP logs, over gRPC and over HTTP with protobuf.
//!
//! On the protocol's own definitions (opentelemetry-proto) rather than the exporter of
//! opentelemetry-otlp 0.33: that one hands the number of records that a receiver has
//! rejected to its own log only, tells a refusal from an absence by its text, tries
//! again by itself, and takes records of the SDK's logger alone.

mod answer;
mod options;
mod record;
mod url;

use std::{error::Error, sync::Arc, time::Duration};

use http_body_util::{BodyExt as _, Full, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use opentelemetry_proto::tonic::{
    collector::logs::v1::{
        ExportLogsServiceRequest, ExportLogsServiceResponse, logs_service_client::LogsServiceClient,
    },
    resource::v1::Resource,
};
use prost::Message as _;
use tonic::{body::Body, metadata::MetadataMap};

use self::url::Protocol;
pub use self::{
    options::Options,
    url::{Endpoint, check, shown},
};
use super::{Receiver, Trouble, tls};
use crate::event::Event;

const USER_AGENT: &str = concat!("ipvs-guard/", env!("CARGO_PKG_VERSION"));
/// What an answer may have.
const ANSWER: usize = 64 << 10;
/// After this time without traffic the kernel asks whether the other end is there.
const KEEP_ALIVE: Duration = Duration::from_secs(30);

type HttpClient = Client<HttpsConnector<HttpConnector>, Body>;

/// A receiver of OTLP logs.
pub struct Otlp {
    endpoint: Endpoint,
    options: Options,
    resource: Resource,
    client: HttpClient,
}

impl Otlp {
    /// One at `endpoint`, of events of `host`; connects with the first of them.
    ///
    /// # Errors
    /// What is wrong with the certificates that `options` name.
    pub fn new(endpoint: Endpoint, options: Options, host: &str) -> Result<Self, String> {
        Ok(Self {
            resource: options.resource(host),
            client: client(&endpoint, &options)?,
            endpoint,
            options,
        })
    }

    /// Leaves the connection that there is, whose other end may have vanished without a
    /// word, and reads the certificates again, which may have been renewed.
    fn begin_anew(&mut self) {
        // What is wrong with a file now is told by the receiver's refusal.
        if let Ok(client) = client(&self.endpoint, &self.options) {
            self.client = client;
        }
    }

    async fn send(&self, request: ExportLogsServiceRequest) -> answer::Answer {
        match self.endpoint.protocol() {
            Protocol::Grpc => self.call(request).await,
            Protocol::Http => self.post(request).await,
        }
    }

    async fn call(&self, message: ExportLogsServiceRequest) -> answer::Answer {
        let mut service =
            LogsServiceClient::with_origin(self.client.clone(), self.endpoint.uri().clone());
        let mut request = tonic::Request::new(message);
        *request.metadata_mut() = MetadataMap::from_headers(self.options.headers.clone());
        match service.export(request).await {
            Ok(response) => answer::Answer::Taken(response.into_inner()),
            Err(status) => answer::of_status(&status),
        }
    }

    async fn post(&self, message: ExportLogsServiceRequest) -> answer::Answer {
        let mut request = http::Request::new(Body::new(Full::from(bytes::Bytes::from(
            message.encode_to_vec(),
        ))));
        *request.method_mut() = http::Method::POST;
        *request.uri_mut() = self.endpoint.uri().clone();
        request.headers_mut().extend(self.options.headers.clone());
        request.headers_mut().insert(
            http::header::CONTENT_TYPE,
            http::HeaderValue::from_static(answer::PROTOBUF),
        );
        request.headers_mut().insert(
            http::header::USER_AGENT,
            http::HeaderValue::from_static(USER_AGENT),
        );
        let response = match self.client.request(request).await {
            Ok(response) => response,
            Err(error) => return answer::Answer::No(answer::of_transport(&error)),
        };
        let (head, body) = response.into_parts();
        match Limited::new(body, ANSWER).collect().await {
            Ok(body) => answer::of_response(&head, &body.to_bytes()),
            Err(error) => answer::Answer::No(Trouble::Away(format!(
                "its answer broke off: {}",
                answer::with_causes(error.as_ref() as &dyn Error)
            ))),
        }
    }
}

impl Receiver for Otlp {
    async fn deliver(&mut self, events: &[Arc<Event>]) -> Result<usize, Trouble> {
        let request = record::request(&self.resource, events);
        let timeout = self.options.timeout;
        let answer = tokio::time::timeout(timeout, self.send(request))
            .await
            .unwrap_or_else(|_| {
                let reason = format!("no answer within {} ms", timeout.as_millis());
                answer::Answer::No(Trouble::Away(reason))
            });
        if matches!(answer, answer::Answer::No(Trouble::Away(_))) {
            self.begin_anew();
        }
        match answer {
            answer::Answer::Taken(ExportLogsServiceResponse { partial_success }) => {
                answer::of_partial_success(partial_success.unwrap_or_default(), events.len())
            }
            answer::Answer::No(trouble) => Err(trouble),
            answer::Answer::Never(reason) => Err(Trouble::Refused {
                events: events.len(),
                reason,
            }),
        }
    }
}

fn client(endpoint: &Endpoint, options: &Options) -> Result<HttpClient, String> {
    let tls = if endpoint.is_encrypted() {
        options.tls()?
    } else {
        tls::no_config()?
    };
    let mut connector = HttpConnector::new();
    connector.enforce_http(false);
    connector.set_nodelay(true);
    connector.set_keepalive(Some(KEEP_ALIVE));
    let builder = HttpsConnectorBuilder::new().with_tls_config(tls);
    let builder = if endpoint.is_encrypted() {
        builder.https_only()
    } else {
        builder.https_or_http()
    };
    let grpc = endpoint.protocol() == Protocol::Grpc;
    let connector = if grpc {
        builder.enable_http2().wrap_connector(connector)
    } else {
        builder.enable_http1().wrap_connector(connector)
    };
    Ok(Client::builder(TokioExecutor::new())
        .http2_only(grpc)
        .pool_timer(TokioTimer::new())
        .pool_max_idle_per_host(1)
        .build(connector))
}
