//! What crosses the link between the planes: claims and measurements up, snapshots and deltas down.
//!
//! The link is a Unix `SOCK_SEQPACKET` socket; one packet is one frame, an archived [`Up`] or [`Down`], at most
//! [`crate::limits::LINK_FRAME_BYTES_MAX`] long. The control plane listens, the data plane connects and says
//! [`Up::Hello`] first. [`Down::Snapshot`] carries one descriptor, a sealed memfd.

use crate::ids::{
    BootEpoch, Match, NODES_MAX, NodeId, RealmId, RouteKind, SHARDS_MAX, ShardId, SnapshotVersion,
};
use crate::limits::{LINK_FRAME_BYTES_MAX, RETAINED_BYTES_MAX, URI_BYTES_MAX};
use crate::rules::Rules;
use crate::share::Share;
use crate::snapshot::{Delta, Realm};
use rkyv::api::high::{HighDeserializer, HighSerializer, HighValidator};
use rkyv::bytecheck::CheckBytes;
use rkyv::rancor;
use rkyv::ser::allocator::ArenaHandle;
use rkyv::util::AlignedVec;
use rkyv::{Archive, Deserialize, Portable, Serialize};

/// Version of the frames; the two ends must agree.
pub const LINK_PROTOCOL: u32 = 4;

/// One change of what a shard holds. Claims of a shard are numbered 1, 2, 3 ... over the life of its process.
#[derive(Clone, PartialEq, Eq, Debug, Archive, Serialize, Deserialize)]
pub enum Claim {
    Joined {
        session: u64,
        realm: RealmId,
    },
    Left {
        session: u64,
    },
    /// The shard wants what is sent to this URI.
    Routed {
        realm: RealmId,
        kind: RouteKind,
        policy: Match,
        uri: String,
    },
    /// As `Routed`, of a procedure whose callees share it, or change.
    Shared {
        realm: RealmId,
        policy: Match,
        uri: String,
        share: Share,
    },
    Unrouted {
        realm: RealmId,
        kind: RouteKind,
        policy: Match,
        uri: String,
    },
}

/// Frames from the data plane.
#[derive(Clone, PartialEq, Debug, Archive, Serialize, Deserialize)]
pub enum Up {
    Hello {
        protocol: u32,
        epoch: BootEpoch,
        pid: u32,
        shards: u8,
        version: String,
    },
    /// Claims `first_seq`, `first_seq + 1`, ... of one shard.
    Claims {
        shard: ShardId,
        first_seq: u64,
        claims: Vec<Claim>,
    },
    /// A whole claim set follows in `ClaimsPart` frames: forget what this shard claimed before.
    ClaimsReset {
        shard: ShardId,
    },
    ClaimsPart {
        shard: ShardId,
        claims: Vec<Claim>,
    },
    /// The set is whole and stands for everything up to claim `seq`.
    ClaimsEnd {
        shard: ShardId,
        seq: u64,
    },
    /// Counters and gauges in the order of [`crate::metrics`], and the CPU the shard is pinned to.
    Stats {
        shard: ShardId,
        cpu: u32,
        counters: Vec<u64>,
        gauges: Vec<u64>,
    },
    /// The version now in use by all shards.
    Taken {
        version: SnapshotVersion,
    },
    Refused {
        version: SnapshotVersion,
        reason: String,
    },
    /// Addresses the listeners are bound to, said once after `Hello`: (transport name, address).
    Listening {
        listeners: Vec<(String, String)>,
    },
    /// The data plane is going away on its own account (it was told to by a signal).
    Draining,
    /// A topic retains these events from now on, for so long; 0: for ever.
    Retain {
        topic: RetainedTopic,
        ttl_ms: u64,
    },
}

/// What a topic retains. The events are packed by a shard and read by shards only; no bytes: it retains none.
#[derive(Clone, PartialEq, Eq, Debug, Archive, Serialize, Deserialize)]
pub struct RetainedTopic {
    pub realm: RealmId,
    pub topic: String,
    /// How long ago they were packed.
    pub age_ms: u64,
    pub bytes: Vec<u8>,
}

/// Another node that the data plane may send to: a live member whose relay is known.
#[derive(Clone, PartialEq, Eq, Debug, Archive, Serialize, Deserialize)]
pub struct Peer {
    pub node: NodeId,
    /// The life of its data plane; with another one its relay connections are made anew.
    pub epoch: BootEpoch,
    /// `IP:port` of its relay.
    pub relay: String,
}

