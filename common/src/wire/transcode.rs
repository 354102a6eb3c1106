//! Turning an encoded value of one serializer into another's, without recursion and without building a tree.
//!
//! What changes on the way, because the target has no form for it:
//!
//! | from | to | |
//! | --- | --- | --- |
//! | byte string | JSON | string of U+0000 and base64, and back (WAMP, basic profile, "Binary conversion of JSON Strings") |
//! | NaN, infinities | JSON | null |
//! | integer and boolean keys | JSON | their text; other keys that are no strings are [`WireError::Key`] |
//! | integers beyond 64 bits (JSON numbers, CBOR bignums, CBOR below -2^63) | any | the nearest float |
//! | MessagePack extensions | any | null for type 0, else a byte string of the data |
//! | CBOR tags | any | dropped, except on bignums |
//! | CBOR undefined and unassigned simple values | any | null |
//! | half floats | MessagePack | single floats |
//!
//! All other values keep their value and their kind. Text may grow: at most six times, for control characters in JSON.

use super::cbor::{Cbor, CborReader};
use super::json::JsonReader;
use super::msgpack::{MsgPack, MsgPackReader};
use super::reader::{Sink, walk_all};
use super::writer::{BinaryWriter, JsonWriter};
use super::{Payload, Serializer, WireError};

/// Appends the one value that fills `bytes`, encoded for `to`. The input must have been checked; what is malformed or
/// too deep is an error and may leave a partial value in `out`.
pub fn value(from: Serializer, bytes: &[u8], to: Serializer, out: &mut Vec<u8>) -> Result<(), WireError> {
    if from == to {
        out.extend_from_slice(bytes);
        return Ok(());
    }
    out.reserve(bytes.len() + bytes.len() / 8);
    match to {
        Serializer::Json => feed(from, bytes, &mut JsonWriter::new(out)),
        Serializer::MsgPack => {
            let mut writer = BinaryWriter::<MsgPack>::new(out);
            feed(from, bytes, &mut writer)?;
            writer.finish();
            Ok(())
        }
        Serializer::Cbor => {
            let mut writer = BinaryWriter::<Cbor>::new(out);
            feed(from, bytes, &mut writer)?;
            writer.finish();
            Ok(())
        }
    }
}

/// Appends the parts of `payload` to `out`, encoded for `to`, and returns where they are. On an error `out` is as before.
pub fn payload<'o>(
    from: Serializer,
    payload: Payload<'_>,
    to: Serializer,
    out: &'o mut Vec<u8>,
) -> Result<Payload<'o>, WireError> {
    let start = out.len();
    let middle = match payload.args.map_or(Ok(()), |args| value(from, args, to, out)) {
        Ok(()) => out.len(),
        Err(error) => {
            out.truncate(start);
            return Err(error);
        }
    };
    if let Err(error) = payload.kwargs.map_or(Ok(()), |kwargs| value(from, kwargs, to, out)) {
        out.truncate(start);
        return Err(error);
    }
    let (args, kwargs) = out[start..].split_at(middle - start);
    Ok(Payload { args: payload.args.map(|_| args), kwargs: payload.kwargs.map(|_| kwargs) })
}

/// Feeds the one value that fills `bytes` to `sink`.
pub(super) fn feed<S: Sink>(from: Serializer, bytes: &[u8], sink: &mut S) -> Result<(), WireError> {
    match from {
        Serializer::Json => walk_all::<JsonReader<'_>, S>(bytes, sink),
        Serializer::MsgPack => walk_all::<MsgPackReader<'_>, S>(bytes, sink),
        Serializer::Cbor => walk_all::<CborReader<'_>, S>(bytes, sink),
    }
}
