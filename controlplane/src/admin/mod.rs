//! The admin endpoint: HTTP/1.1 for operators and scrapers. Never on a request's path.
//!
//! ```text
//! GET /ping /ready /metrics /status /realms /cluster /cluster/conflicts   anybody who reaches the address
//! PUT, DELETE /realms/{name}                                   loopback peers only, see `guard`
//! POST /cluster/join, /cluster/leave, /cluster/forget/{node}   the same
//! ```
//! Everything a client can make us hold is bounded: connections, their life, heads, bodies and the time they take.

mod cluster;
mod guard;
mod metrics;
mod pages;
mod realms;
mod rules;

pub use realms::show_wanted;

use crate::io::driver::Handle;
use crate::io::udp::Cluster;
use crate::store::Store;
use axum::body::{Body, to_bytes};
use axum::http::StatusCode;
use axum::response::Response;
use axum::routing::{get, post, put};
use axum::{Extension, Router};
use bytes::Bytes;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tracing::{debug, warn};

/// What the pages are made from.
#[derive(Clone)]
pub struct Admin {
    pub handle: Handle,
    pub store: Store,
    /// None: the node is in no cluster.
    pub cluster: Option<Cluster>,
    pub facts: Arc<Facts>,
}

/// What does not change while the process lives.
#[derive(Clone, Debug)]
pub struct Facts {
    pub pid: u32,
    pub started: Instant,
    pub address: SocketAddr,
    pub data_dir: PathBuf,
    pub shard_cpus: Vec<u32>,
    pub control_cpus: Vec<u32>,
    pub supervise: bool,
}

/// The address of the client.
#[derive(Clone, Copy, Debug)]
struct Peer(SocketAddr);

impl Admin {
    pub fn new(handle: Handle, store: Store, cluster: Option<Cluster>, facts: Facts) -> Self {
        Self { handle, store, cluster, facts: Arc::new(facts) }
    }

    fn router(self) -> Router {
        Router::new()
            .route("/", get(pages::index))
            .route("/ping", get(pages::ping))
            .route("/ready", get(pages::ready))
            .route("/metrics", get(pages::metrics))
            .route("/status", get(pages::status))
            .route("/realms", get(realms::list))
            .route("/realms/{name}", put(realms::put).delete(realms::remove))
            .route("/cluster", get(cluster::show))
            .route("/cluster/conflicts", get(cluster::conflicts))
            .route("/cluster/join", post(cluster::join))
            .route("/cluster/leave", post(cluster::leave))
            .route("/cluster/forget/{node}", post(cluster::forget))
            .fallback(pages::not_found)
            .with_state(self)
    }

    /// Serves for ever.
    pub async fn serve(self, listener: TcpListener) {
        let router = self.router();
        let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        loop {
            let slot = Arc::clone(&slots).acquire_owned().await.expect("the semaphore is never closed");
            let (stream, peer) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    // The client has gone, or descriptors are short; both pass.
                    warn!(%error, "could not accept an admin connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            // An answer is one small write; it must not wait for the client's acknowledgement of the last.
            let _ = stream.set_nodelay(true);
            let router = router.clone().layer(Extension(Peer(peer)));
            tokio::spawn(async move {
                serve_connection(router, stream).await;
                drop(slot);
            });
        }
    }
}

/// A request's body, bounded in bytes and time.
async fn read_body(body: Body) -> Result<Bytes, Response> {
    let Ok(bytes) = timeout(BODY_MAX, to_bytes(body, BODY_BYTES_MAX)).await else {
        return Err(pages::fail(StatusCode::REQUEST_TIMEOUT, "the body did not arrive in time"));
    };
    let too_long = format!("the body is broken or longer than {BODY_BYTES_MAX} bytes");
    bytes.map_err(|_| pages::fail(StatusCode::PAYLOAD_TOO_LARGE, &too_long))
}

async fn serve_connection(router: Router, stream: TcpStream) {
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_MAX)
        .max_headers(HEADERS_MAX)
        .max_buf_size(HEAD_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = tokio::time::sleep(CONNECTION_LIFE) => {
            // Whoever keeps its connection busy may finish what it does and connect again.
            connection.as_mut().graceful_shutdown();
            match timeout(LAST_REQUEST_MAX, connection).await {
                Ok(ended) => ended,
                Err(_) => return,
            }
        }
    };
    if let Err(error) = ended {
        debug!(%error, "admin connection ended");
    }
}

const CONNECTIONS_MAX: usize = 64;
/// How long a head may take to arrive, which is also how long a connection may be idle.
const HEAD_MAX: Duration = Duration::from_secs(20);
const HEADERS_MAX: usize = 64;
const HEAD_BYTES_MAX: usize = 16 * 1_024;
/// Longest request body.
const BODY_BYTES_MAX: usize = 64 * 1_024;
/// How long a body may take to arrive.
const BODY_MAX: Duration = Duration::from_secs(5);
const CONNECTION_LIFE: Duration = Duration::from_secs(300);
const LAST_REQUEST_MAX: Duration = Duration::from_secs(10);
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
