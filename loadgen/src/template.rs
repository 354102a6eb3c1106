//! Messages written many times: encoded once, then copied with a new request id and a new stamp.
//!
//! ```text
//! before │ request id │ after ........ payload │ tail
//! ```

use crate::blob::{Coding, Stamp};
use common::wire::encode::{self, Field};
use common::wire::{Payload, Serializer};

/// How a payload is wrapped as the one positional argument in one serializer, at the very end of a message.
#[derive(Clone, Debug)]
pub struct Shape {
    pub serializer: Serializer,
    pub coding: Coding,
    /// The encoded `args`.
    args: Vec<u8>,
    /// Where the payload lies in `args`.
    payload_start: usize,
    payload_bytes: usize,
}

impl Shape {
    pub fn new(serializer: Serializer, coding: Coding, payload_bytes: usize) -> Self {
        let filler = coding.filler(payload_bytes);
        let mut args = Vec::new();
        common::wire::OwnedValue::List(vec![coding.value(&filler)]).encode(serializer, &mut args);
        let payload_start = args.len() - payload_bytes - tail(serializer, coding).len();
        assert_eq!(args[payload_start..][..payload_bytes], filler, "the payload is not escaped or copied");
        Self { serializer, coding, args, payload_start, payload_bytes }
    }

    /// The payload of a message that ends as one of ours would; `None`: look closer.
    #[inline]
    pub fn payload_at_end<'a>(&self, message: &'a [u8]) -> Option<&'a [u8]> {
        let message_tail = self.closing_bytes();
        let args_start = message.len().checked_sub(self.args.len() + message_tail)?;
        let args = &message[args_start..message.len() - message_tail];
        let payload_end = self.payload_start + self.payload_bytes;
        let same = args[..self.payload_start] == self.args[..self.payload_start]
            && args[payload_end..] == self.args[payload_end..];
        same.then(|| &args[self.payload_start..payload_end])
    }

    /// True when `payload` is the fixed pattern behind its stamp.
    #[inline]
    pub fn is_intact(&self, payload: &[u8]) -> bool {
        let expected = &self.args[self.payload_start..][..self.payload_bytes];
        payload.len() == expected.len()
            && payload[crate::blob::STAMP_BYTES..] == expected[crate::blob::STAMP_BYTES..]
    }

    fn closing_bytes(&self) -> usize {
        usize::from(self.serializer.is_text())
    }
}

/// What follows a payload inside `args`.
const fn tail(serializer: Serializer, coding: Coding) -> &'static [u8] {
    match (serializer, coding) {
        (Serializer::Json, _) => b"\"]",
        (Serializer::MsgPack | Serializer::Cbor, _) => b"",
    }
}

/// A message of one kind.
#[derive(Clone, Debug)]
pub struct Template {
    serializer: Serializer,
    coding: Coding,
    /// The whole message with a request id of one octet.
    bytes: Vec<u8>,
    id_at: usize,
    payload_at: usize,
    payload_bytes: usize,
}

impl Template {
    /// PUBLISH, with `acknowledge` where asked.
    pub fn publish(shape: &Shape, topic: &str, acknowledge: bool) -> Self {
        let options = [("acknowledge", Field::Bool(true))];
        let options = &options[..usize::from(acknowledge)];
        Self::build(shape, |out, request| {
            encode::publish(shape.serializer, out, request, options, topic, payload(shape));
        })
    }

    /// CALL.
    pub fn call(shape: &Shape, procedure: &str) -> Self {
        Self::build(shape, |out, request| {
            encode::call(shape.serializer, out, request, &[], procedure, payload(shape));
        })
    }

    /// YIELD.
    pub fn yield_(shape: &Shape) -> Self {
        Self::build(shape, |out, request| {
            encode::yield_(shape.serializer, out, request, &[], payload(shape));
        })
    }

    fn build(shape: &Shape, write: impl Fn(&mut Vec<u8>, u64)) -> Self {
        let (mut bytes, mut other) = (Vec::new(), Vec::new());
        write(&mut bytes, 1);
        write(&mut other, 2);
        let id_at = bytes.iter().zip(&other).position(|(one, two)| one != two);
        let id_at = id_at.expect("request ids differ, so the messages do");
        let tail_bytes = shape.args.len() - shape.payload_start - shape.payload_bytes + shape.closing_bytes();
        let payload_at = bytes.len() - shape.payload_bytes - tail_bytes;
        Self {
            serializer: shape.serializer,
            coding: shape.coding,
            bytes,
            id_at,
            payload_at,
            payload_bytes: shape.payload_bytes,
        }
    }

