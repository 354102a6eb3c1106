//! What it costs shards, without a kernel, that a receiver is on another node: CPU time of a message from received bytes to
//! bytes that wait to be sent, on all shards it passes.
//!
//! Two shards of two nodes are driven as `io` drives them, and what one sends the other is carried at once. Messages
//! come in chunks, as from a client that has as many in flight. `-- --only NAME --chunks N` runs one case so often and measures
//! nothing: the difference of two such runs under callgrind is what the messages cost in instructions.

mod support;

use common::config::Config;
use common::ids::{BootEpoch, NodeId};
use common::keys::ClusterKeys;
use common::link::{Claim, Peer, RouteChange};
use common::noise::{Entropy, Purpose, Terms};
use common::wire::message::code;
use common::wire::{Payload, encode};
use dataplane::feed::{FeedDown, FeedUp};
use dataplane::shard::{ConnId, Output, RelayConfig, Shard};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Instant;
use support::cpu_time::cpu_time;
use support::{
    Numbered, PAYLOAD_BYTES, PLACE, SERIALIZER, args, config, connect, frame, is_measured, median,
};

const URI: &str = "com.example.uri";
/// Slots of the link between the nodes, at each end. The relay's listener is behind the clients' two.
const RELAY_SLOT: u32 = 1_000;
const RELAY_LISTENER: usize = 2;
const ROUNDS: usize = 41;
const MESSAGES: usize = 16_384;

/// Two nodes and the connection that each has made to the other.
struct Nodes {
    shards: [Shard; 2],
    now: Instant,
    /// Whom bytes on a slot from `RELAY_SLOT` on go to: the slot at the other node.
    links: [Vec<u32>; 2],
    joined: u32,
    seq: [u64; 2],
    chunk: Vec<u8>,
    /// Bytes for clients, by node.
    sent: [usize; 2],
}

fn conn(slot: u32) -> ConnId {
    ConnId { slot, generation: 1 }
}

fn node(at: usize) -> NodeId {
    NodeId([at as u8 + 1; 16])
}

fn address(at: usize) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 9_000 + at as u16))
}

impl Nodes {
    fn new() -> Self {
        let now = Instant::now();
        let mut nodes = Self {
            shards: [shard(0, now), shard(1, now)],
            now,
            links: [Vec::new(), Vec::new()],
            joined: 0,
            seq: [0; 2],
            chunk: Vec::new(),
            sent: [0; 2],
        };
        for at in 0..2 {
            let other = 1 - at;
            let peer = Peer { node: node(other), epoch: epoch(other), relay: address(other).to_string() };
            nodes.shards[at].feed(now, FeedDown::Peers([peer].into()));
            nodes.run();
        }
        nodes
    }

    /// Does what the shards want until they want no more.
    fn run(&mut self) {
        loop {
            let (first, second) = (self.drain(0), self.drain(1));
            if !first && !second {
                return;
            }
        }
    }

    /// False: there was nothing.
    fn drain(&mut self, at: usize) -> bool {
        let mut any = false;
        while let Some(output) = self.shards[at].poll() {
            any = true;
            match output {
                Output::Send(conn) => self.send(at, conn),
                Output::Connect { dial, .. } => {
                    let slot = RELAY_SLOT + self.links[at].len() as u32;
                    let other = RELAY_SLOT + self.links[1 - at].len() as u32;
                    self.links[at].push(other);
                    self.links[1 - at].push(slot);
                    let peer = IpAddr::V4(Ipv4Addr::LOCALHOST);
                    assert!(self.shards[1 - at].accept(self.now, conn(other), RELAY_LISTENER, peer));
                    assert!(self.shards[at].connected(self.now, dial, conn(slot)));
                }
                other => panic!("{other:?} is not expected"),
            }
        }
        any
    }

    fn send(&mut self, at: usize, conn: ConnId) {
        let buf = self.shards[at].take_send(conn);
        if conn.slot < RELAY_SLOT {
            self.sent[at] += buf.segments.iter().map(|segment| segment.as_slice().len()).sum::<usize>();
            return self.shards[at].sent(self.now, conn, buf, true);
        }
        let mut chunk = std::mem::take(&mut self.chunk);
        chunk.clear();
        buf.segments.iter().for_each(|segment| chunk.extend_from_slice(segment.as_slice()));
        self.shards[at].sent(self.now, conn, buf, true);
        let other = ConnId { slot: self.links[at][(conn.slot - RELAY_SLOT) as usize], generation: 1 };
        self.shards[1 - at].receive(self.now, other, &mut chunk);
        self.chunk = chunk;
    }

    /// Tells each node what the other wants.
    fn tell(&mut self) {
        for at in 0..2 {
            let mut changes = Vec::new();
            while let Some(up) = self.shards[at].take_feed() {
                let FeedUp::Claims { claims, .. } = up else { continue };
                for claim in claims {
                    if let Claim::Routed { realm, kind, policy, uri } = claim {
                        let node = node(at);
                        let (wanted, share) = (true, None);
                        changes.push(RouteChange { node, realm, kind, policy, uri, wanted, share });
                    }
                }
            }
            if !changes.is_empty() {
                let other = 1 - at;
                let first_seq = self.seq[other] + 1;
                self.seq[other] += changes.len() as u64;
                self.shards[other].feed(self.now, FeedDown::Routes { first_seq, changes: changes.into() });
            }
        }
        self.run();
    }

