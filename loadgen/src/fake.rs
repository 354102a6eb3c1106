//! A router for tests: one blocking thread a connection, RawSocket and WebSocket, faults on demand.

use common::limits::MESSAGE_BYTES_MAX;
use common::transport::{
    Frame, FrameKind, Framer, Framing, HEADER_BYTES_MAX, Role, rawsocket, upgrade, write_header,
};
use common::wire::message::code;
use common::wire::{Message, OwnedValue, Payload, Serializer, decode, encode};
use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};

/// What the router does wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Misdeed {
    None,
    /// Every n-th event is not delivered.
    DropEvery(u64),
    /// Every n-th event is delivered twice.
    RepeatEvery(u64),
    /// HELLO is answered with ABORT.
    Abort,
    /// The connection is closed after this many messages.
    CloseAfter(u64),
    /// Calls are answered with ERROR.
    RefuseCalls,
}

pub struct FakeRouter {
    pub address: SocketAddr,
}

struct Peer {
    stream: TcpStream,
    framing: Framing,
    serializer: Serializer,
}

#[derive(Default)]
struct State {
    peers: HashMap<u64, Peer>,
    topics: HashMap<String, Vec<u64>>,
    procedures: HashMap<String, u64>,
    /// Caller and its request, by invocation.
    calls: HashMap<u64, (u64, u64)>,
    next: u64,
    events: u64,
}

impl FakeRouter {
    /// Serves on a port of its own until the test's process ends.
    pub fn start(framing: Framing, misdeed: Misdeed) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(Mutex::new(State::default()));
        std::thread::spawn(move || {
            for (peer, stream) in (1..).zip(listener.incoming()) {
                let state = Arc::clone(&state);
                std::thread::spawn(move || {
                    // A peer that goes away ends its thread; the test sees what matters on the other side.
                    let _ = serve(stream.unwrap(), peer, framing, misdeed, &state);
                    state.lock().unwrap().peers.remove(&peer);
                });
            }
        });
        Self { address }
    }
}

fn serve(
    mut stream: TcpStream,
    peer: u64,
    framing: Framing,
    misdeed: Misdeed,
    state: &Mutex<State>,
) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let serializer = shake_hands(&mut stream, framing)?;
    state.lock().unwrap().peers.insert(peer, Peer { stream: stream.try_clone()?, framing, serializer });
    let mut framer = Framer::new(framing, Role::Server, serializer, MESSAGE_BYTES_MAX);
    let mut buffer = vec![0; 65_536];
    let mut messages = 0;
    loop {
        let count = stream.read(&mut buffer)?;
        if count == 0 {
            return Ok(());
        }
        let mut chunk = &mut buffer[..count];
        while let Some(frame) = framer.next(&mut chunk).unwrap() {
            let Frame::Message(message) = frame else { continue };
            messages += 1;
            if misdeed == Misdeed::CloseAfter(messages) {
                return stream.shutdown(std::net::Shutdown::Both);
            }
            let message = decode(serializer, message).unwrap();
            state.lock().unwrap().message(peer, serializer, message, misdeed)?;
        }
    }
}

fn shake_hands(stream: &mut TcpStream, framing: Framing) -> io::Result<Serializer> {
    match framing {
        Framing::RawSocket => {
            let mut octets = [0; 4];
            stream.read_exact(&mut octets)?;
            let handshake = rawsocket::parse_request(octets).unwrap();
            stream.write_all(&rawsocket::write(handshake))?;
            Ok(handshake.serializer)
        }
        _ => {
            let mut head = Vec::new();
            loop {
                let mut octet = [0];
                stream.read_exact(&mut octet)?;
                head.extend(octet);
                if let Some(upgrade) = upgrade::parse_request(&head, "/ws").unwrap() {
                    let mut out = Vec::new();
                    upgrade::write_accept(&upgrade, &mut out);
                    stream.write_all(&out)?;
                    let subprotocol = upgrade.subprotocol.expect("an upgrade without echo has one");
                    return Ok(subprotocol.serializer);
                }
            }
        }
    }
}

impl State {
    fn send(&mut self, peer: u64, write: impl FnOnce(Serializer, &mut Vec<u8>)) {
        let Some(peer) = self.peers.get_mut(&peer) else { return };
        let mut message = Vec::new();
        write(peer.serializer, &mut message);
        let mut frame = Vec::with_capacity(message.len() + HEADER_BYTES_MAX);
        write_header(peer.framing, peer.serializer, FrameKind::Message, message.len(), &mut frame);
        frame.extend_from_slice(&message);
        // The peer's own thread sees that it is gone.
        let _ = peer.stream.write_all(&frame);
    }

