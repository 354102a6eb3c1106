//! `[[history]]`: topics of the configuration's realms whose events are kept.

use super::reader::{Section, Source};
use super::{ConfigError, RealmConfig};
use crate::history::{History, HistoryError};
use crate::ids::Match;
use std::time::Duration;

/// Puts the histories that are written into their realms.
pub(super) fn put(source: &Source<'_>, realms: &mut [RealmConfig]) -> Result<(), ConfigError> {
    for section in source.sections("history")?.unwrap_or_default() {
        let name = section.string("realm", "", |_| true)?;
        let Some(realm) = realms.iter_mut().find(|realm| realm.name == name) else {
            return Err(section.refuse("realm", format!("{name:?}"), "a realm of this file"));
        };
        realm.histories.push(history(&section)?);
        History::check_all(&mut realm.histories).map_err(|error| refused(&section, &error))?;
    }
    Ok(())
}

fn history(section: &Section<'_>) -> Result<History, ConfigError> {
    const POLICIES: [Match; 3] = [Match::Exact, Match::Prefix, Match::Wildcard];
    if !section.has("uri") {
        return Err(section.refuse("uri", "no uri", "a topic, or a pattern by match, in every history"));
    }
    let policy = POLICIES[section.choice("match", 0)?];
    let default = History::of(policy, &section.string("uri", "", |_| true)?);
    let age_max = section.time("age_max", Duration::from_millis(default.age_max_ms))?;
    Ok(History {
        events_max: section.u32("events_max", default.events_max)?,
        bytes_max: section.u64("bytes_max", default.bytes_max)?,
        age_max_ms: age_max.as_millis() as u64,
        ..default
    })
}

fn refused(section: &Section<'_>, error: &HistoryError) -> ConfigError {
    let allowed = "topics and patterns as SUBSCRIBE takes them, each once, not below \"wamp.\"";
    section.refuse("uri", error.to_string(), allowed)
}