    /// Writes the message with this request id and stamp over `out`.
    #[inline]
    pub fn write_stamped(&self, request: u64, stamp: Stamp, out: &mut Vec<u8>) {
        let payload_at = self.write_head(request, out);
        self.coding.write(stamp, &mut out[payload_at..]);
    }

    /// Writes the message with this request id and the payload of another one (of the same length) over `out`.
    #[inline]
    pub fn write_echo(&self, request: u64, payload: &[u8], out: &mut Vec<u8>) {
        let payload_at = self.write_head(request, out);
        out[payload_at..][..self.payload_bytes].copy_from_slice(payload);
    }

    /// Returns where the payload begins.
    #[inline]
    fn write_head(&self, request: u64, out: &mut Vec<u8>) -> usize {
        out.clear();
        out.extend_from_slice(&self.bytes[..self.id_at]);
        write_uint(self.serializer, request, out);
        let grown = out.len() - self.id_at - 1;
        out.extend_from_slice(&self.bytes[self.id_at + 1..]);
        self.payload_at + grown
    }
}

fn payload(shape: &Shape) -> Payload<'_> {
    Payload { args: Some(&shape.args), kwargs: None }
}

/// Appends a non-negative integer in its shortest form.
#[inline]
fn write_uint(serializer: Serializer, number: u64, out: &mut Vec<u8>) {
    match serializer {
        Serializer::Json => write_decimal(number, out),
        Serializer::MsgPack => match number {
            0..=0x7f => out.push(number as u8),
            0x80..=0xff => out.extend_from_slice(&[0xcc, number as u8]),
            0x100..=0xffff => write_sized(0xcd, &(number as u16).to_be_bytes(), out),
            0x1_0000..=0xffff_ffff => write_sized(0xce, &(number as u32).to_be_bytes(), out),
            _ => write_sized(0xcf, &number.to_be_bytes(), out),
        },
        Serializer::Cbor => match number {
            0..=0x17 => out.push(number as u8),
            0x18..=0xff => out.extend_from_slice(&[0x18, number as u8]),
            0x100..=0xffff => write_sized(0x19, &(number as u16).to_be_bytes(), out),
            0x1_0000..=0xffff_ffff => write_sized(0x1a, &(number as u32).to_be_bytes(), out),
            _ => write_sized(0x1b, &number.to_be_bytes(), out),
        },
    }
}

#[inline]
fn write_sized(head: u8, number: &[u8], out: &mut Vec<u8>) {
    out.push(head);
    out.extend_from_slice(number);
}

#[inline]
fn write_decimal(mut number: u64, out: &mut Vec<u8>) {
    let mut digits = [0; 20];
    let mut start = digits.len();
    loop {
        start -= 1;
        digits[start] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[start..]);
}

/// Type code and first id of a message, read without checking the rest; `None`: look closer.
#[inline]
pub fn read_head(serializer: Serializer, message: &[u8]) -> Option<(u64, u64)> {
    match serializer {
        Serializer::Json => {
            let rest = message.strip_prefix(b"[")?;
            let (code, rest) = read_decimal(rest)?;
            let (id, _) = read_decimal(rest.strip_prefix(b",")?)?;
            Some((code, id))
        }
        Serializer::MsgPack => {
            let (head, rest) = message.split_first()?;
            let (code, rest) = read_sized(rest, 0x7f, 0xcc)?;
            (head & 0xf0 == 0x90).then_some((code, read_sized(rest, 0x7f, 0xcc)?.0))
        }
        Serializer::Cbor => {
            let (head, rest) = message.split_first()?;
            let (code, rest) = read_sized(rest, 0x17, 0x18)?;
            (head & 0xe0 == 0x80 && head & 0x1f < 0x18).then_some((code, read_sized(rest, 0x17, 0x18)?.0))
        }
    }
}

/// A big-endian integer: one octet up to `small_max`, else a head that counts up from `sized` for 1, 2, 4, 8 octets.
#[inline]
fn read_sized(bytes: &[u8], small_max: u8, sized: u8) -> Option<(u64, &[u8])> {
    let (head, rest) = bytes.split_first()?;
    if *head <= small_max {
        return Some((u64::from(*head), rest));
    }
    match head.checked_sub(sized)? {
        0 => rest.split_first().map(|(number, rest)| (u64::from(*number), rest)),
        1 => rest.split_first_chunk().map(|(number, rest)| (u64::from(u16::from_be_bytes(*number)), rest)),
        2 => rest.split_first_chunk().map(|(number, rest)| (u64::from(u32::from_be_bytes(*number)), rest)),
        3 => rest.split_first_chunk().map(|(number, rest)| (u64::from_be_bytes(*number), rest)),
        _ => None,
    }
}

