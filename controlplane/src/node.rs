//! The control plane of one node as a machine: frames of the data plane, realm changes and `now` go in; frames, snapshot
//! builds and notices come out. Sans-IO.
//!
//! ```text
//! Frame ─▶ link session ─▶ registry ─┐
//! realm put, removed ─▶ catalog ─────┼▶ publisher ─▶ Send | Build ─▶ Built
//! other nodes' routes ─▶ remote ─────┘
//! ```
//! Invariants: at most one link is the data plane's; a second one is refused while the first lives; claims outlive the
//! link and go only when a data plane of another epoch says hello; nothing is sent before a `Welcome`.

use crate::catalog::Catalog;
use crate::fold::Fold;
use crate::publish::{Policy, Publish, Publisher};
use crate::registry::{ClaimError, LocalChange, Registry};
use crate::remote::Remote;
use common::config::RealmConfig;
use common::ids::{BootEpoch, Match, NODES_MAX, NodeId, RealmId, SHARDS_MAX, ShardId, SnapshotVersion};
use common::link::{Down, LINK_PROTOCOL, Peer, RetainedTopic, RouteChange, Up};
use common::snapshot::Source;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// One connection to the link socket, numbered by the driver and never reused.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct LinkId(pub u64);

#[derive(Debug)]
pub struct Node {
    pid: u32,
    catalog: Catalog,
    registry: Registry,
    remote: Remote,
    publisher: Publisher,
    /// The nodes that may be sent to; none: there is no cluster, or it has not said.
    peers: Option<Vec<Peer>>,
    peers_due: bool,
    /// Frames that the link's queue takes.
    room: usize,
    /// When there is more to do though nothing comes.
    again_at: Option<Instant>,
    link: Option<DataPlane>,
    draining: bool,
    /// What topics of this node retain from now on, and for how long.
    retain: Vec<(RetainedTopic, u64)>,
    counts: Counts,
    outputs: VecDeque<Output>,
}

/// The data plane at the other end of the link.
#[derive(Clone, Debug)]
pub struct DataPlane {
    pub link: LinkId,
    pub epoch: BootEpoch,
    pub pid: u32,
    pub shards: u8,
    pub version: String,
    /// (transport name, address), as bound.
    pub listeners: Vec<(String, String)>,
    /// It said that it is going away.
    pub draining: bool,
    /// The last measurement of each shard.
    pub stats: Vec<Option<Stats>>,
    pub linked_at: Instant,
    /// [`Output::Serving`] was said.
    announced: bool,
}

/// Counters and gauges of a shard in the order of [`common::metrics`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Stats {
    pub cpu: u32,
    pub counters: Vec<u64>,
    pub gauges: Vec<u64>,
}

/// What the driver must do.
#[derive(Clone, PartialEq, Debug)]
pub enum Output {
    Send {
        link: LinkId,
        frame: Down,
    },
    /// Send what was queued, then close.
    Close {
        link: LinkId,
    },
    /// Build the snapshot, off this task, send it and say [`Node::built`].
    Build {
        link: LinkId,
        version: SnapshotVersion,
        fold: Box<Fold>,
    },
    /// Realm changes up to this number are in use by all shards.
    RealmsTaken {
        realm_seq: u64,
    },
    /// The data plane has taken its first snapshot and listens.
    Serving,
    /// Something worth a line in the log.
    Notice(Notice),
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Notice {
    /// `known`: its claims are those we hold.
    Linked {
        pid: u32,
        epoch: BootEpoch,
        known: bool,
    },
    /// `expected`: it had said that it was going away.
    Lost {
        pid: u32,
        expected: bool,
    },
    Refused {
        link: LinkId,
        reason: String,
    },
    Violation {
        link: LinkId,
        reason: String,
    },
    SnapshotRefused {
        version: SnapshotVersion,
        reason: String,
    },
    Resynced {
        shard: ShardId,
        seq: u64,
    },
    Draining {
        pid: u32,
    },
}

#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Counts {
    pub frames: u64,
    /// Links refused, and links closed because of an impossible frame.
    pub links_refused: u64,
    pub violations: u64,
}

