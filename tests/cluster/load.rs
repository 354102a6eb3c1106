//! Sessions that call, answer, publish and listen on every node while nodes and networks fail, and account for every
//! message of theirs.

use crate::cluster::Cluster;
use crate::record::{Writes, write_realms};
use crate::support::{Client, Wire, eventually_within};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::thread::{JoinHandle, sleep, spawn};
use std::time::{Duration, Instant};

/// On each node a callee, a caller of all callees, a publisher, a subscriber and a writer of realms.
pub struct Load {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    report: Mutex<Report>,
}

/// What happened to the messages of a [`Load`].
#[derive(Default, Debug)]
pub struct Report {
    pub results: u64,
    /// Calls answered with an ERROR, by its URI.
    pub errors: BTreeMap<String, u64>,
    /// Calls whose caller lost its connection.
    pub cut_off: u64,
    /// Calls that nobody answered on a connection that lived.
    pub unanswered: Vec<String>,
    /// The slowest answer to the caller on each node.
    slowest: BTreeMap<usize, Duration>,
    /// Executions by call.
    executed: BTreeMap<String, u32>,
    pub published: BTreeSet<(String, u64)>,
    /// PUBLISHED came for these.
    pub acknowledged: BTreeSet<(String, u64)>,
    /// What each subscription got, in its order.
    received: Vec<Vec<(String, u64)>>,
    pub writes: Writes,
}

impl Load {
    pub fn start(cluster: &Cluster) -> Self {
        let shared = Arc::new(Shared::default());
        let mut threads = vec![];
        let count = cluster.nodes.len();
        for node in &cluster.nodes {
            let (index, address) = (node.index, node.rawsocket());
            let mut add = |act: Box<dyn FnOnce(&Shared) + Send>| {
                let shared = Arc::clone(&shared);
                threads.push(spawn(move || act(&shared)));
            };
            add(Box::new(move |shared| answer_calls(shared, index, address)));
            add(Box::new(move |shared| call(shared, index, address, count)));
            add(Box::new(move |shared| publish(shared, index, address)));
            add(Box::new(move |shared| listen(shared, address)));
            let net = Arc::clone(&cluster.net);
            add(Box::new(move |shared| {
                let writes = write_realms(&net.namespace(index), index, || shared.stop.load(Relaxed));
                shared.change(|report| report.writes.merge(writes));
            }));
        }
        Self { shared, threads }
    }

    /// Waits until the sum of results has grown by this much: the load flows.
    pub fn await_results(&self, more: u64, bound: Duration) {
        let so_far = || self.shared.report.lock().expect("nobody panics with it").results;
        let wanted = so_far() + more;
        eventually_within(bound, &format!("{more} more calls succeed"), || {
            (so_far() >= wanted).then_some(())
        });
    }

    /// Stops the load; everything under way is waited for.
    pub fn finish(self) -> Report {
        self.shared.stop.store(true, Relaxed);
        for thread in self.threads {
            thread.join().expect("a thread of the load");
        }
        std::mem::take(&mut self.shared.report.lock().expect("nobody panics with it"))
    }
}

impl Report {
    /// What must hold whatever fails: every call answered, none executed twice, no event invented, doubled or out of
    /// order.
    pub fn check(&self) {
        assert!(self.unanswered.is_empty(), "calls without an answer: {:?}", self.unanswered);
        let twice: Vec<_> = self.executed.iter().filter(|(_, times)| **times > 1).collect();
        assert!(twice.is_empty(), "calls executed more than once: {twice:?}");
        for received in &self.received {
            let mut last: BTreeMap<&str, u64> = BTreeMap::new();
            for (publisher, number) in received {
                assert!(
                    self.published.contains(&(publisher.clone(), *number)),
                    "phantom: {publisher} {number}"
                );
                let before = last.insert(publisher, *number);
                assert!(before < Some(*number), "{publisher}: {number} after {before:?}");
            }
        }
        assert!(self.results > 0, "no call succeeded at all: {:?}", self.errors);
    }

    /// Without faults: every subscription got, of each publisher, all events from the first one it got on.
    pub fn check_no_event_lost(&self) {
        let mut last_sent: BTreeMap<&str, u64> = BTreeMap::new();
        for (publisher, number) in &self.acknowledged {
            last_sent.insert(publisher, *number);
        }
        for received in &self.received {
            for (publisher, last) in &last_sent {
                let of_this: Vec<u64> = received
                    .iter()
                    .filter(|(name, _)| name == publisher)
                    .map(|(_, number)| *number)
                    .collect();
                let first = of_this.first().unwrap_or_else(|| panic!("nothing of {publisher} arrived"));
                let expected = last - first + 1;
                assert!(
                    of_this.len() as u64 >= expected,
                    "{publisher}: {} of {expected} arrived",
                    of_this.len()
                );
            }
        }
    }

    /// The slowest answer to the callers on some nodes.
    pub fn slowest(&self, on: impl Fn(usize) -> bool) -> Duration {
        self.slowest.iter().filter(|(node, _)| on(**node)).map(|(_, took)| *took).max().unwrap_or_default()
    }

