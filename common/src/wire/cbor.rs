//! CBOR (RFC 8949), definite and indefinite lengths.
//!
//! Tags are accepted and looked through, except on bignums (tags 2 and 3), which are numbers. Simple values without a
//! meaning count as null, as does `undefined`.

use super::reader::{Fault, Nothing, OPEN_IN_MESSAGE, Reader, Sink};
use super::writer::Format;
use super::{Dict, List, Serializer, Text, Value, utf8};
use crate::limits::DEPTH_MAX;
use arrayvec::ArrayVec;
use std::borrow::Cow;

pub(super) struct CborReader<'a> {
    bytes: &'a [u8],
    at: usize,
    /// Elements or entries of the open container still to come; [`UNTIL_BREAK`] when its length is indefinite.
    left: usize,
}

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
    /// An unsigned big-endian number n, or -1 - n.
    Big {
        bytes: &'a [u8],
        negative: bool,
    },
    /// The chunks of a string follow, to be read with `chunks`.
    StrChunks,
    BinChunks,
    /// Elements; `None` when a break ends them.
    List(Option<usize>),
    /// Entries; `None` when a break ends them.
    Dict(Option<usize>),
}

/// A number read from a bignum.
enum Number {
    UInt(u64),
    Int(i64),
    Float(f64),
}

const BREAK: u8 = 0xff;
const EMPTY_DICT: u8 = 0xa0;
const MAJOR_BYTES: u8 = 2;
const MAJOR_TEXT: u8 = 3;
const MAJOR_TAG: u8 = 6;
const TAG_BIG_UINT: u64 = 2;
const TAG_BIG_INT: u64 = 3;
/// A tag number RFC 8949 sets aside as never valid.
const TAG_NONE: u64 = u64::MAX;

/// Stand-ins for the number of items left where a break ends them. No claim is as large, because a claim is at most
/// the length of the input. The last two tell which half of an entry comes next.
const UNTIL_BREAK: usize = usize::MAX;
const UNTIL_BREAK_KEY: usize = usize::MAX - 1;
const UNTIL_BREAK_VALUE: usize = usize::MAX - 2;

impl<'a> CborReader<'a> {
    #[inline(always)]
    fn byte(&mut self) -> Result<u8, Fault> {
        let byte = self.peek()?;
        self.at += 1;
        Ok(byte)
    }

    #[inline(always)]
    fn peek(&self) -> Result<u8, Fault> {
        self.bytes.get(self.at).copied().ok_or(Fault::End)
    }

    #[inline(always)]
    fn array<const N: usize>(&mut self) -> Result<[u8; N], Fault> {
        let chunk = self.bytes.get(self.at..).and_then(<[u8]>::first_chunk::<N>).ok_or(Fault::End)?;
        self.at += N;
        Ok(*chunk)
    }

    /// The argument of a head whose additional information is `info`; not for 31.
    #[inline(always)]
    fn argument(&mut self, info: u8) -> Result<u64, Fault> {
        Ok(match info {
            0..=23 => u64::from(info),
            24 => u64::from(self.byte()?),
            25 => u64::from(u16::from_be_bytes(self.array()?)),
            26 => u64::from(u32::from_be_bytes(self.array()?)),
            27 => u64::from_be_bytes(self.array()?),
            _ => return Err(Fault::Reserved),
        })
    }