/// One change of what another node wants.
#[derive(Clone, PartialEq, Eq, Debug, Archive, Serialize, Deserialize)]
pub struct RouteChange {
    pub node: NodeId,
    pub realm: RealmId,
    pub kind: RouteKind,
    pub policy: Match,
    pub uri: String,
    pub wanted: bool,
    /// Of a procedure whose callees share it. A change may be of this alone.
    pub share: Option<Share>,
}

/// Frames from the control plane.
#[derive(Clone, PartialEq, Debug, Archive, Serialize, Deserialize)]
pub enum Down {
    Welcome {
        protocol: u32,
        pid: u32,
    },
    /// The packet carries the descriptor of a sealed memfd of `bytes` bytes.
    Snapshot {
        version: SnapshotVersion,
        bytes: u64,
    },
    Delta(Delta),
    /// All nodes that may be sent to, at most [`NODES_MAX`]; it replaces the list before. Who is not in it gets nothing
    /// more, and calls that wait for it are answered with an error.
    Peers {
        peers: Vec<Peer>,
    },
    /// Changes `first_seq`, `first_seq + 1`, ... of what other nodes want, in this life of the control plane. A snapshot says up
    /// to which one it stands ([`crate::snapshot::Source::nodes_folded`]).
    Routes {
        first_seq: u64,
        changes: Vec<RouteChange>,
    },
    /// Change `seq` in the numbering of `Routes`: the node wants nothing any more of what it wanted before.
    Unroute {
        seq: u64,
        node: NodeId,
    },
    /// Another node holds this registration with the better right: the callee here is told and loses it.
    Revoke {
        realm: RealmId,
        policy: Match,
        uri: String,
    },
    /// What these topics retain, in place of what they retained.
    Retained {
        topics: Vec<RetainedTopic>,
    },
    /// Say GOODBYE to every session and exit with status 0.
    Drain,
    /// A link of another protocol or a second data plane: `reason` says why; the sender closes.
    Refuse {
        reason: String,
    },
}

/// A packet that is no frame. Nothing was changed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("not a valid link frame: {0}")]
pub struct LinkError(pub String);

impl Up {
    /// The packet of this frame. The sender keeps it within [`LINK_FRAME_BYTES_MAX`]: see [`claims_in_one_frame`].
    pub fn encode(&self) -> Vec<u8> {
        encode(self)
    }

    /// Reads one packet; it may lie at any address.
    ///
    /// # Errors
    /// When the packet is too long, is no archive of a frame, or names a shard, URI or realm out of bounds.
    pub fn decode(packet: &[u8]) -> Result<Self, LinkError> {
        let frame: Self = decode::<ArchivedUp, Self>(packet)?;
        frame.check()?;
        Ok(frame)
    }

    fn check(&self) -> Result<(), LinkError> {
        match self {
            Self::Hello { shards, .. } if usize::from(*shards) > SHARDS_MAX => {
                Err(LinkError(format!("{shards} shards, more than {SHARDS_MAX}")))
            }
            Self::Claims { shard, claims, .. } | Self::ClaimsPart { shard, claims } => {
                check_shard(*shard)?;
                claims.iter().try_for_each(Claim::check)
            }
            Self::ClaimsReset { shard } | Self::ClaimsEnd { shard, .. } | Self::Stats { shard, .. } => {
                check_shard(*shard)
            }
            Self::Retain { topic, .. } => topic.check(),
            Self::Hello { .. }
            | Self::Taken { .. }
            | Self::Refused { .. }
            | Self::Listening { .. }
            | Self::Draining => Ok(()),
        }
    }
}

impl Down {
    /// The packet of this frame. The sender keeps it within [`LINK_FRAME_BYTES_MAX`].
    pub fn encode(&self) -> Vec<u8> {
        encode(self)
    }

