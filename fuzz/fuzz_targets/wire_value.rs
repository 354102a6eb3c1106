//! Bytes as one value, next to other people's readers. The first byte chooses the serializer.
//!
//! serde_json must agree on what is JSON. The other two are laxer or stricter in places, so agreement is asked only where both
//! accept: then the value is the same, as far as its kinds go.
#![no_main]

use common::wire::{OwnedValue, Serializer, transcode};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((choice, bytes)) = data.split_first() else { return };
    let serializer = Serializer::ALL[usize::from(*choice) % Serializer::ALL.len()];
    let ours = OwnedValue::decode(serializer, bytes);
    match serializer {
        Serializer::Json => json(bytes, &ours.clone().ok()),
        Serializer::MsgPack => msgpack(bytes, &ours.clone().ok()),
        Serializer::Cbor => cbor(bytes, &ours.clone().ok()),
    }
    for to in Serializer::ALL.into_iter().filter(|to| *to != serializer) {
        let mut out = Vec::new();
        if transcode::value(serializer, bytes, to, &mut out).is_ok() && ours.is_ok() {
            OwnedValue::decode(to, &out).expect("what is written can be read");
        }
        assert!(out.len() <= 16 + 12 * bytes.len(), "{} bytes became {}", bytes.len(), out.len());
    }
});

fn json(bytes: &[u8], ours: &Option<OwnedValue>) {
    match (serde_json::from_slice::<serde_json::Value>(bytes), ours) {
        (Ok(theirs), Some(ours)) => assert!(is_json(&theirs, ours), "{theirs:?} {ours:?}"),
        (Err(_), None) => {}
        // They refuse floats beyond 64 bits, which are infinite here, and allow deeper nesting.
        (Err(error), Some(ours)) => {
            assert!(error.to_string().starts_with("number out of range"), "{error} {ours:?}")
        }
        (Ok(theirs), None) => assert!(depth(&theirs) > common::limits::DEPTH_MAX, "{theirs:?}"),
    }
}

fn depth(value: &serde_json::Value) -> usize {
    match value {
        serde_json::Value::Array(elements) => 1 + elements.iter().map(depth).max().unwrap_or(0),
        serde_json::Value::Object(entries) => 1 + entries.values().map(depth).max().unwrap_or(0),
        _ => 0,
    }
}

fn is_json(theirs: &serde_json::Value, ours: &OwnedValue) -> bool {
    match (theirs, ours) {
        (serde_json::Value::Null, OwnedValue::Null) => true,
        (serde_json::Value::Bool(theirs), OwnedValue::Bool(ours)) => theirs == ours,
        (serde_json::Value::Number(theirs), OwnedValue::UInt(ours)) => {
            theirs.as_u64() == Some(*ours) || *ours == 0 && theirs.as_f64() == Some(0.0)
        }
        (serde_json::Value::Number(theirs), OwnedValue::Int(ours)) => theirs.as_i64() == Some(*ours),
        // Their default reading of floats may be off by the last bits.
        (serde_json::Value::Number(theirs), OwnedValue::Float(ours)) => theirs
            .as_f64()
            .is_some_and(|theirs| (theirs - ours).abs() <= ours.abs() * 4e-15 + f64::from_bits(4)),
        (serde_json::Value::String(theirs), OwnedValue::Str(ours)) => theirs == ours,
        (serde_json::Value::String(theirs), OwnedValue::Bin(_)) => theirs.starts_with('\0'),
        (serde_json::Value::Array(theirs), OwnedValue::List(ours)) => {
            theirs.len() == ours.len() && theirs.iter().zip(ours).all(|(theirs, ours)| is_json(theirs, ours))
        }
        (serde_json::Value::Object(theirs), OwnedValue::Dict(_)) => {
            theirs.iter().all(|(key, theirs)| ours.get(key).is_some_and(|ours| is_json(theirs, ours)))
        }
        _ => false,
    }
}

fn msgpack(bytes: &[u8], ours: &Option<OwnedValue>) {
    let mut rest = bytes;
    let theirs = rmpv::decode::read_value_with_max_depth(&mut rest, 2 * common::limits::DEPTH_MAX);
    match (theirs, ours) {
        (Ok(theirs), Some(ours)) => {
            assert!(rest.is_empty());
            assert!(is_msgpack(&theirs, ours), "{theirs:?} {ours:?}");
        }
        (Err(error), Some(ours)) => panic!("{error} {ours:?}"),
        // They accept text that is not UTF-8, keys of all kinds and trailing bytes.
        (_, None) => {}
    }
}

