//! Anti-entropy: one node compares its hash tree with another's, and both end up with what either knew. Sans-IO.
//!
//! ```text
//! Roots ─▶ ◀─ Shards    for each: Buckets ─▶ ◀─ Differing    piece by piece: Rows ─▶ ◀─ Offer, Push ─▶ ◀─ Taken
//! ```
//! The one who asks drives; the one who answers remembers nothing. An exchange that breaks off has done no harm: what
//! was merged is merged, and the next one goes on from there. Objects that are refused are counted and hold up
//! nothing. Each side's steps run where its objects are, on the store thread, and each is short: it reads at most
//! [`SCAN_MAX`] records and commits at most [`RECORDS_MAX`].
//!
//! Invariants: at most one message is under way; every answer is bounded; each step brings the end nearer, because the
//! rows asked for begin where the last answer stopped.

use super::floor::{Stale, Stamps};
use super::hashtree::{SHARD_BUCKETS, SHARDS, Sum, bucket_of, shard_of};
use super::hlc::Hlc;
use super::message::{
    Body, Message, RECORDS_BYTES_MAX, RECORDS_MAX, ROWS_MAX, Refusal, Row, Short, State, short,
};
use super::objects::{Objects, Place, Unreadable};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

/// The side that asks.
#[derive(Debug)]
pub struct Exchange {
    round: u64,
    /// Of the objects here when it began.
    life: u64,
    step: Step,
    /// What the other side promised before it was compared, and its marks.
    promise: Hlc,
    marks: Box<Stamps>,
    shards: VecDeque<u8>,
    /// The shard at hand, its buckets that differ, and records refused before it.
    shard: u8,
    buckets: Vec<u16>,
    refused_before: u32,
    tally: Tally,
    step_deadline: Instant,
    deadline: Instant,
}

