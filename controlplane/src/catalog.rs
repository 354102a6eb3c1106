//! The realms of this node: those of the configuration file and those of the store. Sans-IO.
//!
//! Invariants: a name of the configuration hides a stored realm of that name; no two names share a [`RealmId`]; there
//! are at most `limits.realms_max` names, but for those of the configuration, which always count.

use crate::store;
use crate::store::record::{Kind, Object, RecordError};
use common::config::RealmConfig;
use common::history::{History, HistoryError};
use common::ids::RealmId;
use common::snapshot::Realm;
use common::uri::{self, UriRule};
use std::collections::{BTreeMap, BTreeSet};

#[derive(Debug)]
pub struct Catalog {
    realms: BTreeMap<String, Entry>,
    names: BTreeMap<RealmId, String>,
    realms_max: usize,
}

/// Where a realm comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Origin {
    /// The configuration file; it cannot be changed at run time.
    Config,
    Store,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Entry {
    pub config: RealmConfig,
    pub origin: Origin,
}

/// What an object of another node changed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Taken {
    Put(Realm),
    Removed(RealmId),
    /// It is in use as it is.
    Nothing,
}

/// Why an object of another node is not used. It is stored all the same, and the other nodes use it.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum NotTaken {
    #[error(transparent)]
    Realm(#[from] RealmError),
    #[error(transparent)]
    Value(#[from] RecordError),
}

/// Why a realm was not put or removed. Nothing was changed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum RealmError {
    #[error(
        "{name:?} is not a valid realm name: use non-empty parts without '#' or white space, joined by '.'"
    )]
    Name { name: String },
    #[error("{name:?} is reserved: names that begin with \"wamp\" belong to the router")]
    Reserved { name: String },
    #[error("realm {name:?} is defined in the configuration file; change it there")]
    Configured { name: String },
    #[error("there is no realm {name:?}")]
    Unknown { name: String },
    #[error("the number of realm {name:?} collides with that of realm {other:?}; choose another name")]
    Collision { name: String, other: String },
    #[error(transparent)]
    History(#[from] HistoryError),
    #[error("there are {realms} realms, limits.realms_max is {realms_max}")]
    Full { realms: usize, realms_max: usize },
}

impl Catalog {
    /// The realms of the configuration. Two of one name or number are an error.
    pub fn new(config: &[RealmConfig], realms_max: u32) -> Result<Self, RealmError> {
        let mut catalog =
            Self { realms: BTreeMap::new(), names: BTreeMap::new(), realms_max: realms_max as usize };
        for realm in config {
            catalog.check_name(&realm.name)?;
            catalog.insert(realm.clone(), Origin::Config);
        }
        Ok(catalog)
    }

    /// A realm found in the store at start. Refused like a put, except that the limit is not asked.
    pub fn load(&mut self, config: RealmConfig) -> Result<(), RealmError> {
        self.check_load(&config)?;
        self.insert(config, Origin::Store);
        Ok(())
    }

    /// Whether a realm that is stored, here or on another node, can be used. The limit is not asked: it was by the node
    /// that took it.
    pub fn check_load(&self, config: &RealmConfig) -> Result<(), RealmError> {
        self.check_change(&config.name)?;
        self.check_name(&config.name)
    }

    /// Whether [`Catalog::put`] may follow. `pending`: puts that may come before it. Its histories are in order.
    pub fn check_put(&self, config: &RealmConfig, pending: usize) -> Result<(), RealmError> {
        self.check_change(&config.name)?;
        self.check_name(&config.name)?;
        History::check_all(&mut config.histories.clone())?;
        if !self.realms.contains_key(&config.name) && self.realms.len() + pending >= self.realms_max {
            return Err(RealmError::Full { realms: self.realms.len(), realms_max: self.realms_max });
        }
        Ok(())
    }

    /// Whether [`Catalog::remove`] may follow.
    pub fn check_remove(&self, name: &str) -> Result<(), RealmError> {
        self.check_change(name)?;
        if !self.realms.contains_key(name) {
            return Err(RealmError::Unknown { name: name.into() });
        }
        Ok(())
    }

    /// Puts a realm that [`Catalog::check_put`] has accepted and that is stored.
    pub fn put(&mut self, config: RealmConfig) -> Realm {
        let realm = realm_of(&config);
        self.insert(config, Origin::Store);
        realm
    }

    pub fn remove(&mut self, name: &str) -> Option<RealmId> {
        self.realms.remove(name)?;
        let id = RealmId::of(name);
        self.names.remove(&id);
        Some(id)
    }

