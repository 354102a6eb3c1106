//! The command line, and what it asks for after it was checked.

use clap::{Args, Parser, Subcommand, ValueEnum};
use common::transport::Framing;
use common::wire::Serializer;
use std::net::{SocketAddr, ToSocketAddrs};
use std::time::Duration;

/// Generates WAMP load and reports throughput, latency and what the router used for it.
///
/// Without a command: one publisher, one subscriber, 128 octets, RawSocket with MessagePack, 1024 in flight.
/// Exit codes: 0 everything arrived once and in order; 1 it did not, or the run failed; 2 wrong options.
#[derive(Parser, Debug)]
#[command(name = "loadgen", version, args_conflicts_with_subcommands = true)]
pub struct Cli {
    #[command(subcommand)]
    pub scenario: Option<Scenario>,
    #[command(flatten)]
    pub default: Common,
}

#[derive(Subcommand, Clone, Debug)]
pub enum Scenario {
    /// Publishers and subscribers; publisher p and subscriber s share topic p % T = s % T.
    Pubsub(PubSubOptions),
    /// Callers and callees; callees answer with the arguments they got.
    Rpc(RpcOptions),
    /// Idle sessions, with an optional churn.
    Connect(ConnectOptions),
}

#[derive(Args, Clone, Debug)]
pub struct PubSubOptions {
    /// Number of publishers.
    #[arg(short = 'P', long, default_value_t = 1)]
    pub publishers: u32,
    /// Number of subscribers.
    #[arg(short = 'S', long, default_value_t = 1)]
    pub subscribers: u32,
    /// Number of topics.
    #[arg(short = 'T', long, default_value_t = 1)]
    pub topics: u32,
    /// Ask for PUBLISHED; a message then stays in the window until it is acknowledged, too.
    #[arg(long)]
    pub acknowledge: bool,
    /// Serializer of the publishers [default: that of --serializer].
    #[arg(long, value_enum)]
    pub publisher_serializer: Option<SerializerName>,
    #[command(flatten)]
    pub load: Load,
    #[command(flatten)]
    pub common: Common,
}

#[derive(Args, Clone, Debug)]
pub struct RpcOptions {
    /// Number of callers; caller c calls procedure c % R.
    #[arg(short = 'C', long, default_value_t = 1)]
    pub callers: u32,
    /// Number of callees; callee e serves the procedures p with p % E = e.
    #[arg(short = 'E', long, default_value_t = 1)]
    pub callees: u32,
    /// Number of procedures [default: as many as callees].
    #[arg(short = 'R', long)]
    pub procedures: Option<u32>,
    /// Serializer of the callees [default: that of --serializer].
    #[arg(long, value_enum)]
    pub callee_serializer: Option<SerializerName>,
    #[command(flatten)]
    pub load: Load,
    #[command(flatten)]
    pub common: Common,
}

#[derive(Args, Clone, Debug)]
pub struct ConnectOptions {
    /// Number of idle sessions.
    #[arg(short = 'N', long, default_value_t = 1_000)]
    pub sessions: u32,
    /// Sessions closed and opened again per second, oldest first.
    #[arg(long, default_value_t = 0.0)]
    pub churn: f64,
    /// One subscription for each session, to a topic of its own.
    #[arg(long)]
    pub subscribe: bool,
    #[command(flatten)]
    pub common: Common,
}

#[derive(Args, Clone, Debug)]
pub struct Load {
    /// Octets of payload (16 hold time, source and sequence number).
    #[arg(long, default_value_t = 128)]
    pub payload: usize,
    /// Messages in flight of each publisher or caller.
    #[arg(long, default_value_t = 1_024, conflicts_with = "rate")]
    pub window: u32,
    /// Messages per second of all publishers or callers together, sent at fixed times whatever the router does;
    /// latency counts from the time a message was due.
    #[arg(long)]
    pub rate: Option<f64>,
    /// The target is a bare relay: the same frames without a session.
    #[arg(long)]
    pub relay: bool,
}

