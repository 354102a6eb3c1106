//! WebSocket frames (RFC 6455, 5): headers, masking, close payloads, and the UTF-8 check of text that arrives in parts.
//!
//! Nothing here knows what came before a frame; the rules between frames are the [`Framer`](super::Framer)'s.

use super::{FrameError, FrameKind, Role};
use crate::limits::CONTROL_FRAME_BYTES_MAX;

/// What a frame is (RFC 6455, 5.2 and 11.8).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(super) enum Opcode {
    Continuation = 0,
    Text = 1,
    Binary = 2,
    Close = 8,
    Ping = 9,
    Pong = 10,
}

/// A frame's header, checked by itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Header {
    pub opcode: Opcode,
    /// The message that begins with this frame is compressed (RFC 7692, 6).
    pub is_compressed: bool,
    /// The frame ends its message.
    pub is_final: bool,
    pub payload_bytes: u64,
    /// Zero, which changes nothing, when the payload is not masked.
    pub mask: [u8; 4],
}

/// The code that stands for a close frame without one (RFC 6455, 7.4.1).
pub const CLOSE_CODE_ABSENT: u16 = 1005;

const FINAL_BIT: u8 = 0x80;
const RESERVED_BITS: u8 = 0x70;
/// RSV1, which permessage-deflate sets in the first frame of a compressed message.
pub(super) const COMPRESSED_BIT: u8 = 0x40;
const MASK_BIT: u8 = 0x80;
/// Length fields that announce 2 and 8 further length bytes.
const LENGTH_16: u8 = 126;
const LENGTH_64: u8 = 127;

/// Reads the header that `bytes`, sent by `role`'s peer, begins with, and its length. `Ok(None)`: not whole yet.
/// `deflates`: permessage-deflate was agreed on.
#[inline]
pub(super) fn parse_header(
    bytes: &[u8],
    role: Role,
    deflates: bool,
) -> Result<Option<(Header, usize)>, FrameError> {
    let Some((&[first, second], rest)) = bytes.split_first_chunk() else {
        return Ok(None);
    };
    let is_compressed = first & COMPRESSED_BIT != 0;
    if first & RESERVED_BITS != 0 && !(deflates && first & RESERVED_BITS == COMPRESSED_BIT) {
        return Err(FrameError::Protocol("reserved bits set, but no extension was negotiated"));
    }
    let is_masked = second & MASK_BIT != 0;
    if is_masked != (role == Role::Server) {
        return Err(FrameError::Protocol(match role {
            Role::Server => "a client's frames must be masked",
            Role::Client => "a server's frames must not be masked",
        }));
    }
    let opcode = match first & 0x0f {
        0 => Opcode::Continuation,
        1 => Opcode::Text,
        2 => Opcode::Binary,
        8 => Opcode::Close,
        9 => Opcode::Ping,
        10 => Opcode::Pong,
        _ => return Err(FrameError::Protocol("reserved opcode")),
    };
    if is_compressed && !matches!(opcode, Opcode::Text | Opcode::Binary) {
        return Err(FrameError::Protocol("only the first frame of a message may be marked as compressed"));
    }
    let is_final = first & FINAL_BIT != 0;
    let length = second & !MASK_BIT;
    if opcode as u8 >= Opcode::Close as u8 {
        check_control(length, is_final)?;
    }
    let Some((payload_bytes, rest)) = parse_length(length, rest)? else {
        return Ok(None);
    };
    let (mask, rest) = match (is_masked, rest.split_first_chunk()) {
        (false, _) => ([0; 4], rest),
        (true, Some((&mask, rest))) => (mask, rest),
        (true, None) => return Ok(None),
    };
    Ok(Some((Header { opcode, is_compressed, is_final, payload_bytes, mask }, bytes.len() - rest.len())))
}

/// The first octet of an unfragmented message.
#[inline]
pub(super) const fn first_octet(is_text: bool) -> u8 {
    FINAL_BIT | if is_text { Opcode::Text as u8 } else { Opcode::Binary as u8 }
}

