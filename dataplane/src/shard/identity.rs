//! Who a session is, and what of it is told to its peers on any shard and node.
//!
//! A caller is told to every callee that asks for it at REGISTER, which the caller's shard does not know. So what is to be
//! told travels with the call, but for anonymous sessions it follows from the session's id and takes no bytes.

use common::wire::encode::Field;
use std::borrow::Cow;

/// Longest authid and authrole, bytes.
pub(super) const NAME_BYTES_MAX: usize = 256;
/// Most bytes of a packed [`Disclosed`]: `session u64 │ length u16 │ authid │ length u16 │ authrole`.
pub(super) const DISCLOSED_BYTES_MAX: usize = 8 + 2 * (2 + NAME_BYTES_MAX);

const ANONYMOUS: &str = "anonymous";

/// Keys that name a caller (WAMP, advanced profile, "Caller Identification").
pub(super) const CALLER: [&str; 3] = ["caller", "caller_authid", "caller_authrole"];

/// What login found out about a client.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Identity {
    pub authid: Box<str>,
    pub authrole: Cow<'static, str>,
    pub authmethod: &'static str,
    pub authprovider: &'static str,
}

impl Identity {
    /// A client nobody knows: its authid is the id of its session.
    pub fn anonymous(session: u64) -> Self {
        Self {
            authid: anonymous_authid(session).into(),
            authrole: ANONYMOUS.into(),
            authmethod: ANONYMOUS,
            authprovider: "static",
        }
    }

    #[inline]
    pub fn is_anonymous(&self) -> bool {
        matches!(self.authrole, Cow::Borrowed(_))
    }

    pub fn disclosed(&self, session: u64) -> Disclosed<'_> {
        Disclosed { session, authid: Cow::Borrowed(&self.authid), authrole: &self.authrole }
    }

    /// What has to travel with a call besides the id of its session.
    #[inline]
    pub fn with_call(&self, session: u64) -> Vec<u8> {
        let mut packed = Vec::new();
        if !self.is_anonymous() {
            self.disclosed(session).pack(&mut packed);
        }
        packed
    }
}

fn anonymous_authid(session: u64) -> String {
    format!("{session:x}")
}

/// What a peer may be told of a session.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Disclosed<'a> {
    pub session: u64,
    pub authid: Cow<'a, str>,
    pub authrole: &'a str,
}

impl<'a> Disclosed<'a> {
    fn anonymous(session: u64) -> Self {
        Self { session, authid: anonymous_authid(session).into(), authrole: ANONYMOUS }
    }

    /// What [`Identity::with_call`] said of the caller.
    pub fn of_caller(session: u64, packed: &'a [u8]) -> Self {
        Self::unpack(packed).unwrap_or_else(|| Self::anonymous(session))
    }

    /// At most [`DISCLOSED_BYTES_MAX`] bytes: longer names are cut, which login does not let in.
    pub fn pack(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.session.to_le_bytes());
        for name in [&*self.authid, self.authrole] {
            let end = (0..=name.len().min(NAME_BYTES_MAX)).rev().find(|end| name.is_char_boundary(*end));
            let name = &name[..end.unwrap_or_default()];
            out.extend_from_slice(&(name.len() as u16).to_le_bytes());
            out.extend_from_slice(name.as_bytes());
        }
    }

    /// None: the bytes were not packed here, which another node may send.
    pub fn unpack(packed: &'a [u8]) -> Option<Self> {
        let (session, mut rest) = packed.split_first_chunk::<8>()?;
        let mut name = || {
            let (length, after) = rest.split_first_chunk::<2>()?;
            let length = usize::from(u16::from_le_bytes(*length));
            let (name, after) = after.split_at_checked(length)?;
            rest = after;
            (length <= NAME_BYTES_MAX).then(|| std::str::from_utf8(name).ok()).flatten()
        };
        let (authid, authrole) = (name()?, name()?);
        let session = u64::from_le_bytes(*session);
        rest.is_empty().then_some(Self { session, authid: Cow::Borrowed(authid), authrole })
    }

    /// As details of a message under these keys.
    pub fn fields<'b>(&'b self, keys: [&'static str; 3]) -> [(&'static str, Field<'b>); 3] {
        let [session, authid, authrole] = keys;
        [
            (session, Field::UInt(self.session)),
            (authid, Field::Str(&self.authid)),
            (authrole, Field::Str(self.authrole)),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known() -> Identity {
        Identity {
            authid: "joe".into(),
            authrole: Cow::Owned("fr\u{f6}ntend".to_owned()),
            authmethod: "ticket",
            authprovider: "static",
        }
    }

    #[test]
    fn what_is_disclosed_reads_back() {
        let (known, mut packed) = (known(), Vec::new());
        known.disclosed(7).pack(&mut packed);
        assert_eq!(Disclosed::unpack(&packed), Some(known.disclosed(7)));
        assert_eq!(known.with_call(7), packed);
        assert_eq!(Disclosed::of_caller(7, &packed), known.disclosed(7));
        for cut in 0..packed.len() {
            assert_eq!(Disclosed::unpack(&packed[..cut]), None);
        }
        packed.push(0);
        assert_eq!(Disclosed::unpack(&packed), None);
    }

    #[test]
    fn an_anonymous_caller_is_its_session() {
        let identity = Identity::anonymous(0xbeef);
        assert!(identity.is_anonymous() && identity.with_call(0xbeef).is_empty());
        assert_eq!(Disclosed::of_caller(0xbeef, &[]), identity.disclosed(0xbeef));
    }

    #[test]
    fn names_are_bounded() {
        let long = Identity { authid: "\u{f6}".repeat(NAME_BYTES_MAX).into(), ..known() };
        let packed = long.with_call(1);
        assert!(packed.len() <= DISCLOSED_BYTES_MAX);
        assert_eq!(Disclosed::unpack(&packed).unwrap().authid.len(), NAME_BYTES_MAX);
        let mut lies = 1_u64.to_le_bytes().to_vec();
        for name in ["x".repeat(NAME_BYTES_MAX + 1), String::new()] {
            lies.extend_from_slice(&(name.len() as u16).to_le_bytes());
            lies.extend_from_slice(name.as_bytes());
        }
        assert_eq!(Disclosed::unpack(&lies), None);
    }
}
