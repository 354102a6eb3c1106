//! Writing messages. Every function appends one whole message to `out`.

use super::cbor::Cbor;
use super::json_text;
use super::message::code;
use super::msgpack::MsgPack;
use super::writer::Format;
use super::{Dict, Message, OwnedValue, Payload, Serializer, WireError, transcode};

/// Details or options to write: a few known entries, in order, without building a tree.
#[derive(Clone, Copy, Debug)]
pub enum Field<'a> {
    Bool(bool),
    UInt(u64),
    Str(&'a str),
    Value(&'a OwnedValue),
    /// In the serializer that is written.
    Encoded(&'a [u8]),
}

/// The entries of a dictionary to write.
pub type Fields<'a> = &'a [(&'a str, Field<'a>)];

/// EVENT `[36, subscription, publication, details, args?, kwargs?]`. The payload is in the same serializer already.
pub fn event(
    serializer: Serializer,
    out: &mut Vec<u8>,
    subscription: u64,
    publication: u64,
    details: Fields<'_>,
    payload: Payload<'_>,
) {
    let ids = &[subscription, publication];
    Parts { code: code::EVENT, ids, dict: Some(DictPart::Fields(details)), payload, ..EMPTY }
        .write(serializer, out);
}

/// INVOCATION `[68, request, registration, details, args?, kwargs?]`.
pub fn invocation(
    serializer: Serializer,
    out: &mut Vec<u8>,
    request: u64,
    registration: u64,
    details: Fields<'_>,
    payload: Payload<'_>,
) {
    let ids = &[request, registration];
    Parts { code: code::INVOCATION, ids, dict: Some(DictPart::Fields(details)), payload, ..EMPTY }
        .write(serializer, out);
}

/// RESULT `[50, request, details, args?, kwargs?]`.
pub fn result(
    serializer: Serializer,
    out: &mut Vec<u8>,
    request: u64,
    details: Fields<'_>,
    payload: Payload<'_>,
) {
    Parts { code: code::RESULT, ids: &[request], dict: Some(DictPart::Fields(details)), payload, ..EMPTY }
        .write(serializer, out);
}

/// ERROR `[8, kind, request, details, error, args?, kwargs?]`.
pub fn error(
    serializer: Serializer,
    out: &mut Vec<u8>,
    kind: u64,
    request: u64,
    details: Fields<'_>,
    error: &str,
    payload: Payload<'_>,
) {
    let (ids, dict, after) = (&[kind, request], Some(DictPart::Fields(details)), Some(error));
    Parts { code: code::ERROR, ids, dict, after, payload, ..EMPTY }.write(serializer, out);
}

/// PUBLISH, for clients.
pub fn publish(
    serializer: Serializer,
    out: &mut Vec<u8>,
    request: u64,
    options: Fields<'_>,
    topic: &str,
    payload: Payload<'_>,
) {
    let (ids, dict, after) = (&[request], Some(DictPart::Fields(options)), Some(topic));
    Parts { code: code::PUBLISH, ids, dict, after, payload, ..EMPTY }.write(serializer, out);
}

/// CALL, for clients.
pub fn call(
    serializer: Serializer,
    out: &mut Vec<u8>,
    request: u64,
    options: Fields<'_>,
    procedure: &str,
    payload: Payload<'_>,
) {
    let (ids, dict, after) = (&[request], Some(DictPart::Fields(options)), Some(procedure));
    Parts { code: code::CALL, ids, dict, after, payload, ..EMPTY }.write(serializer, out);
}

/// YIELD, for clients.
pub fn yield_(
    serializer: Serializer,
    out: &mut Vec<u8>,
    request: u64,
    options: Fields<'_>,
    payload: Payload<'_>,
) {
    Parts { code: code::YIELD, ids: &[request], dict: Some(DictPart::Fields(options)), payload, ..EMPTY }
        .write(serializer, out);
}

/// Messages that are a type code and a few ids: PUBLISHED, SUBSCRIBED, UNSUBSCRIBED, REGISTERED, UNREGISTERED, and for
/// clients UNSUBSCRIBE and UNREGISTER.
pub fn ids(serializer: Serializer, out: &mut Vec<u8>, code: u64, ids: &[u64]) {
    Parts { code, ids, ..EMPTY }.write(serializer, out);
}

/// `[code, id, dictionary]`: WELCOME, INTERRUPT and, for clients, CANCEL; UNSUBSCRIBED and UNREGISTERED on revocation.
pub fn id_dict(serializer: Serializer, out: &mut Vec<u8>, code: u64, id: u64, dict: Fields<'_>) {
    Parts { code, ids: &[id], dict: Some(DictPart::Fields(dict)), ..EMPTY }.write(serializer, out);
}

/// `[code, dictionary, uri]`: ABORT, GOODBYE.
pub fn dict_uri(serializer: Serializer, out: &mut Vec<u8>, code: u64, dict: Fields<'_>, uri: &str) {
    Parts { code, dict: Some(DictPart::Fields(dict)), after: Some(uri), ..EMPTY }.write(serializer, out);
}

/// `[code, uri, dictionary]`: HELLO, CHALLENGE, AUTHENTICATE.
pub fn uri_dict(serializer: Serializer, out: &mut Vec<u8>, code: u64, uri: &str, dict: Fields<'_>) {
    Parts { code, before: Some(uri), dict: Some(DictPart::Fields(dict)), ..EMPTY }.write(serializer, out);
}

/// `[code, request, dictionary, uri]`: SUBSCRIBE, REGISTER.
pub fn id_dict_uri(
    serializer: Serializer,
    out: &mut Vec<u8>,
    code: u64,
    request: u64,
    dict: Fields<'_>,
    uri: &str,
) {
    Parts { code, ids: &[request], dict: Some(DictPart::Fields(dict)), after: Some(uri), ..EMPTY }
        .write(serializer, out);
}

/// A list of dictionaries, for a payload.
pub fn list_of_dicts(serializer: Serializer, out: &mut Vec<u8>, dicts: &[Vec<(&str, Field<'_>)>]) {
    match serializer {
        Serializer::Json => {
            out.push(b'[');
            for (index, dict) in dicts.iter().enumerate() {
                if index > 0 {
                    out.push(b',');
                }
                json_fields(out, dict);
            }
            out.push(b']');
        }
        Serializer::MsgPack => binary_list::<MsgPack>(out, dicts),
        Serializer::Cbor => binary_list::<Cbor>(out, dicts),
    }
}

fn binary_list<F: Format>(out: &mut Vec<u8>, dicts: &[Vec<(&str, Field<'_>)>]) {
    F::list(out, dicts.len());
    dicts.iter().for_each(|dict| binary_fields::<F>(out, dict));
}

/// Any message, its parts transcoded to `serializer` where they are in another; for tests and tools.
/// `from` is the serializer of the message's payload.
///
/// # Errors
/// Those of [`transcode::value`]; `out` is then as before.
pub fn message(
    serializer: Serializer,
    out: &mut Vec<u8>,
    message: &Message<'_>,
    from: Serializer,
) -> Result<(), WireError> {
    let mut ids = [0; 2];
    let (before, count, dict, after) = split(message, &mut ids);
    let mut encoded = Vec::new();
    if let Some(dict) = dict.filter(|dict| !dict.is_empty()) {
        transcode::value(dict.serializer(), dict.bytes(), serializer, &mut encoded)?;
    }
    let mut tail = Vec::new();
    let payload = transcode::payload(from, message.payload(), serializer, &mut tail)?;
    let dict =
        dict.map(|dict| if dict.is_empty() { DictPart::Fields(&[]) } else { DictPart::Encoded(&encoded) });
    Parts { code: message.code(), before, ids: &ids[..count], dict, after, payload }.write(serializer, out);
    Ok(())
}

type Split<'m> = (Option<&'m str>, usize, Option<Dict<'m>>, Option<&'m str>);

/// The parts of a message but its payload; its ids, so many, go to `ids`.
fn split<'m>(message: &'m Message<'_>, ids: &mut [u64; 2]) -> Split<'m> {
    let mut take = |first: u64, second: u64| *ids = [first, second];
    match message {
        Message::Hello { realm: text, details: dict }
        | Message::Challenge { method: text, extra: dict }
        | Message::Authenticate { signature: text, extra: dict } => (Some(text), 0, Some(*dict), None),
        Message::Abort { details: dict, reason: text, .. }
        | Message::Goodbye { details: dict, reason: text } => (None, 0, Some(*dict), Some(text)),
        Message::Welcome { session: id, details: dict }
        | Message::Cancel { request: id, options: dict }
        | Message::Result { request: id, details: dict, .. }
        | Message::Interrupt { request: id, options: dict }
        | Message::Yield { request: id, options: dict, .. } => {
            take(*id, 0);
            (None, 1, Some(*dict), None)
        }
        Message::Unsubscribed { request, details } | Message::Unregistered { request, details } => {
            take(*request, 0);
            (None, 1, *details, None)
        }
        Message::Publish { request, options: dict, topic: text, .. }
        | Message::Subscribe { request, options: dict, topic: text }
        | Message::Call { request, options: dict, procedure: text, .. }
        | Message::Register { request, options: dict, procedure: text } => {
            take(*request, 0);
            (None, 1, Some(*dict), Some(text))
        }
        Message::Published { request: first, publication: second }
        | Message::Subscribed { request: first, subscription: second }
        | Message::Unsubscribe { request: first, subscription: second }
        | Message::Registered { request: first, registration: second }
        | Message::Unregister { request: first, registration: second } => {
            take(*first, *second);
            (None, 2, None, None)
        }
        Message::Event { subscription: first, publication: second, details, .. }
        | Message::Invocation { request: first, registration: second, details, .. } => {
            take(*first, *second);
            (None, 2, Some(*details), None)
        }
        Message::Error { kind, request, details, error, .. } => {
            take(*kind, *request);
            (None, 2, Some(*details), Some(error))
        }
    }
}

/// The elements of a message; all messages have theirs in this order.
#[derive(Clone, Copy)]
struct Parts<'a> {
    code: u64,
    before: Option<&'a str>,
    ids: &'a [u64],
    dict: Option<DictPart<'a>>,
    after: Option<&'a str>,
    payload: Payload<'a>,
}

#[derive(Clone, Copy)]
enum DictPart<'a> {
    Fields(Fields<'a>),
    /// In the message's serializer.
    Encoded(&'a [u8]),
}

const EMPTY: Parts<'static> = Parts {
    code: 0,
    before: None,
    ids: &[],
    dict: None,
    after: None,
    payload: Payload { args: None, kwargs: None },
};

/// Room for a list header, a type code, two ids and an empty dictionary in any format.
const HEAD_BYTES_MAX: usize = 64;

impl Parts<'_> {
    // Inlined into each function above, where most parts are constants.
    #[inline(always)]
    fn write(self, serializer: Serializer, out: &mut Vec<u8>) {
        let text_bytes = self.before.map_or(0, str::len) + self.after.map_or(0, str::len);
        out.reserve(HEAD_BYTES_MAX + text_bytes + self.payload.bytes_len());
        match serializer {
            Serializer::Json => self.json(out),
            Serializer::MsgPack => self.binary::<MsgPack>(out),
            Serializer::Cbor => self.binary::<Cbor>(out),
        }
    }

    #[inline(always)]
    fn binary<F: Format>(self, out: &mut Vec<u8>) {
        let payload = match self.payload {
            Payload { kwargs: Some(_), .. } => 2,
            Payload { args: Some(_), .. } => 1,
            _ => 0,
        };
        let texts = usize::from(self.before.is_some()) + usize::from(self.after.is_some());
        F::list(out, 1 + self.ids.len() + usize::from(self.dict.is_some()) + texts + payload);
        F::uint(out, self.code);
        if let Some(text) = self.before {
            F::str(out, text);
        }
        for id in self.ids {
            F::uint(out, *id);
        }
        match self.dict {
            Some(DictPart::Fields([])) => F::dict(out, 0),
            Some(DictPart::Fields(fields)) => binary_fields::<F>(out, fields),
            Some(DictPart::Encoded(bytes)) => out.extend_from_slice(bytes),
            None => {}
        }
        if let Some(text) = self.after {
            F::str(out, text);
        }
        match self.payload {
            Payload { args, kwargs: Some(kwargs) } => {
                match args {
                    Some(args) => out.extend_from_slice(args),
                    None => F::list(out, 0),
                }
                out.extend_from_slice(kwargs);
            }
            Payload { args: Some(args), kwargs: None } => out.extend_from_slice(args),
            Payload { args: None, kwargs: None } => {}
        }
    }

    #[inline(always)]
    fn json(self, out: &mut Vec<u8>) {
        out.push(b'[');
        json_text::put_uint(out, self.code);
        if let Some(text) = self.before {
            out.push(b',');
            json_text::put_str(out, text);
        }
        for id in self.ids {
            out.push(b',');
            json_text::put_uint(out, *id);
        }
        match self.dict {
            Some(DictPart::Fields([])) => out.extend_from_slice(b",{}"),
            Some(DictPart::Fields(fields)) => {
                out.push(b',');
                json_fields(out, fields);
            }
            Some(DictPart::Encoded(bytes)) => {
                out.push(b',');
                out.extend_from_slice(bytes);
            }
            None => {}
        }
        if let Some(text) = self.after {
            out.push(b',');
            json_text::put_str(out, text);
        }
        if let Some(args) = self.payload.args {
            out.push(b',');
            out.extend_from_slice(args);
        }
        if let Some(kwargs) = self.payload.kwargs {
            out.extend_from_slice(if self.payload.args.is_none() { b",[]," } else { b"," });
            out.extend_from_slice(kwargs);
        }
        out.push(b']');
    }
}

fn binary_fields<F: Format>(out: &mut Vec<u8>, fields: Fields<'_>) {
    F::dict(out, fields.len());
    for (key, field) in fields {
        F::str(out, key);
        match field {
            Field::Bool(value) => F::bool(out, *value),
            Field::UInt(value) => F::uint(out, *value),
            Field::Str(value) => F::str(out, value),
            Field::Value(value) => value.put::<F>(out),
            Field::Encoded(bytes) => out.extend_from_slice(bytes),
        }
    }
}

fn json_fields(out: &mut Vec<u8>, fields: Fields<'_>) {
    out.push(b'{');
    for (index, (key, field)) in fields.iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        json_text::put_str(out, key);
        out.push(b':');
        match field {
            Field::Bool(value) => out.extend_from_slice(if *value { b"true" } else { b"false" }),
            Field::UInt(value) => json_text::put_uint(out, *value),
            Field::Str(value) => json_text::put_str(out, value),
            Field::Value(value) => value.put_json(out),
            Field::Encoded(bytes) => out.extend_from_slice(bytes),
        }
    }
    out.push(b'}');
}
