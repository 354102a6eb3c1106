//! JSON strings: finding their end, resolving and writing escapes, and byte strings inside of them.

use super::Text;
use super::reader::{Fault, Sink};
use base64::Engine;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use std::borrow::Cow;

/// The inside of a string, checked.
#[derive(Clone, Copy)]
pub(super) struct Scanned<'a> {
    pub raw: &'a str,
    pub escaped: bool,
}

/// What a string stands for.
pub(super) enum Decoded<'a> {
    Str(Text<'a>),
    Bin(Vec<u8>),
}

impl<'a> Scanned<'a> {
    #[inline(always)]
    pub fn text(self) -> Text<'a> {
        if self.escaped { Cow::Owned(unescape(self.raw)) } else { Cow::Borrowed(self.raw) }
    }

    #[inline(always)]
    pub fn value(self) -> Decoded<'a> {
        if self.escaped { decoded(unescape(self.raw)) } else { Decoded::Str(Cow::Borrowed(self.raw)) }
    }

    #[inline(always)]
    pub fn feed<S: Sink>(self, sink: &mut S) -> Result<(), Fault> {
        match self.value() {
            Decoded::Str(text) => sink.str(&text),
            Decoded::Bin(bytes) => sink.bin(&bytes),
        }
    }
}

/// A byte string when `text` is U+0000 and base64; else the text.
fn decoded<'a>(text: String) -> Decoded<'a> {
    match text.strip_prefix('\0').map(|base64| BASE64.decode(base64)) {
        Some(Ok(bytes)) => Decoded::Bin(bytes),
        _ => Decoded::Str(Cow::Owned(text)),
    }
}

/// Writes padding, and reads with and without.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true),
);

/// How many leading bytes may stand in a string as they are.
#[inline]
pub(super) fn plain_len(bytes: &[u8]) -> usize {
    let mut at = 0;
    while let Some(block) = bytes[at..].first_chunk::<BLOCK_BYTES>() {
        let special = special_bits(block);
        if special != 0 {
            return at + special.trailing_zeros() as usize;
        }
        at += BLOCK_BYTES;
    }
    while at < bytes.len() && !is_special(bytes[at]) {
        at += 1;
    }
    at
}

const BLOCK_BYTES: usize = 16;

/// True for what ends a string, begins an escape or may not stand in a string.
#[inline(always)]
fn is_special(byte: u8) -> bool {
    byte <= CONTROL_MAX || byte == b'"' || byte == b'\\'
}

/// The last of the control characters that must be escaped (RFC 8259, 7).
const CONTROL_MAX: u8 = 0x1f;

/// One bit a byte: whether it is special.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn special_bits(block: &[u8; BLOCK_BYTES]) -> u32 {
    use std::arch::x86_64::{
        __m128i, _mm_cmpeq_epi8, _mm_loadu_si128, _mm_min_epu8, _mm_movemask_epi8, _mm_or_si128,
        _mm_set1_epi8,
    };
    // SAFETY: the block is 16 readable bytes, the load needs no alignment, and SSE2 is part of x86-64.
    unsafe {
        let bytes = _mm_loadu_si128(block.as_ptr().cast::<__m128i>());
        let controls = _mm_cmpeq_epi8(_mm_min_epu8(bytes, _mm_set1_epi8(CONTROL_MAX as i8)), bytes);
        let quotes = _mm_cmpeq_epi8(bytes, _mm_set1_epi8(b'"' as i8));
        let escapes = _mm_cmpeq_epi8(bytes, _mm_set1_epi8(b'\\' as i8));
        _mm_movemask_epi8(_mm_or_si128(controls, _mm_or_si128(quotes, escapes))) as u32
    }
}

/// One bit a byte: whether it is special.
#[cfg(not(target_arch = "x86_64"))]
#[inline(always)]
fn special_bits(block: &[u8; BLOCK_BYTES]) -> u32 {
    block.iter().rev().fold(0, |bits, byte| bits << 1 | u32::from(is_special(*byte)))
}

/// Goes on through a string from a special byte at `at` to its closing quote: the quote's index, or where and what is wrong.
#[cold]
pub(super) fn scan(bytes: &[u8], mut at: usize) -> (usize, Option<Fault>) {
    loop {
        match bytes.get(at) {
            None => return (at, Some(Fault::End)),
            Some(b'"') => return (at, None),
            Some(b'\\') => match escape_len(&bytes[at..]) {
                Ok(len) => at += len,
                Err(fault) => return (at, Some(fault)),
            },
            Some(_) => return (at, Some(Fault::Control)),
        }
        at += plain_len(&bytes[at..]);
    }
}