/// What a node is made from.
#[derive(Debug)]
pub struct NodeConfig {
    pub pid: u32,
    pub catalog: Catalog,
    pub policy: Policy,
    /// No snapshot version up to this one is used.
    pub version_last: SnapshotVersion,
}

/// Why the node is not ready to serve.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Unready {
    #[error("no data plane is linked")]
    NoDataPlane,
    #[error("the data plane has not taken a snapshot yet")]
    NoSnapshot,
    #[error("the data plane has not said where it listens yet")]
    NotListening,
    #[error("the node is draining")]
    Draining,
}

impl Node {
    pub fn new(config: NodeConfig) -> Self {
        Self {
            pid: config.pid,
            catalog: config.catalog,
            registry: Registry::default(),
            remote: Remote::default(),
            publisher: Publisher::new(config.policy, config.version_last),
            peers: None,
            peers_due: false,
            room: usize::MAX,
            again_at: None,
            link: None,
            draining: false,
            retain: Vec::new(),
            counts: Counts::default(),
            outputs: VecDeque::new(),
        }
    }

    /// A frame came in on `link`.
    pub fn frame(&mut self, now: Instant, link: LinkId, frame: Up) {
        self.counts.frames += 1;
        if self.is_current(link) {
            if let Err(reason) = self.on_frame(now, frame) {
                self.violation(now, link, reason);
            }
            return;
        }
        match frame {
            Up::Hello { protocol, epoch, pid, shards, version } => {
                if protocol != LINK_PROTOCOL {
                    let reason =
                        format!("link protocol {protocol}, this control plane speaks {LINK_PROTOCOL}");
                    self.refuse(link, reason);
                } else if let Some(first) = &self.link {
                    let reason = format!("a data plane is linked already (pid {})", first.pid);
                    self.refuse(link, reason);
                } else {
                    self.hello(now, link, DataPlane::new(now, link, epoch, pid, shards, version));
                }
            }
            _ => self.violation(now, link, "the first frame was not a hello".into()),
        }
    }

    /// A packet on `link` was no frame.
    pub fn violation(&mut self, now: Instant, link: LinkId, reason: String) {
        self.counts.violations += 1;
        self.outputs.push_back(Output::Notice(Notice::Violation { link, reason }));
        self.outputs.push_back(Output::Close { link });
        self.closed(now, link);
    }

    /// `link` is gone. Its claims stay.
    pub fn closed(&mut self, now: Instant, link: LinkId) {
        let _ = now;
        if let Some(data) = self.link.take_if(|data| data.link == link) {
            self.publisher.receiver_lost();
            self.remote.stop();
            self.registry.note_local(LocalChange::Lost);
            self.outputs.push_back(Output::Notice(Notice::Lost { pid: data.pid, expected: data.draining }));
        }
    }

    /// The snapshot asked for by [`Output::Build`] was queued; none: it could not be built.
    pub fn built(&mut self, now: Instant, version: SnapshotVersion, build_time: Option<Duration>) {
        match build_time {
            Some(build_time) => self.publisher.sent(now, version, build_time),
            None => self.publisher.failed(now, version),
        }
    }

    /// Puts a realm that the catalog accepts and the store holds. Returns the number of the change, for
    /// [`Output::RealmsTaken`].
    pub fn realm_put(&mut self, now: Instant, config: RealmConfig) -> u64 {
        let realm = self.catalog.put(config);
        self.publisher.realm_changed(now, realm.id, Some(realm))
    }

    /// None: there is no such realm.
    pub fn realm_remove(&mut self, now: Instant, name: &str) -> Option<u64> {
        let id = self.catalog.remove(name)?;
        Some(self.publisher.realm_changed(now, id, None))
    }

