//! The subjects of concerns, each with its severity, its texts, and the page that lists the devices
//! concerned.

use crate::admin::console::page::Tone;

/// Subject of a concern.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::admin::console) enum Subject {
    /// The table could not be read.
    DatabaseUnreadable,
    /// Writes to the database fail.
    DatabaseWrites,
    /// IoT Platform cannot be reached, or does not answer.
    CloudSilent,
    /// A call of IoT Platform has had no answer for long.
    CloudSlow,
    /// IoT Platform refuses calls because of the account.
    CloudAccount,
    /// IoT Platform refuses calls because of a product.
    CloudProduct,
    /// IoT Platform refuses calls because the account makes too many.
    CloudThrottles,
    /// IoT Platform fails in another way.
    CloudFails,
    /// IoT Platform refuses single devices, but not all calls for their product.
    DevicesRefused,
    /// Devices use the key of another enrollment.
    WrongEnrollment,
    /// Devices belong to an enrollment that is not configured.
    Unconfigured,
    /// Devices belong to a target that is not configured.
    TargetUnconfigured,
    /// Devices were deleted at IoT Platform.
    DeletedAtCloud,
    /// The server is shutting down.
    Draining,
    /// Devices that are not in the table ask for certificates.
    Unknown,
    /// Handshakes fail because of a wrong key.
    WrongKey,
    /// A client guesses device IDs.
    Guessing,
    /// Devices ask for another device's certificate.
    NotYours,
    /// Devices ask again after their certificate was issued.
    IssuedAlready,
    /// Devices wait to be admitted.
    HeldAsk,
    /// Devices ask an enrollment that is closed or full.
    ClosedAsk,
    /// Devices ask an enrollment that is not open yet.
    NotOpenAsk,
    /// Requests cannot be understood.
    Malformed,
    /// Handshakes fail because the client stops answering.
    SilentClients,
    /// Handshakes fail for other reasons.
    OtherHandshakes,
    /// The clock of this machine is wrong.
    Clock,
    /// There are devices to register, and no IoT Platform is configured.
    NoCloud,
    /// The servers of the table differ in a way that they should not.
    ServersDiffer,
    /// Secrets are stored in clear text.
    Unsealed,
    /// A rate limit refuses requests.
    TooMany,
    /// Devices wait for their registration.
    Queue,
    /// Devices that were asked to retry later have not asked again.
    NotBack,
    /// Datagrams could not be sent.
    Unsent,
    /// Devices that were disabled here ask for their certificate.
    DisabledAsk,
    /// Devices were disabled at IoT Platform.
    DisabledAtCloud,
}

impl Subject {
    /// Returns the catalogue keys of the subject's title, cause and remedy.
    pub(in crate::admin::console) fn keys(self) -> [&'static str; 3] {
        match self {
            Self::DatabaseUnreadable => {
                ["database-unreadable", "database-unreadable-cause", "database-unreadable-remedy"]
            }
            Self::DatabaseWrites => ["database-writes", "database-writes-cause", "database-writes-remedy"],
            Self::CloudSilent => ["cloud-silent", "cloud-silent-cause", "cloud-silent-remedy"],
            Self::CloudSlow => ["cloud-slow", "cloud-slow-cause", "cloud-slow-remedy"],
            Self::CloudAccount => ["cloud-account", "cloud-account-cause", "cloud-account-remedy"],
            Self::CloudProduct => ["cloud-product", "cloud-product-cause", "cloud-product-remedy"],
            Self::CloudThrottles => ["cloud-throttles", "cloud-throttles-cause", "cloud-throttles-remedy"],
            Self::CloudFails => ["cloud-fails", "cloud-fails-cause", "cloud-fails-remedy"],
            Self::DevicesRefused => ["devices-refused", "devices-refused-cause", "devices-refused-remedy"],
            Self::WrongEnrollment => {
                ["wrong-enrollment", "wrong-enrollment-cause", "wrong-enrollment-remedy"]
            }
            Self::Unconfigured => ["unconfigured", "unconfigured-cause", "unconfigured-remedy"],
            Self::TargetUnconfigured => {
                ["target-unconfigured", "target-unconfigured-cause", "target-unconfigured-remedy"]
            }
            Self::DeletedAtCloud => ["deleted-at-cloud", "deleted-at-cloud-cause", "deleted-at-cloud-remedy"],
            Self::Draining => ["draining", "draining-cause", "draining-remedy"],
            Self::Unknown => ["unknown-devices", "unknown-devices-cause", "unknown-devices-remedy"],
            Self::WrongKey => ["wrong-key", "wrong-key-cause", "wrong-key-remedy"],
            Self::Guessing => ["guessing", "guessing-cause", "guessing-remedy"],
            Self::NotYours => ["not-yours", "not-yours-cause", "not-yours-remedy"],
            Self::IssuedAlready => ["issued-already", "issued-already-cause", "issued-already-remedy"],
            Self::HeldAsk => ["held-ask", "held-ask-cause", "held-ask-remedy"],
            Self::ClosedAsk => ["closed-ask", "closed-ask-cause", "closed-ask-remedy"],
            Self::NotOpenAsk => ["not-open-ask", "not-open-ask-cause", "not-open-ask-remedy"],
            Self::Malformed => ["malformed", "malformed-cause", "malformed-remedy"],
            Self::SilentClients => ["silent-clients", "silent-clients-cause", "silent-clients-remedy"],
            Self::OtherHandshakes => {
                ["other-handshakes", "other-handshakes-cause", "other-handshakes-remedy"]
            }
            Self::Clock => ["clock", "clock-cause", "clock-remedy"],
            Self::NoCloud => ["no-cloud", "no-cloud-cause", "no-cloud-remedy"],
            Self::ServersDiffer => ["servers-differ", "servers-differ-cause", "servers-differ-remedy"],
            Self::Unsealed => ["unsealed", "unsealed-cause", "unsealed-remedy"],
            Self::TooMany => ["too-many", "too-many-cause", "too-many-remedy"],
            Self::Queue => ["queue", "queue-cause", "queue-remedy"],
            Self::NotBack => ["not-back", "not-back-cause", "not-back-remedy"],
            Self::Unsent => ["unsent", "unsent-cause", "unsent-remedy"],
            Self::DisabledAsk => ["disabled-ask", "disabled-ask-cause", "disabled-ask-remedy"],
            Self::DisabledAtCloud => {
                ["disabled-at-cloud", "disabled-at-cloud-cause", "disabled-at-cloud-remedy"]
            }
        }
    }

