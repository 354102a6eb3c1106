//! Sockets, epoll and the clock: moves bytes between the sockets and one thread's sessions. Decides nothing.

use crate::client::{Client, ClientError, ClientPlan, Step};
use crate::outbox::Outbox;
use crate::workload::{Turn, Workload};
use rustix::event::epoll;
use rustix::fd::{AsFd, OwnedFd};
use rustix::io::Errno;
use rustix::net::{self, AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, sockopt};
use rustix::time::Timespec;
use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Instant;

/// The run's clock: nanoseconds since it was made.
#[derive(Clone, Copy, Debug)]
pub struct Clock(Instant);

impl Clock {
    pub fn start() -> Self {
        Self(Instant::now())
    }

    #[inline]
    pub fn now_ns(&self) -> u64 {
        self.0.elapsed().as_nanos() as u64
    }
}

/// Bytes taken from a socket at a time. Small enough that a router and this program work at the same time instead of
/// in turns, large enough that system calls do not count.
const RECEIVE_BYTES: usize = 64 * 1_024;
const EVENTS_MAX: usize = 256;
/// Connections that are being opened at a time, so that a listener's backlog and its bound of pending logins hold.
const OPENINGS_MAX: usize = 64;
/// Connections of one source address; the kernel has 28,232 ports for them by default.
pub const SOURCE_CONNECTIONS_MAX: usize = 25_000;

/// Why a connection, and with it the run, failed.
#[derive(Debug, thiserror::Error)]
pub enum IoError {
    #[error("cannot connect to {address}: {source}")]
    Connect { address: SocketAddr, source: io::Error },
    #[error("cannot wait for sockets: {0}")]
    Epoll(#[source] io::Error),
    #[error("connection {connection}: the router closed it")]
    Closed { connection: usize },
    #[error("connection {connection}: {source}")]
    Socket { connection: usize, source: io::Error },
    #[error("connection {connection}: {source}")]
    Session { connection: usize, source: ClientError },
}

/// Where and how to connect.
#[derive(Clone, Debug)]
pub struct Target {
    pub address: SocketAddr,
    /// Source addresses to spread connections over, in steps of [`SOURCE_CONNECTIONS_MAX`]; empty: the kernel's choice.
    pub sources: Vec<Ipv4Addr>,
    /// Index of this thread's first connection in the whole run.
    pub connections_before: usize,
}

/// One thread's connections.
pub struct Driver {
    clock: Clock,
    epoll: OwnedFd,
    target: Target,
    plans: Vec<ClientPlan>,
    connections: Vec<Option<Connection>>,
    to_open: VecDeque<u32>,
    opening: usize,
    ready: usize,
    /// Every session is being closed for good.
    leaving: bool,
    outbox: Outbox,
    buffer: Vec<u8>,
    seed: u64,
}

struct Connection {
    socket: OwnedFd,
    client: Client,
    ready: bool,
    /// Closed politely, to be opened again unless the driver is leaving.
    leaving: bool,
}

impl Driver {
    /// A driver of `plans`; opens them all as it is turned.
    ///
    /// # Errors
    /// When there is no epoll instance to be had.
    pub fn new(clock: Clock, target: Target, plans: Vec<ClientPlan>) -> Result<Self, IoError> {
        let epoll =
            epoll::create(epoll::CreateFlags::CLOEXEC).map_err(|error| IoError::Epoll(error.into()))?;
        Ok(Self {
            clock,
            epoll,
            outbox: Outbox::new(plans.iter().map(|plan| (plan.framing, plan.serializer))),
            connections: plans.iter().map(|_| None).collect(),
            to_open: (0..plans.len() as u32).collect(),
            target,
            plans,
            opening: 0,
            ready: 0,
            leaving: false,
            buffer: vec![0; RECEIVE_BYTES],
            seed: 0x5167_6e61_6c62_6f78,
        })
    }

    pub fn outbox(&mut self) -> &mut Outbox {
        &mut self.outbox
    }

    pub fn ready(&self) -> usize {
        self.ready
    }

    pub fn all_ready(&self) -> bool {
        self.ready == self.plans.len()
    }

    /// Says GOODBYE on every session.
    pub fn leave_all(&mut self) {
        self.leaving = true;
        self.to_open.clear();
        for index in 0..self.connections.len() {
            self.leave(index);
        }
    }

    pub fn all_gone(&self) -> bool {
        self.connections.iter().all(Option::is_none)
    }

