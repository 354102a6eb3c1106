//! Options and details of requests, read once. A known key with a value of the wrong type is a protocol violation in a
//! strict realm and counts as absent in a compatible one (null counts as absent in both).

use common::ids::Match;
use common::wire::{Dict, Value};

/// A known option has a value it may not have. The text is for ABORT.
#[derive(Debug)]
pub(super) struct BadOption(pub String);

pub(super) fn is_text(value: &Value<'_>, text: &str) -> bool {
    matches!(value, Value::Str(found) if **found == *text)
}

fn flag(
    options: &Dict<'_>,
    message: &str,
    key: &str,
    default: bool,
    strict: bool,
) -> Result<bool, BadOption> {
    match options.get(key) {
        None => Ok(default),
        Some(Value::Bool(value)) => Ok(value),
        Some(_) if strict => Err(BadOption(format!("{message}.Options.{key} must be a boolean"))),
        Some(_) => Ok(default),
    }
}

/// Refuses what only a router may be asked that announces it: progressive calls and results, payload passthru mode
/// (WAMP, advanced profile). A compatible realm ignores the options.
#[inline]
pub(super) fn check_announced(options: &Dict<'_>, message: &str, strict: bool) -> Result<(), BadOption> {
    if !strict || options.is_empty() {
        return Ok(());
    }
    let refusal = |key: &str| {
        Err(BadOption(format!("{message}.Options.{key} asks for what this router does not announce")))
    };
    if message != "PUBLISH" && flag(options, message, "progress", false, strict)? {
        return refusal("progress");
    }
    if options.get("ppt_scheme").is_some() {
        return refusal("ppt_scheme");
    }
    Ok(())
}

/// What PUBLISH may ask for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct PublishOptions {
    pub acknowledge: bool,
    pub exclude_me: bool,
}

impl PublishOptions {
    #[inline]
    pub fn read(options: &Dict<'_>, strict: bool) -> Result<Self, BadOption> {
        if options.is_empty() {
            return Ok(Self { acknowledge: false, exclude_me: true });
        }
        check_announced(options, "PUBLISH", strict)?;
        Ok(Self {
            acknowledge: flag(options, "PUBLISH", "acknowledge", false, strict)?,
            exclude_me: flag(options, "PUBLISH", "exclude_me", true, strict)?,
        })
    }
}

/// The matching policy of SUBSCRIBE or REGISTER.
pub(super) fn policy(options: &Dict<'_>, message: &str, strict: bool) -> Result<Match, BadOption> {
    if options.is_empty() {
        return Ok(Match::Exact);
    }
    let bad = || BadOption(format!("{message}.Options.match must be \"exact\", \"prefix\" or \"wildcard\""));
    match options.get("match") {
        None => Ok(Match::Exact),
        Some(Value::Str(name)) => match &*name {
            "exact" => Ok(Match::Exact),
            "prefix" => Ok(Match::Prefix),
            "wildcard" => Ok(Match::Wildcard),
            // Taking an unknown policy for another one would deliver the wrong events, so no degree accepts it.
            _ => Err(bad()),
        },
        Some(_) if strict => Err(bad()),
        Some(_) => Ok(Match::Exact),
    }
}
