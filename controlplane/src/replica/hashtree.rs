//! The hash tree of a node's objects: what an exchange compares. Pure.
//!
//! The first 16 bits of an object's place are its bucket: 64 shards of 1,024. A bucket's sum adds up one keyed hash a
//! record, modulo 2^256; a shard's root adds up its buckets. So a write changes one sum and one root by a subtraction
//! and an addition, whatever the number of objects, and there is nothing to build. The key keeps others from making
//! records whose sums collide.
//!
//! Invariant: after any history the sums are those of the records that are there.

use std::ops::{AddAssign, SubAssign};

/// A number modulo 2^256, least significant part first.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
pub struct Sum([u64; 4]);

/// What a bucket or a shard holds, in short.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
pub struct Digest {
    pub sum: Sum,
    /// Records.
    pub count: u32,
}

/// What the hashes of one cluster are keyed with.
#[derive(Clone)]
pub struct TreeKey([u8; 32]);

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HashTree {
    buckets: Vec<Digest>,
    roots: Vec<Digest>,
}

impl TreeKey {
    /// Nodes that share `secret` have comparable sums.
    pub fn of(secret: &[u8]) -> Self {
        Self(blake3::derive_key("signalbox 2026 bucket sums", secret))
    }

    /// The part of one record, which is kept at `place`.
    pub fn hash(&self, place: &[u8], record: &[u8]) -> Sum {
        let mut hasher = blake3::Hasher::new_keyed(&self.0);
        hasher.update(place);
        hasher.update(record);
        Sum::from_bytes(*hasher.finalize().as_bytes())
    }

    /// Tells keys apart without giving them away.
    pub fn fingerprint(&self) -> [u8; FINGERPRINT_BYTES] {
        let mut fingerprint = [0; FINGERPRINT_BYTES];
        blake3::Hasher::new_keyed(&self.0).update(b"fingerprint").finalize_xof().fill(&mut fingerprint);
        fingerprint
    }
}

impl Default for HashTree {
    fn default() -> Self {
        Self { buckets: vec![Digest::default(); BUCKETS], roots: vec![Digest::default(); SHARDS] }
    }
}

impl HashTree {
    /// A record came.
    pub fn add(&mut self, bucket: u16, hash: Sum) {
        for digest in [&mut self.buckets[usize::from(bucket)], &mut self.roots[shard_of(bucket)]] {
            digest.add(hash);
        }
    }

    /// A record that was added is gone.
    pub fn remove(&mut self, bucket: u16, hash: Sum) {
        for digest in [&mut self.buckets[usize::from(bucket)], &mut self.roots[shard_of(bucket)]] {
            digest.remove(hash);
        }
    }

    /// Replaces what is known of a bucket.
    pub fn set(&mut self, bucket: u16, digest: Digest) {
        let was = std::mem::replace(&mut self.buckets[usize::from(bucket)], digest);
        let root = &mut self.roots[shard_of(bucket)];
        root.sum -= was.sum;
        root.sum += digest.sum;
        root.count = root.count.wrapping_sub(was.count).wrapping_add(digest.count);
    }

    pub fn bucket(&self, bucket: u16) -> Digest {
        self.buckets[usize::from(bucket)]
    }

    /// Of all shards.
    pub fn roots(&self) -> &[Digest] {
        &self.roots
    }

    /// One number over all records, and how many there are: equal on nodes that hold equal records; 0: none.
    pub fn digest(&self) -> (u64, u64) {
        let records = self.roots.iter().map(|root| u64::from(root.count)).sum();
        if records == 0 {
            return (0, 0);
        }
        let mut hasher = blake3::Hasher::new();
        for root in &self.roots {
            hasher.update(&root.encode());
        }
        let mut digest = [0; 8];
        hasher.finalize_xof().fill(&mut digest);
        (u64::from_le_bytes(digest), records)
    }

