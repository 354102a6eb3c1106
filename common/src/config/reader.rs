//! Typed values out of a parsed document, and errors that point into its text.

use super::schema::{self, Key, Kind, SCHEMA, SECTIONS};
use super::{ConfigError, Cores, value};
use crate::features::FEATURES;
use std::net::SocketAddr;
use std::ops::Range;
use std::path::Path;
use std::time::Duration;
use toml_edit::{Document, Item, TableLike, Value};

/// The text of a configuration and its parsed form.
pub(super) struct Source<'a> {
    file: &'a Path,
    text: &'a str,
    document: Document<&'a str>,
}

impl<'a> Source<'a> {
    /// Parses the text and refuses keys and tables the schema does not name.
    pub fn parse(text: &'a str, file: &'a Path) -> Result<Self, ConfigError> {
        // Columns in error texts aside, a byte order mark is of no meaning; some editors write one.
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let document = Document::parse(text).map_err(|error| ConfigError {
            file: file.display().to_string(),
            line: line_at(text, error.span()),
            key: "syntax".to_owned(),
            found: one_line(error.message()),
            allowed: "TOML".to_owned(),
        })?;
        Ok(Self { file, text, document })
    }

    /// The keys above all tables.
    pub fn root(&self) -> Result<Section<'_>, ConfigError> {
        Section { source: self, name: "", table: Some(self.document.as_table()), line: 1 }.known()
    }

    /// The table `[name]`, which may be absent.
    pub fn section(&self, name: &'static str) -> Result<Section<'_>, ConfigError> {
        let Some(item) = self.document.get(name) else {
            return Ok(Section { source: self, name, table: None, line: 1 });
        };
        let line = self.key_line(self.document.as_table(), name);
        let table = item
            .as_table_like()
            .ok_or_else(|| self.error(line, name, self.found(item), format!("a table, [{name}]")))?;
        Section { source: self, name, table: Some(table), line }.known()
    }

    /// The whole text as one table of `section`.
    pub fn root_as(&self, section: &'static str) -> Result<Section<'_>, ConfigError> {
        Section { source: self, name: section, table: Some(self.document.as_table()), line: 1 }.known()
    }

    /// The tables `[[name]]`; `None` when there is none in the text.
    pub fn sections(&self, name: &'static str) -> Result<Option<Vec<Section<'_>>>, ConfigError> {
        self.tables(self.document.as_table(), name, name)
    }

    /// The tables `written` of a table, which are sections of the name `name`.
    fn tables<'s>(
        &'s self,
        table: &'s dyn TableLike,
        written: &str,
        name: &'static str,
    ) -> Result<Option<Vec<Section<'s>>>, ConfigError> {
        let Some(item) = table.get(written) else {
            return Ok(None);
        };
        let line = self.key_line(table, written);
        let wrong = || self.error(line, name, self.found(item), format!("tables, [[{name}]]"));
        let tables: Vec<(&dyn TableLike, Option<Range<usize>>)> = match item {
            Item::ArrayOfTables(tables) => {
                tables.iter().map(|table| (table as &dyn TableLike, table.span())).collect()
            }
            Item::Value(Value::Array(values)) => values
                .iter()
                .map(|value| Some((value.as_inline_table()? as &dyn TableLike, value.span())))
                .collect::<Option<_>>()
                .ok_or_else(wrong)?,
            _ => return Err(wrong()),
        };
        let open = |(table, span): (_, Option<_>)| {
            let line = if span.is_some() { line_at(self.text, span) } else { line };
            Section { source: self, name, table: Some(table), line }.known()
        };
        tables.into_iter().map(open).collect::<Result<_, _>>().map(Some)
    }

    fn error(
        &self,
        line: usize,
        key: impl Into<String>,
        found: impl Into<String>,
        allowed: impl Into<String>,
    ) -> ConfigError {
        ConfigError {
            file: self.file.display().to_string(),
            line,
            key: key.into(),
            found: found.into(),
            allowed: allowed.into(),
        }
    }

    /// The item as it is written, shortened to one line.
    fn found(&self, item: &Item) -> String {
        let written = item.span().and_then(|span| self.text.get(span)).unwrap_or_default();
        match item {
            Item::Value(Value::Array(_) | Value::InlineTable(_))
            | Item::Table(_)
            | Item::ArrayOfTables(_) => item.type_name().to_owned(),
            _ => one_line(written),
        }
    }

    fn key_line(&self, table: &dyn TableLike, name: &str) -> usize {
        let written = table.get_key_value(name);
        line_at(self.text, written.and_then(|(key, item)| key.span().or_else(|| item.span())))
    }
}

