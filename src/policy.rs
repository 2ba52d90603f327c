//! Decides whether a device may have a certificate, from its row in the device table and the
//! reissue policy of its enrollment. Provisioning, the console and the command line use these
//! decisions. This module performs no I/O.

use crate::{
    guards::Phase,
    psk::{Reissue, Terms},
    store::{
        DeviceRow, DeviceState, UnixSeconds,
        claim::{IOT_ID_IS_TAKEN, NAME_IS_TAKEN},
        filter::{Listed, Seen},
        place::Places,
    },
};

/// Time after which a device asks again if registrations in progress may take the last places of
/// its enrollment, in seconds.
const FILLING_WAIT: u32 = 30;

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
    /// The device has had no certificate yet, and its enrollment opens at `opens`. The device should
    /// ask again after `wait` seconds.
    NotOpen {
        /// Time at which the enrollment opens.
        opens: UnixSeconds,
        /// Seconds until the next request.
        wait: u32,
    },
    /// The device has had no certificate yet, and its enrollment closed at this time.
    Closed(UnixSeconds),
    /// The device has no certificate, and its enrollment is full: this many other devices have one,
    /// which is the maximum.
    Full(u64),
    /// The device has no certificate, and registrations in progress take the last places of its
    /// enrollment. One of them may fail, so the device should ask again after `wait` seconds.
    Filling {
        /// Seconds until the next request.
        wait: u32,
    },
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

/// Returns the decision about a device whose enrollment has these terms. `taken` has the places of
/// the enrollment that other devices have taken.
pub fn verdict(row: &DeviceRow, terms: Terms, taken: Places, now: UnixSeconds) -> Verdict<'_> {
    verdict_of(&row.seen(), terms, taken, now)
}

fn verdict_of<'r>(row: &Seen<'r>, terms: Terms, taken: Places, now: UnixSeconds) -> Verdict<'r> {
    if row.state == DeviceState::Disabled {
        return Verdict::Refuse(Reason::Disabled);
    }
    match row.first_issued {
        Some(first) if !may_have_again(terms.reissue, first, now) => {
            return Verdict::Refuse(Reason::Issued);
        }
        Some(_) => {}
        None => {
            if let Err(reason) = may_have_first(terms, now) {
                return Verdict::Refuse(reason);
            }
        }
    }
    match (row.is_registered, row.refusal) {
        (true, _) => Verdict::HandOut,
        (false, Some(reason)) => Verdict::Refuse(Reason::Refused(refused_by(reason), reason)),
        (false, None) => may_have_place(terms, taken).map_or_else(Verdict::Refuse, |()| Verdict::Register),
    }
}

/// Checks whether a further device of an enrollment with these terms may be registered. The error is
/// the reason why not. `taken` has the places that other devices have taken.
pub fn may_have_place(terms: Terms, taken: Places) -> Result<(), Reason<'static>> {
    match terms.guards.max_devices {
        Some(max) if taken.registered >= max => Err(Reason::Full(max)),
        Some(max) if taken.registered.saturating_add(taken.claimed) >= max => {
            Err(Reason::Filling { wait: FILLING_WAIT })
        }
        _ => Ok(()),
    }
}

/// Checks whether devices of an enrollment with these terms may get a first certificate now. The
/// error is the reason why they may not.
pub fn may_have_first(terms: Terms, now: UnixSeconds) -> Result<(), Reason<'static>> {
    match terms.guards.phase(now) {
        Phase::Open => Ok(()),
        Phase::NotOpen { opens, wait } => Err(Reason::NotOpen { opens, wait }),
        Phase::Closed(closed) => Err(Reason::Closed(closed)),
    }
}

/// Reason why a device of a full enrollment is not registered.
pub const NO_PLACE: &str = "its enrollment is full; raise max_devices, or delete devices";

/// Describes a reason that a guard of the enrollment has caused. Returns `None` for any other
/// reason.
pub fn guard(reason: Reason<'_>) -> Option<String> {
    match reason {
        Reason::Disabled | Reason::Issued | Reason::Refused(..) => None,
        Reason::NotOpen { opens, .. } => Some(format!("its enrollment opens at {}", time(opens))),
        Reason::Closed(closed) => Some(format!(
            "it has had no certificate yet, and its enrollment closed at {}; set a later time for closes",
            time(closed)
        )),
        Reason::Full(max) => Some(format!(
            "{max} devices of its enrollment have a certificate, and max_devices permits no more; raise max_devices, \
             or delete devices"
        )),
        Reason::Filling { .. } => {
            Some("registrations in progress take the last places of its enrollment".into())
        }
    }
}