    /// Other nodes want, or no longer want, routes. The data plane is told at once, and by the next snapshot.
    pub fn remote_routes(&mut self, now: Instant, changes: Vec<RouteChange>) {
        let mut changed = 0;
        for change in changes {
            changed += u64::from(self.remote.change(change));
        }
        self.remote_changed(now, changed);
    }

    /// A node wants nothing any more: it is down, gone, or began anew.
    pub fn remote_reset(&mut self, now: Instant, node: NodeId) {
        let changed = self.remote.reset(node);
        self.remote_changed(now, u64::from(changed));
    }

    fn remote_changed(&mut self, now: Instant, count: u64) {
        self.publisher.routes_changed(now, count, self.registry.is_settled());
        if self.remote.is_withheld() {
            self.publisher.behind();
        }
    }

    /// All nodes that may be sent to, in place of those before. A route to a node that is not among them has no effect, so a
    /// node is taken off before its routes are reset, and put on once its routes are there.
    pub fn peers(&mut self, peers: Vec<Peer>) {
        assert!(peers.len() <= NODES_MAX, "membership has a bound");
        self.peers_due |= self.peers.as_ref() != Some(&peers);
        self.peers = Some(peers);
    }

    /// Another node holds this registration with the better right. False: there is no data plane to be told.
    pub fn revoke(&mut self, realm: RealmId, policy: Match, uri: &str) -> bool {
        let Some(data) = &self.link else { return false };
        let frame = Down::Revoke { realm, policy, uri: uri.to_owned() };
        self.outputs.push_back(Output::Send { link: data.link, frame });
        true
    }

    /// While `hold` is true the data plane gets no snapshot and hears nothing of other nodes, because too little is known of
    /// them: a data plane that is new does not serve yet, one that runs goes on with what it has.
    pub fn hold(&mut self, hold: bool) {
        self.publisher.hold(hold);
    }

    /// From here on [`Node::take_local`] tells of this node's routes; first come all there are.
    pub fn watch_local(&mut self) {
        self.registry.watch_local();
        if let Some(data) = &self.link {
            self.registry.note_local_first(LocalChange::Linked { epoch: data.epoch, known: false });
        }
    }

    /// What other nodes must learn, in order. To be called after each event once [`Node::watch_local`] was.
    pub fn take_local(&mut self) -> Vec<LocalChange> {
        self.registry.take_local()
    }

    /// How many frames the queue of the data plane's link takes. Changes of routes wait when it is short of room; what cannot
    /// wait has [`ROOM_KEPT`] frames of its own.
    pub fn link_room(&mut self, frames: usize) {
        self.room = frames;
    }

    /// What topics of this node retain from now on, and for how long. To be called after each event.
    pub fn take_retain(&mut self) -> Vec<(RetainedTopic, u64)> {
        std::mem::take(&mut self.retain)
    }

    /// The link, if it takes another frame that can wait; the frame must follow.
    pub fn spare_room(&mut self) -> Option<LinkId> {
        let link = self.link.as_ref()?.link;
        if self.publisher.is_held() || self.room <= ROOM_KEPT {
            return None;
        }
        self.room -= 1;
        Some(link)
    }

    /// Tells the data plane to say goodbye to everybody and exit. True when one is linked.
    pub fn drain(&mut self) -> bool {
        self.draining = true;
        let Some(data) = &self.link else { return false };
        self.outputs.push_back(Output::Send { link: data.link, frame: Down::Drain });
        true
    }

