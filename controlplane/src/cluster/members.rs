//! The other nodes: what membership says of each, and its link. Pure.

use super::status::LinkStatus;
use crate::swim::{Member, State};
use common::ids::{NODES_MAX, NodeId};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

#[derive(Debug, Default)]
pub struct Members {
    rows: BTreeMap<NodeId, Row>,
}

#[derive(Debug)]
pub struct Row {
    /// None: there is a link, and membership does not know the node (any more).
    pub member: Option<Member>,
    pub link: Option<Link>,
    /// When it came to be known to live, this time.
    pub lives_since: Option<Instant>,
}

#[derive(Clone, Copy, Debug)]
pub struct Link {
    pub since: Instant,
    pub rtt: Option<Duration>,
}

/// What became of a node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Change {
    /// It lives: it is new, back, or was started again.
    Up(NodeId),
    Down(NodeId),
    /// It said good-bye or was forgotten.
    Left(NodeId),
}

impl Row {
    pub fn is_alive(&self) -> bool {
        self.member.as_ref().is_some_and(|member| lives(member.state))
    }
}

impl Link {
    pub fn status(self, now: Instant) -> LinkStatus {
        LinkStatus { up_for: now.saturating_duration_since(self.since), rtt: self.rtt }
    }
}

/// Suspects are not given up yet.
fn lives(state: State) -> bool {
    matches!(state, State::Alive | State::Suspect)
}

impl Members {
    /// All members, as membership has them now. Returns what changed.
    pub fn set(&mut self, now: Instant, members: &[Member]) -> Vec<Change> {
        let mut changes = Vec::new();
        let mut seen: BTreeMap<NodeId, &Member> = BTreeMap::new();
        for member in members.iter().take(NODES_MAX) {
            seen.insert(NodeId(member.identity.node.into_bytes()), member);
        }
        for (node, row) in &mut self.rows {
            if row.member.is_some() && !seen.contains_key(node) {
                row.member = None;
                row.lives_since = None;
                changes.push(Change::Left(*node));
            }
        }
        for (node, member) in seen {
            let row = self.rows.entry(node).or_insert(Row { member: None, link: None, lives_since: None });
            let was = row.member.replace(member.clone());
            let before = was.as_ref().map(|was| was.state);
            let renewed = was.is_some_and(|was| was.identity != member.identity);
            let is_up = lives(member.state);
            if is_up && (renewed || !before.is_some_and(lives)) {
                row.lives_since = Some(now);
                changes.push(Change::Up(node));
            } else if !is_up {
                row.lives_since = None;
                match member.state {
                    _ if before == Some(member.state) => {}
                    State::Left => changes.push(Change::Left(node)),
                    _ => changes.push(Change::Down(node)),
                }
            }
        }
        self.rows.retain(|_, row| row.member.is_some() || row.link.is_some());
        changes
    }

    pub fn link_up(&mut self, now: Instant, node: NodeId) {
        let row = self.rows.entry(node).or_insert(Row { member: None, link: None, lives_since: None });
        row.link = Some(Link { since: now, rtt: None });
    }

    pub fn link_down(&mut self, node: NodeId) {
        if let Some(row) = self.rows.get_mut(&node) {
            row.link = None;
            if row.member.is_none() {
                self.rows.remove(&node);
            }
        }
    }

    /// True when it was linked.
    pub fn rtt(&mut self, node: NodeId, rtt: Duration) -> bool {
        let link = self.rows.get_mut(&node).and_then(|row| row.link.as_mut());
        link.map(|link| link.rtt = Some(rtt)).is_some()
    }

    pub fn iter(&self) -> impl Iterator<Item = (NodeId, &Row)> {
        self.rows.iter().map(|(node, row)| (*node, row))
    }

    pub fn linked(&self) -> impl Iterator<Item = NodeId> {
        self.iter().filter(|(_, row)| row.link.is_some()).map(|(node, _)| node)
    }

    /// Nodes that are not known to be gone.
    pub fn alive(&self) -> impl Iterator<Item = (NodeId, &Row)> {
        self.iter().filter(|(_, row)| row.is_alive())
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::swim::identity::Identity;
    use uuid::Uuid;

    pub fn member(node: u8, epoch: u64, state: State, now: Instant) -> Member {
        let address = std::net::SocketAddr::from(([127, 0, 0, 1], u16::from(node)));
        let unknown = Identity::unknown_at(address);
        let identity = Identity { node: Uuid::from_bytes([node; 16]), epoch, ..unknown };
        Member { identity, state, since: now }
    }

    #[test]
    fn changes_are_told_once() {
        let (mut members, now) = (Members::default(), Instant::now());
        let node = NodeId([1; 16]);
        let mut set = |members_now: &[Member]| members.set(now, members_now);
        assert_eq!(set(&[member(1, 1, State::Alive, now)]), [Change::Up(node)]);
        assert_eq!(set(&[member(1, 1, State::Suspect, now)]), []);
        assert_eq!(set(&[member(1, 1, State::Alive, now)]), []);
        assert_eq!(set(&[member(1, 1, State::Down, now)]), [Change::Down(node)]);
        assert_eq!(set(&[member(1, 1, State::Down, now)]), []);
        assert_eq!(set(&[member(1, 1, State::Alive, now)]), [Change::Up(node)]);
        assert_eq!(set(&[member(1, 2, State::Alive, now)]), [Change::Up(node)], "another life");
        assert_eq!(set(&[member(1, 2, State::Left, now)]), [Change::Left(node)]);
        assert_eq!(set(&[]), [Change::Left(node)], "forgotten");
        assert_eq!(set(&[]), []);
    }

    #[test]
    fn a_link_outlives_its_member_until_it_is_closed() {
        let (mut members, now) = (Members::default(), Instant::now());
        let node = NodeId([1; 16]);
        members.set(now, &[member(1, 1, State::Alive, now)]);
        members.link_up(now, node);
        members.set(now, &[]);
        assert!(members.iter().any(|(linked, row)| linked == node && row.link.is_some()));
        assert!(members.alive().next().is_none());
        members.link_down(node);
        assert!(members.iter().next().is_none());
    }
}