    #[inline(always)]
    fn take(&mut self, info: u8) -> Result<&'a [u8], Fault> {
        let len = usize::try_from(self.argument(info)?).map_err(|_| Fault::Claim)?;
        let rest = self.bytes.get(self.at..).ok_or(Fault::End)?;
        let taken = rest.get(..len).ok_or(Fault::Claim)?;
        self.at += len;
        Ok(taken)
    }

    /// A count of things that take at least `bytes_each` bytes.
    #[inline(always)]
    fn claim(&mut self, info: u8, bytes_each: usize) -> Result<Option<usize>, Fault> {
        if info == 31 {
            return Ok(None);
        }
        let count = self.argument(info)?;
        if count > ((self.bytes.len() - self.at) / bytes_each) as u64 {
            return Err(Fault::Claim);
        }
        Ok(Some(count as usize))
    }

    #[inline(always)]
    fn item(&mut self) -> Result<Item<'a>, Fault> {
        let mut head = self.byte()?;
        let mut tag = TAG_NONE;
        if head >> 5 == MAJOR_TAG {
            (tag, head) = self.tags(head)?;
        }
        let info = head & 0x1f;
        Ok(match head >> 5 {
            0 => Item::UInt(self.argument(info)?),
            1 => {
                let value = self.argument(info)?;
                i64::try_from(value).map_or(Item::F64(below_zero(value)), |value| Item::Int(!value))
            }
            MAJOR_BYTES if info == 31 => Item::BinChunks,
            MAJOR_BYTES => {
                let bytes = self.take(info)?;
                match tag {
                    TAG_BIG_UINT | TAG_BIG_INT => Item::Big { bytes, negative: tag == TAG_BIG_INT },
                    _ => Item::Bin(bytes),
                }
            }
            MAJOR_TEXT if info == 31 => Item::StrChunks,
            MAJOR_TEXT => Item::Str(self.take(info)?),
            4 => Item::List(self.claim(info, 1)?),
            5 => Item::Dict(self.claim(info, 2)?),
            _ => self.simple(info)?,
        })
    }

    /// Reads past tags: the innermost one and the head that follows it. A tag costs us nothing, but a receiver that
    /// gets these bytes as they are may nest with each, so they are bounded like nesting.
    #[cold]
    fn tags(&mut self, mut head: u8) -> Result<(u64, u8), Fault> {
        let mut tag = TAG_NONE;
        let mut tags = 0;
        while head >> 5 == MAJOR_TAG {
            tags += 1;
            if tags > DEPTH_MAX {
                return Err(Fault::Depth);
            }
            tag = self.argument(head & 0x1f)?;
            head = self.byte()?;
        }
        Ok((tag, head))
    }

    /// Moves to the head of the next value, past its tags.
    #[inline(always)]
    fn skip_tags(&mut self) -> Result<(), Fault> {
        let head = self.peek()?;
        if head >> 5 == MAJOR_TAG {
            self.at += 1;
            self.tags(head)?;
            self.at -= 1;
        }
        Ok(())
    }

    #[inline]
    fn simple(&mut self, info: u8) -> Result<Item<'a>, Fault> {
        Ok(match info {
            20 => Item::Bool(false),
            21 => Item::Bool(true),
            0..=23 => Item::Null,
            24 if self.byte()? < 32 => return Err(Fault::Reserved),
            24 => Item::Null,
            25 => Item::F32(half(u16::from_be_bytes(self.array()?))),
            26 => Item::F32(f32::from_be_bytes(self.array()?)),
            27 => Item::F64(f64::from_be_bytes(self.array()?)),
            31 => return Err(Fault::Break),
            _ => return Err(Fault::Reserved),
        })
    }

    /// Reads the chunks of a string of `major` type up to their break (RFC 8949, 3.2.3), each with `take`.
    fn chunks(&mut self, major: u8, mut take: impl FnMut(&'a [u8])) -> Result<(), Fault> {
        loop {
            let head = self.byte()?;
            if head == BREAK {
                return Ok(());
            }
            if head >> 5 != major || head & 0x1f == 31 {
                return Err(Fault::Chunk);
            }
            let chunk = self.take(head & 0x1f)?;
            if major == MAJOR_TEXT && utf8::text(chunk).is_none() {
                return Err(Fault::Utf8);
            }
            take(chunk);
        }
    }

    #[cold]
    fn long_text(&mut self) -> Result<String, Fault> {
        let mut whole = Vec::new();
        self.chunks(MAJOR_TEXT, |chunk| whole.extend_from_slice(chunk))?;
        String::from_utf8(whole).map_err(|_| Fault::Utf8)
    }

    #[cold]
    fn long_bin(&mut self) -> Result<Vec<u8>, Fault> {
        let mut whole = Vec::new();
        self.chunks(MAJOR_BYTES, |chunk| whole.extend_from_slice(chunk))?;
        Ok(whole)
    }

    /// Checks the entries of a dictionary whose head was read.
    fn entries(&mut self, count: Option<usize>) -> Result<(), Fault> {
        self.left = count.unwrap_or(UNTIL_BREAK);
        while self.more()? {
            match self.item()? {
                Item::Str(key) if utf8::text(key).is_some() => {}
                Item::Str(_) => return Err(Fault::Utf8),
                Item::StrChunks => self.chunks(MAJOR_TEXT, |_| {})?,
                _ => return Err(Fault::Kind),
            }
            self.walk(&mut Nothing, OPEN_IN_MESSAGE + 1)?;
        }
        Ok(())
    }
}

