//! What a realm, and each authrole in it, has switched off, and the bounds of its sessions.
//!
//! A role adds to what its realm switches off and narrows its bounds; the realm narrows those of the node. Nothing widens.
//!
//! ```text
//! packed = off u64 │ bounds 6 × u32 │ roles u8 │ role ...                                          little-endian
//! role   = name bytes u8 │ name │ off is said u8 │ off u64 │ bounds 6 × u32      by ascending name, each name once
//! ```
//! No bytes are rules that say nothing.

use crate::config::Limits;
use crate::features::{Feature, FeatureSet};
use crate::limits::URI_BYTES_MAX;
use crate::snapshot::Anonymous;

/// Most roles that a realm has rules for.
pub const ROLES_MAX: usize = 32;
/// Longest name of such a role.
pub const ROLE_BYTES_MAX: usize = 128;
/// The role of sessions without credentials.
pub const ANONYMOUS: &str = "anonymous";
/// Most bytes of packed rules.
pub const RULES_BYTES_MAX: usize = HEAD_BYTES + ROLES_MAX * (2 + ROLE_BYTES_MAX + RULE_BYTES);

const RULE_BYTES: usize = 8 + 4 * BOUNDS.len();
const HEAD_BYTES: usize = RULE_BYTES + 1;

/// A bound of each session.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Bound {
    Subscriptions,
    Registrations,
    /// Calls that wait for an answer.
    CallsPending,
    /// Invocations it has to answer.
    InvocationsPending,
    /// Bytes of a topic or procedure.
    Uri,
    /// Bytes of the arguments of one message that it sends, in its serializer.
    Payload,
}

/// All bounds, in the order of their numbers, with the name of each.
pub const BOUNDS: [(Bound, &str); 6] = [
    (Bound::Subscriptions, "subscriptions_max"),
    (Bound::Registrations, "registrations_max"),
    (Bound::CallsPending, "calls_pending_max"),
    (Bound::InvocationsPending, "invocations_pending_max"),
    (Bound::Uri, "uri_max"),
    (Bound::Payload, "payload_max"),
];

/// Bounds by [`Bound`]; [`Bounds::NONE`] bounds nothing.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Bounds([u32; BOUNDS.len()]);

impl Default for Bounds {
    fn default() -> Self {
        Self::NONE
    }
}

impl Bounds {
    pub const NONE: Self = Self([u32::MAX; BOUNDS.len()]);

    #[inline]
    pub const fn get(&self, bound: Bound) -> u32 {
        self.0[bound as usize]
    }

    #[must_use]
    pub const fn with(mut self, bound: Bound, max: u32) -> Self {
        self.0[bound as usize] = max;
        self
    }

    /// The narrower of each.
    #[must_use]
    pub fn narrowed(self, by: Self) -> Self {
        Self(std::array::from_fn(|at| self.0[at].min(by.0[at])))
    }

    /// Those of a node.
    pub fn of(limits: &Limits) -> Self {
        let mut bounds = Self::NONE;
        for (bound, max) in [
            (Bound::Subscriptions, limits.subscriptions_max),
            (Bound::Registrations, limits.registrations_max),
            (Bound::CallsPending, limits.calls_pending_max),
            (Bound::InvocationsPending, limits.invocations_pending_max),
            (Bound::Uri, limits.uri_max),
            (Bound::Payload, limits.payload_max),
        ] {
            bounds = bounds.with(bound, max);
        }
        bounds
    }

    /// True when every session has to look how long its URIs are: the parser bounds them already.
    pub const fn bounds_uris(&self) -> bool {
        (self.get(Bound::Uri) as usize) < URI_BYTES_MAX
    }

    fn pack(&self, out: &mut Vec<u8>) {
        self.0.iter().for_each(|max| out.extend_from_slice(&max.to_le_bytes()));
    }
}

/// The rules of one role.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Default, Debug)]
pub struct RoleRules {
    pub name: String,
    /// None: see [`Rules::of_role`].
    pub off: Option<FeatureSet>,
    pub bounds: Bounds,
}

/// The rules of a realm.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Default, Debug)]
pub struct Rules {
    pub off: FeatureSet,
    pub bounds: Bounds,
    roles: Vec<RoleRules>,
}

/// What holds for one session.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct InForce {
    pub off: FeatureSet,
    pub bounds: Bounds,
}

/// Why rules are refused.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum RulesError {
    #[error("a realm has rules for at most {ROLES_MAX} roles")]
    Roles,
    #[error("the name of a role has 1 to {ROLE_BYTES_MAX} bytes")]
    Name,
    #[error("role {0:?} is there twice")]
    Twice(String),
    #[error("not the form of rules")]
    Form,
}