    /// Follows a stored object that another node, or the settling of values that competed, has changed. The limit is not
    /// asked: that was done where the realm was put, and all nodes are to have the same realms.
    pub fn take(&mut self, object: &Object) -> Result<Taken, NotTaken> {
        match object.kind {
            Kind::Realm => {}
            Kind::Retained => return Ok(Taken::Nothing),
        }
        let name = &object.key;
        self.check_change(name)?;
        let Some(bytes) = object.resolved().and_then(|value| value.bytes) else {
            return Ok(self.remove(name).map_or(Taken::Nothing, Taken::Removed));
        };
        let config = store::realm::decode(name, &bytes)?;
        self.check_name(name)?;
        if self.realms.get(name).is_some_and(|entry| entry.config == config) {
            return Ok(Taken::Nothing);
        }
        Ok(Taken::Put(self.put(config)))
    }

    /// Follows the whole store, after this node began anew. Returns what has changed; objects that are not used are passed
    /// over.
    pub fn take_all(&mut self, objects: &[Object]) -> Vec<Taken> {
        let there: BTreeSet<&str> = objects.iter().map(|object| object.key.as_str()).collect();
        let is_gone =
            |entry: &&Entry| entry.origin == Origin::Store && !there.contains(entry.config.name.as_str());
        let gone: Vec<String> =
            self.realms.values().filter(is_gone).map(|entry| entry.config.name.clone()).collect();
        let removed = gone.iter().filter_map(|name| self.remove(name)).map(Taken::Removed).collect();
        let taken = objects.iter().filter_map(|object| self.take(object).ok());
        let mut changes: Vec<Taken> = removed;
        changes.extend(taken.filter(|taken| *taken != Taken::Nothing));
        changes
    }

    pub fn contains(&self, id: RealmId) -> bool {
        self.names.contains_key(&id)
    }

    pub fn len(&self) -> usize {
        self.realms.len()
    }

    pub fn is_empty(&self) -> bool {
        self.realms.is_empty()
    }

    /// By name.
    pub fn iter(&self) -> impl Iterator<Item = &Entry> {
        self.realms.values()
    }

    /// As the shards need them.
    pub fn realms(&self) -> Vec<Realm> {
        self.realms.values().map(|entry| realm_of(&entry.config)).collect()
    }

    fn check_change(&self, name: &str) -> Result<(), RealmError> {
        match self.realms.get(name) {
            Some(Entry { origin: Origin::Config, .. }) => Err(RealmError::Configured { name: name.into() }),
            _ => Ok(()),
        }
    }

    fn check_name(&self, name: &str) -> Result<(), RealmError> {
        if !uri::is_valid(name, UriRule::Loose) {
            return Err(RealmError::Name { name: name.chars().take(NAME_SHOWN_CHARS_MAX).collect() });
        }
        if uri::is_reserved(name) {
            return Err(RealmError::Reserved { name: name.into() });
        }
        match self.names.get(&RealmId::of(name)) {
            Some(other) if other != name => {
                Err(RealmError::Collision { name: name.into(), other: other.clone() })
            }
            _ => Ok(()),
        }
    }

    fn insert(&mut self, config: RealmConfig, origin: Origin) {
        self.names.insert(RealmId::of(&config.name), config.name.clone());
        self.realms.insert(config.name.clone(), Entry { config, origin });
    }
}

impl Origin {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Config => "config",
            Self::Store => "store",
        }
    }
}

fn realm_of(config: &RealmConfig) -> Realm {
    Realm {
        id: RealmId::of(&config.name),
        name: config.name.clone(),
        strict: config.strict,
        uri_strict: config.uri_strict,
        anonymous: config.anonymous,
        rules: config.rules.pack(),
        histories: config.histories.clone(),
    }
}

