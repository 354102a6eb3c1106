//! JSON (RFC 8259), read strictly.
//!
//! Byte strings are strings that begin with U+0000, followed by base64 (WAMP, basic profile, "Binary conversion of JSON
//! Strings"); what follows U+0000 without being base64 makes an ordinary string. Numbers without fraction and exponent are
//! integers where 64 bits hold them; all others are floats.

use super::json_text::{self, Scanned};
use super::reader::{Fault, Nothing, OPEN_IN_MESSAGE, Reader, Sink};
use super::{Dict, List, Serializer, Text, Value};
use crate::limits::DEPTH_MAX;
use std::borrow::Cow;

pub(super) struct JsonReader<'a> {
    text: &'a str,
    at: usize,
    /// True until the first element of the open container was reached.
    first: bool,
    /// The bracket that ends the open container, or [`CLOSED`].
    close: u8,
}

const CLOSED: u8 = 0;

impl<'a> JsonReader<'a> {
    #[inline(always)]
    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    /// Moves past white space (RFC 8259, 2) and shows what follows.
    #[inline(always)]
    fn peek_token(&mut self) -> Result<u8, Fault> {
        loop {
            match self.peek() {
                Some(b' ' | b'\t' | b'\n' | b'\r') => self.at += 1,
                Some(byte) => return Ok(byte),
                None => return Err(Fault::End),
            }
        }
    }

    #[inline(always)]
    fn expect(&mut self, byte: u8) -> Result<(), Fault> {
        if self.peek_token()? != byte {
            return Err(Fault::Syntax);
        }
        self.at += 1;
        Ok(())
    }

    /// Reads the string whose quote is next.
    #[inline(always)]
    fn string(&mut self) -> Result<Scanned<'a>, Fault> {
        self.expect(b'"')?;
        let rest = &self.text.as_bytes()[self.at..];
        let plain = json_text::plain_len(rest);
        if rest.get(plain) == Some(&b'"') {
            let raw = self.slice(self.at, self.at + plain);
            self.at += plain + 1;
            return Ok(Scanned { raw, escaped: false });
        }
        let (len, fault) = json_text::scan(rest, plain);
        if let Some(fault) = fault {
            self.at += len;
            return Err(fault);
        }
        let raw = self.slice(self.at, self.at + len);
        self.at += len + 1;
        Ok(Scanned { raw, escaped: true })
    }

    #[inline(always)]
    fn slice(&self, start: usize, end: usize) -> &'a str {
        self.text.get(start..end).expect("tokens begin and end at ASCII characters")
    }

    /// Reads a literal name (RFC 8259, 3).
    #[inline(always)]
    fn literal(&mut self, name: &str) -> Result<(), Fault> {
        let rest = &self.text.as_bytes()[self.at..];
        if !rest.starts_with(name.as_bytes()) {
            return Err(if name.as_bytes().starts_with(rest) { Fault::End } else { Fault::Syntax });
        }
        self.at += name.len();
        Ok(())
    }

    /// Reads a number (RFC 8259, 6): its text, and whether it has neither fraction nor exponent.
    #[inline(always)]
    fn number(&mut self) -> Result<(&'a str, bool), Fault> {
        let start = self.at;
        if self.peek() == Some(b'-') {
            self.at += 1;
        }
        match self.peek() {
            Some(b'0') => self.at += 1,
            Some(b'1'..=b'9') => self.digits()?,
            Some(_) => return Err(Fault::Number),
            None => return Err(Fault::End),
        }
        let mut integer = true;
        match self.peek() {
            Some(b'.') => {
                integer = false;
                self.at += 1;
                self.digits()?;
            }
            Some(b'0'..=b'9') => return Err(Fault::Number),
            _ => {}
        }
        if let Some(b'e' | b'E') = self.peek() {
            integer = false;
            self.at += 1;
            if let Some(b'+' | b'-') = self.peek() {
                self.at += 1;
            }
            self.digits()?;
        }
        Ok((self.slice(start, self.at), integer))
    }

    /// Reads at least one digit.
    #[inline(always)]
    fn digits(&mut self) -> Result<(), Fault> {
        let start = self.at;
        while let Some(b'0'..=b'9') = self.peek() {
            self.at += 1;
        }
        match self.peek() {
            _ if self.at > start => Ok(()),
            Some(_) => Err(Fault::Number),
            None => Err(Fault::End),
        }
    }

    /// What to say of a next token that is not of the wanted kind.
    #[cold]
    fn unwanted(&mut self) -> Fault {
        match self.peek_token() {
            Ok(b'"' | b'{' | b'[' | b't' | b'f' | b'n' | b'-' | b'0'..=b'9') => Fault::Kind,
            Ok(_) => Fault::Syntax,
            Err(fault) => fault,
        }
    }

    /// A container that begins with `bracket`; `None` when it is null.
    #[inline(always)]
    fn container(&mut self, bracket: u8) -> Result<Option<&'a [u8]>, Fault> {
        let next = self.peek_token()?;
        let start = self.at;
        if next == bracket {
            self.walk(&mut Nothing, OPEN_IN_MESSAGE)?;
            return Ok(Some(&self.text.as_bytes()[start..self.at]));
        }
        if next == b'n' {
            return self.literal("null").map(|()| None);
        }
        Err(self.unwanted())
    }

    #[inline(always)]
    fn open(&mut self, bracket: u8, close: u8) -> Result<(), Fault> {
        if self.peek_token()? != bracket {
            return Err(self.unwanted());
        }
        self.at += 1;
        self.first = true;
        self.close = close;
        Ok(())
    }
}

