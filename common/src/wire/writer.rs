//! Sinks that write a value: what [`transcode`](super::transcode) feeds.

use super::json_text;
use super::reader::{Fault, Sink};
use crate::limits::DEPTH_MAX;
use arrayvec::ArrayVec;
use std::marker::PhantomData;

/// How a binary format writes what a value is made of. Each function appends to `out`.
pub(super) trait Format {
    /// The largest count that a list's or dictionary's one-byte header holds.
    const SMALL_COUNT_MAX: usize;

    fn null(out: &mut Vec<u8>);
    fn bool(out: &mut Vec<u8>, value: bool);
    fn uint(out: &mut Vec<u8>, value: u64);
    fn int(out: &mut Vec<u8>, value: i64);
    fn f32(out: &mut Vec<u8>, value: f32);
    fn f64(out: &mut Vec<u8>, value: f64);
    fn str(out: &mut Vec<u8>, value: &str);
    fn bin(out: &mut Vec<u8>, value: &[u8]);
    /// The header of a list of `count` elements.
    fn list(out: &mut Vec<u8>, count: usize);
    /// The header of a dictionary of `count` entries.
    fn dict(out: &mut Vec<u8>, count: usize);
}

/// Writes a value in a binary format.
///
/// A container of unknown length gets a one-byte header, filled in at its end. Headers that turn out to need more
/// bytes are noted and widened together by [`BinaryWriter::finish`], in one pass from the back: widening each at its end would
/// move the innermost bytes once a level.
pub(super) struct BinaryWriter<'o, F> {
    out: &'o mut Vec<u8>,
    open: ArrayVec<Container, DEPTH_MAX>,
    wide: Vec<Container>,
    format: PhantomData<F>,
}

struct Container {
    /// Where its one-byte header is; `None` when the header was written with a count.
    header: Option<usize>,
    dict: bool,
    /// Elements so far; keys and values of a dictionary count apart.
    items: usize,
}

impl<'o, F: Format> BinaryWriter<'o, F> {
    pub fn new(out: &'o mut Vec<u8>) -> Self {
        Self { out, open: ArrayVec::new(), wide: Vec::new(), format: PhantomData }
    }

    /// To be called after the value.
    pub fn finish(self) {
        if !self.wide.is_empty() {
            widen::<F>(self.out, self.wide);
        }
    }

    #[inline(always)]
    fn item(&mut self) {
        if let Some(container) = self.open.last_mut() {
            container.items += 1;
        }
    }

    #[inline(always)]
    fn begin(&mut self, dict: bool, count: Option<usize>) -> Result<(), Fault> {
        self.item();
        let header = if count.is_some() { None } else { Some(self.out.len()) };
        Self::header(self.out, dict, count.unwrap_or(0));
        self.open.try_push(Container { header, dict, items: 0 }).map_err(|_| Fault::Depth)
    }

    #[inline(always)]
    fn header(out: &mut Vec<u8>, dict: bool, count: usize) {
        if dict { F::dict(out, count) } else { F::list(out, count) }
    }
}

impl Container {
    #[inline]
    fn count(&self) -> usize {
        if self.dict { self.items / 2 } else { self.items }
    }
}

impl<F: Format> Sink for BinaryWriter<'_, F> {
    #[inline]
    fn null(&mut self) -> Result<(), Fault> {
        self.item();
        F::null(self.out);
        Ok(())
    }

    #[inline]
    fn bool(&mut self, value: bool) -> Result<(), Fault> {
        self.item();
        F::bool(self.out, value);
        Ok(())
    }

    #[inline]
    fn uint(&mut self, value: u64) -> Result<(), Fault> {
        self.item();
        F::uint(self.out, value);
        Ok(())
    }

    #[inline]
    fn int(&mut self, value: i64) -> Result<(), Fault> {
        self.item();
        F::int(self.out, value);
        Ok(())
    }

    #[inline]
    fn f32(&mut self, value: f32) -> Result<(), Fault> {
        self.item();
        F::f32(self.out, value);
        Ok(())
    }

    #[inline]
    fn f64(&mut self, value: f64) -> Result<(), Fault> {
        self.item();
        F::f64(self.out, value);
        Ok(())
    }

    #[inline]
    fn str(&mut self, value: &str) -> Result<(), Fault> {
        self.item();
        F::str(self.out, value);
        Ok(())
    }

    #[inline]
    fn bin(&mut self, value: &[u8]) -> Result<(), Fault> {
        self.item();
        F::bin(self.out, value);
        Ok(())
    }

    #[inline]
    fn list(&mut self, count: Option<usize>) -> Result<(), Fault> {
        self.begin(false, count)
    }

    #[inline]
    fn dict(&mut self, count: Option<usize>) -> Result<(), Fault> {
        self.begin(true, count)
    }

    #[inline]
    fn end(&mut self) -> Result<(), Fault> {
        let container = self.open.pop().expect("every end follows its beginning");
        let Some(header) = container.header else { return Ok(()) };
        let count = container.count();
        if count > F::SMALL_COUNT_MAX {
            self.wide.push(container);
        } else {
            // An empty container's header plus its count is the header of that count in both formats.
            self.out[header] += count as u8;
        }
        Ok(())
    }
}

