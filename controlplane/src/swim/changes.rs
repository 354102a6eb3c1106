//! What is new between two views of the members. Pure.
//!
//! Who looks now and then misses what came and went in between, and never what holds in the end: a list of changes that is
//! bounded by the number of members.

use super::{Change, Member, State};
use std::cmp::Ordering;
use uuid::Uuid;

/// Something that happened to a member.
#[derive(Clone, Debug)]
pub enum News {
    Changed(Change),
    /// It was down or had left, and is not on the list any more.
    Forgotten(Uuid),
}

/// What happened between `before` and `after`; both are sorted by node.
pub fn changes(before: &[Member], after: &[Member]) -> Vec<News> {
    let mut news = vec![];
    let (mut old, mut new) = (before.iter().peekable(), after.iter().peekable());
    loop {
        let order = match (old.peek(), new.peek()) {
            (None, None) => return news,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(old), Some(new)) => old.identity.node.cmp(&new.identity.node),
        };
        let was = if order.is_le() { old.next() } else { None };
        let is = if order.is_ge() { new.next() } else { None };
        match (was, is) {
            (Some(was), None) => news.push(News::Forgotten(was.identity.node)),
            (was, Some(is)) => {
                let before = was.map(|was| was.state);
                let renewed = was.is_some_and(|was| was.identity != is.identity);
                if before != Some(is.state) || renewed {
                    news.push(News::Changed(Change { member: is.clone(), before, renewed }));
                }
            }
            (None, None) => unreachable!("one of the two is taken"),
        }
    }
}

/// All members at one moment.
#[derive(Clone, Default, Debug)]
pub struct View {
    /// Sorted by node.
    pub members: Vec<Member>,
    /// We have said good-bye.
    pub left: bool,
    /// This node's life by which the others know it, or 0 before there was any news. It is not the one that the node began
    /// with once they knew of a later one.
    pub epoch: u64,
}

impl View {
    /// Those to be talked to: none once we have left.
    pub fn living(&self) -> impl Iterator<Item = &Member> {
        let lives = |member: &&Member| matches!(member.state, State::Alive | State::Suspect);
        self.members.iter().filter(lives).filter(|_| !self.left)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::swim::identity::Identity;
    use proptest::prelude::*;
    use std::collections::BTreeMap;
    use std::time::Instant;

    fn member(node: u8, epoch: u64, state: State) -> Member {
        let address = "10.0.0.1:7".parse().unwrap();
        let node = Uuid::from_u128(node.into());
        let identity = Identity { node, epoch, ..Identity::unknown_at(address) };
        Member { identity, state, since: Instant::now() }
    }

    #[test]
    fn a_node_that_was_started_again_between_two_looks_is_renewed() {
        let news = changes(&[member(1, 1, State::Alive)], &[member(1, 2, State::Alive)]);
        let [News::Changed(change)] = &news[..] else { panic!("{news:?}") };
        assert!(change.renewed && change.before == Some(State::Alive));
        let same = [member(1, 1, State::Suspect)];
        assert!(changes(&same, &same).is_empty());
    }

    proptest! {
        #[test]
        fn the_news_lead_from_one_view_to_the_other(
            before in proptest::collection::btree_map(0u8..6, (1u64..3, 0usize..4), 0..6),
            after in proptest::collection::btree_map(0u8..6, (1u64..3, 0usize..4), 0..6),
        ) {
            let list = |map: &BTreeMap<u8, (u64, usize)>| -> Vec<Member> {
                map.iter().map(|(node, (epoch, state))| member(*node, *epoch, State::ALL[*state])).collect()
            };
            let (before, after) = (list(&before), list(&after));
            let keyed = |members: &[Member]| -> BTreeMap<Uuid, (u64, State)> {
                members.iter().map(|m| (m.identity.node, (m.identity.epoch, m.state))).collect()
            };
            let mut view = keyed(&before);
            for news in changes(&before, &after) {
                match news {
                    News::Forgotten(node) => prop_assert!(view.remove(&node).is_some()),
                    News::Changed(Change { member, before, renewed }) => {
                        let new = (member.identity.epoch, member.state);
                        let old = view.insert(member.identity.node, new);
                        prop_assert_eq!(old.map(|old| old.1), before);
                        prop_assert_eq!(old.is_some_and(|old| old.0 != new.0), renewed);
                        prop_assert_ne!(old, Some(new));
                    }
                }
            }
            prop_assert_eq!(view, keyed(&after));
        }
    }
}
