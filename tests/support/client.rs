//! A blocking WAMP client. Messages are JSON values whatever the serializer: `json!([32, 1, {}, "a.b"])`.

use super::{Node, PATIENCE};
use common::transport::{
    Frame, FrameKind, Framer, Framing, Role, Subprotocol, batch, rawsocket, upgrade, write_client_frame,
    write_client_message,
};
use common::wire::{OwnedValue, Serializer};
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

/// How a client speaks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Wire {
    pub framing: Framing,
    pub serializer: Serializer,
}

impl Wire {
    pub const fn raw(serializer: Serializer) -> Self {
        Self { framing: Framing::RawSocket, serializer }
    }

    pub const fn web(serializer: Serializer) -> Self {
        Self { framing: Framing::WebSocket, serializer }
    }

    /// What a WebSocket client offers.
    fn subprotocol(self) -> Subprotocol {
        Subprotocol { serializer: self.serializer, batched: self.framing.is_batched() }
    }

    /// RawSocket with MessagePack, where it does not matter.
    pub const PLAIN: Self = Self::raw(Serializer::MsgPack);

    /// Every combination.
    pub fn all() -> impl Iterator<Item = Self> {
        let framings = [Framing::RawSocket, Framing::WebSocket, Framing::Batched];
        framings
            .into_iter()
            .flat_map(|framing| Serializer::ALL.map(|serializer| Self { framing, serializer }))
    }
}

/// How a connection ended.
#[derive(Clone, PartialEq, Debug)]
pub struct Ended {
    /// What came before the end and was not taken.
    pub messages: Vec<Value>,
    /// The code of the WebSocket close frame, if there was one.
    pub close: Option<u16>,
}

/// A connection, and a session on it after [`Client::hello`].
pub struct Client {
    pub wire: Wire,
    pub session: u64,
    stream: TcpStream,
    framer: Framer,
    inbox: VecDeque<Value>,
    pongs: VecDeque<Vec<u8>>,
    close: Option<u16>,
    ended: bool,
    request_last: u64,
}

impl Client {
    /// A session on `realm1` as anonymous.
    pub fn join(node: &Node, wire: Wire) -> Self {
        Self::join_realm(node, wire, "realm1")
    }

    pub fn join_realm(node: &Node, wire: Wire, realm: &str) -> Self {
        let mut client = Self::connect(node, wire);
        client.hello(realm);
        client
    }

    /// A connection whose transport handshake is over.
    pub fn connect(node: &Node, wire: Wire) -> Self {
        Self::try_connect(node, wire).expect("a connection")
    }

    pub fn try_connect(node: &Node, wire: Wire) -> io::Result<Self> {
        Self::connect_to(node.address(wire), wire)
    }

    /// By another address than the node's first ones.
    pub fn join_at(address: SocketAddr, wire: Wire) -> Self {
        let mut client = Self::connect_to(address, wire).expect("a connection");
        client.hello("realm1");
        client
    }

