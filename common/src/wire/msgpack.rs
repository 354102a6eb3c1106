//! MessagePack (https://github.com/msgpack/msgpack/blob/master/spec.md).
//!
//! Extension type 0 counts as null: that is how JavaScript clients write `undefined`. Other extensions are accepted where
//! nobody looks at them, and become byte strings elsewhere.

use super::reader::{Fault, Nothing, OPEN_IN_MESSAGE, Reader, Sink};
use super::writer::Format;
use super::{Dict, List, Serializer, Text, Value, utf8};
use crate::limits::DEPTH_MAX;
use arrayvec::ArrayVec;
use std::borrow::Cow;

pub(super) struct MsgPackReader<'a> {
    bytes: &'a [u8],
    at: usize,
    /// Elements or entries of the open container still to come.
    left: usize,
}

const EMPTY_DICT: u8 = 0x80;

/// One value without its children.
enum Item<'a> {
    Null,
    Bool(bool),
    UInt(u64),
    Int(i64),
    F32(f32),
    F64(f64),
    Str(&'a [u8]),
    Bin(&'a [u8]),
    /// Elements.
    List(usize),
    /// Entries.
    Dict(usize),
}

impl<'a> MsgPackReader<'a> {
    #[inline(always)]
    fn byte(&mut self) -> Result<u8, Fault> {
        let byte = *self.bytes.get(self.at).ok_or(Fault::End)?;
        self.at += 1;
        Ok(byte)
    }

    #[inline(always)]
    fn array<const N: usize>(&mut self) -> Result<[u8; N], Fault> {
        let chunk = self.bytes.get(self.at..).and_then(<[u8]>::first_chunk::<N>).ok_or(Fault::End)?;
        self.at += N;
        Ok(*chunk)
    }

    #[inline(always)]
    fn be16(&mut self) -> Result<usize, Fault> {
        self.array().map(|bytes| usize::from(u16::from_be_bytes(bytes)))
    }

    #[inline(always)]
    fn be32(&mut self) -> Result<usize, Fault> {
        self.array().map(|bytes| u32::from_be_bytes(bytes) as usize)
    }

    #[inline(always)]
    fn take(&mut self, len: usize) -> Result<&'a [u8], Fault> {
        let rest = self.bytes.get(self.at..).ok_or(Fault::End)?;
        let taken = rest.get(..len).ok_or(Fault::Claim)?;
        self.at += len;
        Ok(taken)
    }

    /// A count of things that take at least `bytes_each` bytes.
    #[inline(always)]
    fn claim(&self, count: usize, bytes_each: usize) -> Result<usize, Fault> {
        if count > (self.bytes.len() - self.at) / bytes_each { Err(Fault::Claim) } else { Ok(count) }
    }

    fn ext(&mut self, len: usize) -> Result<Item<'a>, Fault> {
        let kind = self.byte()?;
        let data = self.take(len)?;
        Ok(if kind == 0 { Item::Null } else { Item::Bin(data) })
    }

    #[inline(always)]
    fn item(&mut self) -> Result<Item<'a>, Fault> {
        let marker = self.byte()?;
        Ok(match marker {
            0x00..=0x7f => Item::UInt(u64::from(marker)),
            0x80..=0x8f => Item::Dict(self.claim(usize::from(marker & 0x0f), 2)?),
            0x90..=0x9f => Item::List(self.claim(usize::from(marker & 0x0f), 1)?),
            0xa0..=0xbf => Item::Str(self.take(usize::from(marker & 0x1f))?),
            0xc0 => Item::Null,
            0xc1 => return Err(Fault::Reserved),
            0xc2 => Item::Bool(false),
            0xc3 => Item::Bool(true),
            0xc4 => {
                let len = usize::from(self.byte()?);
                Item::Bin(self.take(len)?)
            }
            0xc5 => {
                let len = self.be16()?;
                Item::Bin(self.take(len)?)
            }
            0xc6 => {
                let len = self.be32()?;
                Item::Bin(self.take(len)?)
            }
            0xc7 => {
                let len = usize::from(self.byte()?);
                self.ext(len)?
            }
            0xc8 => {
                let len = self.be16()?;
                self.ext(len)?
            }
            0xc9 => {
                let len = self.be32()?;
                self.ext(len)?
            }
            0xca => Item::F32(f32::from_be_bytes(self.array()?)),
            0xcb => Item::F64(f64::from_be_bytes(self.array()?)),
            0xcc => Item::UInt(u64::from(self.byte()?)),
            0xcd => Item::UInt(u64::from(u16::from_be_bytes(self.array()?))),
            0xce => Item::UInt(u64::from(u32::from_be_bytes(self.array()?))),
            0xcf => Item::UInt(u64::from_be_bytes(self.array()?)),
            0xd0 => signed(i64::from(i8::from_be_bytes(self.array()?))),
            0xd1 => signed(i64::from(i16::from_be_bytes(self.array()?))),
            0xd2 => signed(i64::from(i32::from_be_bytes(self.array()?))),
            0xd3 => signed(i64::from_be_bytes(self.array()?)),
            0xd4 => self.ext(1)?,
            0xd5 => self.ext(2)?,
            0xd6 => self.ext(4)?,
            0xd7 => self.ext(8)?,
            0xd8 => self.ext(16)?,
            0xd9 => {
                let len = usize::from(self.byte()?);
                Item::Str(self.take(len)?)
            }
            0xda => {
                let len = self.be16()?;
                Item::Str(self.take(len)?)
            }
            0xdb => {
                let len = self.be32()?;
                Item::Str(self.take(len)?)
            }
            0xdc => {
                let count = self.be16()?;
                Item::List(self.claim(count, 1)?)
            }
            0xdd => {
                let count = self.be32()?;
                Item::List(self.claim(count, 1)?)
            }
            0xde => {
                let count = self.be16()?;
                Item::Dict(self.claim(count, 2)?)
            }
            0xdf => {
                let count = self.be32()?;
                Item::Dict(self.claim(count, 2)?)
            }
            0xe0..=0xff => Item::Int(i64::from(marker as i8)),
        })
    }

    /// Checks the entries of a dictionary whose header was read.
    #[inline]
    fn entries(&mut self, count: usize) -> Result<(), Fault> {
        for _ in 0..count {
            match self.item()? {
                Item::Str(key) if utf8::text(key).is_some() => {}
                Item::Str(_) => return Err(Fault::Utf8),
                _ => return Err(Fault::Kind),
            }
            self.skip()?;
        }
        Ok(())
    }

    /// Checks one value inside the arguments, options or details of a message.
    #[inline(always)]
    fn skip(&mut self) -> Result<(), Fault> {
        // The walk has a stack to set up, which the scalars that most arguments are do not need.
        let len = match self.bytes.get(self.at) {
            Some(0x00..=0x7f | 0xe0..=0xff | 0xc0 | 0xc2 | 0xc3) => {
                self.at += 1;
                return Ok(());
            }
            Some(marker @ 0xa0..=0xbf) => {
                self.at += 1;
                usize::from(marker & 0x1f)
            }
            Some(0xd9) => {
                self.at += 1;
                usize::from(self.byte()?)
            }
            _ => return self.walk(&mut Nothing, OPEN_IN_MESSAGE + 1),
        };
        let bytes = self.take(len)?;
        if utf8::text(bytes).is_some() { Ok(()) } else { Err(Fault::Utf8) }
    }

    /// A dictionary with string keys, or null; no bytes when it has no entry.
    fn other_options(&mut self) -> Result<&'a [u8], Fault> {
        let start = self.at;
        match self.item()? {
            Item::Null | Item::Dict(0) => return Ok(&[]),
            Item::Dict(count) => self.entries(count)?,
            _ => return Err(Fault::Kind),
        }
        Ok(&self.bytes[start..self.at])
    }

    /// The rarer encodings of an unsigned integer, whose marker was just read.
    #[cold]
    fn other_uint(&mut self) -> Result<u64, Fault> {
        self.at -= 1;
        if let Item::UInt(value) = self.item()? { Ok(value) } else { Err(Fault::Kind) }
    }

    /// The rarer encodings of a string, whose marker was just read.
    #[cold]
    fn other_text(&mut self) -> Result<&'a [u8], Fault> {
        self.at -= 1;
        if let Item::Str(bytes) = self.item()? { Ok(bytes) } else { Err(Fault::Kind) }
    }
}