    /// Sends what is queued, opens what is to be opened, waits at most until `deadline_ns` and receives. What the
    /// workload answers to one connection's input leaves before the next connection is read.
    ///
    /// # Errors
    /// When a connection fails that nobody asked to close.
    pub fn turn(
        &mut self,
        deadline_ns: u64,
        sending: bool,
        workload: &mut impl Workload,
    ) -> Result<(), IoError> {
        self.renew();
        self.open_some(workload)?;
        self.flush(workload)?;
        let wait_ns = deadline_ns.saturating_sub(self.clock.now_ns());
        let time_out = Timespec { tv_sec: (wait_ns / NS_PER_S) as i64, tv_nsec: (wait_ns % NS_PER_S) as _ };
        let mut events = [EMPTY_EVENT; EVENTS_MAX];
        let count = match epoll::wait(&self.epoll, &mut events, Some(&time_out)) {
            Ok(count) => count,
            Err(Errno::INTR) => 0,
            Err(error) => return Err(IoError::Epoll(error.into())),
        };
        for event in &events[..count] {
            let index = event.data.u64() as usize;
            let flags = event.flags;
            if flags.contains(epoll::EventFlags::OUT) {
                self.writable(index, workload)?;
            }
            if flags.intersects(epoll::EventFlags::IN | epoll::EventFlags::HUP | epoll::EventFlags::ERR) {
                self.receive(index, workload)?;
                workload.turn(Turn { now_ns: self.clock.now_ns(), sending }, &mut self.outbox);
                self.flush(workload)?;
            }
        }
        Ok(())
    }

    fn renew(&mut self) {
        while let Some(index) = self.outbox.renewals.pop() {
            self.leave(index as usize);
        }
    }

    fn leave(&mut self, index: usize) {
        let Some(connection) = &mut self.connections[index] else { return };
        if connection.leaving {
            return;
        }
        connection.leaving = true;
        if self.plans[index].is_relay() || !connection.ready {
            self.drop_connection(index);
            return;
        }
        connection.client.leave(&mut self.outbox.queue(index).bytes);
        self.outbox.mark(index);
    }

    /// Closes the socket and, unless everything is being closed, queues the connection to be opened again.
    fn drop_connection(&mut self, index: usize) {
        let Some(connection) = self.connections[index].take() else { return };
        if connection.ready {
            self.ready -= 1
        } else {
            self.opening -= 1
        }
        self.outbox.reset(index);
        if !self.leaving {
            self.to_open.push_back(index as u32);
        }
    }

    fn open_some(&mut self, workload: &mut impl Workload) -> Result<(), IoError> {
        while self.opening < OPENINGS_MAX {
            let Some(index) = self.to_open.pop_front() else { break };
            let index = index as usize;
            let socket = self.connect(index)?;
            self.seed = self.seed.wrapping_add(1);
            let client = Client::open(&self.plans[index], self.seed, &mut self.outbox.queue(index).bytes);
            let ready = client.is_established();
            self.connections[index] = Some(Connection { socket, client, ready, leaving: false });
            // Not writable yet: the socket says when it is connected.
            self.outbox.queue(index).blocked = true;
            if ready {
                self.ready += 1;
                workload.ready(index, self.clock.now_ns());
            } else {
                self.opening += 1;
            }
        }
        Ok(())
    }

    fn connect(&self, index: usize) -> Result<OwnedFd, IoError> {
        let address = self.plans[index].address.unwrap_or(self.target.address);
        let failed = |error: Errno| IoError::Connect { address, source: error.into() };
        let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let socket = net::socket_with(family, SocketType::STREAM, flags, None).map_err(failed)?;
        sockopt::set_tcp_nodelay(&socket, true).map_err(failed)?;
        let source_index = (self.target.connections_before + index) / SOURCE_CONNECTIONS_MAX;
        if let Some(source) = self.target.sources.get(source_index) {
            net::bind(&socket, &SocketAddr::new(IpAddr::V4(*source), 0)).map_err(failed)?;
        }
        match net::connect(&socket, &address) {
            Ok(()) | Err(Errno::INPROGRESS) => {}
            Err(error) => return Err(failed(error)),
        }
        let flags = epoll::EventFlags::IN | epoll::EventFlags::OUT;
        epoll::add(&self.epoll, &socket, epoll::EventData::new_u64(index as u64), flags).map_err(failed)?;
        Ok(socket)
    }

