//! The configuration file: one TOML file, every key optional, every value checked.
//!
//! Errors name file, line, key, what was found and what is allowed; unknown keys are errors.
//!
//! ```text
//! text ─ toml_edit ─▶ reader (one value, by its row of the schema) ─▶ parse (one section) ─▶ check (pairs of values)
//! ```
//! Invariants: every key that is read has one row in [`SCHEMA`], which holds its bounds; [`DEFAULT_TEXT`] parses to
//! [`Config::default`]; the size of a configuration is bounded by the size of its text.

mod check;
mod cluster;
mod defaults;
mod histories;
mod listener;
mod parse;
mod reader;
mod realm;
mod resume;
mod schema;
mod value;

pub use listener::admits;
pub use resume::Resume;
pub use schema::{Key, Kind, SCHEMA};

use crate::history::History;
use crate::rules::Rules;
use crate::snapshot::Anonymous;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// The whole configuration with defaults filled in.
#[derive(Clone, PartialEq, Debug)]
pub struct Config {
    /// `data_dir`: the store, the link socket and lock files live here. Relative paths are relative to the working
    /// directory.
    pub data_dir: PathBuf,
    /// `cores`: CPUs of the data plane, one shard each.
    pub cores: Cores,
    pub control: Control,
    pub memory: Memory,
    /// `[[listener]]`; none written means [`Config::default`]'s two.
    pub listeners: Vec<Listener>,
    pub admin: Admin,
    pub limits: Limits,
    pub timeouts: Timeouts,
    pub http: Http,
    pub slow_receiver: SlowReceiver,
    pub resume: Resume,
    pub io: Io,
    pub snapshot: SnapshotConfig,
    /// `[[realm]]`; none written means `realm1`, anonymous from loopback, compatible.
    pub realms: Vec<RealmConfig>,
    pub cluster: Cluster,
    pub aae: Aae,
    pub relay: Relay,
    pub log: Log,
}

/// `cores = "auto"` or `cores = "0-3,6"`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Cores {
    /// All CPUs the process may run on.
    Auto,
    List(Vec<u32>),
}

/// `[control]`
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Control {
    /// `cpus`: CPUs of the control plane; `auto`: those of the process that no shard is pinned to, or all of them.
    pub cpus: Cores,
}

/// `[memory]`
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Memory {
    /// `max`: bytes the data plane may hold in queues and incomplete messages, all shards together; at this bound
    /// publishers are not read.
    pub max: u64,
    /// `numa`: place each shard's memory on its core's node.
    pub numa: bool,
}

/// How peers speak on a listener.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Transport {
    WebSocket,
    RawSocket,
    /// Either: the first octet tells.
    Auto,
    /// Long-poll and server-sent events only.
    Http,
}

/// Whether WebSocket messages may be compressed (permessage-deflate, RFC 7692).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Compression {
    Off,
    /// Each message by itself: no memory for a connection, and an event is compressed once for all its receivers.
    NoTakeover,
    /// With the messages before as context, where the client agrees.
    Takeover,
}

/// A Unix-domain socket that a listener listens on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct UnixSocket {
    pub path: PathBuf,
    /// Permissions of the socket's file.
    pub mode: u32,
}

/// `[[listener]]`
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Listener {
    pub transport: Transport,
    /// `address`: IP and port; port 0 lets the kernel choose.
    pub address: SocketAddr,
    /// `path`: of the upgrade request; empty for RawSocket.
    pub path: String,
    /// `connections_max`: of the node on this listener.
    pub connections_max: u32,
    /// `message_max`: longest message in bytes, at most 16 MiB; RawSocket rounds it down to a power of two.
    pub message_max: u32,
    /// `socket` and `mode`: listened on instead of `address`.
    pub socket: Option<UnixSocket>,
    /// `backlog` of the listening sockets.
    pub backlog: u32,
    /// Off for RawSocket.
    pub compression: Compression,
    /// `compression_level`: 1 (fast) to 9 (small).
    pub compression_level: u8,
    /// `proxy_protocol`: each connection begins with a PROXY header, which is believed.
    pub proxy_protocol: bool,
    /// WebSocket messages go back as they came; no WAMP is spoken. For test suites.
    pub echo: bool,
    /// Long-poll and server-sent events are served too.
    pub http: bool,
    /// `origins`: the pages that browsers may connect from; `*` is all.
    pub origins: Vec<String>,
}

