//! A tree, written in one serializer and carried through a list of others: each step must keep what its format can hold.
#![no_main]

use arbitrary::Arbitrary;
use common::wire::{OwnedValue, Serializer, transcode};
use libfuzzer_sys::fuzz_target;

#[derive(Arbitrary, Debug)]
enum Tree {
    Null,
    Bool(bool),
    UInt(u64),
    Int(i64),
    Float(f64),
    Str(String),
    Bin(Vec<u8>),
    List(Vec<Tree>),
    /// A list of one number so often, to reach the longer headers.
    Repeat(u64, u16),
    Dict(Vec<(String, Tree)>),
}

impl Tree {
    /// The tree, cut where it is deeper than a message can be or larger than `left` values.
    fn value(&self, levels: usize, left: &mut usize) -> OwnedValue {
        *left = left.saturating_sub(1);
        match self {
            Self::Bool(value) => OwnedValue::from(*value),
            Self::UInt(value) => OwnedValue::from(*value),
            Self::Int(value) => OwnedValue::from(*value),
            Self::Float(value) => OwnedValue::from(*value),
            // U+0000 in front means a byte string in JSON.
            Self::Str(value) => OwnedValue::from(value.trim_start_matches('\0')),
            Self::Bin(value) => OwnedValue::from(value.clone()),
            Self::List(elements) if levels > 0 => {
                OwnedValue::List(elements.iter().map(|element| element.value(levels - 1, left)).collect())
            }
            Self::Repeat(element, count) if levels > 0 => {
                let count = usize::from(*count).min(*left);
                *left -= count;
                OwnedValue::List(vec![OwnedValue::from(*element); count])
            }
            Self::Dict(entries) if levels > 0 => OwnedValue::Dict(
                entries.iter().map(|(key, value)| (key.clone(), value.value(levels - 1, left))).collect(),
            ),
            _ => OwnedValue::Null,
        }
    }
}

fuzz_target!(|input: (Tree, u8, Vec<u8>)| {
    let (tree, first, journey) = input;
    let choose = |choice: u8| Serializer::ALL[usize::from(choice) % Serializer::ALL.len()];
    let mut value = tree.value(common::limits::DEPTH_MAX, &mut 100_000);
    let mut at = choose(first);
    let mut bytes = value.to_bytes(at);
    for choice in std::iter::once(first).chain(journey.into_iter().take(4)) {
        let next = choose(choice);
        let mut out = Vec::new();
        transcode::value(at, &bytes, next, &mut out).expect("trees have a form in every format");
        bytes = out;
        at = next;
        if at == Serializer::Json {
            finite(&mut value);
        }
        assert_eq!(bytes, value.to_bytes(at));
    }
});

/// Makes null what JSON cannot write.
fn finite(value: &mut OwnedValue) {
    match value {
        OwnedValue::Float(float) if !float.is_finite() => *value = OwnedValue::Null,
        OwnedValue::List(elements) => elements.iter_mut().for_each(finite),
        OwnedValue::Dict(entries) => entries.iter_mut().for_each(|(_, value)| finite(value)),
        _ => {}
    }
}
