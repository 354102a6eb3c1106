//! The queues between the shards of a node: one bounded single-producer queue per ordered pair.
//!
//! Next to its queues each shard has a mailbox that others write: which queues have something, who waits for room,
//! and whether the shard sleeps. A sleeper is woken once. No wake-up is lost because both sides write before they
//! look (sequentially consistent): a shard says that it sleeps and then looks at its mailbox; a sender fills the
//! mailbox and then looks whether the shard sleeps. A sender that found a queue full says that it waits for room and
//! looks again before it sleeps; the receiver takes batches and then looks who waits.

use crate::io::wake::ShardWaker;
use common::ids::{SHARDS_MAX, ShardId, ShardSet};
use rtrb::{Consumer, Producer, RingBuffer};
use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering, fence};

const WORDS: usize = SHARDS_MAX / 64;

/// What other shards write about one shard, on cache lines of its own.
#[repr(align(128))]
struct Mailbox {
    /// Shards whose queue to this one may have something.
    ready: Set,
    /// Shards that wait for room in their queue to this one.
    room_wanted: Set,
    asleep: AtomicBool,
    /// Its ring, for `IORING_OP_MSG_RING`; -1 when it has none.
    ring: AtomicI32,
    waker: ShardWaker,
}

/// A set of shards that many write and one takes.
#[derive(Default)]
struct Set([AtomicU64; WORDS]);

/// One shard's ends of all its queues.
pub struct Mesh<B> {
    me: ShardId,
    mailboxes: Arc<[Mailbox]>,
    /// By target; none to itself.
    senders: Vec<Option<Producer<B>>>,
    /// By source; none from itself.
    receivers: Vec<Option<Consumer<B>>>,
    /// Sources that had more than one turn takes.
    left_over: ShardSet,
    /// Targets without room when something was to be sent.
    full: ShardSet,
}

/// How a sleeping shard is to be woken.
#[derive(Debug)]
pub enum Wake {
    /// By a message to this ring.
    Ring(RawFd),
    /// By its waker.
    Waker(ShardWaker),
}

/// Queues of `entries` batches between `wakers.len()` shards, the ends of shard `i` at index `i`.
pub fn mesh<B>(entries: usize, wakers: &[ShardWaker]) -> Vec<Mesh<B>> {
    let shards = wakers.len();
    let mailboxes: Arc<[Mailbox]> = wakers
        .iter()
        .map(|waker| Mailbox {
            ready: Set::default(),
            room_wanted: Set::default(),
            asleep: AtomicBool::new(false),
            ring: AtomicI32::new(-1),
            waker: waker.clone(),
        })
        .collect();
    let mut ends: Vec<Mesh<B>> = (0..shards)
        .map(|me| Mesh {
            me: ShardId(me as u8),
            mailboxes: mailboxes.clone(),
            senders: Vec::new(),
            receivers: Vec::new(),
            left_over: ShardSet::EMPTY,
            full: ShardSet::EMPTY,
        })
        .collect();
    for from in 0..shards {
        for to in 0..shards {
            let (sender, receiver) = if from == to {
                (None, None)
            } else {
                let (sender, receiver) = RingBuffer::new(entries.max(1));
                (Some(sender), Some(receiver))
            };
            ends[from].senders.push(sender);
            ends[to].receivers.push(receiver);
        }
    }
    ends
}

impl<B> Mesh<B> {
    fn mine(&self) -> &Mailbox {
        &self.mailboxes[self.me.index()]
    }

    /// This node has one shard only: there is nobody to hear from.
    #[inline]
    pub fn is_alone(&self) -> bool {
        self.mailboxes.len() == 1
    }

    /// Others may post messages to this shard's ring from now on; `None`: no longer.
    pub fn set_ring(&self, ring: Option<RawFd>) {
        self.mine().ring.store(ring.unwrap_or(-1), Ordering::Release);
    }

    /// The targets found full at the last [`Mesh::set_full`].
    #[inline]
    pub fn full(&self) -> ShardSet {
        self.full
    }

