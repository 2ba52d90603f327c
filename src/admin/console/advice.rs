//! Explains a device's state in plain words, and says what to do. Pure.

use std::time::Duration;

use super::page::Tone;
use crate::{
    policy::{self, Reason, Verdict},
    psk::{EnrollmentOutline, Reissue},
    store::{CloudState, DeviceRow, UnixSeconds},
};

/// The first thing an operator should know about a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Advice {
    pub(super) tone: Tone,
    /// The state, in a few words.
    pub(super) title: &'static str,
    /// The reason, and what to do.
    pub(super) text: String,
}

/// Returns advice about the device's first problem or, if it has none, about its progress.
///
/// `stopped` is the reason why IoT Platform is not called for the device's product at present, or
/// `None` if it is called.
pub(super) fn of(
    row: &DeviceRow,
    enrolled: Option<&EnrollmentOutline>,
    stopped: Option<&str>,
    now: UnixSeconds,
) -> Advice {
    let advice = |tone, title, text: String| Advice { tone, title, text };
    let Some(enrolled) = enrolled else {
        let text = format!(
            "Its enrollment \"{}\" is not in the configuration, so the device cannot sign in. Add that enrollment \
             to the configuration, or import the device into another.",
            row.enrollment
        );
        return advice(Tone::Bad, "Its enrollment is not configured", text);
    };
    let verdict = policy::verdict(row, enrolled.reissue, now);
    if verdict == Verdict::Refuse(Reason::Disabled) {
        let text = "An operator has disabled this device: it gets no certificate, and its requests are answered with \
                    4.03. Enable it to let it have one again.";
        return advice(Tone::Warning, "Disabled here", text.into());
    }
    match row.cloud_state {
        Some(CloudState::Deleted) => {
            let text = "This device was deleted at IoT Platform, so its certificate no longer works. If the device \
                        is still in use, reset it here: its next request registers it again under the same name.";
            return advice(Tone::Bad, "Deleted at IoT Platform", text.into());
        }
        Some(CloudState::Disabled) => {
            let text = "This device was disabled at IoT Platform: it has its certificate but cannot sign in with it. \
                        Enable it in IoT Platform.";
            return advice(Tone::Warning, "Disabled at IoT Platform", text.into());
        }
        None => {}
    }
    match verdict {
        Verdict::Refuse(Reason::RefusedByCloud(refusal)) => {
            let text = format!(
                "IoT Platform refuses this device: {refusal}. Fix the cause at IoT Platform, then reset the device \
                 here: its next request registers it."
            );
            return advice(Tone::Bad, "Refused by IoT Platform", text);
        }
        Verdict::Refuse(Reason::Issued) => {
            let text = "This device has fetched its certificate, and its enrollment's policy does not permit another: \
                        further requests are answered with 4.03. If the device has lost its certificate, reset it.";
            return advice(Tone::Note, "Issued, cannot be issued again", text.into());
        }
        Verdict::Register if let Some(reason) = stopped => {
            let text = format!(
                "This device has no certificate yet, and IoT Platform refuses calls at the moment: {reason}. Fix \
                 the cause; the device then tries again by itself."
            );
            return advice(Tone::Warning, "Waiting for IoT Platform", text);
        }
        // `Disabled` was reported above, before the state at IoT Platform; the other verdicts are
        // no problem.
        Verdict::Refuse(Reason::Disabled) | Verdict::Register | Verdict::HandOut => {}
    }
    if row.first_issued.is_none() {
        let text = if row.certificate.is_some() {
            "Its certificate is ready, but the device has not fetched it. If it should have: is it powered on, can it \
             reach this server, and does it have the right key? The log shows failed handshakes, by identity."
        } else {
            "This device is in the table and has not connected yet; its first request registers it at IoT Platform. \
             If it should have connected: is it powered on, can it reach this server, and does it have the right \
             key? The log shows failed handshakes, by identity."
        };
        return advice(Tone::Note, "Has not fetched its certificate", text.into());
    }
    if row.activated.is_some() {
        let text = "This device has fetched its certificate and has signed in at IoT Platform. There is nothing to do.";
        return advice(Tone::Good, "All is well", text.into());
    }
    let text = "This device has fetched its certificate. It has not been seen signing in at IoT Platform yet. If it \
                does not appear there: can it reach IoT Platform, and has it stored its certificate?";
    advice(Tone::Good, "Has its certificate", text.into())
}

/// Describes how often a device may fetch its certificate.
pub(super) fn reissue(policy: Reissue) -> String {
    match policy {
        Reissue::Always => "any number of times".to_owned(),
        Reissue::Once => "once".to_owned(),
        Reissue::Window(window) => format!("for {} after the first time", span(window)),
    }
}

fn span(time: Duration) -> String {
    let seconds = time.as_secs();
    let (count, unit) = match seconds {
        0..120 => (seconds, "s"),
        120..7200 => (seconds / 60, "min"),
        _ => (seconds / 3600, "h"),
    };
    format!("{count} {unit}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        device::DeviceId,
        psk::{Enrollment, Kind},
        store::DeviceState,
    };

    fn row() -> DeviceRow {
        DeviceRow::imported(DeviceId::parse("SN-1").unwrap(), "plug", "a1")
    }

    fn with_certificate() -> DeviceRow {
        DeviceRow { first_issued: Some(100), ..row().with_certificate("SN-1", "a-secret") }
    }

    #[test]
    fn each_state_of_a_row_has_its_own_advice() {
        let enrolled = |reissue| {
            let (name, product_key) = ("plug".into(), "a1".into());
            Enrollment { name, product_key, kind: Kind::Individual, reissue }.outline()
        };
        let always = enrolled(Reissue::Always);
        let what = |row: &DeviceRow, enrolled: Option<&EnrollmentOutline>, stopped| {
            of(row, enrolled, stopped, 200).title
        };
        let known = Some(&always);
        assert_eq!(what(&row(), None, None), "Its enrollment is not configured");
        assert_eq!(what(&row(), known, None), "Has not fetched its certificate");
        assert_eq!(what(&row(), known, Some("no permission")), "Waiting for IoT Platform");
        assert_eq!(what(&with_certificate(), known, Some("no permission")), "Has its certificate");
        let disabled = DeviceRow { state: DeviceState::Disabled, ..with_certificate() };
        assert_eq!(what(&disabled, known, None), "Disabled here");
        let deleted = DeviceRow { cloud_state: Some(CloudState::Deleted), ..with_certificate() };
        assert_eq!(what(&deleted, known, None), "Deleted at IoT Platform");
        let refused = DeviceRow { refusal: Some("no such product".into()), ..row() };
        assert!(of(&refused, known, None, 200).text.contains("no such product"));
        let activated = DeviceRow { activated: Some(150), ..with_certificate() };
        assert_eq!(what(&activated, known, None), "All is well");
        for (reissue, expected) in [
            (Reissue::Once, "Issued, cannot be issued again"),
            (Reissue::Window(Duration::from_secs(99)), "Issued, cannot be issued again"),
            (Reissue::Window(Duration::from_secs(100)), "Has its certificate"),
        ] {
            assert_eq!(what(&with_certificate(), Some(&enrolled(reissue)), None), expected);
        }
    }
}