/// Gives each of the `wide` containers, noted at their ends, a header that holds its count.
#[cold]
fn widen<F: Format>(out: &mut Vec<u8>, mut wide: Vec<Container>) {
    wide.sort_unstable_by_key(|container| container.header);
    let mut header = Vec::with_capacity(HEADER_BYTES_MAX);
    let mut source = out.len();
    let extra: usize = wide
        .iter()
        .map(|container| {
            header.clear();
            BinaryWriter::<F>::header(&mut header, container.dict, container.count());
            header.len() - 1
        })
        .sum();
    let mut target = source + extra;
    out.resize(target, 0);
    for container in wide.iter().rev() {
        let at = container.header.expect("only headers without a count are noted");
        let behind = at + 1;
        target -= source - behind;
        out.copy_within(behind..source, target);
        header.clear();
        BinaryWriter::<F>::header(&mut header, container.dict, container.count());
        target -= header.len();
        out[target..target + header.len()].copy_from_slice(&header);
        source = at;
    }
    debug_assert_eq!(source, target, "all room made was used");
}

const HEADER_BYTES_MAX: usize = 9;

/// Writes a value in JSON. Byte strings become U+0000 and base64, floats that are not finite become null, and keys that are
/// integers or booleans become their text. Other keys have no form: [`Fault::Key`].
pub(super) struct JsonWriter<'o> {
    out: &'o mut Vec<u8>,
    /// One bit a level, the innermost lowest: whether it is a dictionary.
    dicts: u64,
    depth: usize,
    /// True at the beginning of a container.
    first: bool,
    /// True where a dictionary's key is due.
    key: bool,
}

impl<'o> JsonWriter<'o> {
    pub fn new(out: &'o mut Vec<u8>) -> Self {
        Self { out, dicts: 0, depth: 0, first: true, key: false }
    }

    /// Writes what stands between the item before and the next one, and says whether that is a key.
    #[inline(always)]
    fn before(&mut self) -> bool {
        let dict = self.dicts & 1 == 1;
        if dict && !self.key {
            self.out.push(b':');
        } else if !self.first {
            self.out.push(b',');
        }
        self.first = self.depth == 0;
        let key = self.key;
        self.key = dict && !key;
        key
    }

    /// Writes an item that can be a key in quotes.
    #[inline(always)]
    fn quoted_as_key(&mut self, put: impl FnOnce(&mut Vec<u8>)) -> Result<(), Fault> {
        if self.before() {
            self.out.push(b'"');
            put(self.out);
            self.out.push(b'"');
        } else {
            put(self.out);
        }
        Ok(())
    }

    /// Writes an item that cannot be a key.
    #[inline(always)]
    fn never_key(&mut self, put: impl FnOnce(&mut Vec<u8>)) -> Result<(), Fault> {
        if self.before() {
            return Err(Fault::Key);
        }
        put(self.out);
        Ok(())
    }

    #[inline(always)]
    fn begin(&mut self, dict: bool) -> Result<(), Fault> {
        self.never_key(|out| out.push(if dict { b'{' } else { b'[' }))?;
        if self.depth == DEPTH_MAX {
            return Err(Fault::Depth);
        }
        self.depth += 1;
        self.dicts = self.dicts << 1 | u64::from(dict);
        self.first = true;
        self.key = dict;
        Ok(())
    }
}

impl Sink for JsonWriter<'_> {
    #[inline]
    fn null(&mut self) -> Result<(), Fault> {
        self.never_key(|out| out.extend_from_slice(b"null"))
    }

    #[inline]
    fn bool(&mut self, value: bool) -> Result<(), Fault> {
        self.quoted_as_key(|out| out.extend_from_slice(if value { b"true" } else { b"false" }))
    }

    #[inline]
    fn uint(&mut self, value: u64) -> Result<(), Fault> {
        self.quoted_as_key(|out| json_text::put_uint(out, value))
    }

    #[inline]
    fn int(&mut self, value: i64) -> Result<(), Fault> {
        self.quoted_as_key(|out| json_text::put_int(out, value))
    }

    #[inline]
    fn f32(&mut self, value: f32) -> Result<(), Fault> {
        self.f64(f64::from(value))
    }

    #[inline]
    fn f64(&mut self, value: f64) -> Result<(), Fault> {
        self.never_key(|out| json_text::put_float(out, value))
    }

    #[inline]
    fn str(&mut self, value: &str) -> Result<(), Fault> {
        self.before();
        json_text::put_str(self.out, value);
        Ok(())
    }

    #[inline]
    fn bin(&mut self, value: &[u8]) -> Result<(), Fault> {
        self.never_key(|out| json_text::put_bin(out, value))
    }

    #[inline]
    fn list(&mut self, _: Option<usize>) -> Result<(), Fault> {
        self.begin(false)
    }

    #[inline]
    fn dict(&mut self, _: Option<usize>) -> Result<(), Fault> {
        self.begin(true)
    }

    #[inline]
    fn end(&mut self) -> Result<(), Fault> {
        self.out.push(if self.dicts & 1 == 1 { b'}' } else { b']' });
        self.depth -= 1;
        self.dicts >>= 1;
        self.first = self.depth == 0;
        // In a dictionary a container is a value, so a key comes next.
        self.key = self.dicts & 1 == 1;
        Ok(())
    }
}