    /// Reads one packet; it may lie at any address.
    ///
    /// # Errors
    /// When the packet is too long, is no archive of a frame, or names a realm out of bounds.
    pub fn decode(packet: &[u8]) -> Result<Self, LinkError> {
        let frame: Self = decode::<ArchivedDown, Self>(packet)?;
        match &frame {
            Self::Delta(delta) => {
                delta.realms_put.iter().try_for_each(check_realm)?;
            }
            Self::Peers { peers } if peers.len() > NODES_MAX => {
                return Err(LinkError(format!("{} peers, more than {NODES_MAX}", peers.len())));
            }
            Self::Routes { changes, .. } => {
                changes.iter().try_for_each(|change| check_uri("URI", &change.uri))?;
            }
            Self::Revoke { uri, .. } => check_uri("URI", uri)?,
            Self::Retained { topics } => topics.iter().try_for_each(RetainedTopic::check)?,
            _ => {}
        }
        Ok(frame)
    }
}

impl Claim {
    /// An upper bound of what this claim adds to a frame, in bytes.
    pub fn frame_bytes_max(&self) -> usize {
        let uri = match self {
            Self::Joined { .. } | Self::Left { .. } => 0,
            Self::Routed { uri, .. } | Self::Shared { uri, .. } | Self::Unrouted { uri, .. } => uri.len(),
        };
        size_of::<ArchivedClaim>() + uri
    }

    fn check(&self) -> Result<(), LinkError> {
        match self {
            Self::Routed { uri, .. } | Self::Shared { uri, .. } | Self::Unrouted { uri, .. } => {
                check_uri("URI", uri)
            }
            Self::Joined { .. } | Self::Left { .. } => Ok(()),
        }
    }
}

/// How many claims from the front of `claims` one [`Up::Claims`] or [`Up::ClaimsPart`] frame may carry: at least one
/// unless `claims` is empty.
pub fn claims_in_one_frame(claims: &[Claim]) -> usize {
    let mut bytes = HEAD_BYTES_MAX;
    let fits = |claim: &&Claim| {
        bytes += claim.frame_bytes_max();
        bytes <= LINK_FRAME_BYTES_MAX
    };
    claims.iter().take_while(fits).count()
}

/// How many changes, which add so many bytes each, one [`Down::Routes`] frame may carry: at least one unless there are
/// none, and at most [`ROUTES_FRAME_MAX`], since a shard takes a frame in one turn.
pub fn changes_in_one_frame(bytes_of_changes: impl Iterator<Item = usize>) -> usize {
    let mut bytes = HEAD_BYTES_MAX;
    let fits = |change: &usize| {
        bytes += change;
        bytes <= LINK_FRAME_BYTES_MAX
    };
    bytes_of_changes.take(ROUTES_FRAME_MAX).take_while(fits).count()
}

impl RouteChange {
    /// An upper bound of what this change adds to a frame, in bytes.
    pub fn frame_bytes_max(&self) -> usize {
        size_of::<ArchivedRouteChange>() + self.uri.len()
    }
}

impl RetainedTopic {
    /// An upper bound of what a topic adds to a frame, in bytes.
    pub const fn frame_bytes_max(topic_bytes: usize, event_bytes: usize) -> usize {
        size_of::<ArchivedRetainedTopic>() + topic_bytes + event_bytes
    }

    fn check(&self) -> Result<(), LinkError> {
        check_uri("topic", &self.topic)?;
        if self.bytes.len() <= RETAINED_BYTES_MAX {
            Ok(())
        } else {
            Err(LinkError(format!(
                "{} bytes of retained events, more than {RETAINED_BYTES_MAX}",
                self.bytes.len()
            )))
        }
    }
}

/// How many topics, which add so many bytes each, one [`Down::Retained`] frame may carry: at least one unless there are none.
pub fn topics_in_one_frame(bytes_of_topics: impl Iterator<Item = usize>) -> usize {
    changes_in_one_frame(bytes_of_topics)
}

/// Changes of routes in one frame.
pub const ROUTES_FRAME_MAX: usize = 256;

/// What a frame of claims or changes needs besides them: the root of the archive and the padding before parts.
const HEAD_BYTES_MAX: usize = if size_of::<ArchivedUp>() > size_of::<ArchivedDown>() {
    size_of::<ArchivedUp>()
} else {
    size_of::<ArchivedDown>()
} + 64;

const _: () = assert!(HEAD_BYTES_MAX + size_of::<ArchivedClaim>() + URI_BYTES_MAX <= LINK_FRAME_BYTES_MAX);
const _: () =
    assert!(HEAD_BYTES_MAX + size_of::<ArchivedRouteChange>() + URI_BYTES_MAX <= LINK_FRAME_BYTES_MAX);