    fn flush(&mut self, workload: &mut impl Workload) -> Result<(), IoError> {
        while let Some(index) = self.outbox.take_dirty() {
            self.send(index, workload)?;
        }
        Ok(())
    }

    fn writable(&mut self, index: usize, workload: &mut impl Workload) -> Result<(), IoError> {
        if self.connections[index].is_none() || !self.outbox.queue(index).blocked {
            return Ok(());
        }
        self.outbox.queue(index).blocked = false;
        self.send(index, workload)?;
        if let Some(connection) = &self.connections[index]
            && !self.outbox.queue(index).blocked
        {
            watch(&self.epoll, &connection.socket, index, false)?;
            workload.drained(index);
        }
        Ok(())
    }

    /// Sends until the queue is empty or the socket is full; then waits for it to become writable.
    fn send(&mut self, index: usize, workload: &mut impl Workload) -> Result<(), IoError> {
        let Some(connection) = &self.connections[index] else { return Ok(()) };
        let queue = self.outbox.queue(index);
        if queue.blocked {
            return Ok(());
        }
        while !queue.unsent().is_empty() {
            match net::send(&connection.socket, queue.unsent(), SendFlags::NOSIGNAL) {
                Ok(count) => queue.advance(count),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    queue.blocked = true;
                    return watch(&self.epoll, &connection.socket, index, true);
                }
                Err(error) => {
                    let address = self.target.address;
                    if !connection.ready && !connection.leaving {
                        return Err(IoError::Connect { address, source: error.into() });
                    }
                    // What the router said before it closed is worth more than the broken pipe.
                    self.receive(index, workload)?;
                    let Some(connection) = &self.connections[index] else { return Ok(()) };
                    let _ = connection;
                    return Err(IoError::Socket { connection: index, source: error.into() });
                }
            }
        }
        Ok(())
    }

    fn receive(&mut self, index: usize, workload: &mut impl Workload) -> Result<(), IoError> {
        let Some(connection) = &mut self.connections[index] else { return Ok(()) };
        let count = match net::recv(&connection.socket, &mut self.buffer[..], RecvFlags::empty()) {
            Ok((0, _)) if connection.leaving => {
                self.drop_connection(index);
                return Ok(());
            }
            Ok((0, _)) => return Err(IoError::Closed { connection: index }),
            Ok((count, _)) => count,
            Err(Errno::AGAIN | Errno::INTR) => return Ok(()),
            Err(_) if connection.leaving => {
                self.drop_connection(index);
                return Ok(());
            }
            Err(error) if !connection.ready => {
                return Err(IoError::Connect { address: self.target.address, source: error.into() });
            }
            Err(error) => return Err(IoError::Socket { connection: index, source: error.into() }),
        };
        let now_ns = self.clock.now_ns();
        let mut chunk = &mut self.buffer[..count];
        let failed = |source| IoError::Session { connection: index, source };
        let mut gone = false;
        loop {
            // The client's own answers go out behind what is queued.
            let queue = &mut self.outbox.queue(index).bytes;
            match connection.client.step(&mut chunk, queue).map_err(failed)? {
                Step::Message(message) => {
                    workload.message(index, message, now_ns, &mut self.outbox).map_err(failed)?;
                }
                Step::Progress => {}
                Step::Ready => {
                    connection.ready = true;
                    self.opening -= 1;
                    self.ready += 1;
                    workload.ready(index, now_ns);
                }
                Step::Starved => break,
                Step::Gone => {
                    gone = true;
                    break;
                }
            }
        }
        if gone {
            self.drop_connection(index);
        } else {
            self.outbox.mark(index);
        }
        Ok(())
    }
}

/// Watches a socket for input, and for room to send where asked.
fn watch(epoll: &OwnedFd, socket: &OwnedFd, index: usize, writable: bool) -> Result<(), IoError> {
    let mut flags = epoll::EventFlags::IN;
    flags.set(epoll::EventFlags::OUT, writable);
    epoll::modify(epoll.as_fd(), socket.as_fd(), epoll::EventData::new_u64(index as u64), flags)
        .map_err(|error| IoError::Epoll(error.into()))
}

const NS_PER_S: u64 = 1_000_000_000;
const EMPTY_EVENT: epoll::Event =
    epoll::Event { flags: epoll::EventFlags::empty(), data: epoll::EventData::new_u64(0) };