    /// Remembers which targets have no room, and has them tell when there is some.
    pub fn set_full(&mut self, full: ShardSet) {
        self.full = full;
        for to in full.iter() {
            self.mailboxes[to.index()].room_wanted.insert(self.me);
        }
    }

    /// A batch can be pushed to `to`.
    #[inline]
    pub fn has_room(&self, to: ShardId) -> bool {
        self.senders[to.index()].as_ref().is_some_and(|sender| !sender.is_full())
    }

    /// Queues a batch and says whether the target must be woken. Only after [`Mesh::has_room`].
    pub fn push(&mut self, to: ShardId, batch: B) -> Option<Wake> {
        let sender = self.senders[to.index()].as_mut().expect("no shard sends to itself");
        assert!(sender.push(batch).is_ok(), "has_room was asked");
        let mailbox = &self.mailboxes[to.index()];
        mailbox.ready.insert(self.me);
        mailbox.wake()
    }

    /// The shards something may have come from; each is to be passed to [`Mesh::take`].
    #[inline]
    pub fn ready(&mut self) -> ShardSet {
        if self.is_alone() {
            return ShardSet::EMPTY;
        }
        let ready = self.mine().ready.take().union(self.left_over);
        self.left_over = ShardSet::EMPTY;
        ready
    }

    /// Takes at most `max` batches of one shard; what is left counts as ready. Returns how many.
    pub fn take(&mut self, from: ShardId, max: usize, mut each: impl FnMut(B)) -> usize {
        let Some(receiver) = self.receivers[from.index()].as_mut() else { return 0 };
        let mut taken = 0;
        while taken < max
            && let Ok(batch) = receiver.pop()
        {
            each(batch);
            taken += 1;
        }
        if !receiver.is_empty() {
            self.left_over = self.left_over.with(from);
        }
        taken
    }

    /// After batches were taken: whom to wake because there is room again.
    pub fn give_room(&self, mut each: impl FnMut(ShardId, Wake)) {
        // Taking batches comes before looking who waits for that.
        fence(Ordering::SeqCst);
        let mine = self.mine();
        if mine.room_wanted.is_empty() {
            return;
        }
        for waiting in mine.room_wanted.take().iter() {
            if let Some(wake) = self.mailboxes[waiting.index()].wake() {
                each(waiting, wake);
            }
        }
    }

    /// Says that this shard is about to sleep; false when there is something to do. Undone by [`Mesh::awake`].
    #[inline]
    pub fn may_sleep(&self) -> bool {
        if self.is_alone() {
            return true;
        }
        let mine = self.mine();
        mine.asleep.store(true, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        mine.ready.is_empty() && self.left_over.is_empty() && !self.full.iter().any(|to| self.has_room(to))
    }

    /// This shard looks at its mailbox by itself.
    #[inline]
    pub fn awake(&self) {
        if !self.is_alone() {
            self.mine().asleep.store(false, Ordering::Relaxed);
        }
    }

    /// The waker of another shard, for when a message to its ring failed.
    pub fn waker(&self, shard: ShardId) -> &ShardWaker {
        &self.mailboxes[shard.index()].waker
    }
}

impl Mailbox {
    /// How to wake the shard, once for each sleep.
    fn wake(&self) -> Option<Wake> {
        if !self.asleep.load(Ordering::SeqCst) || !self.asleep.swap(false, Ordering::SeqCst) {
            return None;
        }
        Some(match self.ring.load(Ordering::Acquire) {
            -1 => Wake::Waker(self.waker.clone()),
            ring => Wake::Ring(ring),
        })
    }
}

impl Set {
    fn insert(&self, shard: ShardId) {
        self.0[shard.index() / 64].fetch_or(1 << (shard.index() % 64), Ordering::SeqCst);
    }

    #[inline]
    fn is_empty(&self) -> bool {
        self.0.iter().all(|word| word.load(Ordering::SeqCst) == 0)
    }

