//! The features that a realm or a role may switch off, by the names that WELCOME announces.

/// A feature. Its number is stored: it never changes, and is never given to another one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Feature {
    CallCanceling = 0,
    CallReroute = 1,
    CallTimeout = 2,
    CallTrustlevels = 3,
    CallerIdentification = 4,
    EventRetention = 5,
    PatternBasedRegistration = 6,
    PatternBasedSubscription = 7,
    PayloadPassthruMode = 8,
    ProgressiveCallInvocations = 9,
    ProgressiveCallResults = 10,
    PublicationTrustlevels = 11,
    PublisherExclusion = 12,
    PublisherIdentification = 13,
    RegistrationMetaApi = 14,
    RegistrationRevocation = 15,
    SessionMetaApi = 16,
    ShardedRegistration = 17,
    SharedRegistration = 18,
    SubscriberBlackwhiteListing = 19,
    SubscriptionMetaApi = 20,
    SubscriptionRevocation = 21,
    TestamentMetaApi = 22,
    /// The procedures of the meta APIs that change other sessions. It is a part of those APIs and not announced by itself.
    MetaApiControl = 23,
    /// Sessions that outlive their connections. WELCOME says of each session whether it is one.
    SessionResumption = 24,
    EventHistory = 25,
    ShardedSubscription = 26,
}

/// Every feature and its name, by ascending name.
pub const FEATURES: [(Feature, &str); 27] = [
    (Feature::CallCanceling, "call_canceling"),
    (Feature::CallReroute, "call_reroute"),
    (Feature::CallTimeout, "call_timeout"),
    (Feature::CallTrustlevels, "call_trustlevels"),
    (Feature::CallerIdentification, "caller_identification"),
    (Feature::EventHistory, "event_history"),
    (Feature::EventRetention, "event_retention"),
    (Feature::MetaApiControl, "meta_api_control"),
    (Feature::PatternBasedRegistration, "pattern_based_registration"),
    (Feature::PatternBasedSubscription, "pattern_based_subscription"),
    (Feature::PayloadPassthruMode, "payload_passthru_mode"),
    (Feature::ProgressiveCallInvocations, "progressive_call_invocations"),
    (Feature::ProgressiveCallResults, "progressive_call_results"),
    (Feature::PublicationTrustlevels, "publication_trustlevels"),
    (Feature::PublisherExclusion, "publisher_exclusion"),
    (Feature::PublisherIdentification, "publisher_identification"),
    (Feature::RegistrationMetaApi, "registration_meta_api"),
    (Feature::RegistrationRevocation, "registration_revocation"),
    (Feature::SessionMetaApi, "session_meta_api"),
    (Feature::SessionResumption, "session_resumption"),
    (Feature::ShardedRegistration, "sharded_registration"),
    (Feature::ShardedSubscription, "sharded_subscription"),
    (Feature::SharedRegistration, "shared_registration"),
    (Feature::SubscriberBlackwhiteListing, "subscriber_blackwhite_listing"),
    (Feature::SubscriptionMetaApi, "subscription_meta_api"),
    (Feature::SubscriptionRevocation, "subscription_revocation"),
    (Feature::TestamentMetaApi, "testament_meta_api"),
];

impl Feature {
    pub fn named(name: &str) -> Option<Self> {
        let at = FEATURES.binary_search_by_key(&name, |(_, known)| known).ok()?;
        Some(FEATURES[at].0)
    }

    pub fn name(self) -> &'static str {
        FEATURES.iter().find(|(feature, _)| *feature == self).map_or("", |(_, name)| name)
    }
}

/// Some features. Numbers that this version has no feature for are kept.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Debug)]
pub struct FeatureSet(pub u64);

impl FeatureSet {
    pub const EMPTY: Self = Self(0);

    pub const fn of(feature: Feature) -> Self {
        Self(1 << feature as u8)
    }

    #[must_use]
    pub const fn with(self, feature: Feature) -> Self {
        self.and(Self::of(feature))
    }

    /// Those of either.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    #[inline]
    pub const fn has(self, feature: Feature) -> bool {
        self.0 & (1 << feature as u8) != 0
    }

    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// True when a feature of this name is among them.
    pub fn has_named(self, name: &str) -> bool {
        Feature::named(name).is_some_and(|feature| self.has(feature))
    }

    /// Those this version knows, by ascending name.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        FEATURES.into_iter().filter(move |(feature, _)| self.has(*feature)).map(|(_, name)| name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_feature_has_a_number_and_a_name_of_its_own() {
        assert!(FEATURES.is_sorted_by(|(_, a), (_, b)| a < b));
        let all = FEATURES.iter().fold(FeatureSet::EMPTY, |all, (feature, _)| all.with(*feature));
        assert_eq!(all.0.count_ones() as usize, FEATURES.len());
        for (feature, name) in FEATURES {
            assert_eq!((Feature::named(name), feature.name()), (Some(feature), name));
            assert!(all.has_named(name));
        }
        assert_eq!(all.names().count(), FEATURES.len());
        assert_eq!(Feature::named("call_cancelling"), None);
    }
}
