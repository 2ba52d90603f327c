//! Decides whether a device may have a certificate, from its row in the device table and the
//! reissue policy of its enrollment. Provisioning, the console and the command line use these
//! decisions. This module performs no I/O.

use crate::{
    psk::Reissue,
    store::{
        DeviceRow, DeviceState, UnixSeconds,
        claim::{IOT_ID_IS_TAKEN, NAME_IS_TAKEN},
        filter::{Listed, Seen},
    },
};

/// Decision about a request for a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict<'r> {
    /// The certificate in the row is handed out.
    HandOut,
    /// The device is registered first, and then gets its certificate.
    Register,
    /// The device gets no certificate.
    Refuse(Reason<'r>),
}

/// Reason why a device gets no certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason<'r> {
    /// The operator has disabled the device.
    Disabled,
    /// The certificate was issued before, and the reissue policy does not allow another issue.
    Issued,
    /// The registration of the device was refused by this party, with this message.
    Refused(By, &'r str),
}

/// Party that refused the registration of a device. The operator must act differently for each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum By {
    /// IoT Platform.
    Cloud,
    /// certdist, because the name exists at IoT Platform and was not registered by this server.
    OwnForName,
    /// certdist, because another device in the table has the same `IotId`.
    OwnForIotId,
}

/// Returns the party that refused a registration with this message.
pub fn refused_by(refusal: &str) -> By {
    if has_code(refusal, NAME_IS_TAKEN) {
        By::OwnForName
    } else if has_code(refusal, IOT_ID_IS_TAKEN) {
        By::OwnForIotId
    } else {
        By::Cloud
    }
}

/// Returns whether a refusal, `CODE: MESSAGE`, has this code.
pub fn has_code(refusal: &str, code: &str) -> bool {
    refusal.strip_prefix(code).is_some_and(|rest| rest.starts_with(':'))
}

/// Returns the decision about a device whose enrollment has this reissue policy.
pub fn verdict(row: &DeviceRow, reissue: Reissue, now: UnixSeconds) -> Verdict<'_> {
    verdict_of(&row.seen(), reissue, now)
}

fn verdict_of<'r>(row: &Seen<'r>, reissue: Reissue, now: UnixSeconds) -> Verdict<'r> {
    if row.state == DeviceState::Disabled {
        return Verdict::Refuse(Reason::Disabled);
    }
    if row.first_issued.is_some_and(|first| !may_have_again(reissue, first, now)) {
        return Verdict::Refuse(Reason::Issued);
    }
    match (row.is_registered, row.refusal) {
        (true, _) => Verdict::HandOut,
        (false, Some(reason)) => Verdict::Refuse(Reason::Refused(refused_by(reason), reason)),
        (false, None) => Verdict::Register,
    }
}

/// Describes to an operator how the device's next request will be answered. `reissue` is `None`
/// if the device's enrollment is not in the configuration.
pub fn next_request(device: &Listed, reissue: Option<Reissue>, now: UnixSeconds) -> String {
    let Some(reissue) = reissue else {
        return "refused: its enrollment is not in the configuration".into();
    };
    match verdict_of(&device.seen(), reissue, now) {
        Verdict::HandOut => "gets its certificate".into(),
        Verdict::Register => "is registered at IoT Platform and gets its certificate".into(),
        Verdict::Refuse(Reason::Disabled) => "refused: the operator has disabled the device".into(),
        Verdict::Refuse(Reason::Issued) => {
            "refused: it has had its certificate, and the reissue policy permits no other; reset it to permit one"
                .into()
        }
        Verdict::Refuse(Reason::Refused(By::Cloud, reason)) => format!(
            "refused: IoT Platform refuses the device ({reason}); fix the cause there, then reset it"
        ),
        Verdict::Refuse(Reason::Refused(By::OwnForName, _)) => format!(
            "refused: its name, {}, exists at IoT Platform, and this server did not register it; compare there \
             whether it is this very device: if so, set existing = \"adopt\" for its enrollment or delete the \
             device there, if not, give one of them another deviceName; then reset it",
            device.name()
        ),
        Verdict::Refuse(Reason::Refused(By::OwnForIotId, reason)) => {
            format!("refused: its IotId is that of another device in the table ({reason}); then reset it")
        }
    }
}

