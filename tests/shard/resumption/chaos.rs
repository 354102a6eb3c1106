//! Clients that come and go as they like: connections break, are given up for others while they live, nodes lose each other. Every
//! client gets events in order, none twice, and whatever happens nothing is left in the end.

use super::super::places::PLACES;
use super::{TOPIC, World, hello};
use crate::{connect, frames, messages};
use fastrand::Rng;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::Duration;

const PEERS: usize = 4;
const STEPS: usize = 300;
const SEEDS: u64 = 12;

#[derive(Default)]
struct Peer {
    link: Option<usize>,
    /// It has a session on this link.
    joined: bool,
    session: u64,
    token: String,
    request: u64,
    published: u64,
    /// The last number of each session that publishes.
    seen: BTreeMap<u64, u64>,
    resumed: usize,
}

struct Chaos {
    world: World,
    rng: Rng,
    peers: Vec<Peer>,
}

impl Chaos {
    fn step(&mut self) {
        let who = self.rng.usize(..PEERS);
        let shards = self.world.place.shards();
        match self.rng.u8(..24) {
            0..=7 => self.publish(who),
            8 => {
                if let Some(link) = self.peers[who].link {
                    self.world.rig.close(link);
                }
            }
            9 => {
                if let Some(link) = self.peers[who].link {
                    self.world.rig.finish_send(link, false);
                }
            }
            10 | 11 => self.come(who),
            12 => {
                if let Some(link) = self.peers[who].link {
                    let link = &mut self.world.rig.links[link];
                    link.stuck = !link.stuck;
                }
            }
            13..=16 => self.world.rig.turn(self.rng.usize(..shards)),
            17 | 18 => self.world.rig.carry(),
            19 => self.world.rig.pass(Duration::from_millis(self.rng.u64(1..1_500))),
            20 if self.world.place.is_apart() && self.rng.u8(..8) == 0 => self.world.rig.cut(),
            _ => self.world.rig.run(),
        }
        (0..PEERS).for_each(|who| self.listen(who));
    }

    fn publish(&mut self, who: usize) {
        let peer = &mut self.peers[who];
        let Some(link) = peer.link.filter(|_| peer.joined) else { return };
        peer.request += 1;
        peer.published += 1;
        let size = if self.rng.u8(..8) == 0 { 5_000 } else { 5 };
        let args = json!([peer.session, peer.published, "x".repeat(size)]);
        let publish = json!([16, peer.request, {"exclude_me": false}, TOPIC, args]);
        self.world.rig.receive(link, &frames(&[&publish.to_string()]));
    }

    /// A client connects, and wants the session it had if it had one, whatever became of its last connection.
    fn come(&mut self, who: usize) {
        let shard = self.rng.usize(..self.world.place.shards());
        let peer = &mut self.peers[who];
        let mut more = vec![("resumable", Value::from(true))];
        if !peer.token.is_empty() {
            more.push(("resume-session", peer.session.into()));
            more.push(("resume-token", peer.token.as_str().into()));
        }
        let hello = hello(&self.world.realm, &more);
        let link = connect(&mut self.world.rig, shard, &[&hello]);
        let peer = &mut self.peers[who];
        (peer.link, peer.joined) = (Some(link), false);
    }

    fn listen(&mut self, who: usize) {
        let Some(link) = self.peers[who].link else { return };
        for text in messages(&mut self.world.rig, link) {
            let message: Value = serde_json::from_str(&text).expect("JSON");
            self.hear(who, link, &message);
        }
        if !self.world.rig.links[link].open {
            self.peers[who].link = None;
        }
    }

    fn hear(&mut self, who: usize, link: usize, message: &Value) {
        let peer = &mut self.peers[who];
        match message[0].as_u64() {
            Some(2) => {
                let resumed = message[2]["resumed"] == true;
                peer.joined = true;
                peer.token = message[2]["resume-token"].as_str().expect("a token").to_owned();
                let session = message[1].as_u64().expect("an id");
                assert_eq!(resumed, session == peer.session);
                if resumed {
                    peer.resumed += 1;
                } else {
                    (peer.session, peer.request) = (session, 1);
                    self.world.rig.receive(link, &frames(&[&json!([32, 1, {}, TOPIC]).to_string()]));
                }
            }
            Some(36) => {
                let [from, number] = [0, 1].map(|at| message[4][at].as_u64().expect("a number"));
                let before = peer.seen.insert(from, number).unwrap_or(0);
                assert!(before < number, "{who} gets {number} of {from} after {before}");
            }
            Some(33) => {}
            _ => panic!("{message}"),
        }
    }
}

#[test]
fn whatever_happens_events_come_in_order_and_once() {
    let mut resumed = 0;
    for place in &PLACES {
        for seed in 0..SEEDS {
            let realm = if seed % 2 == 0 { "realm1" } else { "strict" };
            let named = Named(seed);
            let peers = (0..PEERS).map(|_| Peer::default()).collect();
            let mut chaos = Chaos { world: World::new(place, realm), rng: Rng::with_seed(seed), peers };
            (0..PEERS).for_each(|who| chaos.come(who));
            (0..STEPS).for_each(|_| chaos.step());
            resumed += chaos.peers.iter().map(|peer| peer.resumed).sum::<usize>();
            chaos.world.rig.links.iter_mut().for_each(|link| link.stuck = false);
            chaos.world.rig.run();
            (0..PEERS).for_each(|who| chaos.listen(who));
            chaos.world.end();
            std::mem::forget(named);
        }
    }
    assert!(resumed > 500, "{resumed} resumptions");
}

/// Says which seed failed.
struct Named(u64);

impl Drop for Named {
    fn drop(&mut self) {
        eprintln!("seed {} fails", self.0);
    }
}
