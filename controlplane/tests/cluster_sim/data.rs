//! A data plane by script: what its shards claim, and what it believes of other nodes by what it was sent.

use common::ids::{BootEpoch, NodeId, RealmId, RouteKind, ShardId, SnapshotVersion};
use common::link::{Claim, Down, LINK_PROTOCOL, Peer, RetainedTopic, RouteChange, Up};
use common::share::{Invoke, Share};
use controlplane::claims::RouteKey;
use controlplane::fold::Fold;
use controlplane::node::LinkId;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// What nodes want; of a procedure that callees share, how.
pub type Routes = BTreeMap<(NodeId, RouteKey), Option<Share>>;
/// What the shards of one node want.
pub type Claims = BTreeMap<RouteKey, Option<Share>>;

pub struct Data {
    pub epoch: BootEpoch,
    pub alive: bool,
    pub link: Option<LinkId>,
    welcomed: bool,
    shards: Vec<Shard>,
    pub peers: Vec<Peer>,
    /// What other nodes want, as told.
    table: Routes,
    /// Changes that the snapshot in use does not have.
    overlay: VecDeque<(u64, Remote)>,
    /// Number of the next change; none: any, because the control plane is another one.
    next_seq: Option<u64>,
    version: SnapshotVersion,
    /// What topics retain; true: it was put here and has not come back.
    pub retained: BTreeMap<String, (Vec<u8>, bool)>,
}

/// A numbered change.
#[derive(Clone)]
enum Remote {
    Route(RouteChange),
    Unroute(NodeId),
}

#[derive(Default)]
struct Shard {
    routes: Claims,
    seq: u64,
}

impl Data {
    pub fn new(epoch: u64, shards: usize) -> Self {
        Self {
            epoch: BootEpoch(epoch),
            alive: true,
            link: None,
            welcomed: false,
            shards: (0..shards).map(|_| Shard::default()).collect(),
            peers: vec![],
            table: Routes::new(),
            overlay: VecDeque::new(),
            next_seq: None,
            version: SnapshotVersion(0),
            retained: BTreeMap::new(),
        }
    }

    /// Everything its shards want.
    pub fn claims(&self) -> Claims {
        self.shards.iter().flat_map(|shard| shard.routes.clone()).collect()
    }

    /// Routes of nodes it may send to.
    pub fn effective(&self) -> Routes {
        let live: BTreeSet<NodeId> = self.peers.iter().map(|peer| peer.node).collect();
        self.table.clone().into_iter().filter(|((node, _), _)| live.contains(node)).collect()
    }

    /// Everything it was told, of dead nodes too.
    pub fn told(&self) -> &Routes {
        &self.table
    }

    pub fn hello(&mut self, link: LinkId) -> Up {
        (self.link, self.welcomed) = (Some(link), false);
        Up::Hello {
            protocol: LINK_PROTOCOL,
            epoch: self.epoch,
            pid: 7,
            shards: self.shards.len() as u8,
            version: "sim".into(),
        }
    }

    pub fn unlinked(&mut self) {
        (self.link, self.welcomed) = (None, false);
    }

    /// A shard begins or ends to want something; the frame that tells, if there is a link.
    pub fn toggle(&mut self, shard: usize, key: RouteKey) -> Option<Up> {
        let at = shard % self.shards.len();
        let shard = &mut self.shards[at];
        let wanted = shard.routes.remove(&key).is_none();
        if wanted {
            shard.routes.insert(key.clone(), None);
        }
        self.said(at, claim(&key, wanted.then_some(None)))
    }

