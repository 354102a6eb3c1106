//! Anti-entropy: one node compares its hash tree with another's, and both end up with what either knew. Sans-IO.
//!
//! ```text
//! Roots ─▶ ◀─ Shards    for each: Buckets ─▶ ◀─ Differing    for each few: Rows ─▶ ◀─ Offer, Push ─▶ ◀─ Taken
//! ```
//! The one who asks drives; the one who answers remembers nothing. An exchange that breaks off has done no harm: what
//! was merged is merged, and the next one goes on from there. Objects that are refused are counted and hold up
//! nothing.
//!
//! Invariants: at most one message is under way; every answer is bounded; each step brings the end nearer, because a
//! group of buckets is asked for again only after records of it were merged.

use super::hashtree::{SHARD_BUCKETS, SHARDS};
use super::message::{Body, Message, RECORDS_BYTES_MAX, RECORDS_MAX, ROWS_MAX, Row, Short, short};
use super::set::{Place, Replica};
use crate::store::record::Merged;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

/// The side that asks.
#[derive(Debug)]
pub struct Exchange {
    round: u64,
    step: Step,
    shards: VecDeque<u8>,
    /// Of the shard at hand, those that differ and were not asked for yet.
    buckets: VecDeque<u16>,
    tally: Tally,
    step_deadline: Instant,
    deadline: Instant,
}

#[derive(Debug)]
enum Step {
    Roots,
    Buckets,
    Rows { group: Vec<u16> },
    Push { group: Vec<u16>, wanted: VecDeque<Place>, again: bool },
}

/// What an exchange has done.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Tally {
    /// Shards that differed at the beginning.
    pub shards: u32,
    /// Records that changed here, and records sent.
    pub merged: u32,
    pub sent: u32,
    /// Records that were damaged, from the future or too large, here and there.
    pub refused: u32,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Next {
    Send(Message),
    /// The other side has been heard on every difference.
    Done(Tally),
}

/// Why an exchange broke off.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ExchangeError {
    #[error("no answer in time")]
    TimedOut,
    /// The other side does not keep to the protocol.
    #[error("an answer that does not fit the question")]
    Unexpected,
}

impl Exchange {
    /// Begins; the message is to be sent. `round` tells this exchange from earlier ones with the same node.
    pub fn start(round: u64, replica: &Replica, now: Instant) -> (Self, Message) {
        let exchange = Self {
            round,
            step: Step::Roots,
            shards: VecDeque::new(),
            buckets: VecDeque::new(),
            tally: Tally::default(),
            step_deadline: now + STEP_TIMEOUT,
            deadline: now + EXCHANGE_TIMEOUT,
        };
        let roots = replica.tree().roots().iter().map(|root| short(*root)).collect();
        (exchange, Message { round, body: Body::Roots(roots) })
    }

    /// When to call [`Exchange::timeout`].
    pub fn deadline(&self) -> Instant {
        self.step_deadline.min(self.deadline)
    }

    pub fn timeout(&self, now: Instant) -> Result<(), ExchangeError> {
        if now >= self.deadline() { Err(ExchangeError::TimedOut) } else { Ok(()) }
    }

    /// Takes an answer. None: it belongs to another round, or is a copy of one that was taken already.
    pub fn handle(
        &mut self,
        replica: &mut Replica,
        message: Message,
        now: Instant,
        wall_ms: u64,
    ) -> Result<Option<Next>, ExchangeError> {
        self.timeout(now)?;
        if message.round != self.round {
            return Ok(None);
        }
        let step = std::mem::replace(&mut self.step, Step::Roots);
        let next = match (step, message.body) {
            (Step::Roots, Body::Shards(bits)) => {
                self.shards = (0..SHARDS as u8).filter(|shard| bits >> shard & 1 == 1).collect();
                self.tally.shards = bits.count_ones();
                self.next_shard(replica)
            }
            (Step::Buckets, Body::Differing(buckets)) => {
                let shard = self.shards.front().map_or(0, |shard| usize::from(*shard));
                let inside = |bucket: &u16| usize::from(*bucket) / SHARD_BUCKETS == shard;
                if !buckets.iter().all(inside) || !buckets.is_sorted_by(|one, other| one < other) {
                    return Err(ExchangeError::Unexpected);
                }
                self.shards.pop_front();
                self.buckets = buckets.into();
                self.next_group(replica)
            }
            (Step::Rows { group }, Body::Offer { records, wanted, more }) => {
                let merged = self.merge(replica, &records, wall_ms);
                let offered: BTreeSet<&[u8]> = records.iter().map(Vec::as_slice).collect();
                let known = |place: &Place| replica.record(place).is_none_or(|ours| offered.contains(ours));
                let wanted = wanted.into_iter().filter(|place| !known(place)).collect();
                self.push(replica, group, wanted, more && merged > 0)
            }
            (Step::Push { group, wanted, again }, Body::Taken { refused }) => {
                self.tally.refused = self.tally.refused.saturating_add(refused.into());
                self.push(replica, group, wanted, again)
            }
            // A late copy of an earlier answer.
            (step, _) => {
                self.step = step;
                return Ok(None);
            }
        };
        self.step_deadline = now + STEP_TIMEOUT;
        Ok(Some(next))
    }