    pub(super) fn tone(self) -> Tone {
        match self {
            Self::DatabaseUnreadable
            | Self::DatabaseWrites
            | Self::CloudSilent
            | Self::CloudAccount
            | Self::CloudProduct
            | Self::CloudFails
            | Self::DevicesRefused
            | Self::WrongEnrollment
            | Self::Unconfigured
            | Self::TargetUnconfigured
            | Self::DeletedAtCloud => Tone::Bad,
            Self::CloudSlow
            | Self::CloudThrottles
            | Self::Draining
            | Self::Unknown
            | Self::WrongKey
            | Self::Guessing
            | Self::NotYours
            | Self::IssuedAlready
            | Self::HeldAsk
            | Self::ClosedAsk
            | Self::Malformed
            | Self::SilentClients
            | Self::OtherHandshakes
            | Self::Clock
            | Self::NoCloud
            | Self::ServersDiffer
            | Self::Unsealed => Tone::Warning,
            Self::NotOpenAsk
            | Self::TooMany
            | Self::Queue
            | Self::NotBack
            | Self::Unsent
            | Self::DisabledAsk
            | Self::DisabledAtCloud => Tone::Note,
        }
    }

    /// Returns whether the subject is a call to IoT Platform that failed, was throttled, or takes
    /// too long.
    pub(super) fn is_failed_call(self) -> bool {
        matches!(
            self,
            Self::CloudSilent
                | Self::CloudSlow
                | Self::CloudAccount
                | Self::CloudProduct
                | Self::CloudThrottles
                | Self::CloudFails
        )
    }

    /// Returns the page that lists the devices or requests concerned.
    pub(super) fn link(self) -> Option<&'static str> {
        Some(match self {
            Self::DevicesRefused => "/devices?state=refused",
            Self::DeletedAtCloud => "/devices?state=cloud-deleted",
            Self::DisabledAtCloud => "/devices?state=cloud-disabled",
            Self::Unconfigured => "/enrollments",
            Self::WrongEnrollment => "/failures?reason=enrollment&range=day",
            Self::Unknown => "/failures?reason=unknown&range=day",
            Self::NotYours => "/failures?reason=not-yours&range=day",
            Self::IssuedAlready => "/failures?reason=issued&range=day",
            Self::HeldAsk => "/waiting",
            Self::NotOpenAsk => "/failures?reason=not-open&range=day",
            Self::ClosedAsk => "/failures?reason=closed&range=day",
            Self::TooMany | Self::Guessing => "/failures?reason=too-many&range=day",
            Self::DisabledAsk => "/failures?reason=disabled&range=day",
            Self::CloudSilent
            | Self::CloudSlow
            | Self::CloudAccount
            | Self::CloudProduct
            | Self::CloudThrottles
            | Self::CloudFails
            | Self::DatabaseWrites
            | Self::Queue
            | Self::NotBack => "/failures?reason=waiting&range=day",
            Self::WrongKey => "/handshakes?result=wrong-key&range=hour",
            Self::SilentClients => "/handshakes?result=silent&range=hour",
            Self::OtherHandshakes => "/handshakes?result=other&range=hour",
            _ => return None,
        })
    }
}