/// A number's value.
enum Number {
    UInt(u64),
    Int(i64),
    Float(f64),
}

fn number_value(text: &str, integer: bool) -> Number {
    if integer {
        if let Ok(value) = text.parse() {
            return Number::UInt(value);
        }
        match text.parse() {
            Ok(value @ ..0) => return Number::Int(value),
            Ok(_) => return Number::UInt(0),
            Err(_) => {}
        }
    }
    Number::Float(text.parse().expect("the grammar of JSON numbers is part of Rust's"))
}

/// True for a container without elements.
fn is_empty_container(bytes: &[u8]) -> bool {
    bytes
        .iter()
        .skip(1)
        .find(|byte| !matches!(byte, b' ' | b'\t' | b'\n' | b'\r'))
        .is_none_or(|byte| matches!(byte, b'}' | b']'))
}

impl<'a> Reader<'a> for JsonReader<'a> {
    const SERIALIZER: Serializer = Serializer::Json;

    #[inline]
    fn new(bytes: &'a [u8]) -> Result<Self, Fault> {
        let text = super::utf8::text(bytes).ok_or(Fault::Utf8)?;
        Ok(Self { text, at: 0, first: true, close: CLOSED })
    }

    #[inline]
    fn position(&self) -> usize {
        self.at
    }

    #[inline]
    fn open_list(&mut self) -> Result<(), Fault> {
        self.open(b'[', b']')
    }

    #[inline]
    fn open_dict(&mut self) -> Result<(), Fault> {
        self.open(b'{', b'}')
    }

    #[inline(always)]
    fn more(&mut self) -> Result<bool, Fault> {
        if self.close == CLOSED {
            return Ok(false);
        }
        let next = self.peek_token()?;
        if next == self.close {
            self.at += 1;
            self.close = CLOSED;
            return Ok(false);
        }
        if std::mem::replace(&mut self.first, false) {
            return Ok(true);
        }
        if next != b',' {
            return Err(Fault::Syntax);
        }
        self.at += 1;
        Ok(true)
    }

    #[inline]
    fn finish(&mut self) -> Result<(), Fault> {
        match self.peek_token() {
            Ok(_) => Err(Fault::Trailing),
            Err(_) => Ok(()),
        }
    }

    #[inline(always)]
    fn uint(&mut self) -> Result<u64, Fault> {
        let first = self.peek_token()?;
        if !first.is_ascii_digit() {
            return Err(self.unwanted());
        }
        let mut value = u64::from(first - b'0');
        let start = self.at;
        self.at += 1;
        while let Some(digit @ b'0'..=b'9') = self.peek() {
            if value == 0 {
                return Err(Fault::Number);
            }
            let next = value.checked_mul(10).and_then(|tens| tens.checked_add(u64::from(digit - b'0')));
            let Some(next) = next else { return Err(Fault::Kind) };
            value = next;
            self.at += 1;
        }
        match self.peek() {
            // In a list something follows every number; without it, this may be half of one.
            None => Err(Fault::End),
            Some(b'.' | b'e' | b'E') => {
                self.at = start;
                self.number()?;
                Err(Fault::Kind)
            }
            Some(_) => Ok(value),
        }
    }

    #[inline(always)]
    fn text(&mut self) -> Result<Text<'a>, Fault> {
        if self.peek_token()? != b'"' {
            return Err(self.unwanted());
        }
        Ok(self.string()?.text())
    }

    #[inline(always)]
    fn list(&mut self) -> Result<Option<&'a [u8]>, Fault> {
        self.container(b'[')
    }

    #[inline(always)]
    fn dict(&mut self) -> Result<Option<&'a [u8]>, Fault> {
        self.container(b'{')
    }

    #[inline(always)]
    fn options(&mut self) -> Result<&'a [u8], Fault> {
        self.peek_token()?;
        if self.text.as_bytes()[self.at..].starts_with(b"{}") {
            self.at += 2;
            return Ok(&[]);
        }
        let bytes = self.dict()?.unwrap_or_default();
        Ok(if is_empty_container(bytes) { &[] } else { bytes })
    }

    fn key(&mut self) -> Result<Option<Text<'a>>, Fault> {
        let key = self.string()?.text();
        self.expect(b':')?;
        Ok(Some(key))
    }

    fn value(&mut self) -> Result<Value<'a>, Fault> {
        let next = self.peek_token()?;
        let start = self.at;
        Ok(match next {
            b'"' => match self.string()?.value() {
                json_text::Decoded::Str(text) => Value::Str(text),
                json_text::Decoded::Bin(bytes) => Value::Bin(Cow::Owned(bytes)),
            },
            b'[' | b'{' => {
                self.walk(&mut Nothing, OPEN_IN_MESSAGE)?;
                let bytes = &self.text.as_bytes()[start..self.at];
                let bytes = if is_empty_container(bytes) { &[] } else { bytes };
                match next {
                    b'[' => Value::List(List::checked(Serializer::Json, bytes)),
                    _ => Value::Dict(Dict::checked(Serializer::Json, bytes)),
                }
            }
            b't' => self.literal("true").map(|()| Value::Bool(true))?,
            b'f' => self.literal("false").map(|()| Value::Bool(false))?,
            b'n' => self.literal("null").map(|()| Value::Null)?,
            b'-' | b'0'..=b'9' => {
                let (text, integer) = self.number()?;
                match number_value(text, integer) {
                    Number::UInt(value) => Value::UInt(value),
                    Number::Int(value) => Value::Int(value),
                    Number::Float(value) => Value::Float(value),
                }
            }
            _ => return Err(Fault::Syntax),
        })
    }

    #[inline]
    fn walk<S: Sink>(&mut self, sink: &mut S, open: usize) -> Result<(), Fault> {
        // One bit a level, the innermost lowest: whether it is a dictionary.
        let mut dicts = 0u64;
        let mut depth = 0;
        loop {
            match self.peek_token()? {
                b'"' => {
                    let scanned = self.string()?;
                    if S::READS {
                        scanned.feed(sink)?;
                    }
                }
                bracket @ (b'{' | b'[') => {
                    self.at += 1;
                    if open + depth >= DEPTH_MAX {
                        return Err(Fault::Depth);
                    }
                    depth += 1;
                    let dict = bracket == b'{';
                    dicts = dicts << 1 | u64::from(dict);
                    if dict {
                        sink.dict(None)?
                    } else {
                        sink.list(None)?
                    }
                    let next = self.peek_token()?;
                    // Brackets of a kind are two apart in ASCII.
                    if next != bracket + 2 {
                        if dict {
                            self.entry(sink)?;
                        }
                        continue;
                    }
                }
                b't' => {
                    self.literal("true")?;
                    sink.bool(true)?;
                }
                b'f' => {
                    self.literal("false")?;
                    sink.bool(false)?;
                }
                b'n' => {
                    self.literal("null")?;
                    sink.null()?;
                }
                b'-' | b'0'..=b'9' => {
                    let (text, integer) = self.number()?;
                    if S::READS {
                        match number_value(text, integer) {
                            Number::UInt(value) => sink.uint(value)?,
                            Number::Int(value) => sink.int(value)?,
                            Number::Float(value) => sink.f64(value)?,
                        }
                    }
                }
                _ => return Err(Fault::Syntax),
            }
            // After a value: the ends of what it was the last of, then perhaps a comma.
            loop {
                if depth == 0 {
                    return Ok(());
                }
                let dict = dicts & 1 == 1;
                let next = self.peek_token()?;
                self.at += 1;
                if next == b',' {
                    if dict {
                        self.entry(sink)?;
                    }
                    break;
                }
                if next != if dict { b'}' } else { b']' } {
                    return Err(Fault::Syntax);
                }
                sink.end()?;
                depth -= 1;
                dicts >>= 1;
            }
        }
    }
}

impl JsonReader<'_> {
    /// Reads the key of an entry and its colon.
    #[inline(always)]
    fn entry<S: Sink>(&mut self, sink: &mut S) -> Result<(), Fault> {
        let key = self.string()?;
        if S::READS {
            sink.str(&key.text())?;
        }
        self.expect(b':')
    }
}
