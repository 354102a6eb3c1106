//! UTF-8 checks, quick for the short strings that most strings are.

/// `bytes` as text when they are UTF-8.
#[inline]
pub fn text(bytes: &[u8]) -> Option<&str> {
    if is_short_ascii(bytes) {
        // SAFETY: ASCII is UTF-8.
        return Some(unsafe { std::str::from_utf8_unchecked(bytes) });
    }
    simdutf8::basic::from_utf8(bytes).ok()
}

/// True for at most [`SHORT_BYTES_MAX`] bytes of ASCII. The vector code behind `text` has a fixed cost that is larger than
/// this loop's.
#[inline]
fn is_short_ascii(bytes: &[u8]) -> bool {
    let len = bytes.len();
    if len > SHORT_BYTES_MAX {
        return false;
    }
    let mut seen = 0;
    // After the whole words comes the last word anew: it overlaps what was seen, which does no harm.
    if let Some(last) = bytes.last_chunk::<BLOCK_BYTES>() {
        let (blocks, _) = bytes.as_chunks::<BLOCK_BYTES>();
        let or = |seen, block: &[u8; BLOCK_BYTES]| seen | u128::from_ne_bytes(*block);
        let seen = or(blocks.iter().fold(0, or), last);
        return seen & HIGH_BITS == 0;
    }
    if let (Some(first), Some(last)) = (bytes.first_chunk::<8>(), bytes.last_chunk::<8>()) {
        let seen = u64::from_ne_bytes(*first) | u64::from_ne_bytes(*last);
        return seen & HIGH_BITS as u64 == 0;
    }
    for byte in bytes {
        seen |= byte;
    }
    seen < 0x80
}

const SHORT_BYTES_MAX: usize = 256;
const BLOCK_BYTES: usize = 16;
const HIGH_BITS: u128 = 0x8080_8080_8080_8080_8080_8080_8080_8080;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stray_byte_is_found_at_every_place_of_every_length() {
        for len in 0..300 {
            let mut bytes = vec![b'a'; len];
            assert!(text(&bytes).is_some());
            for at in 0..len {
                bytes[at] = 0xff;
                assert_eq!(text(&bytes), None, "{at} of {len}");
                bytes[at] = b'a';
            }
        }
        assert_eq!(text("Straße 東京".as_bytes()), Some("Straße 東京"));
    }
}