    /// For threads that do not have the node.
    pub fn connect_to(address: SocketAddr, wire: Wire) -> io::Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        Self::over(stream, wire)
    }

    /// On a Unix-domain socket.
    pub fn connect_unix(path: &Path, wire: Wire) -> io::Result<Self> {
        // Only the calls that every stream socket knows are used.
        Self::over(OwnedFd::from(UnixStream::connect(path)?).into(), wire)
    }

    fn over(mut stream: TcpStream, wire: Wire) -> io::Result<Self> {
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let rest = match wire.framing {
            Framing::RawSocket => rawsocket_handshake(&mut stream, wire.serializer)?,
            _ => websocket_handshake(&mut stream, wire.subprotocol())?,
        };
        let bytes_max = common::limits::MESSAGE_BYTES_MAX;
        let mut client = Self {
            wire,
            session: 0,
            stream,
            framer: Framer::new(wire.framing, Role::Client, wire.serializer, bytes_max),
            inbox: VecDeque::new(),
            pongs: VecDeque::new(),
            close: None,
            ended: false,
            request_last: 0,
        };
        client.take_chunk(rest);
        Ok(client)
    }

    /// Says HELLO with all roles and takes WELCOME.
    pub fn hello(&mut self, realm: &str) -> Value {
        let roles = json!({"publisher": {}, "subscriber": {}, "caller": {}, "callee": {}});
        self.send(&json!([1, realm, {"roles": roles}]));
        let welcome = self.recv();
        assert_eq!(welcome[0], 2, "expected WELCOME, got {welcome}");
        self.session = welcome[1].as_u64().expect("a session id");
        self.request_last = 0;
        welcome
    }

    pub fn send(&mut self, message: &Value) {
        self.send_bytes(&encode(self.wire.serializer, message));
    }

    /// Sends a message that may be anything.
    pub fn send_bytes(&mut self, message: &[u8]) {
        let mut out = Vec::new();
        let Wire { framing, serializer } = self.wire;
        write_client_message(framing, serializer, message, [7, 1, 200, 9], &mut out);
        self.send_raw(&out);
    }

    pub fn send_frame(&mut self, kind: FrameKind, payload: &[u8]) {
        let mut out = Vec::new();
        let Wire { framing, serializer } = self.wire;
        write_client_frame(framing, serializer, kind, payload, [7, 1, 200, 9], &mut out);
        self.send_raw(&out);
    }

    /// Sends bytes past the framing. A connection that is gone is no failure: the answer tells.
    pub fn send_raw(&mut self, bytes: &[u8]) {
        let _ = self.stream.write_all(bytes);
    }

    /// The next message.
    pub fn recv(&mut self) -> Value {
        self.take("a message", |_| true)
    }

    /// The next message that is `wanted`; others stay, in order.
    pub fn take(&mut self, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let until = Instant::now() + PATIENCE;
        let mut looked = 0;
        loop {
            while looked < self.inbox.len() {
                if wanted(&self.inbox[looked]) {
                    return self.inbox.remove(looked).expect("it is there");
                }
                looked += 1;
            }
            assert!(!self.ended, "the connection ended instead of {what}; unread: {:?}", self.inbox);
            let more = self.pump(until);
            assert!(more || self.ended, "{what} did not come; unread: {:?}", self.inbox);
        }
    }

    /// The next message that is `wanted`; None when it does not come until then, or the connection ends before.
    pub fn wait_for(&mut self, until: Instant, wanted: impl Fn(&Value) -> bool) -> Option<Value> {
        loop {
            if let Some(at) = self.inbox.iter().position(&wanted) {
                return self.inbox.remove(at);
            }
            if self.ended || Instant::now() >= until {
                return None;
            }
            self.pump(until);
        }
    }

    /// True once the peer has closed or reset the connection.
    pub fn has_ended(&self) -> bool {
        self.ended
    }

    /// Reads until the peer closes.
    pub fn end(&mut self) -> Ended {
        let until = Instant::now() + PATIENCE;
        while !self.ended {
            let more = self.pump(until);
            assert!(more || self.ended, "the connection did not end; unread: {:?}", self.inbox);
        }
        Ended { messages: self.inbox.drain(..).collect(), close: self.close }
    }

    /// The ABORT that ends the connection: its reason and the text in its details.
    pub fn aborted(&mut self) -> (String, String) {
        let abort = self.take("ABORT", |message| message[0] == 3);
        self.end();
        let text = abort[1]["message"].as_str().unwrap_or_default().to_owned();
        (abort[2].as_str().expect("a reason").to_owned(), text)
    }

    /// Sends a request: its second element is replaced by the next request id, which is returned.
    pub fn request(&mut self, mut message: Value) -> u64 {
        self.request_last += 1;
        message[1] = self.request_last.into();
        self.send(&message);
        self.request_last
    }

    /// The answer to a request, good or ERROR.
    pub fn reply(&mut self, request: u64) -> Value {
        self.take("the answer", |message| match message[0].as_u64() {
            Some(17 | 33 | 35 | 50 | 65 | 67) => message[1] == request,
            Some(8) => message[1] != 68 && message[2] == request,
            _ => false,
        })
    }

    /// A request and its answer.
    pub fn ask(&mut self, message: Value) -> Value {
        let request = self.request(message);
        self.reply(request)
    }

    /// The error URI that a request is answered with.
    pub fn ask_error(&mut self, message: Value) -> String {
        let answer = self.ask(message);
        assert_eq!(answer[0], 8, "expected ERROR, got {answer}");
        answer[4].as_str().expect("an error URI").to_owned()
    }

    /// Subscribes and returns the subscription id.
    pub fn subscribe(&mut self, topic: &str) -> u64 {
        let answer = self.ask(json!([32, 0, {}, topic]));
        assert_eq!(answer[0], 33, "expected SUBSCRIBED, got {answer}");
        answer[2].as_u64().expect("an id")
    }

    /// Registers and returns the registration id.
    pub fn register(&mut self, procedure: &str) -> u64 {
        let answer = self.ask(json!([64, 0, {}, procedure]));
        assert_eq!(answer[0], 65, "expected REGISTERED, got {answer}");
        answer[2].as_u64().expect("an id")
    }

    /// Publishes without asking for an acknowledgement.
    pub fn publish(&mut self, topic: &str, args: &Value) {
        self.request(json!([16, 0, {}, topic, args]));
    }

    /// Publishes, waits for PUBLISHED and returns the publication id.
    pub fn publish_acknowledged(&mut self, topic: &str, args: &Value) -> u64 {
        let answer = self.ask(json!([16, 0, {"acknowledge": true}, topic, args]));
        assert_eq!(answer[0], 17, "expected PUBLISHED, got {answer}");
        answer[2].as_u64().expect("an id")
    }

    /// The next EVENT.
    pub fn event(&mut self) -> Value {
        self.take("EVENT", |message| message[0] == 36)
    }

    /// The next INVOCATION.
    pub fn invocation(&mut self) -> Value {
        self.take("INVOCATION", |message| message[0] == 68)
    }

    /// The payload of the next PONG.
    pub fn pong(&mut self) -> Vec<u8> {
        let until = Instant::now() + PATIENCE;
        loop {
            if let Some(payload) = self.pongs.pop_front() {
                return payload;
            }
            assert!(!self.ended && self.pump(until), "PONG did not come");
        }
    }

    /// Takes what has arrived by now, without waiting.
    pub fn arrived(&mut self) -> Vec<Value> {
        while self.pump(Instant::now()) {}
        self.inbox.drain(..).collect()
    }

    /// Says GOODBYE and takes the answer.
    pub fn goodbye(&mut self) -> Value {
        self.send(&json!([6, {}, "wamp.close.close_realm"]));
        self.take("GOODBYE", |message| message[0] == 6)
    }

    /// Closes our direction only.
    pub fn shut_down_write(&mut self) {
        let _ = self.stream.shutdown(Shutdown::Write);
    }

    pub fn stream(&self) -> &TcpStream {
        &self.stream
    }

    /// Reads once; false when nothing came until then, or the connection ended.
    fn pump(&mut self, until: Instant) -> bool {
        if self.ended {
            return false;
        }
        let wait = until.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        self.stream.set_read_timeout(Some(wait)).expect("a time-out");
        let mut chunk = vec![0; 64 * 1_024];
        match self.stream.read(&mut chunk) {
            Ok(0) => {
                self.ended = true;
                false
            }
            Ok(count) => {
                chunk.truncate(count);
                self.take_chunk(chunk);
                true
            }
            Err(error) => match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => false,
                io::ErrorKind::Interrupted => true,
                _ => {
                    self.ended = true;
                    false
                }
            },
        }
    }

    fn take_chunk(&mut self, mut chunk: Vec<u8>) {
        let mut rest = chunk.as_mut_slice();
        let mut pings = Vec::new();
        while let Some(frame) = self.framer.next(&mut rest).expect("the router frames its messages well") {
            match frame {
                Frame::Message(bytes) => {
                    let Wire { framing, serializer } = self.wire;
                    for message in batch::split(framing, serializer, bytes) {
                        let message = message.expect("the router batches well");
                        self.inbox.push_back(decode(serializer, message));
                    }
                }
                Frame::Ping(payload) => pings.push(payload.to_vec()),
                Frame::Compressed(_) => unreachable!("compression was not agreed on"),
                Frame::Pong(payload) => self.pongs.push_back(payload.to_vec()),
                Frame::Close { code } => self.close = Some(code),
            }
        }
        for payload in pings {
            self.send_frame(FrameKind::Pong, &payload);
        }
    }
}