    /// The buckets in which two trees differ.
    pub fn differences(&self, other: &Self) -> impl Iterator<Item = u16> {
        let pairs = self.buckets.iter().zip(&other.buckets).enumerate();
        pairs.filter(|(_, (one, other))| one != other).map(|(bucket, _)| bucket as u16)
    }
}

impl Digest {
    /// A record came.
    pub fn add(&mut self, hash: Sum) {
        self.sum += hash;
        self.count = self.count.wrapping_add(1);
    }

    /// A record that was added is gone.
    pub fn remove(&mut self, hash: Sum) {
        self.sum -= hash;
        self.count = self.count.wrapping_sub(1);
    }

    /// `sum [32] │ count u32`, little-endian.
    pub fn encode(self) -> [u8; DIGEST_BYTES] {
        let mut out = [0; DIGEST_BYTES];
        out[..SUM_BYTES].copy_from_slice(&self.sum.to_bytes());
        out[SUM_BYTES..].copy_from_slice(&self.count.to_le_bytes());
        out
    }

    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (sum, rest) = bytes.split_first_chunk()?;
        let count = u32::from_le_bytes(rest.try_into().ok()?);
        Some(Self { sum: Sum::from_bytes(*sum), count })
    }
}

impl Sum {
    pub fn to_bytes(self) -> [u8; SUM_BYTES] {
        let mut out = [0; SUM_BYTES];
        for (part, bytes) in self.0.iter().zip(out.chunks_exact_mut(8)) {
            bytes.copy_from_slice(&part.to_le_bytes());
        }
        out
    }

    pub fn from_bytes(bytes: [u8; SUM_BYTES]) -> Self {
        let (parts, _) = bytes.as_chunks();
        let mut sum = Self::default();
        for (part, bytes) in sum.0.iter_mut().zip(parts) {
            *part = u64::from_le_bytes(*bytes);
        }
        sum
    }
}

impl AddAssign for Sum {
    fn add_assign(&mut self, other: Self) {
        let mut carry = false;
        for (part, other) in self.0.iter_mut().zip(other.0) {
            let (sum, over) = part.overflowing_add(other);
            let (sum, over_too) = sum.overflowing_add(carry.into());
            (*part, carry) = (sum, over || over_too);
        }
    }
}

impl SubAssign for Sum {
    fn sub_assign(&mut self, other: Self) {
        let mut borrow = false;
        for (part, other) in self.0.iter_mut().zip(other.0) {
            let (rest, under) = part.overflowing_sub(other);
            let (rest, under_too) = rest.overflowing_sub(borrow.into());
            (*part, borrow) = (rest, under || under_too);
        }
    }
}

/// The bucket of what is kept at `place`. This order is on disk and between nodes.
pub fn bucket_of(place: &[u8; 32]) -> u16 {
    u16::from_be_bytes([place[0], place[1]])
}

pub const fn shard_of(bucket: u16) -> usize {
    bucket as usize / SHARD_BUCKETS
}

pub const SHARDS: usize = 64;
/// Buckets of one shard.
pub const SHARD_BUCKETS: usize = 1_024;
pub const BUCKETS: usize = SHARDS * SHARD_BUCKETS;
const SUM_BYTES: usize = 32;
/// Length of an encoded [`Digest`].
pub const DIGEST_BYTES: usize = SUM_BYTES + 4;
pub const FINGERPRINT_BYTES: usize = 16;