#[inline(always)]
fn signed<'a>(value: i64) -> Item<'a> {
    if value < 0 { Item::Int(value) } else { Item::UInt(value as u64) }
}

impl<'a> Reader<'a> for MsgPackReader<'a> {
    const SERIALIZER: Serializer = Serializer::MsgPack;

    #[inline]
    fn new(bytes: &'a [u8]) -> Result<Self, Fault> {
        Ok(Self { bytes, at: 0, left: 0 })
    }

    #[inline]
    fn position(&self) -> usize {
        self.at
    }

    #[inline]
    fn open_list(&mut self) -> Result<(), Fault> {
        let Item::List(count) = self.item()? else { return Err(Fault::Kind) };
        self.left = count;
        Ok(())
    }

    #[inline]
    fn open_dict(&mut self) -> Result<(), Fault> {
        let Item::Dict(count) = self.item()? else { return Err(Fault::Kind) };
        self.left = count;
        Ok(())
    }

    #[inline(always)]
    fn more(&mut self) -> Result<bool, Fault> {
        if self.left == 0 {
            return Ok(false);
        }
        self.left -= 1;
        Ok(true)
    }

    #[inline]
    fn finish(&mut self) -> Result<(), Fault> {
        if self.at == self.bytes.len() { Ok(()) } else { Err(Fault::Trailing) }
    }

    #[inline(always)]
    fn uint(&mut self) -> Result<u64, Fault> {
        match self.byte()? {
            small @ 0x00..=0x7f => Ok(u64::from(small)),
            0xcd => Ok(u64::from(u16::from_be_bytes(self.array()?))),
            0xce => Ok(u64::from(u32::from_be_bytes(self.array()?))),
            0xcf => Ok(u64::from_be_bytes(self.array()?)),
            _ => self.other_uint(),
        }
    }

    #[inline(always)]
    fn text(&mut self) -> Result<Text<'a>, Fault> {
        let bytes = match self.byte()? {
            marker @ 0xa0..=0xbf => self.take(usize::from(marker & 0x1f))?,
            0xd9 => {
                let len = usize::from(self.byte()?);
                self.take(len)?
            }
            _ => self.other_text()?,
        };
        utf8::text(bytes).map(Cow::Borrowed).ok_or(Fault::Utf8)
    }

    #[inline(always)]
    fn list(&mut self) -> Result<Option<&'a [u8]>, Fault> {
        let start = self.at;
        match self.item()? {
            Item::Null => return Ok(None),
            Item::List(count) => {
                for _ in 0..count {
                    self.skip()?;
                }
            }
            _ => return Err(Fault::Kind),
        }
        Ok(Some(&self.bytes[start..self.at]))
    }

    #[inline(always)]
    fn dict(&mut self) -> Result<Option<&'a [u8]>, Fault> {
        let start = self.at;
        match self.item()? {
            Item::Null => return Ok(None),
            Item::Dict(count) => self.entries(count)?,
            _ => return Err(Fault::Kind),
        }
        Ok(Some(&self.bytes[start..self.at]))
    }

    #[inline(always)]
    fn options(&mut self) -> Result<&'a [u8], Fault> {
        let start = self.at;
        if self.bytes.get(start) == Some(&EMPTY_DICT) {
            self.at += 1;
            return Ok(&[]);
        }
        self.other_options()
    }

    fn key(&mut self) -> Result<Option<Text<'a>>, Fault> {
        let start = self.at;
        match self.item()? {
            Item::Str(bytes) => utf8::text(bytes).map(|text| Some(Cow::Borrowed(text))).ok_or(Fault::Utf8),
            _ => {
                self.at = start;
                self.walk(&mut Nothing, OPEN_IN_MESSAGE).map(|()| None)
            }
        }
    }

    fn value(&mut self) -> Result<Value<'a>, Fault> {
        let start = self.at;
        let item = self.item()?;
        if let Item::List(count) | Item::Dict(count) = item {
            self.at = start;
            self.walk(&mut Nothing, OPEN_IN_MESSAGE)?;
            let bytes = if count == 0 { &[] } else { &self.bytes[start..self.at] };
            return Ok(match item {
                Item::List(_) => Value::List(List::checked(Serializer::MsgPack, bytes)),
                _ => Value::Dict(Dict::checked(Serializer::MsgPack, bytes)),
            });
        }
        Ok(match item {
            Item::Null | Item::List(_) | Item::Dict(_) => Value::Null,
            Item::Bool(value) => Value::Bool(value),
            Item::UInt(value) => Value::UInt(value),
            Item::Int(value) => Value::Int(value),
            Item::F32(value) => Value::Float(f64::from(value)),
            Item::F64(value) => Value::Float(value),
            Item::Str(bytes) => Value::Str(Cow::Borrowed(utf8::text(bytes).ok_or(Fault::Utf8)?)),
            Item::Bin(bytes) => Value::Bin(Cow::Borrowed(bytes)),
        })
    }

    #[inline]
    fn walk<S: Sink>(&mut self, sink: &mut S, open: usize) -> Result<(), Fault> {
        let mut parents = ArrayVec::<usize, DEPTH_MAX>::new();
        // Items to come at this level; those of the levels above wait in `parents`.
        let mut left = 1;
        loop {
            left -= 1;
            let children = match self.item()? {
                Item::Null => {
                    sink.null()?;
                    None
                }
                Item::Bool(value) => {
                    sink.bool(value)?;
                    None
                }
                Item::UInt(value) => {
                    sink.uint(value)?;
                    None
                }
                Item::Int(value) => {
                    sink.int(value)?;
                    None
                }
                Item::F32(value) => {
                    sink.f32(value)?;
                    None
                }
                Item::F64(value) => {
                    sink.f64(value)?;
                    None
                }
                Item::Str(bytes) => {
                    sink.str(utf8::text(bytes).ok_or(Fault::Utf8)?)?;
                    None
                }
                Item::Bin(bytes) => {
                    sink.bin(bytes)?;
                    None
                }
                Item::List(count) => {
                    sink.list(Some(count))?;
                    Some(count)
                }
                Item::Dict(count) => {
                    sink.dict(Some(count))?;
                    Some(2 * count)
                }
            };
            if let Some(children) = children {
                if open + parents.len() >= DEPTH_MAX {
                    return Err(Fault::Depth);
                }
                parents.push(left);
                left = children;
            }
            while left == 0 {
                let Some(parent) = parents.pop() else { return Ok(()) };
                sink.end()?;
                left = parent;
            }
        }
    }
}

