//! What the holder of a session is asked when a client wants it back.
//!
//! ```text
//! session u64 │ token 16 │ realm u64 │ longest message u32 │ serializer u8 │ framing u8 │ origin u8, 16 │ who ...
//! ```
//! `who` is what [`Identity::with_call`] says of the client that has authenticated, for the id of the session it wants.
//!
//! [`Identity::with_call`]: super::super::identity::Identity::with_call

use super::super::identity::DISCLOSED_BYTES_MAX;
use super::super::origin::Origin;
use common::ids::RealmId;
use common::resume::{ResumeToken, TOKEN_BYTES};
use common::transport::Framing;
use common::wire::Serializer;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

const FRAMINGS: [Framing; 4] =
    [Framing::RawSocket, Framing::WebSocket, Framing::Batched, Framing::BatchedCan];

/// A client that wants its session back.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ask<'a> {
    pub session: u64,
    pub token: ResumeToken,
    pub realm: RealmId,
    pub peer_message_max: u32,
    pub serializer: Serializer,
    pub framing: Framing,
    pub origin: Origin,
    pub who: &'a [u8],
}

impl<'a> Ask<'a> {
    pub fn pack(&self) -> Vec<u8> {
        let mut out = Vec::new();
        out.extend_from_slice(&self.session.to_le_bytes());
        out.extend_from_slice(self.token.bytes());
        out.extend_from_slice(&self.realm.0.to_le_bytes());
        out.extend_from_slice(&self.peer_message_max.to_le_bytes());
        let framing = FRAMINGS.iter().position(|framing| *framing == self.framing).unwrap_or_default();
        out.extend_from_slice(&[self.serializer.index() as u8, framing as u8]);
        let (kind, place) = pack_origin(self.origin);
        out.push(kind);
        out.extend_from_slice(&place);
        out.extend_from_slice(self.who);
        out
    }

    /// None: another node has sent what no node packs.
    pub fn unpack(mut bytes: &'a [u8]) -> Option<Self> {
        let from = &mut bytes;
        let ask = Self {
            session: u64::from_le_bytes(take(from)?),
            token: ResumeToken::from_bytes(take::<TOKEN_BYTES>(from)?),
            realm: RealmId(u64::from_le_bytes(take(from)?)),
            peer_message_max: u32::from_le_bytes(take(from)?),
            serializer: *Serializer::ALL.get(usize::from(take::<1>(from)?[0]))?,
            framing: *FRAMINGS.get(usize::from(take::<1>(from)?[0]))?,
            origin: unpack_origin(take::<1>(from)?[0], take(from)?)?,
            who: from,
        };
        (ask.who.len() <= DISCLOSED_BYTES_MAX).then_some(ask)
    }
}

fn take<const N: usize>(from: &mut &[u8]) -> Option<[u8; N]> {
    let (head, rest) = from.split_first_chunk::<N>()?;
    *from = rest;
    Some(*head)
}

fn pack_origin(origin: Origin) -> (u8, [u8; 16]) {
    let mut place = [0; 16];
    match origin {
        Origin::Hidden => (0, place),
        Origin::Ip(IpAddr::V4(ip)) => {
            place[..4].copy_from_slice(&ip.octets());
            (1, place)
        }
        Origin::Ip(IpAddr::V6(ip)) => (2, ip.octets()),
        Origin::Unix { pid, uid, gid } => {
            for (to, number) in place.chunks_exact_mut(4).zip([pid, uid, gid]) {
                to.copy_from_slice(&number.to_le_bytes());
            }
            (3, place)
        }
    }
}

fn unpack_origin(kind: u8, place: [u8; 16]) -> Option<Origin> {
    let number = |at: usize| u32::from_le_bytes([place[at], place[at + 1], place[at + 2], place[at + 3]]);
    Some(match kind {
        0 => Origin::Hidden,
        1 => Origin::Ip(Ipv4Addr::new(place[0], place[1], place[2], place[3]).into()),
        2 => Origin::Ip(Ipv6Addr::from(place).into()),
        3 => Origin::Unix { pid: number(0), uid: number(4), gid: number(8) },
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shard::identity::Identity;

    #[test]
    fn what_is_asked_reads_back_and_nothing_else_does() {
        let known =
            Identity { authid: "joe".into(), authrole: "user".to_owned().into(), ..Identity::anonymous(7) };
        let who = known.with_call(7);
        let origins = [
            Origin::Hidden,
            Origin::Ip(Ipv4Addr::LOCALHOST.into()),
            Origin::Ip(Ipv6Addr::LOCALHOST.into()),
            Origin::Unix { pid: 1, uid: 2, gid: 3 },
        ];
        for (origin, framing) in origins.into_iter().zip(FRAMINGS) {
            let ask = Ask {
                session: 7,
                token: ResumeToken::from_bytes([3; TOKEN_BYTES]),
                realm: RealmId(9),
                peer_message_max: 1 << 20,
                serializer: Serializer::Cbor,
                framing,
                origin,
                who: &who,
            };
            let packed = ask.pack();
            let again = Ask::unpack(&packed).expect("what was packed");
            assert_eq!((again.session, again.realm, again.peer_message_max), (7, RealmId(9), 1 << 20));
            assert_eq!((again.serializer, again.framing, again.origin), (Serializer::Cbor, framing, origin));
            assert!(again.token.is(&ask.token) && again.who == who);
            let fixed = packed.len() - who.len();
            assert!((0..fixed).all(|cut| Ask::unpack(&packed[..cut]).is_none()));
            for (at, value) in [(fixed - 17, 4), (fixed - 18, 4), (fixed - 19, 3)] {
                let mut bad = packed.clone();
                bad[at] = value;
                assert!(Ask::unpack(&bad).is_none(), "{at}");
            }
            assert!(Ask::unpack(&[&packed[..], &[0; DISCLOSED_BYTES_MAX]].concat()).is_none());
        }
    }
}
