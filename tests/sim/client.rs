//! A client that talks WAMP over one framing and serializer and remembers enough to judge every answer.

use common::transport::{
    Frame, Framer, Framing, Role, Subprotocol, batch, rawsocket, upgrade, write_client_message,
};
use common::wire::encode::{self, Field};
use common::wire::message::code;
use common::wire::{Message, OwnedValue, Payload, Serializer, decode};
use std::collections::{BTreeMap, BTreeSet};

/// What one payload says: who made it, for which URI, its number there.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Mark {
    pub sender: u64,
    pub uri: String,
    pub number: u64,
}

#[derive(Debug)]
pub enum Request {
    Subscribe { policy: &'static str, uri: String },
    Unsubscribe { subscription: u64 },
    Register { uri: String },
    Unregister { registration: u64 },
    Publish,
    Call { mark: Mark },
}

#[derive(Debug)]
pub struct Subscription {
    pub policy: &'static str,
    pub uri: String,
    /// The step at which SUBSCRIBED arrived.
    #[allow(dead_code, reason = "only one of the simulations asks")]
    pub since: u64,
    /// Highest number seen, by sender and topic.
    seen: BTreeMap<(u64, String), u64>,
    pub got: BTreeSet<Mark>,
}

#[derive(Debug)]
pub struct Client {
    pub name: u64,
    pub serializer: Serializer,
    pub framing: Framing,
    framer: Option<Framer>,
    handshake: Vec<u8>,
    /// Bytes on their way to the router.
    pub outgoing: Vec<u8>,
    pub session: Option<u64>,
    pub next_request: u64,
    pub requests: BTreeMap<u64, Request>,
    pub subscriptions: BTreeMap<u64, Subscription>,
    pub registrations: BTreeMap<u64, String>,
    /// Invocations not yet answered.
    pub invocations: Vec<(u64, Mark)>,
    last_invocation: u64,
    /// Highest number invoked, by caller and procedure.
    invoked: BTreeMap<(u64, String), u64>,
    numbers: BTreeMap<String, u64>,
    pub answered: u64,
    /// Errors of the router that answered calls and publications.
    pub errors: Vec<String>,
    pub gone: bool,
}

impl Client {
    pub fn new(name: u64, framing: Framing, serializer: Serializer) -> Self {
        let mut outgoing = Vec::new();
        match framing {
            Framing::RawSocket => {
                let hello = rawsocket::Handshake { serializer, message_bytes_max: 1 << 24 };
                outgoing.extend_from_slice(&rawsocket::write(hello));
            }
            _ => {
                let subprotocol = Subprotocol { serializer, batched: framing.is_batched() };
                upgrade::write_request("node", "/ws", subprotocol, [7; 16], &mut outgoing);
            }
        }
        let mut client = Self {
            name,
            serializer,
            framing,
            framer: None,
            handshake: Vec::new(),
            outgoing,
            session: None,
            next_request: 0,
            requests: BTreeMap::new(),
            subscriptions: BTreeMap::new(),
            registrations: BTreeMap::new(),
            invocations: Vec::new(),
            last_invocation: 0,
            invoked: BTreeMap::new(),
            numbers: BTreeMap::new(),
            answered: 0,
            errors: Vec::new(),
            gone: false,
        };
        let role = || OwnedValue::Dict(vec![]);
        let names = ["publisher", "subscriber", "caller", "callee"];
        let roles = OwnedValue::Dict(names.map(|name| (name.to_owned(), role())).to_vec());
        client.send(|serializer, out| {
            encode::uri_dict(serializer, out, code::HELLO, "realm1", &[("roles", Field::Value(&roles))]);
        });
        client
    }

    fn send(&mut self, write: impl FnOnce(Serializer, &mut Vec<u8>)) {
        let mut message = Vec::new();
        write(self.serializer, &mut message);
        let mask = [1, 2, 3, self.name as u8];
        write_client_message(self.framing, self.serializer, &message, mask, &mut self.outgoing);
    }

    fn request(&mut self, request: Request) -> u64 {
        self.next_request += 1;
        self.requests.insert(self.next_request, request);
        self.next_request
    }

    pub fn subscribe(&mut self, policy: &'static str, uri: &str) {
        let id = self.request(Request::Subscribe { policy, uri: uri.to_owned() });
        self.send(|serializer, out| {
            let options = [("match", Field::Str(policy))];
            encode::id_dict_uri(serializer, out, code::SUBSCRIBE, id, &options, uri);
        });
    }

    pub fn unsubscribe(&mut self, subscription: u64) {
        let id = self.request(Request::Unsubscribe { subscription });
        self.send(|serializer, out| encode::ids(serializer, out, code::UNSUBSCRIBE, &[id, subscription]));
    }

