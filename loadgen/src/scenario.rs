//! Turns checked options into each thread's part of a run.

use crate::blob::{Coding, PAYLOAD_BYTES_MAX, SOURCES_MAX, STAMP_BYTES};
use crate::client::{ClientPlan, Opening, Setup};
use crate::idle::Idle;
use crate::io::{SOURCE_CONNECTIONS_MAX, Target};
use crate::options::{Common, ConnectOptions, Endpoint, Load, OptionsError, PubSubOptions, RpcOptions};
use crate::pubsub::{self, Pace, PubSub};
use crate::rpc::{self, Rpc};
use crate::run::Part;
use common::transport::Framing;
use common::wire::Serializer;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

/// What a bare relay's connection is.
#[derive(Clone, Copy)]
enum RelayRole {
    Sink = 0,
    Source = 1,
    Both = 2,
}

/// The octets a relay's connection begins with.
const fn preamble(role: RelayRole, group: u32) -> [u8; 8] {
    let group = (group as u16).to_le_bytes();
    [b'R', b'L', b'Y', b'1', role as u8, 0, group[0], group[1]]
}

/// Makes connection plans of one run.
struct Connections<'a> {
    endpoint: &'a Endpoint,
    realm: &'a str,
    relay: bool,
    /// Where those connect that subscribe or register, if that is another node.
    far: Option<SocketAddr>,
}

impl Connections<'_> {
    fn plan(&self, serializer: Serializer, setup: Setup, role: RelayRole, group: u32) -> ClientPlan {
        let serves = matches!(setup, Setup::Subscribe { .. } | Setup::Register { .. });
        let opening = if self.relay {
            Opening::Relay { preamble: preamble(role, group) }
        } else {
            Opening::Session {
                realm: self.realm.into(),
                host: self.endpoint.host.clone(),
                path: self.endpoint.path.clone(),
                setup,
            }
        };
        let address = self.far.filter(|_| serves);
        ClientPlan { address, framing: self.endpoint.framing, serializer, opening }
    }
}

/// The parts of a `pubsub` run.
///
/// # Errors
/// When the options cannot be run.
pub fn pubsub(options: &PubSubOptions, endpoint: &Endpoint) -> Result<Vec<Part<PubSub>>, OptionsError> {
    let (publishers, subscribers, topics) = (options.publishers, options.subscribers, options.topics);
    check_load(&options.load, endpoint)?;
    check_count("topics", topics)?;
    check_count("publishers", publishers)?;
    if options.load.relay && (publishers > topics || topics > 1 << 16 || options.acknowledge) {
        return refuse("--relay: at most one publisher a topic, 65536 topics, and no acknowledgements");
    }
    if options.load.rate.is_none() && !options.acknowledge && publishers.min(topics) > subscribers.min(topics)
    {
        return refuse(
            "a window needs a subscriber on every topic that is published to; else use --rate or --acknowledge",
        );
    }
    let subscriber_serializer = options.common.serializer.into();
    let publisher_serializer = options.publisher_serializer.unwrap_or(options.common.serializer).into();
    let coding = Coding::for_serializers([subscriber_serializer, publisher_serializer]);
    let connections = Connections {
        endpoint,
        realm: &options.common.realm,
        relay: options.load.relay,
        far: options.common.far()?,
    };
    let threads = options.common.threads.clamp(1, topics);
    let part = |thread: u32| {
        let mine = |count: u32| (0..count).filter(move |index| index % topics % threads == thread);
        let plan = pubsub::Plan {
            topics,
            subscribers: mine(subscribers).collect(),
            publishers: mine(publishers).collect(),
            publishers_total: publishers,
            subscriber_serializer,
            publisher_serializer,
            coding,
            payload_bytes: options.load.payload,
            acknowledge: options.acknowledge,
            pace: pace(&options.load, mine(publishers).count(), publishers),
            relay: options.load.relay,
            topic_prefix: options.common.prefix.clone(),
        };
        let subscriber = |index: &u32| {
            let setup = Setup::Subscribe { topic: plan.topic(*index) };
            connections.plan(subscriber_serializer, setup, RelayRole::Sink, index % topics)
        };
        let publisher = |index: &u32| {
            connections.plan(publisher_serializer, Setup::Nothing, RelayRole::Source, index % topics)
        };
        let plans =
            plan.subscribers.iter().map(subscriber).chain(plan.publishers.iter().map(publisher)).collect();
        Part { workload: PubSub::new(plan), plans }
    };
    Ok((0..threads).map(part).collect())
}

