//! Writing messages. Every function appends one whole message to `out`.

use super::{Message, OwnedValue, Payload, Serializer};

/// Details or options to write: a few known entries, in order, without building a tree.
#[derive(Clone, Copy, Debug)]
pub enum Field<'a> {
    Bool(bool),
    UInt(u64),
    Str(&'a str),
    Value(&'a OwnedValue),
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
    let _ = (serializer, out, subscription, publication, details, payload);
    unimplemented!()
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
    let _ = (serializer, out, request, registration, details, payload);
    unimplemented!()
}

/// RESULT `[50, request, details, args?, kwargs?]`.
pub fn result(
    serializer: Serializer,
    out: &mut Vec<u8>,
    request: u64,
    details: Fields<'_>,
    payload: Payload<'_>,
) {
    let _ = (serializer, out, request, details, payload);
    unimplemented!()
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
    let _ = (serializer, out, kind, request, details, error, payload);
    unimplemented!()
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
    let _ = (serializer, out, request, options, topic, payload);
    unimplemented!()
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
    let _ = (serializer, out, request, options, procedure, payload);
    unimplemented!()
}

/// YIELD, for clients.
pub fn yield_(
    serializer: Serializer,
    out: &mut Vec<u8>,
    request: u64,
    options: Fields<'_>,
    payload: Payload<'_>,
) {
    let _ = (serializer, out, request, options, payload);
    unimplemented!()
}

/// Messages that are a type code and a few ids: PUBLISHED, SUBSCRIBED, UNSUBSCRIBED, REGISTERED, UNREGISTERED, and for
/// clients UNSUBSCRIBE and UNREGISTER.
pub fn ids(serializer: Serializer, out: &mut Vec<u8>, code: u64, ids: &[u64]) {
    let _ = (serializer, out, code, ids);
    unimplemented!()
}

/// `[code, id, dictionary]`: WELCOME, INTERRUPT and, for clients, CANCEL.
pub fn id_dict(serializer: Serializer, out: &mut Vec<u8>, code: u64, id: u64, dict: Fields<'_>) {
    let _ = (serializer, out, code, id, dict);
    unimplemented!()
}

/// `[code, dictionary, uri]`: ABORT, GOODBYE.
pub fn dict_uri(serializer: Serializer, out: &mut Vec<u8>, code: u64, dict: Fields<'_>, uri: &str) {
    let _ = (serializer, out, code, dict, uri);
    unimplemented!()
}

/// `[code, uri, dictionary]`: HELLO, CHALLENGE, AUTHENTICATE.
pub fn uri_dict(serializer: Serializer, out: &mut Vec<u8>, code: u64, uri: &str, dict: Fields<'_>) {
    let _ = (serializer, out, code, uri, dict);
    unimplemented!()
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
    let _ = (serializer, out, code, request, dict, uri);
    unimplemented!()
}

/// Any message, its parts transcoded to `serializer` where they are in another; for tests and tools.
/// `from` is the serializer of the message's payload.
pub fn message(serializer: Serializer, out: &mut Vec<u8>, message: &Message<'_>, from: Serializer) {
    let _ = (serializer, out, message, from);
    unimplemented!()
}