#[inline]
fn read_decimal(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let digits = bytes.iter().take_while(|byte| byte.is_ascii_digit()).count();
    if digits == 0 || digits > 19 {
        return None;
    }
    let number = bytes[..digits].iter().fold(0, |number, digit| number * 10 + u64::from(digit - b'0'));
    Some((number, &bytes[digits..]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use common::wire::{Message, OwnedValue, decode};

    const IDS: [u64; 12] =
        [1, 23, 24, 127, 128, 255, 256, 65_535, 65_536, u32::MAX as u64, u32::MAX as u64 + 1, 1 << 53];

    fn shapes() -> Vec<Shape> {
        let mut shapes = Vec::new();
        for serializer in Serializer::ALL {
            for payload_bytes in [16, 128, 1_024, 70_000] {
                shapes.push(Shape::new(serializer, Coding::Text, payload_bytes));
                if !serializer.is_text() {
                    shapes.push(Shape::new(serializer, Coding::Binary, payload_bytes));
                }
            }
        }
        shapes
    }

    fn argument(serializer: Serializer, payload: Payload<'_>) -> Vec<u8> {
        match OwnedValue::decode(serializer, payload.args.unwrap()).unwrap() {
            OwnedValue::List(mut list) if list.len() == 1 => match list.remove(0) {
                OwnedValue::Bin(bytes) => bytes,
                OwnedValue::Str(text) => text.into_bytes(),
                other => panic!("{other:?}"),
            },
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn templates_write_what_the_codec_reads() {
        let stamp = Stamp { time_ns: 77, source: 5, sequence: 9 };
        let mut out = Vec::new();
        for shape in shapes() {
            let publish = Template::publish(&shape, "a.topic", true);
            let call = Template::call(&shape, "a.procedure");
            for id in IDS {
                publish.write_stamped(id, stamp, &mut out);
                let Ok(Message::Publish { request, options, topic, payload }) =
                    decode(shape.serializer, &out)
                else {
                    panic!("not a PUBLISH: {out:?}")
                };
                assert_eq!((request, &*topic), (id, "a.topic"));
                assert_eq!(options.get("acknowledge"), Some(common::wire::Value::Bool(true)));
                assert_eq!(shape.coding.read(&argument(shape.serializer, payload)), Some(stamp));
                assert_eq!(read_head(shape.serializer, &out), Some((16, id)));

                call.write_stamped(id, stamp, &mut out);
                let Ok(Message::Call { request, .. }) = decode(shape.serializer, &out) else {
                    panic!("{out:?}")
                };
                assert_eq!(request, id);
                let payload = shape.payload_at_end(&out).expect("our own shape");
                assert!(shape.is_intact(payload));
                let payload = payload.to_vec();
                Template::yield_(&shape).write_echo(id, &payload, &mut out);
                let Ok(Message::Yield { request, payload: echo, .. }) = decode(shape.serializer, &out) else {
                    panic!("{out:?}")
                };
                assert_eq!((request, argument(shape.serializer, echo)), (id, payload));
            }
        }
    }

    #[test]
    fn other_endings_are_left_to_the_slow_path() {
        for shape in shapes() {
            let mut out = Vec::new();
            Template::call(&shape, "p").write_stamped(
                1,
                Stamp { time_ns: 0, source: 0, sequence: 0 },
                &mut out,
            );
            assert_eq!(shape.payload_at_end(&out[..out.len() - 1]), None);
            assert_eq!(shape.payload_at_end(&out[..10]), None);
            let mut longer = Vec::new();
            let kwargs = OwnedValue::Dict(Vec::new());
            let mut kwargs_bytes = Vec::new();
            kwargs.encode(shape.serializer, &mut kwargs_bytes);
            let payload = Payload { args: Some(&shape.args), kwargs: Some(&kwargs_bytes) };
            encode::call(shape.serializer, &mut longer, 1, &[], "p", payload);
            assert_eq!(shape.payload_at_end(&longer), None);
        }
    }

    #[test]
    fn heads_of_hostile_messages_are_refused_without_panic() {
        for serializer in Serializer::ALL {
            for bytes in
                [&b""[..], b"[", b"[36", b"[36,", b"\x95", b"\x95\xce\x00", b"\x85\x1b", b"{}", b"\xff\xff"]
            {
                assert_eq!(read_head(serializer, bytes), None, "{serializer:?} {bytes:?}");
            }
        }
        assert_eq!(read_head(Serializer::Json, b"[99999999999999999999999,1]"), None);
    }

    #[test]
    fn a_damaged_payload_is_seen() {
        let shape = Shape::new(Serializer::MsgPack, Coding::Binary, 32);
        let mut payload = Coding::Binary.filler(32);
        assert!(shape.is_intact(&payload));
        payload[31] ^= 1;
        assert!(!shape.is_intact(&payload));
        assert!(!shape.is_intact(&payload[..31]));
    }
}
