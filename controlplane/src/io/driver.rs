//! The one task that owns the [`Plane`]: it feeds it events one at a time and does what it asks. Everything else speaks to
//! it through a [`Handle`].

use super::builder;
use super::cluster::{Links, News};
use super::link::{Connection, Packet};
use super::notices;
use super::peers::PeerEvent;
use super::storing::{self, Work};
use crate::catalog::RealmError;
use crate::cluster::{ClusterStatus, ObjectsStatus, Output, Plane, StoreDone, Token};
use crate::fold::Fold;
use crate::node::{self, LinkId, Node};
use crate::store::{Store, StoreError};
use common::config::RealmConfig;
use common::ids::SnapshotVersion;
use common::link::{Down, Up};
use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::sync::{mpsc, oneshot, watch};
use tracing::{debug, error};

/// What reaches the driver.
pub enum Event {
    Accepted(LinkId, Connection),
    Frame(LinkId, Up),
    /// A packet that is no frame, and why.
    Garbage(LinkId, String),
    Closed(LinkId),
    Built(Box<Built>),
    View(Box<dyn FnOnce(&View<'_>) + Send>),
    RealmPut(RealmConfig, oneshot::Sender<Result<Change, ChangeError>>),
    RealmRemove(String, oneshot::Sender<Result<Change, ChangeError>>),
    /// The store has done a piece of work.
    Stored(Token, Box<StoreDone>),
    Drain(oneshot::Sender<bool>),
}

/// A snapshot that was built, or why it was not.
pub struct Built {
    link: LinkId,
    version: SnapshotVersion,
    result: io::Result<(OwnedFd, u64)>,
    took: Duration,
}

/// What is known at one moment.
#[derive(Clone, Copy)]
pub struct View<'a> {
    pub plane: &'a Plane,
    pub node: &'a Node,
    pub store: &'a Store,
    pub builds: Builds,
    pub now: Instant,
}

impl View<'_> {
    /// Everything there is to know of this node's part in the cluster.
    pub fn cluster(&self) -> ClusterStatus {
        let stats = self.store.stats();
        let (digest, records) = (stats.digest.load(Relaxed), stats.records.load(Relaxed));
        self.plane.status(self.now, ObjectsStatus { digest, records })
    }
}

/// Measurements of snapshot building.
#[derive(Clone, Copy, Default, Debug)]
pub struct Builds {
    pub failed: u64,
    pub time_last: Duration,
    pub time_sum: Duration,
    pub bytes_last: u64,
}

/// Why a change of realms is not in force.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ChangeError {
    #[error(transparent)]
    Realm(#[from] RealmError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A change of realms that is stored and in force in the control plane.
#[derive(Debug)]
pub struct Change {
    /// Resolves when all shards use it; none when no data plane is linked.
    pub taken: Option<oneshot::Receiver<()>>,
}

/// Who is at the other end of the link.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct LinkState {
    /// The data plane's pid while it is linked.
    pub pid: Option<u32>,
    /// Data planes that came to serve so far.
    pub served: u64,
}

/// How other tasks speak to the driver. Every call returns none once the driver has ended.
#[derive(Clone)]
pub struct Handle {
    events: mpsc::Sender<Event>,
}

/// The driver before it runs.
pub struct Driver {
    plane: Plane,
    events: mpsc::Receiver<Event>,
    sender: mpsc::Sender<Event>,
    /// None: the node is in no cluster.
    links: Option<Links>,
    store: Store,
    work: mpsc::Sender<Work>,
    connections: HashMap<LinkId, Connection>,
    /// Who waits for a change of realms to be stored, and for it to be in use.
    changes: HashMap<Token, oneshot::Sender<Result<Change, ChangeError>>>,
    waiters: Vec<(u64, oneshot::Sender<()>)>,
    builds: Builds,
    state: watch::Sender<LinkState>,
    on_serving: Box<dyn FnMut(&Node) + Send>,
}

impl Handle {
    /// Lets `look` see the node and returns what it makes of it.
    pub async fn view<T: Send + 'static>(
        &self,
        look: impl FnOnce(&View<'_>) -> T + Send + 'static,
    ) -> Option<T> {
        let (reply, answer) = oneshot::channel();
        let look = Box::new(move |view: &View<'_>| {
            let _ = reply.send(look(view));
        });
        self.events.send(Event::View(look)).await.ok()?;
        answer.await.ok()
    }

    /// Stores a realm, puts it in force and tells the other nodes.
    pub async fn realm_put(&self, config: RealmConfig) -> Option<Result<Change, ChangeError>> {
        let (reply, answer) = oneshot::channel();
        self.events.send(Event::RealmPut(config, reply)).await.ok()?;
        answer.await.ok()
    }

    /// As [`Handle::realm_put`], for a removal.
    pub async fn realm_remove(&self, name: String) -> Option<Result<Change, ChangeError>> {
        let (reply, answer) = oneshot::channel();
        self.events.send(Event::RealmRemove(name, reply)).await.ok()?;
        answer.await.ok()
    }

    /// Tells the data plane to drain; true when one is linked.
    pub async fn drain(&self) -> Option<bool> {
        let (reply, answer) = oneshot::channel();
        self.events.send(Event::Drain(reply)).await.ok()?;
        answer.await.ok()
    }

    /// Where the tasks of the link put their events.
    pub fn events(&self) -> mpsc::Sender<Event> {
        self.events.clone()
    }
}