    fn next_shard(&mut self, replica: &Replica) -> Next {
        let Some(&shard) = self.shards.front() else { return Next::Done(self.tally) };
        self.step = Step::Buckets;
        self.send(Body::Buckets { shard, sums: sums(replica, shard) })
    }

    /// As many of the differing buckets as go into one message.
    fn next_group(&mut self, replica: &Replica) -> Next {
        let (mut group, mut rows) = (Vec::new(), 0);
        while let Some(&bucket) = self.buckets.front() {
            rows += replica.bucket(bucket).count();
            if !group.is_empty() && rows > GROUP_ROWS {
                break;
            }
            group.push(bucket);
            self.buckets.pop_front();
        }
        if group.is_empty() { self.next_shard(replica) } else { self.ask(replica, group) }
    }

    fn ask(&mut self, replica: &Replica, group: Vec<u16>) -> Next {
        let rows = group.iter().flat_map(|bucket| rows(replica, *bucket)).take(ROWS_MAX).collect();
        self.step = Step::Rows { group: group.clone() };
        self.send(Body::Rows { buckets: group, rows })
    }

    fn push(&mut self, replica: &Replica, group: Vec<u16>, mut wanted: VecDeque<Place>, again: bool) -> Next {
        if wanted.is_empty() {
            return if again { self.ask(replica, group) } else { self.next_group(replica) };
        }
        let mut batch = Batch::default();
        while let Some(place) = wanted.front() {
            if !replica.record(place).is_none_or(|record| batch.add(record)) {
                break;
            }
            wanted.pop_front();
        }
        self.tally.sent += batch.records.len() as u32;
        self.step = Step::Push { group, wanted, again };
        self.send(Body::Push(batch.records))
    }

    fn merge(&mut self, replica: &mut Replica, records: &[Vec<u8>], wall_ms: u64) -> u32 {
        let (merged, refused) = merge(replica, records, wall_ms);
        self.tally.merged += merged;
        self.tally.refused = self.tally.refused.saturating_add(refused);
        merged
    }

    fn send(&self, body: Body) -> Next {
        Next::Send(Message { round: self.round, body })
    }
}

/// The side that is asked. None: the message is an answer, or does not keep to the protocol.
pub fn answer(replica: &mut Replica, message: Message, wall_ms: u64) -> Option<Message> {
    let body = match message.body {
        Body::Roots(theirs) if theirs.len() == SHARDS => {
            let pairs = replica.tree().roots().iter().zip(&theirs).enumerate();
            let differing = pairs.filter(|(_, (ours, theirs))| short(**ours) != **theirs);
            Body::Shards(differing.fold(0, |bits, (shard, _)| bits | 1 << shard))
        }
        Body::Buckets { shard, sums: theirs } if theirs.len() == SHARD_BUCKETS => {
            let pairs = sums(replica, shard).into_iter().zip(theirs).enumerate();
            let differing = pairs.filter(|(_, (ours, theirs))| ours != theirs);
            let first = usize::from(shard) * SHARD_BUCKETS;
            Body::Differing(differing.map(|(bucket, _)| (first + bucket) as u16).collect())
        }
        Body::Rows { buckets, rows } => offer(replica, &buckets, &rows),
        Body::Push(records) => {
            let (_, refused) = merge(replica, &records, wall_ms);
            Body::Taken { refused: refused as u16 }
        }
        _ => return None,
    };
    Some(Message { round: message.round, body })
}