/// The fast way through a header whose length field has at most 16 bits: its unchecked first octet, its own length,
/// the payload's, and the mask. `None` when it is longer, wrong, or not whole; [`parse_header`] tells which.
#[inline]
pub(super) fn parse_short(bytes: &[u8], role: Role) -> Option<(u8, usize, usize, [u8; 4])> {
    let &[first, second] = bytes.first_chunk()?;
    let (mask_bit, mask_bytes) = match role {
        Role::Server => (MASK_BIT, 4),
        Role::Client => (0, 0),
    };
    let (mask_start, payload_bytes) = match second ^ mask_bit {
        length @ 0..LENGTH_16 => (2, usize::from(length)),
        LENGTH_16 => {
            let &[.., high, low] = bytes.first_chunk::<4>()?;
            let bytes = u16::from_be_bytes([high, low]);
            (4, if bytes >= u16::from(LENGTH_16) { usize::from(bytes) } else { return None })
        }
        _ => return None,
    };
    let mask = match role {
        Role::Server => *bytes[mask_start..].first_chunk()?,
        Role::Client => [0; 4],
    };
    Some((first, mask_start + mask_bytes, payload_bytes, mask))
}

/// RFC 6455, 5.5.
fn check_control(length: u8, is_final: bool) -> Result<(), FrameError> {
    if !is_final {
        return Err(FrameError::Protocol("a control frame must not be fragmented"));
    }
    if usize::from(length) > CONTROL_FRAME_BYTES_MAX {
        return Err(FrameError::Protocol("a control frame is longer than 125 bytes"));
    }
    Ok(())
}

/// The payload length of a header whose length field is `length`, and what follows it in `rest`. "The minimal number
/// of bytes MUST be used" (RFC 6455, 5.2).
#[inline]
fn parse_length(length: u8, rest: &[u8]) -> Result<Option<(u64, &[u8])>, FrameError> {
    match length {
        LENGTH_16 => {
            let Some((&octets, rest)) = rest.split_first_chunk() else { return Ok(None) };
            let bytes = u16::from_be_bytes(octets);
            if bytes < u16::from(LENGTH_16) {
                return Err(FrameError::Protocol("payload length is not encoded in the fewest bytes"));
            }
            Ok(Some((u64::from(bytes), rest)))
        }
        LENGTH_64 => {
            let Some((&octets, rest)) = rest.split_first_chunk() else { return Ok(None) };
            let bytes = u64::from_be_bytes(octets);
            if bytes >> 63 != 0 {
                return Err(FrameError::Protocol("the top bit of a payload length must be zero"));
            }
            if bytes <= u64::from(u16::MAX) {
                return Err(FrameError::Protocol("payload length is not encoded in the fewest bytes"));
            }
            Ok(Some((bytes, rest)))
        }
        length => Ok(Some((u64::from(length), rest))),
    }
}

/// Appends the header of an unfragmented frame; with `mask`, a client's. `is_text` matters for messages only.
#[inline]
pub(super) fn write_header(
    kind: FrameKind,
    is_text: bool,
    payload_bytes: usize,
    mask: Option<[u8; 4]>,
    out: &mut Vec<u8>,
) {
    let opcode = match (kind, is_text) {
        (FrameKind::Message, true) => Opcode::Text,
        (FrameKind::Message, false) => Opcode::Binary,
        (FrameKind::Ping, _) => Opcode::Ping,
        (FrameKind::Pong, _) => Opcode::Pong,
        (FrameKind::Close, _) => Opcode::Close,
    };
    debug_assert!(kind == FrameKind::Message || payload_bytes <= CONTROL_FRAME_BYTES_MAX);
    let first = FINAL_BIT | opcode as u8;
    let mask_bit = if mask.is_some() { MASK_BIT } else { 0 };
    if payload_bytes < usize::from(LENGTH_16) {
        out.extend_from_slice(&[first, mask_bit | payload_bytes as u8]);
    } else if let Ok(bytes) = u16::try_from(payload_bytes) {
        let [high, low] = bytes.to_be_bytes();
        out.extend_from_slice(&[first, mask_bit | LENGTH_16, high, low]);
    } else {
        let mut header = [first, mask_bit | LENGTH_64, 0, 0, 0, 0, 0, 0, 0, 0];
        header[2..].copy_from_slice(&(payload_bytes as u64).to_be_bytes());
        out.extend_from_slice(&header);
    }
    if let Some(mask) = mask {
        out.extend_from_slice(&mask);
    }
}