/// Writes MessagePack, every number in its shortest form.
pub(super) struct MsgPack;

impl Format for MsgPack {
    const SMALL_COUNT_MAX: usize = 15;

    #[inline]
    fn null(out: &mut Vec<u8>) {
        out.push(0xc0);
    }

    #[inline]
    fn bool(out: &mut Vec<u8>, value: bool) {
        out.push(0xc2 + u8::from(value));
    }

    #[inline]
    fn uint(out: &mut Vec<u8>, value: u64) {
        match value {
            0..=0x7f => out.push(value as u8),
            0x80..=0xff => out.extend_from_slice(&[0xcc, value as u8]),
            0x100..=0xffff => put(out, 0xcd, (value as u16).to_be_bytes()),
            0x1_0000..=0xffff_ffff => put(out, 0xce, (value as u32).to_be_bytes()),
            _ => put(out, 0xcf, value.to_be_bytes()),
        }
    }

    #[inline]
    fn int(out: &mut Vec<u8>, value: i64) {
        match value {
            0.. => Self::uint(out, value as u64),
            -0x20..=-1 => out.push(value as u8),
            -0x80..=-0x21 => out.extend_from_slice(&[0xd0, value as u8]),
            -0x8000..=-0x81 => put(out, 0xd1, (value as i16).to_be_bytes()),
            -0x8000_0000..=-0x8001 => put(out, 0xd2, (value as i32).to_be_bytes()),
            _ => put(out, 0xd3, value.to_be_bytes()),
        }
    }

