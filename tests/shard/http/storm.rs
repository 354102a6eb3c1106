//! Clients that do anything in any order. Nothing may panic, nothing may be lost or come twice while connections are whole, and
//! when they are gone so is everything.

use super::{HTTP, Transport, answers, request, serving};
use crate::rig::Rig;
use crate::{HELLO, connect, frames};
use common::metrics::Gauge;
use std::time::Duration;

const STEPS: usize = 400;
const SEEDS: u64 = 40;
const CONNECTIONS_MAX: usize = 20;

/// A small generator (xorshift), so that a seed replays its run.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % end
    }

    fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }
}

struct World {
    rig: Rig,
    random: Random,
    links: Vec<usize>,
    /// Paths of transports, with what they speak.
    transports: Vec<(String, bool)>,
    requests: u64,
}

impl World {
    fn link(&mut self) -> usize {
        let open: Vec<usize> = self.links.iter().copied().filter(|at| self.rig.links[*at].open).collect();
        if open.is_empty() || (open.len() < CONNECTIONS_MAX && self.random.chance(20)) {
            let shard = self.random.below(2);
            self.links.push(self.rig.connect(shard, HTTP).expect("there is room"));
            return self.links[self.links.len() - 1];
        }
        open[self.random.below(open.len())]
    }

    fn message(&mut self, is_batch: bool) -> String {
        self.requests += 1;
        let n = self.requests;
        let message = match self.random.below(12) {
            0 => HELLO.to_owned(),
            1 => format!("[32,{n},{{}},\"com.example.a\"]"),
            2 => format!("[64,{n},{{\"force_reregister\":true}},\"com.example.p\"]"),
            3..=5 => format!(
                "[16,{n},{{\"exclude_me\":false}},\"com.example.a\",[\"{}\"]]",
                "x".repeat(self.random.below(3_000))
            ),
            6 | 7 => format!("[48,{n},{{}},\"com.example.p\",[{n}]]"),
            8 => format!("[70,{},{{}}]", 1 + self.random.below(4)),
            9 => "[6,{},\"wamp.close.close_realm\"]".to_owned(),
            10 => "nonsense".to_owned(),
            _ => HELLO.to_owned(),
        };
        if is_batch { format!("{message}\x1e") } else { message }
    }

    fn path(&mut self) -> Option<(String, bool)> {
        let at = self.random.below(self.transports.len().max(1));
        self.transports.get(at).cloned()
    }

    fn step(&mut self) {
        match self.random.below(20) {
            0 | 1 => {
                let (kind, protocol) = [
                    ("longpoll", "wamp.2.json"),
                    ("longpoll", "wamp.2.json.batched"),
                    ("sse", "wamp.2.json.sse"),
                ][self.random.below(3)];
                let at = self.rig.connect(self.random.below(2), HTTP).expect("there is room");
                let body = format!("{{\"protocols\":[\"{protocol}\"]}}");
                self.rig.receive(at, request("POST", &format!("/wamp/{kind}/open"), &body).as_bytes());
                self.rig.run();
                let answer = answers(&mut self.rig, at).remove(0);
                self.links.push(at);
                if answer.status == 200 {
                    let id = answer.body.rsplit('"').nth(1).expect("an id").to_owned();
                    self.transports.push((format!("/wamp/{kind}/{id}"), protocol.ends_with("batched")));
                    // Most log in.
                    let end = if protocol.ends_with("batched") { "\x1e" } else { "" };
                    let hello = request("POST", &format!("/wamp/{kind}/{id}/send"), &format!("{HELLO}{end}"));
                    self.rig.receive(at, hello.as_bytes());
                } else {
                    assert_eq!(answer.status, 503);
                }
            }
            2..=8 => {
                let Some((path, is_batch)) = self.path() else { return };
                let (at, message) = (self.link(), self.message(is_batch));
                self.rig.receive(at, request("POST", &format!("{path}/send"), &message).as_bytes());
            }
            9..=13 => {
                let Some((path, _)) = self.path() else { return };
                let method = if path.contains("sse") { "GET" } else { "POST" };
                let at = self.link();
                self.rig.receive(at, request(method, &format!("{path}/receive"), "").as_bytes());
            }
            14 => {
                let at = self.link();
                self.rig.close(at);
            }
            15 => {
                let at = self.link();
                self.rig.finish_send(at, false);
            }
            16 => {
                let at = self.link();
                self.rig.links[at].stuck ^= true;
            }
            17 if self.random.chance(20) => {
                let Some((path, _)) = self.path() else { return };
                let at = self.link();
                self.rig.receive(at, request("POST", &format!("{path}/close"), "").as_bytes());
            }
            18 => self.rig.pass(Duration::from_millis(100) * self.random.below(60) as u32),
            _ => self.rig.run(),
        }
    }
}