    pub fn register(&mut self, uri: &str) {
        let id = self.request(Request::Register { uri: uri.to_owned() });
        self.send(|serializer, out| encode::id_dict_uri(serializer, out, code::REGISTER, id, &[], uri));
    }

    pub fn unregister(&mut self, registration: u64) {
        let id = self.request(Request::Unregister { registration });
        self.send(|serializer, out| encode::ids(serializer, out, code::UNREGISTER, &[id, registration]));
    }

    fn mark(&mut self, uri: &str) -> Mark {
        let number = self.numbers.entry(uri.to_owned()).or_default();
        *number += 1;
        Mark { sender: self.name, uri: uri.to_owned(), number: *number }
    }

    pub fn publish(&mut self, uri: &str, acknowledge: bool, padding: usize) -> Mark {
        let mark = self.mark(uri);
        let id = self.next_request + 1;
        self.next_request = id;
        if acknowledge {
            self.requests.insert(id, Request::Publish);
        }
        let args = payload(self.serializer, &mark, padding);
        self.send(|serializer, out| {
            let options = [("acknowledge", Field::Bool(acknowledge))];
            let payload = Payload { args: Some(&args), kwargs: None };
            encode::publish(serializer, out, id, &options, uri, payload);
        });
        mark
    }

    pub fn call(&mut self, uri: &str) {
        let mark = self.mark(uri);
        let id = self.request(Request::Call { mark: mark.clone() });
        let args = payload(self.serializer, &mark, 8);
        self.send(|serializer, out| {
            encode::call(serializer, out, id, &[], uri, Payload { args: Some(&args), kwargs: None });
        });
    }

    /// Answers the invocation at `index`, with an ERROR or a YIELD that echoes its mark.
    pub fn answer(&mut self, index: usize, error: bool) {
        let (request, mark) = self.invocations.swap_remove(index);
        let args = payload(self.serializer, &mark, 8);
        let payload = Payload { args: Some(&args), kwargs: None };
        self.send(|serializer, out| {
            if error {
                encode::error(serializer, out, code::INVOCATION, request, &[], "app.error.failed", payload);
            } else {
                encode::yield_(serializer, out, request, &[], payload);
            }
        });
    }

    pub fn goodbye(&mut self) {
        self.send(|serializer, out| {
            encode::dict_uri(serializer, out, code::GOODBYE, &[], "wamp.close.close_realm");
        });
        self.gone = true;
    }

    /// Bytes from the router, at step `now`.
    pub fn receive(&mut self, now: u64, bytes: &[u8]) {
        if self.framer.is_some() {
            return self.frames(now, bytes.to_vec());
        }
        self.handshake.extend_from_slice(bytes);
        let taken = match self.framing {
            Framing::RawSocket => match <[u8; 4]>::try_from(self.handshake.get(..4).unwrap_or_default()) {
                Ok(octets) => {
                    let answer = rawsocket::parse_answer(octets).expect("the handshake is accepted");
                    assert_eq!(answer.serializer, self.serializer);
                    Some(4)
                }
                Err(_) => None,
            },
            framing => {
                let subprotocol = Subprotocol { serializer: self.serializer, batched: framing.is_batched() };
                upgrade::parse_answer(&self.handshake, subprotocol, [7; 16]).expect("the upgrade is accepted")
            }
        };
        if let Some(taken) = taken {
            self.framer = Some(Framer::new(self.framing, Role::Client, self.serializer, 1 << 24));
            let rest = self.handshake.split_off(taken);
            self.frames(now, rest);
        }
    }

    fn frames(&mut self, now: u64, mut bytes: Vec<u8>) {
        let mut framer = self.framer.take().expect("framing is set up");
        let mut chunk = bytes.as_mut_slice();
        while let Some(frame) = framer.next(&mut chunk).expect("the router's frames are well formed") {
            match frame {
                Frame::Message(messages) => {
                    let messages = messages.to_vec();
                    for message in batch::split(self.framing, self.serializer, &messages) {
                        self.message(now, message.expect("the router's batches are well formed"));
                    }
                }
                Frame::Close { .. } => self.gone = true,
                Frame::Ping(_) | Frame::Pong(_) => {}
                Frame::Compressed(_) => unreachable!("compression was not agreed on"),
            }
        }
        self.framer = Some(framer);
    }

