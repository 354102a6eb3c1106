//! How callees share one registration (WAMP, advanced profile, "Shared Registration"), and how a key chooses among them.

use rkyv::{Archive, Deserialize, Serialize};

/// Which callee of a registration gets a call.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug, Archive, Serialize, Deserialize,
)]
#[rkyv(derive(Clone, Copy, PartialEq, Eq, Debug))]
#[repr(u8)]
pub enum Invoke {
    /// There is only one.
    #[default]
    Single = 0,
    /// The one that registered first.
    First = 1,
    /// The one that registered last.
    Last = 2,
    /// One after the other, in the order of registration.
    RoundRobin = 3,
    Random = 4,
    /// The one that [`jump`] chooses for the call's routing key.
    JumpHash = 5,
    /// The one with the fewest open invocations.
    LeastLoaded = 6,
    /// Of two drawn at random the one with fewer open invocations (Mitzenmacher 2001, "The Power of Two Choices").
    LeastLoadedSample = 7,
}

impl Invoke {
    pub const ALL: [Self; 8] = [
        Self::Single,
        Self::First,
        Self::Last,
        Self::RoundRobin,
        Self::Random,
        Self::JumpHash,
        Self::LeastLoaded,
        Self::LeastLoadedSample,
    ];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Single => "single",
            Self::First => "first",
            Self::Last => "last",
            Self::RoundRobin => "roundrobin",
            Self::Random => "random",
            Self::JumpHash => "jump_consistent_hash",
            Self::LeastLoaded => "queue_least_loaded",
            Self::LeastLoadedSample => "queue_least_loaded_sample",
        }
    }

    /// By name or short name.
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "jch" => Some(Self::JumpHash),
            "qll" => Some(Self::LeastLoaded),
            "qlls" => Some(Self::LeastLoadedSample),
            _ => Self::ALL.into_iter().find(|invoke| invoke.name() == name),
        }
    }

    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.get(usize::from(number)).copied()
    }
}

/// What a node says of those of its callees that share a registration. A single callee that takes the place of others is one of
/// those.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug, Archive, Serialize, Deserialize,
)]
#[rkyv(derive(Clone, Copy, PartialEq, Eq, Debug))]
pub struct Share {
    pub invoke: Invoke,
    /// It takes the place of all who held the registration before.
    pub forced: bool,
    pub callees: u32,
    /// When the first and the last of its callees registered. A logical clock over all nodes (Lamport 1978): a callee registers
    /// later than all that its node has heard of.
    pub first: u64,
    pub last: u64,
}

impl Share {
    /// Of one callee that nobody shares with and that takes nobody's place; not to be said.
    pub const SINGLE: Self = Self { invoke: Invoke::Single, forced: false, callees: 1, first: 0, last: 0 };

    /// Callees of both may be called by turns.
    pub fn shares_with(&self, other: &Self) -> bool {
        self.invoke != Invoke::Single && self.invoke == other.invoke
    }
}

/// The bucket of a key among `buckets`, at least one: jump consistent hash (Lamping and Veach 2014, "A Fast, Minimal
/// Memory, Consistent Hash Algorithm"). With one bucket more, one key in `buckets + 1` moves, and all those move to
/// the new one.
pub fn jump(mut key: u64, buckets: u32) -> u32 {
    debug_assert!(buckets > 0, "a key needs a bucket");
    let (mut bucket, mut next) = (0u64, 0u64);
    while next < u64::from(buckets) {
        bucket = next;
        key = key.wrapping_mul(2_862_933_555_777_941_757).wrapping_add(1);
        next = ((bucket + 1) as f64 * ((1u64 << 31) as f64 / ((key >> 33) + 1) as f64)) as u64;
    }
    bucket as u32
}

/// The number of a routing key, equal on all nodes.
pub fn routing_key(text: &[u8]) -> u64 {
    let mut head = [0; 8];
    head.copy_from_slice(&blake3::hash(text).as_bytes()[..8]);
    u64::from_le_bytes(head)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn policies_have_names_and_numbers() {
        for (number, invoke) in (0..).zip(Invoke::ALL) {
            assert_eq!(Invoke::named(invoke.name()), Some(invoke));
            assert_eq!((invoke as u8, Invoke::from_number(number)), (number, Some(invoke)));
        }
        assert_eq!(Invoke::named("jch"), Some(Invoke::JumpHash));
        assert_eq!(Invoke::named("all"), None);
        assert_eq!(Invoke::from_number(8), None);
    }

    #[test]
    fn keys_are_spread_evenly() {
        let mut counts = [0u32; 10];
        for n in 0..100_000u32 {
            counts[jump(routing_key(&n.to_le_bytes()), 10) as usize] += 1;
        }
        assert!(counts.iter().all(|count| (9_500..10_500).contains(count)), "{counts:?}");
    }

    proptest! {
        #[test]
        fn one_bucket_more_takes_keys_and_moves_no_others(key: u64, buckets in 1u32..5_000) {
            let (before, after) = (jump(key, buckets), jump(key, buckets + 1));
            prop_assert!(before < buckets);
            prop_assert!(after == before || after == buckets);
        }
    }

    #[test]
    fn one_bucket_more_takes_its_share() {
        for buckets in [1u32, 2, 9, 100] {
            let moved = (0..20_000u32)
                .map(|n| routing_key(&n.to_le_bytes()))
                .filter(|key| jump(*key, buckets) != jump(*key, buckets + 1))
                .count();
            let share = 20_000 / (buckets as usize + 1);
            assert!(moved < share + share / 4 + 50, "{moved} of 20000 keys moved, not {share}");
        }
    }
}