/// What the asker lacks of these buckets, and what we lack.
fn offer(replica: &Replica, buckets: &[u16], theirs: &[Row]) -> Body {
    let theirs: BTreeMap<&Place, Short> = theirs.iter().map(|row| (&row.place, row.hash)).collect();
    let is_ours = |row: &(&&Place, &Short)| {
        replica.record(row.0).is_some_and(|record| hash(replica, row.0, record) == *row.1)
    };
    let wanted = theirs.iter().filter(|row| !is_ours(row)).map(|(place, _)| **place).collect();
    let buckets: BTreeSet<u16> = buckets.iter().copied().collect();
    let mut batch = Batch::default();
    let mut more = false;
    for (place, record) in buckets.iter().flat_map(|bucket| replica.bucket(*bucket)) {
        if theirs.get(place).is_some_and(|theirs| *theirs == hash(replica, place, record)) {
            continue;
        }
        if !batch.add(record) {
            more = true;
            break;
        }
    }
    Body::Offer { records: batch.records, wanted, more }
}

/// How many records changed ours, and how many were refused.
fn merge(replica: &mut Replica, records: &[Vec<u8>], wall_ms: u64) -> (u32, u32) {
    let (mut merged, mut refused) = (0, 0);
    for record in records {
        match replica.merge(record, wall_ms) {
            Ok(Merged::Known) => {}
            Ok(Merged::Changed | Merged::Cut) => merged += 1,
            Err(_) => refused += 1,
        }
    }
    (merged, refused)
}

#[derive(Default)]
struct Batch {
    records: Vec<Vec<u8>>,
    bytes: usize,
}

impl Batch {
    /// False, and nothing added, if it is full.
    fn add(&mut self, record: &[u8]) -> bool {
        if self.records.len() >= RECORDS_MAX || self.bytes >= RECORDS_BYTES_MAX {
            return false;
        }
        self.bytes += record.len();
        self.records.push(record.to_vec());
        true
    }
}

fn sums(replica: &Replica, shard: u8) -> Vec<Short> {
    let first = usize::from(shard) * SHARD_BUCKETS;
    (first..first + SHARD_BUCKETS).map(|bucket| short(replica.tree().bucket(bucket as u16))).collect()
}

fn rows(replica: &Replica, bucket: u16) -> impl Iterator<Item = Row> {
    replica.bucket(bucket).map(|(place, record)| Row { place: *place, hash: hash(replica, place, record) })
}

fn hash(replica: &Replica, place: &Place, record: &[u8]) -> Short {
    let bytes = replica.hash(place, record).to_bytes();
    let (first, _) = bytes.split_first_chunk().expect("a sum is longer than its first half");
    *first
}

/// How long one answer may take.
pub const STEP_TIMEOUT: Duration = Duration::from_secs(5);
/// How long an exchange may take: the default of `aae.data_exchange_timeout`.
pub const EXCHANGE_TIMEOUT: Duration = Duration::from_secs(60);
/// Rows of ours after which no further bucket goes into a message.
const GROUP_ROWS: usize = 512;

const _: () = assert!(GROUP_ROWS <= ROWS_MAX);

#[cfg(test)]
mod tests {
    use super::super::dvvset::Actor;
    use super::super::hashtree::TreeKey;
    use super::*;
    use crate::store::record::Kind;

    fn replica(node: u8) -> Replica {
        Replica::new(Actor { node: [node; 16], epoch: 1 }, TreeKey::of(b"secret"))
    }

    fn put(replica: &mut Replica, key: usize, value: &[u8]) {
        replica.put(Kind::Realm, &format!("realm{key}"), Some(value.to_vec()), 1_000).unwrap();
    }

    /// Runs one exchange to its end, through bytes. Returns what it did, the messages and their bytes.
    fn run(one: &mut Replica, other: &mut Replica) -> (Tally, usize, usize) {
        let now = Instant::now();
        let (mut exchange, mut message) = Exchange::start(7, one, now);
        let (mut messages, mut bytes) = (0, 0);
        let mut deliver = |message: &Message| {
            let encoded = message.encode();
            (messages, bytes) = (messages + 1, bytes + encoded.len());
            Message::decode(&encoded).unwrap()
        };
        loop {
            let reply = answer(other, deliver(&message), 1_000).unwrap();
            match exchange.handle(one, deliver(&reply), now, 1_000).unwrap().unwrap() {
                Next::Send(next) => message = next,
                Next::Done(tally) => return (tally, messages, bytes),
            }
        }
    }