/// Encodes a message written as JSON.
pub fn encode(serializer: Serializer, message: &Value) -> Vec<u8> {
    let text = serde_json::to_vec(message).expect("JSON");
    let value = OwnedValue::decode(Serializer::Json, &text).expect("our codec reads JSON");
    let mut out = Vec::new();
    value.encode(serializer, &mut out);
    out
}

/// Decodes a message of the router, with byte strings in the JSON convention of WAMP.
pub fn decode(serializer: Serializer, bytes: &[u8]) -> Value {
    let value = OwnedValue::decode(serializer, bytes)
        .unwrap_or_else(|error| panic!("the router sent what is no {serializer:?}: {error}: {bytes:?}"));
    let mut text = Vec::new();
    value.encode(Serializer::Json, &mut text);
    serde_json::from_slice(&text).expect("our codec writes JSON")
}

fn rawsocket_handshake(stream: &mut TcpStream, serializer: Serializer) -> io::Result<Vec<u8>> {
    let message_bytes_max = common::limits::MESSAGE_BYTES_MAX;
    stream.write_all(&rawsocket::write(rawsocket::Handshake { serializer, message_bytes_max }))?;
    let mut octets = [0; 4];
    stream.read_exact(&mut octets)?;
    match rawsocket::parse_answer(octets) {
        Ok(answer) => {
            assert_eq!(answer.serializer, serializer);
            Ok(Vec::new())
        }
        Err(code) => Err(io::Error::other(format!("handshake error {code}"))),
    }
}

fn websocket_handshake(stream: &mut TcpStream, subprotocol: Subprotocol) -> io::Result<Vec<u8>> {
    let key = [42; 16];
    let mut request = Vec::new();
    upgrade::write_request("localhost", "/ws", subprotocol, key, &mut request);
    stream.write_all(&request)?;
    let mut head = Vec::new();
    let mut chunk = [0; 4_096];
    loop {
        match upgrade::parse_answer(&head, subprotocol, key) {
            Ok(Some(head_bytes)) => return Ok(head.split_off(head_bytes)),
            Ok(None) => {}
            Err(reason) => return Err(io::Error::other(reason)),
        }
        let count = stream.read(&mut chunk)?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        head.extend_from_slice(&chunk[..count]);
    }
}
