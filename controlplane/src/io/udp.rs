//! The membership port: the one task that owns the [`Swim`] machine and its socket. Everything else speaks to it through a
//! [`Cluster`].

use super::complaints::Complaints;
use super::peers::{Members, Peers, SwimPacket};
use crate::discovery::DiscoveryCounts;
use crate::peers::Channel;
use crate::swim::changes::{News, View, changes};
use crate::swim::identity::{Identity, is_reachable};
use crate::swim::{Change, Counts, DropReason, ForgetError, Member, Output, State, Swim};
use bytes::Bytes;
use common::ids::NodeId;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::UdpSocket;
use tokio::sync::{mpsc, oneshot, watch};
use tracing::{debug, info, warn};
use uuid::Uuid;

/// How other tasks speak to the membership task. Every call returns none once it has ended.
#[derive(Clone, Debug)]
pub struct Cluster {
    commands: mpsc::Sender<Command>,
    members: watch::Receiver<Members>,
}

/// The members as they change. What came and went between two looks is not told; what holds in the end is.
#[derive(Debug)]
pub struct Changes {
    members: watch::Receiver<Members>,
    seen: Members,
    fresh: bool,
}

/// Why a node cannot be asked to let us join.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    #[error("found no address of {target:?}")]
    Resolve {
        target: String,
        #[source]
        source: std::io::Error,
    },
    #[error("{target:?} has no address that a node can be reached at; write HOST:PORT")]
    Useless { target: String },
    #[error("this node has left the cluster; start it again")]
    Left,
    #[error("too many nodes have been named")]
    Many,
    #[error("the control plane is stopping")]
    Stopping,
}

/// What is known of the cluster at one moment.
#[derive(Clone)]
pub struct ClusterView {
    pub env: String,
    pub local: Identity,
    pub members: Vec<Member>,
    pub counts: Counts,
    pub health_score: u32,
    pub left: bool,
    pub now: Instant,
    pub peers: Peers,
    pub discovered: Arc<DiscoveryCounts>,
}

enum Command {
    View(oneshot::Sender<ClusterView>),
    Leave(oneshot::Sender<()>),
    Forget(Uuid, oneshot::Sender<Result<(), ForgetError>>),
    Join(Vec<SocketAddr>, oneshot::Sender<Result<(), JoinError>>),
}

/// What the membership task is connected to.
pub struct Ports {
    pub socket: UdpSocket,
    /// From discovery.
    pub seeds: mpsc::Receiver<Vec<SocketAddr>>,
    /// Where packets go that UDP may not carry ...
    pub peers: Peers,
    /// ... and where they come from.
    pub linked: mpsc::Receiver<SwimPacket>,
    /// Is told the members.
    pub members: watch::Sender<Members>,
    pub discovered: Arc<DiscoveryCounts>,
}

struct Task {
    swim: Swim,
    ports: Ports,
    env: String,
    commands: mpsc::Receiver<Command>,
    /// The members have changed since they were told.
    news: bool,
    complaints: Complaints<{ DropReason::ALL.len() }>,
}

