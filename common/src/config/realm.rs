//! `[[realm]]` and `[[realm.role]]`.

use super::reader::{Section, Source};
use super::{ConfigError, RealmConfig, histories};
use crate::features::FeatureSet;
use crate::rules::{BOUNDS, Bounds, ROLE_BYTES_MAX, ROLES_MAX, RoleRules, Rules};
use crate::snapshot::Anonymous;
use std::path::Path;

/// The realms that are written; none: `default`.
pub(super) fn realms(
    source: &Source<'_>,
    default: Vec<RealmConfig>,
) -> Result<Vec<RealmConfig>, ConfigError> {
    let mut realms = match source.sections("realm")? {
        None => default,
        Some(sections) => sections.iter().map(realm).collect::<Result<_, _>>()?,
    };
    histories::put(source, &mut realms)?;
    Ok(realms)
}

fn realm(section: &Section<'_>) -> Result<RealmConfig, ConfigError> {
    const ANONYMOUS: [Anonymous; 3] = [Anonymous::Nobody, Anonymous::Loopback, Anonymous::Anybody];
    let name = section.string("name", "", RealmConfig::is_valid_name)?;
    if name.is_empty() {
        return Err(section.refuse("name", "no name", "a name in every realm"));
    }
    let default = RealmConfig::named(&name);
    let anonymous = ANONYMOUS.iter().position(|who| *who == default.anonymous).unwrap_or_default();
    Ok(RealmConfig {
        name,
        strict: section.choice("degree", default.strict.into())? == 1,
        uri_strict: section.choice("uri", default.uri_strict.into())? == 1,
        anonymous: ANONYMOUS[section.choice("anonymous", anonymous)?],
        rules: rules(section)?,
        histories: Vec::new(),
    })
}

impl Rules {
    /// Reads a file that has what a `[[realm]]` table may have of rules: `features_off`, the bounds, `[[role]]`. `file` is
    /// only named in errors.
    pub fn parse(text: &str, file: &Path) -> Result<Self, ConfigError> {
        let source = Source::parse(text, file)?;
        let section = source.root_as("realm")?;
        let others = ["name", "degree", "uri", "anonymous"];
        if let Some(other) = others.into_iter().find(|name| section.has(name)) {
            return Err(section.refuse(other, "what is no rule", "features_off, bounds and [[role]]"));
        }
        rules(&section)
    }
}

fn rules(section: &Section<'_>) -> Result<Rules, ConfigError> {
    let off = section.features("features_off")?.unwrap_or_default();
    let roles = section.inner("role", "realm.role")?;
    let named = roles.iter().map(role).collect::<Result<_, _>>()?;
    Rules::new(off, bounds(section)?, named).map_err(|error| {
        section.refuse("role", error.to_string(), format!("at most {ROLES_MAX} roles, each once"))
    })
}

fn role(section: &Section<'_>) -> Result<RoleRules, ConfigError> {
    let name = section.string("name", "", |name| !name.is_empty() && name.len() <= ROLE_BYTES_MAX)?;
    if name.is_empty() {
        return Err(section.refuse("name", "no name", "a name in every role"));
    }
    Ok(RoleRules { name, off: section.features("features_off")?, bounds: bounds(section)? })
}

/// 0 is no bound, here.
fn bounds(section: &Section<'_>) -> Result<Bounds, ConfigError> {
    BOUNDS.into_iter().try_fold(Bounds::NONE, |bounds, (bound, name)| {
        let max = section.u32(name, 0)?;
        Ok(bounds.with(bound, if max == 0 { u32::MAX } else { max }))
    })
}

