//! Values inside options and details: borrowed and shallow ([`Value`], [`Dict`], [`List`]) or owned ([`OwnedValue`]).

use super::{Serializer, Text, WireError};
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
    pub const fn empty(serializer: Serializer) -> Self {
        Self { serializer, bytes: &[] }
    }

    #[inline]
    pub const fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    pub const fn serializer(&self) -> Serializer {
        self.serializer
    }

    /// The entries in wire order. A key that appears twice is yielded twice.
    pub fn iter(&self) -> impl Iterator<Item = (Text<'a>, Value<'a>)> + use<'a> {
        std::iter::empty()
    }

    /// The last value under `key`; null counts as absent.
    pub fn get(&self, key: &str) -> Option<Value<'a>> {
        let _ = key;
        unimplemented!()
    }

    pub fn to_owned(&self) -> OwnedValue {
        unimplemented!()
    }
}

impl<'a> List<'a> {
    pub fn iter(&self) -> impl Iterator<Item = Value<'a>> + use<'a> {
        let _ = (self.serializer, self.bytes);
        std::iter::empty()
    }
}

/// A value as a tree, for details we write ourselves, for tests and for the load generator.
#[derive(Clone, PartialEq, Debug)]
pub enum OwnedValue {
    Null,
    Bool(bool),
    UInt(u64),
    Int(i64),
    Float(f64),
    Str(String),
    Bin(Vec<u8>),
    List(Vec<OwnedValue>),
    Dict(Vec<(String, OwnedValue)>),
}

impl OwnedValue {
    /// Appends the encoded value. Byte strings follow the JSON convention of WAMP (`\0` + base64) in JSON.
    pub fn encode(&self, serializer: Serializer, out: &mut Vec<u8>) {
        let _ = (serializer, out);
        unimplemented!()
    }

    /// Decodes exactly one value that fills `bytes`.
    pub fn decode(serializer: Serializer, bytes: &[u8]) -> Result<Self, WireError> {
        let _ = (serializer, bytes);
        unimplemented!()
    }
}