#[test]
fn any_order_of_requests_leaves_nothing_behind() {
    for seed in 1..=SEEDS {
        let mut rig = Rig::new(2, |config| {
            serving(config);
            let http = config.http.as_mut().expect("HTTP is served");
            http.transports_max = 6;
            config.memory_max = 64 << 10;
            config.slow_receiver.queue_max = 16 << 10;
            config.slow_receiver.reply_reserve = 4 << 10;
        });
        let peer = connect(&mut rig, 0, &[HELLO, r#"[32,1,{},"com.example.a"]"#]);
        rig.run();
        let random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let mut world = World { rig, random, links: Vec::new(), transports: Vec::new(), requests: 0 };
        for _ in 0..STEPS {
            world.step();
        }
        let World { mut rig, links, .. } = world;
        for at in links {
            rig.links[at].stuck = false;
        }
        rig.run();
        rig.close(peer);
        for _ in 0..70 {
            rig.pass(Duration::from_secs(1));
            rig.run();
        }
        rig.links.iter_mut().for_each(|link| link.got.clear());
        for at in 0..rig.links.len() {
            rig.close(at);
        }
        for _ in 0..70 {
            rig.pass(Duration::from_secs(1));
            rig.run();
        }
        for shard in 0..2 {
            assert_eq!(rig.gauge(shard, Gauge::HttpTransports), 0, "seed {seed}");
        }
        rig.check_empty();
    }
}

/// A client with two connections, of which one breaks now and then: every event comes, once, in order, as long as only the driver
/// breaks them.
#[test]
fn broken_connections_lose_nothing_and_double_nothing() {
    for seed in 1..=SEEDS {
        let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let mut rig = Rig::new(2, serving);
        let poll = Transport::open(&mut rig, "longpoll", "wamp.2.json", random.below(2), random.below(2));
        poll.join(&mut rig, "realm1");
        assert_eq!(poll.send(&mut rig, r#"[32,1,{},"com.example.a"]"#), 202);
        assert!(poll.receive(&mut rig).starts_with("[33,"));
        let publisher = connect(&mut rig, random.below(2), &[HELLO]);
        rig.run();
        let (mut published, mut got) = (0, 0);
        let receive = request("POST", &format!("{}/receive", poll.base), "");
        while got < 100 {
            while published < 100 && random.chance(60) {
                published += 1;
                let publish = format!("[16,{published},{{}},\"com.example.a\",[{published}]]");
                rig.receive(publisher, &frames(&[&publish]));
            }
            let at = rig.connect(random.below(2), HTTP).expect("there is room");
            rig.links[at].stuck = true;
            rig.receive(at, receive.as_bytes());
            rig.run();
            let is_whole = random.chance(70);
            if !rig.finish_send(at, is_whole) {
                // Nothing was there; the client gives up, and comes again once that is known.
                rig.close(at);
                rig.run();
                continue;
            }
            if is_whole {
                got += 1;
                let body = answers(&mut rig, at).remove(0).body;
                assert!(body.ends_with(&format!(",[{got}]]")), "{body} instead of {got}, seed {seed}");
                rig.close(at);
            }
        }
        assert_eq!(poll.close(&mut rig), 202);
        rig.check_empty();
    }
}