impl Cluster {
    pub async fn view(&self) -> Option<ClusterView> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(Command::View(reply)).await.ok()?;
        answer.await.ok()
    }

    /// Says good-bye; returns when it has been said [`GOODBYES`] times.
    pub async fn leave(&self) -> Option<()> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(Command::Leave(reply)).await.ok()?;
        answer.await.ok()
    }

    pub async fn forget(&self, node: Uuid) -> Option<Result<(), ForgetError>> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(Command::Forget(node, reply)).await.ok()?;
        answer.await.ok()
    }

    /// Asks the nodes at `target`, a host and a port, to let us join: now, and again as long as they are no members.
    /// Returns their addresses.
    pub async fn join(&self, target: &str) -> Result<Vec<SocketAddr>, JoinError> {
        let failed = |source| JoinError::Resolve { target: target.to_owned(), source };
        let lookup = tokio::time::timeout(LOOKUP_MAX, tokio::net::lookup_host(target)).await;
        let found = lookup.map_err(|error| failed(error.into()))?.map_err(failed)?;
        let found: Vec<_> = found.filter(|address| is_reachable(*address)).take(JOIN_ADDRESSES_MAX).collect();
        if found.is_empty() {
            return Err(JoinError::Useless { target: target.to_owned() });
        }
        let (reply, answer) = oneshot::channel();
        let command = Command::Join(found.clone(), reply);
        self.commands.send(command).await.map_err(|_| JoinError::Stopping)?;
        answer.await.map_err(|_| JoinError::Stopping)??;
        Ok(found)
    }

    /// All members, now and whenever they change.
    pub fn members(&self) -> watch::Receiver<Members> {
        self.members.clone()
    }

    /// The members from now on; those known already come first.
    pub fn changes(&self) -> Changes {
        Changes { members: self.members.clone(), seen: Members::default(), fresh: true }
    }
}

impl Changes {
    /// Waits for news, at most one for each member. None: membership has ended.
    pub async fn next(&mut self) -> Option<Vec<News>> {
        loop {
            if !std::mem::take(&mut self.fresh) {
                self.members.changed().await.ok()?;
            }
            let view = Arc::clone(&self.members.borrow_and_update());
            let news = changes(&self.seen.members, &view.members);
            self.seen = view;
            if !news.is_empty() {
                return Some(news);
            }
        }
    }
}

/// Runs `swim` on `ports`.
pub fn start(swim: Swim, env: String, ports: Ports) -> Cluster {
    let (sender, commands) = mpsc::channel(COMMANDS_MAX);
    let members = ports.members.subscribe();
    let complaints = Complaints::default();
    tokio::spawn(Task { swim, ports, env, commands, news: false, complaints }.run());
    Cluster { commands: sender, members }
}

impl Task {
    async fn run(mut self) {
        let mut buffer = vec![0; RECEIVE_BYTES_MAX];
        loop {
            // A flood of packets must not keep timers from running.
            let now = Instant::now();
            if self.swim.deadline().is_some_and(|at| at <= now) {
                self.swim.timeout(now);
            }
            self.drain();
            let deadline = self.swim.deadline();
            tokio::select! {
                command = self.commands.recv() => match command {
                    Some(command) => self.command(command).await,
                    None => return,
                },
                Some(seeds) = self.ports.seeds.recv() => self.swim.found(Instant::now(), seeds),
                Some(SwimPacket { node, from, packet }) = self.ports.linked.recv() => {
                    self.swim.linked(Instant::now(), Uuid::from_bytes(node.0), from, &packet);
                }
                readable = self.ports.socket.readable() => match readable {
                    Ok(()) => self.receive(&mut buffer),
                    Err(error) => {
                        warn!(%error, "the membership port cannot be read");
                        tokio::time::sleep(ERROR_PAUSE).await;
                    }
                },
                () = super::driver::sleep_until(deadline) => {}
            }
        }
    }

    async fn command(&mut self, command: Command) {
        match command {
            Command::View(reply) => {
                let view = ClusterView {
                    env: self.env.clone(),
                    local: self.swim.identity().clone(),
                    members: self.swim.members().cloned().collect(),
                    counts: self.swim.counts(),
                    health_score: self.swim.health_score(),
                    left: self.swim.has_left(),
                    now: Instant::now(),
                    peers: self.ports.peers.clone(),
                    discovered: Arc::clone(&self.ports.discovered),
                };
                let _ = reply.send(view);
            }
            Command::Leave(reply) => {
                if !self.swim.has_left() {
                    info!("leaving the cluster");
                    for _ in 0..GOODBYES {
                        self.swim.leave(Instant::now());
                        self.news = true;
                        self.drain();
                        tokio::time::sleep(GOODBYE_PAUSE).await;
                    }
                }
                let _ = reply.send(());
            }
            Command::Forget(node, reply) => {
                let result = self.swim.forget(Instant::now(), node);
                self.news |= result.is_ok();
                let _ = reply.send(result);
            }
            Command::Join(seeds, reply) => {
                let result = if self.swim.has_left() {
                    Err(JoinError::Left)
                } else if self.swim.ask(Instant::now(), &seeds) {
                    Ok(())
                } else {
                    Err(JoinError::Many)
                };
                let _ = reply.send(result);
            }
        }
    }

