//! What a node that begins anew may be the only one to know: written to files beside the store, for an operator to look
//! at. One line of JSON an object:
//! ```text
//! {"kind": "realm", "key": ..., "stamp_ms": ..., "deleted": ..., "value": hex, "record": hex}
//! ```

use super::engine::{Engine, EngineError, Place};
use super::record::{Hlc, Object};
use super::sums;
use crate::replica::floor::Stamps;
use crate::replica::hashtree::{bucket_of, shard_of};
use common::ids::NodeId;
use serde_json::json;
use std::ops::ControlFlow;
use tracing::error;

/// Sets aside every object that `own` wrote after the mark of its shard. Others may know some of them: it is not known
/// which.
pub fn set_aside(
    engine: &mut dyn Engine,
    own: NodeId,
    marks: &Stamps,
    wall_ms: u64,
) -> Result<(), EngineError> {
    let (mut from, mut part) = (Some(Vec::new()), 0);
    while let Some(at) = from.take() {
        let (mut text, mut lines) = (String::new(), 0);
        engine.walk(&at, &mut |at, record| {
            if text.len() >= PART_BYTES {
                from = Some(at.to_vec());
                return ControlFlow::Break(());
            }
            if let Some((place, object)) = sums::sound(at, record)
                && is_own(&object, &place, own, marks)
            {
                text.push_str(&line(&object, record));
                lines += 1;
            }
            ControlFlow::Continue(())
        })?;
        if lines > 0 {
            let name = format!("quarantine-{wall_ms}-{part}.jsonl");
            engine.set_aside(&name, text.as_bytes())?;
            error!(
                file = name,
                objects = lines,
                "what only this node may know was set aside beside the store"
            );
            part += 1;
        }
    }
    Ok(())
}

fn is_own(object: &Object, place: &Place, own: NodeId, marks: &Stamps) -> bool {
    let mark: Hlc = marks[shard_of(bucket_of(place))];
    let entries = object.clock.entries().iter().filter(|entry| entry.actor.node == own.0);
    entries.flat_map(|entry| &entry.values).any(|value| value.hlc >= mark)
}

fn line(object: &Object, record: &[u8]) -> String {
    let used = object.resolved().and_then(|value| value.bytes);
    let line = json!({
        "kind": object.kind.name(),
        "key": object.key,
        "stamp_ms": object.last().wall_ms(),
        "deleted": used.is_none(),
        "value": used.as_deref().map(hex),
        "record": hex(record),
    });
    format!("{line}\n")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A file is ended after so many bytes.
const PART_BYTES: usize = 16 << 20;