/// One table of the text, or the absence of it: then every value is its default.
#[derive(Clone, Copy)]
pub(super) struct Section<'a> {
    source: &'a Source<'a>,
    name: &'static str,
    table: Option<&'a dyn TableLike>,
    line: usize,
}

impl<'a> Section<'a> {
    pub fn boolean(&self, name: &'static str, default: bool) -> Result<bool, ConfigError> {
        self.read(name, default, |_, item| item.as_bool())
    }

    /// An integer, power of two or size; the schema's bound of a `u32` field fits it.
    pub fn u32(&self, name: &'static str, default: u32) -> Result<u32, ConfigError> {
        let value = self.u64(name, default.into())?;
        Ok(u32::try_from(value).expect("the schema bounds keys of 32-bit fields below 2^32"))
    }

    pub fn u64(&self, name: &'static str, default: u64) -> Result<u64, ConfigError> {
        self.read(name, default, |kind, item| {
            let plain = item.as_integer().and_then(|integer| u64::try_from(integer).ok());
            match kind {
                Kind::Integer { min, max } => plain.filter(|value| (min..=max).contains(value)),
                Kind::Power { min, max } => {
                    plain.filter(|value| (min..=max).contains(value) && value.is_power_of_two())
                }
                Kind::Size { min, max } => plain
                    .or_else(|| item.as_str().and_then(value::size))
                    .filter(|value| (min..=max).contains(value)),
                _ => None,
            }
        })
    }

    pub fn time(&self, name: &'static str, default: Duration) -> Result<Duration, ConfigError> {
        self.read(name, default, |kind, item| {
            let time = item.as_str().and_then(value::time)?;
            matches!(kind, Kind::Time { min, max } if min <= time && time <= max).then_some(time)
        })
    }

    pub fn cores(&self, name: &'static str, default: Cores) -> Result<Cores, ConfigError> {
        self.read(name, default, |kind, item| {
            let cores: Cores = item.as_str()?.parse().ok()?;
            let fits = match (kind, &cores) {
                (Kind::Cpus { count_max }, Cores::List(cpus)) => cpus.len() <= count_max,
                (Kind::Cpus { .. }, Cores::Auto) => true,
                _ => false,
            };
            fits.then_some(cores)
        })
    }

    pub fn address(&self, name: &'static str, default: SocketAddr) -> Result<SocketAddr, ConfigError> {
        self.read(name, default, |_, item| item.as_str()?.parse().ok())
    }

    /// The index of the chosen name among those of the schema.
    pub fn choice(&self, name: &'static str, default: usize) -> Result<usize, ConfigError> {
        self.read(name, default, |kind, item| match kind {
            Kind::Choice(names) => {
                let chosen = item.as_str()?;
                names.iter().position(|name| *name == chosen)
            }
            _ => None,
        })
    }

