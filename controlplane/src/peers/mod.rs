//! Links between control planes: one encrypted TCP connection for each pair of nodes that live. Machines without IO.
//!
//! ```text
//! members ─▶ table: who dials, which connection counts ─▶ dial, admit, close, up, down
//! bytes ─▶ link: handshake (common::noise) ─▶ pieces ─▶ frames of channels, round-trip time ─▶ bytes
//! ```
//! Invariants: nothing of a peer but its handshake is looked at before it has proved that it holds a key of the cluster; a
//! node has at most one link that is up, and only while membership says that it lives; of two connections of one pair
//! the one dialled later counts; every queue, buffer and wait has a bound named here.

pub mod hello;
pub mod link;
pub mod pieces;
pub mod table;

pub use hello::Hello;
pub use link::{End, Event, Link, LinkConfig};
pub use table::Table;

use common::noise::NoiseError;
use std::time::Duration;

/// What a frame is for. Frames of one channel arrive in the order they were sent; [`Channel::Swim`] overtakes the others.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum Channel {
    /// Stored objects, by the broadcast tree.
    Broadcast = 1,
    /// Routes of nodes.
    Claims = 2,
    /// Anti-entropy of stored objects.
    Exchange = 3,
    /// Membership packets that UDP does not carry.
    Swim = 4,
    /// The floor below which tombstones are collected.
    Floor = 5,
}

impl Channel {
    pub const ALL: [Self; 5] = [Self::Broadcast, Self::Claims, Self::Exchange, Self::Swim, Self::Floor];

    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|channel| *channel as u8 == number)
    }

    /// The place in tables of counters.
    pub const fn index(self) -> usize {
        self as usize - 1
    }

    /// The label of the metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Broadcast => "broadcast",
            Self::Claims => "claims",
            Self::Exchange => "exchange",
            Self::Swim => "swim",
            Self::Floor => "floor",
        }
    }

    /// It is small and waits for nothing.
    pub const fn is_urgent(self) -> bool {
        matches!(self, Self::Swim)
    }
}

/// Why a connection was refused before it was up, by us or by the peer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// It does not speak this protocol.
    Foreign,
    /// Another format of the handshake.
    Format,
    Env,
    Key,
    /// No protocol version in common.
    Incompatible,
    /// It has our node id.
    Own,
    /// Another node than the one that was dialled answered.
    Stranger,
    /// It dialled although we are to dial.
    Turn,
    /// It belongs to an earlier life of the node, or a later connection is there.
    Stale,
    /// Membership does not know the node as living.
    Unknown,
    /// The handshake took too long.
    Slow,
    /// Too many handshakes, or too many nodes.
    Full,
    Malformed,
}

impl Refusal {
    pub const ALL: [Self; 13] = [
        Self::Foreign,
        Self::Format,
        Self::Env,
        Self::Key,
        Self::Incompatible,
        Self::Own,
        Self::Stranger,
        Self::Turn,
        Self::Stale,
        Self::Unknown,
        Self::Slow,
        Self::Full,
        Self::Malformed,
    ];

    /// The label of the metric.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Foreign => "foreign",
            Self::Format => "format",
            Self::Env => "env",
            Self::Key => "key",
            Self::Incompatible => "incompatible",
            Self::Own => "own",
            Self::Stranger => "stranger",
            Self::Turn => "turn",
            Self::Stale => "stale",
            Self::Unknown => "unknown",
            Self::Slow => "slow",
            Self::Full => "full",
            Self::Malformed => "malformed",
        }
    }

    /// What happened and what to do, for the log.
    pub const fn advice(self) -> &'static str {
        match self {
            Self::Foreign => "it speaks another protocol; keep strangers away from cluster.address",
            Self::Format => "its handshake has another format; run versions of Signalbox that go together",
            Self::Env => "it belongs to another cluster.env; set the same env on all nodes of a cluster",
            Self::Key => {
                "the first key of the one that dials is not a key of the other; put the same keys into cluster.key_file \
                 on all nodes"
            }
            Self::Incompatible => "the two have no protocol version in common; upgrade the older one",
            Self::Own => "it has our own node id; a data folder must not be used by two nodes",
            Self::Stranger => {
                "another node answers at the address of a member; check cluster.advertise and address translation"
            }
            Self::Turn => "the node with the smaller id dials; is a node of the cluster damaged?",
            Self::Stale => "a later life of the node or a later connection is known; it goes away by itself",
            Self::Unknown => {
                "membership does not know it as living; can UDP packets pass between the two in both directions?"
            }
            Self::Slow => "the handshake took too long; is the network or the node overloaded?",
            Self::Full => "there are too many at a time; forget nodes that are gone for good",
            Self::Malformed => "what it sent makes no sense; is a node of the cluster damaged?",
        }
    }
}

impl From<NoiseError> for Refusal {
    fn from(error: NoiseError) -> Self {
        use common::noise::Refusal as Told;
        match error {
            NoiseError::Foreign => Self::Foreign,
            NoiseError::Format(_) | NoiseError::Refused(Told::Format) => Self::Format,
            NoiseError::Env | NoiseError::Refused(Told::Env) => Self::Env,
            NoiseError::UnknownKey | NoiseError::Refused(Told::Key) => Self::Key,
            NoiseError::Refused(Told::Version) => Self::Incompatible,
            NoiseError::Refused(Told::Identity) => Self::Stranger,
            NoiseError::Refused(Told::Other) => Self::Unknown,
            NoiseError::Authentic | NoiseError::Length | NoiseError::Turn => Self::Malformed,
        }
    }
}

/// Why a link is down.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum DownReason {
    #[error("the peer closed it")]
    Closed,
    #[error("the connection failed")]
    Failed,
    #[error("the peer was silent for too long")]
    Silent,
    #[error("the peer sent what makes no sense: {0}")]
    Violation(&'static str),
    #[error("a later connection takes its place")]
    Replaced,
    #[error("membership says that the node is gone")]
    Gone,
    #[error("the node was started again")]
    Renewed,
    #[error("it was asked for")]
    Asked,
}

/// Longest frame of any channel.
pub const FRAME_BYTES_MAX: usize = 1 << 20;
/// Most bytes queued to one peer, the overhead of each frame included.
pub const QUEUE_BYTES_MAX: usize = 4 * FRAME_BYTES_MAX;
/// What a queued frame counts beside its bytes.
pub const QUEUE_OVERHEAD: usize = 64;
/// How long a handshake may take.
pub const HANDSHAKE_MAX: Duration = Duration::from_secs(5);
/// The peer is pinged this often.
pub const PING_PERIOD: Duration = Duration::from_secs(1);
/// A link is given up when nothing was heard for this long although an answer is due. Longer than any pause that
/// membership lets pass.
pub const SILENCE_MAX: Duration = Duration::from_secs(10);
/// Bytes read at a time from a peer that has not proved anything yet ...
pub const READ_EARLY_BYTES: usize = 1 << 10;
/// ... and from one that has.
pub const READ_BYTES: usize = 64 << 10;
/// A connection of a node that membership does not know yet is kept for this long.
pub const UNKNOWN_MAX: Duration = Duration::from_secs(5);
const _: () = assert!(QUEUE_BYTES_MAX >= FRAME_BYTES_MAX + QUEUE_OVERHEAD);