/// True for an encoded, checked dictionary without entries.
fn is_empty_dict(bytes: &[u8]) -> bool {
    let mut reader = CborReader { bytes, at: 0, left: 0 };
    reader.open_dict().and_then(|()| reader.more()) == Ok(false)
}

/// A half-precision float, widened without loss (RFC 8949, appendix D).
fn half(bits: u16) -> f32 {
    let sign = u32::from(bits >> 15) << 31;
    let exponent = u32::from(bits >> 10 & 0x1f);
    let mantissa = u32::from(bits & 0x3ff);
    let magnitude = match exponent {
        // 2^-24 a step.
        0 => return f32::from_bits(sign | (mantissa as f32 / 16_777_216.0).to_bits()),
        31 => 0xff << 23 | mantissa << 13,
        _ => (exponent + 127 - 15) << 23 | mantissa << 13,
    };
    f32::from_bits(sign | magnitude)
}

/// The number of a bignum (RFC 8949, 3.4.3): exact in 64 bits, else the nearest float.
fn number(bytes: &[u8], negative: bool) -> Number {
    let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
    let digits = &bytes[zeros..];
    let (head, tail) = digits.split_at(digits.len().min(8));
    let head = head.iter().fold(0, |value: u64, byte| value << 8 | u64::from(*byte));
    if tail.is_empty() {
        return match (negative, i64::try_from(head)) {
            (false, _) => Number::UInt(head),
            (true, Ok(value)) => Number::Int(!value),
            (true, Err(_)) => Number::Float(below_zero(head)),
        };
    }
    // The 64 leading bits decide the float, with the lowest of them set when anything but zeros follows, which is what
    // rounding to the 53 bits of a float needs to know.
    let shift = head.leading_zeros();
    let below = u8::MAX >> shift;
    let leading = (u128::from(head) << 8 | u128::from(tail[0])) >> (8 - shift);
    let follows = |byte: u8| tail[0] & below == byte & below && tail[1..].iter().all(|tail| *tail == byte);
    let leading = match negative {
        // One more than n carries through a tail of ones, and leaves some bit set in any other.
        true if follows(u8::MAX) => leading + 1,
        true => leading | 1,
        false => leading | u128::from(!follows(0)),
    };
    let exponent = i32::try_from(8 * tail.len()).map_or(i32::MAX, |bits| bits - shift as i32);
    let magnitude = if exponent > 1_023 { f64::INFINITY } else { leading as f64 * 2f64.powi(exponent) };
    Number::Float(if negative { -magnitude } else { magnitude })
}

/// The float nearest to -1 - n.
fn below_zero(n: u64) -> f64 {
    -((u128::from(n) + 1) as f64)
}

