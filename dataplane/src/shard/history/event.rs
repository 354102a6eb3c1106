//! An event of a history, as it is kept and as it travels to whoever asks.

use crate::shard::delivery::Published;
use crate::shard::publication::Extra;
use common::ids::is_wamp_id;
use common::limits::URI_BYTES_MAX;
use common::wire::{OwnedValue, Payload, Serializer};

/// What orders events on all nodes: the stamp, then the id of the publication.
pub(in crate::shard) type Key = (u64, u64);

/// What an event costs beside its bytes, rounded up.
const EVENT_BYTES: usize = 256;

/// A publication that is kept.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(in crate::shard) struct Event {
    pub stamp: u64,
    pub publication: u64,
    pub topic: Box<str>,
    pub serializer: Serializer,
    /// What was packed of who may get it, and what it tells.
    pub extra: Box<[u8]>,
    pub args: Option<Box<[u8]>>,
    pub kwargs: Option<Box<[u8]>>,
}

impl Event {
    pub fn of(published: &Published<'_>, stamp: u64) -> Self {
        let Published { topic, publication, extra, from, payload, .. } = *published;
        let (args, kwargs) = (payload.args.map(Into::into), payload.kwargs.map(Into::into));
        Self { stamp, publication, topic: topic.into(), serializer: from, extra: extra.into(), args, kwargs }
    }

    pub const fn key(&self) -> Key {
        (self.stamp, self.publication)
    }

    pub fn payload(&self) -> Payload<'_> {
        Payload { args: self.args.as_deref(), kwargs: self.kwargs.as_deref() }
    }

    pub fn bytes(&self) -> usize {
        EVENT_BYTES + self.topic.len() + self.extra.len() + self.payload().bytes_len()
    }

    /// Without what it says.
    pub fn head(&self) -> Self {
        Self {
            stamp: self.stamp,
            publication: self.publication,
            topic: Box::default(),
            serializer: self.serializer,
            extra: Box::default(),
            args: None,
            kwargs: None,
        }
    }

    /// Whether who has this authid and authrole may get it. Events for certain sessions are not kept.
    pub fn admits(&self, authid: &str, authrole: &str) -> bool {
        self.extra.is_empty()
            || Extra::parse(&self.extra).is_some_and(|extra| extra.admits(0, authid, authrole))
    }

    pub fn pack(&self) -> OwnedValue {
        let part = |part: Option<&[u8]>| part.map_or(OwnedValue::Null, OwnedValue::from);
        OwnedValue::List(vec![
            self.stamp.into(),
            self.publication.into(),
            (*self.topic).into(),
            self.serializer.index().into(),
            (*self.extra).into(),
            part(self.args.as_deref()),
            part(self.kwargs.as_deref()),
        ])
    }

    /// None: another node has sent what no node packs.
    pub fn unpack(packed: &OwnedValue) -> Option<Self> {
        let [stamp, publication, topic, serializer, extra, args, kwargs] = packed.as_list()? else {
            return None;
        };
        let part = |part: &OwnedValue| match part {
            OwnedValue::Null => Some(None),
            OwnedValue::Bin(bytes) => Some(Some(Box::from(&**bytes))),
            _ => None,
        };
        let extra: Box<[u8]> = extra.as_bin()?.into();
        Extra::parse(&extra)?;
        Some(Self {
            stamp: stamp.as_u64()?,
            publication: publication.as_u64().filter(|id| is_wamp_id(*id))?,
            topic: topic.as_str().filter(|topic| topic.len() <= URI_BYTES_MAX)?.into(),
            serializer: *Serializer::ALL.get(usize::try_from(serializer.as_u64()?).ok()?)?,
            extra,
            args: part(args)?,
            kwargs: part(kwargs)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_read_back_and_nothing_else_does() {
        let event = Event {
            stamp: 7 << 16,
            publication: 5,
            topic: "a.b".into(),
            serializer: Serializer::Cbor,
            extra: Box::default(),
            args: Some(Box::from(&b"\x81\x01"[..])),
            kwargs: None,
        };
        assert_eq!(Event::unpack(&event.pack()), Some(event.clone()));
        assert_eq!(Event::unpack(&event.head().pack()), Some(event.head()));
        for bad in [
            Event { publication: 0, ..event.clone() },
            Event { extra: Box::from(&[255, 255][..]), ..event.clone() },
            Event { topic: "x".repeat(URI_BYTES_MAX + 1).into(), ..event },
        ] {
            assert_eq!(Event::unpack(&bad.pack()), None);
        }
        assert_eq!(Event::unpack(&OwnedValue::List(vec![OwnedValue::Null; 7])), None);
    }
}