/// The length of the escape that `bytes` begin with; a surrogate pair counts as one (RFC 8259, 7).
fn escape_len(bytes: &[u8]) -> Result<usize, Fault> {
    match bytes.get(1) {
        None => Err(Fault::End),
        Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => Ok(2),
        Some(b'u') => match unit(bytes)? {
            0xdc00..=0xdfff => Err(Fault::Surrogate),
            0xd800..=0xdbff => match unit(&bytes[UNIT_BYTES..]) {
                Ok(0xdc00..=0xdfff) => Ok(2 * UNIT_BYTES),
                Err(Fault::End) => Err(Fault::End),
                _ => Err(Fault::Surrogate),
            },
            _ => Ok(UNIT_BYTES),
        },
        Some(_) => Err(Fault::Escape),
    }
}

/// `\uXXXX`.
const UNIT_BYTES: usize = 6;

/// The UTF-16 unit that `bytes` begin with, as `\uXXXX`.
fn unit(bytes: &[u8]) -> Result<u32, Fault> {
    let escape = bytes.first_chunk::<UNIT_BYTES>().ok_or(Fault::End)?;
    if !escape.starts_with(b"\\u") {
        return Err(Fault::Escape);
    }
    escape[2..].iter().try_fold(0, |value, digit| {
        (*digit as char).to_digit(16).map(|digit| value << 4 | digit).ok_or(Fault::Escape)
    })
}

/// Resolves the escapes of a string's checked inside.
#[cold]
fn unescape(raw: &str) -> String {
    let mut text = String::with_capacity(raw.len());
    let mut rest = raw;
    while let Some(at) = memchr::memchr(b'\\', rest.as_bytes()) {
        text.push_str(&rest[..at]);
        rest = &rest[at..];
        let (char, len) = unescape_one(rest.as_bytes());
        text.push(char);
        rest = &rest[len..];
    }
    text.push_str(rest);
    text
}

/// The character that a checked escape stands for, and the escape's length.
fn unescape_one(bytes: &[u8]) -> (char, usize) {
    match bytes.get(1) {
        Some(b'b') => ('\u{8}', 2),
        Some(b'f') => ('\u{c}', 2),
        Some(b'n') => ('\n', 2),
        Some(b'r') => ('\r', 2),
        Some(b't') => ('\t', 2),
        Some(b'u') => {
            let high = unit(bytes).unwrap_or(REPLACEMENT);
            if let Some(char) = char::from_u32(high) {
                return (char, UNIT_BYTES);
            }
            let low = unit(&bytes[UNIT_BYTES..]).unwrap_or(REPLACEMENT);
            let code = 0x1_0000 + ((high & 0x3ff) << 10 | low & 0x3ff);
            (char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER), 2 * UNIT_BYTES)
        }
        Some(byte) => (*byte as char, 2),
        None => (char::REPLACEMENT_CHARACTER, bytes.len()),
    }
}

const REPLACEMENT: u32 = char::REPLACEMENT_CHARACTER as u32;

/// Appends `value` as a string with its quotes.
#[inline]
pub(super) fn put_str(out: &mut Vec<u8>, value: &str) {
    out.push(b'"');
    put_inside(out, value);
    out.push(b'"');
}

#[inline]
fn put_inside(out: &mut Vec<u8>, value: &str) {
    let mut rest = value.as_bytes();
    loop {
        let plain = plain_len(rest);
        out.extend_from_slice(&rest[..plain]);
        let Some(byte) = rest.get(plain) else { return };
        put_escape(out, *byte);
        rest = &rest[plain + 1..];
    }
}

#[cold]
fn put_escape(out: &mut Vec<u8>, byte: u8) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    let short = match byte {
        b'"' | b'\\' => byte,
        0x08 => b'b',
        0x0c => b'f',
        b'\n' => b'n',
        b'\r' => b'r',
        b'\t' => b't',
        _ => {
            out.extend_from_slice(b"\\u00");
            out.extend_from_slice(&[HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 0xf)]]);
            return;
        }
    };
    out.extend_from_slice(&[b'\\', short]);
}

/// Appends a byte string: U+0000 and base64, with quotes.
pub(super) fn put_bin(out: &mut Vec<u8>, value: &[u8]) {
    out.extend_from_slice(b"\"\\u0000");
    let start = out.len();
    let len = base64::encoded_len(value.len(), true).expect("messages are far smaller than 4 GiB");
    out.resize(start + len, 0);
    let written = BASE64.encode_slice(value, &mut out[start..]).expect("encoded_len() bytes are room enough");
    debug_assert_eq!(written, len);
    out.push(b'"');
}

/// Appends a float: the shortest text that reads back as the same float, with a fraction or an exponent so that it stays
/// one. JSON has no other numbers than finite ones, so the others become null.
pub(super) fn put_float(out: &mut Vec<u8>, value: f64) {
    if value.is_finite() {
        out.extend_from_slice(ryu::Buffer::new().format_finite(value).as_bytes());
    } else {
        out.extend_from_slice(b"null");
    }
}

pub(super) fn put_uint(out: &mut Vec<u8>, value: u64) {
    out.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
}

pub(super) fn put_int(out: &mut Vec<u8>, value: i64) {
    out.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
}
