//! The rules of a realm as JSON: the keys of `[[realm]]` and `[[realm.role]]` in the configuration file, sizes in bytes.

use common::features::{FEATURES, Feature, FeatureSet};
use common::rules::{BOUNDS, Bounds, RoleRules, Rules};
use serde_json::{Map, Value, json};

const FEATURES_OFF: &str = "features_off";
const ROLES: &str = "roles";

/// The keys that [`take`] takes.
pub fn keys() -> impl Iterator<Item = &'static str> {
    [FEATURES_OFF, ROLES].into_iter().chain(BOUNDS.into_iter().map(|(_, name)| name))
}

/// Takes the keys of rules out of a realm as it is put, and leaves the others. The error says what is wrong.
pub fn take(realm: &mut Map<String, Value>) -> Result<Rules, String> {
    let off = features_off(realm)?.unwrap_or_default();
    let bounds = bounds(realm)?;
    let roles = match realm.remove(ROLES) {
        None => vec![],
        Some(Value::Array(roles)) => roles.into_iter().map(role).collect::<Result<_, _>>()?,
        Some(_) => return Err("roles must be a list".to_owned()),
    };
    Rules::new(off, bounds, roles).map_err(|error| error.to_string())
}

fn role(value: Value) -> Result<RoleRules, String> {
    let Value::Object(mut role) = value else { return Err("a role must be an object".to_owned()) };
    let Some(Value::String(name)) = role.remove("name") else {
        return Err("a role must have a name".to_owned());
    };
    let rules = RoleRules { off: features_off(&mut role)?, bounds: bounds(&mut role)?, name };
    match role.keys().next() {
        Some(key) => Err(format!("role {:?} has an unknown key {key:?}", rules.name)),
        None => Ok(rules),
    }
}

fn features_off(from: &mut Map<String, Value>) -> Result<Option<FeatureSet>, String> {
    let names = match from.remove(FEATURES_OFF) {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::Array(names)) => names,
        Some(_) => return Err("features_off must be a list of names".to_owned()),
    };
    let mut off = FeatureSet::EMPTY;
    for name in names {
        let Some(feature) = name.as_str().and_then(Feature::named) else {
            let known: Vec<&str> = FEATURES.iter().map(|(_, name)| *name).collect();
            return Err(format!("features_off: {name} is no feature; there are {}", known.join(", ")));
        };
        off = off.with(feature);
    }
    Ok(Some(off))
}

fn bounds(from: &mut Map<String, Value>) -> Result<Bounds, String> {
    BOUNDS.into_iter().try_fold(Bounds::NONE, |bounds, (bound, name)| match from.remove(name) {
        None | Some(Value::Null) => Ok(bounds),
        Some(max) => match max.as_u64().and_then(|max| u32::try_from(max).ok()) {
            Some(0) => Ok(bounds),
            Some(max) => Ok(bounds.with(bound, max)),
            None => Err(format!("{name} must be a number below 2^32; 0 is no bound")),
        },
    })
}

/// Puts the keys of rules into a realm as it is shown or put; what is not said is left out.
pub fn show(rules: &Rules, realm: &mut Map<String, Value>) {
    realm.insert(FEATURES_OFF.to_owned(), rules.off.names().collect());
    show_bounds(&rules.bounds, realm);
    let role = |role: &RoleRules| {
        let mut shown = Map::from_iter([("name".to_owned(), json!(role.name))]);
        if let Some(off) = role.off {
            shown.insert(FEATURES_OFF.to_owned(), off.names().collect());
        }
        show_bounds(&role.bounds, &mut shown);
        Value::Object(shown)
    };
    realm.insert(ROLES.to_owned(), rules.roles().iter().map(role).collect());
}

fn show_bounds(bounds: &Bounds, into: &mut Map<String, Value>) {
    for (bound, name) in BOUNDS {
        if bounds.get(bound) != u32::MAX {
            into.insert(name.to_owned(), bounds.get(bound).into());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(text: &str) -> Result<(Rules, Map<String, Value>), String> {
        let mut realm = serde_json::from_str(text).expect("an object");
        take(&mut realm).map(|rules| (rules, realm))
    }

    #[test]
    fn rules_are_shown_as_they_are_put() {
        let text = r#"{"features_off": ["call_timeout"], "uri_max": 64, "roles":
            [{"name": "a", "features_off": []}, {"name": "b", "payload_max": 1024}]}"#;
        let (rules, rest) = taken(text).unwrap();
        assert!(rest.is_empty());
        let mut shown = Map::new();
        show(&rules, &mut shown);
        assert_eq!(Value::Object(shown), serde_json::from_str::<Value>(text).unwrap());
        let (nothing, rest) =
            taken(r#"{"degree": "strict", "uri_max": 0, "roles": [{"name": "a"}]}"#).unwrap();
        assert_eq!((nothing, rest.len()), (Rules::default(), 1));
    }

    #[test]
    fn what_is_no_rule_is_refused_with_a_reason() {
        for (text, reason) in [
            (
                r#"{"features_off": ["call_cancelling"]}"#,
                "\"call_cancelling\" is no feature; there are call_canceling,",
            ),
            (r#"{"features_off": "all"}"#, "features_off must be a list"),
            (r#"{"uri_max": -1}"#, "uri_max must be a number"),
            (r#"{"roles": {}}"#, "roles must be a list"),
            (r#"{"roles": [1]}"#, "a role must be an object"),
            (r#"{"roles": [{}]}"#, "a role must have a name"),
            (r#"{"roles": [{"name": "a", "degree": "strict"}]}"#, "unknown key \"degree\""),
            (r#"{"roles": [{"name": "a", "uri_max": 1}, {"name": "a", "uri_max": 2}]}"#, "twice"),
        ] {
            let error = taken(text).expect_err(text);
            assert!(error.contains(reason), "{text}: {error}");
        }
    }
}