    /// The next thing to do. `wall_us`: the wall clock in microseconds since 1970.
    pub fn poll(&mut self, now: Instant, wall_us: u64) -> Option<Output> {
        if let Some(output) = self.outputs.pop_front() {
            return Some(output);
        }
        self.again_at = self.remote.sweep().then(|| now + SWEEP_PAUSE);
        let link = self.link.as_ref()?.link;
        if let Some(frame) = self.told_of_nodes(now) {
            return Some(Output::Send { link, frame });
        }
        Some(match self.publisher.poll(now, wall_us)? {
            Publish::Delta(delta) => Output::Send { link, frame: Down::Delta(delta) },
            Publish::Full { version } => Output::Build { link, version, fold: Box::new(self.fold(version)) },
        })
    }

    /// When [`Node::poll`] must be called at the latest.
    pub fn deadline(&self) -> Option<Instant> {
        [self.publisher.deadline(), self.again_at].into_iter().flatten().min()
    }

    pub fn ready(&self) -> Result<(), Unready> {
        let data = self.link.as_ref().ok_or(Unready::NoDataPlane)?;
        if self.draining || data.draining {
            return Err(Unready::Draining);
        }
        self.publisher.taken_version().ok_or(Unready::NoSnapshot)?;
        if data.listeners.is_empty() { Err(Unready::NotListening) } else { Ok(()) }
    }

    pub fn remote(&self) -> &Remote {
        &self.remote
    }

    pub fn catalog(&self) -> &Catalog {
        &self.catalog
    }

    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    pub fn publisher(&self) -> &Publisher {
        &self.publisher
    }

    pub fn data_plane(&self) -> Option<&DataPlane> {
        self.link.as_ref()
    }

    pub fn counts(&self) -> Counts {
        self.counts
    }

    fn is_current(&self, link: LinkId) -> bool {
        self.link.as_ref().is_some_and(|data| data.link == link)
    }

    fn hello(&mut self, now: Instant, link: LinkId, data: DataPlane) {
        let known = match self.registry.begin(data.epoch, data.shards.into()) {
            Ok(new) => !new,
            Err(error) => return self.violation(now, link, error.to_string()),
        };
        let frame = Down::Welcome { protocol: LINK_PROTOCOL, pid: self.pid };
        self.outputs.push_back(Output::Send { link, frame });
        self.outputs.push_back(Output::Notice(Notice::Linked { pid: data.pid, epoch: data.epoch, known }));
        if self.draining {
            self.outputs.push_back(Output::Send { link, frame: Down::Drain });
        }
        self.registry.note_local(LocalChange::Linked { epoch: data.epoch, known });
        self.link = Some(data);
        self.remote.stop();
        self.peers_due = self.peers.is_some();
        self.publisher.receiver_new(now);
        self.publisher.routes_changed(now, 0, self.registry.is_settled());
    }

    /// The next frame about other nodes.
    fn told_of_nodes(&mut self, now: Instant) -> Option<Down> {
        if self.publisher.is_held() {
            return None;
        }
        if std::mem::take(&mut self.peers_due) {
            return self.peers.clone().map(|peers| Down::Peers { peers });
        }
        if self.room <= ROOM_KEPT {
            let retry = self.remote.has_frame().then(|| now + ROOM_RETRY);
            self.again_at = [self.again_at, retry].into_iter().flatten().min();
            return None;
        }
        let frame = self.remote.frame()?;
        self.room -= 1;
        Some(frame)
    }

    /// A frame of the data plane that is linked; the error says why it cannot be.
    fn on_frame(&mut self, now: Instant, frame: Up) -> Result<(), String> {
        let text = |error: ClaimError| error.to_string();
        let changes = match frame {
            Up::Claims { shard, first_seq, claims } => {
                self.registry.claims(shard, first_seq, claims).map_err(text)?
            }
            Up::ClaimsReset { shard } => {
                self.registry.reset(shard).map_err(text)?;
                0
            }
            Up::ClaimsPart { shard, claims } => self.registry.part(shard, claims).map_err(text)?,
            Up::ClaimsEnd { shard, seq } => {
                self.outputs.push_back(Output::Notice(Notice::Resynced { shard, seq }));
                self.registry.end(shard, seq).map_err(text)?
            }
            frame => return self.on_notice(now, frame),
        };
        self.publisher.routes_changed(now, changes, self.registry.is_settled());
        Ok(())
    }