impl Driver {
    /// `on_serving` is called whenever a data plane has come to serve.
    pub fn new(
        plane: Plane,
        store: Store,
        links: Option<Links>,
        on_serving: Box<dyn FnMut(&Node) + Send>,
    ) -> (Self, Handle, watch::Receiver<LinkState>) {
        let (sender, events) = mpsc::channel(EVENTS_MAX);
        let (state, link) = watch::channel(LinkState::default());
        let handle = Handle { events: sender.clone() };
        let driver = Self {
            plane,
            events,
            work: storing::start(store.clone(), sender.clone()),
            store,
            sender,
            links,
            connections: HashMap::new(),
            changes: HashMap::new(),
            waiters: Vec::new(),
            builds: Builds::default(),
            state,
            on_serving,
        };
        (driver, handle, link)
    }

    /// Runs until it is dropped.
    pub async fn run(mut self) {
        loop {
            self.drain_outputs();
            self.publish_state();
            let deadline = self.plane.deadline();
            tokio::select! {
                event = self.events.recv() => match event {
                    Some(event) => self.handle(event),
                    None => return,
                },
                news = news(&mut self.links) => self.on_news(news),
                () = sleep_until(deadline) => self.plane.timeout(Instant::now()),
            }
        }
    }

    fn handle(&mut self, event: Event) {
        let (now, wall_ms) = (Instant::now(), wall_us() / 1_000);
        match event {
            Event::Accepted(link, connection) => {
                self.connections.insert(link, connection);
            }
            Event::Frame(link, frame) => {
                if matches!(frame, Up::Hello { .. }) {
                    self.bury_predecessor(now, link);
                }
                self.plane.frame(now, wall_ms, link, frame);
            }
            Event::Garbage(link, reason) => self.plane.violation(now, wall_ms, link, reason),
            Event::Closed(link) => {
                self.connections.remove(&link);
                self.plane.closed(now, wall_ms, link);
            }
            Event::Built(built) => self.built(now, *built),
            Event::View(look) => {
                let (plane, store) = (&self.plane, &self.store);
                look(&View { plane, node: plane.node(), store, builds: self.builds, now });
            }
            Event::RealmPut(config, reply) => {
                let asked = self.plane.realm_put(&config);
                self.asked(asked, reply);
            }
            Event::RealmRemove(name, reply) => {
                let asked = self.plane.realm_remove(&name);
                self.asked(asked, reply);
            }
            Event::Stored(token, done) => self.plane.stored(now, token, *done),
            Event::Drain(reply) => {
                let _ = reply.send(self.plane.drain());
            }
        }
    }

    fn on_news(&mut self, news: News) {
        let now = Instant::now();
        match news {
            // A node that has left the cluster goes on by itself.
            News::Members(members) if members.left => self.plane.members(now, &[]),
            News::Members(members) => self.plane.members(now, &members.members),
            News::Peer(PeerEvent::Up { node, .. }) => self.plane.peer_up(now, node),
            News::Peer(PeerEvent::Down { node, .. }) => self.plane.peer_down(now, node),
            News::Peer(PeerEvent::Frame { node, channel, body }) => {
                self.plane.peer_frame(now, node, channel, &body);
            }
            News::Links(links) => {
                let measured = links.into_iter().filter_map(|link| Some((link.node, link.rtt?)));
                measured.for_each(|(node, rtt)| self.plane.rtt(node, rtt));
            }
        }
    }

    /// A change of realms is on its way to the store, or cannot be.
    fn asked(
        &mut self,
        asked: Result<Token, RealmError>,
        reply: oneshot::Sender<Result<Change, ChangeError>>,
    ) {
        match asked {
            Ok(token) => _ = self.changes.insert(token, reply),
            Err(error) => _ = reply.send(Err(error.into())),
        }
    }

    /// A data plane that died may not have been noticed when its successor says hello.
    fn bury_predecessor(&mut self, now: Instant, link: LinkId) {
        let Some(old) = self.plane.node().data_plane().map(|data| data.link).filter(|old| *old != link)
        else {
            return;
        };
        if self.connections.get(&old).is_none_or(|connection| connection.packets.is_hung_up()) {
            self.connections.remove(&old);
            self.plane.closed(now, wall_us() / 1_000, old);
        }
    }