#[derive(Debug)]
enum Step {
    Roots,
    Buckets,
    Rows { from: Place, until: Option<Place> },
    Push { wanted: VecDeque<Place>, next: Option<Place> },
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
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ExchangeError {
    #[error("no answer in time")]
    TimedOut,
    /// The other side does not keep to the protocol.
    #[error("an answer that does not fit the question")]
    Unexpected,
    #[error(transparent)]
    Unreadable(#[from] Unreadable),
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// This node began anew.
    #[error(transparent)]
    Stale(#[from] Stale),
    /// Objects that were compared may be gone.
    #[error("the store began a new epoch meanwhile")]
    NewEpoch,
}

impl Exchange {
    /// Begins; the message is to be sent. `round` tells this exchange from earlier ones with the same node. `timeout`: how
    /// long it may take in all.
    pub fn start(round: u64, objects: &mut dyn Objects, now: Instant, timeout: Duration) -> (Self, Message) {
        let exchange = Self {
            round,
            life: objects.life(),
            step: Step::Roots,
            promise: Hlc::default(),
            marks: Box::new([Hlc::default(); SHARDS]),
            shards: VecDeque::new(),
            shard: 0,
            buckets: Vec::new(),
            refused_before: 0,
            tally: Tally::default(),
            step_deadline: now + STEP_TIMEOUT,
            deadline: now + timeout,
        };
        let sums = objects.tree().roots().iter().map(|root| short(*root)).collect();
        (exchange, Message { round, body: Body::Roots { state: state(objects), sums } })
    }

    /// When to call [`Exchange::timeout`].
    pub fn deadline(&self) -> Instant {
        self.step_deadline.min(self.deadline)
    }

    /// The last message has gone out only now: from now on its answer is awaited.
    pub fn sent(&mut self, now: Instant) {
        self.step_deadline = now + STEP_TIMEOUT;
    }

    pub fn timeout(&self, now: Instant) -> Result<(), ExchangeError> {
        if now >= self.deadline() { Err(ExchangeError::TimedOut) } else { Ok(()) }
    }

    /// Takes an answer. None: it belongs to another round, or is a copy of one that was taken already.
    pub fn handle(
        &mut self,
        objects: &mut dyn Objects,
        message: Message,
        now: Instant,
    ) -> Result<Option<Next>, ExchangeError> {
        self.timeout(now)?;
        if message.round != self.round {
            return Ok(None);
        }
        if objects.life() != self.life {
            return Err(ExchangeError::NewEpoch);
        }
        let step = std::mem::replace(&mut self.step, Step::Roots);
        let next = match (step, message.body) {
            (Step::Roots, Body::Shards { state, bits }) => self.compared(objects, &state, bits)?,
            (Step::Roots, Body::Refused(refusal)) => return Err(refusal.into()),
            (Step::Buckets, Body::Differing(buckets)) => self.differing(objects, buckets)?,
            (Step::Rows { from, until }, Body::Offer { records, wanted, stopped }) => {
                let is_inside = |at: Place| from < at && until.is_none_or(|until| at < until);
                if !stopped.is_none_or(is_inside) {
                    return Err(ExchangeError::Unexpected);
                }
                let wanted = self.take(objects, &records, wanted)?;
                self.push(objects, wanted, stopped.or(until))?
            }
            (Step::Push { wanted, next }, Body::Taken { refused }) => {
                self.tally.refused = self.tally.refused.saturating_add(refused.into());
                self.push(objects, wanted, next)?
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

    fn compared(&mut self, objects: &mut dyn Objects, theirs: &State, bits: u64) -> Result<Next, Stale> {
        objects.adopt(&theirs.floors)?;
        objects.begins(&theirs.bounds);
        (self.promise, self.marks) = (theirs.promise, theirs.marks.clone());
        let (differing, equal): (Vec<u8>, Vec<u8>) =
            (0..SHARDS as u8).partition(|shard| bits >> shard & 1 == 1);
        self.shards = differing.into();
        self.tally.shards = bits.count_ones();
        for shard in equal.into_iter().map(usize::from) {
            objects.synced(shard, theirs.promise, theirs.marks[shard]);
        }
        Ok(self.next_shard(objects))
    }

    fn next_shard(&mut self, objects: &mut dyn Objects) -> Next {
        let Some(&shard) = self.shards.front() else { return Next::Done(self.tally) };
        self.step = Step::Buckets;
        self.send(Body::Buckets { shard, sums: sums(objects, shard) })
    }

    fn differing(&mut self, objects: &mut dyn Objects, buckets: Vec<u16>) -> Result<Next, ExchangeError> {
        let shard = self.shards.pop_front().ok_or(ExchangeError::Unexpected)?;
        let is_inside = |bucket: &u16| shard_of(*bucket) == usize::from(shard);
        if !buckets.iter().all(is_inside) || !buckets.is_sorted_by(|one, other| one < other) {
            return Err(ExchangeError::Unexpected);
        }
        (self.shard, self.refused_before) = (shard, self.tally.refused);
        let first = buckets.first().map(|bucket| first_place(*bucket));
        self.buckets = buckets;
        self.go_on(objects, first)
    }

    /// Asks about the differing buckets from a place on; none: the shard is done.
    fn go_on(&mut self, objects: &mut dyn Objects, from: Option<Place>) -> Result<Next, ExchangeError> {
        let Some(from) = from else {
            if self.tally.refused == self.refused_before {
                let shard = usize::from(self.shard);
                objects.synced(shard, self.promise, self.marks[shard]);
            }
            return Ok(self.next_shard(objects));
        };
        let (mut rows, mut until) = (Vec::new(), None);
        let after = self.buckets.partition_point(|bucket| *bucket < bucket_of(&from));
        walk(objects, &self.buckets[after..], from, None, |row| {
            if rows.len() >= GROUP_ROWS {
                until = Some(row.place);
                return ControlFlow::Break(());
            }
            rows.push(Row { place: row.place, hash: row.hash });
            ControlFlow::Continue(())
        })?;
        let is_asked = |bucket: &u16| until.is_none_or(|until: Place| *bucket <= bucket_of(&until));
        let buckets = self.buckets[after..].iter().copied().take_while(is_asked).collect();
        self.step = Step::Rows { from, until };
        Ok(self.send(Body::Rows { buckets, from, until, rows }))
    }

    /// Merges what was offered. Returns what the other side lacks of what it wants.
    fn take(
        &mut self,
        objects: &mut dyn Objects,
        records: &[Vec<u8>],
        wanted: Vec<Place>,
    ) -> Result<VecDeque<Place>, Unreadable> {
        let merged = objects.merge(records);
        self.tally.merged += merged.changed;
        self.tally.refused = self.tally.refused.saturating_add(merged.refused);
        let offered: BTreeSet<&[u8]> = records.iter().map(Vec::as_slice).collect();
        let mut lacking = VecDeque::new();
        for place in wanted {
            if objects.record(&place)?.is_some_and(|ours| !offered.contains(&ours[..])) {
                lacking.push_back(place);
            }
        }
        Ok(lacking)
    }

    fn push(
        &mut self,
        objects: &mut dyn Objects,
        mut wanted: VecDeque<Place>,
        next: Option<Place>,
    ) -> Result<Next, ExchangeError> {
        let mut batch = Batch::default();
        while let Some(place) = wanted.front() {
            if objects.record(place)?.is_some_and(|record| !batch.add(&record)) {
                break;
            }
            wanted.pop_front();
        }
        if batch.records.is_empty() {
            return self.go_on(objects, next);
        }
        self.tally.sent += batch.records.len() as u32;
        self.step = Step::Push { wanted, next };
        Ok(self.send(Body::Push(batch.records)))
    }

    fn send(&self, body: Body) -> Next {
        Next::Send(Message { round: self.round, body })
    }
}

/// The side that is asked. None: the message is an answer, or does not keep to the protocol.
pub fn answer(objects: &mut dyn Objects, message: Message) -> Result<Option<Message>, Unreadable> {
    let body = match message.body {
        Body::Roots { state, sums } if sums.len() == SHARDS => compare(objects, &state, &sums),
        Body::Buckets { shard, sums: theirs } if theirs.len() == SHARD_BUCKETS => {
            let pairs = sums(objects, shard).into_iter().zip(theirs).enumerate();
            let differing = pairs.filter(|(_, (ours, theirs))| ours != theirs);
            let first = usize::from(shard) * SHARD_BUCKETS;
            Body::Differing(differing.map(|(bucket, _)| (first + bucket) as u16).collect())
        }
        Body::Rows { buckets, from, until, rows } => offer(objects, buckets, from, until, &rows)?,
        Body::Push(records) => Body::Taken { refused: objects.merge(&records).refused as u16 },
        _ => return Ok(None),
    };
    Ok(Some(Message { round: message.round, body }))
}

fn compare(objects: &mut dyn Objects, theirs: &State, sums: &[Short]) -> Body {
    if theirs.fingerprint != objects.fingerprint() {
        return Body::Refused(Refusal::Key);
    }
    if objects.adopt(&theirs.floors).is_err() {
        return Body::Refused(Refusal::Stale);
    }
    objects.begins(&theirs.bounds);
    let mut bits = 0;
    for (shard, theirs_sum) in sums.iter().enumerate() {
        if short(objects.tree().roots()[shard]) == *theirs_sum {
            objects.synced(shard, theirs.promise, theirs.marks[shard]);
        } else {
            bits |= 1 << shard;
        }
    }
    Body::Shards { state: state(objects), bits }
}

fn state(objects: &dyn Objects) -> State {
    let (fingerprint, promise) = (objects.fingerprint(), objects.promise());
    let (floors, marks) = (Box::new(objects.floors()), Box::new(objects.marks()));
    State { fingerprint, promise, floors, marks, bounds: Box::new(objects.bounds()) }
}

/// What the asker lacks of these buckets, and what we lack.
fn offer(
    objects: &mut dyn Objects,
    mut buckets: Vec<u16>,
    from: Place,
    until: Option<Place>,
    theirs: &[Row],
) -> Result<Body, Unreadable> {
    buckets.sort_unstable();
    buckets.dedup();
    let mut theirs: BTreeMap<Place, Short> = theirs.iter().map(|row| (row.place, row.hash)).collect();
    let (mut batch, mut wanted, mut stopped, mut scanned) = (Batch::default(), Vec::new(), None, 0);
    walk(objects, &buckets, from, until, |row| {
        scanned += 1;
        let known = theirs.get(&row.place);
        let is_equal = known.is_some_and(|hash| *hash == row.hash);
        if scanned > SCAN_MAX || !is_equal && !batch.add(row.record) {
            stopped = Some(row.place);
            return ControlFlow::Break(());
        }
        if theirs.remove(&row.place).is_some() && !is_equal {
            wanted.push(row.place);
        }
        ControlFlow::Continue(())
    })?;
    let is_lacking = |place: &Place| stopped.is_none_or(|stopped| *place < stopped);
    wanted.extend(theirs.into_keys().filter(is_lacking));
    Ok(Body::Offer { records: batch.records, wanted, stopped })
}

struct Walked<'a> {
    place: Place,
    hash: Short,
    record: &'a [u8],
}

/// Calls `found` with the records of `buckets`, which are sorted, from `from` on and before `until`, until it breaks.
fn walk(
    objects: &mut dyn Objects,
    buckets: &[u16],
    from: Place,
    until: Option<Place>,
    mut found: impl FnMut(Walked<'_>) -> ControlFlow<()>,
) -> Result<(), Unreadable> {
    for &bucket in buckets {
        let mut broke = false;
        objects.walk(&first_place(bucket).max(from), &mut |place, hash, record| {
            if bucket_of(place) != bucket || until.is_some_and(|until| *place >= until) {
                return ControlFlow::Break(());
            }
            let flow = found(Walked { place: *place, hash: half(hash), record });
            broke = flow.is_break();
            flow
        })?;
        if broke {
            break;
        }
    }
    Ok(())
}

fn first_place(bucket: u16) -> Place {
    let mut place = [0; 32];
    place[..2].copy_from_slice(&bucket.to_be_bytes());
    place
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

fn sums(objects: &dyn Objects, shard: u8) -> Vec<Short> {
    let first = usize::from(shard) * SHARD_BUCKETS;
    (first..first + SHARD_BUCKETS).map(|bucket| short(objects.tree().bucket(bucket as u16))).collect()
}

fn half(sum: Sum) -> Short {
    let bytes = sum.to_bytes();
    let (first, _) = bytes.split_first_chunk().expect("a sum is longer than its first half");
    *first
}

/// How long one answer may take.
pub const STEP_TIMEOUT: Duration = Duration::from_secs(5);
/// Rows of ours after which no further one goes into a message.
const GROUP_ROWS: usize = 512;
/// Records one step reads of those that are compared.
pub const SCAN_MAX: usize = 4_096;

const _: () = assert!(GROUP_ROWS <= ROWS_MAX);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Settings;
    use crate::store::memory::Memory;
    use crate::store::record::Kind;
    use crate::store::worker::{Change, Request, Sources, Worker};
    use common::ids::NodeId;
    use std::sync::Arc;

    const TIMEOUT: Duration = Duration::from_secs(60);

    fn replica(node: u64) -> Worker {
        on(Memory::default(), node)
    }

    /// The clock stands at one second.
    fn on(disk: Memory, node: u64) -> Worker {
        replica_at(disk, node, 1_000)
    }

    fn replica_at(disk: Memory, node: u64, wall_ms: u64) -> Worker {
        let day = Duration::from_secs(86_400);
        let settings = Settings { secret: b"secret".to_vec(), scrub_timer: day, scrub_ttl: day, grace: day };
        let sources = Sources { wall_ms: Box::new(move || wall_ms), random: Box::new(move || node) };
        Worker::open(Box::new(disk.clone()), disk.files(), &settings, sources, Arc::default()).unwrap().0
    }

    fn put(replica: &mut Worker, key: usize, value: &[u8]) {
        replica.put(Kind::Realm, &format!("realm{key}"), Some(value.to_vec())).unwrap();
    }

    fn request(key: usize, value: &[u8]) -> Request {
        let (key, bytes) = (format!("realm{key}"), Some(value.to_vec()));
        let (reply, _) = tokio::sync::oneshot::channel();
        Request { change: Change::Put { kind: Kind::Realm, key, bytes }, reply }
    }

    fn records(replica: &mut Worker) -> Vec<Vec<u8>> {
        let mut records = vec![];
        let mut found = |_: &Place, _, record: &[u8]| {
            records.push(record.to_vec());
            ControlFlow::Continue(())
        };
        replica.walk(&[0; 32], &mut found).unwrap();
        records
    }

    /// Runs one exchange to its end, through bytes. Returns what it did, the messages and their bytes.
    fn run(one: &mut Worker, other: &mut Worker) -> (Tally, usize, usize) {
        let now = Instant::now();
        let (mut exchange, mut message) = Exchange::start(7, one, now, TIMEOUT);
        let (mut messages, mut bytes) = (0, 0);
        let mut deliver = |message: &Message| {
            let encoded = message.encode();
            (messages, bytes) = (messages + 1, bytes + encoded.len());
            Message::decode(&encoded).unwrap()
        };
        loop {
            let reply = answer(other, deliver(&message)).unwrap().unwrap();
            match exchange.handle(one, deliver(&reply), now).unwrap().unwrap() {
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
        assert_eq!((records(&mut one).len(), tally.merged, tally.sent, tally.refused), (900, 400, 700, 0));
        let (tally, messages, bytes) = run(&mut one, &mut other);
        assert_eq!((tally, messages), (Tally::default(), 2));
        assert!(bytes < 4_200, "{bytes}");
    }

    #[test]
    fn one_changed_record_in_100_000_costs_less_than_64_kib() {
        let disk = Memory::default();
        let mut one = on(disk.clone(), 1);
        for first in (0..100_000).step_by(1_000) {
            one.work((first..first + 1_000).map(|key| request(key, b"value")).collect());
        }
        let copy = disk.copy();
        copy.disk().inode = 1;
        let mut other = on(copy, 2);
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
        let (tally, messages, _) = run(&mut one, &mut other);
        assert_eq!((tally.merged, one.tree() == other.tree()), (7, true));
        // Two of them are in one message: roots, buckets, four times rows.
        assert_eq!(messages, 2 * (1 + 1 + 4));
        let mut third = replica(3);
        let (tally, messages, _) = run(&mut one, &mut third);
        assert_eq!((tally.sent, one.tree() == third.tree()), (7, true));
        assert_eq!(messages, 2 * (1 + 1 + 1 + 4));
    }

    #[test]
    fn a_bad_record_is_refused_and_the_rest_goes_on() {
        let (mut one, disk) = (replica(1), Memory::default());
        put(&mut on(disk.clone(), 2), 1, b"good");
        let mut other = replica_at(disk, 2, 4_102_444_800_000);
        put(&mut other, 2, b"future");
        let (tally, ..) = run(&mut one, &mut other);
        assert_eq!((tally.merged, tally.refused, records(&mut one).len()), (1, 1, 1));
        let good = records(&mut one).remove(0);
        let mut bad = good.clone();
        bad[9] ^= 1;
        let push = Message { round: 1, body: Body::Push(vec![bad, good]) };
        let mut third = replica(3);
        let reply = answer(&mut third, push).unwrap().unwrap();
        assert_eq!((reply.body, records(&mut third).len()), (Body::Taken { refused: 1 }, 1));
    }

    const PEER: NodeId = NodeId([9; 16]);
    const MARK: Hlc = Hlc::at(500);

    fn shards(bits: u64) -> Body {
        let zero = || Box::new([Hlc::default(); SHARDS]);
        let (floors, marks, bounds) = (zero(), Box::new([MARK; SHARDS]), zero());
        let state = State { fingerprint: [0; 16], promise: Hlc::default(), floors, marks, bounds };
        Body::Shards { state, bits }
    }

    #[test]
    fn silence_ends_it_and_strange_answers_are_not_followed() {
        let mut one = replica(1);
        let now = Instant::now();
        let (mut exchange, _) = Exchange::start(7, &mut one, now, TIMEOUT);
        let mut handle = |round, body, at| exchange.handle(&mut one, Message { round, body }, at);
        assert_eq!(handle(6, shards(1), now), Ok(None));
        assert_eq!(handle(7, Body::Differing(vec![1]), now), Ok(None));
        assert!(matches!(handle(7, shards(1), now), Ok(Some(Next::Send(_)))));
        assert_eq!(handle(7, Body::Differing(vec![5_000]), now), Err(ExchangeError::Unexpected));
        assert_eq!(handle(7, Body::Differing(vec![1]), now + STEP_TIMEOUT), Err(ExchangeError::TimedOut));
        let (exchange, _) = Exchange::start(8, &mut one, now, TIMEOUT);
        assert_eq!(exchange.timeout(exchange.deadline()), Err(ExchangeError::TimedOut));
    }

    #[test]
    fn answers_that_lead_nowhere_break_it_off() {
        let (mut one, now) = (replica(1), Instant::now());
        let stopped = Body::Offer { records: vec![], wanted: vec![], stopped: Some(first_place(0)) };
        for answers in [
            vec![Body::Differing(vec![1, 0])],
            vec![Body::Differing(vec![1, 1])],
            // It would be asked for the same again.
            vec![Body::Differing(vec![0]), stopped],
        ] {
            let (mut exchange, _) = Exchange::start(7, &mut one, now, TIMEOUT);
            let mut handle = |body| exchange.handle(&mut one, Message { round: 7, body }, now);
            assert!(matches!(handle(shards(1)), Ok(Some(Next::Send(_)))));
            let last = answers.into_iter().map(handle).last();
            assert_eq!(last, Some(Err(ExchangeError::Unexpected)));
        }
    }

    #[test]
    fn a_shard_of_which_something_was_refused_is_not_synced() {
        for records in [vec![], vec![b"no record".to_vec()]] {
            let (mut one, now) = (replica(1), Instant::now());
            let (mut exchange, _) = one.exchange_start(PEER, 7, now, TIMEOUT);
            let is_whole = records.is_empty();
            let offer = Body::Offer { records, wanted: vec![], stopped: None };
            let answers = [shards(1), Body::Differing(vec![0]), offer];
            let step = |body| one.exchange_step(PEER, &mut exchange, Message { round: 7, body }, now).next;
            let last = answers.map(step).into_iter().last();
            assert!(matches!(last, Some(Ok(Some(Next::Done(_))))), "{last:?}");
            assert_eq!((one.marks()[0] == MARK, one.marks()[1] == MARK), (is_whole, true));
        }
    }

    #[test]
    fn stores_with_other_keys_or_a_new_epoch_are_not_compared() {
        let (mut one, mut other, now) = (replica(1), replica(2), Instant::now());
        let (mut exchange, mut message) = Exchange::start(7, &mut one, now, TIMEOUT);
        let Body::Roots { state, .. } = &mut message.body else { panic!("it begins with roots") };
        state.fingerprint[0] ^= 1;
        let reply = answer(&mut other, message).unwrap().unwrap();
        assert_eq!(reply.body, Body::Refused(Refusal::Key));
        assert_eq!(exchange.handle(&mut one, reply, now), Err(ExchangeError::Refused(Refusal::Key)));
        let (mut exchange, _) = Exchange::start(8, &mut one, now, TIMEOUT);
        assert_ne!(one.life(), other.life());
        let reply = Message { round: 8, body: shards(0) };
        assert_eq!(exchange.handle(&mut other, reply, now), Err(ExchangeError::NewEpoch));
    }

    #[test]
    fn an_answer_looks_at_so_many_records_and_says_where_it_stopped() {
        let mut one = replica(1);
        one.work((0..SCAN_MAX + 100).map(|key| request(key, b"value")).collect());
        let mut rows = vec![];
        let mut found = |place: &Place, sum, _: &[u8]| {
            rows.push(Row { place: *place, hash: half(sum) });
            ControlFlow::Continue(())
        };
        one.walk(&[0; 32], &mut found).unwrap();
        let (buckets, next) = (rows.iter().map(|row| bucket_of(&row.place)).collect(), rows[SCAN_MAX].place);
        let body = Body::Rows { buckets, from: first_place(0), until: None, rows };
        let reply = answer(&mut one, Message { round: 7, body }).unwrap().unwrap();
        let nothing_yet = Body::Offer { records: vec![], wanted: vec![], stopped: Some(next) };
        assert_eq!(reply.body, nothing_yet);
    }
}
