//! Errors of Tablestore: the class of each code, and whether a call that failed may be repeated. Both
//! follow the lists that the official SDKs share (docs/tablestore.md). Makes no calls.

use std::time::Duration;

use rand::RngExt as _;

use super::Operation;

/// Code of an [`Error`] if the deadline passed or the connection ended before the answer was there.
pub const NO_ANSWER: &str = "NoAnswer";
/// Code of an [`Error`] if no connection was established, so nothing was sent.
pub const NOT_SENT: &str = "NoConnection";
/// Code of an [`Error`] if the received bytes were not an answer of the service.
pub const NOT_AN_ANSWER: &str = "NotAnAnswer";

/// Pause before the first repetition. It doubles with each further one, up to [`MAX_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(10);
/// Maximum pause before a repetition.
const MAX_PAUSE: Duration = Duration::from_millis(320);
/// Maximum number of attempts of a call, after which its error is returned.
pub const MAX_ATTEMPTS: u32 = 8;

/// Class of an error. A caller decides by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// The service or the network is busy or unavailable. Nothing was changed; try again later.
    Busy,
    /// The condition of a write was not met. Nothing was changed.
    Conflict,
    /// A write may have been carried out or not; only reading tells.
    Unknown,
    /// The table does not exist.
    NoTable,
    /// The table exists already.
    TableExists,
    /// Only the operator can fix the cause: access key, permission, clock, quota, certificate.
    Refused,
    /// The request is not valid. Repeating it cannot help.
    Invalid,
}

/// An operation that failed, or one row of a batch.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{operation}: {code}: {message}{}", reference(request_id))]
pub struct Error {
    /// Class. A caller decides by it.
    pub class: Class,
    /// Operation.
    pub operation: Operation,
    /// Code of the service, or [`NO_ANSWER`], [`NOT_SENT`], [`NOT_AN_ANSWER`], `Credentials`,
    /// `Certificate`, `Request` or `HttpNNN`.
    pub code: String,
    /// The service's message: one line of at most 200 characters, without secrets.
    pub message: String,
    /// ID by which Alibaba Cloud finds the request, if the service has answered.
    pub request_id: Option<String>,
}

fn reference(request_id: &Option<String>) -> String {
    request_id.as_ref().map(|id| format!(" (request {id})")).unwrap_or_default()
}

impl Error {
    /// Returns the error for a caller. A read changes nothing, so its outcome is never unknown.
    pub(super) fn settled(mut self) -> Self {
        if self.class == Class::Unknown && self.operation.is_read() {
            self.class = Class::Busy;
        }
        self
    }

    /// Returns whether the call may be sent again at once: it was not carried out, or it only reads.
    pub(super) fn may_repeat(&self) -> bool {
        match self.class {
            Class::Busy => true,
            Class::Unknown => self.operation.is_read(),
            _ => false,
        }
    }
}

/// Returns the class of a code of the service. `Class::Unknown` means that the call may have been
/// carried out, also for a read.
pub(super) fn classify(status: u16, code: &str, message: &str) -> Class {
    match code {
        "OTSConditionCheckFail" => Class::Conflict,
        // The service did not carry the call out.
        "OTSRowOperationConflict"
        | "OTSNotEnoughCapacityUnit"
        | "OTSCapacityUnitExhausted"
        | "OTSTableNotReady"
        | "OTSPartitionUnavailable"
        | "OTSServerBusy"
        | "OTSStorageServerBusy"
        | "OTSOperationThrottled"
        | "OTSOperationConflict" => Class::Busy,
        // The same code also means that there are too many tables. Then, no repetition helps.
        "OTSQuotaExhausted" if message == "Too frequent table operations." => Class::Busy,
        "OTSInternalServerError" | "OTSTimeout" | "OTSServerUnavailable" | "OTSRequestTimeout" => {
            Class::Unknown
        }
        "OTSObjectNotExist" => Class::NoTable,
        "OTSObjectAlreadyExist" => Class::TableExists,
        "OTSAuthFailed"
        | "OTSNoPermissionAccess"
        | "OTSQuotaExhausted"
        | "OTSTooFrequentReservedThroughputAdjustment" => Class::Refused,
        _ => match status {
            500.. | 408 => Class::Unknown,
            401 | 403 | 407 | 300..=399 => Class::Refused,
            429 => Class::Busy,
            _ => Class::Invalid,
        },
    }
}