/// The parts of an `rpc` run.
///
/// # Errors
/// When the options cannot be run.
pub fn rpc(options: &RpcOptions, endpoint: &Endpoint) -> Result<Vec<Part<Rpc>>, OptionsError> {
    let (callers, callees) = (options.callers, options.callees);
    let procedures = options.procedures.unwrap_or(callees);
    check_load(&options.load, endpoint)?;
    check_count("callers", callers)?;
    check_count("callees", callees)?;
    if procedures < callees {
        return refuse(
            "every callee needs a procedure of its own: --procedures must not be less than --callees",
        );
    }
    if options.load.relay && (callers != callees || callers != procedures || callers > 1 << 16) {
        return refuse("--relay: as many callers as callees and procedures, at most 65536");
    }
    let caller_serializer: Serializer = options.common.serializer.into();
    let callee_serializer = options.callee_serializer.unwrap_or(options.common.serializer).into();
    let coding = Coding::for_serializers([caller_serializer, callee_serializer]);
    let connections = Connections {
        endpoint,
        realm: &options.common.realm,
        relay: options.load.relay,
        far: options.common.far()?,
    };
    let threads = options.common.threads.clamp(1, callees);
    let part = |thread: u32| {
        let mine: Vec<u32> =
            (0..callers).filter(|caller| caller % procedures % callees % threads == thread).collect();
        let plan = rpc::Plan {
            procedures,
            callees_total: callees,
            callers_total: callers,
            callees: (thread..callees).step_by(threads as usize).collect(),
            pace: pace(&options.load, mine.len(), callers),
            callers: mine,
            caller_serializer,
            callee_serializer,
            coding,
            payload_bytes: options.load.payload,
            relay: options.load.relay,
            procedure_prefix: options.common.prefix.clone(),
        };
        let callee = |index: &u32| {
            let setup = Setup::Register { procedures: plan.procedures_of(*index) };
            connections.plan(callee_serializer, setup, RelayRole::Both, *index)
        };
        let caller = |index: &u32| {
            connections.plan(caller_serializer, Setup::Nothing, RelayRole::Both, index % procedures)
        };
        let plans = plan.callees.iter().map(callee).chain(plan.callers.iter().map(caller)).collect();
        Part { workload: Rpc::new(plan), plans }
    };
    Ok((0..threads).map(part).collect())
}

/// The parts of a `connect` run.
///
/// # Errors
/// When the options cannot be run.
pub fn connect(options: &ConnectOptions, endpoint: &Endpoint) -> Result<Vec<Part<Idle>>, OptionsError> {
    check_count("sessions", options.sessions)?;
    if !(0.0..=RATE_MAX).contains(&options.churn) {
        return refuse("--churn must be zero or a number of sessions per second");
    }
    let serializer = options.common.serializer.into();
    let connections = Connections { endpoint, realm: &options.common.realm, relay: false, far: None };
    let threads = options.common.threads.clamp(1, options.sessions);
    let part = |thread: u32| {
        let mine: Vec<u32> = (thread..options.sessions).step_by(threads as usize).collect();
        let session = |index: &u32| {
            let topic = format!("{}.idle.{index}", options.common.prefix);
            let setup = if options.subscribe { Setup::Subscribe { topic } } else { Setup::Nothing };
            connections.plan(serializer, setup, RelayRole::Sink, 0)
        };
        let churn_rate = options.churn * mine.len() as f64 / f64::from(options.sessions);
        Part {
            workload: Idle::new(mine.len(), serializer, churn_rate),
            plans: mine.iter().map(session).collect(),
        }
    };
    Ok((0..threads).map(part).collect())
}