    /// The tables `[[...written]]` within this one, sections of the name `name`.
    pub fn inner(&self, written: &str, name: &'static str) -> Result<Vec<Section<'a>>, ConfigError> {
        let Some(table) = self.table else { return Ok(vec![]) };
        Ok(self.source.tables(table, written, name)?.unwrap_or_default())
    }

    /// The names of a list of features, which may be wrong; none when it is not in the text, or `"auto"`.
    pub fn feature_names(&self, name: &'static str) -> Result<Option<Vec<String>>, ConfigError> {
        self.read(name, None, |kind, item| {
            if matches!(kind, Kind::Features { auto: true }) && item.as_str() == Some("auto") {
                return Some(None);
            }
            let values = item.as_array().filter(|values| values.len() <= FEATURE_NAMES_MAX)?.iter();
            values.map(|value| value.as_str().map(str::to_owned)).collect::<Option<_>>().map(Some)
        })
    }

    /// The error for a name that is no feature's.
    pub fn no_feature(&self, name: &str, written: &str) -> ConfigError {
        let names: Vec<&str> = FEATURES.iter().map(|(_, name)| *name).collect();
        self.refuse(name, one_line(written), allowed(written, &names))
    }

    /// A string that `valid` accepts.
    pub fn string(
        &self,
        name: &'static str,
        default: &str,
        valid: impl Fn(&str) -> bool,
    ) -> Result<String, ConfigError> {
        self.read(name, default.to_owned(), |_, item| {
            item.as_str().filter(|text| valid(text)).map(str::to_owned)
        })
    }

    /// A list of strings that `valid` accepts.
    pub fn strings(
        &self,
        name: &'static str,
        default: Vec<String>,
        valid: impl Fn(&str) -> bool,
    ) -> Result<Vec<String>, ConfigError> {
        self.read(name, default, |kind, item| {
            let (Kind::Hosts { count_max } | Kind::Origins { count_max }) = kind else { return None };
            let values = item.as_array().filter(|values| values.len() <= count_max)?.iter();
            values.map(|value| value.as_str().filter(|text| valid(text)).map(str::to_owned)).collect()
        })
    }

    /// True when the key is in the text.
    pub fn has(&self, name: &str) -> bool {
        self.table.is_some_and(|table| table.contains_key(name))
    }

    /// An error at the key, or at the section's head when the key is not in the text.
    pub fn refuse(&self, name: &str, found: impl Into<String>, allowed: impl Into<String>) -> ConfigError {
        let line = match self.table {
            Some(table) if self.has(name) => self.source.key_line(table, name),
            _ => self.line,
        };
        self.source.error(line, schema::path(self.name, name), found, allowed)
    }

    fn read<T>(
        &self,
        name: &'static str,
        default: T,
        take: impl Fn(Kind, &Item) -> Option<T>,
    ) -> Result<T, ConfigError> {
        let kind = Key::find(self.name, name).expect("the schema names every key that is read").kind;
        let Some(item) = self.table.and_then(|table| table.get(name)) else {
            return Ok(default);
        };
        take(kind, item).ok_or_else(|| self.refuse(name, self.source.found(item), kind.to_string()))
    }

    /// Refuses the first key that the schema does not name.
    fn known(self) -> Result<Self, ConfigError> {
        let Some(table) = self.table else {
            return Ok(self);
        };
        let keys = SCHEMA.iter().filter(|key| key.section == self.name).map(|key| key.name);
        let sections = SECTIONS.iter().filter_map(|(name, _)| match name.split_once('.') {
            Some((outer, inner)) => (outer == self.name).then_some(inner),
            None => self.name.is_empty().then_some(*name),
        });
        let names: Vec<&str> = keys.chain(sections).collect();
        match table.iter().find(|(written, _)| !names.contains(written)) {
            None => Ok(self),
            Some((written, _)) => {
                let line = self.source.key_line(table, written);
                let key = schema::path(self.name, &one_line(written));
                Err(self.source.error(line, key, "an unknown key", allowed(written, &names)))
            }
        }
    }
}

/// The line, from 1, in which `span` begins.
fn line_at(text: &str, span: Option<Range<usize>>) -> usize {
    let start = span.map_or(0, |span| span.start).min(text.len());
    1 + text.as_bytes()[..start].iter().filter(|byte| **byte == b'\n').count()
}

/// `text` without line breaks and control characters, cut to a length fit for an error text.
fn one_line(text: &str) -> String {
    let shown = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    let mut short: String = shown.take(FOUND_CHARS_MAX).collect();
    if text.chars().nth(FOUND_CHARS_MAX).is_some() {
        short.push_str("...");
    }
    short
}

/// The names that are allowed, the one that was probably meant first.
fn allowed(written: &str, names: &[&str]) -> String {
    let nearest = nearest(written, names);
    let hint = nearest.map(|name| format!("{name} (the nearest), ")).unwrap_or_default();
    let rest: Vec<&str> = names.iter().copied().filter(|name| Some(*name) != nearest).collect();
    hint + &rest.join(", ")
}

/// The name that a slip of the hand may have turned into `written`.
fn nearest<'a>(written: &str, names: &[&'a str]) -> Option<&'a str> {
    if written.len() > NAME_BYTES_MAX {
        return None;
    }
    let distances = names.iter().map(|name| (distance(written, name), *name));
    distances
        .min_by_key(|(distance, _)| *distance)
        .filter(|(distance, _)| *distance <= 3)
        .map(|(_, name)| name)
}

/// Levenshtein distance in bytes.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let changed = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = changed.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

/// Longest piece of the text that an error repeats.
const FOUND_CHARS_MAX: usize = 80;
/// Longest list of features.
const FEATURE_NAMES_MAX: usize = 256;
/// Longer names are compared with none.
const NAME_BYTES_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_name_is_found() {
        let names = ["subscriptions_max", "registrations_max", "realms_max"];
        assert_eq!(nearest("subscription_max", &names), Some("subscriptions_max"));
        assert_eq!(nearest("realm_max", &names), Some("realms_max"));
        assert_eq!(nearest("colour", &names), None);
        assert_eq!(nearest(&"x".repeat(1_000), &names), None);
    }

    #[test]
    fn long_and_broken_text_is_shown_on_one_short_line() {
        assert_eq!(one_line("a\nb"), "a b");
        assert_eq!(one_line(&"é".repeat(200)).chars().count(), FOUND_CHARS_MAX + 3);
    }
}