    /// Takes what waits in the socket, up to a bound.
    fn receive(&mut self, buffer: &mut [u8]) {
        for _ in 0..DATAGRAMS_MAX {
            match self.ports.socket.try_recv_from(buffer) {
                Ok((bytes, from)) => self.swim.datagram(Instant::now(), from, &buffer[..bytes]),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return,
                Err(error) => {
                    // An earlier packet could not be delivered; probing finds out about that.
                    debug!(%error, "receiving");
                    return;
                }
            }
        }
    }

    fn drain(&mut self) {
        while let Some(output) = self.swim.poll() {
            match output {
                Output::Send { to, packet } => {
                    // What cannot be sent now is lost, as on the way.
                    if let Err(error) = self.ports.socket.try_send_to(&packet, to) {
                        debug!(%to, %error, "could not send");
                    }
                }
                Output::Fallback { node, packet } => {
                    // Without a link, or with a full one, it is lost as on the way.
                    self.ports.peers.send(NodeId(node.into_bytes()), Channel::Swim, Bytes::from(packet));
                }
                Output::Change(change) => {
                    self.news = true;
                    log(&change);
                }
                Output::Dropped { from, reason, detail } => {
                    if let Some(more) = self.complaints.may_tell(Instant::now(), reason as usize) {
                        let (reason, advice) = (reason.name(), reason.advice());
                        warn!(%from, reason, detail, more, "dropped a packet: {advice}");
                    }
                }
                Output::Rejoined => {
                    self.news = true;
                    warn!("the cluster took this node for dead; it joins again");
                }
            }
        }
        self.publish();
    }

    fn publish(&mut self) {
        // What was forgotten for its age makes no output.
        let count = self.ports.members.borrow().members.len();
        if std::mem::take(&mut self.news) || count != self.swim.members().count() {
            let members = self.swim.members().cloned().collect();
            let (left, epoch) = (self.swim.has_left(), self.swim.identity().epoch);
            self.ports.members.send_replace(Arc::new(View { members, left, epoch }));
        }
    }
}

fn log(change: &Change) {
    let Identity { node, address, epoch, about, .. } = &change.member.identity;
    match (change.member.state, change.before) {
        (State::Alive, None) => info!(%node, %address, version = about.version, "a node has joined"),
        (State::Alive, Some(State::Suspect)) if !change.renewed => {
            info!(%node, %address, "a node that was suspected is alive");
        }
        (State::Alive, _) => info!(%node, %address, epoch, version = about.version, "a node is back"),
        (State::Suspect, _) => info!(%node, %address, "a node does not answer"),
        (State::Down, _) => warn!(%node, %address, "a node is down"),
        (State::Left, _) => info!(%node, %address, "a node has left"),
    }
}

const COMMANDS_MAX: usize = 64;
/// Longer datagrams are cut and then open with no key.
const RECEIVE_BYTES_MAX: usize = 2_048;
/// Datagrams taken before timers are looked at again.
const DATAGRAMS_MAX: usize = 64;
const ERROR_PAUSE: Duration = Duration::from_millis(100);
const GOODBYES: u32 = 3;
const GOODBYE_PAUSE: Duration = Duration::from_millis(100);
const LOOKUP_MAX: Duration = Duration::from_secs(5);
/// Addresses of one name that are asked.
const JOIN_ADDRESSES_MAX: usize = 16;
