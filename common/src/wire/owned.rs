//! A value as a tree.

use super::cbor::Cbor;
use super::json_text;
use super::msgpack::MsgPack;
use super::reader::{Fault, Sink};
use super::transcode;
use super::writer::Format;
use super::{Serializer, WireError};

/// A value as a tree, for details we write ourselves, for tests and for the load generator.
#[derive(Clone, PartialEq, Debug)]
pub enum OwnedValue {
    Null,
    Bool(bool),
    /// Every non-negative integer.
    UInt(u64),
    /// Negative integers. Others are written like `UInt`, and read as `UInt`.
    Int(i64),
    Float(f64),
    Str(String),
    Bin(Vec<u8>),
    List(Vec<OwnedValue>),
    Dict(Vec<(String, OwnedValue)>),
}

impl OwnedValue {
    /// A dictionary of the given entries.
    pub fn dict<K: Into<String>, V: Into<Self>>(entries: impl IntoIterator<Item = (K, V)>) -> Self {
        Self::Dict(entries.into_iter().map(|(key, value)| (key.into(), value.into())).collect())
    }

    /// A list of the given elements.
    pub fn list<V: Into<Self>>(elements: impl IntoIterator<Item = V>) -> Self {
        Self::List(elements.into_iter().map(Into::into).collect())
    }

    /// Appends the encoded value. Byte strings follow the JSON convention of WAMP (`\0` + base64) in JSON.
    pub fn encode(&self, serializer: Serializer, out: &mut Vec<u8>) {
        match serializer {
            Serializer::Json => self.put_json(out),
            Serializer::MsgPack => self.put::<MsgPack>(out),
            Serializer::Cbor => self.put::<Cbor>(out),
        }
    }

    /// The encoded value.
    pub fn to_bytes(&self, serializer: Serializer) -> Vec<u8> {
        let mut out = Vec::new();
        self.encode(serializer, &mut out);
        out
    }

    /// Decodes exactly one value that fills `bytes`. Keys that are integers or booleans become their text; other keys that
    /// are no strings are [`WireError::Key`].
    pub fn decode(serializer: Serializer, bytes: &[u8]) -> Result<Self, WireError> {
        let mut builder = Builder::default();
        transcode::feed(serializer, bytes, &mut builder)?;
        Ok(builder.whole.unwrap_or(Self::Null))
    }

    pub(super) fn put<F: Format>(&self, out: &mut Vec<u8>) {
        match self {
            Self::Null => F::null(out),
            Self::Bool(value) => F::bool(out, *value),
            Self::UInt(value) => F::uint(out, *value),
            Self::Int(value) => F::int(out, *value),
            Self::Float(value) => F::f64(out, *value),
            Self::Str(value) => F::str(out, value),
            Self::Bin(value) => F::bin(out, value),
            Self::List(elements) => {
                F::list(out, elements.len());
                for element in elements {
                    element.put::<F>(out);
                }
            }
            Self::Dict(entries) => {
                F::dict(out, entries.len());
                for (key, value) in entries {
                    F::str(out, key);
                    value.put::<F>(out);
                }
            }
        }
    }

    pub(super) fn put_json(&self, out: &mut Vec<u8>) {
        match self {
            Self::Null => out.extend_from_slice(b"null"),
            Self::Bool(true) => out.extend_from_slice(b"true"),
            Self::Bool(false) => out.extend_from_slice(b"false"),
            Self::UInt(value) => json_text::put_uint(out, *value),
            Self::Int(value) => json_text::put_int(out, *value),
            Self::Float(value) => json_text::put_float(out, *value),
            Self::Str(value) => json_text::put_str(out, value),
            Self::Bin(value) => json_text::put_bin(out, value),
            Self::List(elements) => {
                out.push(b'[');
                for (index, element) in elements.iter().enumerate() {
                    if index > 0 {
                        out.push(b',');
                    }
                    element.put_json(out);
                }
                out.push(b']');
            }
            Self::Dict(entries) => {
                out.push(b'{');
                for (index, (key, value)) in entries.iter().enumerate() {
                    if index > 0 {
                        out.push(b',');
                    }
                    json_text::put_str(out, key);
                    out.push(b':');
                    value.put_json(out);
                }
                out.push(b'}');
            }
        }
    }

    /// The last value under `key` of a dictionary.
    pub fn get(&self, key: &str) -> Option<&Self> {
        self.as_dict()?.iter().rev().find(|(candidate, _)| candidate == key).map(|(_, value)| value)
    }

    pub const fn is_null(&self) -> bool {
        matches!(self, Self::Null)
    }

    pub const fn as_bool(&self) -> Option<bool> {
        if let Self::Bool(value) = self { Some(*value) } else { None }
    }

    pub const fn as_u64(&self) -> Option<u64> {
        match self {
            Self::UInt(value) => Some(*value),
            Self::Int(value) if *value >= 0 => Some(*value as u64),
            _ => None,
        }
    }

    /// As [`Value::as_whole`](super::Value::as_whole).
    pub fn as_whole(&self) -> Option<u64> {
        if let Self::Float(value) = self { super::value::whole(*value) } else { self.as_u64() }
    }