/// `[admin]`
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Admin {
    /// `address`: where `/ping`, `/ready`, `/metrics`, `/status` are served.
    pub address: SocketAddr,
}

/// `[limits]`: per session unless said otherwise.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Limits {
    pub subscriptions_max: u32,
    pub registrations_max: u32,
    /// Calls waiting for an answer, as a caller.
    pub calls_pending_max: u32,
    /// Invocations waiting for an answer, as a callee; beyond it callers get an error.
    pub invocations_pending_max: u32,
    /// How long a call may take that names no time; zero: any time.
    pub call_timeout: Duration,
    /// Longest time a call may ask for.
    pub call_timeout_max: Duration,
    /// Longest topic or procedure, bytes.
    pub uri_max: u32,
    /// Longest payload of a message that a session sends, bytes.
    pub payload_max: u32,
    /// Unauthenticated connections of the node.
    pub logins_pending_max: u32,
    /// Realms of the node.
    pub realms_max: u32,
    /// Topics of the node that retain an event.
    pub retained_max: u32,
    /// Bytes of all retained events of the node.
    pub retained_memory_max: u64,
    /// Longest payload of a retained event.
    pub retained_event_max: u32,
    /// How long an event is retained whose publisher does not say; zero: for ever.
    pub retained_ttl: Duration,
    /// Bytes of all histories of the node.
    pub history_memory_max: u64,
    /// Longest payload of an event that is kept.
    pub history_event_max: u32,
}

/// `[timeouts]`
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Timeouts {
    /// From accept to WELCOME.
    pub login: Duration,
    /// A session from which nothing came for this long is pinged.
    pub ping_interval: Duration,
    /// ... and closed when nothing came for this much longer.
    pub ping_timeout: Duration,
    /// How long a drain waits for peers to answer GOODBYE.
    pub drain: Duration,
}

/// `[http]`: long-poll and server-sent events.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Http {
    /// Open transports of the node.
    pub transports_max: u32,
    /// How long a request to receive waits for a message.
    pub poll_timeout: Duration,
    /// A transport without a request for this long is closed.
    pub idle_timeout: Duration,
    /// A stream of events in which nothing was said for this long says so.
    pub ping_interval: Duration,
    /// How long a connection may stay without a request.
    pub keep_alive: Duration,
    /// `accepted`: messages that were taken, and transports that were closed, are answered 204 instead of 202.
    pub accepts_without_content: bool,
}

/// What is done with events for a receiver whose queue is full.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SlowPolicy {
    /// The oldest queued events are dropped.
    DropOldest,
    /// The session is closed.
    Close,
}

/// `[slow_receiver]`
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SlowReceiver {
    pub policy: SlowPolicy,
    /// `queue_max`: bytes queued to one connection before `policy` acts.
    pub queue_max: u32,
    /// `reply_reserve`: bytes beyond `queue_max` for results, errors and replies, which are never dropped; at that
    /// bound the session is closed.
    pub reply_reserve: u32,
}

/// `[io]`: per shard.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Io {
    /// Entries of the shard's submission queue, a power of two.
    pub ring_entries: u32,
    /// Provided receive buffers, a power of two.
    pub receive_buffers: u32,
    /// Bytes of one receive buffer.
    pub receive_buffer_size: u32,
    /// Entries of each shard-to-shard queue (batches).
    pub mesh_entries: u32,
    /// `SO_SNDBUF`; 0 leaves the kernel's choice.
    pub send_buffer: u32,
    /// How long a shard waits in its own ring before it parks.
    pub short_wait: Duration,
}

/// `[snapshot]`
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SnapshotConfig {
    /// At most one snapshot in this time.
    pub min_interval: Duration,
    /// Changed routes that make a full snapshot worth while.
    pub fold_min: u32,
}

/// `[[realm]]`
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RealmConfig {
    pub name: String,
    /// `degree`: `compatible` or `strict`.
    pub strict: bool,
    /// `uri`: `loose` or `strict`.
    pub uri_strict: bool,
    /// `anonymous`: `nobody`, `loopback` or `anybody`.
    pub anonymous: Anonymous,
    /// `features_off`, the bounds, and `[[realm.role]]`.
    pub rules: Rules,
    /// `[[history]]` of this realm, in order.
    pub histories: Vec<History>,
}

