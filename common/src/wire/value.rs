//! Values inside options and details: borrowed and shallow ([`Value`], [`Dict`], [`List`]) or owned ([`OwnedValue`]).

use super::cbor::CborReader;
use super::json::JsonReader;
use super::msgpack::MsgPackReader;
use super::reader::Reader;
use super::{OwnedValue, Serializer, Text};
use crate::ids::ID_MAX;
use std::borrow::Cow;

/// An encoded dictionary with string keys, checked to be well formed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Dict<'a> {
    serializer: Serializer,
    /// The whole encoded value; empty when the dictionary has no entry at all.
    bytes: &'a [u8],
}

/// An encoded list, checked to be well formed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct List<'a> {
    serializer: Serializer,
    /// The whole encoded value; may be empty when the list has no element at all.
    bytes: &'a [u8],
}

/// One value, not decoded below its first level. Undefined counts as null.
#[derive(Clone, PartialEq, Debug)]
pub enum Value<'a> {
    Null,
    Bool(bool),
    /// Every non-negative integer up to 2^64 - 1.
    UInt(u64),
    /// Only negative integers.
    Int(i64),
    Float(f64),
    Str(Text<'a>),
    Bin(Cow<'a, [u8]>),
    List(List<'a>),
    Dict(Dict<'a>),
}

impl<'a> Dict<'a> {
    /// A dictionary without entries.
    #[inline]
    pub const fn empty(serializer: Serializer) -> Self {
        Self { serializer, bytes: &[] }
    }

    #[inline]
    pub(super) const fn checked(serializer: Serializer, bytes: &'a [u8]) -> Self {
        Self { serializer, bytes }
    }

    #[inline]
    pub const fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    #[inline]
    pub const fn serializer(&self) -> Serializer {
        self.serializer
    }

    /// The whole encoded value; no bytes when the dictionary has no entry.
    #[inline]
    pub const fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// The entries in wire order. A key that appears twice is yielded twice. Entries whose key is no string, which only
    /// dictionaries inside of options and details can have, are passed over.
    pub fn iter(&self) -> impl Iterator<Item = (Text<'a>, Value<'a>)> + use<'a> {
        Entries(Items::open(self.serializer, self.bytes, true))
    }

    /// The last value under `key`; null counts as absent.
    pub fn get(&self, key: &str) -> Option<Value<'a>> {
        if self.bytes.is_empty() {
            return None;
        }
        let (_, value) = self.iter().filter(|(candidate, _)| candidate == key).last()?;
        if value == Value::Null { None } else { Some(value) }
    }

    pub fn to_owned(&self) -> OwnedValue {
        if self.bytes.is_empty() {
            return OwnedValue::Dict(Vec::new());
        }
        OwnedValue::decode(self.serializer, self.bytes).unwrap_or(OwnedValue::Dict(Vec::new()))
    }
}

impl<'a> List<'a> {
    #[inline]
    pub(super) const fn checked(serializer: Serializer, bytes: &'a [u8]) -> Self {
        Self { serializer, bytes }
    }

    pub fn iter(&self) -> impl Iterator<Item = Value<'a>> + use<'a> {
        Elements(Items::open(self.serializer, self.bytes, false))
    }

    pub fn to_owned(&self) -> OwnedValue {
        if self.bytes.is_empty() {
            return OwnedValue::List(Vec::new());
        }
        OwnedValue::decode(self.serializer, self.bytes).unwrap_or(OwnedValue::List(Vec::new()))
    }
}

/// The integer up to 2^53 that a float stands for.
pub(super) fn whole(value: f64) -> Option<u64> {
    let is_whole = value.fract() == 0.0 && (0.0..=ID_MAX as f64).contains(&value);
    is_whole.then_some(value as u64)
}

impl<'a> Value<'a> {
    #[inline]
    pub const fn is_null(&self) -> bool {
        matches!(self, Self::Null)
    }

    #[inline]
    pub const fn as_bool(&self) -> Option<bool> {
        if let Self::Bool(value) = self { Some(*value) } else { None }
    }

    #[inline]
    pub const fn as_u64(&self) -> Option<u64> {
        if let Self::UInt(value) = self { Some(*value) } else { None }
    }

    /// As [`Value::as_u64`], or a float without a fraction: clients in languages with one kind of number write ids beyond 32 bits
    /// so in MessagePack and CBOR.
    pub fn as_whole(&self) -> Option<u64> {
        if let Self::Float(value) = self { whole(*value) } else { self.as_u64() }
    }

    #[inline]
    pub fn as_str(&self) -> Option<&str> {
        if let Self::Str(value) = self { Some(value) } else { None }
    }

    #[inline]
    pub const fn as_list(&self) -> Option<List<'a>> {
        if let Self::List(value) = self { Some(*value) } else { None }
    }

    #[inline]
    pub const fn as_dict(&self) -> Option<Dict<'a>> {
        if let Self::Dict(value) = self { Some(*value) } else { None }
    }

    pub fn to_owned(&self) -> OwnedValue {
        match self {
            Self::Null => OwnedValue::Null,
            Self::Bool(value) => OwnedValue::Bool(*value),
            Self::UInt(value) => OwnedValue::UInt(*value),
            Self::Int(value) => OwnedValue::Int(*value),
            Self::Float(value) => OwnedValue::Float(*value),
            Self::Str(value) => OwnedValue::Str(value.to_string()),
            Self::Bin(value) => OwnedValue::Bin(value.to_vec()),
            Self::List(value) => value.to_owned(),
            Self::Dict(value) => value.to_owned(),
        }
    }
}