    pub const fn as_i64(&self) -> Option<i64> {
        match self {
            Self::Int(value) => Some(*value),
            Self::UInt(value) if *value <= i64::MAX as u64 => Some(*value as i64),
            _ => None,
        }
    }

    pub const fn as_f64(&self) -> Option<f64> {
        if let Self::Float(value) = self { Some(*value) } else { None }
    }

    pub fn as_str(&self) -> Option<&str> {
        if let Self::Str(value) = self { Some(value) } else { None }
    }

    pub fn as_bin(&self) -> Option<&[u8]> {
        if let Self::Bin(value) = self { Some(value) } else { None }
    }

    pub fn as_list(&self) -> Option<&[Self]> {
        if let Self::List(value) = self { Some(value) } else { None }
    }

    pub fn as_dict(&self) -> Option<&[(String, Self)]> {
        if let Self::Dict(value) = self { Some(value) } else { None }
    }
}

macro_rules! from {
    ($($from:ty => |$value:ident| $to:expr;)*) => {
        $(impl From<$from> for OwnedValue {
            fn from($value: $from) -> Self {
                $to
            }
        })*
    };
}

from! {
    bool => |value| Self::Bool(value);
    u8 => |value| Self::UInt(value.into());
    u16 => |value| Self::UInt(value.into());
    u32 => |value| Self::UInt(value.into());
    u64 => |value| Self::UInt(value);
    usize => |value| Self::UInt(value as u64);
    i32 => |value| Self::from(i64::from(value));
    i64 => |value| u64::try_from(value).map_or(Self::Int(value), Self::UInt);
    f64 => |value| Self::Float(value);
    &str => |value| Self::Str(value.to_owned());
    String => |value| Self::Str(value);
    &[u8] => |value| Self::Bin(value.to_vec());
    Vec<u8> => |value| Self::Bin(value);
    Vec<OwnedValue> => |value| Self::List(value);
    Vec<(String, OwnedValue)> => |value| Self::Dict(value);
}

/// Builds a tree. Nothing is reserved on the word of a count.
#[derive(Default)]
struct Builder {
    open: Vec<Branch>,
    whole: Option<OwnedValue>,
}

enum Branch {
    List(Vec<OwnedValue>),
    Dict { entries: Vec<(String, OwnedValue)>, key: Option<String> },
}

impl Builder {
    fn put(&mut self, value: OwnedValue) -> Result<(), Fault> {
        match self.open.last_mut() {
            None => self.whole = Some(value),
            Some(Branch::List(elements)) => elements.push(value),
            Some(Branch::Dict { entries, key }) => match key.take() {
                Some(key) => entries.push((key, value)),
                None => *key = Some(key_text(value)?),
            },
        }
        Ok(())
    }

    fn at_key(&self) -> bool {
        matches!(self.open.last(), Some(Branch::Dict { key: None, .. }))
    }

    fn begin(&mut self, branch: Branch) -> Result<(), Fault> {
        if self.at_key() {
            return Err(Fault::Key);
        }
        self.open.push(branch);
        Ok(())
    }
}

/// A key in JSON's terms.
fn key_text(value: OwnedValue) -> Result<String, Fault> {
    match value {
        OwnedValue::Str(text) => Ok(text),
        OwnedValue::UInt(value) => Ok(value.to_string()),
        OwnedValue::Int(value) => Ok(value.to_string()),
        OwnedValue::Bool(value) => Ok(value.to_string()),
        _ => Err(Fault::Key),
    }
}

impl Sink for Builder {
    fn null(&mut self) -> Result<(), Fault> {
        self.put(OwnedValue::Null)
    }

    fn bool(&mut self, value: bool) -> Result<(), Fault> {
        self.put(OwnedValue::Bool(value))
    }

    fn uint(&mut self, value: u64) -> Result<(), Fault> {
        self.put(OwnedValue::UInt(value))
    }

    fn int(&mut self, value: i64) -> Result<(), Fault> {
        self.put(OwnedValue::Int(value))
    }

    fn f32(&mut self, value: f32) -> Result<(), Fault> {
        self.put(OwnedValue::Float(value.into()))
    }

    fn f64(&mut self, value: f64) -> Result<(), Fault> {
        self.put(OwnedValue::Float(value))
    }

    fn str(&mut self, value: &str) -> Result<(), Fault> {
        self.put(OwnedValue::Str(value.to_owned()))
    }

    fn bin(&mut self, value: &[u8]) -> Result<(), Fault> {
        self.put(OwnedValue::Bin(value.to_vec()))
    }

    fn list(&mut self, _: Option<usize>) -> Result<(), Fault> {
        self.begin(Branch::List(Vec::new()))
    }

    fn dict(&mut self, _: Option<usize>) -> Result<(), Fault> {
        self.begin(Branch::Dict { entries: Vec::new(), key: None })
    }

    fn end(&mut self) -> Result<(), Fault> {
        match self.open.pop().expect("every end follows its beginning") {
            Branch::List(elements) => self.put(OwnedValue::List(elements)),
            Branch::Dict { entries, .. } => self.put(OwnedValue::Dict(entries)),
        }
    }
}