/// How the addresses of other nodes are found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Discovery {
    /// No cluster: the port stays closed.
    None,
    /// `seeds`.
    Static,
    /// All addresses of `dns`.
    Dns,
    /// Whoever answers in the group `multicast`: for development.
    Multicast,
    /// The endpoints of the service `kubernetes`.
    Kubernetes,
}

/// `[cluster]`
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Cluster {
    pub discovery: Discovery,
    /// Nodes of another env are refused.
    pub env: String,
    /// Of membership (UDP) and the links between control planes (TCP).
    pub address: SocketAddr,
    /// `advertise`: where others reach the port; none: at `address`.
    pub advertise: Option<SocketAddr>,
    /// Secret keys of the cluster, one a line; the first one seals, any opens.
    pub key_file: PathBuf,
    /// `host:port` each.
    pub seeds: Vec<String>,
    /// `host:port`, whose addresses are the nodes, or the name of a service (`_name._udp.domain`), whose SRV records are.
    pub dns: String,
    /// Group and port in which nodes look for each other.
    pub multicast: SocketAddr,
    /// `namespace/service:port`
    pub kubernetes: String,
    /// Nodes that are likely to fail together share it.
    pub failure_domain: String,
    pub probe_interval: Duration,
    pub probe_timeout: Duration,
    pub suspicion: Duration,
    pub forget_after: Duration,
    /// How long a starting node looks for others before it serves alone.
    pub join_wait: Duration,
    /// Announcements of broadcasts to lazy peers are sent again after this.
    pub lazy_tick_period: Duration,
    /// The broadcast tree is checked against the members after this.
    pub exchange_tick_period: Duration,
}

/// `[aae]`: anti-entropy.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Aae {
    pub enabled: bool,
    /// A node exchanges with one other in this time.
    pub exchange_timer: Duration,
    /// Longest exchange.
    pub data_exchange_timeout: Duration,
    /// What a node sends for exchanges with nodes it is in touch with, bytes a second.
    pub exchange_rate: u64,
    /// How often it is looked whether a part of the hash tree is to be scrubbed.
    pub hashtree_timer: Duration,
    /// Every part of the hash tree is scrubbed once in this time.
    pub hashtree_ttl: Duration,
    /// Deletions are remembered for at least this long.
    pub tombstone_grace: Duration,
}

/// `[relay]`: connections between the data planes of a cluster.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Relay {
    /// Where it listens (TCP); none: at the IP address of `cluster.address` and the port after its port.
    pub address: Option<SocketAddr>,
    /// Where others reach it; none: at the IP address of `cluster.advertise` and the port listened on.
    pub advertise: Option<SocketAddr>,
    /// Of each shard to each other node.
    pub connections: u32,
    /// Bytes each shard may hold for one other node.
    pub queue_max: u32,
    /// TLS with certificates on both sides.
    pub tls: bool,
    pub tls_certificate: PathBuf,
    pub tls_key: PathBuf,
    pub tls_authorities: PathBuf,
}

impl Config {
    /// Where the relay listens. Port 0: the kernel chooses.
    pub fn relay_address(&self) -> SocketAddr {
        let cluster = self.cluster.address;
        self.relay.address.unwrap_or_else(|| {
            let port = cluster.port().checked_add(1).unwrap_or(0);
            SocketAddr::new(cluster.ip(), port)
        })
    }
}

impl Cluster {
    /// Where others reach the membership port.
    pub fn advertised(&self) -> SocketAddr {
        self.advertise.unwrap_or(self.address)
    }
}

/// `[log]`
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Log {
    /// `level`: error, warn, info, debug or trace.
    pub level: String,
}

/// Why a configuration was refused.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{file}:{line}: {key}: found {found}, allowed: {allowed}")]
pub struct ConfigError {
    pub file: String,
    pub line: usize,
    pub key: String,
    pub found: String,
    pub allowed: String,
}

impl Config {
    /// Reads a configuration; `file` is only named in errors.
    pub fn parse(text: &str, file: &Path) -> Result<Self, ConfigError> {
        parse::config(text, file)
    }
}

/// The commented default configuration, every key in it: what `signalbox config default` prints.
pub const DEFAULT_TEXT: &str = include_str!("default.toml");