const _: () = assert!(
    HEAD_BYTES_MAX + RetainedTopic::frame_bytes_max(URI_BYTES_MAX, RETAINED_BYTES_MAX)
        <= LINK_FRAME_BYTES_MAX
);

fn encode(
    frame: &impl for<'a> rkyv::Serialize<HighSerializer<AlignedVec, ArenaHandle<'a>, rancor::Error>>,
) -> Vec<u8> {
    rkyv::to_bytes::<rancor::Error>(frame)
        .expect("frames are made of types whose archiving cannot fail")
        .into_vec()
}

fn decode<A, T>(packet: &[u8]) -> Result<T, LinkError>
where
    A: Portable
        + for<'a> CheckBytes<HighValidator<'a, rancor::Error>>
        + rkyv::Deserialize<T, HighDeserializer<rancor::Error>>,
{
    if packet.len() > LINK_FRAME_BYTES_MAX {
        return Err(LinkError(format!("{} bytes, more than {LINK_FRAME_BYTES_MAX}", packet.len())));
    }
    // A receive buffer may lie at any address; archives are read in place only when aligned.
    let mut aligned = AlignedVec::<16>::with_capacity(packet.len());
    aligned.extend_from_slice(packet);
    let archived =
        rkyv::access::<A, rancor::Error>(&aligned).map_err(|error| LinkError(error.to_string()))?;
    rkyv::deserialize(archived).map_err(|error: rancor::Error| LinkError(error.to_string()))
}

fn check_shard(shard: ShardId) -> Result<(), LinkError> {
    if shard.index() < SHARDS_MAX {
        Ok(())
    } else {
        Err(LinkError(format!("shard {}, not below {SHARDS_MAX}", shard.0)))
    }
}

fn check_realm(realm: &Realm) -> Result<(), LinkError> {
    check_uri("realm", &realm.name)?;
    let checked = Rules::unpack(&realm.rules).map(drop);
    checked.map_err(|error| LinkError(format!("the rules of a realm: {error}")))
}

