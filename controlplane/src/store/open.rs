//! What a store finds out when it opens: who it is and what it holds.

use super::engine::{Engine, EngineError, Files, Place, Row, Write};
use super::graves::Graves;
use super::identity::Identity;
use super::record::{Actor, Hlc, Object, place};
use super::stage::SIBLINGS_WATCHED_MAX;
use super::worker::Sources;
use super::{Corrupt, Stats, conflict, sums};
use crate::replica::floor::{Floor, Pace};
use crate::replica::hashtree::{HashTree, TreeKey, bucket_of};
use common::ids::NodeId;
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::atomic::Ordering::Relaxed;
use tracing::{error, warn};

/// What a store held when it was opened.
#[derive(Default, Debug)]
pub struct Loaded {
    pub objects: Vec<Object>,
    /// Records that are not served, and why.
    pub corrupt: Vec<Corrupt>,
    /// Snapshot versions up to this one may have been used.
    pub versions_reserved: u64,
}

#[derive(Default)]
pub struct Scan {
    pub objects: Vec<Object>,
    pub corrupt: Vec<Corrupt>,
    /// The greatest stamp.
    pub hlc: Hlc,
    pub tree: HashTree,
    pub graves: Graves,
    /// Objects with values that compete.
    pub siblings: BTreeMap<Place, u64>,
}

/// Who the store is, and its collection floor. A new, copied or restored one, one whose last commit failed and one that has
/// forgotten who it is get a new epoch.
pub fn identify(
    engine: &mut dyn Engine,
    files: Files,
    pace: Pace,
    sources: &mut Sources,
    stats: &Stats,
) -> Result<(Identity, Floor), EngineError> {
    let known = match engine.meta(Row::Identity)?.map(|bytes| Identity::decode(&bytes)) {
        None => None,
        Some(Ok(known)) => Some(known),
        Some(Err(reason)) => {
            error!(%reason, "the store's identity is damaged; the node gets a new one");
            stats.corrupt.fetch_add(1, Relaxed);
            None
        }
    };
    let restored = known.is_some_and(|known| known.inode != files.inode);
    let identity = match known {
        Some(known) if known.inode == files.inode && !files.was_broken => {
            return Ok((known, floor(engine, NodeId(known.actor.node), pace, false)?));
        }
        Some(known) => {
            let actor = Actor { epoch: (sources.random)(), ..known.actor };
            warn!(was_broken = files.was_broken, %actor, "the store begins a new epoch");
            Identity { actor, inode: files.inode, ..known }
        }
        None => {
            let node = uuid::Uuid::from_u64_pair((sources.random)(), (sources.random)());
            let actor = Actor { node: node.into_bytes(), epoch: (sources.random)() };
            Identity { actor, inode: files.inode, versions_reserved: 0 }
        }
    };
    let mut floor = floor(engine, NodeId(identity.actor.node), pace, restored)?;
    // At once: in its next life a copy is not known as one.
    let mut writes = vec![Write::Meta { row: Row::Identity, bytes: identity.encode() }];
    writes.extend(floor.row().map(|bytes| Write::Meta { row: Row::Floor, bytes }));
    engine.commit(&writes)?;
    engine.forget_broken();
    floor.stored();
    Ok((identity, floor))
}

/// A node that has forgotten whom it met is taken for one that met somebody.
fn floor(engine: &dyn Engine, node: NodeId, pace: Pace, restored: bool) -> Result<Floor, EngineError> {
    let row = engine.meta(Row::Floor)?;
    Ok(Floor::new(node, pace, row.as_deref(), restored).unwrap_or_else(|reason| {
        error!(%reason, "the row of the collection floor is damaged");
        Floor::unknown(node, pace)
    }))
}

/// Reads and proves every record.
pub fn scan(
    engine: &dyn Engine,
    tree_key: &TreeKey,
    floor: &Floor,
    stats: &Stats,
) -> Result<Scan, EngineError> {
    let mut scan = Scan::default();
    engine.walk(&[], &mut |key, record| {
        match Object::decode(record) {
            Ok(object) if place(object.kind, &object.key) == key => {
                scan.hlc = scan.hlc.max(object.last());
                let place = place(object.kind, &object.key);
                if sums::counts(floor.floors(), &place, &object) {
                    scan.tree.add(bucket_of(&place), tree_key.hash(&place, record));
                }
                Graves::stamp(&object).into_iter().for_each(|stamp| scan.graves.add(place, stamp));
                if conflict::competes(&object) && scan.siblings.len() < SIBLINGS_WATCHED_MAX {
                    scan.siblings.insert(place, 0);
                }
                scan.objects.push(object);
            }
            other => {
                let place: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
                let reason =
                    other.err().map_or("it is another object's".to_owned(), |error| error.to_string());
                error!(place, reason, "a damaged record is not served");
                stats.corrupt.fetch_add(1, Relaxed);
                scan.corrupt.push(Corrupt { place, reason });
            }
        }
        ControlFlow::Continue(())
    })?;
    Ok(scan)
}
