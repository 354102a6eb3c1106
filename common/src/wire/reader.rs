//! What the three formats have in common: a cursor that reads a message's head, and a walk over one whole value.
//!
//! ```text
//! decode ─▶ Reader (head: ids, text, slices) ─▶ walk ─▶ Sink: Nothing (check), a writer (transcode), a tree
//! ```
//! A walk is a loop with a stack of at most [`DEPTH_MAX`](crate::limits::DEPTH_MAX) levels. Nothing is allocated on the word
//! of a length field: a claim of more elements than the input has bytes is refused where it is read.

use super::{Serializer, Text, Value, WireError};
use crate::limits::DEPTH_MAX;

/// Why reading stopped. One byte, so that a result of it travels in a register; [`Fault::error`] adds the words.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(super) enum Fault {
    /// The input ends inside a value.
    End,
    /// A value of another kind than wanted; it may or may not be well formed.
    Kind,
    Depth,
    /// A dictionary key that the target format has no form for.
    Key,
    Utf8,
    /// A length field claims more than the input holds.
    Claim,
    /// A type byte the format reserves.
    Reserved,
    /// CBOR: a break outside of an indefinite-length item, or after half an entry.
    Break,
    /// CBOR: a chunk of an indefinite-length string that is not a definite string of the same kind.
    Chunk,
    /// Something follows the value.
    Trailing,
    /// JSON: another character was expected.
    Syntax,
    Number,
    Escape,
    Surrogate,
    Control,
}

impl Fault {
    /// The fault, met at byte `offset` of a value in `serializer`, in words.
    #[cold]
    pub(super) fn error(self, serializer: Serializer, offset: usize) -> WireError {
        let what = match self {
            Self::Depth => return WireError::TooDeep { depth_max: DEPTH_MAX },
            Self::Key => return WireError::Key,
            Self::End => "it ends too early",
            Self::Kind => "a value of another kind was expected",
            Self::Utf8 => "text is not UTF-8",
            Self::Claim => "a length is larger than the message",
            Self::Reserved => "a reserved type byte",
            Self::Break => "a break out of place",
            Self::Chunk => "a chunk of another kind than its string",
            Self::Trailing => "something follows the message",
            Self::Syntax => "an unexpected character",
            Self::Number => "not a number",
            Self::Escape => "not an escape sequence",
            Self::Surrogate => "half a surrogate pair",
            Self::Control => "a control character inside a string",
        };
        WireError::Malformed { format: serializer.format(), offset, what }
    }
}

/// Takes the parts of a value in the order in which they are read.
pub(super) trait Sink {
    /// False when values are of no interest; then readers only check them and call `list`, `dict` and `end`.
    const READS: bool = true;

    fn null(&mut self) -> Result<(), Fault>;
    fn bool(&mut self, value: bool) -> Result<(), Fault>;
    fn uint(&mut self, value: u64) -> Result<(), Fault>;
    /// Only negative integers.
    fn int(&mut self, value: i64) -> Result<(), Fault>;
    fn f32(&mut self, value: f32) -> Result<(), Fault>;
    fn f64(&mut self, value: f64) -> Result<(), Fault>;
    fn str(&mut self, value: &str) -> Result<(), Fault>;
    fn bin(&mut self, value: &[u8]) -> Result<(), Fault>;
    /// Begins a list of `count` elements, when the format tells. Its elements follow, then `end`.
    fn list(&mut self, count: Option<usize>) -> Result<(), Fault>;
    /// Begins a dictionary of `count` entries: a key, a value, a key ..., then `end`.
    fn dict(&mut self, count: Option<usize>) -> Result<(), Fault>;
    fn end(&mut self) -> Result<(), Fault>;
}

/// The sink of a check.
pub(super) struct Nothing;

impl Sink for Nothing {
    const READS: bool = false;

    fn null(&mut self) -> Result<(), Fault> {
        Ok(())
    }
    fn bool(&mut self, _: bool) -> Result<(), Fault> {
        Ok(())
    }
    fn uint(&mut self, _: u64) -> Result<(), Fault> {
        Ok(())
    }
    fn int(&mut self, _: i64) -> Result<(), Fault> {
        Ok(())
    }
    fn f32(&mut self, _: f32) -> Result<(), Fault> {
        Ok(())
    }
    fn f64(&mut self, _: f64) -> Result<(), Fault> {
        Ok(())
    }
    fn str(&mut self, _: &str) -> Result<(), Fault> {
        Ok(())
    }
    fn bin(&mut self, _: &[u8]) -> Result<(), Fault> {
        Ok(())
    }
    fn list(&mut self, _: Option<usize>) -> Result<(), Fault> {
        Ok(())
    }
    fn dict(&mut self, _: Option<usize>) -> Result<(), Fault> {
        Ok(())
    }
    fn end(&mut self) -> Result<(), Fault> {
        Ok(())
    }
}

/// A cursor over one encoded value. Between `open_*` and the `more` that returns false it stands inside one list or
/// dictionary, whose elements the other methods read whole; containers inside come out as checked slices.
///
/// A method that returns [`Fault::Kind`] may have moved the cursor: the value cannot be read again as another kind.
pub(super) trait Reader<'a>: Sized {
    const SERIALIZER: Serializer;

    fn new(bytes: &'a [u8]) -> Result<Self, Fault>;
    /// Bytes read so far.
    fn position(&self) -> usize;

    fn open_list(&mut self) -> Result<(), Fault>;
    fn open_dict(&mut self) -> Result<(), Fault>;
    /// Moves to the next element of the open list or entry of the open dictionary; false at its end, and from then on.
    fn more(&mut self) -> Result<bool, Fault>;
    /// Proves that nothing follows.
    fn finish(&mut self) -> Result<(), Fault>;

    /// A non-negative integer, in an integer encoding.
    fn uint(&mut self) -> Result<u64, Fault>;
    /// A string.
    fn text(&mut self) -> Result<Text<'a>, Fault>;
    /// A list; `None` when it is null.
    fn list(&mut self) -> Result<Option<&'a [u8]>, Fault>;
    /// A dictionary with string keys; `None` when it is null.
    fn dict(&mut self) -> Result<Option<&'a [u8]>, Fault>;
    /// A dictionary with string keys; no bytes when it is null or has no entry.
    fn options(&mut self) -> Result<&'a [u8], Fault>;

    /// The key of an entry: a string, or `None` when it is something else.
    fn key(&mut self) -> Result<Option<Text<'a>>, Fault>;
    /// Any value, with lists and dictionaries as slices.
    fn value(&mut self) -> Result<Value<'a>, Fault>;
    /// Feeds one whole value to `sink`. `open` levels count as open around it.
    fn walk<S: Sink>(&mut self, sink: &mut S, open: usize) -> Result<(), Fault>;
}

/// Feeds the one value that fills `bytes` to `sink`.
pub(super) fn walk_all<'a, R: Reader<'a>, S: Sink>(bytes: &'a [u8], sink: &mut S) -> Result<(), WireError> {
    let mut reader = R::new(bytes).map_err(|fault| fault.error(R::SERIALIZER, 0))?;
    reader
        .walk(sink, 0)
        .and_then(|()| reader.finish())
        .map_err(|fault| fault.error(R::SERIALIZER, reader.position()))
}

/// Levels open around the values of a message: its list.
pub(super) const OPEN_IN_MESSAGE: usize = 1;