impl<'a> Reader<'a> for CborReader<'a> {
    const SERIALIZER: Serializer = Serializer::Cbor;

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
        self.left = count.unwrap_or(UNTIL_BREAK);
        Ok(())
    }

    #[inline]
    fn open_dict(&mut self) -> Result<(), Fault> {
        let Item::Dict(count) = self.item()? else { return Err(Fault::Kind) };
        self.left = count.unwrap_or(UNTIL_BREAK);
        Ok(())
    }

    #[inline(always)]
    fn more(&mut self) -> Result<bool, Fault> {
        if self.left == UNTIL_BREAK {
            let more = self.peek()? != BREAK;
            if !more {
                self.at += 1;
                self.left = 0;
            }
            return Ok(more);
        }
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
        match self.item()? {
            Item::UInt(value) => Ok(value),
            _ => Err(Fault::Kind),
        }
    }

    #[inline(always)]
    fn text(&mut self) -> Result<Text<'a>, Fault> {
        self.key()?.ok_or(Fault::Kind)
    }

    #[inline(always)]
    fn list(&mut self) -> Result<Option<&'a [u8]>, Fault> {
        self.skip_tags()?;
        let start = self.at;
        match self.item()? {
            Item::Null => return Ok(None),
            Item::List(_) => self.at = start,
            _ => return Err(Fault::Kind),
        }
        self.walk(&mut Nothing, OPEN_IN_MESSAGE)?;
        Ok(Some(&self.bytes[start..self.at]))
    }

    #[inline(always)]
    fn dict(&mut self) -> Result<Option<&'a [u8]>, Fault> {
        self.skip_tags()?;
        let start = self.at;
        // `entries` counts in `left`, which belongs to the message here.
        let left = self.left;
        match self.item()? {
            Item::Null => return Ok(None),
            Item::Dict(count) => self.entries(count)?,
            _ => return Err(Fault::Kind),
        }
        self.left = left;
        Ok(Some(&self.bytes[start..self.at]))
    }

    #[inline(always)]
    fn options(&mut self) -> Result<&'a [u8], Fault> {
        if self.peek()? == EMPTY_DICT {
            self.at += 1;
            return Ok(&[]);
        }
        let bytes = self.dict()?.unwrap_or_default();
        Ok(if is_empty_dict(bytes) { &[] } else { bytes })
    }

    #[inline(always)]
    fn key(&mut self) -> Result<Option<Text<'a>>, Fault> {
        let start = self.at;
        match self.item()? {
            Item::Str(bytes) => utf8::text(bytes).map(|text| Some(Cow::Borrowed(text))).ok_or(Fault::Utf8),
            Item::StrChunks => Ok(Some(Cow::Owned(self.long_text()?))),
            _ => {
                self.at = start;
                self.walk(&mut Nothing, OPEN_IN_MESSAGE).map(|()| None)
            }
        }
    }

    fn value(&mut self) -> Result<Value<'a>, Fault> {
        let start = self.at;
        Ok(match self.item()? {
            Item::Null => Value::Null,
            Item::Bool(value) => Value::Bool(value),
            Item::UInt(value) => Value::UInt(value),
            Item::Int(value) => Value::Int(value),
            Item::F32(value) => Value::Float(f64::from(value)),
            Item::F64(value) => Value::Float(value),
            Item::Str(bytes) => Value::Str(Cow::Borrowed(utf8::text(bytes).ok_or(Fault::Utf8)?)),
            Item::Bin(bytes) => Value::Bin(Cow::Borrowed(bytes)),
            Item::Big { bytes, negative } => match number(bytes, negative) {
                Number::UInt(value) => Value::UInt(value),
                Number::Int(value) => Value::Int(value),
                Number::Float(value) => Value::Float(value),
            },
            Item::StrChunks => Value::Str(Cow::Owned(self.long_text()?)),
            Item::BinChunks => Value::Bin(Cow::Owned(self.long_bin()?)),
            Item::List(_) => {
                self.at = start;
                self.walk(&mut Nothing, OPEN_IN_MESSAGE)?;
                Value::List(List::checked(Serializer::Cbor, &self.bytes[start..self.at]))
            }
            Item::Dict(_) => {
                self.at = start;
                self.walk(&mut Nothing, OPEN_IN_MESSAGE)?;
                let bytes = &self.bytes[start..self.at];
                Value::Dict(Dict::checked(Serializer::Cbor, if is_empty_dict(bytes) { &[] } else { bytes }))
            }
        })
    }

    #[inline]
    fn walk<S: Sink>(&mut self, sink: &mut S, open: usize) -> Result<(), Fault> {
        let mut parents = ArrayVec::<usize, DEPTH_MAX>::new();
        // Items to come at this level, or a stand-in; those of the levels above wait in `parents`.
        let mut left = 1;
        loop {
            let mut ended = false;
            match left {
                UNTIL_BREAK | UNTIL_BREAK_KEY if self.peek()? == BREAK => {
                    self.at += 1;
                    ended = true;
                }
                UNTIL_BREAK => {}
                UNTIL_BREAK_KEY => left = UNTIL_BREAK_VALUE,
                UNTIL_BREAK_VALUE => left = UNTIL_BREAK_KEY,
                _ => left -= 1,
            }
            if !ended && let Some(children) = self.step(sink)? {
                if open + parents.len() >= DEPTH_MAX {
                    return Err(Fault::Depth);
                }
                parents.push(left);
                left = children;
            }
            while ended || left == 0 {
                let Some(parent) = parents.pop() else { return Ok(()) };
                sink.end()?;
                left = parent;
                ended = false;
            }
        }
    }
}