/// Where `connections` connections go; raises the limit of open files where it can.
///
/// # Errors
/// When the limit of open files or of ports forbids as many.
pub fn target(connections: usize, endpoint: &Endpoint) -> Result<Target, OptionsError> {
    ensure_descriptors(connections as u64 + DESCRIPTORS_SPARE)?;
    let mut sources = Vec::new();
    if connections > SOURCE_CONNECTIONS_MAX {
        if !matches!(endpoint.address.ip(), IpAddr::V4(address) if address.is_loopback()) {
            return refuse(format!(
                "more than {SOURCE_CONNECTIONS_MAX} connections need several source addresses, which only work on 127.0.0.0/8"
            ));
        }
        // One address for each block of connections, beginning with 127.0.0.2.
        let blocks = connections.div_ceil(SOURCE_CONNECTIONS_MAX) as u32;
        sources =
            (0..blocks).map(|block| Ipv4Addr::from_bits(Ipv4Addr::LOCALHOST.to_bits() + 1 + block)).collect();
    }
    Ok(Target { address: endpoint.address, sources, connections_before: 0 })
}

fn ensure_descriptors(needed: u64) -> Result<(), OptionsError> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    if limit.current.is_none_or(|current| current >= needed) {
        return Ok(());
    }
    if limit.maximum.is_none_or(|maximum| maximum >= needed)
        && setrlimit(Resource::Nofile, Rlimit { current: Some(needed), maximum: limit.maximum }).is_ok()
    {
        return Ok(());
    }
    let maximum = limit.maximum.map_or("unlimited".into(), |maximum| maximum.to_string());
    refuse(format!(
        "{needed} open files are needed, but the limit is {maximum}: raise it (ulimit -n) or ask for fewer"
    ))
}

fn pace(load: &Load, mine: usize, all: u32) -> Pace {
    match load.rate {
        Some(rate) => Pace::Rate(rate * mine as f64 / f64::from(all)),
        None => Pace::Window(load.window),
    }
}

fn check_load(load: &Load, endpoint: &Endpoint) -> Result<(), OptionsError> {
    if !(STAMP_BYTES..=PAYLOAD_BYTES_MAX).contains(&load.payload) {
        return refuse(format!("--payload must be from {STAMP_BYTES} to {PAYLOAD_BYTES_MAX}"));
    }
    if !(1..=WINDOW_MAX).contains(&load.window) {
        return refuse(format!("--window must be from 1 to {WINDOW_MAX}"));
    }
    if load.rate.is_some_and(|rate| !(rate > 0.0 && rate <= RATE_MAX)) {
        return refuse(format!("--rate must be more than 0 and at most {RATE_MAX}"));
    }
    if load.relay && endpoint.framing != Framing::RawSocket {
        return refuse("--relay works with RawSocket frames only");
    }
    Ok(())
}

fn check_count(name: &str, count: u32) -> Result<(), OptionsError> {
    if !(1..=SOURCES_MAX as u32).contains(&count) {
        return refuse(format!("--{name} must be from 1 to {SOURCES_MAX}"));
    }
    Ok(())
}

fn refuse<T>(why: impl Into<String>) -> Result<T, OptionsError> {
    Err(OptionsError(why.into()))
}

/// All connections of a run.
pub fn connections<W>(parts: &[Part<W>]) -> usize {
    parts.iter().map(|part| part.plans.len()).sum()
}

/// How a thread count came to be less than what was asked.
pub fn thread_note(common: &Common, parts: usize) -> Option<String> {
    let asked = common.threads as usize;
    (asked > parts).then(|| format!("{parts} of {asked} threads are used: there is no more to share out"))
}