    /// Sends a message with the payload of another one, transcoded.
    fn forward(
        &mut self,
        peer: u64,
        from: Serializer,
        payload: Payload<'_>,
        write: impl FnOnce(Serializer, &mut Vec<u8>, Payload<'_>),
    ) {
        let args = OwnedValue::decode(from, payload.args.unwrap()).unwrap();
        self.send(peer, |serializer, out| {
            let mut encoded = Vec::new();
            args.encode(serializer, &mut encoded);
            write(serializer, out, Payload { args: Some(&encoded), kwargs: None });
        });
    }

    fn message(
        &mut self,
        peer: u64,
        from: Serializer,
        message: Message<'_>,
        misdeed: Misdeed,
    ) -> io::Result<()> {
        match message {
            Message::Hello { .. } if misdeed == Misdeed::Abort => {
                self.send(peer, |serializer, out| {
                    encode::dict_uri(serializer, out, code::ABORT, &[], "wamp.error.no_such_realm");
                });
            }
            Message::Hello { .. } => {
                self.send(peer, |serializer, out| encode::id_dict(serializer, out, code::WELCOME, peer, &[]));
            }
            Message::Goodbye { .. } => self.send(peer, |serializer, out| {
                encode::dict_uri(serializer, out, code::GOODBYE, &[], "wamp.close.goodbye_and_out");
            }),
            Message::Subscribe { request, topic, .. } => {
                self.topics.entry(topic.into_owned()).or_default().push(peer);
                self.send(peer, |serializer, out| {
                    encode::ids(serializer, out, code::SUBSCRIBED, &[request, 1])
                });
            }
            Message::Register { request, procedure, .. } => {
                self.procedures.insert(procedure.into_owned(), peer);
                self.send(peer, |serializer, out| {
                    encode::ids(serializer, out, code::REGISTERED, &[request, 1])
                });
            }
            Message::Publish { request, options, topic, payload } => {
                for receiver in self.topics.get(&*topic).cloned().unwrap_or_default() {
                    self.events += 1;
                    let copies = match misdeed {
                        Misdeed::DropEvery(every) if self.events.is_multiple_of(every) => 0,
                        Misdeed::RepeatEvery(every) if self.events.is_multiple_of(every) => 2,
                        _ => 1,
                    };
                    for _ in 0..copies {
                        self.forward(receiver, from, payload, |serializer, out, payload| {
                            encode::event(serializer, out, 1, 2, &[], payload);
                        });
                    }
                }
                if options.get("acknowledge").is_some() {
                    self.send(peer, |serializer, out| {
                        encode::ids(serializer, out, code::PUBLISHED, &[request, 2])
                    });
                }
            }
            Message::Call { request, .. } if misdeed == Misdeed::RefuseCalls => {
                self.send(peer, |serializer, out| {
                    let uri = "wamp.error.no_such_procedure";
                    encode::error(serializer, out, code::CALL, request, &[], uri, Payload::default());
                });
            }
            Message::Call { request, procedure, payload, .. } => {
                self.next += 1;
                let invocation = self.next;
                self.calls.insert(invocation, (peer, request));
                self.forward(self.procedures[&*procedure], from, payload, |serializer, out, payload| {
                    encode::invocation(serializer, out, invocation, 1, &[], payload);
                });
            }
            Message::Yield { request, payload, .. } => {
                let (caller, call) = self.calls.remove(&request).unwrap();
                self.forward(caller, from, payload, |serializer, out, payload| {
                    encode::result(serializer, out, call, &[], payload);
                });
            }
            other => return Err(io::Error::other(format!("unexpected {}", other.name()))),
        }
        Ok(())
    }
}

/// A bare relay: the octets of a group's sources to its sinks, and those of `both` members to each other.
pub struct FakeRelay {
    pub address: SocketAddr,
}

struct Member {
    id: usize,
    group: u16,
    role: u8,
    stream: TcpStream,
}

impl FakeRelay {
    /// Relays nothing before all `members_expected` are there, so nothing can be lost.
    pub fn start(members_expected: usize) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let members: Arc<(Mutex<Vec<Member>>, Condvar)> = Arc::default();
        std::thread::spawn(move || {
            for (id, stream) in listener.incoming().enumerate() {
                let (mut stream, members) = (stream.unwrap(), Arc::clone(&members));
                std::thread::spawn(move || {
                    let mut preamble = [0; 8];
                    stream.read_exact(&mut preamble).unwrap();
                    assert_eq!(&preamble[..4], b"RLY1");
                    let group = u16::from_le_bytes([preamble[6], preamble[7]]);
                    let member = Member { id, group, role: preamble[4], stream: stream.try_clone().unwrap() };
                    let (members, joined) = &*members;
                    members.lock().unwrap().push(member);
                    joined.notify_all();
                    let all = |members: &mut Vec<Member>| members.len() < members_expected;
                    drop(joined.wait_while(members.lock().unwrap(), all).unwrap());
                    let mut buffer = [0; 65_536];
                    while let Ok(count @ 1..) = stream.read(&mut buffer) {
                        for member in members.lock().unwrap().iter_mut() {
                            if member.group == group && member.role != SOURCE && member.id != id {
                                let _ = member.stream.write_all(&buffer[..count]);
                            }
                        }
                    }
                });
            }
        });
        Self { address }
    }
}

const SOURCE: u8 = 1;
