//! What an INVOCATION says of its call.
//!
//! A call in parts says it once: what the first CALL asked for holds for all of them, and only `progress` of the later ones
//! counts (WAMP, advanced profile, "Freezing of Options in Progressive Call Invocations"). So the callee's shard keeps it.

use super::identity::{self, Disclosed};
use super::options::unpacked;
use common::wire::encode::Field;

/// What all INVOCATIONs of a call say; `progress` comes besides.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Said<'a> {
    /// The procedure, for a callee that registered a pattern.
    pub procedure: Option<&'a str>,
    pub receive_progress: bool,
    pub trustlevel: bool,
    /// Milliseconds; 0: it is not said.
    pub timeout_ms: u32,
    /// The session of a caller that is named, and what else is known of it, packed.
    pub caller: Option<(u64, &'a [u8])>,
    /// Attributes of payload passthru mode, packed.
    pub ppt: &'a [u8],
}

impl Said<'_> {
    /// As INVOCATION.Details. `more`: another part follows.
    pub fn details<T>(&self, more: bool, send: impl FnOnce(&[(&str, Field<'_>)]) -> T) -> T {
        let mut details = Vec::new();
        if let Some(procedure) = self.procedure {
            details.push(("procedure", Field::Str(procedure)));
        }
        if self.receive_progress {
            details.push(("receive_progress", Field::Bool(true)));
        }
        if more {
            details.push(("progress", Field::Bool(true)));
        }
        if self.trustlevel {
            // Callers are anonymous: nothing is known of them.
            details.push(("trustlevel", Field::UInt(0)));
        }
        if self.timeout_ms > 0 {
            details.push(("timeout", Field::UInt(self.timeout_ms.into())));
        }
        let disclosed = self.caller.map(|(session, who)| Disclosed::of_caller(session, who));
        if let Some(disclosed) = &disclosed {
            details.extend(disclosed.fields(identity::CALLER));
        }
        details.extend(unpacked(self.ppt).map(|(key, text)| (key, Field::Str(text))));
        send(&details)
    }

    pub fn keep(&self) -> Box<Kept> {
        let Self { procedure, receive_progress, trustlevel, timeout_ms, caller, ppt } = *self;
        Box::new(Kept {
            procedure: procedure.map(Box::from),
            receive_progress,
            trustlevel,
            timeout_ms,
            caller: caller.map(|(session, who)| (session, who.into())),
            ppt: ppt.into(),
        })
    }
}

/// [`Said`] while a call is open that comes in parts: a URI, a packed identity and packed attributes, all of them bounded.
#[derive(Debug)]
pub(super) struct Kept {
    procedure: Option<Box<str>>,
    receive_progress: bool,
    trustlevel: bool,
    timeout_ms: u32,
    caller: Option<(u64, Box<[u8]>)>,
    ppt: Box<[u8]>,
}

impl Kept {
    pub fn said(&self) -> Said<'_> {
        Said {
            procedure: self.procedure.as_deref(),
            receive_progress: self.receive_progress,
            trustlevel: self.trustlevel,
            timeout_ms: self.timeout_ms,
            caller: self.caller.as_ref().map(|(session, who)| (*session, &**who)),
            ppt: &self.ppt,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_said_again() {
        let said = Said {
            procedure: Some("a.b"),
            receive_progress: true,
            trustlevel: true,
            timeout_ms: 5,
            caller: Some((7, &[])),
            ppt: &[1, 0, b'x', 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
        };
        assert_eq!(said.keep().said(), said);
        let names = |said: Said<'_>, more| {
            said.details(more, |details| details.iter().map(|(key, _)| key.to_string()).collect::<Vec<_>>())
        };
        let all = ["procedure", "receive_progress", "progress", "trustlevel", "timeout"];
        let all = all.into_iter().chain(identity::CALLER).chain(["ppt_scheme"]);
        assert_eq!(names(said, true), all.collect::<Vec<_>>());
        let none = Said {
            procedure: None,
            receive_progress: false,
            trustlevel: false,
            timeout_ms: 0,
            caller: None,
            ppt: &[],
        };
        assert_eq!(names(none.keep().said(), false), [""; 0]);
    }
}
