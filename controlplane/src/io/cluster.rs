//! What reaches the driver from other nodes: members, links and their round-trip times.

use super::peers::{LinkStats, Members, PeerEvent, Peers};
use std::future::pending;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::time::{Interval, MissedTickBehavior, interval};

/// The driver's ends of membership and links.
pub struct Links {
    pub peers: Peers,
    events: mpsc::Receiver<PeerEvent>,
    members: watch::Receiver<Members>,
    /// The members are to be looked at although they have not changed.
    fresh: bool,
    measure: Interval,
}

/// Something from other nodes.
pub enum News {
    Peer(PeerEvent),
    Members(Members),
    Links(Vec<LinkStats>),
}

impl Links {
    pub fn new(peers: Peers, events: mpsc::Receiver<PeerEvent>, members: watch::Receiver<Members>) -> Self {
        let mut measure = interval(MEASURE_PERIOD);
        measure.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self { peers, events, members, fresh: true, measure }
    }

    /// The next news; none come once membership has ended. Nothing is lost when the wait is given up.
    pub async fn next(&mut self) -> News {
        if std::mem::take(&mut self.fresh) {
            return News::Members(self.members.borrow_and_update().clone());
        }
        tokio::select! {
            // A node's members come first: its link is up only when it is one.
            biased;
            changed = self.members.changed() => match changed {
                Ok(()) => News::Members(self.members.borrow_and_update().clone()),
                Err(_) => pending().await,
            },
            event = self.events.recv() => match event {
                Some(event) => News::Peer(event),
                None => pending().await,
            },
            _ = self.measure.tick() => News::Links(self.peers.links()),
        }
    }
}

/// Round-trip times are looked at this often.
const MEASURE_PERIOD: Duration = Duration::from_secs(1);