    /// A change of realms is stored and in force here with this number, or it is not stored.
    fn changed(&mut self, token: Token, result: Result<u64, StoreError>) {
        let Some(reply) = self.changes.remove(&token) else { return };
        let change = result.map(|seq| {
            let taken = self.plane.node().data_plane().map(|_| {
                let (done, taken) = oneshot::channel();
                self.waiters.retain(|(_, waiter)| !waiter.is_closed());
                self.waiters.push((seq, done));
                taken
            });
            Change { taken }
        });
        let _ = reply.send(change.map_err(ChangeError::from));
    }

    fn drain_outputs(&mut self) {
        loop {
            self.measure_room();
            let Some(output) = self.plane.poll(Instant::now(), wall_us()) else { break };
            match output {
                Output::Node(output) => self.on_node(output),
                Output::Send { to, channel, bytes } => {
                    if let Some(links) = &self.links {
                        // What finds no room is announced, asked for or compared again.
                        links.peers.send(to, channel, bytes);
                    }
                }
                Output::Close { peer } => {
                    if let Some(links) = &self.links {
                        links.peers.close(peer);
                    }
                }
                Output::Store { token, task } => {
                    if let Err(error) = self.work.try_send((token, task)) {
                        // The machine keeps below the bound of this queue.
                        error!(%error, "work for the store is lost");
                    }
                }
                Output::Realm { token, result } => self.changed(token, result),
                Output::Notice(notice) => notices::cluster(&notice),
            }
        }
    }

    fn on_node(&mut self, output: node::Output) {
        match output {
            node::Output::Send { link, frame } => self.send(link, &frame, None),
            node::Output::Close { link } => {
                self.connections.remove(&link);
            }
            node::Output::Build { link, version, fold } => self.build(link, version, fold),
            node::Output::RealmsTaken { realm_seq } => {
                let (done, wait) =
                    std::mem::take(&mut self.waiters).into_iter().partition(|(seq, _)| *seq <= realm_seq);
                self.waiters = wait;
                for (_, waiter) in done {
                    let _ = waiter.send(());
                }
            }
            node::Output::Serving => {
                self.state.send_modify(|state| state.served += 1);
                (self.on_serving)(self.plane.node());
            }
            node::Output::Notice(notice) => notices::node(&notice),
        }
    }

    /// Tells the node how many frames the link's queue takes.
    fn measure_room(&mut self) {
        let link = self.plane.node().data_plane().map(|data| data.link);
        let room = link.and_then(|link| self.connections.get(&link)).map_or(0, |link| link.queue.capacity());
        self.plane.link_room(room);
    }

    fn publish_state(&mut self) {
        let pid = self.plane.node().data_plane().map(|data| data.pid);
        self.state.send_if_modified(|state| std::mem::replace(&mut state.pid, pid) != pid);
    }

    /// A link whose queue is full, or that is gone, is closed.
    fn send(&mut self, link: LinkId, frame: &Down, fd: Option<OwnedFd>) {
        let packet = Packet { bytes: frame.encode(), fd };
        let sent =
            self.connections.get(&link).is_some_and(|connection| connection.queue.try_send(packet).is_ok());
        if !sent {
            self.connections.remove(&link);
            self.plane.closed(Instant::now(), wall_us() / 1_000, link);
        }
    }

    /// Builds on a thread of its own: a million routes take a second.
    fn build(&mut self, link: LinkId, version: SnapshotVersion, fold: Box<Fold>) {
        let events = self.sender.clone();
        let started = Instant::now();
        let seed = uuid::Uuid::new_v4().as_u64_pair().0;
        let spawned = std::thread::Builder::new().name("snapshot".to_owned()).spawn(move || {
            builder::lower_priority();
            let result = builder::build(&fold, seed);
            // The chunks that have changed since are freed here, not by the driver.
            drop(fold);
            let built = Built { link, version, result, took: started.elapsed() };
            let _ = events.blocking_send(Event::Built(Box::new(built)));
        });
        if let Err(error) = spawned {
            self.built(Instant::now(), Built { link, version, result: Err(error), took: Duration::ZERO });
        }
    }

    fn built(&mut self, now: Instant, built: Built) {
        let Built { link, version, result, took } = built;
        self.builds.time_last = took;
        self.builds.time_sum += took;
        match result {
            Ok((fd, bytes)) => {
                self.builds.bytes_last = bytes;
                debug!(version = version.0, bytes, ?took, "snapshot built");
                self.send(link, &Down::Snapshot { version, bytes }, Some(fd));
                self.plane.built(now, version, Some(took));
            }
            Err(error) => {
                self.builds.failed += 1;
                error!(version = version.0, %error, "could not build a snapshot");
                self.plane.built(now, version, None);
            }
        }
    }
}

/// News of other nodes; for ever none without a cluster.
async fn news(links: &mut Option<Links>) -> News {
    match links {
        Some(links) => links.next().await,
        None => std::future::pending().await,
    }
}

pub(super) async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}

/// Microseconds since 1970.
pub fn wall_us() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros() as u64)
}

/// Events that wait for the driver; link readers pause beyond it.
const EVENTS_MAX: usize = 256;