    fn message(&mut self, now: u64, bytes: &[u8]) {
        let serializer = self.serializer;
        let message = decode(serializer, bytes).expect("the router's messages are well formed");
        match message {
            Message::Welcome { session, .. } => self.session = Some(session),
            Message::Goodbye { .. } => self.gone = true,
            Message::Subscribed { request, subscription } => match self.take(request) {
                Request::Subscribe { policy, uri } => {
                    let entry = self.subscriptions.entry(subscription);
                    let fresh = || Subscription {
                        policy,
                        uri: uri.clone(),
                        since: now,
                        seen: BTreeMap::new(),
                        got: BTreeSet::new(),
                    };
                    let held = entry.or_insert_with(fresh);
                    assert_eq!((held.policy, &held.uri), (policy, &uri), "one id, one subscription");
                }
                other => panic!("SUBSCRIBED answers {other:?}"),
            },
            Message::Unsubscribed { request, .. } => match self.take(request) {
                Request::Unsubscribe { subscription } => {
                    self.subscriptions.remove(&subscription);
                }
                other => panic!("UNSUBSCRIBED answers {other:?}"),
            },
            Message::Registered { request, registration } => match self.take(request) {
                Request::Register { uri } => {
                    assert!(self.registrations.insert(registration, uri).is_none());
                }
                other => panic!("REGISTERED answers {other:?}"),
            },
            Message::Unregistered { request, .. } => match self.take(request) {
                Request::Unregister { registration } => {
                    self.registrations.remove(&registration);
                }
                other => panic!("UNREGISTERED answers {other:?}"),
            },
            Message::Published { request, .. } => {
                assert!(matches!(self.take(request), Request::Publish));
            }
            Message::Event { subscription, payload, .. } => {
                let mark = unpack(serializer, payload);
                assert_ne!(mark.sender, self.name, "a publisher does not get its own event");
                // Events may still come until UNSUBSCRIBED does.
                let held = self.subscriptions.get_mut(&subscription).expect("the subscription is held");
                let last = held.seen.entry((mark.sender, mark.uri.clone())).or_default();
                assert!(*last < mark.number, "order and no duplicate: {last} then {mark:?}");
                *last = mark.number;
                held.got.insert(mark);
            }
            Message::Invocation { request, registration, payload, .. } => {
                assert_eq!(request, self.last_invocation + 1, "invocation ids are sequential");
                self.last_invocation = request;
                let mark = unpack(serializer, payload);
                let uri = self.registrations.get(&registration).expect("REGISTERED comes before INVOCATION");
                assert_eq!(*uri, mark.uri);
                let last = self.invoked.entry((mark.sender, mark.uri.clone())).or_default();
                assert!(*last < mark.number, "calls of one caller arrive in order");
                *last = mark.number;
                self.invocations.push((request, mark));
            }
            Message::Result { request, payload, .. } => match self.take(request) {
                Request::Call { mark } => {
                    assert_eq!(unpack(serializer, payload), mark, "the answer belongs to the call");
                    self.answered += 1;
                }
                other => panic!("RESULT answers {other:?}"),
            },
            Message::Error { request, error, payload, .. } => match self.take(request) {
                Request::Call { mark } => {
                    if error == "app.error.failed" {
                        assert_eq!(unpack(serializer, payload), mark);
                    } else {
                        self.errors.push(error.to_string());
                    }
                    self.answered += 1;
                }
                // A node that is there did not take the event.
                Request::Publish => {
                    assert_eq!(error, "wamp.error.unavailable");
                    self.errors.push(error.to_string());
                }
                Request::Register { .. } => assert_eq!(error, "wamp.error.procedure_already_exists"),
                // The client may have unsubscribed twice.
                Request::Unsubscribe { .. } => assert_eq!(error, "wamp.error.no_such_subscription"),
                Request::Unregister { .. } => assert_eq!(error, "wamp.error.no_such_registration"),
                other => panic!("ERROR {error} answers {other:?}"),
            },
            other => panic!("a router does not send {other:?} here"),
        }
    }

    fn take(&mut self, request: u64) -> Request {
        self.requests.remove(&request).expect("every answer belongs to one open request")
    }
}

fn payload(serializer: Serializer, mark: &Mark, padding: usize) -> Vec<u8> {
    let mut out = Vec::new();
    OwnedValue::List(vec![
        OwnedValue::UInt(mark.sender),
        OwnedValue::Str(mark.uri.clone()),
        OwnedValue::UInt(mark.number),
        OwnedValue::Bin(vec![0xa5; padding]),
    ])
    .encode(serializer, &mut out);
    out
}

fn unpack(serializer: Serializer, payload: Payload<'_>) -> Mark {
    let args = payload.args.expect("the payload has args");
    match OwnedValue::decode(serializer, args).expect("args are well formed") {
        OwnedValue::List(list) => match list.as_slice() {
            [
                OwnedValue::UInt(sender),
                OwnedValue::Str(uri),
                OwnedValue::UInt(number),
                OwnedValue::Bin(padding),
            ] => {
                assert!(padding.iter().all(|byte| *byte == 0xa5), "binary survives every serializer");
                Mark { sender: *sender, uri: uri.clone(), number: *number }
            }
            other => panic!("payload {other:?}"),
        },
        other => panic!("payload {other:?}"),
    }
}