    /// One of the callees of a procedure that is shared comes or goes: what the home shard says of those there are. `forced`: it
    /// takes the place of all others.
    pub fn share(&mut self, key: &RouteKey, invoke: Invoke, forced: bool, leaves: bool) -> Option<Up> {
        let now = 1 + self.table.values().flatten().map(|share| share.last).max().unwrap_or(0);
        let held = self.shards[0].routes.get(key).copied().flatten();
        let now = held.map_or(now, |held| now.max(held.last + 1));
        let share = match held {
            Some(held) if leaves => Some(Share { callees: held.callees - 1, ..held }),
            Some(held) if !forced && held.invoke == invoke => {
                Some(Share { callees: held.callees + 1, last: now, ..held })
            }
            Some(_) if !forced => return None,
            None if leaves => return None,
            _ => Some(Share { invoke, forced, callees: 1, first: now, last: now }),
        };
        let share = share.filter(|share| share.callees > 0);
        match share {
            Some(share) => self.shards[0].routes.insert(key.clone(), Some(share)),
            None => self.shards[0].routes.remove(key),
        };
        self.said(0, claim(key, share.map(Some)))
    }

    fn said(&mut self, at: usize, claim: Claim) -> Option<Up> {
        let shard = &mut self.shards[at];
        shard.seq += 1;
        let frame = Up::Claims { shard: ShardId(at as u8), first_seq: shard.seq, claims: vec![claim] };
        self.welcomed.then_some(frame)
    }

    /// All shards cease to want it. Only one holds a procedure.
    pub fn drop_everywhere(&mut self, key: &RouteKey) -> Option<Up> {
        let at = self.shards.iter().position(|shard| shard.routes.contains_key(key))?;
        self.toggle(at, key.clone())
    }

    /// A client publishes an event that its topic retains.
    pub fn retain(&mut self, topic: &str, bytes: Vec<u8>) -> Option<Up> {
        self.retained.insert(topic.to_owned(), (bytes, true));
        self.welcomed.then(|| self.told_of(topic))
    }

    fn told_of(&self, topic: &str) -> Up {
        let bytes = self.retained[topic].0.clone();
        let topic = RetainedTopic { realm: RealmId::of("realm1"), topic: topic.to_owned(), age_ms: 0, bytes };
        Up::Retain { topic, ttl_ms: 0 }
    }

    /// Takes a frame and says what the data plane answers.
    pub fn take(&mut self, frame: Down) -> Result<Vec<Up>, String> {
        match frame {
            Down::Welcome { .. } => {
                self.welcomed = true;
                self.next_seq = None;
                self.overlay.clear();
                Ok(self.whole_set())
            }
            Down::Snapshot { .. } => Err("a snapshot comes as a fold here".into()),
            Down::Delta(delta) => {
                if delta.follows != self.version {
                    return Err(format!("a delta after {:?} at {:?}", delta.follows, self.version));
                }
                self.version = delta.version;
                Ok(vec![Up::Taken { version: delta.version }])
            }
            Down::Peers { peers } => {
                self.peers = peers;
                Ok(vec![])
            }
            Down::Routes { first_seq, changes } => {
                let changes = changes.into_iter().map(Remote::Route).collect();
                self.changes(first_seq, changes).map(|()| vec![])
            }
            Down::Unroute { seq, node } => self.changes(seq, vec![Remote::Unroute(node)]).map(|()| vec![]),
            Down::Revoke { policy, realm, uri } => {
                let lost = |key: &&RouteKey| {
                    key.kind == RouteKind::Procedure
                        && (key.realm, key.policy, &*key.uri) == (realm, policy, &*uri)
                };
                let found: Vec<(usize, RouteKey)> = self
                    .shards
                    .iter()
                    .enumerate()
                    .flat_map(|(at, shard)| shard.routes.keys().find(lost).map(|key| (at, key.clone())))
                    .collect();
                Ok(found.into_iter().filter_map(|(at, key)| self.toggle(at, key)).collect())
            }
            Down::Retained { topics } => {
                for RetainedTopic { topic, bytes, .. } in topics {
                    match bytes.is_empty() {
                        true => self.retained.remove(&topic),
                        false => self.retained.insert(topic, (bytes, false)),
                    };
                }
                Ok(vec![])
            }
            Down::Drain | Down::Refuse { .. } => Err("nobody drains or refuses here".into()),
        }
    }