    #[inline]
    fn f32(out: &mut Vec<u8>, value: f32) {
        put(out, 0xca, value.to_be_bytes());
    }

    #[inline]
    fn f64(out: &mut Vec<u8>, value: f64) {
        put(out, 0xcb, value.to_be_bytes());
    }

    #[inline]
    fn str(out: &mut Vec<u8>, value: &str) {
        match value.len() {
            len @ 0..=0x1f => out.push(0xa0 | len as u8),
            len @ 0x20..=0xff => out.extend_from_slice(&[0xd9, len as u8]),
            len @ 0x100..=0xffff => put(out, 0xda, (len as u16).to_be_bytes()),
            len => put(out, 0xdb, len32(len).to_be_bytes()),
        }
        out.extend_from_slice(value.as_bytes());
    }

    #[inline]
    fn bin(out: &mut Vec<u8>, value: &[u8]) {
        match value.len() {
            len @ 0..=0xff => out.extend_from_slice(&[0xc4, len as u8]),
            len @ 0x100..=0xffff => put(out, 0xc5, (len as u16).to_be_bytes()),
            len => put(out, 0xc6, len32(len).to_be_bytes()),
        }
        out.extend_from_slice(value);
    }

    #[inline]
    fn list(out: &mut Vec<u8>, count: usize) {
        match count {
            0..=0x0f => out.push(0x90 | count as u8),
            0x10..=0xffff => put(out, 0xdc, (count as u16).to_be_bytes()),
            _ => put(out, 0xdd, len32(count).to_be_bytes()),
        }
    }

    #[inline]
    fn dict(out: &mut Vec<u8>, count: usize) {
        match count {
            0..=0x0f => out.push(0x80 | count as u8),
            0x10..=0xffff => put(out, 0xde, (count as u16).to_be_bytes()),
            _ => put(out, 0xdf, len32(count).to_be_bytes()),
        }
    }
}

#[inline]
fn put<const N: usize>(out: &mut Vec<u8>, marker: u8, bytes: [u8; N]) {
    // One copy of at most nine bytes, so that the vector's room is checked once.
    let mut buffer = [0; 9];
    buffer[0] = marker;
    buffer[1..=N].copy_from_slice(&bytes);
    out.extend_from_slice(&buffer[..=N]);
}

fn len32(len: usize) -> u32 {
    u32::try_from(len).expect("messages are far smaller than 4 GiB")
}