/// Returns whether a certificate that was first issued at `first` may be handed out again
/// now.
pub fn may_have_again(reissue: Reissue, first: UnixSeconds, now: UnixSeconds) -> bool {
    match reissue {
        Reissue::Always => true,
        Reissue::Once => false,
        // If the clock was set back, the difference is negative, and the device is not locked out.
        Reissue::Window(window) => now.saturating_sub(first) <= window.as_secs().cast_signed(),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::device::DeviceId;

    fn row() -> DeviceRow {
        DeviceRow::imported(DeviceId::parse("SN-1").unwrap(), "plug", "a1")
    }

    fn issued() -> DeviceRow {
        DeviceRow { first_issued: Some(100), ..row().with_certificate("SN-1", "a-secret") }
    }

    #[test]
    fn the_next_request_is_described_by_its_verdict() {
        let disabled = DeviceRow { state: DeviceState::Disabled, ..issued() };
        let refused = |reason: &str| DeviceRow { refusal: Some(reason.into()), ..row() };
        for (row, reissue, beginning) in [
            (issued(), Some(Reissue::Always), "gets its certificate"),
            (row(), Some(Reissue::Once), "is registered"),
            (disabled, Some(Reissue::Always), "refused: the operator has disabled"),
            (issued(), Some(Reissue::Once), "refused: it has had its certificate"),
            (refused("odd"), Some(Reissue::Once), "refused: IoT Platform refuses the device (odd)"),
            (
                refused("NameIsTaken: x"),
                Some(Reissue::Once),
                "refused: its name, SN-1, exists at IoT Platform",
            ),
            (refused("IotIdIsTaken: x"), Some(Reissue::Once), "refused: its IotId is that of another device"),
            (refused("NameIsTaken.Sub: x"), Some(Reissue::Once), "refused: IoT Platform refuses the device"),
            (issued(), None, "refused: its enrollment is not in the configuration"),
        ] {
            let described = next_request(&row.listed(false), reissue, 200);
            assert!(described.starts_with(beginning), "{described}");
        }
    }

    #[test]
    fn each_reissue_policy_allows_only_its_own_reissues() {
        let day = Reissue::Window(Duration::from_secs(86_400));
        for (reissue, now, allowed) in [
            (Reissue::Always, i64::MAX, true),
            (Reissue::Once, 100, false),
            (day, 100 + 86_400, true),
            (day, 100 + 86_401, false),
            (day, 50, true),
            (Reissue::Window(Duration::MAX), i64::MAX, false),
        ] {
            assert_eq!(may_have_again(reissue, 100, now), allowed, "{reissue:?} at {now}");
            let expected = if allowed { Verdict::HandOut } else { Verdict::Refuse(Reason::Issued) };
            assert_eq!(verdict(&issued(), reissue, now), expected);
        }
    }

    #[test]
    fn a_code_is_compared_as_a_whole() {
        assert!(has_code("NoPermission: not authorized", "NoPermission"));
        assert!(!has_code("NoPermission.Sub: not authorized", "NoPermission"));
        assert!(!has_code("NoPermission: not authorized", "NoPerm"));
        assert!(!has_code("odd", "odd"));
    }

    #[test]
    fn each_state_of_a_row_has_its_verdict() {
        let disabled = |row| DeviceRow { state: DeviceState::Disabled, ..row };
        let refused = |row| DeviceRow { refusal: Some("no such product".into()), ..row };
        let of = |row: &DeviceRow| match verdict(row, Reissue::Always, 200) {
            Verdict::HandOut => "certificate",
            Verdict::Register => "register",
            Verdict::Refuse(Reason::Disabled) => "disabled",
            Verdict::Refuse(Reason::Issued) => "issued",
            Verdict::Refuse(Reason::Refused(..)) => "refused",
        };
        assert_eq!(of(&row()), "register");
        assert_eq!(of(&issued()), "certificate");
        assert_eq!(of(&refused(row())), "refused");
        // An existing certificate is handed out, even if the cloud once refused the device.
        assert_eq!(of(&refused(issued())), "certificate");
        for row in [disabled(row()), disabled(issued()), disabled(refused(row()))] {
            assert_eq!(of(&row), "disabled");
        }
    }
}
