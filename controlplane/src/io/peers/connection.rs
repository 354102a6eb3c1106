//! One connection: moves bytes between its socket and its [`Link`], and events to who asked for them.

use super::{PeerEvent, Report, Shared, SwimPacket, lock};
use crate::io::driver::sleep_until;
use crate::peers::link::{End, Event};
use crate::peers::table::ConnectionId;
use crate::peers::{Channel, DownReason, Link, Refusal};
use bytes::Bytes;
use common::ids::NodeId;
use std::net::SocketAddr;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::timeout;
use tracing::debug;

/// A link and what wakes the task that writes it.
pub struct Cell {
    pub link: Mutex<Link>,
    pub wake: Notify,
}

/// What the manager wants of a connection. A sender that is gone means close.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Order {
    Wait,
    Go,
    Refuse(Refusal, String),
    Close,
}

pub struct Connection {
    pub id: ConnectionId,
    pub cell: Arc<Cell>,
    pub address: SocketAddr,
    pub order: watch::Receiver<Order>,
    pub report: mpsc::Sender<Report>,
    pub events: mpsc::Sender<PeerEvent>,
    pub swim: mpsc::Sender<SwimPacket>,
    pub shared: Arc<Shared>,
}

impl Cell {
    pub fn new(link: Link) -> Self {
        Self { link: Mutex::new(link), wake: Notify::new() }
    }
}

impl Connection {
    /// Ends with a report.
    pub async fn run(self, mut stream: TcpStream) {
        // Small frames must not wait for one another; without it they only come later.
        let _ = stream.set_nodelay(true);
        let end = self.converse(&mut stream).await;
        debug!(address = %self.address, ?end, "a connection of a node ended");
        self.say_goodbye(&mut stream).await;
        drop(stream);
        let _ = self.report.send(Report::Closed { connection: self.id, end }).await;
    }

    async fn converse(&self, stream: &mut TcpStream) -> End {
        let (mut reader, mut writer) = stream.split();
        tokio::select! {
            end = self.read(&mut reader) => end,
            end = self.write(&mut writer) => end,
            end = self.ordered() => end,
        }
    }

    /// Waits until the manager wants the end.
    async fn ordered(&self) -> End {
        let mut order = self.order.clone();
        match order.wait_for(|order| matches!(order, Order::Refuse(..) | Order::Close)).await.as_deref() {
            Ok(Order::Refuse(reason, detail)) => {
                lock(&self.cell.link).refuse(*reason);
                End::Refused { reason: *reason, detail: detail.clone() }
            }
            _ => End::Down(DownReason::Asked),
        }
    }

    async fn read(&self, reader: &mut ReadHalf<'_>) -> End {
        let mut buffer = vec![];
        let mut peer = None;
        loop {
            // Short until the peer has proved that it holds a key.
            let bytes_max = lock(&self.cell.link).read_bytes_max();
            buffer.resize(bytes_max.max(buffer.len()), 0);
            let bytes = match reader.read(&mut buffer[..bytes_max]).await {
                Ok(0) => return End::Down(DownReason::Closed),
                Ok(bytes) => bytes,
                Err(error) => {
                    debug!(%error, "reading from a node");
                    return End::Down(DownReason::Failed);
                }
            };
            let received = lock(&self.cell.link).receive(Instant::now(), &buffer[..bytes]);
            if let Err(end) = received {
                return end;
            }
            loop {
                let event = lock(&self.cell.link).poll(Instant::now());
                // Whatever it was, there may be an answer to write.
                self.cell.wake.notify_one();
                match event {
                    Ok(None) => break,
                    Ok(Some(event)) => {
                        if let Err(end) = self.tell(event, &mut peer).await {
                            return end;
                        }
                    }
                    Err(end) => return end,
                }
            }
        }
    }

    async fn tell(&self, event: Event, peer: &mut Option<NodeId>) -> Result<(), End> {
        let gone = || End::Down(DownReason::Asked);
        match event {
            Event::Hello(hello) => {
                *peer = Some(hello.node);
                let report = Report::Hello { connection: self.id, hello };
                self.report.send(report).await.map_err(|_| gone())?;
                let mut order = self.order.clone();
                let go = self.deaf(order.wait_for(|order| *order == Order::Go)).await.is_ok();
                if go { Ok(()) } else { Err(gone()) }
            }
            Event::Frame(channel, body) => {
                let node = peer.expect("the hello comes before any frame");
                self.frame(node, channel, body).await.map_err(|_| gone())
            }
        }
    }

    async fn frame(
        &self,
        node: NodeId,
        channel: Channel,
        body: Bytes,
    ) -> Result<(), mpsc::error::SendError<PeerEvent>> {
        let counts = &self.shared.counts.channels[channel.index()];
        counts.frames_in.fetch_add(1, Relaxed);
        counts.bytes_in.fetch_add(body.len() as u64, Relaxed);
        if channel != Channel::Swim {
            return match self.events.try_send(PeerEvent::Frame { node, channel, body }) {
                Ok(()) => Ok(()),
                Err(mpsc::error::TrySendError::Full(event)) => self.deaf(self.events.send(event)).await,
                Err(mpsc::error::TrySendError::Closed(event)) => Err(mpsc::error::SendError(event)),
            };
        }
        // As in a socket whose buffer is full.
        if self.swim.try_send(SwimPacket { node, from: self.address, packet: body }).is_err() {
            counts.full_in.fetch_add(1, Relaxed);
        }
        Ok(())
    }

    /// Waits, and does not read meanwhile.
    async fn deaf<T>(&self, wait: impl Future<Output = T>) -> T {
        lock(&self.cell.link).set_deaf(Instant::now(), true);
        let result = wait.await;
        lock(&self.cell.link).set_deaf(Instant::now(), false);
        result
    }

    async fn write(&self, writer: &mut WriteHalf<'_>) -> End {
        let mut out = vec![];
        let mut written = 0;
        loop {
            if written == out.len() {
                out.clear();
                written = 0;
                lock(&self.cell.link).transmit(&mut out);
            }
            let deadline = lock(&self.cell.link).deadline();
            tokio::select! {
                wrote = writer.write(&out[written..]), if written < out.len() => match wrote {
                    Ok(bytes) => written += bytes,
                    Err(error) => {
                        debug!(%error, "writing to a node");
                        return End::Down(DownReason::Failed);
                    }
                },
                () = self.cell.wake.notified(), if written == out.len() => {}
                () = sleep_until(deadline) => {
                    let timeout = lock(&self.cell.link).timeout(Instant::now());
                    if let Err(end) = timeout {
                        return end;
                    }
                }
            }
        }
    }

    /// Writes what tells the peer why this is the end, and gives it time to read that: a socket that is closed with
    /// unread bytes in it throws away what was written.
    async fn say_goodbye(&self, stream: &mut TcpStream) {
        let mut out = vec![];
        lock(&self.cell.link).farewell(&mut out);
        if out.is_empty() {
            return;
        }
        let _ = timeout(GOODBYE_MAX, async {
            stream.write_all(&out).await?;
            stream.shutdown().await?;
            let mut rest = [0; 1 << 10];
            for _ in 0..GOODBYE_READS_MAX {
                if stream.read(&mut rest).await? == 0 {
                    break;
                }
            }
            Ok::<_, std::io::Error>(())
        })
        .await;
    }
}

/// How long a peer has to read why it is refused.
const GOODBYE_MAX: Duration = Duration::from_millis(500);
/// How much of what it sends meanwhile is read and thrown away, in KiB.
const GOODBYE_READS_MAX: usize = 64;
