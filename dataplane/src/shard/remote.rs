//! What the control plane says of other nodes: which there are, what they want, and which registrations are theirs.

use super::Shard;
use common::ids::{Match, RealmId};
use common::link::{Peer, RouteChange};

impl Shard {
    /// A new list of nodes that may be sent to.
    pub(super) fn take_peers(&mut self, peers: &[Peer]) {
        self.nodes.replace(peers);
        for realm in &mut self.realms {
            realm.version += 1;
        }
        self.relay_peers();
    }

    pub(super) fn take_routes(&mut self, _first_seq: u64, _changes: &[RouteChange]) {}

    pub(super) fn revoke(&mut self, _realm: RealmId, _policy: Match, _uri: &str) {}
}
