//! What other shards and other nodes said about routes since the snapshot in use.
//!
//! A word that the snapshot stands for has no weight from the moment the snapshot is in use; its memory is swept up in
//! slices afterwards, since a turn must stay short however many there are.
//!
//! Invariant: of one source about one route only the latest word is kept.

use super::nodes::NodeSet;
use super::routes::Folded;
use common::ids::{Match, RouteKind, ShardId, ShardSet};
use common::pattern::{PatternMap, SweepCursor};
use common::share::Share;

/// Who says a word.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Source {
    Shard(ShardId),
    /// By index of [`super::nodes::Nodes`].
    Node(u16),
}

/// The latest word of one source on a route.
#[derive(Clone, Debug)]
struct Word {
    source: Source,
    wanted: bool,
    /// The number of the claim, or of the change of other nodes' routes, that says the same to the control plane, or came
    /// from it.
    seq: u64,
    /// What a node says of callees that share a procedure.
    share: Option<Box<Share>>,
}

/// What was said about one route.
#[derive(Debug, Default)]
pub(super) struct Words(Vec<Word>);

/// Who wants, or no longer wants, a route.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Sources {
    pub shards: ShardSet,
    pub nodes: NodeSet,
}

impl Words {
    fn say(&mut self, said: Word) {
        match self.0.iter_mut().find(|word| word.source == said.source) {
            Some(word) if word.seq <= said.seq => *word = said,
            Some(_) => {}
            None => self.0.push(said),
        }
    }

    /// What nodes say of callees that share the procedure.
    pub fn shares(&self, folded: &Folded) -> impl Iterator<Item = (u16, Share)> {
        self.0.iter().filter(|word| word.wanted && folded.lacks(word.source, word.seq)).filter_map(|word| {
            match word.source {
                Source::Node(node) => Some((node, **word.share.as_ref()?)),
                Source::Shard(_) => None,
            }
        })
    }

    pub fn wanted(&self, folded: &Folded) -> Sources {
        self.sources(folded, true)
    }

    pub fn unwanted(&self, folded: &Folded) -> Sources {
        self.sources(folded, false)
    }

    fn sources(&self, folded: &Folded, wanted: bool) -> Sources {
        let mut sources = Sources::default();
        for word in self.0.iter().filter(|word| word.wanted == wanted && folded.lacks(word.source, word.seq))
        {
            match word.source {
                Source::Shard(shard) => sources.shards = sources.shards.with(shard),
                Source::Node(node) => sources.nodes.insert(node),
            }
        }
        sources
    }

    /// Forgets the words without weight. True when some are left.
    fn sweep(&mut self, folded: &Folded) -> bool {
        self.0.retain(|word| folded.lacks(word.source, word.seq));
        !self.0.is_empty()
    }
}

/// The routes of other shards and nodes in one realm.
#[derive(Debug, Default)]
pub(super) struct Overlay {
    topics: PatternMap<Words>,
    procedures: PatternMap<Words>,
    /// Routes that were left when it was last thinned out.
    thinned: usize,
}

/// Routes of an overlay below which nothing is thinned out.
pub(super) const OVERLAY_THIN_MIN: usize = 4_096;

impl Overlay {
    pub fn kind(&self, kind: RouteKind) -> &PatternMap<Words> {
        match kind {
            RouteKind::Topic => &self.topics,
            RouteKind::Procedure => &self.procedures,
        }
    }

    fn kind_mut(&mut self, kind: RouteKind) -> &mut PatternMap<Words> {
        match kind {
            RouteKind::Topic => &mut self.topics,
            RouteKind::Procedure => &mut self.procedures,
        }
    }

    pub fn len(&self) -> usize {
        self.topics.len() + self.procedures.len()
    }

    /// A word of another shard or node. One that is older than the last of its source changes nothing.
    pub fn say(&mut self, kind: RouteKind, policy: Match, uri: &str, source: Source, wanted: bool, seq: u64) {
        self.say_shared((kind, policy, uri), source, (wanted, None), seq);
    }

    /// As [`Overlay::say`], of a procedure that callees of the source share.
    pub fn say_shared(
        &mut self,
        (kind, policy, uri): (RouteKind, Match, &str),
        source: Source,
        (wanted, share): (bool, Option<Share>),
        seq: u64,
    ) {
        let word = Word { source, wanted, seq, share: share.map(Box::new) };
        let map = self.kind_mut(kind);
        match map.get_mut(policy, uri) {
            Some(words) => words.say(word),
            None => {
                map.insert(policy, uri, Words(vec![word]));
            }
        }
    }

    /// True when the overlay has doubled since it was last thinned out. Without a control plane no snapshot folds it,
    /// and clients that come and go would leave their removals here for ever.
    pub fn is_thick(&self) -> bool {
        self.len() >= OVERLAY_THIN_MIN.max(2 * self.thinned)
    }

    /// Forgets removals of other shards of what `held`, the snapshot's word on a route, does not have. Those of other
    /// nodes come from the control plane, so a snapshot will stand for them.
    pub fn thin_out(&mut self, held: impl Fn(RouteKind, Match, &str) -> ShardSet) {
        for kind in [RouteKind::Topic, RouteKind::Procedure] {
            self.kind_mut(kind).retain(|policy, uri, words| {
                let held = held(kind, policy, uri);
                words.0.retain(|word| match word.source {
                    Source::Shard(shard) => word.wanted || held.contains(shard),
                    Source::Node(_) => true,
                });
                !words.0.is_empty()
            });
        }
        self.thinned = self.len();
    }

    /// Forgets what has no weight among at most `budget` routes from `sweep` on. Returns how many were looked at;
    /// `sweep` is at its end when that is less than `budget`.
    pub fn sweep(&mut self, sweep: &mut Sweep, folded: &Folded, budget: usize) -> usize {
        let mut looked_at = 0;
        while looked_at < budget {
            let map = match sweep.kind {
                Some(RouteKind::Topic) => &mut self.topics,
                Some(RouteKind::Procedure) => &mut self.procedures,
                None => break,
            };
            looked_at += map.sweep(&mut sweep.cursor, budget - looked_at, |_, _, words| words.sweep(folded));
            if sweep.cursor.is_done() {
                sweep.cursor = SweepCursor::default();
                sweep.kind = match sweep.kind {
                    Some(RouteKind::Topic) => Some(RouteKind::Procedure),
                    _ => None,
                };
            }
        }
        looked_at
    }
}

/// How far an overlay is swept.
#[derive(Debug)]
pub(super) struct Sweep {
    /// None: to the end.
    kind: Option<RouteKind>,
    cursor: SweepCursor,
}

impl Default for Sweep {
    fn default() -> Self {
        Self { kind: Some(RouteKind::Topic), cursor: SweepCursor::default() }
    }
}

impl Sweep {
    pub fn is_done(&self) -> bool {
        self.kind.is_none()
    }
}