impl Rules {
    /// Roles in any order; those that say nothing are left out.
    pub fn new(off: FeatureSet, bounds: Bounds, mut roles: Vec<RoleRules>) -> Result<Self, RulesError> {
        roles.sort();
        if let Some(pair) = roles.windows(2).find(|pair| pair[0].name == pair[1].name) {
            return Err(RulesError::Twice(pair[0].name.clone()));
        }
        if roles.iter().any(|role| role.name.is_empty() || role.name.len() > ROLE_BYTES_MAX) {
            return Err(RulesError::Name);
        }
        roles.retain(|role| role.off.is_some() || role.bounds != Bounds::NONE);
        if roles.len() > ROLES_MAX {
            return Err(RulesError::Roles);
        }
        Ok(Self { off, bounds, roles })
    }

    /// By ascending name.
    pub fn roles(&self) -> &[RoleRules] {
        &self.roles
    }

    /// What holds for sessions of a role. In a realm that lets anybody in, who has no credentials may not change other
    /// sessions unless the rules of the role say what is off.
    pub fn of_role(&self, role: &str, anonymous: Anonymous, node: &Bounds) -> InForce {
        let rules =
            self.roles.binary_search_by(|known| (*known.name).cmp(role)).ok().map(|at| &self.roles[at]);
        let off = rules.and_then(|rules| rules.off).unwrap_or_else(|| {
            if anonymous == Anonymous::Anybody && role == ANONYMOUS {
                FeatureSet::of(Feature::MetaApiControl)
            } else {
                FeatureSet::EMPTY
            }
        });
        let bounds = rules.map_or(Bounds::NONE, |rules| rules.bounds);
        InForce { off: self.off.and(off), bounds: node.narrowed(self.bounds).narrowed(bounds) }
    }

    /// At most [`RULES_BYTES_MAX`] bytes.
    pub fn pack(&self) -> Vec<u8> {
        let mut out = Vec::new();
        if *self == Self::default() {
            return out;
        }
        out.extend_from_slice(&self.off.0.to_le_bytes());
        self.bounds.pack(&mut out);
        out.push(self.roles.len() as u8);
        for role in &self.roles {
            out.push(role.name.len() as u8);
            out.extend_from_slice(role.name.as_bytes());
            out.push(role.off.is_some().into());
            out.extend_from_slice(&role.off.unwrap_or_default().0.to_le_bytes());
            role.bounds.pack(&mut out);
        }
        out
    }

    /// Takes only what [`Rules::pack`] gives, so that rules have one form.
    pub fn unpack(bytes: &[u8]) -> Result<Self, RulesError> {
        if bytes.is_empty() {
            return Ok(Self::default());
        }
        let mut from = bytes;
        let rules = Self::read(&mut from).filter(|_| from.is_empty()).ok_or(RulesError::Form)?;
        let rules = Self::new(rules.off, rules.bounds, rules.roles)?;
        if rules.pack() == bytes { Ok(rules) } else { Err(RulesError::Form) }
    }

    fn read(from: &mut &[u8]) -> Option<Self> {
        let off = FeatureSet(u64::from_le_bytes(take(from)?));
        let bounds = read_bounds(from)?;
        let [count] = take(from)?;
        let mut roles = Vec::new();
        for _ in 0..usize::from(count).min(ROLES_MAX) {
            let [length] = take(from)?;
            let (name, rest) = from.split_at_checked(length.into())?;
            *from = rest;
            let name = std::str::from_utf8(name).ok()?.to_owned();
            let [is_said] = take(from)?;
            let off = FeatureSet(u64::from_le_bytes(take(from)?));
            roles.push(RoleRules { name, off: (is_said == 1).then_some(off), bounds: read_bounds(from)? });
        }
        Some(Self { off, bounds, roles })
    }
}

fn take<const N: usize>(from: &mut &[u8]) -> Option<[u8; N]> {
    let (head, rest) = from.split_first_chunk::<N>()?;
    *from = rest;
    Some(*head)
}

fn read_bounds(from: &mut &[u8]) -> Option<Bounds> {
    let mut bounds = Bounds::NONE;
    for max in &mut bounds.0 {
        *max = u32::from_le_bytes(take(from)?);
    }
    Some(bounds)
}

