//! The 24 WAMP messages, parsed.

use super::cbor::CborReader;
use super::json::JsonReader;
use super::msgpack::MsgPackReader;
use super::reader::{Fault, Reader};
use super::{Dict, Payload, Serializer, Text, WireError};
use crate::ids::is_wamp_id;

/// One WAMP message of either direction. Codes and layouts: WAMP, basic profile, "Messages", and the advanced
/// profile for CHALLENGE, AUTHENTICATE, CANCEL and INTERRUPT.
///
/// Ids are checked to be integers from 1 to 2^53 (`Unsubscribed`, `Unregistered`: 0 too, for revocation); options and
/// details are checked to be dictionaries with string keys (null, CBOR undefined and MessagePack extension type 0
/// count as an empty one). URIs are text, not yet checked against the URI rules.
#[derive(Clone, PartialEq, Debug)]
pub enum Message<'a> {
    Hello {
        realm: Text<'a>,
        details: Dict<'a>,
    },
    Welcome {
        session: u64,
        details: Dict<'a>,
    },
    Abort {
        details: Dict<'a>,
        reason: Text<'a>,
        payload: Payload<'a>,
    },
    Challenge {
        method: Text<'a>,
        extra: Dict<'a>,
    },
    Authenticate {
        signature: Text<'a>,
        extra: Dict<'a>,
    },
    Goodbye {
        details: Dict<'a>,
        reason: Text<'a>,
    },
    /// `kind` is the type code of the request that failed, any number.
    Error {
        kind: u64,
        request: u64,
        details: Dict<'a>,
        error: Text<'a>,
        payload: Payload<'a>,
    },
    Publish {
        request: u64,
        options: Dict<'a>,
        topic: Text<'a>,
        payload: Payload<'a>,
    },
    Published {
        request: u64,
        publication: u64,
    },
    Subscribe {
        request: u64,
        options: Dict<'a>,
        topic: Text<'a>,
    },
    Subscribed {
        request: u64,
        subscription: u64,
    },
    Unsubscribe {
        request: u64,
        subscription: u64,
    },
    Unsubscribed {
        request: u64,
        details: Option<Dict<'a>>,
    },
    Event {
        subscription: u64,
        publication: u64,
        details: Dict<'a>,
        payload: Payload<'a>,
    },
    Call {
        request: u64,
        options: Dict<'a>,
        procedure: Text<'a>,
        payload: Payload<'a>,
    },
    Cancel {
        request: u64,
        options: Dict<'a>,
    },
    Result {
        request: u64,
        details: Dict<'a>,
        payload: Payload<'a>,
    },
    Register {
        request: u64,
        options: Dict<'a>,
        procedure: Text<'a>,
    },
    Registered {
        request: u64,
        registration: u64,
    },
    Unregister {
        request: u64,
        registration: u64,
    },
    Unregistered {
        request: u64,
        details: Option<Dict<'a>>,
    },
    Invocation {
        request: u64,
        registration: u64,
        details: Dict<'a>,
        payload: Payload<'a>,
    },
    Interrupt {
        request: u64,
        options: Dict<'a>,
    },
    Yield {
        request: u64,
        options: Dict<'a>,
        payload: Payload<'a>,
    },
}

/// Message type codes.
pub mod code {
    pub const HELLO: u64 = 1;
    pub const WELCOME: u64 = 2;
    pub const ABORT: u64 = 3;
    pub const CHALLENGE: u64 = 4;
    pub const AUTHENTICATE: u64 = 5;
    pub const GOODBYE: u64 = 6;
    pub const ERROR: u64 = 8;
    pub const PUBLISH: u64 = 16;
    pub const PUBLISHED: u64 = 17;
    pub const SUBSCRIBE: u64 = 32;
    pub const SUBSCRIBED: u64 = 33;
    pub const UNSUBSCRIBE: u64 = 34;
    pub const UNSUBSCRIBED: u64 = 35;
    pub const EVENT: u64 = 36;
    pub const CALL: u64 = 48;
    pub const CANCEL: u64 = 49;
    pub const RESULT: u64 = 50;
    pub const REGISTER: u64 = 64;
    pub const REGISTERED: u64 = 65;
    pub const UNREGISTER: u64 = 66;
    pub const UNREGISTERED: u64 = 67;
    pub const INVOCATION: u64 = 68;
    pub const INTERRUPT: u64 = 69;
    pub const YIELD: u64 = 70;
}