/// Makes the `room` free octets at `start` and the message behind them one server's frame.
#[inline]
pub(super) fn finish_frame(is_text: bool, start: usize, room: usize, out: &mut Vec<u8>) {
    let message_bytes = out.len() - start - room;
    let first = FINAL_BIT | if is_text { Opcode::Text } else { Opcode::Binary } as u8;
    if message_bytes < usize::from(LENGTH_16) {
        out.copy_within(start + room.., start + 2);
        out.truncate(start + 2 + message_bytes);
        out[start..start + 2].copy_from_slice(&[first, message_bytes as u8]);
    } else if let Ok(bytes) = u16::try_from(message_bytes) {
        let [high, low] = bytes.to_be_bytes();
        out[start..start + room].copy_from_slice(&[first, LENGTH_16, high, low]);
    } else {
        let mut header = [first, LENGTH_64, 0, 0, 0, 0, 0, 0, 0, 0];
        header[2..].copy_from_slice(&(message_bytes as u64).to_be_bytes());
        out.resize(out.len() + header.len() - room, 0);
        out.copy_within(start + room..start + room + message_bytes, start + header.len());
        out[start..start + header.len()].copy_from_slice(&header);
    }
}

/// Bytes of the header and of the payload of the unmasked frame that `bytes` begins with; `None`: no whole header.
#[inline]
pub(super) fn walk_own_header(bytes: &[u8]) -> Option<(usize, usize)> {
    let (&[_, length], rest) = bytes.split_first_chunk()?;
    match length {
        LENGTH_16 => Some((4, usize::from(u16::from_be_bytes(*rest.first_chunk()?)))),
        LENGTH_64 => Some((10, usize::try_from(u64::from_be_bytes(*rest.first_chunk()?)).ok()?)),
        length => Some((2, usize::from(length))),
    }
}

/// XORs `payload` with the repeated `mask`; masks and unmasks (RFC 6455, 5.3). In words as wide as the compiler can
/// make of 16 bytes.
#[inline]
pub(super) fn apply_mask(payload: &mut [u8], mask: [u8; 4]) {
    let word = u32::from_ne_bytes(mask);
    if word == 0 {
        return;
    }
    let wide = u128::from(u64::from(word) << 32 | u64::from(word));
    let wide = wide << 64 | wide;
    let (blocks, rest) = payload.as_chunks_mut::<16>();
    for block in blocks {
        *block = (u128::from_ne_bytes(*block) ^ wide).to_ne_bytes();
    }
    let (words, rest) = rest.as_chunks_mut::<4>();
    for octets in words {
        *octets = (u32::from_ne_bytes(*octets) ^ word).to_ne_bytes();
    }
    for (octet, mask) in rest.iter_mut().zip(mask) {
        *octet ^= mask;
    }
}

/// Reads the payload of a close frame: its code, [`CLOSE_CODE_ABSENT`] when it has none (RFC 6455, 5.5.1 and 7.4).
pub(super) fn parse_close(payload: &[u8]) -> Result<u16, FrameError> {
    let Some((&code, reason)) = payload.split_first_chunk() else {
        return match payload {
            [] => Ok(CLOSE_CODE_ABSENT),
            _ => Err(FrameError::Protocol("a close frame has half a code")),
        };
    };
    let code = u16::from_be_bytes(code);
    if !is_close_code(code) {
        return Err(FrameError::Protocol("a close frame has a code that must not be sent"));
    }
    if simdutf8::basic::from_utf8(reason).is_err() {
        return Err(FrameError::Utf8);
    }
    Ok(code)
}

