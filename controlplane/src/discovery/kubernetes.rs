//! Nodes as the endpoints of a headless service of Kubernetes: the EndpointSlices of its name, from the API of the cluster
//! this node runs in (API group `discovery.k8s.io/v1`).
//!
//! Endpoints count whether they are ready or not: a node becomes ready by joining. The token is read for each
//! look-up, because Kubernetes changes it.

use crate::swim::machine::SEEDS_MAX;
use axum::body::{Body, to_bytes};
use axum::http::{Request, StatusCode, header};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, InvalidDnsNameError, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

/// Why the endpoints are not known.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    #[error("KUBERNETES_SERVICE_HOST is not set: this process does not run in a pod of Kubernetes")]
    Outside,
    #[error("cannot read {}: {source}; is a service account mounted?", path.display())]
    File { path: PathBuf, source: io::Error },
    #[error("{} has no certificate of an authority", path.display())]
    Authority { path: PathBuf },
    #[error("KUBERNETES_SERVICE_HOST {host:?} is no host")]
    Host { host: String, source: InvalidDnsNameError },
    #[error("cannot reach the API of Kubernetes at {host}:{port}: {source}")]
    Connect { host: String, port: u16, source: io::Error },
    #[error("the API of Kubernetes does not speak HTTP: {0}")]
    Http(String),
    #[error("the API of Kubernetes does not accept the token of the service account (401); is {} up to date?", token.display())]
    Unauthorized { token: PathBuf },
    #[error(
        "the service account may not list endpointslices of {namespace:?} (403); give it a Role with the verb list on \
         endpointslices of discovery.k8s.io"
    )]
    Forbidden { namespace: String },
    #[error(
        "the API of Kubernetes knows no endpointslices of {namespace:?} (404); they came with Kubernetes 1.21"
    )]
    NotFound { namespace: String },
    #[error("the API of Kubernetes answers {0}")]
    Status(StatusCode),
    #[error("the answer of the API of Kubernetes is too long or breaks off")]
    Body,
    #[error("the answer of the API of Kubernetes is no list of endpointslices")]
    Content(#[source] serde_json::Error),
    #[error("{namespace}/{service} has no endpoints; is there a headless service of this name?")]
    Empty { namespace: String, service: String },
}

/// The API and the service whose endpoints are the nodes.
#[derive(Clone, Debug)]
pub struct Api {
    pub host: String,
    pub port: u16,
    /// Of the service account; without its line end.
    pub token: PathBuf,
    /// Certificates of the authorities that vouch for the API.
    pub authorities: PathBuf,
    pub namespace: String,
    pub service: String,
    /// Of the nodes.
    pub node_port: u16,
}

impl Api {
    /// As the environment of a pod says. `service` is `namespace/service:port`; the configuration has checked it.
    pub fn of_pod(service: &str) -> Result<Self, ApiError> {
        let host = std::env::var("KUBERNETES_SERVICE_HOST").map_err(|_| ApiError::Outside)?;
        let port = std::env::var("KUBERNETES_SERVICE_PORT").ok().and_then(|port| port.parse().ok());
        let (namespace, rest) = service.split_once('/').unwrap_or(("default", service));
        let (service, node_port) = rest.split_once(':').unwrap_or((rest, ""));
        let file = |name| PathBuf::from(ACCOUNT).join(name);
        Ok(Self {
            host,
            port: port.unwrap_or(443),
            token: file("token"),
            authorities: file("ca.crt"),
            namespace: namespace.to_owned(),
            service: service.to_owned(),
            node_port: node_port.parse().unwrap_or_default(),
        })
    }

