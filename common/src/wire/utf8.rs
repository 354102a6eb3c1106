//! UTF-8 checks, quick for the short strings that most strings are.

/// `bytes` as text when they are UTF-8.
#[inline]
pub(super) fn text(bytes: &[u8]) -> Option<&str> {
    if is_short_ascii(bytes) {
        // SAFETY: ASCII is UTF-8.
        return Some(unsafe { std::str::from_utf8_unchecked(bytes) });
    }
    simdutf8::basic::from_utf8(bytes).ok()
}

/// True for at most [`SHORT_BYTES_MAX`] bytes of ASCII. The vector code below has a fixed cost that is larger than this loop's.
#[inline]
fn is_short_ascii(bytes: &[u8]) -> bool {
    let len = bytes.len();
    if len > SHORT_BYTES_MAX {
        return false;
    }
    if len < 8 {
        return bytes.is_ascii();
    }
    let mut seen = 0;
    let mut rest = bytes;
    while let Some((word, after)) = rest.split_first_chunk::<8>() {
        seen |= u64::from_ne_bytes(*word);
        rest = after;
    }
    // The last word again or anew: it may overlap the one before, which does no harm.
    if let Some(word) = bytes.last_chunk::<8>() {
        seen |= u64::from_ne_bytes(*word);
    }
    seen & HIGH_BITS == 0
}

const SHORT_BYTES_MAX: usize = 64;
const HIGH_BITS: u64 = 0x8080_8080_8080_8080;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stray_byte_is_found_at_every_place_of_every_length() {
        for len in 0..200 {
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
