//! The body of a request, by its length or in chunks (RFC 9112, 7.1).

use super::{Length, Problem};

/// Longest chunk size, in digits: 2^64 has no more.
const SIZE_DIGITS_MAX: u8 = 16;
/// Longest line of a chunk besides its size (extensions), and of all trailers together.
const PASSED_OVER_BYTES_MAX: u16 = 4_096;

/// A body that comes in.
#[derive(Debug)]
pub(super) struct Body {
    bytes: Vec<u8>,
    bytes_max: usize,
    step: Step,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Step {
    /// So many bytes are missing, and then it is whole.
    Bytes(u64),
    /// In the line with a chunk's size.
    Size {
        size: u64,
        digits: u8,
    },
    /// Behind the size; so many bytes were passed over. `ending`: the line's CR has come.
    Extension {
        size: u64,
        passed: u16,
        ending: bool,
    },
    Chunk(u64),
    /// Behind a chunk: CR, then LF.
    ChunkEnd {
        ending: bool,
    },
    /// Behind the last chunk; so many bytes were passed over, so many of the line in hand.
    Trailer {
        passed: u16,
        line: u16,
        ending: bool,
    },
    Whole,
}

impl Body {
    /// A body of a known length is compared with the bound at once.
    pub fn new(length: Length, bytes_max: usize) -> Result<Self, Problem> {
        let step = match length {
            Length::Unsaid | Length::Bytes(0) => Step::Whole,
            Length::Bytes(bytes) if bytes > bytes_max as u64 => return Err(Problem::TooLarge),
            Length::Bytes(bytes) => Step::Bytes(bytes),
            Length::Chunked => Step::Size { size: 0, digits: 0 },
        };
        Ok(Self { bytes: Vec::new(), bytes_max, step })
    }

    pub fn held_bytes(&self) -> usize {
        self.bytes.capacity()
    }

    /// Takes of `chunk` what belongs to the body. True: it is whole.
    pub fn take(&mut self, chunk: &mut &[u8]) -> Result<bool, Problem> {
        while self.step != Step::Whole {
            self.step = match self.step {
                Step::Bytes(left) => match self.copy(left, chunk) {
                    0 => Step::Whole,
                    left if chunk.is_empty() => {
                        self.step = Step::Bytes(left);
                        return Ok(false);
                    }
                    left => Step::Bytes(left),
                },
                Step::Chunk(left) => match self.copy(left, chunk) {
                    0 => Step::ChunkEnd { ending: false },
                    left if chunk.is_empty() => {
                        self.step = Step::Chunk(left);
                        return Ok(false);
                    }
                    left => Step::Chunk(left),
                },
                step => {
                    let Some((octet, rest)) = chunk.split_first() else { return Ok(false) };
                    *chunk = rest;
                    self.octet(step, *octet)?
                }
            };
        }
        Ok(true)
    }

    /// The whole body.
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    /// Takes up to `left` bytes; returns how many are left then.
    fn copy(&mut self, left: u64, chunk: &mut &[u8]) -> u64 {
        let bytes = left.min(chunk.len() as u64);
        let (taken, rest) = chunk.split_at(bytes as usize);
        self.bytes.extend_from_slice(taken);
        *chunk = rest;
        left - bytes
    }

    /// An octet of the lines around chunks.
    fn octet(&self, step: Step, octet: u8) -> Result<Step, Problem> {
        const WRONG: Problem = Problem::Malformed("the chunks of the body are not right");
        match (step, octet) {
            (Step::Size { size, digits }, _) if octet.is_ascii_hexdigit() => {
                if digits == SIZE_DIGITS_MAX {
                    return Err(WRONG);
                }
                let digit = char::from(octet).to_digit(16).map_or(0, u64::from);
                Ok(Step::Size { size: size << 4 | digit, digits: digits + 1 })
            }
            (Step::Size { size, digits: 1.. }, _) => {
                let room = (self.bytes_max - self.bytes.len()) as u64;
                if size > room {
                    return Err(Problem::TooLarge);
                }
                self.octet(Step::Extension { size, passed: 0, ending: false }, octet)
            }
            (Step::Extension { size: 0, ending: true, .. }, b'\n') => {
                Ok(Step::Trailer { passed: 0, line: 0, ending: false })
            }
            (Step::Extension { size, ending: true, .. }, b'\n') => Ok(Step::Chunk(size)),
            (Step::Extension { size, passed, ending: false }, _)
                if octet != b'\n' && passed < PASSED_OVER_BYTES_MAX =>
            {
                Ok(Step::Extension { size, passed: passed + 1, ending: octet == b'\r' })
            }
            (Step::ChunkEnd { ending: false }, b'\r') => Ok(Step::ChunkEnd { ending: true }),
            (Step::ChunkEnd { ending: true }, b'\n') => Ok(Step::Size { size: 0, digits: 0 }),
            (Step::Trailer { line: 0, ending: true, .. }, b'\n') => Ok(Step::Whole),
            (Step::Trailer { passed, ending: true, .. }, b'\n') => {
                Ok(Step::Trailer { passed, line: 0, ending: false })
            }
            (Step::Trailer { passed, line, ending: false }, b'\r') => {
                Ok(Step::Trailer { passed, line, ending: true })
            }
            (Step::Trailer { passed, line, ending: false }, _)
                if octet != b'\n' && passed < PASSED_OVER_BYTES_MAX =>
            {
                Ok(Step::Trailer { passed: passed + 1, line: line + 1, ending: false })
            }
            _ => Err(WRONG),
        }
    }
}