    #[inline]
    fn take(&self) -> ShardSet {
        let mut all = 0;
        for (index, word) in self.0.iter().enumerate() {
            // Looking first spares the shared line a write in most turns.
            if word.load(Ordering::Relaxed) != 0 {
                all |= u128::from(word.swap(0, Ordering::SeqCst)) << (64 * index);
            }
        }
        ShardSet(all)
    }
}

const _: () = assert!(WORDS * 64 == SHARDS_MAX);

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(entries: usize) -> (Mesh<u32>, Mesh<u32>) {
        let wakers = [ShardWaker::new().expect("waker"), ShardWaker::new().expect("waker")];
        let mut ends = mesh(entries, &wakers).into_iter();
        (ends.next().expect("first"), ends.next().expect("second"))
    }

    const A: ShardId = ShardId(0);
    const B: ShardId = ShardId(1);

    #[test]
    fn batches_arrive_in_order_and_the_rest_stays_ready() {
        let (mut a, mut b) = pair(8);
        for n in 0..5 {
            assert!(a.push(B, n).is_none(), "nobody sleeps");
        }
        let mut got = Vec::new();
        assert_eq!(b.ready(), ShardSet::one(A));
        assert_eq!(b.take(A, 3, |n| got.push(n)), 3);
        assert!(!b.may_sleep());
        assert_eq!(b.ready(), ShardSet::one(A));
        b.take(A, 3, |n| got.push(n));
        assert_eq!(got, [0, 1, 2, 3, 4]);
        assert!(b.ready().is_empty() && b.may_sleep());
    }

    #[test]
    fn a_sleeper_is_woken_once() {
        let (mut a, b) = pair(8);
        assert!(b.may_sleep());
        assert!(matches!(a.push(B, 1), Some(Wake::Waker(_))), "no ring is known yet");
        assert!(a.push(B, 2).is_none());
        b.awake();
        b.set_ring(Some(7));
        assert!(!b.may_sleep(), "the mailbox has something");
        assert!(matches!(a.push(B, 3), Some(Wake::Ring(7))));
    }

    #[test]
    fn who_found_a_queue_full_is_woken_when_there_is_room() {
        let (mut a, mut b) = pair(1);
        a.push(B, 1);
        assert!(!a.has_room(B));
        a.set_full(ShardSet::one(B));
        assert!(a.may_sleep());
        let from = b.ready();
        assert_eq!(from, ShardSet::one(A));
        b.take(A, 1, drop);
        let mut woken = Vec::new();
        b.give_room(|shard, _| woken.push(shard));
        assert_eq!(woken, [A]);
        a.awake();
        assert!(!a.may_sleep(), "there is room for what waits");
    }

    #[test]
    fn nothing_is_lost_between_threads_that_sleep_whenever_they_may() {
        const BATCHES: u32 = 20_000;
        let (mut a, mut b) = pair(4);
        let sender = std::thread::spawn(move || {
            let mut next = 0;
            while next < BATCHES {
                if a.has_room(B) {
                    if let Some(Wake::Waker(waker)) = a.push(B, next) {
                        waker.wake();
                    }
                    next += 1;
                    continue;
                }
                a.set_full(ShardSet::one(B));
                sleep(&a);
                a.set_full(ShardSet::EMPTY);
            }
        });
        let mut expected = 0;
        while expected < BATCHES {
            for from in b.ready().iter() {
                b.take(from, 3, |n| {
                    assert_eq!(n, expected);
                    expected += 1;
                });
                b.give_room(|_, wake| match wake {
                    Wake::Waker(waker) => waker.wake(),
                    Wake::Ring(_) => unreachable!("no ring was set"),
                });
            }
            if expected < BATCHES {
                sleep(&b);
            }
        }
        sender.join().expect("sender");
    }

    /// Blocks on the shard's own waker; a lost wake-up fails the test after ten seconds.
    fn sleep(end: &Mesh<u32>) {
        if end.may_sleep() {
            let waker = end.waker(end.me);
            let mut poll = libc::pollfd { fd: waker.watched(), events: libc::POLLIN, revents: 0 };
            // SAFETY: one pollfd that lives across the call.
            assert_eq!(unsafe { libc::poll(&raw mut poll, 1, 10_000) }, 1, "a wake-up was lost");
            waker.clear();
        }
        end.awake();
    }
}
