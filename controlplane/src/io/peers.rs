//! The links between control planes: the port, the connections, and the one task that owns their [`Table`].
//!
//! ```text
//! listener ─▶ accept ─┐           ┌─▶ PeerEvent ─▶ who asked for them
//! members ──▶ manager (table) ─▶ connection (link) ◀─▶ TCP
//! Peers::send ──────────────────────────▲   └─▶ membership packets ─▶ io::udp
//! ```
//! [`PeerEvent::Up`] of a node comes before its frames and [`PeerEvent::Down`] after them. While nobody takes events,
//! connections are not read, and TCP holds the peers back.

mod connection;

use super::complaints::Complaints;
use crate::peers::link::{End, LinkConfig};
use crate::peers::table::{ConnectionId, Live, Output, Table};
use crate::peers::{Channel, DownReason, Hello, Link, Refusal};
use crate::swim::View;
use bytes::Bytes;
use common::ids::NodeId;
use connection::{Cell, Connection, Order};
use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;
use tracing::{debug, info, warn};
use uuid::Uuid;

/// What happens on the links.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum PeerEvent {
    /// The node can be sent to from now on.
    Up {
        node: NodeId,
        hello: Hello,
    },
    Frame {
        node: NodeId,
        channel: Channel,
        body: Bytes,
    },
    /// What was queued to the node and not sent is lost.
    Down {
        node: NodeId,
        reason: DownReason,
    },
}

/// A membership packet that came over a link.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SwimPacket {
    pub node: NodeId,
    pub from: SocketAddr,
    pub packet: Bytes,
}

/// What is known of a link that is up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LinkStats {
    pub node: NodeId,
    /// Smoothed; none before the first answer to a ping.
    pub rtt: Option<Duration>,
    pub queued_bytes: usize,
}

/// All members as membership sees them; [`crate::io::udp`] tells every change.
pub type Members = Arc<View>;

/// How other tasks use the links. Calls never wait.
#[derive(Clone)]
pub struct Peers(Arc<Shared>);

struct Shared {
    up: Mutex<BTreeMap<NodeId, Arc<Cell>>>,
    members: watch::Receiver<Members>,
    counts: PeerCounts,
    close: mpsc::Sender<NodeId>,
}

/// Counters since the start.
#[derive(Default, Debug)]
pub struct PeerCounts {
    /// By [`Channel::index`].
    pub channels: [ChannelCounts; Channel::ALL.len()],
    /// Connections that we refused, by the order of [`Refusal::ALL`].
    pub refused: [AtomicU64; Refusal::ALL.len()],
    /// Connections that peers refused.
    pub refused_by_peers: [AtomicU64; Refusal::ALL.len()],
    pub dialed: AtomicU64,
    /// Those to which no TCP connection came about.
    pub unreachable: AtomicU64,
    pub accepted: AtomicU64,
    /// Times a link came up.
    pub ups: AtomicU64,
    pub downs: AtomicU64,
}

/// Counters of one channel.
#[derive(Default, Debug)]
pub struct ChannelCounts {
    pub frames_in: AtomicU64,
    pub bytes_in: AtomicU64,
    /// Queued; a link that breaks may lose some.
    pub frames_out: AtomicU64,
    pub bytes_out: AtomicU64,
    /// Not queued, because the queue to the peer was full.
    pub full_out: AtomicU64,
    /// Dropped on arrival, because their receiver was busy: membership packets only.
    pub full_in: AtomicU64,
}

impl Peers {
    /// Queues a frame to `node`. False when it is not linked or its queue is full: the sender still owes the frame.
    ///
    /// # Panics
    /// When `body` is longer than [`crate::peers::FRAME_BYTES_MAX`].
    pub fn send(&self, node: NodeId, channel: Channel, body: Bytes) -> bool {
        let Some(cell) = lock(&self.0.up).get(&node).cloned() else { return false };
        let counts = &self.0.counts.channels[channel.index()];
        let bytes = body.len() as u64;
        let queued = lock(&cell.link).send(channel, body);
        if queued {
            counts.frames_out.fetch_add(1, Relaxed);
            counts.bytes_out.fetch_add(bytes, Relaxed);
            cell.wake.notify_one();
        } else {
            counts.full_out.fetch_add(1, Relaxed);
        }
        queued
    }

