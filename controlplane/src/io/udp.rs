//! The membership port: the one task that owns the [`Swim`] machine and its socket. Everything else speaks to it through a
//! [`Cluster`].

use crate::swim::identity::Identity;
use crate::swim::{Change, Counts, DropReason, ForgetError, Member, Output, State, Swim};
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use tokio::net::UdpSocket;
use tokio::sync::{mpsc, oneshot};
use tracing::{debug, info, warn};
use uuid::Uuid;

/// How other tasks speak to the membership task. Every call returns none once it has ended.
#[derive(Clone, Debug)]
pub struct Cluster {
    commands: mpsc::Sender<Command>,
}

/// What is known of the cluster at one moment.
#[derive(Clone, Debug)]
pub struct ClusterView {
    pub env: String,
    pub local: Identity,
    pub members: Vec<Member>,
    pub counts: Counts,
    pub health_score: u32,
    pub left: bool,
    pub now: Instant,
}

#[derive(Debug)]
enum Command {
    View(oneshot::Sender<ClusterView>),
    Leave(oneshot::Sender<()>),
    Forget(Uuid, oneshot::Sender<Result<(), ForgetError>>),
}

struct Task {
    swim: Swim,
    socket: UdpSocket,
    env: String,
    commands: mpsc::Receiver<Command>,
    seeds: mpsc::Receiver<Vec<SocketAddr>>,
    complaints: Complaints,
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
}

/// Runs `swim` on `socket`; `seeds` come from discovery.
pub fn start(swim: Swim, socket: UdpSocket, env: String, seeds: mpsc::Receiver<Vec<SocketAddr>>) -> Cluster {
    let (sender, commands) = mpsc::channel(COMMANDS_MAX);
    let complaints = Complaints::default();
    tokio::spawn(Task { swim, socket, env, commands, seeds, complaints }.run());
    Cluster { commands: sender }
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
                Some(seeds) = self.seeds.recv() => self.swim.found(Instant::now(), seeds),
                readable = self.socket.readable() => match readable {
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
                };
                let _ = reply.send(view);
            }
            Command::Leave(reply) => {
                if !self.swim.has_left() {
                    info!("leaving the cluster");
                    for _ in 0..GOODBYES {
                        self.swim.leave(Instant::now());
                        self.drain();
                        tokio::time::sleep(GOODBYE_PAUSE).await;
                    }
                }
                let _ = reply.send(());
            }
            Command::Forget(node, reply) => {
                let _ = reply.send(self.swim.forget(Instant::now(), node));
            }
        }
    }

    /// Takes what waits in the socket, up to a bound.
    fn receive(&mut self, buffer: &mut [u8]) {
        for _ in 0..DATAGRAMS_MAX {
            match self.socket.try_recv_from(buffer) {
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
                    if let Err(error) = self.socket.try_send_to(&packet, to) {
                        debug!(%to, %error, "could not send");
                    }
                }
                Output::Change(change) => log(&change),
                Output::Dropped { from, reason, detail } => {
                    if let Some(more) = self.complaints.may_tell(Instant::now(), reason) {
                        let (reason, advice) = (reason.name(), reason.advice());
                        warn!(%from, reason, detail, more, "dropped a packet: {advice}");
                    }
                }
                Output::Rejoined => warn!("the cluster took this node for dead; it joins again"),
            }
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

/// Keeps the log from being filled by whoever sends packets: each reason is told once in a while.
#[derive(Default)]
struct Complaints {
    last: [Option<Instant>; DropReason::ALL.len()],
    quiet: [u64; DropReason::ALL.len()],
}

impl Complaints {
    /// How many of the kind were passed over, when it is to be told.
    fn may_tell(&mut self, now: Instant, reason: DropReason) -> Option<u64> {
        let (last, quiet) = (&mut self.last[reason as usize], &mut self.quiet[reason as usize]);
        if last.is_some_and(|last| now.saturating_duration_since(last) < COMPLAINT_PAUSE) {
            *quiet += 1;
            return None;
        }
        *last = Some(now);
        Some(std::mem::take(quiet))
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
const COMPLAINT_PAUSE: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_told_once_in_a_while() {
        let (mut complaints, now) = (Complaints::default(), Instant::now());
        assert_eq!(complaints.may_tell(now, DropReason::Key), Some(0));
        assert_eq!(complaints.may_tell(now, DropReason::Key), None);
        assert_eq!(complaints.may_tell(now, DropReason::Env), Some(0));
        assert_eq!(complaints.may_tell(now + COMPLAINT_PAUSE, DropReason::Key), Some(1));
    }
}
