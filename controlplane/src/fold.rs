//! A snapshot to be built: what it says besides routes, and the routes of this node and of others, shared with their tables.
//! It may be built on any thread while the tables change.

use crate::registry::Holders;
use crate::remote;
use crate::table::{Row, Rows};
use common::ids::{NodeId, ShardSet};
use common::snapshot::{NodeShare, RouteRef, Source, build_sorted};
use std::cmp::Ordering;
use std::collections::HashMap;

#[derive(Clone, PartialEq, Debug)]
pub struct Fold {
    /// Without routes.
    pub head: Source,
    pub local: Rows<Holders>,
    pub remote: remote::Shared,
}

impl Fold {
    /// The bytes of the snapshot; `seed` keys the hashes of its indexes. Takes about a microsecond a route.
    pub fn build(&self, seed: u64) -> impl AsRef<[u8]> + use<> {
        let (routes, lists) = self.routes();
        let head = Source { shares: self.shares(), ..self.head.clone() };
        build_sorted(&head, routes, &lists, seed)
    }

    /// What other nodes say of callees that share procedures.
    pub fn shares(&self) -> Vec<NodeShare> {
        let of_row = |row: &Row<remote::Shares>| {
            let nodes = &self.remote.nodes;
            let said = |(slot, share): &(u16, common::share::Share)| {
                let node = nodes.get(usize::from(*slot)).copied().flatten()?;
                let (realm, policy, uri) = (row.realm, row.policy, std::sync::Arc::clone(&row.uri));
                Some(NodeShare { realm, policy, uri, node, share: *share })
            };
            row.value.iter().filter_map(said).collect::<Vec<_>>()
        };
        self.remote.shares.iter().flat_map(of_row).collect()
    }

    /// The routes in order, and the lists of nodes they name by index.
    pub fn routes(&self) -> (Vec<RouteRef<'_>>, Vec<Vec<NodeId>>) {
        let mut routes = Vec::with_capacity(self.local.len() + self.remote.routes.len());
        let mut lists = Lists::new(&self.remote.nodes);
        let mut local = self.local.iter().peekable();
        let mut remote = self.remote.routes.iter().peekable();
        loop {
            let order = match (local.peek(), remote.peek()) {
                (None, None) => break,
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
                (Some(local), Some(remote)) => local.key().cmp(&remote.key()),
            };
            let here = local.next_if(|_| order.is_le());
            let there = remote.next_if(|_| order.is_ge());
            let list = there.map_or(0, |row| lists.of(&row.value));
            let shards = here.map_or(ShardSet::EMPTY, |row| row.value.shards);
            // A route that only reset nodes wanted is not one any more.
            if list == 0 && shards.is_empty() {
                continue;
            }
            routes.extend(
                here.map(|row| route(row, shards, list)).or(there.map(|row| route(row, shards, list))),
            );
        }
        (routes, lists.lists)
    }
}

fn route<V>(row: &Row<V>, shards: ShardSet, list: u32) -> RouteRef<'_> {
    RouteRef { realm: row.realm, kind: row.kind, policy: row.policy, uri: &row.uri, shards, list }
}

/// The lists of nodes of a snapshot.
struct Lists<'a> {
    nodes: &'a [Option<NodeId>],
    lists: Vec<Vec<NodeId>>,
    /// By address: equal sets are one allocation, and those of a snapshot live as long as it is built.
    known: HashMap<*const u16, u32>,
}

impl<'a> Lists<'a> {
    fn new(nodes: &'a [Option<NodeId>]) -> Self {
        Self { nodes, lists: vec![Vec::new()], known: HashMap::new() }
    }

    /// The index of the list for a set of slots.
    fn of(&mut self, slots: &remote::Slots) -> u32 {
        *self.known.entry(slots.as_ptr()).or_insert_with(|| {
            let node = |slot: &u16| self.nodes.get(usize::from(*slot)).copied().flatten();
            let list: Vec<_> = slots.iter().filter_map(node).collect();
            if list.is_empty() {
                return 0;
            }
            self.lists.push(list);
            self.lists.len() as u32 - 1
        })
    }
}