/// How much of a bad name an error repeats.
const NAME_SHOWN_CHARS_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::record::{Actor, Hlc, Value};
    use common::snapshot::Anonymous;

    fn realm(name: &str) -> RealmConfig {
        RealmConfig { anonymous: Anonymous::Nobody, ..RealmConfig::named(name) }
    }

    fn catalog() -> Catalog {
        Catalog::new(&[realm("realm1")], 3).unwrap()
    }

    #[test]
    fn realms_of_the_configuration_cannot_be_changed() {
        let mut catalog = catalog();
        let configured = || RealmError::Configured { name: "realm1".into() };
        assert_eq!(catalog.check_put(&realm("realm1"), 0), Err(configured()));
        assert_eq!(catalog.check_remove("realm1"), Err(configured()));
        assert_eq!(catalog.load(RealmConfig { strict: true, ..realm("realm1") }), Err(configured()));
        assert!(!catalog.realms()[0].strict);
    }

    #[test]
    fn a_realm_comes_and_goes() {
        let mut catalog = catalog();
        assert_eq!(catalog.check_put(&realm("a.b"), 0), Ok(()));
        assert_eq!(catalog.put(realm("a.b")).id, RealmId::of("a.b"));
        assert!(catalog.contains(RealmId::of("a.b")));
        assert_eq!(catalog.check_remove("a.b"), Ok(()));
        assert_eq!(catalog.remove("a.b"), Some(RealmId::of("a.b")));
        assert_eq!(catalog.check_remove("a.b"), Err(RealmError::Unknown { name: "a.b".into() }));
        assert!(!catalog.contains(RealmId::of("a.b")));
    }

    #[test]
    fn the_limit_counts_new_names_only() {
        let mut catalog = catalog();
        catalog.put(realm("a"));
        catalog.put(realm("b"));
        assert_eq!(catalog.check_put(&realm("a"), 0), Ok(()));
        let full = |realms| Err(RealmError::Full { realms, realms_max: 3 });
        assert_eq!(catalog.check_put(&realm("c"), 0), full(3));
        catalog.remove("b");
        assert_eq!(catalog.check_put(&realm("c"), 0), Ok(()));
        assert_eq!(catalog.check_put(&realm("c"), 1), full(2), "one that is under way takes the last place");
        assert_eq!(catalog.check_put(&realm("a"), 1), Ok(()), "this one has its place");
    }

    fn object(name: &str, stamp: u64, config: Option<&RealmConfig>) -> Object {
        let mut object = Object::new(Kind::Realm, name);
        let bytes = config.map(store::realm::encode);
        let actor = Actor { node: [stamp as u8; 16], epoch: 1 };
        object.put(actor, 0, Value { hlc: Hlc(stamp), bytes }).unwrap();
        object
    }

    #[test]
    fn realms_of_other_nodes_are_followed_but_not_over_the_configuration() {
        let mut catalog = catalog();
        let strict = RealmConfig { strict: true, ..realm("a") };
        assert!(matches!(catalog.take(&object("a", 1, Some(&realm("a")))), Ok(Taken::Put(_))));
        assert_eq!(catalog.take(&object("a", 2, Some(&realm("a")))), Ok(Taken::Nothing));
        let Ok(Taken::Put(taken)) = catalog.take(&object("a", 3, Some(&strict))) else { panic!("not taken") };
        assert!(taken.strict);
        // A deletion that competes with a change loses, whatever the stamps.
        let mut both = object("a", 4, Some(&strict));
        both.merge(&object("a", 5, None)).unwrap();
        assert_eq!(catalog.take(&both), Ok(Taken::Nothing));
        assert_eq!(catalog.take(&object("a", 6, None)), Ok(Taken::Removed(RealmId::of("a"))));
        assert_eq!(catalog.take(&object("a", 6, None)), Ok(Taken::Nothing));
        assert!(catalog.take(&object("realm1", 7, None)).is_err());
        assert!(catalog.take(&object("wamp.x", 8, Some(&realm("wamp.x")))).is_err());
        // Beyond the limit: it was asked where they were put.
        for name in ["b", "c", "d", "e"] {
            assert!(matches!(catalog.take(&object(name, 9, Some(&realm(name)))), Ok(Taken::Put(_))));
        }
    }

    #[test]
    fn a_node_that_began_anew_follows_the_whole_store() {
        let mut catalog = catalog();
        ["a", "b"].iter().for_each(|name| drop(catalog.put(realm(name))));
        let objects = [object("b", 1, Some(&realm("b"))), object("c", 1, Some(&realm("c")))];
        let changes = catalog.take_all(&objects);
        assert_eq!(changes.len(), 2);
        assert_eq!(changes[0], Taken::Removed(RealmId::of("a")));
        let names: Vec<_> = catalog.iter().map(|entry| entry.config.name.as_str()).collect();
        assert_eq!(names, ["b", "c", "realm1"]);
    }

    #[test]
    fn bad_names_are_refused() {
        let catalog = catalog();
        for name in ["", "a..b", "a b", "#", ".", "a.\u{0}\n"] {
            assert!(matches!(catalog.check_put(&realm(name), 0), Err(RealmError::Name { .. })), "{name:?}");
        }
        assert!(matches!(catalog.check_put(&realm("wamp.x"), 0), Err(RealmError::Reserved { .. })));
    }
}
