//! Calls that have lost one side, slice by slice: a callee, a caller or another node that ends may leave tens of thousands behind, and
//! publications that were to be acknowledged and sessions that were carried.
//!
//! A callee that is gone gets no more calls at once; its callers are told in their turn. Both sides are named as always, so who
//! has ended meanwhile, or has given the call up, is passed over.

use super::conn::{Call, Invocation, Route};
use super::{CancelMode, Shard};
use crate::mesh::{Caller, Owner};
use common::uri::wamp;
use std::collections::VecDeque;
use std::vec::IntoIter;

/// Calls and others that are ended in one turn.
const ORPHAN_SLICE: usize = 256;

/// Those that lost the same side at once.
#[derive(Debug)]
enum Left {
    /// A callee of this shard is gone.
    ByCallee(IntoIter<Invocation>),
    /// The way to another node is gone: the URI and the text for its callers.
    ByNode(IntoIter<Caller>, &'static str, &'static str),
    /// A caller of this shard is gone.
    ByCaller(Owner, IntoIter<(u64, Call)>),
    /// A caller on another node is gone.
    ByGuest(Owner, IntoIter<Option<(u64, Route)>>),
    /// A node will not say that it has a publication: whose they are, their requests and that node, and why.
    Unpublished(IntoIter<(Owner, u64, u16)>, &'static str),
    /// Nobody is left who has not said so: whose they are, their requests and their ids.
    Published(IntoIter<(Owner, u64, u64)>),
    /// The way from these ports to their seats on another node is gone.
    Ports(IntoIter<u64>),
    /// So is that from connections of another node to these ports.
    GuestPorts(IntoIter<u64>),
}

/// Those of one shard, first come first.
#[derive(Debug, Default)]
pub(super) struct Orphans {
    waiting: VecDeque<Left>,
    /// In this turn.
    ended: usize,
}

impl Orphans {
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    pub fn len(&self) -> usize {
        self.waiting.iter().map(Left::len).sum()
    }

    #[inline]
    pub const fn next_turn(&mut self) {
        self.ended = 0;
    }
}

impl Left {
    fn len(&self) -> usize {
        match self {
            Self::ByCallee(left) => left.len(),
            Self::ByNode(left, ..) => left.len(),
            Self::ByCaller(_, left) => left.len(),
            Self::ByGuest(_, left) => left.len(),
            Self::Unpublished(left, _) => left.len(),
            Self::Published(left) => left.len(),
            Self::Ports(left) | Self::GuestPorts(left) => left.len(),
        }
    }
}

impl Shard {
    /// The callee of these invocations has left.
    pub(super) fn fail_invocations(&mut self, invocations: Vec<Invocation>) {
        self.orphaned(Left::ByCallee(invocations.into_iter()));
    }

    /// Calls passed to another node will not be answered.
    pub(super) fn fail_passed(&mut self, callers: Vec<Caller>, uri: &'static str, text: &'static str) {
        self.orphaned(Left::ByNode(callers.into_iter(), uri, text));
    }

    /// The caller of these calls has left.
    pub(super) fn abandon_calls(&mut self, owner: Owner, calls: Vec<(u64, Call)>) {
        self.orphaned(Left::ByCaller(owner, calls.into_iter()));
    }

    /// The link of these calls is gone.
    pub(super) fn abandon_guest(&mut self, owner: Owner, calls: IntoIter<Option<(u64, Route)>>) {
        self.orphaned(Left::ByGuest(owner, calls));
    }

    /// A node each will not acknowledge these publications.
    pub(super) fn fail_publications(&mut self, publications: Vec<(Owner, u64, u16)>, what: &'static str) {
        self.orphaned(Left::Unpublished(publications.into_iter(), what));
    }

    /// All nodes that have not acknowledged these publications are gone.
    pub(super) fn complete_publications(&mut self, publications: Vec<(Owner, u64, u64)>) {
        self.orphaned(Left::Published(publications.into_iter()));
    }

    /// These ports have lost their seats.
    pub(super) fn give_up_ports(&mut self, ports: Vec<u64>) {
        self.orphaned(Left::Ports(ports.into_iter()));
    }

    /// These ports have lost the connections they carry.
    pub(super) fn give_up_guest_ports(&mut self, ports: Vec<u64>) {
        self.orphaned(Left::GuestPorts(ports.into_iter()));
    }

    /// Ends what the turn has room for, and has the others wait for turns to come.
    fn orphaned(&mut self, mut left: Left) {
        if left.len() > 0 && (!self.orphans.is_empty() || !self.end_left(&mut left)) {
            self.orphans.waiting.push_back(left);
        }
    }

    /// One turn's share of what waits.
    pub(super) fn go_on_orphans(&mut self) {
        self.orphans.next_turn();
        while let Some(mut left) = self.orphans.waiting.pop_front() {
            if !self.end_left(&mut left) {
                return self.orphans.waiting.push_front(left);
            }
        }
    }

    /// True: there are no more of them.
    fn end_left(&mut self, left: &mut Left) -> bool {
        while self.orphans.ended < ORPHAN_SLICE {
            if !self.end_next(left) {
                return true;
            }
            self.orphans.ended += 1;
        }
        false
    }

    /// False: there was none.
    fn end_next(&mut self, left: &mut Left) -> bool {
        match left {
            Left::ByCallee(left) => {
                let Some(open) = left.next() else { return false };
                self.foreign.remove(&open.caller);
                self.answer_error(open.caller, wamp::CANCELED, "the callee has left");
            }
            Left::ByNode(left, uri, text) => {
                let Some(caller) = left.next() else { return false };
                self.answer_error(caller, uri, text);
            }
            Left::ByCaller(owner, left) => {
                let Some((request, call)) = left.next() else { return false };
                self.calls -= 1;
                if let Some(deadline) = call.deadline {
                    self.deadlines.remove(&deadline);
                }
                let caller = Caller { owner: *owner, request };
                self.cancel_route(call.route, caller, CancelMode::KillNoWait, false);
            }
            Left::ByGuest(owner, left) => {
                let Some(place) = left.next() else { return false };
                let Some((request, route)) = place else { return true };
                let caller = Caller { owner: *owner, request };
                self.cancel_route(route, caller, CancelMode::KillNoWait, false);
            }
            Left::Ports(left) => {
                let Some(number) = left.next() else { return false };
                self.port_lost(number);
            }
            Left::GuestPorts(left) => {
                let Some(number) = left.next() else { return false };
                self.guest_port_lost(number);
            }
            Left::Published(left) => {
                let Some((owner, request, publication)) = left.next() else { return false };
                self.published_to_all(owner, request, publication);
            }
            Left::Unpublished(left, what) => {
                let Some((owner, request, node)) = left.next() else { return false };
                self.ack_failed(owner, request, node, what);
            }
        }
        true
    }
}
