//! Starts membership as the configuration says, or not at all.

use crate::discovery::dns::Dns;
use crate::discovery::kubernetes::{Api, ApiError};
use crate::discovery::multicast::Group;
use crate::discovery::{self, DiscoveryCounts, Host};
use crate::io::peers::{self, Members, PeerEvent, Peers};
use crate::io::udp::{self, Cluster, Ports};
use crate::peers::{Hello, LinkConfig};
use crate::store::record::Actor;
use crate::swim::identity::{About, Identity};
use crate::swim::seal::{KeyError, Keyring};
use crate::swim::{PROTOCOL, Settings, Swim};
use common::config::{self, Discovery};
use common::ids::NodeId;
use common::keys::ClusterKeys;
use common::noise::{Purpose, Terms};
use std::io::{self, Read};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;
use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::{mpsc, watch};
use tracing::info;
use uuid::Uuid;

/// Why there is no membership although it is configured.
#[derive(Debug, thiserror::Error)]
pub enum MembershipError {
    #[error("cluster.key_file: cannot read {}", path.display())]
    KeyFile {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cluster.key_file: every user can read {}; chmod 600", path.display())]
    KeyFileOpen { path: PathBuf },
    #[error("cluster.key_file: {}", path.display())]
    Key {
        path: PathBuf,
        #[source]
        source: KeyError,
    },
    #[error("{key}: there is nothing to look up")]
    Discovery { key: &'static str },
    #[error("cluster.kubernetes")]
    Kubernetes(#[from] ApiError),
    #[error("cluster.address: cannot listen on {protocol} {address}")]
    Listen {
        protocol: &'static str,
        address: SocketAddr,
        #[source]
        source: io::Error,
    },
}

/// Membership and the links to the members.
pub struct Membership {
    pub cluster: Cluster,
    pub peers: Peers,
    /// To be taken: while nobody does, links are not read.
    pub events: mpsc::Receiver<PeerEvent>,
}

/// Opens the cluster port, UDP and TCP, unless `cluster.discovery` is none. `epoch` is greater than at any earlier start.
pub async fn start(
    config: &config::Cluster,
    actor: Actor,
    epoch: u64,
) -> Result<Option<Membership>, MembershipError> {
    if config.discovery == Discovery::None {
        return Ok(None);
    }
    let keys = read_keys(&config.key_file)?;
    let address = config.address;
    let failed = |protocol| move |source| MembershipError::Listen { protocol, address, source };
    let socket = UdpSocket::bind(address).await.map_err(failed("UDP"))?;
    // Until it is known to take packets the first ones to the seeds would be lost.
    socket.writable().await.map_err(failed("UDP"))?;
    let listener = TcpListener::bind(address).await.map_err(failed("TCP"))?;
    let link = LinkConfig {
        terms: Terms { keys: keys.clone(), env: config.env.as_str().into(), purpose: Purpose::Control },
        hello: Hello {
            protocol: PROTOCOL,
            node: NodeId(actor.node),
            epoch,
            store_epoch: actor.epoch,
            attempt: 0,
            version: env!("CARGO_PKG_VERSION").to_owned(),
        },
    };
    let about = About {
        store_epoch: actor.epoch,
        pid: std::process::id(),
        protocol: PROTOCOL,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        domain: config.failure_domain.clone(),
    };
    let advertised = config.advertised();
    let identity = Identity {
        node: Uuid::from_bytes(actor.node),
        epoch,
        about: Arc::new(about),
        ..Identity::unknown_at(advertised)
    };
    let settings = Settings {
        identity,
        env: config.env.clone(),
        keys: Keyring::new(&keys),
        nonce: Uuid::new_v4().into_bytes(),
        seed: Uuid::new_v4().as_u64_pair().0,
        seeds: vec![],
        probe_interval: config.probe_interval,
        probe_timeout: config.probe_timeout,
        suspicion: config.suspicion,
        forget_after: config.forget_after,
    };
    let (found, seeds) = mpsc::channel(1);
    let discovered = Arc::new(DiscoveryCounts::default());
    tokio::spawn(discovery::run(source(config, actor, &keys)?, found, Arc::clone(&discovered)));
    let (members, members_seen) = watch::channel(Members::default());
    let (linked_sender, linked) = mpsc::channel(LINKED_PACKETS_MAX);
    let (peers, events) = peers::start(listener, link, members_seen, linked_sender);
    let ports = Ports { socket, seeds, peers: peers.clone(), linked, members, discovered };
    let cluster = udp::start(Swim::new(Instant::now(), settings), config.env.clone(), ports);
    info!(%address, %advertised, env = config.env, "membership started");
    Ok(Some(Membership { cluster, peers, events }))
}

/// Where other nodes are looked for. The configuration has been checked.
fn source(
    config: &config::Cluster,
    actor: Actor,
    keys: &ClusterKeys,
) -> Result<discovery::Source, MembershipError> {
    let nothing = |key| MembershipError::Discovery { key };
    Ok(match config.discovery {
        Discovery::None | Discovery::Static => {
            discovery::Source::Static(config.seeds.iter().cloned().map(Host::new).collect())
        }
        Discovery::Dns => {
            discovery::Source::Dns(Dns::new(&config.dns).ok_or_else(|| nothing("cluster.dns"))?)
        }
        Discovery::Kubernetes => discovery::Source::Kubernetes(Api::of_pod(&config.kubernetes)?),
        Discovery::Multicast => {
            let SocketAddr::V4(group) = config.multicast else { return Err(nothing("cluster.multicast")) };
            let own = (config.address, Uuid::from_bytes(actor.node), config.advertised());
            let nonce = Uuid::new_v4().into_bytes();
            discovery::Source::Multicast(Group::new(group, own, Keyring::new(keys), &config.env, nonce))
        }
    })
}

fn read_keys(path: &Path) -> Result<ClusterKeys, MembershipError> {
    let failed = |source| MembershipError::KeyFile { path: path.to_owned(), source };
    let file = std::fs::File::open(path).map_err(failed)?;
    if file.metadata().map_err(failed)?.permissions().mode() & 0o007 != 0 {
        return Err(MembershipError::KeyFileOpen { path: path.to_owned() });
    }
    let mut text = String::new();
    file.take(KEY_FILE_BYTES_MAX).read_to_string(&mut text).map_err(failed)?;
    ClusterKeys::parse(&text).map_err(|source| MembershipError::Key { path: path.to_owned(), source })
}

/// Longest key file; comments included.
const KEY_FILE_BYTES_MAX: u64 = 64 << 10;
/// Membership packets that came over links and wait; more are lost, as in a socket.
const LINKED_PACKETS_MAX: usize = 256;