fn is_msgpack(theirs: &rmpv::Value, ours: &OwnedValue) -> bool {
    match (theirs, ours) {
        (rmpv::Value::Nil | rmpv::Value::Ext(0, _), OwnedValue::Null) => true,
        (rmpv::Value::Ext(_, theirs), OwnedValue::Bin(ours)) => theirs == ours,
        (rmpv::Value::Boolean(theirs), OwnedValue::Bool(ours)) => theirs == ours,
        (rmpv::Value::Integer(theirs), OwnedValue::UInt(ours)) => theirs.as_u64() == Some(*ours),
        (rmpv::Value::Integer(theirs), OwnedValue::Int(ours)) => theirs.as_i64() == Some(*ours),
        (rmpv::Value::F32(theirs), OwnedValue::Float(ours)) => {
            f64::from(*theirs) == *ours || theirs.is_nan() && ours.is_nan()
        }
        (rmpv::Value::F64(theirs), OwnedValue::Float(ours)) => theirs.to_bits() == ours.to_bits(),
        (rmpv::Value::String(theirs), OwnedValue::Str(ours)) => theirs.as_str() == Some(ours),
        (rmpv::Value::Binary(theirs), OwnedValue::Bin(ours)) => theirs == ours,
        (rmpv::Value::Array(theirs), OwnedValue::List(ours)) => {
            theirs.len() == ours.len()
                && theirs.iter().zip(ours).all(|(theirs, ours)| is_msgpack(theirs, ours))
        }
        (rmpv::Value::Map(theirs), OwnedValue::Dict(ours)) => {
            theirs.len() == ours.len()
                && theirs.iter().zip(ours).all(|((_, theirs), (_, ours))| is_msgpack(theirs, ours))
        }
        _ => false,
    }
}

fn cbor(bytes: &[u8], ours: &Option<OwnedValue>) {
    let mut rest = bytes;
    let theirs = ciborium::de::from_reader_with_recursion_limit::<ciborium::Value, _>(&mut rest, 256);
    if let (Ok(theirs), Some(ours)) = (theirs, ours) {
        assert!(rest.is_empty());
        assert!(is_cbor(&theirs, ours), "{theirs:?} {ours:?}");
    }
}

fn is_cbor(theirs: &ciborium::Value, ours: &OwnedValue) -> bool {
    use ciborium::Value;
    match (theirs, ours) {
        // Bignums: compared by the tests.
        (Value::Tag(2 | 3, _), OwnedValue::UInt(_) | OwnedValue::Int(_) | OwnedValue::Float(_)) => true,
        (Value::Tag(_, theirs), ours) => is_cbor(theirs, ours),
        (Value::Null, OwnedValue::Null) => true,
        (Value::Bool(theirs), OwnedValue::Bool(ours)) => theirs == ours,
        (Value::Integer(theirs), OwnedValue::UInt(ours)) => i128::from(*theirs) == i128::from(*ours),
        (Value::Integer(theirs), OwnedValue::Int(ours)) => i128::from(*theirs) == i128::from(*ours),
        (Value::Integer(theirs), OwnedValue::Float(ours)) => i128::from(*theirs) as f64 == *ours,
        (Value::Float(theirs), OwnedValue::Float(ours)) => {
            theirs.to_bits() == ours.to_bits() || theirs.is_nan() && ours.is_nan()
        }
        (Value::Text(theirs), OwnedValue::Str(ours)) => theirs == ours,
        (Value::Bytes(theirs), OwnedValue::Bin(ours)) => theirs == ours,
        (Value::Array(theirs), OwnedValue::List(ours)) => {
            theirs.len() == ours.len() && theirs.iter().zip(ours).all(|(theirs, ours)| is_cbor(theirs, ours))
        }
        (Value::Map(theirs), OwnedValue::Dict(ours)) => {
            theirs.len() == ours.len()
                && theirs.iter().zip(ours).all(|((_, theirs), (_, ours))| is_cbor(theirs, ours))
        }
        _ => false,
    }
}