const _: () = assert!(BUCKETS == 1 << 16);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn sum(low: u64, rest: u64) -> Sum {
        Sum([low, rest, rest, rest])
    }

    #[test]
    fn carries_and_borrows_go_all_the_way() {
        let mut number = sum(u64::MAX, u64::MAX);
        number += sum(1, 0);
        assert_eq!(number, Sum::default());
        number -= sum(1, 0);
        assert_eq!(number, sum(u64::MAX, u64::MAX));
        number += sum(u64::MAX, u64::MAX);
        assert_eq!(number, sum(u64::MAX - 1, u64::MAX));
    }

    #[test]
    fn keys_make_other_sums_and_one_secret_the_same() {
        let (one, other) = (TreeKey::of(b"one"), TreeKey::of(b"other"));
        assert_eq!(one.hash(b"p", b"r"), TreeKey::of(b"one").hash(b"p", b"r"));
        assert_ne!(one.hash(b"p", b"r"), other.hash(b"p", b"r"));
        assert_ne!(one.fingerprint(), other.fingerprint());
    }

    #[test]
    fn shards_are_filled_evenly() {
        let mut tree = HashTree::default();
        for number in 0..100_000u32 {
            let place = *blake3::hash(&number.to_le_bytes()).as_bytes();
            tree.add(bucket_of(&place), Sum::default());
        }
        let least = tree.roots().iter().map(|root| root.count).min().unwrap();
        assert!(f64::from(least) >= 0.8 * 100_000.0 / SHARDS as f64, "{least}");
    }

    #[test]
    fn a_tree_is_made_of_its_encoded_buckets() {
        let (mut tree, mut read) = (HashTree::default(), HashTree::default());
        for bucket in [0, 5, 1_023, 1_024, u16::MAX] {
            tree.add(bucket, sum(u64::from(bucket) + 1, 3));
            read.set(bucket, sum_of_nothing_known());
            read.set(bucket, Digest::decode(&tree.bucket(bucket).encode()).unwrap());
        }
        assert_eq!(read, tree);
        assert_eq!(Digest::decode(&[0; DIGEST_BYTES - 1]), None);
    }

    #[test]
    fn a_digest_is_that_of_the_records() {
        let (mut one, mut other) = (HashTree::default(), HashTree::default());
        assert_eq!(one.digest(), (0, 0));
        one.add(5, sum(1, 0));
        one.add(9, sum(2, 0));
        other.add(9, sum(2, 0));
        assert_ne!(one.digest(), other.digest());
        other.add(5, sum(1, 0));
        assert_eq!((one.digest(), one.digest().1), (other.digest(), 2));
        one.remove(5, sum(1, 0));
        one.remove(9, sum(2, 0));
        assert_eq!(one.digest(), (0, 0));
    }

    fn sum_of_nothing_known() -> Digest {
        Digest { sum: sum(u64::MAX, 9), count: 77 }
    }

    proptest! {
        // A tree has many buckets, and tests are not optimized.
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn sums_after_any_history_are_those_of_the_records(
            steps in proptest::collection::vec((0u8..12, proptest::option::of(any::<u16>())), 0..80),
        ) {
            let key = TreeKey::of(b"secret");
            let place = |number: u8| *blake3::hash(&[number / 2]).as_bytes();
            let (mut tree, mut records) = (HashTree::default(), BTreeMap::<u8, Vec<u8>>::new());
            for (number, record) in steps {
                let record = record.map(|record| record.to_le_bytes().to_vec());
                let bucket = bucket_of(&place(number));
                if let Some(was) = records.remove(&number) {
                    tree.remove(bucket, key.hash(&[number], &was));
                }
                if let Some(record) = record {
                    tree.add(bucket, key.hash(&[number], &record));
                    records.insert(number, record);
                }
            }
            let mut again = HashTree::default();
            for (number, record) in records.iter().rev() {
                again.add(bucket_of(&place(*number)), key.hash(&[*number], record));
            }
            prop_assert_eq!(&tree, &again);
            prop_assert_eq!(tree.differences(&again).count(), 0);
            for (shard, root) in tree.roots().iter().enumerate() {
                let mut total = Digest::default();
                for bucket in 0..SHARD_BUCKETS {
                    let digest = tree.bucket((shard * SHARD_BUCKETS + bucket) as u16);
                    total.sum += digest.sum;
                    total.count += digest.count;
                }
                prop_assert_eq!(*root, total);
            }
        }
    }
}