impl<'a> Message<'a> {
    /// The type code.
    pub const fn code(&self) -> u64 {
        match self {
            Self::Hello { .. } => code::HELLO,
            Self::Welcome { .. } => code::WELCOME,
            Self::Abort { .. } => code::ABORT,
            Self::Challenge { .. } => code::CHALLENGE,
            Self::Authenticate { .. } => code::AUTHENTICATE,
            Self::Goodbye { .. } => code::GOODBYE,
            Self::Error { .. } => code::ERROR,
            Self::Publish { .. } => code::PUBLISH,
            Self::Published { .. } => code::PUBLISHED,
            Self::Subscribe { .. } => code::SUBSCRIBE,
            Self::Subscribed { .. } => code::SUBSCRIBED,
            Self::Unsubscribe { .. } => code::UNSUBSCRIBE,
            Self::Unsubscribed { .. } => code::UNSUBSCRIBED,
            Self::Event { .. } => code::EVENT,
            Self::Call { .. } => code::CALL,
            Self::Cancel { .. } => code::CANCEL,
            Self::Result { .. } => code::RESULT,
            Self::Register { .. } => code::REGISTER,
            Self::Registered { .. } => code::REGISTERED,
            Self::Unregister { .. } => code::UNREGISTER,
            Self::Unregistered { .. } => code::UNREGISTERED,
            Self::Invocation { .. } => code::INVOCATION,
            Self::Interrupt { .. } => code::INTERRUPT,
            Self::Yield { .. } => code::YIELD,
        }
    }

    /// The name in the specification, for example `SUBSCRIBE`.
    pub const fn name(&self) -> &'static str {
        shape(self.code()).0
    }

    /// The application payload; an empty one for messages that have none.
    pub const fn payload(&self) -> Payload<'a> {
        match self {
            Self::Abort { payload, .. }
            | Self::Error { payload, .. }
            | Self::Publish { payload, .. }
            | Self::Event { payload, .. }
            | Self::Call { payload, .. }
            | Self::Result { payload, .. }
            | Self::Invocation { payload, .. }
            | Self::Yield { payload, .. } => *payload,
            _ => Payload { args: None, kwargs: None },
        }
    }
}

/// The name of a message type in the specification; empty for codes that mean nothing.
pub const fn name(code: u64) -> &'static str {
    shape(code).0
}

/// The name of a message type and how many elements it has; no name for codes that mean nothing.
const fn shape(code: u64) -> (&'static str, &'static str) {
    match code {
        code::HELLO => ("HELLO", "3"),
        code::WELCOME => ("WELCOME", "3"),
        code::ABORT => ("ABORT", "3 to 5"),
        code::CHALLENGE => ("CHALLENGE", "3"),
        code::AUTHENTICATE => ("AUTHENTICATE", "3"),
        code::GOODBYE => ("GOODBYE", "3"),
        code::ERROR => ("ERROR", "5 to 7"),
        code::PUBLISH => ("PUBLISH", "4 to 6"),
        code::PUBLISHED => ("PUBLISHED", "3"),
        code::SUBSCRIBE => ("SUBSCRIBE", "4"),
        code::SUBSCRIBED => ("SUBSCRIBED", "3"),
        code::UNSUBSCRIBE => ("UNSUBSCRIBE", "3"),
        code::UNSUBSCRIBED => ("UNSUBSCRIBED", "2 or 3"),
        code::EVENT => ("EVENT", "4 to 6"),
        code::CALL => ("CALL", "4 to 6"),
        code::CANCEL => ("CANCEL", "3"),
        code::RESULT => ("RESULT", "3 to 5"),
        code::REGISTER => ("REGISTER", "4"),
        code::REGISTERED => ("REGISTERED", "3"),
        code::UNREGISTER => ("UNREGISTER", "3"),
        code::UNREGISTERED => ("UNREGISTERED", "2 or 3"),
        code::INVOCATION => ("INVOCATION", "4 to 6"),
        code::INTERRUPT => ("INTERRUPT", "3"),
        code::YIELD => ("YIELD", "3 to 5"),
        _ => ("", ""),
    }
}

/// Parses one whole message. All of `bytes` must be the message (JSON allows white space around it), and all of it is
/// checked to be well formed, without recursion, to a depth of [`crate::limits::DEPTH_MAX`]. Elements after the last
/// one defined are a [`WireError::Arity`] error. `args: null` counts as absent.
///
/// Errors come in the order of the bytes: what follows the first thing that is wrong is not looked at.
#[inline]
pub fn decode(serializer: Serializer, bytes: &[u8]) -> Result<Message<'_>, WireError> {
    match serializer {
        Serializer::Json => parse::<JsonReader<'_>>(bytes),
        Serializer::MsgPack => parse::<MsgPackReader<'_>>(bytes),
        Serializer::Cbor => parse::<CborReader<'_>>(bytes),
    }
}