    /// Takes a snapshot into use; it is an error if it is not newer, because its control plane knows which one is in use.
    pub fn snapshot(&mut self, version: SnapshotVersion, fold: &Fold) -> Result<Up, String> {
        if version <= self.version {
            return Err(format!("snapshot {version:?} after {:?}", self.version));
        }
        self.version = version;
        let (rows, lists) = fold.routes();
        let shares = fold.shares().into_iter();
        let shares: BTreeMap<_, _> =
            shares.map(|said| ((said.node, said.realm, said.policy, said.uri), said.share)).collect();
        self.table = rows
            .iter()
            .flat_map(|row| {
                let key =
                    RouteKey { realm: row.realm, uri: row.uri.into(), kind: row.kind, policy: row.policy };
                let nodes = lists[row.list as usize].iter();
                let share = |node: NodeId| {
                    let of_procedure = row.kind == RouteKind::Procedure;
                    shares
                        .get(&(node, row.realm, row.policy, row.uri.into()))
                        .copied()
                        .filter(|_| of_procedure)
                };
                nodes.map(|node| ((*node, key.clone()), share(*node))).collect::<Vec<_>>()
            })
            .collect();
        let folded = fold.head.nodes_folded;
        self.overlay.retain(|(seq, _)| *seq > folded);
        // What was withheld is in the snapshot.
        self.next_seq = self.next_seq.map(|next| next.max(folded + 1));
        for at in 0..self.overlay.len() {
            let change = self.overlay[at].1.clone();
            self.fold_in(change);
        }
        Ok(Up::Taken { version })
    }

    fn changes(&mut self, first_seq: u64, changes: Vec<Remote>) -> Result<(), String> {
        if self.next_seq.is_some_and(|next| next != first_seq) {
            return Err(format!("changes from {first_seq}, expected {:?}", self.next_seq));
        }
        self.next_seq = Some(first_seq + changes.len() as u64);
        for (seq, change) in (first_seq..).zip(changes) {
            self.overlay.push_back((seq, change.clone()));
            self.fold_in(change);
        }
        Ok(())
    }

    fn fold_in(&mut self, change: Remote) {
        let change = match change {
            Remote::Route(change) => change,
            Remote::Unroute(gone) => return self.table.retain(|(node, _), _| *node != gone),
        };
        let RouteChange { node, realm, kind, policy, uri, wanted, share } = change;
        let route = (node, RouteKey { realm, uri: uri.into(), kind, policy });
        if wanted {
            self.table.insert(route, share);
        } else {
            self.table.remove(&route);
        }
    }

    /// As a data plane answers a welcome: where it listens, and all it claims.
    fn whole_set(&self) -> Vec<Up> {
        let listeners = vec![("relay".to_owned(), "10.0.0.1:18084".to_owned())];
        // A control plane whose clock or disk is behind must not start below it.
        let in_use = (self.version.0 > 0).then_some(Up::Taken { version: self.version });
        let mut frames = vec![Up::Listening { listeners }];
        frames.splice(0..0, in_use);
        for (at, shard) in self.shards.iter().enumerate() {
            let at = ShardId(at as u8);
            let claims = shard.routes.iter().map(|(key, share)| claim(key, Some(*share))).collect();
            frames.push(Up::ClaimsReset { shard: at });
            frames.push(Up::ClaimsPart { shard: at, claims });
            frames.push(Up::ClaimsEnd { shard: at, seq: shard.seq });
        }
        let unconfirmed = self.retained.iter().filter(|(_, (_, unconfirmed))| *unconfirmed);
        frames.extend(unconfirmed.map(|(topic, _)| self.told_of(topic)));
        frames
    }
}

/// `wanted`: and how callees share it.
fn claim(key: &RouteKey, wanted: Option<Option<Share>>) -> Claim {
    let RouteKey { realm, kind, policy, .. } = *key;
    let uri = key.uri.to_string();
    match wanted {
        Some(Some(share)) => Claim::Shared { realm, policy, uri, share },
        Some(None) => Claim::Routed { realm, kind, policy, uri },
        None => Claim::Unrouted { realm, kind, policy, uri },
    }
}
