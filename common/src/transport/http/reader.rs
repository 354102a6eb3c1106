//! Taking requests out of a received stream, one at a time.

use super::Length;
use super::Problem;
use super::body::Body;
use super::head::{self, Head};
use crate::limits::UPGRADE_BYTES_MAX;

/// Takes requests out of a stream: a head by [`Reader::head`], then, once its bound was set, its body. An idle one owns no
/// heap memory. After an error the stream cannot go on.
#[derive(Debug, Default)]
pub struct Reader {
    head: Vec<u8>,
    body: Option<Body>,
}

impl Reader {
    /// Between two requests.
    pub const fn is_idle(&self) -> bool {
        self.head.is_empty() && self.body.is_none()
    }

    /// Bytes of heap memory held for an incomplete request.
    pub fn buffered_bytes(&self) -> usize {
        self.head.capacity() + self.body.as_ref().map_or(0, Body::held_bytes)
    }

    /// The next head. `chunk` is advanced past what was taken; `Ok(None)` means that it is used up.
    pub fn head(&mut self, chunk: &mut &[u8]) -> Result<Option<Head>, Problem> {
        if self.head.is_empty() {
            // Empty lines before a request are passed over (RFC 9112, 2.2).
            let start = chunk.iter().position(|octet| !matches!(octet, b'\r' | b'\n'));
            *chunk = &chunk[start.unwrap_or(chunk.len())..];
        }
        let held = self.head.len();
        let within = &chunk[..chunk.len().min(UPGRADE_BYTES_MAX - held)];
        self.head.extend_from_slice(within);
        let mut end = None;
        for at in memchr::memchr_iter(b'\n', within).map(|at| held + at) {
            // Parsers that disagree about a lone LF can be played against each other.
            if at == 0 || self.head[at - 1] != b'\r' {
                return Err(Problem::Malformed("lines must end with CR LF"));
            }
            if self.head[..=at].ends_with(b"\r\n\r\n") {
                end = Some(at + 1);
                break;
            }
        }
        let Some(end) = end else {
            if self.head.len() >= UPGRADE_BYTES_MAX {
                return Err(Problem::HeadTooLarge);
            }
            *chunk = &[];
            return Ok(None);
        };
        *chunk = &chunk[end - held..];
        let bytes = std::mem::take(&mut self.head);
        head::parse(&bytes[..end]).map(Some)
    }

    /// A body follows the head that was read, of at most `bytes_max` bytes.
    pub fn expect(&mut self, length: Length, bytes_max: usize) -> Result<(), Problem> {
        self.body = Some(Body::new(length, bytes_max)?);
        Ok(())
    }

    /// The body, once it is whole. `chunk` is advanced past what was taken.
    pub fn body(&mut self, chunk: &mut &[u8]) -> Result<Option<Vec<u8>>, Problem> {
        let Some(body) = &mut self.body else { return Ok(Some(Vec::new())) };
        if !body.take(chunk)? {
            return Ok(None);
        }
        Ok(self.body.take().map(Body::into_bytes))
    }
}
