//! Hands the cluster's work to the store thread, at once, and its answers back, in the order in which the work was asked for.
//!
//! Work reaches the store while earlier work is under way, so changes share a commit; answers come in its order because the
//! catalog follows them.

use super::driver::Event;
use crate::cluster::{STORE_TASKS_MAX, StoreDone, StoreTask, Token};
use crate::store::Store;
use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::Poll;
use std::time::Instant;
use tokio::sync::mpsc;

/// A piece of work and what it is called.
pub type Work = (Token, StoreTask);

enum Slot {
    UnderWay(Pin<Box<dyn Future<Output = StoreDone> + Send>>),
    Done(StoreDone),
}

/// Starts the task. It ends with the senders of work, or with the driver.
pub fn start(store: Store, events: mpsc::Sender<Event>) -> mpsc::Sender<Work> {
    let (sender, work) = mpsc::channel(WORK_MAX);
    tokio::spawn(run(store, work, events));
    sender
}

async fn run(store: Store, mut work: mpsc::Receiver<Work>, events: mpsc::Sender<Event>) {
    let mut line: VecDeque<(Token, Slot)> = VecDeque::new();
    loop {
        tokio::select! {
            next = work.recv(), if line.len() < WORK_MAX => {
                let Some((token, task)) = next else { return };
                let mut doing: Pin<Box<_>> = Box::pin(perform(store.clone(), task));
                // The store has it once the future was polled.
                let first = poll_fn(|context| Poll::Ready(doing.as_mut().poll(context))).await;
                let slot = match first {
                    Poll::Ready(done) => Slot::Done(done),
                    Poll::Pending => Slot::UnderWay(doing),
                };
                line.push_back((token, slot));
            }
            (token, done) = first(&mut line), if !line.is_empty() => {
                line.pop_front();
                if events.send(Event::Stored(token, Box::new(done))).await.is_err() {
                    return;
                }
            }
        }
    }
}

/// Waits for the first in the line, which stays there. Once it is done it must not be awaited again.
async fn first(line: &mut VecDeque<(Token, Slot)>) -> (Token, StoreDone) {
    let Some((token, slot)) = line.front_mut() else { return std::future::pending().await };
    let done = match slot {
        Slot::UnderWay(doing) => doing.as_mut().await,
        Slot::Done(_) => match std::mem::replace(slot, Slot::UnderWay(Box::pin(std::future::pending()))) {
            Slot::Done(done) => done,
            Slot::UnderWay(_) => unreachable!("matched above"),
        },
    };
    (*token, done)
}

async fn perform(store: Store, task: StoreTask) -> StoreDone {
    match task {
        StoreTask::Put { kind, key, bytes: Some(bytes) } => {
            StoreDone::Put(store.put(kind, &key, bytes).await)
        }
        StoreTask::Put { kind, key, bytes: None } => StoreDone::Put(store.delete(kind, &key).await),
        StoreTask::Merge(object) => StoreDone::Merge(store.merge(object).await),
        StoreTask::Start { peer, round, timeout } => {
            let begun = store.exchange_start(peer, round, Instant::now(), timeout).await;
            StoreDone::Start(begun.map(|(exchange, message)| (Box::new(exchange), message)))
        }
        StoreTask::Step { peer, exchange, message } => {
            let stepped = store.exchange_step(peer, *exchange, message, Instant::now()).await;
            StoreDone::Step(stepped.map(|(exchange, stepped)| (Box::new(exchange), stepped)))
        }
        StoreTask::Answer { peer, message } => StoreDone::Answer(store.exchange_answer(peer, message).await),
        StoreTask::Announce => StoreDone::Announce(store.announcement().await),
        StoreTask::Hear { peer, announcement } => StoreDone::Hear(store.heard(peer, announcement).await),
        StoreTask::Upkeep => StoreDone::Upkeep(store.upkeep().await),
        StoreTask::Members(nodes) => StoreDone::Members(store.members(nodes).await),
    }
}

/// Work that waits or is under way: what the machine bounds, and what it does one at a time beside that.
pub const WORK_MAX: usize = STORE_TASKS_MAX + 256;