/// True for codes that may be sent: those of RFC 6455, 7.4.1, those registered since (1012 to 1014), and those of
/// libraries and applications (7.4.2).
const fn is_close_code(code: u16) -> bool {
    matches!(code, 1000..=1003 | 1007..=1014 | 3000..=4999)
}

/// How many leading bytes of `text` are whole valid characters; fewer than all only when the last one is cut off.
pub(super) fn check_utf8(text: &[u8]) -> Result<usize, FrameError> {
    match simdutf8::compat::from_utf8(text) {
        Ok(_) => Ok(text.len()),
        Err(error) if error.error_len().is_none() => Ok(error.valid_up_to()),
        Err(_) => Err(FrameError::Utf8),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(bytes: &[u8]) -> Result<Option<(Header, usize)>, FrameError> {
        parse_header(bytes, Role::Server, false)
    }

    #[test]
    fn every_opcode_is_either_known_or_refused() {
        for opcode in 0..16 {
            let parsed = parse(&[0x80 | opcode, 0x80, 0, 0, 0, 0]);
            match opcode {
                0..=2 | 8..=10 => assert_eq!(parsed.unwrap().unwrap().0.opcode as u8, opcode),
                _ => assert_eq!(parsed, Err(FrameError::Protocol("reserved opcode"))),
            }
        }
    }

    #[test]
    fn the_compressed_bit_is_taken_where_it_was_agreed_on() {
        for (first, expected) in [(0xc1, true), (0x41, true), (0xc2, true), (0x81, false), (0x80, false)] {
            let parsed = parse_header(&[first, 0x80, 0, 0, 0, 0], Role::Server, true);
            assert_eq!(parsed.unwrap().unwrap().0.is_compressed, expected, "{first:#x}");
        }
        for first in [0xc0, 0xc8, 0xc9, 0xca, 0xe1, 0xd1, 0xa1, 0x91] {
            let parsed = parse_header(&[first, 0x80, 0, 0, 0, 0], Role::Server, true);
            assert!(matches!(parsed, Err(FrameError::Protocol(_))), "{first:#x}");
        }
    }

    #[test]
    fn reserved_bits_are_refused() {
        for bit in [0x40, 0x20, 0x10] {
            assert!(matches!(parse(&[0x82 | bit, 0x80, 0, 0, 0, 0]), Err(FrameError::Protocol(_))));
        }
    }

    #[test]
    fn masks_are_needed_from_clients_and_refused_from_servers() {
        assert!(parse_header(&[0x82, 0x00], Role::Server, false).is_err());
        assert!(parse_header(&[0x82, 0x80, 1, 2, 3, 4], Role::Client, false).is_err());
        let (header, header_bytes) = parse_header(&[0x82, 0x03], Role::Client, false).unwrap().unwrap();
        assert_eq!((header.payload_bytes, header.mask, header_bytes), (3, [0; 4], 2));
    }

    #[test]
    fn control_frames_are_short_and_whole() {
        for opcode in 8..=10 {
            assert!(parse(&[0x80 | opcode, 0x80 | 125, 0, 0, 0, 0]).unwrap().is_some());
            assert!(parse(&[0x80 | opcode, 0x80 | 126]).is_err(), "refused before its length arrives");
            assert!(parse(&[0x80 | opcode, 0x80 | 127]).is_err());
            assert!(parse(&[opcode, 0x80]).is_err());
        }
    }

    #[test]
    fn lengths_must_be_minimal_and_below_2_to_the_63() {
        let length_16 = |bytes: u16| {
            let [high, low] = bytes.to_be_bytes();
            parse(&[0x82, 0xfe, high, low, 0, 0, 0, 0]).map(|parsed| parsed.unwrap().0.payload_bytes)
        };
        let length_64 = |bytes: u64| {
            let mut frame = vec![0x82, 0xff];
            frame.extend_from_slice(&bytes.to_be_bytes());
            frame.extend_from_slice(&[0; 4]);
            parse(&frame).map(|parsed| parsed.unwrap().0.payload_bytes)
        };
        assert_eq!(length_16(126), Ok(126));
        assert_eq!(length_16(65_535), Ok(65_535));
        assert!(length_16(125).is_err() && length_16(0).is_err());
        assert_eq!(length_64(65_536), Ok(65_536));
        assert_eq!(length_64(u64::MAX >> 1), Ok(u64::MAX >> 1));
        assert!(length_64(65_535).is_err() && length_64(0).is_err());
        assert!(length_64(1 << 63).is_err() && length_64(u64::MAX).is_err());
    }

    #[test]
    fn a_header_is_asked_for_until_it_is_whole() {
        let mut frame = Vec::new();
        write_header(FrameKind::Message, false, 70_000, Some([1, 2, 3, 4]), &mut frame);
        for end in 0..frame.len() {
            assert_eq!(parse(&frame[..end]), Ok(None));
        }
        assert_eq!(parse(&frame).unwrap().unwrap().1, frame.len());
    }

    #[test]
    fn close_payloads_follow_the_rfc() {
        let with_code = |code: u16| parse_close(&code.to_be_bytes());
        assert_eq!(parse_close(&[]), Ok(1005));
        assert!(matches!(parse_close(&[3]), Err(FrameError::Protocol(_))));
        for code in [1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1014, 3000, 3999, 4000, 4999]
        {
            assert_eq!(with_code(code), Ok(code));
        }
        for code in [0, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65_535] {
            assert!(matches!(with_code(code), Err(FrameError::Protocol(_))), "{code}");
        }
        assert_eq!(parse_close(b"\x03\xe8good night"), Ok(1000));
        assert_eq!(parse_close(b"\x03\xe8\xff"), Err(FrameError::Utf8));
        assert_eq!(parse_close(b"\x03\xe8cut \xe2\x82"), Err(FrameError::Utf8));
    }

    #[test]
    fn cut_off_characters_are_told_from_wrong_ones() {
        let euro = "\u{20ac}".as_bytes();
        assert_eq!(check_utf8(euro), Ok(3));
        assert_eq!(check_utf8(&euro[..2]), Ok(0));
        assert_eq!(check_utf8(b"abc\xf0\x9f\x98"), Ok(3));
        assert_eq!(check_utf8(b"\xed\xa0"), Err(FrameError::Utf8), "a surrogate is known by its second byte");
        assert_eq!(check_utf8(b"\xc0"), Err(FrameError::Utf8));
        assert_eq!(check_utf8(b"\xf4\x90"), Err(FrameError::Utf8));
        assert_eq!(check_utf8(b"\xe2a"), Err(FrameError::Utf8));
    }

    proptest! {
        #[test]
        fn masking_equals_the_definition(payload: Vec<u8>, mask: [u8; 4], offset in 0usize..16) {
            let offset = offset.min(payload.len());
            let mut masked = payload.clone();
            apply_mask(&mut masked[offset..], mask);
            let expected: Vec<u8> =
                payload[offset..].iter().enumerate().map(|(index, octet)| octet ^ mask[index % 4]).collect();
            prop_assert_eq!(&masked[offset..], expected);
        }

        #[test]
        fn written_headers_read_back(
            payload_bytes in prop_oneof![0usize..300, 65_000usize..66_000, Just(1usize << 24)],
            is_text: bool,
            mask: Option<[u8; 4]>,
        ) {
            let role = if mask.is_some() { Role::Server } else { Role::Client };
            let mut frame = Vec::new();
            write_header(FrameKind::Message, is_text, payload_bytes, mask, &mut frame);
            let opcode = if is_text { Opcode::Text } else { Opcode::Binary };
            let header = Header {
                opcode,
                is_compressed: false,
                is_final: true,
                payload_bytes: payload_bytes as u64,
                mask: mask.unwrap_or_default(),
            };
            prop_assert_eq!(parse_header(&frame, role, false), Ok(Some((header, frame.len()))));
            if mask.is_none() {
                prop_assert_eq!(walk_own_header(&frame), Some((frame.len(), payload_bytes)));
            }
        }
    }
}