const WINDOW_MAX: u32 = 1 << 24;
const RATE_MAX: f64 = 1e9;
/// Descriptors for everything but connections.
const DESCRIPTORS_SPARE: u64 = 32;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::{Cli, Scenario};
    use clap::Parser;

    fn endpoint() -> Endpoint {
        Endpoint {
            framing: Framing::RawSocket,
            address: "127.0.0.1:1".parse().unwrap(),
            host: "h".into(),
            path: "/".into(),
        }
    }

    fn scenario(line: &str) -> Scenario {
        Cli::try_parse_from(std::iter::once("loadgen").chain(line.split(' '))).unwrap().scenario.unwrap()
    }

    fn pubsub_parts(line: &str) -> Result<Vec<Part<PubSub>>, OptionsError> {
        let Scenario::Pubsub(options) = scenario(line) else { panic!() };
        pubsub(&options, &endpoint())
    }

    fn rpc_parts(line: &str) -> Result<Vec<Part<Rpc>>, OptionsError> {
        let Scenario::Rpc(options) = scenario(line) else { panic!() };
        rpc(&options, &endpoint())
    }

    #[test]
    fn topics_are_not_split_between_threads() {
        let parts = pubsub_parts("pubsub -P 5 -S 7 -T 3 --threads 2").unwrap();
        let topics = |part: &Part<PubSub>| {
            let topic = |plan: &ClientPlan| match &plan.opening {
                Opening::Session { setup: Setup::Subscribe { topic }, .. } => Some(topic.clone()),
                _ => None,
            };
            part.plans.iter().filter_map(topic).collect::<Vec<_>>()
        };
        assert_eq!(topics(&parts[1]), ["loadgen.topic.1", "loadgen.topic.1"]);
        assert_eq!(topics(&parts[0]).len(), 5);
        assert_eq!(connections(&parts), 12);
    }

    #[test]
    fn more_threads_than_topics_are_not_used() {
        let parts = pubsub_parts("pubsub --threads 4").unwrap();
        assert_eq!(parts.len(), 1);
        let Scenario::Pubsub(options) = scenario("pubsub --threads 4") else { panic!() };
        assert!(thread_note(&options.common, parts.len()).unwrap().starts_with("1 of 4 threads"));
    }

    #[test]
    fn loads_that_cannot_run_are_refused() {
        for wrong in [
            "pubsub -P 2 -S 1 -T 2",
            "pubsub -T 0",
            "pubsub --payload 15",
            "pubsub --payload 16777216",
            "pubsub --window 0",
            "pubsub --rate 0",
            "pubsub --rate NaN",
            "pubsub --relay -P 2",
            "pubsub --relay --acknowledge",
        ] {
            assert!(pubsub_parts(wrong).is_err(), "{wrong}");
        }
        assert!(pubsub_parts("pubsub -P 2 -S 1 -T 2 --rate 10").is_ok());
        for wrong in ["rpc -E 2 -R 1", "rpc -C 2 --relay", "rpc -C 0"] {
            assert!(rpc_parts(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn relay_connections_say_their_role_and_group() {
        let parts = pubsub_parts("pubsub -P 300 -S 300 -T 300 --relay").unwrap();
        let last = |index: usize| match parts[0].plans[index].opening {
            Opening::Relay { preamble } => preamble,
            ref other => panic!("{other:?}"),
        };
        assert_eq!(last(299), *b"RLY1\0\0\x2b\x01");
        assert_eq!(last(599), *b"RLY1\x01\0\x2b\x01");
        let parts = rpc_parts("rpc --relay").unwrap();
        assert!(
            parts[0].plans.iter().all(|plan| plan.opening == Opening::Relay { preamble: *b"RLY1\x02\0\0\0" })
        );
    }

    #[test]
    fn rates_are_shared_out_by_sources() {
        let options = Load { payload: 128, window: 1, rate: Some(100.0), relay: false };
        assert_eq!(pace(&options, 1, 4), Pace::Rate(25.0));
    }

    #[test]
    fn too_many_open_files_are_refused_in_words() {
        let error = ensure_descriptors(u64::MAX).unwrap_err();
        assert!(error.0.contains("ulimit -n"), "{error}");
    }
}