    pub fn summary(&self) -> String {
        let errors: u64 = self.errors.values().sum();
        format!(
            "{} calls answered, {errors} with errors, {} cut off, slowest {:.1} s; {} events acknowledged; \
             {} realms written",
            self.results + errors,
            self.cut_off,
            self.slowest(|_| true).as_secs_f64(),
            self.acknowledged.len(),
            self.writes.acknowledged()
        )
    }
}

impl Shared {
    fn stopped(&self) -> bool {
        self.stop.load(Relaxed)
    }

    fn change(&self, change: impl FnOnce(&mut Report)) {
        change(&mut self.report.lock().expect("nobody panics with it"));
    }

    /// A session; None when the load stops before there is one.
    fn session(&self, address: SocketAddr) -> Option<Client> {
        while !self.stopped() {
            if let Some(client) = join(address, "realm1") {
                return Some(client);
            }
            sleep(PAUSE * 10);
        }
        None
    }
}

/// A session, if the node takes one.
pub fn join(address: SocketAddr, realm: &str) -> Option<Client> {
    let mut client = Client::connect_to(address, Wire::PLAIN).ok()?;
    // Who does not announce it is not told that a registration was lost.
    let callee = json!({"features": {"registration_revocation": true}});
    let roles = json!({"publisher": {}, "subscriber": {}, "caller": {}, "callee": callee});
    client.send(&json!([1, realm, {"roles": roles}]));
    let welcome = client.wait_for(Instant::now() + JOIN_MAX, |message| message[0] == 2)?;
    client.session = welcome[1].as_u64()?;
    Some(client)
}

/// The answer to a request; None when the connection ends or it does not come in time.
pub fn ask(client: &mut Client, message: Value, bound: Duration) -> Option<Value> {
    let kind = message[0].clone();
    let request = client.request(message);
    client.wait_for(Instant::now() + bound, |answer| match answer[0].as_u64() {
        Some(17 | 33 | 35 | 50 | 65 | 67) => answer[1] == request,
        Some(8) => answer[1] == kind && answer[2] == request,
        _ => false,
    })
}

pub fn procedure(node: usize) -> String {
    format!("com.lab.echo.node{node}")
}

/// Answers the calls of its procedure, on one session after the other.
fn answer_calls(shared: &Shared, node: usize, address: SocketAddr) {
    while let Some(mut client) = shared.session(address) {
        // What the last session registered may still be there for a moment.
        let registered = ask(&mut client, json!([64, 0, {}, procedure(node)]), JOIN_MAX);
        if registered.is_none_or(|answer| answer[0] != 65) {
            sleep(PAUSE);
            continue;
        }
        while !shared.stopped() && !client.has_ended() {
            let Some(invocation) = client.wait_for(Instant::now() + LOOK, |message| message[0] == 68) else {
                if client.wait_for(Instant::now(), |message| message[0] == 6 || message[0] == 67).is_some() {
                    // GOODBYE, or the registration was revoked: begin again.
                    break;
                }
                continue;
            };
            let call = invocation[4].to_string();
            shared.change(|report| *report.executed.entry(call).or_default() += 1);
            client.send(&json!([70, invocation[1], {}, invocation[4]]));
        }
        if shared.stopped() {
            // Callers stop at the same time; what they have under way is answered.
            let until = Instant::now() + LAST_CALLS;
            while let Some(invocation) = client.wait_for(until, |message| message[0] == 68) {
                client.send(&json!([70, invocation[1], {}, invocation[4]]));
            }
        }
    }
}

/// Calls all procedures in turn, one call at a time.
fn call(shared: &Shared, node: usize, address: SocketAddr, count: usize) {
    let mut number = 0_u64;
    while let Some(mut client) = shared.session(address) {
        while !shared.stopped() && !client.has_ended() {
            number += 1;
            let target = usize::try_from(number).expect("small") % count;
            let arguments = json!([format!("caller{node}"), number]);
            let asked = Instant::now();
            let answer = ask(&mut client, json!([48, 0, {}, procedure(target), arguments]), ANSWER_MAX);
            let took = asked.elapsed();
            shared.change(|report| {
                let slowest = report.slowest.entry(node).or_default();
                *slowest = took.max(*slowest);
                match answer {
                    Some(answer) if answer[0] == 50 => {
                        assert_eq!(answer[3], arguments, "the result of another call");
                        report.results += 1;
                    }
                    Some(error) => {
                        *report.errors.entry(error[4].as_str().unwrap_or("?").to_owned()).or_default() += 1;
                    }
                    None if client.has_ended() => report.cut_off += 1,
                    None => report.unanswered.push(format!("{} {arguments}", procedure(target))),
                }
            });
            sleep(PAUSE);
        }
    }
}