impl Section<'_> {
    /// A list of features; none: `"auto"`, or nothing is written.
    fn features(&self, name: &'static str) -> Result<Option<FeatureSet>, ConfigError> {
        let Some(names) = self.feature_names(name)? else { return Ok(None) };
        let mut off = FeatureSet::EMPTY;
        for written in names {
            match crate::features::Feature::named(&written) {
                Some(feature) => off = off.with(feature),
                None => return Err(self.no_feature(name, &written)),
            }
        }
        Ok(Some(off))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::features::Feature;
    use crate::rules::Bound;

    fn realms(text: &str) -> Result<Vec<RealmConfig>, String> {
        let config = Config::parse(text, Path::new("test.toml"));
        config.map(|config| config.realms).map_err(|error| error.to_string())
    }

    const RULES: &str =
        "features_off = [\"event_retention\"]\nsubscriptions_max = 5\npayload_max = \"1KiB\"\n";
    const ROLE: &str = "name = \"guest\"\nfeatures_off = []\nuri_max = 64\n";

    fn rules_read() -> Rules {
        let bounds = Bounds::NONE.with(Bound::Subscriptions, 5).with(Bound::Payload, 1 << 10);
        let role = RoleRules {
            name: "guest".into(),
            off: Some(FeatureSet::EMPTY),
            bounds: Bounds::NONE.with(Bound::Uri, 64),
        };
        Rules::new(FeatureSet::of(Feature::EventRetention), bounds, vec![role]).expect("one role")
    }

    #[test]
    fn rules_of_a_realm_and_of_its_roles_are_read() {
        let text = format!("[[realm]]\nname = \"a\"\n{RULES}[[realm.role]]\n{ROLE}[[realm]]\nname = \"b\"");
        let expected =
            [RealmConfig { rules: rules_read(), ..RealmConfig::named("a") }, RealmConfig::named("b")];
        assert_eq!(realms(&text), Ok(expected.to_vec()));
        let file = format!("{RULES}[[role]]\n{ROLE}");
        assert_eq!(Rules::parse(&file, Path::new("rules.toml")), Ok(rules_read()));
    }

    #[test]
    fn a_role_that_says_nothing_is_no_rule() {
        let text = "realm = [{name = \"a\", role = [{name = \"r\", features_off = \"auto\", uri_max = 0}]}]";
        assert_eq!(realms(text), Ok(vec![RealmConfig::named("a")]));
    }

    #[test]
    fn wrong_rules_are_refused_with_what_is_wrong() {
        let starts = |text: &str, start: &str| {
            let error = realms(text).expect_err(text);
            assert!(error.starts_with(&format!("test.toml:{start}")), "{error}");
        };
        starts(
            "[[realm]]\nname = \"a\"\nfeatures_off = [\"call_cancelling\"]",
            "3: realm.features_off: found call_cancelling, allowed: call_canceling (the nearest), call_reroute, ",
        );
        starts(
            "[[realm]]\nname = \"a\"\nfeatures_off = [1]",
            "3: realm.features_off: found array, allowed: ",
        );
        starts("[[realm]]\nname = \"a\"\nuri_max = 1025", "3: realm.uri_max: found 1025, ");
        starts("[[realm]]\nname = \"a\"\n[[realm.role]]\nuri_max = 1", "3: realm.role.name: found no name, ");
        let roles = "[[realm.role]]\nname = \"r\"\npayload_max = 1\n".repeat(2);
        starts(
            &format!("[[realm]]\nname = \"a\"\n{roles}"),
            "3: realm.role: found role \"r\" is there twice, ",
        );
        let unknown = "[[realm]]\nname = \"a\"\n[[realm.role]]\nname = \"r\"\nuri = \"strict\"";
        starts(unknown, "5: realm.role.uri: found an unknown key, allowed: name, features_off, ");
        starts(
            "[[realm]]\nname = \"a\"\nrole = 3",
            "3: realm.role: found 3, allowed: tables, [[realm.role]]",
        );
        let error = Rules::parse("name = \"a\"", Path::new("r.toml")).expect_err("no rule").to_string();
        assert!(error.starts_with("r.toml:1: realm.name: found what is no rule"), "{error}");
    }
}