    /// Closes the link to `node`; a new one is made as long as membership says that it lives.
    pub fn close(&self, node: NodeId) {
        // When so many wait to be closed, asking again does no harm.
        let _ = self.0.close.try_send(node);
    }

    /// The nodes that live, linked or not, with the addresses of their membership ports.
    pub fn members(&self) -> Vec<Live> {
        living(&self.0.members.borrow())
    }

    pub fn is_up(&self, node: NodeId) -> bool {
        lock(&self.0.up).contains_key(&node)
    }

    /// Smoothed round-trip time to `node`, when it is linked and has answered.
    pub fn rtt(&self, node: NodeId) -> Option<Duration> {
        let cell = lock(&self.0.up).get(&node).cloned()?;
        lock(&cell.link).rtt()
    }

    /// The links that are up, by node; at most [`common::ids::NODES_MAX`].
    pub fn links(&self) -> Vec<LinkStats> {
        let up = lock(&self.0.up);
        up.iter()
            .map(|(node, cell)| {
                let link = lock(&cell.link);
                LinkStats { node: *node, rtt: link.rtt(), queued_bytes: link.queued_bytes() }
            })
            .collect()
    }

    pub fn counts(&self) -> &PeerCounts {
        &self.0.counts
    }
}

/// Serves `listener` and links to all `members` that live. Membership packets go to `swim`, all else to the receiver.
pub fn start(
    listener: TcpListener,
    config: LinkConfig,
    members: watch::Receiver<Members>,
    swim: mpsc::Sender<SwimPacket>,
) -> (Peers, mpsc::Receiver<PeerEvent>) {
    let (events, receiver) = mpsc::channel(EVENTS_MAX);
    let (close, closes) = mpsc::channel(CLOSES_MAX);
    let (incoming_sender, incoming) = mpsc::channel(INCOMING_MAX);
    let (report, reports) = mpsc::channel(REPORTS_MAX);
    let shared = Arc::new(Shared {
        up: Mutex::default(),
        members: members.clone(),
        counts: PeerCounts::default(),
        close,
    });
    let manager = Manager {
        table: Table::new(config.hello.node, Uuid::new_v4().as_u64_pair().0),
        config,
        connections: BTreeMap::new(),
        shared: Arc::clone(&shared),
        members,
        closes,
        incoming,
        reports,
        report,
        events,
        swim,
        complaints: Complaints::default(),
    };
    tokio::spawn(accept(listener, incoming_sender));
    tokio::spawn(manager.run());
    (Peers(shared), receiver)
}