const _: () = assert!(ROLES_MAX <= u8::MAX as usize);
const _: () = assert!(ROLE_BYTES_MAX <= u8::MAX as usize);
const _: () = assert!(RULES_BYTES_MAX <= 8 << 10);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use proptest::prelude::*;

    fn role(name: &str, off: Option<FeatureSet>, bounds: Bounds) -> RoleRules {
        RoleRules { name: name.into(), off, bounds }
    }

    fn off(feature: Feature) -> FeatureSet {
        FeatureSet::of(feature)
    }

    #[test]
    fn a_role_adds_to_what_is_off_and_narrows_what_is_bound() {
        let realm = Bounds::NONE.with(Bound::Uri, 100).with(Bound::Payload, 1_000);
        let guests = Bounds::NONE.with(Bound::Uri, 200).with(Bound::Payload, 10);
        let roles = vec![role("guest", Some(off(Feature::CallTimeout)), guests)];
        let rules = Rules::new(off(Feature::EventRetention), realm, roles).unwrap();
        let node = Bounds::of(&Config::default().limits).with(Bound::Payload, 500);
        let guest = rules.of_role("guest", Anonymous::Nobody, &node);
        assert_eq!(guest.off, off(Feature::EventRetention).with(Feature::CallTimeout));
        assert_eq!(guest.bounds, node.with(Bound::Uri, 100).with(Bound::Payload, 10));
        let other = rules.of_role("other", Anonymous::Nobody, &node);
        assert_eq!((other.off, other.bounds), (off(Feature::EventRetention), node.with(Bound::Uri, 100)));
    }

    #[test]
    fn a_stranger_may_not_change_other_sessions_unless_that_is_said() {
        let of = |rules: &Rules, role, who| rules.of_role(role, who, &Bounds::NONE).off;
        let nothing = Rules::default();
        assert_eq!(of(&nothing, ANONYMOUS, Anonymous::Anybody), off(Feature::MetaApiControl));
        assert!(of(&nothing, ANONYMOUS, Anonymous::Loopback).is_empty());
        assert!(of(&nothing, "user", Anonymous::Anybody).is_empty());
        let bounds = vec![role(ANONYMOUS, None, Bounds::NONE.with(Bound::Uri, 9))];
        let bounds = Rules::new(FeatureSet::EMPTY, Bounds::NONE, bounds).unwrap();
        assert_eq!(of(&bounds, ANONYMOUS, Anonymous::Anybody), off(Feature::MetaApiControl));
        let said = vec![role(ANONYMOUS, Some(FeatureSet::EMPTY), Bounds::NONE)];
        let said = Rules::new(FeatureSet::EMPTY, Bounds::NONE, said).unwrap();
        assert!(of(&said, ANONYMOUS, Anonymous::Anybody).is_empty());
    }

    #[test]
    fn bad_roles_are_refused() {
        let new = |roles| Rules::new(FeatureSet::EMPTY, Bounds::NONE, roles);
        let said = |name: &str| role(name, Some(FeatureSet::EMPTY), Bounds::NONE);
        assert_eq!(new(vec![said("a"), said("a")]), Err(RulesError::Twice("a".into())));
        assert_eq!(new(vec![said("")]), Err(RulesError::Name));
        assert_eq!(new(vec![said(&"x".repeat(ROLE_BYTES_MAX + 1))]), Err(RulesError::Name));
        let many = |count: usize| (0..count).map(|at| said(&format!("{at:0128}"))).collect::<Vec<_>>();
        assert_eq!(new(many(ROLES_MAX + 1)), Err(RulesError::Roles));
        let most = new(many(ROLES_MAX)).unwrap().pack();
        assert_eq!(most.len(), RULES_BYTES_MAX);
        assert!(Rules::unpack(&most).is_ok());
    }

    #[test]
    fn the_form_is_frozen() {
        let roles = vec![role("a", Some(FeatureSet(1)), Bounds::NONE.with(Bound::Subscriptions, 2))];
        let rules = Rules::new(FeatureSet(3), Bounds::NONE.with(Bound::Payload, 4), roles).unwrap();
        let none = |count: usize| [0xff; 4].repeat(count);
        let u64_of = |number: u8| [number, 0, 0, 0, 0, 0, 0, 0].to_vec();
        let packed =
            [u64_of(3), none(5), vec![4, 0, 0, 0, 1, 1, b'a', 1], u64_of(1), vec![2, 0, 0, 0], none(5)];
        assert_eq!(rules.pack(), packed.concat());
        assert_eq!(Rules::default().pack(), b"");
    }

    fn bounds() -> impl Strategy<Value = Bounds> {
        prop::array::uniform6(prop_oneof![Just(u32::MAX), any::<u32>()]).prop_map(Bounds)
    }

    fn rules() -> impl Strategy<Value = Rules> {
        let off = prop::option::of(any::<u64>().prop_map(FeatureSet));
        let role =
            ("[a-c]{1,3}", off, bounds()).prop_map(|(name, off, bounds)| RoleRules { name, off, bounds });
        let roles = prop::collection::btree_map("[a-c]{1,3}", role, 0..5);
        (any::<u64>(), bounds(), roles).prop_map(|(off, bounds, roles)| {
            let roles = roles.into_iter().map(|(name, role)| RoleRules { name, ..role }).collect();
            Rules::new(FeatureSet(off), bounds, roles).expect("few roles, each once")
        })
    }

    proptest! {
        #[test]
        fn rules_read_back(rules in rules()) {
            prop_assert_eq!(Rules::unpack(&rules.pack()), Ok(rules));
        }

        #[test]
        fn rules_have_one_form(rules in rules(), at in any::<prop::sample::Index>(), byte in any::<u8>(), cut in 0usize..4) {
            let mut bytes = rules.pack();
            if !bytes.is_empty() {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            bytes.truncate(bytes.len().saturating_sub(cut));
            if let Ok(rules) = Rules::unpack(&bytes) {
                prop_assert_eq!(rules.pack(), bytes);
            }
        }
    }
}