impl<'a> CborReader<'a> {
    /// Feeds one item to `sink`; of a container only its beginning, with how many items it holds.
    #[inline(always)]
    fn step<S: Sink>(&mut self, sink: &mut S) -> Result<Option<usize>, Fault> {
        match self.item()? {
            Item::Null => sink.null()?,
            Item::Bool(value) => sink.bool(value)?,
            Item::UInt(value) => sink.uint(value)?,
            Item::Int(value) => sink.int(value)?,
            Item::F32(value) => sink.f32(value)?,
            Item::F64(value) => sink.f64(value)?,
            Item::Str(bytes) => sink.str(utf8::text(bytes).ok_or(Fault::Utf8)?)?,
            Item::Bin(bytes) => sink.bin(bytes)?,
            Item::StrChunks if !S::READS => self.chunks(MAJOR_TEXT, |_| {})?,
            Item::BinChunks if !S::READS => self.chunks(MAJOR_BYTES, |_| {})?,
            Item::Big { .. } if !S::READS => {}
            Item::Big { bytes, negative } => match number(bytes, negative) {
                Number::UInt(value) => sink.uint(value)?,
                Number::Int(value) => sink.int(value)?,
                Number::Float(value) => sink.f64(value)?,
            },
            Item::StrChunks => sink.str(&self.long_text()?)?,
            Item::BinChunks => sink.bin(&self.long_bin()?)?,
            Item::List(count) => {
                sink.list(count)?;
                return Ok(Some(count.unwrap_or(UNTIL_BREAK)));
            }
            Item::Dict(count) => {
                sink.dict(count)?;
                return Ok(Some(count.map_or(UNTIL_BREAK_KEY, |entries| 2 * entries)));
            }
        }
        Ok(None)
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

/// Writes CBOR, every integer in its shortest form, every length definite.
pub(super) struct Cbor;

impl Format for Cbor {
    const SMALL_COUNT_MAX: usize = 23;

    #[inline]
    fn null(out: &mut Vec<u8>) {
        out.push(0xf6);
    }

    #[inline]
    fn bool(out: &mut Vec<u8>, value: bool) {
        out.push(0xf4 + u8::from(value));
    }

    #[inline]
    fn uint(out: &mut Vec<u8>, value: u64) {
        head(out, 0, value);
    }

    #[inline]
    fn int(out: &mut Vec<u8>, value: i64) {
        if value < 0 { head(out, 1, !value as u64) } else { head(out, 0, value as u64) }
    }

    #[inline]
    fn f32(out: &mut Vec<u8>, value: f32) {
        put(out, 0xfa, value.to_be_bytes());
    }

    #[inline]
    fn f64(out: &mut Vec<u8>, value: f64) {
        put(out, 0xfb, value.to_be_bytes());
    }

    #[inline]
    fn str(out: &mut Vec<u8>, value: &str) {
        head(out, MAJOR_TEXT, value.len() as u64);
        out.extend_from_slice(value.as_bytes());
    }

    #[inline]
    fn bin(out: &mut Vec<u8>, value: &[u8]) {
        head(out, MAJOR_BYTES, value.len() as u64);
        out.extend_from_slice(value);
    }

    #[inline]
    fn list(out: &mut Vec<u8>, count: usize) {
        head(out, 4, count as u64);
    }

    #[inline]
    fn dict(out: &mut Vec<u8>, count: usize) {
        head(out, 5, count as u64);
    }
}

#[inline]
fn head(out: &mut Vec<u8>, major: u8, argument: u64) {
    let major = major << 5;
    match argument {
        0..=23 => out.push(major | argument as u8),
        24..=0xff => out.extend_from_slice(&[major | 24, argument as u8]),
        0x100..=0xffff => put(out, major | 25, (argument as u16).to_be_bytes()),
        0x1_0000..=0xffff_ffff => put(out, major | 26, (argument as u32).to_be_bytes()),
        _ => put(out, major | 27, argument.to_be_bytes()),
    }
}