/// Publishes numbers under a name of its own for each session.
fn publish(shared: &Shared, node: usize, address: SocketAddr) {
    let mut session = 0;
    while let Some(mut client) = shared.session(address) {
        session += 1;
        let name = format!("publisher{node}.{session}");
        for number in 0.. {
            if shared.stopped() || client.has_ended() {
                break;
            }
            let event = (name.clone(), number);
            shared.change(|report| _ = report.published.insert(event.clone()));
            let message = json!([16, 0, {"acknowledge": true}, TOPIC, [name, number]]);
            match ask(&mut client, message, ANSWER_MAX) {
                Some(answer) if answer[0] == 17 => {
                    shared.change(|report| _ = report.acknowledged.insert(event))
                }
                Some(_) => {}
                None => assert!(client.has_ended(), "PUBLISHED did not come within {ANSWER_MAX:?}"),
            }
            sleep(PAUSE);
        }
    }
}

/// Keeps what a subscription gets, one list for each session.
fn listen(shared: &Shared, address: SocketAddr) {
    while let Some(mut client) = shared.session(address) {
        if ask(&mut client, json!([32, 0, {}, TOPIC]), JOIN_MAX).is_none_or(|answer| answer[0] != 33) {
            continue;
        }
        let mut received = vec![];
        let mut take = |event: &Value| {
            let name = event[4][0].as_str().expect("a publisher").to_owned();
            received.push((name, event[4][1].as_u64().expect("a number")));
        };
        while !shared.stopped() && !client.has_ended() {
            let until = Instant::now() + LOOK;
            while let Some(event) = client.wait_for(until, |message| message[0] == 36) {
                take(&event);
            }
            if client.wait_for(Instant::now(), |message| message[0] == 6).is_some() {
                break;
            }
        }
        while let Some(event) = client.wait_for(Instant::now() + LAST_CALLS, |message| message[0] == 36) {
            take(&event);
        }
        shared.change(|report| report.received.push(received));
    }
}

/// Waits until on every node of `nodes` every call of every other's procedure succeeds and every event reaches all;
/// the time that took.
pub fn await_service(cluster: &Cluster, nodes: &[usize], realm: &str, bound: Duration) -> Duration {
    let started = Instant::now();
    let mut clients: Vec<Client> = nodes
        .iter()
        .map(|node| {
            let address = cluster.nodes[*node].rawsocket();
            eventually_within(bound, &format!("node {node} takes sessions"), || join(address, realm))
        })
        .collect();
    // Names of their own, so that one check does not meet another's.
    let mark = fastrand::u64(..);
    let topic = format!("com.lab.check.{mark:x}.events");
    for (client, node) in clients.iter_mut().zip(nodes) {
        client.subscribe(&topic);
        client.register(&format!("com.lab.check.{mark:x}.node{node}"));
    }
    for source in 0..clients.len() {
        for (target, node) in nodes.iter().enumerate() {
            let uri = format!("com.lab.check.{mark:x}.node{node}");
            let what = format!("a call from node {} to node {node} succeeds", nodes[source]);
            let left = bound.saturating_sub(started.elapsed());
            eventually_within(left, &what, || {
                let request = clients[source].request(json!([48, 0, {}, uri, [1]]));
                let until = Instant::now() + ANSWER_MAX;
                loop {
                    let soon = Instant::now() + PAUSE;
                    if let Some(invocation) = clients[target].wait_for(soon, |message| message[0] == 68) {
                        clients[target].send(&json!([70, invocation[1], {}, [2]]));
                    }
                    let answered = |message: &Value| {
                        message[0] == 50 && message[1] == request || message[0] == 8 && message[2] == request
                    };
                    if let Some(answer) = clients[source].wait_for(Instant::now() + PAUSE, answered) {
                        return (answer[0] == 50).then_some(());
                    }
                    assert!(Instant::now() < until, "{what}: no answer within {ANSWER_MAX:?}");
                }
            });
        }
    }
    for source in 0..clients.len() {
        for target in (0..clients.len()).filter(|target| *target != source) {
            let what = format!("an event from node {} reaches node {}", nodes[source], nodes[target]);
            let left = bound.saturating_sub(started.elapsed());
            eventually_within(left, &what, || {
                clients[source].publish(&topic, &json!([nodes[source]]));
                let from_source = |message: &Value| message[0] == 36 && message[4][0] == nodes[source];
                clients[target].wait_for(Instant::now() + LOOK * 4, from_source)
            });
        }
    }
    started.elapsed()
}

const TOPIC: &str = "com.lab.events";
/// Between two requests of one session.
const PAUSE: Duration = Duration::from_millis(5);
/// How often a waiting thread looks whether it is to stop.
const LOOK: Duration = Duration::from_millis(50);
const JOIN_MAX: Duration = Duration::from_secs(5);
/// A request that takes longer hangs. The client of a node that stands still for 45 s waits that long too.
const ANSWER_MAX: Duration = Duration::from_secs(75);
/// How long callees and subscribers go on after the load has stopped.
const LAST_CALLS: Duration = Duration::from_secs(1);