#[derive(Args, Clone, Debug)]
pub struct Common {
    #[arg(long, value_enum, default_value_t = TransportName::Rawsocket)]
    pub transport: TransportName,
    #[arg(long, value_enum, default_value_t = SerializerName::Msgpack)]
    pub serializer: SerializerName,
    /// Where to connect: rs://host:port or ws://host:port/path; sets --transport too.
    #[arg(long, conflicts_with_all = ["address", "transport"])]
    pub url: Option<String>,
    /// Where to connect: host:port [default: 127.0.0.1:18082 for RawSocket, 127.0.0.1:18080 for WebSocket].
    #[arg(long)]
    pub address: Option<String>,
    /// Where subscribers and callees connect when that is another node of the cluster: host:port.
    #[arg(long)]
    pub far_address: Option<String>,
    /// The data plane of that node, whose CPU is added to that of --router-pid.
    #[arg(long, requires = "far_address")]
    pub far_router_pid: Option<u32>,
    #[arg(long, default_value = "realm1")]
    pub realm: String,
    /// Measured time, for example 10s or 500ms.
    #[arg(long, default_value = "5s", value_parser = parse_duration)]
    pub duration: Duration,
    /// Time of the same load before it is measured.
    #[arg(long, default_value = "1s", value_parser = parse_duration)]
    pub warmup: Duration,
    /// Silence with messages in flight after which they count as lost.
    #[arg(long, default_value = "5s", value_parser = parse_duration)]
    pub patience: Duration,
    /// Threads; whole topics, or callees with their callers, are shared out among them.
    #[arg(long, default_value_t = 1)]
    pub threads: u32,
    /// CPUs to pin the threads to, in turn, for example 1 or 1,3.
    #[arg(long, value_delimiter = ',')]
    pub pin: Vec<usize>,
    /// Never sleep while waiting: lower latency of this program, one whole CPU for each thread.
    #[arg(long)]
    pub spin: bool,
    /// Process whose CPU and memory are reported: a pid, auto (ask the node's /status) or none.
    /// By default auto, and a missing answer is only mentioned.
    #[arg(long)]
    pub router_pid: Option<RouterPid>,
    /// The node's admin address, for --router-pid auto.
    #[arg(long, default_value = "127.0.0.1:18081")]
    pub admin: String,
    /// Also write the result as JSON to a file, or to the standard output with -, instead of the text.
    #[arg(long)]
    pub json: Option<String>,
    /// First part of topics and procedures.
    #[arg(long, default_value = "loadgen")]
    pub prefix: String,
    /// No progress on the standard error.
    #[arg(long, short)]
    pub quiet: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum TransportName {
    Rawsocket,
    Websocket,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum SerializerName {
    Json,
    Msgpack,
    Cbor,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RouterPid {
    Pid(u32),
    Auto,
    None,
}

/// Options that contradict each other or mean nothing.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0}")]
pub struct OptionsError(pub String);

/// Where to connect, checked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Endpoint {
    pub framing: Framing,
    pub address: SocketAddr,
    /// For the HTTP request.
    pub host: String,
    pub path: String,
}

impl Common {
    /// Resolves the address.
    ///
    /// # Errors
    /// When the URL or the address is not one.
    pub fn endpoint(&self) -> Result<Endpoint, OptionsError> {
        let (framing, host, path) = match &self.url {
            Some(url) => parse_url(url)?,
            None => {
                let framing = self.transport.framing();
                let standard = match framing {
                    Framing::RawSocket => "127.0.0.1:18082",
                    _ => "127.0.0.1:18080",
                };
                (framing, self.address.clone().unwrap_or_else(|| standard.into()), "/ws".into())
            }
        };
        let address = resolve(&host)?;
        Ok(Endpoint { framing, address, host, path })
    }

    /// Resolves the address of the other node.
    ///
    /// # Errors
    /// When it is not one.
    pub fn far(&self) -> Result<Option<SocketAddr>, OptionsError> {
        self.far_address.as_deref().map(resolve).transpose()
    }
}

fn resolve(host: &str) -> Result<SocketAddr, OptionsError> {
    let resolved = host.to_socket_addrs().map_err(|error| OptionsError(format!("{host}: {error}")))?;
    let mut resolved: Vec<_> = resolved.collect();
    resolved.sort_by_key(|address| !address.is_ipv4());
    resolved.first().copied().ok_or_else(|| OptionsError(format!("{host} has no address")))
}

fn parse_url(url: &str) -> Result<(Framing, String, String), OptionsError> {
    let wrong = || OptionsError(format!("--url {url}: must be rs://host:port or ws://host:port/path"));
    let (scheme, rest) = url.split_once("://").ok_or_else(wrong)?;
    let (host, path) = match rest.find('/') {
        Some(slash) => rest.split_at(slash),
        None => (rest, "/"),
    };
    let framing = match scheme {
        "rs" => Framing::RawSocket,
        "ws" => Framing::WebSocket,
        _ => return Err(wrong()),
    };
    let has_port = host.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
    if !has_port {
        return Err(wrong());
    }
    Ok((framing, host.into(), path.into()))
}

/// `10s`, `500ms`, `2m`, or a number of seconds.
fn parse_duration(text: &str) -> Result<Duration, String> {
    let digits = text.find(|character: char| !character.is_ascii_digit() && character != '.');
    let (number, unit) = text.split_at(digits.unwrap_or(text.len()));
    let number: f64 = number.parse().map_err(|_| format!("{text}: no number"))?;
    let seconds = match unit {
        "ms" => number / 1e3,
        "" | "s" => number,
        "m" => number * 60.0,
        "h" => number * 3_600.0,
        _ => return Err(format!("{text}: the unit must be ms, s, m or h")),
    };
    if seconds > DURATION_S_MAX {
        return Err(format!("{text}: at most a day"));
    }
    Ok(Duration::from_secs_f64(seconds))
}

const DURATION_S_MAX: f64 = 86_400.0;

impl TransportName {
    pub const fn framing(self) -> Framing {
        match self {
            Self::Rawsocket => Framing::RawSocket,
            Self::Websocket => Framing::WebSocket,
        }
    }
}

impl From<SerializerName> for Serializer {
    fn from(name: SerializerName) -> Self {
        match name {
            SerializerName::Json => Self::Json,
            SerializerName::Msgpack => Self::MsgPack,
            SerializerName::Cbor => Self::Cbor,
        }
    }
}

impl std::str::FromStr for RouterPid {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "none" => Ok(Self::None),
            pid => pid.parse().map(Self::Pid).map_err(|_| "must be a pid, auto or none".into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(arguments: &[&str]) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(std::iter::once(&"loadgen").chain(arguments))
    }

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn no_argument_is_a_valid_command_line() {
        let cli = parse(&[]).unwrap();
        assert!(cli.scenario.is_none());
        let endpoint = cli.default.endpoint().unwrap();
        assert_eq!((endpoint.framing, endpoint.address.port()), (Framing::RawSocket, 18_082));
        assert_eq!(parse(&["--duration", "250ms"]).unwrap().default.duration, Duration::from_millis(250));
    }

    #[test]
    fn durations_have_units() {
        assert_eq!(parse_duration("1.5s"), Ok(Duration::from_millis(1_500)));
        assert_eq!(parse_duration("2m"), Ok(Duration::from_secs(120)));
        assert_eq!(parse_duration("3"), Ok(Duration::from_secs(3)));
        for wrong in ["", "s", "5 parsecs", "1e9", "99999h", "-1s"] {
            assert!(parse_duration(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn urls_name_transport_and_path() {
        let url = |url: &str| parse(&["pubsub", "--url", url]).unwrap();
        let endpoint = |cli: Cli| match cli.scenario {
            Some(Scenario::Pubsub(options)) => options.common.endpoint(),
            other => panic!("{other:?}"),
        };
        let found = endpoint(url("ws://127.0.0.1:8080/a/b")).unwrap();
        assert_eq!(
            (found.framing, &*found.path, &*found.host),
            (Framing::WebSocket, "/a/b", "127.0.0.1:8080")
        );
        assert_eq!(endpoint(url("rs://127.0.0.1:1")).unwrap().framing, Framing::RawSocket);
        for wrong in ["http://127.0.0.1:1", "127.0.0.1:1", "ws://127.0.0.1/x", "rs://127.0.0.1:99999"] {
            assert!(endpoint(url(wrong)).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_window_and_a_rate_exclude_each_other() {
        assert!(parse(&["rpc", "--rate", "100", "--window", "5"]).is_err());
        assert!(parse(&["rpc", "--rate", "100"]).is_ok());
    }

    #[test]
    fn a_router_pid_is_a_number_or_a_word() {
        assert_eq!("12".parse(), Ok(RouterPid::Pid(12)));
        assert_eq!("auto".parse(), Ok(RouterPid::Auto));
        assert!("x".parse::<RouterPid>().is_err());
    }
}
