//! The embedded default: one node, reachable from its own machine only.

use super::{
    Aae, Admin, Cluster, Compression, Config, Control, Cores, Discovery, Http, Io, Limits, Listener, Log,
    Memory, RealmConfig, Relay, Resume, SlowPolicy, SlowReceiver, SnapshotConfig, Timeouts, Transport,
};
use crate::limits::{MESSAGE_BYTES_MAX, URI_BYTES_MAX};
use crate::rules::Rules;
use crate::snapshot::Anonymous;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

/// The reasons for the figures are in tuning.md.
impl Default for Config {
    fn default() -> Self {
        Self {
            data_dir: PathBuf::from("signalbox-data"),
            cores: Cores::Auto,
            control: Control { cpus: Cores::Auto },
            memory: Memory { max: 1 << 30, numa: true },
            listeners: vec![Listener::of(Transport::WebSocket), Listener::of(Transport::RawSocket)],
            admin: Admin { address: loopback(18_081) },
            limits: Limits {
                subscriptions_max: 100_000,
                registrations_max: 10_000,
                calls_pending_max: 8_192,
                invocations_pending_max: 65_536,
                call_timeout: Duration::ZERO,
                call_timeout_max: Duration::from_secs(86_400),
                uri_max: URI_BYTES_MAX as u32,
                payload_max: MESSAGE_BYTES_MAX as u32,
                logins_pending_max: 10_000,
                realms_max: 10_000,
                retained_max: 100_000,
                retained_memory_max: 256 << 20,
                retained_event_max: 32 << 10,
                retained_ttl: Duration::ZERO,
                history_memory_max: 256 << 20,
                history_event_max: 64 << 10,
            },
            timeouts: Timeouts {
                login: Duration::from_secs(10),
                ping_interval: Duration::from_secs(30),
                ping_timeout: Duration::from_secs(20),
                drain: Duration::from_secs(5),
            },
            http: Http {
                transports_max: 10_000,
                poll_timeout: Duration::from_secs(10),
                idle_timeout: Duration::from_secs(60),
                ping_interval: Duration::from_secs(20),
                keep_alive: Duration::from_secs(60),
                accepts_without_content: false,
            },
            slow_receiver: SlowReceiver {
                policy: SlowPolicy::DropOldest,
                queue_max: 4 << 20,
                reply_reserve: 1 << 20,
            },
            resume: Resume::default(),
            io: Io {
                ring_entries: 4_096,
                receive_buffers: 256,
                receive_buffer_size: 32 << 10,
                mesh_entries: 256,
                send_buffer: 0,
                short_wait: Duration::from_millis(5),
            },
            snapshot: SnapshotConfig { min_interval: Duration::from_millis(100), fold_min: 4_096 },
            realms: vec![RealmConfig::named("realm1")],
            cluster: Cluster {
                discovery: Discovery::None,
                env: "default".to_owned(),
                address: loopback(18_083),
                advertise: None,
                key_file: PathBuf::new(),
                seeds: vec![],
                dns: String::new(),
                multicast: (Ipv4Addr::new(239, 255, 83, 66), 18_083).into(),
                kubernetes: String::new(),
                failure_domain: String::new(),
                probe_interval: Duration::from_millis(250),
                probe_timeout: Duration::from_millis(100),
                suspicion: Duration::from_millis(2_500),
                forget_after: Duration::from_secs(86_400),
                join_wait: Duration::from_secs(3),
                lazy_tick_period: Duration::from_secs(1),
                exchange_tick_period: Duration::from_secs(60),
            },
            aae: Aae {
                enabled: true,
                exchange_timer: Duration::from_secs(10),
                data_exchange_timeout: Duration::from_secs(60),
                exchange_rate: 2 << 20,
                hashtree_timer: Duration::from_secs(10),
                hashtree_ttl: Duration::from_secs(7 * 86_400),
                tombstone_grace: Duration::from_secs(86_400),
            },
            relay: Relay {
                address: None,
                advertise: None,
                connections: 1,
                queue_max: 16 << 20,
                tls: false,
                tls_certificate: PathBuf::new(),
                tls_key: PathBuf::new(),
                tls_authorities: PathBuf::new(),
            },
            log: Log { level: "info".to_owned() },
        }
    }
}

impl Listener {
    /// A listener that says nothing but its transport.
    pub fn of(transport: Transport) -> Self {
        let (port, path) = match transport {
            Transport::WebSocket | Transport::Auto => (18_080, "/ws"),
            Transport::RawSocket => (18_082, ""),
            Transport::Http => (18_080, ""),
        };
        Self {
            transport,
            address: loopback(port),
            path: path.to_owned(),
            connections_max: 1_000_000,
            message_max: 1 << 20,
            backlog: 4_096,
            compression: Compression::Off,
            compression_level: 3,
            proxy_protocol: false,
            echo: false,
            http: transport == Transport::Http,
            origins: vec!["*".to_owned()],
            socket: None,
        }
    }
}

impl RealmConfig {
    /// A realm that says nothing but its name.
    pub fn named(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            strict: false,
            uri_strict: false,
            anonymous: Anonymous::Loopback,
            rules: Rules::default(),
            histories: Vec::new(),
        }
    }
}

impl Transport {
    /// As the configuration writes it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::WebSocket => "websocket",
            Self::RawSocket => "rawsocket",
            Self::Auto => "auto",
            Self::Http => "http",
        }
    }
}

fn loopback(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}