/// Returns the pause before a repetition. `attempt` is the number of attempts so far. Half of the
/// pause is random, so that calls that failed together do not return together.
pub(super) fn pause(attempt: u32) -> Duration {
    let doubled = FIRST_PAUSE.saturating_mul(1 << attempt.saturating_sub(1).min(16));
    doubled.min(MAX_PAUSE).mul_f64(rand::rng().random_range(0.5..=1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(class: Class, operation: Operation) -> Error {
        Error { class, operation, code: "OTSServerBusy".into(), message: "Busy.".into(), request_id: None }
    }

    /// Checks the table of docs/tablestore.md.
    #[test]
    fn each_code_has_the_class_that_the_sdks_give_it() {
        for (status, code, class) in [
            (400, "OTSParameterInvalid", Class::Invalid),
            (400, "OTSInvalidPK", Class::Invalid),
            (400, "OTSOutOfRowSizeLimit", Class::Invalid),
            (400, "OTSOutOfColumnCountLimit", Class::Invalid),
            (403, "OTSAuthFailed", Class::Refused),
            (403, "OTSNoPermissionAccess", Class::Refused),
            (403, "OTSConditionCheckFail", Class::Conflict),
            (403, "OTSNotEnoughCapacityUnit", Class::Busy),
            (403, "OTSCapacityUnitExhausted", Class::Busy),
            (403, "OTSTooFrequentReservedThroughputAdjustment", Class::Refused),
            (404, "OTSObjectNotExist", Class::NoTable),
            (404, "OTSTableNotReady", Class::Busy),
            (405, "OTSMethodNotAllowed", Class::Invalid),
            (408, "OTSRequestTimeout", Class::Unknown),
            (413, "OTSRequestBodyTooLarge", Class::Invalid),
            (409, "OTSRowOperationConflict", Class::Busy),
            (409, "OTSObjectAlreadyExist", Class::TableExists),
            (500, "OTSInternalServerError", Class::Unknown),
            (503, "OTSServerBusy", Class::Busy),
            (503, "OTSPartitionUnavailable", Class::Busy),
            (503, "OTSTimeout", Class::Unknown),
            (503, "OTSServerUnavailable", Class::Unknown),
            (403, "OTSOperationThrottled", Class::Busy),
            (502, "OTSAnotherCode", Class::Unknown),
            (403, "OTSAnotherCode", Class::Refused),
            (400, "OTSAnotherCode", Class::Invalid),
            (301, "OTSAnotherCode", Class::Refused),
        ] {
            assert_eq!(classify(status, code, ""), class, "{status} {code}");
        }
        assert_eq!(classify(403, "OTSQuotaExhausted", "Too frequent table operations."), Class::Busy);
        assert_eq!(classify(403, "OTSQuotaExhausted", "Number of tables exceeded."), Class::Refused);
    }

    #[test]
    fn a_write_that_may_have_been_carried_out_is_never_repeated() {
        for operation in Operation::ALL {
            assert!(error(Class::Busy, operation).may_repeat(), "{operation}");
            let unknown = error(Class::Unknown, operation);
            assert_eq!(unknown.may_repeat(), operation.is_read(), "{operation}");
            let left = if operation.is_read() { Class::Busy } else { Class::Unknown };
            assert_eq!(unknown.settled().class, left, "{operation}");
            for class in [Class::Conflict, Class::NoTable, Class::TableExists, Class::Refused, Class::Invalid]
            {
                assert!(!error(class, operation).may_repeat(), "{operation} {class:?}");
            }
        }
    }

    #[test]
    fn pauses_double_to_a_maximum_and_half_of_each_is_random() {
        for (attempt, whole) in [(1, 10), (2, 20), (3, 40), (6, 320), (7, 320), (u32::MAX, 320)] {
            let pauses: Vec<_> = (0..100).map(|_| pause(attempt)).collect();
            let whole = Duration::from_millis(whole);
            assert!(pauses.iter().all(|pause| *pause >= whole / 2 && *pause <= whole), "{attempt}");
            assert!(pauses.iter().any(|pause| *pause != pauses[0]), "{attempt}");
        }
    }

    #[test]
    fn an_error_names_the_operation_the_code_and_the_request() {
        let mut error = error(Class::Busy, Operation::PutRow);
        assert_eq!(error.to_string(), "PutRow: OTSServerBusy: Busy.");
        error.request_id = Some("0005".into());
        assert_eq!(error.to_string(), "PutRow: OTSServerBusy: Busy. (request 0005)");
    }
}