fn parse<'a, R: Reader<'a>>(bytes: &'a [u8]) -> Result<Message<'a>, WireError> {
    let reader = R::new(bytes).map_err(|fault| fault.error(R::SERIALIZER, 0))?;
    let mut elements = Elements { reader, code: 0 };
    let code = elements.begin()?;
    elements.code = code;
    let e = &mut elements;
    // Fields are read in the order in which they are written here.
    let message = match code {
        code::HELLO => Message::Hello { realm: e.text("Realm")?, details: e.dict("Details")? },
        code::WELCOME => Message::Welcome { session: e.id("Session")?, details: e.dict("Details")? },
        code::ABORT => {
            Message::Abort { details: e.dict("Details")?, reason: e.text("Reason")?, payload: e.payload()? }
        }
        code::CHALLENGE => Message::Challenge { method: e.text("AuthMethod")?, extra: e.dict("Extra")? },
        code::AUTHENTICATE => {
            Message::Authenticate { signature: e.text("Signature")?, extra: e.dict("Extra")? }
        }
        code::GOODBYE => Message::Goodbye { details: e.dict("Details")?, reason: e.text("Reason")? },
        code::ERROR => Message::Error {
            kind: e.number("Type")?,
            request: e.id("Request")?,
            details: e.dict("Details")?,
            error: e.text("Error")?,
            payload: e.payload()?,
        },
        code::PUBLISH => Message::Publish {
            request: e.id("Request")?,
            options: e.dict("Options")?,
            topic: e.text("Topic")?,
            payload: e.payload()?,
        },
        code::PUBLISHED => {
            Message::Published { request: e.id("Request")?, publication: e.id("Publication")? }
        }
        code::SUBSCRIBE => Message::Subscribe {
            request: e.id("Request")?,
            options: e.dict("Options")?,
            topic: e.text("Topic")?,
        },
        code::SUBSCRIBED => {
            Message::Subscribed { request: e.id("Request")?, subscription: e.id("Subscription")? }
        }
        code::UNSUBSCRIBE => {
            Message::Unsubscribe { request: e.id("Request")?, subscription: e.id("Subscription")? }
        }
        code::UNSUBSCRIBED => {
            Message::Unsubscribed { request: e.id_or_zero("Request")?, details: e.last_dict("Details")? }
        }
        code::EVENT => Message::Event {
            subscription: e.id("Subscription")?,
            publication: e.id("Publication")?,
            details: e.dict("Details")?,
            payload: e.payload()?,
        },
        code::CALL => Message::Call {
            request: e.id("Request")?,
            options: e.dict("Options")?,
            procedure: e.text("Procedure")?,
            payload: e.payload()?,
        },
        code::CANCEL => Message::Cancel { request: e.id("Request")?, options: e.dict("Options")? },
        code::RESULT => {
            Message::Result { request: e.id("Request")?, details: e.dict("Details")?, payload: e.payload()? }
        }
        code::REGISTER => Message::Register {
            request: e.id("Request")?,
            options: e.dict("Options")?,
            procedure: e.text("Procedure")?,
        },
        code::REGISTERED => {
            Message::Registered { request: e.id("Request")?, registration: e.id("Registration")? }
        }
        code::UNREGISTER => {
            Message::Unregister { request: e.id("Request")?, registration: e.id("Registration")? }
        }
        code::UNREGISTERED => {
            Message::Unregistered { request: e.id_or_zero("Request")?, details: e.last_dict("Details")? }
        }
        code::INVOCATION => Message::Invocation {
            request: e.id("Request")?,
            registration: e.id("Registration")?,
            details: e.dict("Details")?,
            payload: e.payload()?,
        },
        code::INTERRUPT => Message::Interrupt { request: e.id("Request")?, options: e.dict("Options")? },
        code::YIELD => {
            Message::Yield { request: e.id("Request")?, options: e.dict("Options")?, payload: e.payload()? }
        }
        code => return Err(WireError::UnknownType { code }),
    };
    e.end()?;
    Ok(message)
}

/// The elements of a message behind its type code, read in order.
struct Elements<R> {
    reader: R,
    code: u64,
}

impl<'a, R: Reader<'a>> Elements<R> {
    #[inline(always)]
    fn begin(&mut self) -> Result<u64, WireError> {
        let begun = self.reader.open_list().and_then(|()| match self.reader.more()? {
            true => self.reader.uint(),
            false => Err(Fault::Kind),
        });
        begun.map_err(|fault| match fault {
            Fault::Kind => WireError::NotAMessage,
            fault => fault.error(R::SERIALIZER, self.reader.position()),
        })
    }

    /// Moves to an element that must be there.
    #[inline(always)]
    fn next(&mut self) -> Result<(), WireError> {
        match self.reader.more() {
            Ok(true) => Ok(()),
            Ok(false) => Err(self.arity()),
            Err(fault) => Err(self.wrong(fault, "", "")),
        }
    }

    #[inline(always)]
    fn id(&mut self, field: &'static str) -> Result<u64, WireError> {
        self.next()?;
        match self.reader.uint() {
            Ok(id) if is_wamp_id(id) => Ok(id),
            Ok(_) => Err(self.wrong(Fault::Kind, field, AN_ID)),
            Err(fault) => Err(self.wrong(fault, field, AN_ID)),
        }
    }

    /// The request of a message that the router may send without one, by zero.
    #[inline(always)]
    fn id_or_zero(&mut self, field: &'static str) -> Result<u64, WireError> {
        self.next()?;
        match self.reader.uint() {
            Ok(id) if id == 0 || is_wamp_id(id) => Ok(id),
            Ok(_) => Err(self.wrong(Fault::Kind, field, AN_ID_OR_ZERO)),
            Err(fault) => Err(self.wrong(fault, field, AN_ID_OR_ZERO)),
        }
    }

    #[inline(always)]
    fn number(&mut self, field: &'static str) -> Result<u64, WireError> {
        self.next()?;
        self.reader.uint().map_err(|fault| self.wrong(fault, field, A_NUMBER))
    }

    #[inline(always)]
    fn text(&mut self, field: &'static str) -> Result<Text<'a>, WireError> {
        self.next()?;
        self.reader.text().map_err(|fault| self.wrong(fault, field, A_STRING))
    }

    #[inline(always)]
    fn dict(&mut self, field: &'static str) -> Result<Dict<'a>, WireError> {
        self.next()?;
        match self.reader.options() {
            Ok(bytes) => Ok(Dict::checked(R::SERIALIZER, bytes)),
            Err(fault) => Err(self.wrong(fault, field, A_DICTIONARY)),
        }
    }

    /// A dictionary that may be left out.
    #[inline(always)]
    fn last_dict(&mut self, field: &'static str) -> Result<Option<Dict<'a>>, WireError> {
        if !self.more()? {
            return Ok(None);
        }
        match self.reader.options() {
            Ok(bytes) => Ok(Some(Dict::checked(R::SERIALIZER, bytes))),
            Err(fault) => Err(self.wrong(fault, field, A_DICTIONARY)),
        }
    }

    #[inline(always)]
    fn payload(&mut self) -> Result<Payload<'a>, WireError> {
        if !self.more()? {
            return Ok(Payload::default());
        }
        let args = self.reader.list().map_err(|fault| self.wrong(fault, "Arguments", A_LIST))?;
        if !self.more()? {
            return Ok(Payload { args, kwargs: None });
        }
        let kwargs = self.reader.dict().map_err(|fault| self.wrong(fault, "ArgumentsKw", A_DICTIONARY))?;
        Ok(Payload { args, kwargs })
    }

    #[inline(always)]
    fn more(&mut self) -> Result<bool, WireError> {
        self.reader.more().map_err(|fault| self.wrong(fault, "", ""))
    }

    #[inline(always)]
    fn end(&mut self) -> Result<(), WireError> {
        match self.reader.more() {
            Ok(false) => self.reader.finish().map_err(|fault| self.wrong(fault, "", "")),
            Ok(true) => Err(self.arity()),
            Err(fault) => Err(self.wrong(fault, "", "")),
        }
    }

    #[cold]
    fn arity(&self) -> WireError {
        let (message, expected) = shape(self.code);
        WireError::Arity { message, expected }
    }

    #[cold]
    fn wrong(&self, fault: Fault, field: &'static str, expected: &'static str) -> WireError {
        match fault {
            Fault::Kind => WireError::Field { message: shape(self.code).0, field, expected },
            fault => fault.error(R::SERIALIZER, self.reader.position()),
        }
    }
}

const AN_ID: &str = "an integer from 1 to 9007199254740992";
const AN_ID_OR_ZERO: &str = "an integer from 0 to 9007199254740992";
const A_NUMBER: &str = "a non-negative integer";
const A_STRING: &str = "a string";
const A_LIST: &str = "a list";
const A_DICTIONARY: &str = "a dictionary with string keys";