    fn receive(&mut self, at: usize, conn: ConnId, bytes: &mut [u8]) {
        self.shards[at].receive(self.now, conn, bytes);
        self.run();
    }

    fn join(&mut self, at: usize) -> ConnId {
        self.joined += 1;
        let conn = conn(self.joined);
        let mut bytes = connect(&mut self.shards[at], self.now, conn, &[]);
        self.receive(at, conn, &mut bytes);
        conn
    }
}

fn epoch(at: usize) -> BootEpoch {
    BootEpoch(at as u64 + 1)
}

fn shard(at: usize, now: Instant) -> Shard {
    let keys = ClusterKeys::parse(&"5a".repeat(32)).expect("a key");
    let mut config = config(0, 1, epoch(at));
    config.relay = Some(RelayConfig {
        terms: Terms { keys, env: "bench".into(), purpose: Purpose::Relay },
        connections: 1,
        queue_max: Config::default().relay.queue_max as usize,
        tls: None,
        entropy: Entropy::new([at as u8 + 1; 32]),
    });
    support::shard(config, now)
}

/// Messages from one client to another, answered if they are calls.
struct Case {
    nodes: Nodes,
    far: usize,
    source: ConnId,
    target: ConnId,
    chunk: Numbered,
    answers: Option<Numbered>,
    last_request: u64,
    last_invocation: u64,
}

impl Case {
    fn new(is_call: bool, is_far: bool, messages: usize) -> Self {
        let mut nodes = Nodes::new();
        let far = usize::from(is_far);
        let (source, target) = (nodes.join(0), nodes.join(far));
        let (kind, invoke) =
            if is_call { (code::REGISTER, code::CALL) } else { (code::SUBSCRIBE, code::PUBLISH) };
        let mut begin = frame(|out| encode::id_dict_uri(SERIALIZER, out, kind, 1, &[], URI));
        nodes.receive(far, target, &mut begin);
        nodes.tell();
        let args = args();
        let payload = Payload { args: Some(&args), kwargs: None };
        let chunk = Numbered::new(messages, |out| {
            if invoke == code::CALL {
                encode::call(SERIALIZER, out, PLACE, &[], URI, payload);
            } else {
                encode::publish(SERIALIZER, out, PLACE, &[], URI, payload);
            }
        });
        let answers = is_call
            .then(|| Numbered::new(messages, |out| encode::yield_(SERIALIZER, out, PLACE, &[], payload)));
        let (last_request, last_invocation) = (0, 0);
        Self { nodes, far, source, target, chunk, answers, last_request, last_invocation }
    }

    fn messages(&self) -> usize {
        self.chunk.messages()
    }

    fn round(&mut self) {
        let messages = self.messages() as u64;
        self.nodes.sent = [0; 2];
        self.nodes.receive(0, self.source, self.chunk.number(self.last_request + 1));
        self.last_request += messages;
        let bytes = messages as usize * PAYLOAD_BYTES;
        assert!(self.nodes.sent[self.far] > bytes, "all have reached the receiver");
        if let Some(answers) = &mut self.answers {
            self.nodes.sent = [0; 2];
            self.nodes.receive(self.far, self.target, answers.number(self.last_invocation + 1));
            self.last_invocation += messages;
            assert!(self.nodes.sent[0] > bytes, "all are answered");
        }
    }

    /// CPU time of one message, nanoseconds.
    fn measure(&mut self, messages: usize) -> f64 {
        let start = cpu_time();
        let rounds = (messages / self.messages()).max(1);
        (0..rounds).for_each(|_| self.round());
        (cpu_time() - start).as_nanos() as f64 / (rounds * self.messages()) as f64
    }
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let value = |name: &str| arguments.iter().skip_while(|argument| *argument != name).nth(1);
    let (rounds, messages) = if is_measured() { (ROUNDS, MESSAGES) } else { (1, 1) };
    let only = value("--only");
    let chunks: Option<usize> = value("--chunks").and_then(|count| count.parse().ok());
    for (name, is_call) in [("event", false), ("call", true)] {
        for in_chunk in [2_048, 64, 1] {
            let name = format!("{name}/{in_chunk}");
            let mut cases = [false, true].map(|is_far| (is_far, Case::new(is_call, is_far, in_chunk)));
            if let Some(chunks) = chunks {
                for (is_far, case) in &mut cases {
                    if only == Some(&format!("{name}/{}", if *is_far { "far" } else { "near" })) {
                        (0..chunks).for_each(|_| case.round());
                    }
                }
                continue;
            }
            let [near, far] = &mut cases;
            near.1.measure(messages);
            far.1.measure(messages);
            let both: Vec<_> =
                (0..rounds).map(|_| (near.1.measure(messages), far.1.measure(messages))).collect();
            let ratio = median(both.iter().map(|(near, far)| near / far).collect());
            let [near, far] = [|both: &(f64, f64)| both.0, |both: &(f64, f64)| both.1]
                .map(|part| median(both.iter().map(part).collect()));
            println!("{name:<12} same node {near:>6.0} ns, other node {far:>6.0} ns, ratio {ratio:.2}");
        }
    }
}