fn check_uri(what: &str, uri: &str) -> Result<(), LinkError> {
    if uri.len() <= URI_BYTES_MAX {
        Ok(())
    } else {
        Err(LinkError(format!("{what} of {} bytes, more than {URI_BYTES_MAX}", uri.len())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::History;
    use crate::share::Invoke;
    use crate::snapshot::Anonymous;
    use proptest::prelude::*;

    fn id() -> impl Strategy<Value = u64> {
        prop_oneof![Just(0), Just(u64::MAX), any::<u64>()]
    }

    fn shard() -> impl Strategy<Value = ShardId> {
        (0..SHARDS_MAX as u8).prop_map(ShardId)
    }

    fn kind() -> impl Strategy<Value = RouteKind> {
        prop_oneof![Just(RouteKind::Topic), Just(RouteKind::Procedure)]
    }

    fn policy() -> impl Strategy<Value = Match> {
        prop_oneof![Just(Match::Exact), Just(Match::Prefix), Just(Match::Wildcard)]
    }

    fn share() -> impl Strategy<Value = Share> {
        (0u8..8, any::<bool>(), any::<u32>(), id(), id()).prop_map(
            |(invoke, forced, callees, first, last)| {
                let invoke = Invoke::from_number(invoke).expect("a number below 8");
                Share { invoke, forced, callees, first, last }
            },
        )
    }

    fn claim() -> impl Strategy<Value = Claim> {
        let route = || (id().prop_map(RealmId), kind(), policy(), ".{0,40}");
        prop_oneof![
            (id(), id().prop_map(RealmId)).prop_map(|(session, realm)| Claim::Joined { session, realm }),
            id().prop_map(|session| Claim::Left { session }),
            route().prop_map(|(realm, kind, policy, uri)| Claim::Routed { realm, kind, policy, uri }),
            (route(), share()).prop_map(|((realm, _, policy, uri), share)| Claim::Shared {
                realm,
                policy,
                uri,
                share
            }),
            route().prop_map(|(realm, kind, policy, uri)| Claim::Unrouted { realm, kind, policy, uri }),
        ]
    }

    fn claims() -> impl Strategy<Value = Vec<Claim>> {
        prop::collection::vec(claim(), 0..20)
    }

    fn numbers() -> impl Strategy<Value = Vec<u64>> {
        prop::collection::vec(id(), 0..40)
    }

    fn up() -> impl Strategy<Value = Up> {
        prop_oneof![
            (any::<u32>(), id(), any::<u32>(), 0..=SHARDS_MAX as u8, ".{0,20}").prop_map(
                |(protocol, epoch, pid, shards, version)| {
                    Up::Hello { protocol, epoch: BootEpoch(epoch), pid, shards, version }
                }
            ),
            (shard(), id(), claims()).prop_map(|(shard, first_seq, claims)| Up::Claims {
                shard,
                first_seq,
                claims
            }),
            shard().prop_map(|shard| Up::ClaimsReset { shard }),
            (shard(), claims()).prop_map(|(shard, claims)| Up::ClaimsPart { shard, claims }),
            (shard(), id()).prop_map(|(shard, seq)| Up::ClaimsEnd { shard, seq }),
            (shard(), any::<u32>(), numbers(), numbers())
                .prop_map(|(shard, cpu, counters, gauges)| Up::Stats { shard, cpu, counters, gauges }),
            id().prop_map(|version| Up::Taken { version: SnapshotVersion(version) }),
            (id(), ".{0,60}")
                .prop_map(|(version, reason)| Up::Refused { version: SnapshotVersion(version), reason }),
            prop::collection::vec(("[a-z]{0,10}", ".{0,20}"), 0..5)
                .prop_map(|listeners| Up::Listening { listeners }),
            Just(Up::Draining),
            (retained(), id()).prop_map(|(topic, ttl_ms)| Up::Retain { topic, ttl_ms }),
        ]
    }

    fn retained() -> impl Strategy<Value = RetainedTopic> {
        (id(), ".{0,40}", id(), prop::collection::vec(any::<u8>(), 0..60)).prop_map(
            |(realm, topic, age_ms, bytes)| RetainedTopic { realm: RealmId(realm), topic, age_ms, bytes },
        )
    }

    fn realm() -> impl Strategy<Value = Realm> {
        let anonymous =
            prop_oneof![Just(Anonymous::Nobody), Just(Anonymous::Loopback), Just(Anonymous::Anybody)];
        (".{0,30}", any::<bool>(), any::<bool>(), anonymous).prop_map(
            |(name, strict, uri_strict, anonymous)| Realm {
                id: RealmId::of(&name),
                name,
                strict,
                uri_strict,
                anonymous,
                rules: vec![],
                histories: vec![History::of(Match::Prefix, "a.")],
            },
        )
    }

    fn down() -> impl Strategy<Value = Down> {
        let delta = (id(), id(), prop::collection::vec(realm(), 0..5), prop::collection::vec(id(), 0..5))
            .prop_map(|(version, follows, realms_put, removed)| Delta {
                version: SnapshotVersion(version),
                follows: SnapshotVersion(follows),
                realms_put,
                realms_removed: removed.into_iter().map(RealmId).collect(),
            });
        prop_oneof![
            (any::<u32>(), any::<u32>()).prop_map(|(protocol, pid)| Down::Welcome { protocol, pid }),
            (id(), id())
                .prop_map(|(version, bytes)| Down::Snapshot { version: SnapshotVersion(version), bytes }),
            delta.prop_map(Down::Delta),
            prop::collection::vec((any::<[u8; 16]>(), id(), ".{0,20}"), 0..4).prop_map(|peers| {
                let peer = |(node, epoch, relay)| Peer { node: NodeId(node), epoch: BootEpoch(epoch), relay };
                Down::Peers { peers: peers.into_iter().map(peer).collect() }
            }),
            (
                id(),
                prop::collection::vec(
                    (
                        any::<[u8; 16]>(),
                        kind(),
                        policy(),
                        ".{0,40}",
                        (any::<bool>(), prop::option::of(share()))
                    ),
                    0..9
                )
            )
                .prop_map(|(first_seq, changes)| {
                    let change = |(node, kind, policy, uri, (wanted, share))| RouteChange {
                        node: NodeId(node),
                        realm: RealmId(7),
                        kind,
                        policy,
                        uri,
                        wanted,
                        share,
                    };
                    Down::Routes { first_seq, changes: changes.into_iter().map(change).collect() }
                }),
            (id(), any::<[u8; 16]>()).prop_map(|(seq, node)| Down::Unroute { seq, node: NodeId(node) }),
            (policy(), ".{0,40}").prop_map(|(policy, uri)| Down::Revoke { realm: RealmId(7), policy, uri }),
            prop::collection::vec(retained(), 0..4).prop_map(|topics| Down::Retained { topics }),
            Just(Down::Drain),
            ".{0,60}".prop_map(|reason| Down::Refuse { reason }),
        ]
    }

    proptest! {
        #[test]
        fn frames_come_back_from_any_address(up in up(), down in down(), shift in 0usize..16) {
            let moved = |packet: Vec<u8>| [vec![0; shift], packet].concat();
            prop_assert_eq!(&Up::decode(&moved(up.encode())[shift..]).unwrap(), &up);
            prop_assert_eq!(&Down::decode(&moved(down.encode())[shift..]).unwrap(), &down);
        }

        #[test]
        fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = Up::decode(&bytes);
            let _ = Down::decode(&bytes);
        }

        #[test]
        fn changed_frames_never_panic(up in up(), down in down(), at in any::<prop::sample::Index>(), to: u8) {
            let changed = |mut packet: Vec<u8>| {
                let at = at.index(packet.len());
                packet[at] = to;
                packet
            };
            let _ = Up::decode(&changed(up.encode()));
            let _ = Down::decode(&changed(down.encode()));
        }

        #[test]
        fn frames_of_claims_that_fit_are_within_the_bound(uris in prop::collection::vec(0usize..=1_024, 1..200)) {
            let claims: Vec<_> = uris.into_iter().map(routed).collect();
            let count = claims_in_one_frame(&claims);
            prop_assert!(count >= 1);
            let frame = Up::ClaimsPart { shard: ShardId(0), claims: claims[..count].to_vec() };
            prop_assert!(frame.encode().len() <= LINK_FRAME_BYTES_MAX);
        }
    }

    #[test]
    fn frames_of_changes_that_fit_are_within_their_bounds() {
        for uri_bytes in [0, 60, 300, URI_BYTES_MAX] {
            let change = RouteChange {
                node: NodeId([7; 16]),
                realm: RealmId(1),
                kind: RouteKind::Topic,
                policy: Match::Prefix,
                uri: "x".repeat(uri_bytes),
                wanted: true,
                share: Some(Share::SINGLE),
            };
            let changes = vec![change; 1_000];
            let count = changes_in_one_frame(changes.iter().map(RouteChange::frame_bytes_max));
            let frame = Down::Routes { first_seq: 1, changes: changes[..count].to_vec() }.encode();
            assert!(frame.len() <= LINK_FRAME_BYTES_MAX && count <= ROUTES_FRAME_MAX);
            assert!(count == ROUTES_FRAME_MAX || frame.len() > LINK_FRAME_BYTES_MAX - 2_000);
        }
        assert_eq!(changes_in_one_frame(std::iter::empty()), 0);
    }

    fn routed(uri_bytes: usize) -> Claim {
        Claim::Routed {
            realm: RealmId(1),
            kind: RouteKind::Topic,
            policy: Match::Exact,
            uri: "x".repeat(uri_bytes),
        }
    }

    #[test]
    fn frames_fill_most_of_a_packet() {
        let claims = vec![routed(1_000); 200];
        let frame =
            Up::ClaimsPart { shard: ShardId(0), claims: claims[..claims_in_one_frame(&claims)].to_vec() };
        assert!(frame.encode().len() > LINK_FRAME_BYTES_MAX - 2_000);
    }

    #[test]
    fn packets_out_of_bounds_are_refused() {
        assert!(Up::decode(&[]).is_err());
        assert!(Down::decode(&vec![0; LINK_FRAME_BYTES_MAX + 1]).is_err());
        let long = Up::Refused { version: SnapshotVersion(1), reason: "x".repeat(LINK_FRAME_BYTES_MAX) };
        assert!(Up::decode(&long.encode()).is_err());
    }

    #[test]
    fn shards_and_uris_out_of_bounds_are_refused() {
        let shard = ShardId(SHARDS_MAX as u8);
        assert!(Up::decode(&Up::ClaimsReset { shard }.encode()).is_err());
        let frame = |claim| Up::ClaimsPart { shard: ShardId(0), claims: vec![claim] };
        assert!(Up::decode(&frame(routed(URI_BYTES_MAX)).encode()).is_ok());
        assert!(Up::decode(&frame(routed(URI_BYTES_MAX + 1)).encode()).is_err());
    }
}
