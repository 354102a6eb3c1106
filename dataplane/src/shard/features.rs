//! What a client announced in HELLO.

use common::features::{Feature, FeatureSet};
use common::wire::{Dict, Value};

/// Announced features that change what the router does.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(super) struct Features(u16);

impl Features {
    pub const CALLER_PROGRESSIVE_INVOCATIONS: Self = Self(1);
    pub const CALLEE_PROGRESSIVE_RESULTS: Self = Self(1 << 1);
    pub const CALLEE_PROGRESSIVE_INVOCATIONS: Self = Self(1 << 2);
    pub const CALLEE_CANCELING: Self = Self(1 << 3);
    pub const CALLEE_TIMEOUT: Self = Self(1 << 4);
    pub const CALLEE_REVOCATION: Self = Self(1 << 5);
    pub const SUBSCRIBER_REVOCATION: Self = Self(1 << 6);
    pub const PASSTHRU: Self = Self(1 << 7);
    pub const CALLEE_REROUTE: Self = Self(1 << 8);
    pub const CALLEE_TRUSTLEVELS: Self = Self(1 << 9);
    pub const SUBSCRIBER_TRUST: Self = Self(1 << 10);

    /// Those of `HELLO.Details.roles`; what is not a boolean `true` counts as not announced.
    pub fn announced(details: &Dict<'_>) -> Self {
        let Some(Value::Dict(roles)) = details.get("roles") else { return Self::default() };
        let mut all = Self::default();
        for (role, value) in roles.iter() {
            let Value::Dict(role_details) = value else { continue };
            let Some(Value::Dict(features)) = role_details.get("features") else { continue };
            for (name, _) in features.iter().filter(|(_, value)| value.as_bool() == Some(true)) {
                all.0 |= Self::of(&role, &name).0;
            }
        }
        all
    }

    fn of(role: &str, feature: &str) -> Self {
        match (role, feature) {
            (_, "payload_passthru_mode") => Self::PASSTHRU,
            ("caller", "progressive_call_invocations") => Self::CALLER_PROGRESSIVE_INVOCATIONS,
            ("callee", "progressive_call_results") => Self::CALLEE_PROGRESSIVE_RESULTS,
            ("callee", "progressive_call_invocations") => Self::CALLEE_PROGRESSIVE_INVOCATIONS,
            // The chapter on progressive invocations spells it with two l.
            ("callee", "call_canceling" | "call_cancelling") => Self::CALLEE_CANCELING,
            ("callee", "call_timeout") => Self::CALLEE_TIMEOUT,
            ("callee", "registration_revocation") => Self::CALLEE_REVOCATION,
            ("callee", "call_reroute") => Self::CALLEE_REROUTE,
            ("callee", "call_trustlevels") => Self::CALLEE_TRUSTLEVELS,
            ("subscriber", "publication_trustlevels") => Self::SUBSCRIBER_TRUST,
            ("subscriber", "subscription_revocation") => Self::SUBSCRIBER_REVOCATION,
            _ => Self::default(),
        }
    }

    /// What is left when some are switched off.
    pub fn without(self, off: FeatureSet) -> Self {
        let gone = [
            (Feature::ProgressiveCallInvocations, Self::CALLER_PROGRESSIVE_INVOCATIONS),
            (Feature::ProgressiveCallInvocations, Self::CALLEE_PROGRESSIVE_INVOCATIONS),
            (Feature::ProgressiveCallResults, Self::CALLEE_PROGRESSIVE_RESULTS),
            (Feature::CallCanceling, Self::CALLEE_CANCELING),
            (Feature::CallTimeout, Self::CALLEE_TIMEOUT),
            (Feature::RegistrationRevocation, Self::CALLEE_REVOCATION),
            (Feature::SubscriptionRevocation, Self::SUBSCRIBER_REVOCATION),
            (Feature::PayloadPassthruMode, Self::PASSTHRU),
            (Feature::CallReroute, Self::CALLEE_REROUTE),
            (Feature::CallTrustlevels, Self::CALLEE_TRUSTLEVELS),
            (Feature::PublicationTrustlevels, Self::SUBSCRIBER_TRUST),
        ];
        let gone = gone.into_iter().filter(|(feature, _)| off.has(*feature));
        Self(gone.fold(self.0, |left, (_, gone)| left & !gone.0))
    }

    #[inline]
    pub const fn has(self, feature: Self) -> bool {
        self.0 & feature.0 == feature.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use common::wire::{Message, Serializer, decode};

    fn announced(roles: &str) -> Features {
        let hello = format!("[1, \"realm1\", {{\"roles\": {roles}}}]");
        match decode(Serializer::Json, hello.as_bytes()).expect("a message") {
            Message::Hello { details, .. } => Features::announced(&details),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn only_what_is_announced_as_true_counts() {
        let some = announced(
            r#"{"callee": {"features": {"call_canceling": true, "call_timeout": 1, "unknown": true}}, "caller": {}}"#,
        );
        assert_eq!(some, Features::CALLEE_CANCELING);
        assert!(!some.has(Features::CALLEE_TIMEOUT));
        assert_eq!(announced(r#"{"callee": {"features": []}, "caller": null}"#), Features::default());
    }
}