/// A reader inside a container. What cannot be read ends the iteration; checked bytes always can be.
enum Items<'a> {
    Json(JsonReader<'a>),
    MsgPack(MsgPackReader<'a>),
    Cbor(CborReader<'a>),
    Done,
}

struct Entries<'a>(Items<'a>);
struct Elements<'a>(Items<'a>);

impl<'a> Items<'a> {
    fn open(serializer: Serializer, bytes: &'a [u8], dict: bool) -> Self {
        if bytes.is_empty() {
            return Self::Done;
        }
        fn inside<'a, R: Reader<'a>>(bytes: &'a [u8], dict: bool) -> Option<R> {
            let mut reader = R::new(bytes).ok()?;
            if dict { reader.open_dict() } else { reader.open_list() }.ok()?;
            Some(reader)
        }
        match serializer {
            Serializer::Json => inside(bytes, dict).map(Self::Json),
            Serializer::MsgPack => inside(bytes, dict).map(Self::MsgPack),
            Serializer::Cbor => inside(bytes, dict).map(Self::Cbor),
        }
        .unwrap_or(Self::Done)
    }
}

fn next_entry<'a, R: Reader<'a>>(reader: &mut R) -> Option<(Text<'a>, Value<'a>)> {
    while reader.more().ok()? {
        let key = reader.key().ok()?;
        let value = reader.value().ok()?;
        if let Some(key) = key {
            return Some((key, value));
        }
    }
    None
}

fn next_element<'a, R: Reader<'a>>(reader: &mut R) -> Option<Value<'a>> {
    if reader.more().ok()? { reader.value().ok() } else { None }
}

impl<'a> Iterator for Entries<'a> {
    type Item = (Text<'a>, Value<'a>);

    fn next(&mut self) -> Option<Self::Item> {
        let next = match &mut self.0 {
            Items::Json(reader) => next_entry(reader),
            Items::MsgPack(reader) => next_entry(reader),
            Items::Cbor(reader) => next_entry(reader),
            Items::Done => None,
        };
        if next.is_none() {
            self.0 = Items::Done;
        }
        next
    }
}

impl<'a> Iterator for Elements<'a> {
    type Item = Value<'a>;

    fn next(&mut self) -> Option<Self::Item> {
        let next = match &mut self.0 {
            Items::Json(reader) => next_element(reader),
            Items::MsgPack(reader) => next_element(reader),
            Items::Cbor(reader) => next_element(reader),
            Items::Done => None,
        };
        if next.is_none() {
            self.0 = Items::Done;
        }
        next
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_float_is_an_integer_when_it_has_no_fraction_and_loses_none() {
        for (float, expected) in [
            (0.0, Some(0)),
            (7_656_119_800_000_001.0, Some(7_656_119_800_000_001)),
            (ID_MAX as f64, Some(ID_MAX)),
            (ID_MAX as f64 + 2.0, None),
            (1.5, None),
            (-1.0, None),
            (f64::NAN, None),
            (f64::INFINITY, None),
        ] {
            assert_eq!(Value::Float(float).as_whole(), expected, "{float}");
            assert_eq!(OwnedValue::Float(float).as_whole(), expected, "{float}");
        }
        assert_eq!(Value::UInt(5).as_whole(), Some(5));
        assert_eq!(Value::Str("5".into()).as_whole(), None);
    }
}