    pub async fn look(&self) -> Result<Vec<SocketAddr>, ApiError> {
        let tls = self.tls()?;
        let token = self.read(&self.token)?;
        let bare = self.host.trim_matches(['[', ']']).to_owned();
        let name = ServerName::try_from(bare.clone())
            .map_err(|source| ApiError::Host { host: self.host.clone(), source })?;
        let failed = |source| ApiError::Connect { host: self.host.clone(), port: self.port, source };
        let stream = TcpStream::connect((bare.as_str(), self.port)).await.map_err(failed)?;
        let stream = tls.connect(name, stream).await.map_err(failed)?;
        let http = |error: hyper::Error| ApiError::Http(error.to_string());
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(http)?;
        let request = self.request(token.trim())?;
        let exchange = async {
            let response = sender.send_request(request).await.map_err(http)?;
            self.check(response.status())?;
            to_bytes(Body::new(response.into_body()), ANSWER_BYTES_MAX).await.map_err(|_| ApiError::Body)
        };
        let driven = async {
            // When the connection ends, the exchange does as well.
            let _ = connection.await;
            std::future::pending::<Infallible>().await
        };
        let body = tokio::select! {
            body = exchange => body?,
            never = driven => match never {},
        };
        let found = endpoints(&body, self.node_port)?;
        if found.is_empty() {
            let (namespace, service) = (self.namespace.clone(), self.service.clone());
            return Err(ApiError::Empty { namespace, service });
        }
        Ok(found)
    }

    fn request(&self, token: &str) -> Result<Request<Body>, ApiError> {
        let path = format!(
            "/apis/discovery.k8s.io/v1/namespaces/{}/endpointslices?labelSelector=kubernetes.io%2Fservice-name%3D{}&limit=100",
            self.namespace, self.service
        );
        let request = Request::get(path)
            .header(header::HOST, format!("{}:{}", self.host, self.port))
            .header(header::AUTHORIZATION, format!("Bearer {token}"))
            .header(header::ACCEPT, "application/json")
            .header(header::USER_AGENT, concat!("signalbox/", env!("CARGO_PKG_VERSION")));
        request.body(Body::empty()).map_err(|error| ApiError::Http(error.to_string()))
    }

    fn check(&self, status: StatusCode) -> Result<(), ApiError> {
        let namespace = || self.namespace.clone();
        match status {
            StatusCode::OK => Ok(()),
            StatusCode::UNAUTHORIZED => Err(ApiError::Unauthorized { token: self.token.clone() }),
            StatusCode::FORBIDDEN => Err(ApiError::Forbidden { namespace: namespace() }),
            StatusCode::NOT_FOUND => Err(ApiError::NotFound { namespace: namespace() }),
            status => Err(ApiError::Status(status)),
        }
    }

    fn tls(&self) -> Result<TlsConnector, ApiError> {
        let missing = || ApiError::Authority { path: self.authorities.clone() };
        let pem = self.read(&self.authorities)?;
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
            roots.add(certificate.map_err(|_| missing())?).map_err(|_| missing())?;
        }
        if roots.is_empty() {
            return Err(missing());
        }
        let config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        Ok(TlsConnector::from(Arc::new(config)))
    }

    fn read(&self, path: &PathBuf) -> Result<String, ApiError> {
        let failed = |source| ApiError::File { path: path.clone(), source };
        let bytes = std::fs::metadata(path).map_err(failed)?.len();
        if bytes > FILE_BYTES_MAX {
            return Err(failed(io::Error::other(format!("it has {bytes} bytes"))));
        }
        std::fs::read_to_string(path).map_err(failed)
    }
}

/// What of an EndpointSliceList is of interest.
#[derive(Deserialize)]
struct SliceList {
    #[serde(default)]
    items: Vec<Slice>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Slice {
    #[serde(default)]
    address_type: String,
    /// An empty list is left out or null.
    endpoints: Option<Vec<Endpoint>>,
}

#[derive(Deserialize)]
struct Endpoint {
    #[serde(default)]
    addresses: Vec<String>,
}

fn endpoints(body: &[u8], port: u16) -> Result<Vec<SocketAddr>, ApiError> {
    let list: SliceList = serde_json::from_slice(body).map_err(ApiError::Content)?;
    let slices = list.items.into_iter().filter(|slice| slice.address_type != "FQDN");
    let endpoints = slices.flat_map(|slice| slice.endpoints.unwrap_or_default());
    let addresses = endpoints.flat_map(|endpoint| endpoint.addresses);
    let ips = addresses.filter_map(|address| address.parse::<IpAddr>().ok());
    Ok(ips.map(|ip| SocketAddr::new(ip, port)).take(SEEDS_MAX).collect())
}

/// Where a pod has its service account.
const ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
const ANSWER_BYTES_MAX: usize = 1 << 20;
const FILE_BYTES_MAX: u64 = 1 << 20;

#[cfg(test)]
mod tests;