/// Describes to an operator how the device's next request will be answered. `terms` are those of the
/// device's enrollment and `taken` are its places that other devices have taken; `terms` is `None`
/// if the enrollment is not in the configuration.
pub fn next_request(device: &Listed, terms: Option<Terms>, taken: Places, now: UnixSeconds) -> String {
    let Some(terms) = terms else {
        return "refused: its enrollment is not in the configuration".into();
    };
    match verdict_of(&device.seen(), terms, taken, now) {
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
        Verdict::Refuse(reason @ (Reason::NotOpen { .. } | Reason::Filling { .. })) => {
            format!("asked to retry later: {}", guard(reason).unwrap_or_default())
        }
        Verdict::Refuse(reason @ (Reason::Closed(_) | Reason::Full(_))) => {
            format!("refused: {}", guard(reason).unwrap_or_default())
        }
    }
}

/// Formats a time as RFC 3339, in UTC and to the second.
pub fn time(seconds: UnixSeconds) -> String {
    jiff::Timestamp::from_second(seconds).map_or_else(|_| "an unknown time".into(), |time| time.to_string())
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
    use crate::{device::DeviceId, guards::Guards};

    /// Terms with this reissue policy and without guards.
    fn terms(reissue: Reissue) -> Terms {
        Terms { reissue, guards: Guards::default() }
    }

    fn guarded(guards: Guards) -> Terms {
        Terms { reissue: Reissue::Always, guards }
    }

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
            let described = next_request(&row.listed(false), reissue.map(terms), Places::default(), 200);
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
            assert_eq!(verdict(&issued(), terms(reissue), Places::default(), now), expected);
        }
    }

    #[test]
    fn only_a_first_certificate_depends_on_the_times_of_the_enrollment() {
        let terms = guarded(Guards { opens: Some(100), closes: Some(300), ..Guards::default() });
        let imported = row().with_certificate("SN-1", "a-secret");
        for row in [row(), imported] {
            let at = |now| verdict(&row, terms, Places::default(), now);
            assert_eq!(at(90), Verdict::Refuse(Reason::NotOpen { opens: 100, wait: 10 }));
            assert!(matches!(at(100), Verdict::Register | Verdict::HandOut));
            assert!(matches!(at(299), Verdict::Register | Verdict::HandOut));
            assert_eq!(at(300), Verdict::Refuse(Reason::Closed(300)));
        }
        for now in [0, 200, 400] {
            assert_eq!(verdict(&issued(), terms, Places::default(), now), Verdict::HandOut);
        }
        let disabled = DeviceRow { state: DeviceState::Disabled, ..row() };
        assert_eq!(verdict(&disabled, terms, Places::default(), 0), Verdict::Refuse(Reason::Disabled));
    }

    #[test]
    fn a_full_enrollment_refuses_only_devices_without_a_certificate() {
        let terms = guarded(Guards { max_devices: Some(10), ..Guards::default() });
        let with = |row: &DeviceRow, registered, claimed| match verdict(
            row,
            terms,
            Places { registered, claimed },
            200,
        ) {
            Verdict::Register | Verdict::HandOut => "yes",
            Verdict::Refuse(Reason::Filling { .. }) => "filling",
            Verdict::Refuse(_) => "no",
        };
        for (registered, claimed, answer) in
            [(0, 0, "yes"), (9, 0, "yes"), (8, 1, "yes"), (10, 0, "no"), (11, 5, "no"), (9, 1, "filling")]
        {
            assert_eq!(with(&row(), registered, claimed), answer, "{registered} + {claimed}");
            let registered_before = row().with_certificate("SN-1", "a-secret");
            assert_eq!(with(&registered_before, registered, claimed), "yes");
            assert_eq!(with(&issued(), registered, claimed), "yes");
        }
    }

    #[test]
    fn the_next_request_names_the_guard() {
        let says = |guards, registered, now| {
            let taken = Places { registered, claimed: 1 };
            next_request(&row().listed(false), Some(guarded(guards)), taken, now)
        };
        let (opens, closes) = (Some(1_800_000_000), Some(1_900_000_000));
        let guards = Guards { opens, closes, max_devices: Some(7), ..Guards::default() };
        assert!(says(guards, 0, 0).ends_with("its enrollment opens at 2027-01-15T08:00:00Z"));
        assert!(says(guards, 0, 1_900_000_000).contains("closed at 2030-03-17T17:46:40Z"));
        assert!(says(guards, 7, 1_850_000_000).starts_with("refused: 7 devices of its enrollment"));
        assert!(says(guards, 6, 1_850_000_000).starts_with("asked to retry later: registrations"));
        assert!(says(guards, 5, 1_850_000_000).starts_with("is registered"));
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
        let of = |row: &DeviceRow| match verdict(row, terms(Reissue::Always), Places::default(), 200) {
            Verdict::HandOut => "certificate",
            Verdict::Register => "register",
            Verdict::Refuse(Reason::Disabled) => "disabled",
            Verdict::Refuse(Reason::Issued) => "issued",
            Verdict::Refuse(Reason::Refused(..)) => "refused",
            Verdict::Refuse(
                Reason::NotOpen { .. } | Reason::Closed(_) | Reason::Full(_) | Reason::Filling { .. },
            ) => "guarded",
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