async fn accept(listener: TcpListener, incoming: mpsc::Sender<(TcpStream, SocketAddr)>) {
    loop {
        match listener.accept().await {
            Ok(accepted) => {
                if incoming.send(accepted).await.is_err() {
                    return;
                }
            }
            Err(error) => {
                // The peer has gone, or descriptors are short: both pass.
                debug!(%error, "could not accept a connection of a node");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// What connections tell the manager.
enum Report {
    Hello { connection: ConnectionId, hello: Hello },
    Closed { connection: ConnectionId, end: End },
    Unreachable { connection: ConnectionId, error: io::Error },
}

struct Manager {
    table: Table,
    config: LinkConfig,
    connections: BTreeMap<ConnectionId, Held>,
    shared: Arc<Shared>,
    members: watch::Receiver<Members>,
    closes: mpsc::Receiver<NodeId>,
    incoming: mpsc::Receiver<(TcpStream, SocketAddr)>,
    reports: mpsc::Receiver<Report>,
    report: mpsc::Sender<Report>,
    events: mpsc::Sender<PeerEvent>,
    swim: mpsc::Sender<SwimPacket>,
    /// Our refusals, then those of peers.
    complaints: Complaints<{ 2 * Refusal::ALL.len() }>,
}

/// A connection that is open or under way.
struct Held {
    cell: Arc<Cell>,
    order: watch::Sender<Order>,
    address: SocketAddr,
    /// Accepted, and its peer has not proved anything yet.
    early: bool,
}

impl Manager {
    async fn run(mut self) {
        loop {
            let now = Instant::now();
            if self.table.deadline().is_some_and(|at| at <= now) {
                self.table.timeout(now);
            }
            if self.drain().await.is_err() {
                return;
            }
            let deadline = self.table.deadline();
            tokio::select! {
                changed = self.members.changed() => match changed {
                    Ok(()) => {
                        let view = Arc::clone(&self.members.borrow_and_update());
                        // Others refuse links of a life before the one that they know.
                        self.config.hello.epoch = self.config.hello.epoch.max(view.epoch);
                        self.table.members(Instant::now(), &living(&view));
                    }
                    Err(_) => return,
                },
                Some(report) = self.reports.recv() => self.reported(report),
                Some((stream, from)) = self.incoming.recv() => self.accepted(stream, from),
                Some(node) = self.closes.recv() => self.table.close(Instant::now(), node),
                () = super::driver::sleep_until(deadline) => {}
            }
        }
    }

    /// # Errors
    /// Nobody listens any more.
    async fn drain(&mut self) -> Result<(), mpsc::error::SendError<PeerEvent>> {
        while let Some(output) = self.table.poll() {
            match output {
                Output::Dial { connection, node, address, attempt } => {
                    self.dial(connection, node, address, attempt);
                }
                Output::Up { connection, hello } => self.up(connection, hello).await?,
                Output::Down { node, reason } => {
                    lock(&self.shared.up).remove(&node);
                    self.shared.counts.downs.fetch_add(1, Relaxed);
                    info!(%node, %reason, "the link to a node is down");
                    self.events.send(PeerEvent::Down { node, reason }).await?;
                }
                Output::Refuse { connection, reason, detail } => {
                    self.order(connection, Order::Refuse(reason, detail));
                }
                Output::Close { connection } => self.order(connection, Order::Close),
            }
        }
        Ok(())
    }

    async fn up(
        &mut self,
        connection: ConnectionId,
        hello: Hello,
    ) -> Result<(), mpsc::error::SendError<PeerEvent>> {
        // It may have ended meanwhile; then its report, which comes next, takes it down again.
        if let Some(held) = self.connections.get(&connection) {
            lock(&self.shared.up).insert(hello.node, Arc::clone(&held.cell));
            info!(node = %hello.node, address = %held.address, version = hello.version, "linked to a node");
        }
        self.shared.counts.ups.fetch_add(1, Relaxed);
        self.events.send(PeerEvent::Up { node: hello.node, hello }).await?;
        self.order(connection, Order::Go);
        Ok(())
    }

    fn order(&self, connection: ConnectionId, order: Order) {
        if let Some(held) = self.connections.get(&connection) {
            // It may have ended meanwhile.
            let _ = held.order.send(order);
        }
    }

    fn dial(&mut self, connection: ConnectionId, node: NodeId, address: SocketAddr, attempt: u64) {
        self.shared.counts.dialed.fetch_add(1, Relaxed);
        let link = Link::dial(Instant::now(), &self.config, entropy(), node, attempt);
        let task = self.hold(connection, link, address, false);
        let report = self.report.clone();
        tokio::spawn(async move {
            let mut order = task.order.clone();
            let connected = tokio::select! {
                connected = timeout(CONNECT_MAX, TcpStream::connect(address)) => connected,
                _ = order.wait_for(|order| !matches!(order, Order::Wait)) => Ok(Err(io::ErrorKind::Interrupted.into())),
            };
            match connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
                Ok(stream) => task.run(stream).await,
                Err(error) => {
                    let _ = report.send(Report::Unreachable { connection, error }).await;
                }
            }
        });
    }

    fn accepted(&mut self, stream: TcpStream, from: SocketAddr) {
        self.shared.counts.accepted.fetch_add(1, Relaxed);
        let (mut all, mut of_host) = (0, 0);
        for held in self.connections.values().filter(|held| held.early) {
            all += 1;
            of_host += usize::from(same_host(held.address.ip(), from.ip()));
        }
        if all >= HANDSHAKES_MAX || of_host >= HANDSHAKES_OF_HOST_MAX {
            return self.complain(from, Refusal::Full, "handshakes", false);
        }
        let connection = self.table.accepted();
        let link = Link::accept(Instant::now(), &self.config, entropy());
        let task = self.hold(connection, link, from, true);
        tokio::spawn(task.run(stream));
    }

    fn hold(&mut self, id: ConnectionId, link: Link, address: SocketAddr, early: bool) -> Connection {
        let cell = Arc::new(Cell::new(link));
        let (order, ordered) = watch::channel(Order::Wait);
        self.connections.insert(id, Held { cell: Arc::clone(&cell), order, address, early });
        Connection {
            id,
            cell,
            address,
            order: ordered,
            report: self.report.clone(),
            events: self.events.clone(),
            swim: self.swim.clone(),
            shared: Arc::clone(&self.shared),
        }
    }

    fn reported(&mut self, report: Report) {
        let now = Instant::now();
        match report {
            Report::Hello { connection, hello } => {
                if let Some(held) = self.connections.get_mut(&connection) {
                    held.early = false;
                }
                self.table.hello(now, connection, hello);
            }
            Report::Unreachable { connection, error } => {
                let held = self.connections.remove(&connection);
                if error.kind() != io::ErrorKind::Interrupted {
                    self.shared.counts.unreachable.fetch_add(1, Relaxed);
                }
                let address = held.map(|held| held.address);
                debug!(?address, %error, "cannot connect to a node");
                self.table.closed(now, connection, DownReason::Failed);
            }
            Report::Closed { connection, end } => {
                let from = self.connections.remove(&connection).map(|held| held.address);
                let reason = match end {
                    End::Down(reason) => reason,
                    End::Refused { reason, detail } => {
                        from.inspect(|from| self.complain(*from, reason, &detail, false));
                        DownReason::Failed
                    }
                    End::RefusedByPeer(reason) => {
                        from.inspect(|from| self.complain(*from, reason, "", true));
                        DownReason::Closed
                    }
                };
                self.table.closed(now, connection, reason);
            }
        }
    }

    fn complain(&mut self, from: SocketAddr, refusal: Refusal, detail: &str, by_peer: bool) {
        let counts = &self.shared.counts;
        let (counters, first) =
            if by_peer { (&counts.refused_by_peers, Refusal::ALL.len()) } else { (&counts.refused, 0) };
        counters[refusal as usize].fetch_add(1, Relaxed);
        let Some(more) = self.complaints.may_tell(Instant::now(), first + refusal as usize) else { return };
        let (reason, advice) = (refusal.name(), refusal.advice());
        if by_peer {
            warn!(%from, reason, more, "a node refused our connection: {advice}");
        } else {
            warn!(%from, reason, detail, more, "refused a connection of a node: {advice}");
        }
    }
}

fn living(view: &View) -> Vec<Live> {
    let live = view.living().map(|member| &member.identity);
    live.map(|identity| Live { node: identity.id(), epoch: identity.epoch, address: identity.address })
        .collect()
}

/// Addresses that one host has many of count as one.
fn same_host(one: IpAddr, other: IpAddr) -> bool {
    match (one, other) {
        (IpAddr::V6(one), IpAddr::V6(other)) => one.octets()[..8] == other.octets()[..8],
        _ => one == other,
    }
}

/// Secret random bytes, for one handshake.
fn entropy() -> [u8; 32] {
    let random: [Uuid; 3] = std::array::from_fn(|_| Uuid::new_v4());
    blake3::derive_key("signalbox peer handshake entropy", &random.map(Uuid::into_bytes).concat())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Events that wait to be taken, each with a frame of at most [`crate::peers::FRAME_BYTES_MAX`].
const EVENTS_MAX: usize = 64;
const CLOSES_MAX: usize = 64;
const INCOMING_MAX: usize = 16;
const REPORTS_MAX: usize = 64;
/// Connections whose peers have not proved anything yet ...
pub const HANDSHAKES_MAX: usize = 128;
/// ... and those from one host.
pub const HANDSHAKES_OF_HOST_MAX: usize = 64;
const CONNECT_MAX: Duration = Duration::from_secs(3);
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests;
