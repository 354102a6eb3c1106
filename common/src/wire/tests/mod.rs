//! Tests that compare the three formats with each other, with other people's codecs, and with what enemies send.

mod golden;
mod hostile;
mod properties;

use super::{OwnedValue, Serializer};

/// The bytes of hexadecimal digits; anything else is left out.
fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
    digits.chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
}

/// The golden messages as bytes in `serializer`, with their JSON for messages of assertions.
fn golden(serializer: Serializer) -> impl Iterator<Item = (&'static str, Vec<u8>)> {
    golden::GOLDEN.iter().map(move |(_, json, msgpack, cbor)| match serializer {
        Serializer::Json => (*json, json.as_bytes().to_vec()),
        Serializer::MsgPack => (*json, hex(msgpack)),
        Serializer::Cbor => (*json, hex(cbor)),
    })
}

/// PUBLISH with `args` in front of no keyword arguments.
fn publish(serializer: Serializer, args: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let payload = super::Payload { args: Some(args), kwargs: None };
    super::encode::publish(serializer, &mut out, 1, &[], "a.b", payload);
    out
}

/// What `value` is after a journey through `serializer`.
fn after(value: &OwnedValue, serializer: Serializer) -> OwnedValue {
    match value {
        OwnedValue::Float(float) if serializer == Serializer::Json && !float.is_finite() => OwnedValue::Null,
        OwnedValue::List(elements) => {
            OwnedValue::List(elements.iter().map(|element| after(element, serializer)).collect())
        }
        OwnedValue::Dict(entries) => OwnedValue::Dict(
            entries.iter().map(|(key, value)| (key.clone(), after(value, serializer))).collect(),
        ),
        value => value.clone(),
    }
}

/// Equal, with every NaN equal to every other.
fn same(left: &OwnedValue, right: &OwnedValue) -> bool {
    match (left, right) {
        (OwnedValue::Float(left), OwnedValue::Float(right)) => {
            left.to_bits() == right.to_bits() || left.is_nan() && right.is_nan()
        }
        (OwnedValue::List(left), OwnedValue::List(right)) => {
            left.len() == right.len() && left.iter().zip(right).all(|(left, right)| same(left, right))
        }
        (OwnedValue::Dict(left), OwnedValue::Dict(right)) => {
            left.len() == right.len()
                && left.iter().zip(right).all(|(left, right)| left.0 == right.0 && same(&left.1, &right.1))
        }
        (left, right) => left == right,
    }
}
