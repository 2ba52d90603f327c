//! What a row says about a device, in plain words, and what to do. Pure.

use std::time::Duration;

use super::page::Tone;
use crate::{
    admin::Enrolled,
    policy::{self, Reason, Verdict},
    psk::Reissue,
    store::{CloudState, DeviceRow, UnixSeconds},
};

/// What an operator should know first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Advice {
    pub(super) tone: Tone,
    /// What is the case, in a few words.
    pub(super) what: &'static str,
    /// Why, and what to do.
    pub(super) text: String,
}

/// The first thing that keeps a device from its certificate, or that it has it.
pub(super) fn of(row: &DeviceRow, enrolled: Option<&Enrolled>, breakers: usize, now: UnixSeconds) -> Advice {
    let advice = |tone, what, text: String| Advice { tone, what, text };
    let Some(enrolled) = enrolled else {
        let text = format!(
            "The table has it in the enrollment \"{}\", which the configuration does not have. No key opens it: \
             configure that enrollment, or import the device into another.",
            row.enrollment
        );
        return advice(Tone::Bad, "Its enrollment is not configured", text);
    };
    let verdict = policy::verdict(row, enrolled.reissue, now);
    if verdict == Verdict::Refuse(Reason::Disabled) {
        let text = "An operator has disabled it: it is answered 4.03, and gets no certificate. Enable it to let \
                    it have one again.";
        return advice(Tone::Warning, "Disabled here", text.into());
    }
    match row.cloud_state {
        Some(CloudState::Deleted) => {
            let text = "Somebody has deleted it at IoT Platform, so its certificate is good for nothing. If it is \
                        to work again, reset it: at its next request it is registered anew, under the same name.";
            return advice(Tone::Bad, "Deleted at IoT Platform", text.into());
        }
        Some(CloudState::Disabled) => {
            let text = "Somebody has disabled it at IoT Platform: it has its certificate, and cannot sign in with \
                        it. Enable it there.";
            return advice(Tone::Warning, "Disabled at IoT Platform", text.into());
        }
        None => {}
    }
    match verdict {
        Verdict::Refuse(Reason::RefusedByCloud(refusal)) => {
            let text = format!(
                "IoT Platform refuses this device: {refusal}. Mend that there, then reset the device: it is \
                 registered at its next request."
            );
            return advice(Tone::Bad, "Refused by IoT Platform", text);
        }
        Verdict::Refuse(Reason::Issued) => {
            let text = "It has fetched its certificate, and may not fetch it again under its enrollment's policy: \
                        then it is answered 4.03. If it has lost it, reset the device.";
            return advice(Tone::Note, "Issued, and not to be issued again", text.into());
        }
        Verdict::Register if breakers > 0 => {
            let text = "It has no certificate yet, and IoT Platform refuses calls at the moment: see the overview \
                        and the log for its reason. The device comes back by itself.";
            return advice(Tone::Warning, "Waits for IoT Platform", text.into());
        }
        // Said above, before what the cloud has to say.
        Verdict::Refuse(Reason::Disabled) | Verdict::Register | Verdict::HandOut => {}
    }
    if row.first_issued.is_none() {
        let text = if row.certificate.is_some() {
            "Its certificate is here, and it has not come for it. If it should have: is it powered on, does it \
             reach this server, and has it the right key? The log tells failed handshakes, by identity."
        } else {
            "It is in the table and has not come yet; it is registered at IoT Platform when it does. If it should \
             have come: is it powered on, does it reach this server, and has it the right key? The log tells \
             failed handshakes, by identity."
        };
        return advice(Tone::Note, "Has not fetched its certificate", text.into());
    }
    if row.activated.is_some() {
        let text =
            "It has fetched its certificate and has signed in at IoT Platform. There is nothing to do.";
        return advice(Tone::Good, "All is well", text.into());
    }
    let text = "It has fetched its certificate. That it has signed in at IoT Platform is not known here yet. If it \
                does not show up there: does it reach IoT Platform, and has it stored what it was given?";
    advice(Tone::Good, "Has its certificate", text.into())
}

/// A policy in words.
pub(super) fn reissue(policy: Reissue) -> String {
    match policy {
        Reissue::Always => "as often as it asks".to_owned(),
        Reissue::Once => "a single time".to_owned(),
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
        device::{Certificate, DeviceId, Secret},
        store::DeviceState,
    };

    fn row() -> DeviceRow {
        DeviceRow::imported(DeviceId::parse("SN-1").unwrap(), "plug", "a1")
    }

    fn with_certificate() -> DeviceRow {
        let certificate = Certificate {
            product_key: "a1".into(),
            device_name: "SN-1".into(),
            device_secret: Secret::new("a-secret".into()),
        };
        DeviceRow { certificate: Some(certificate), first_issued: Some(100), ..row() }
    }

    #[test]
    fn each_state_of_a_row_has_its_own_advice() {
        let enrolled =
            |reissue| Enrolled { name: "plug".into(), product_key: "a1".into(), kind: "shared", reissue };
        let always = enrolled(Reissue::Always);
        let what =
            |row: &DeviceRow, enrolled: Option<&Enrolled>, breakers| of(row, enrolled, breakers, 200).what;
        let known = Some(&always);
        assert_eq!(what(&row(), None, 0), "Its enrollment is not configured");
        assert_eq!(what(&row(), known, 0), "Has not fetched its certificate");
        assert_eq!(what(&row(), known, 1), "Waits for IoT Platform");
        assert_eq!(what(&with_certificate(), known, 1), "Has its certificate");
        let disabled = DeviceRow { state: DeviceState::Disabled, ..with_certificate() };
        assert_eq!(what(&disabled, known, 0), "Disabled here");
        let deleted = DeviceRow { cloud_state: Some(CloudState::Deleted), ..with_certificate() };
        assert_eq!(what(&deleted, known, 0), "Deleted at IoT Platform");
        let refused = DeviceRow { refusal: Some("no such product".into()), ..row() };
        assert!(of(&refused, known, 0, 200).text.contains("no such product"));
        let activated = DeviceRow { activated: Some(150), ..with_certificate() };
        assert_eq!(what(&activated, known, 0), "All is well");
        for (reissue, expected) in [
            (Reissue::Once, "Issued, and not to be issued again"),
            (Reissue::Window(Duration::from_secs(99)), "Issued, and not to be issued again"),
            (Reissue::Window(Duration::from_secs(100)), "Has its certificate"),
        ] {
            assert_eq!(what(&with_certificate(), Some(&enrolled(reissue)), 0), expected);
        }
    }
}
