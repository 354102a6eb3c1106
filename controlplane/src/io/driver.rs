//! The one task that owns the [`Node`]: it feeds it events one at a time and does what it asks. Everything else speaks to
//! it through a [`Handle`].

use super::builder;
use super::link::{Connection, Packet};
use crate::fold::Fold;
use crate::node::{LinkId, Node, Notice, Output};
use common::config::RealmConfig;
use common::ids::SnapshotVersion;
use common::link::{Down, Up};
use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::sync::{mpsc, oneshot, watch};
use tracing::{debug, error, info, warn};

/// What reaches the driver.
pub enum Event {
    Accepted(LinkId, Connection),
    Frame(LinkId, Up),
    /// A packet that is no frame, and why.
    Garbage(LinkId, String),
    Closed(LinkId),
    Built(Box<Built>),
    View(Box<dyn FnOnce(&View<'_>) + Send>),
    RealmPut(RealmConfig, oneshot::Sender<Change>),
    RealmRemove(String, oneshot::Sender<Change>),
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
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    pub node: &'a Node,
    pub builds: Builds,
    pub now: Instant,
}

/// Measurements of snapshot building.
#[derive(Clone, Copy, Default, Debug)]
pub struct Builds {
    pub failed: u64,
    pub time_last: Duration,
    pub time_sum: Duration,
    pub bytes_last: u64,
}

/// A change of realms that is in force in the control plane.
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
    node: Node,
    events: mpsc::Receiver<Event>,
    sender: mpsc::Sender<Event>,
    connections: HashMap<LinkId, Connection>,
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

    /// Puts a realm that the catalog accepts and the store holds.
    pub async fn realm_put(&self, config: RealmConfig) -> Option<Change> {
        let (reply, answer) = oneshot::channel();
        self.events.send(Event::RealmPut(config, reply)).await.ok()?;
        answer.await.ok()
    }

    pub async fn realm_remove(&self, name: String) -> Option<Change> {
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
        node: Node,
        on_serving: Box<dyn FnMut(&Node) + Send>,
    ) -> (Self, Handle, watch::Receiver<LinkState>) {
        let (sender, events) = mpsc::channel(EVENTS_MAX);
        let (state, link) = watch::channel(LinkState::default());
        let handle = Handle { events: sender.clone() };
        let driver = Self {
            node,
            events,
            sender,
            connections: HashMap::new(),
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
            let deadline = self.node.deadline();
            tokio::select! {
                event = self.events.recv() => match event {
                    Some(event) => self.handle(event),
                    None => return,
                },
                () = sleep_until(deadline) => {}
            }
        }
    }

    fn handle(&mut self, event: Event) {
        let now = Instant::now();
        match event {
            Event::Accepted(link, connection) => {
                self.connections.insert(link, connection);
            }
            Event::Frame(link, frame) => {
                if matches!(frame, Up::Hello { .. }) {
                    self.bury_predecessor(now, link);
                }
                self.node.frame(now, link, frame);
            }
            Event::Garbage(link, reason) => self.node.violation(now, link, reason),
            Event::Closed(link) => {
                self.connections.remove(&link);
                self.node.closed(now, link);
            }
            Event::Built(built) => self.built(now, *built),
            Event::View(look) => look(&View { node: &self.node, builds: self.builds, now }),
            Event::RealmPut(config, reply) => {
                let seq = self.node.realm_put(now, config);
                self.answer(Some(seq), reply);
            }
            Event::RealmRemove(name, reply) => {
                let seq = self.node.realm_remove(now, &name);
                self.answer(seq, reply);
            }
            Event::Drain(reply) => {
                let _ = reply.send(self.node.drain());
            }
        }
    }

    /// A data plane that died may not have been noticed when its successor says hello.
    fn bury_predecessor(&mut self, now: Instant, link: LinkId) {
        let Some(old) = self.node.data_plane().map(|data| data.link).filter(|old| *old != link) else {
            return;
        };
        if self.connections.get(&old).is_none_or(|connection| connection.packets.is_hung_up()) {
            self.connections.remove(&old);
            self.node.closed(now, old);
        }
    }

    fn answer(&mut self, seq: Option<u64>, reply: oneshot::Sender<Change>) {
        let taken = seq.filter(|_| self.node.data_plane().is_some()).map(|seq| {
            let (done, taken) = oneshot::channel();
            self.waiters.retain(|(_, waiter)| !waiter.is_closed());
            self.waiters.push((seq, done));
            taken
        });
        let _ = reply.send(Change { taken });
    }

    fn drain_outputs(&mut self) {
        loop {
            self.measure_room();
            let Some(output) = self.node.poll(Instant::now(), wall_us()) else { break };
            match output {
                Output::Send { link, frame } => self.send(link, &frame, None),
                Output::Close { link } => {
                    self.connections.remove(&link);
                }
                Output::Build { link, version, fold } => self.build(link, version, fold),
                Output::RealmsTaken { realm_seq } => {
                    let (done, wait) =
                        std::mem::take(&mut self.waiters).into_iter().partition(|(seq, _)| *seq <= realm_seq);
                    self.waiters = wait;
                    for (_, waiter) in done {
                        let _ = waiter.send(());
                    }
                }
                Output::Serving => {
                    self.state.send_modify(|state| state.served += 1);
                    (self.on_serving)(&self.node);
                }
                Output::Notice(notice) => log(&notice),
            }
        }
    }

    /// Tells the node how many frames the link's queue takes.
    fn measure_room(&mut self) {
        let link = self.node.data_plane().map(|data| data.link);
        let room = link.and_then(|link| self.connections.get(&link)).map_or(0, |link| link.queue.capacity());
        self.node.link_room(room);
    }

    fn publish_state(&mut self) {
        let pid = self.node.data_plane().map(|data| data.pid);
        self.state.send_if_modified(|state| std::mem::replace(&mut state.pid, pid) != pid);
    }

    /// A link whose queue is full, or that is gone, is closed.
    fn send(&mut self, link: LinkId, frame: &Down, fd: Option<OwnedFd>) {
        let packet = Packet { bytes: frame.encode(), fd };
        let sent =
            self.connections.get(&link).is_some_and(|connection| connection.queue.try_send(packet).is_ok());
        if !sent {
            self.connections.remove(&link);
            self.node.closed(Instant::now(), link);
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
                self.node.built(now, version, Some(took));
            }
            Err(error) => {
                self.builds.failed += 1;
                error!(version = version.0, %error, "could not build a snapshot");
                self.node.built(now, version, None);
            }
        }
    }
}

fn log(notice: &Notice) {
    match notice {
        Notice::Linked { pid, epoch, known } => {
            info!(pid, epoch = format!("{:016x}", epoch.0), claims_known = known, "data plane linked");
        }
        Notice::Lost { pid, expected: true } => info!(pid, "the data plane has left"),
        Notice::Lost { pid, expected: false } => warn!(pid, "the link to the data plane is gone"),
        Notice::Refused { link, reason } => warn!(link = link.0, reason, "refused a link"),
        Notice::Violation { link, reason } => error!(link = link.0, reason, "closed a link"),
        Notice::SnapshotRefused { version, reason } => {
            error!(version = version.0, reason, "the data plane refused a snapshot");
        }
        Notice::Resynced { shard, seq } => debug!(shard = shard.0, seq, "claims are whole"),
        Notice::Draining { pid } => info!(pid, "the data plane is draining"),
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