    /// As [`Node::on_frame`], for the frames that are not claims.
    fn on_notice(&mut self, now: Instant, frame: Up) -> Result<(), String> {
        let Some(data) = &mut self.link else { return Ok(()) };
        match frame {
            Up::Stats { shard, cpu, counters, gauges } => {
                let stats = data.stats.get_mut(shard.index()).ok_or("measurement of no shard")?;
                *stats = Some(Stats { cpu, counters, gauges });
            }
            Up::Taken { version } => {
                if let Some(realm_seq) = self.publisher.taken(now, version) {
                    self.outputs.push_back(Output::RealmsTaken { realm_seq });
                }
                self.announce();
            }
            Up::Refused { version, reason } => {
                self.publisher.refused(now, version);
                self.outputs.push_back(Output::Notice(Notice::SnapshotRefused { version, reason }));
            }
            Up::Listening { listeners } => {
                if listeners.len() > LISTENERS_MAX {
                    return Err(format!("{} listeners, allowed: {LISTENERS_MAX}", listeners.len()));
                }
                data.listeners = listeners;
                self.announce();
            }
            Up::Draining => {
                data.draining = true;
                self.outputs.push_back(Output::Notice(Notice::Draining { pid: data.pid }));
            }
            Up::Retain { topic, ttl_ms } => self.retain.push((topic, ttl_ms)),
            Up::Hello { .. } => return Err("a second hello".into()),
            Up::Claims { .. } | Up::ClaimsReset { .. } | Up::ClaimsPart { .. } | Up::ClaimsEnd { .. } => {
                unreachable!("on_frame handles claims")
            }
        }
        Ok(())
    }

    fn announce(&mut self) {
        if self.ready().is_ok()
            && let Some(data) = &mut self.link
            && !data.announced
        {
            data.announced = true;
            self.outputs.push_back(Output::Serving);
        }
    }

    fn refuse(&mut self, link: LinkId, reason: String) {
        self.counts.links_refused += 1;
        self.outputs.push_back(Output::Notice(Notice::Refused { link, reason: reason.clone() }));
        self.outputs.push_back(Output::Send { link, frame: Down::Refuse { reason } });
        self.outputs.push_back(Output::Close { link });
    }

    fn fold(&mut self, version: SnapshotVersion) -> Fold {
        let remote = self.remote.share();
        let head = Source {
            version,
            epoch: self.registry.epoch().unwrap_or_default(),
            claims_folded: self.registry.claims_folded(),
            nodes_folded: remote.folded,
            realms: self.catalog.realms(),
            routes: Vec::new(),
            shares: Vec::new(),
        };
        Fold { head, local: self.registry.share(), remote }
    }
}

impl DataPlane {
    fn new(now: Instant, link: LinkId, epoch: BootEpoch, pid: u32, shards: u8, version: String) -> Self {
        Self {
            link,
            epoch,
            pid,
            shards,
            version: version.chars().take(VERSION_CHARS_MAX).collect(),
            listeners: Vec::new(),
            draining: false,
            stats: vec![None; usize::from(shards).min(SHARDS_MAX)],
            linked_at: now,
            announced: false,
        }
    }
}

/// Frames of the link's queue that changes of routes leave to others.
const ROOM_KEPT: usize = 16;
/// Between two slices of the sweep of routes that nobody wants any more.
const SWEEP_PAUSE: Duration = Duration::from_millis(1);
/// How soon a link without room is looked at again.
const ROOM_RETRY: Duration = Duration::from_millis(2);
/// Most listeners a data plane may name.
const LISTENERS_MAX: usize = 256;
/// How much of a data plane's version is kept.
const VERSION_CHARS_MAX: usize = 64;

#[cfg(test)]
mod tests;