    #[test]
    fn both_sides_end_up_with_everything_and_then_have_nothing_to_do() {
        let (mut one, mut other) = (replica(1), replica(2));
        (0..700).for_each(|key| put(&mut one, key, b"one"));
        (500..900).for_each(|key| put(&mut other, key, b"other"));
        let (tally, ..) = run(&mut one, &mut other);
        assert_eq!(one.tree(), other.tree());
        assert_eq!((one.records().count(), tally.merged, tally.sent, tally.refused), (900, 400, 700, 0));
        let (tally, messages, bytes) = run(&mut one, &mut other);
        assert_eq!((tally, messages), (Tally::default(), 2));
        assert!(bytes < 1_100, "{bytes}");
    }

    #[test]
    fn one_changed_record_in_100_000_costs_less_than_64_kib() {
        let mut one = replica(1);
        (0..100_000).for_each(|key| put(&mut one, key, b"value"));
        let mut other = one.clone();
        other.begin_epoch(Actor { node: [2; 16], epoch: 1 });
        put(&mut other, 4_711, b"changed");
        let (tally, messages, bytes) = run(&mut one, &mut other);
        println!("one changed record in 100,000: {bytes} bytes in {messages} messages");
        assert_eq!((tally.merged, tally.sent), (1, 0));
        assert_eq!(one.tree(), other.tree());
        assert!(bytes <= 64 * 1_024, "{bytes}");
    }

    #[test]
    fn large_records_travel_in_several_bounded_messages() {
        let (mut one, mut other) = (replica(1), replica(2));
        let large = vec![1; 200_000];
        let bucket_of = |key: usize| {
            let place = crate::store::record::place(Kind::Realm, &format!("realm{key}"));
            u16::from_be_bytes([place[0], place[1]]) >> 10
        };
        // All in one shard, so in one group.
        let keys: Vec<usize> = (0..).filter(|key| bucket_of(*key) == 0).take(7).collect();
        keys.iter().for_each(|key| put(&mut other, *key, &large));
        let (tally, ..) = run(&mut one, &mut other);
        assert_eq!((tally.merged, one.tree() == other.tree()), (7, true));
        let mut third = replica(3);
        let (tally, ..) = run(&mut one, &mut third);
        assert_eq!((tally.sent, one.tree() == third.tree()), (7, true));
    }

    #[test]
    fn a_bad_record_is_refused_and_the_rest_goes_on() {
        let (mut one, mut other) = (replica(1), replica(2));
        put(&mut other, 1, b"good");
        other.put(Kind::Realm, "future", Some(vec![1]), 4_102_444_800_000).unwrap();
        let (tally, ..) = run(&mut one, &mut other);
        assert_eq!((tally.merged, tally.refused, one.records().count()), (1, 1, 1));
        let good = one.records().next().map(|(_, record)| record.to_vec()).unwrap();
        let mut bad = good.clone();
        bad[9] ^= 1;
        let push = Message { round: 1, body: Body::Push(vec![bad, good]) };
        let mut third = replica(3);
        let reply = answer(&mut third, push, 1_000).unwrap();
        assert_eq!((reply.body, third.records().count()), (Body::Taken { refused: 1 }, 1));
    }

    #[test]
    fn silence_ends_it_and_strange_answers_are_not_followed() {
        let mut one = replica(1);
        let now = Instant::now();
        let (mut exchange, _) = Exchange::start(7, &one, now);
        let mut handle = |round, body, at| exchange.handle(&mut one, Message { round, body }, at, 1_000);
        assert_eq!(handle(6, Body::Shards(1), now), Ok(None));
        assert_eq!(handle(7, Body::Differing(vec![1]), now), Ok(None));
        assert!(matches!(handle(7, Body::Shards(1), now), Ok(Some(Next::Send(_)))));
        assert_eq!(handle(7, Body::Differing(vec![5_000]), now), Err(ExchangeError::Unexpected));
        assert_eq!(handle(7, Body::Differing(vec![1]), now + STEP_TIMEOUT), Err(ExchangeError::TimedOut));
        let (exchange, _) = Exchange::start(8, &one, now);
        assert_eq!(exchange.timeout(exchange.deadline()), Err(ExchangeError::TimedOut));
    }
}
