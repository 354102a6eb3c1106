//! One line of the log for each thing worth one.

use crate::cluster::Notice as Cluster;
use crate::node::Notice;
use crate::replica::exchange::Tally;
use tracing::{debug, error, info, warn};

/// Of the node and its data plane.
pub fn node(notice: &Notice) {
    match notice {
        Notice::Linked { pid, epoch, known } => {
            info!(pid, epoch = format!("{:016x}", epoch.0), claims_known = known, "data plane linked");
        }
        Notice::Lost { pid, expected: true } => info!(pid, "the data plane has left"),
        Notice::Lost { pid, expected: false } => warn!(pid, "the link to the data plane is gone"),
        Notice::Refused { link, reason } => warn!(link = link.0, reason, "refused a link"),
        Notice::Violation { link, reason } => error!(link = link.0, reason, "closed a link"),
        Notice::SnapshotRefused { version, reason } => {
            error!(version = version.0, reason, "the data plane refused a snapshot");
        }
        Notice::Resynced { shard, seq } => debug!(shard = shard.0, seq, "claims are whole"),
        Notice::Draining { pid } => info!(pid, "the data plane is draining"),
    }
}

/// Of the cluster.
pub fn cluster(notice: &Cluster) {
    match notice {
        Cluster::Joined { after, members: 0, .. } => info!(?after, "no other node was found; serving alone"),
        Cluster::Joined { after, members, without } if without.is_empty() => {
            info!(?after, members, "joined the cluster");
        }
        Cluster::Joined { after, members, without } => {
            let without: Vec<_> = without.iter().map(ToString::to_string).collect();
            warn!(?after, members, without = without.join(" "), "joined, without the state of some nodes");
        }
        Cluster::Exchanged { peer, tally } if *tally == Tally::default() => {
            debug!(%peer, "objects are equal");
        }
        Cluster::Exchanged { peer, tally } => {
            let Tally { shards, merged, sent, refused } = tally;
            info!(%peer, shards, merged, sent, refused, "objects were compared and differed");
        }
        Cluster::Aborted { peer, why } => debug!(%peer, %why, "an exchange broke off"),
        Cluster::Violation { peer, channel, reason } => {
            error!(%peer, channel = channel.name(), reason, "closed the link to a node");
        }
        Cluster::ClaimsEnded => warn!("the data plane did not come back; its routes are withdrawn"),
        Cluster::Refused { reason } => warn!(reason, "a record of another node is not used"),
    }
}
