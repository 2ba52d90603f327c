//! Explains from a device's history why it is in its state, and says what to do. Pure.

use std::{borrow::Cow, time::Duration};

use maud::{Markup, html};

use super::{
    failures,
    handshakes::{self, Failed},
    history,
    language::Texts,
    page::{Tone, moment},
};
use crate::{
    admin::jobs::Action,
    policy::{self, By, Reason, Verdict},
    psk::{EnrollmentOutline, Reissue},
    resource::failures::{Failure, Reason as Unserved},
    store::{
        CloudState, DeviceRow, UnixSeconds,
        audit::{AuditEntry, AuditEvent},
        claim::{ClaimView, NAME_IS_TAKEN},
        place::Places,
    },
};

/// Facts about a device, from the table, the audit log and the registrar.
pub(super) struct Known<'k> {
    pub(super) row: &'k DeviceRow,
    /// The device's enrollment in the configuration.
    pub(super) enrolled: Option<&'k EnrollmentOutline>,
    /// Reason why calls for the device's product are stopped at present; `None` if they are not
    /// stopped.
    pub(super) stopped: Option<&'k str>,
    /// Name of the device's target if that target is not configured; otherwise `None`.
    pub(super) lost_target: Option<&'k str>,
    /// Claim on the device's registration.
    pub(super) claim: Option<&'k ClaimView>,
    /// The device's entries in the audit log, newest first.
    pub(super) history: &'k [AuditEntry],
    /// The device's last request that was not served, if the server remembers one.
    pub(super) failure: Option<&'k Failure>,
    /// The last failed handshake of a client that claimed to be the device, if the server remembers
    /// one.
    pub(super) handshake: Option<&'k Failed>,
    /// Places of the device's enrollment that other devices have taken, if their number is limited.
    pub(super) taken: Places,
    pub(super) now: UnixSeconds,
}

/// The most important thing for an operator to know about a device.
pub(super) struct Advice {
    pub(super) tone: Tone,
    /// Catalogue key of the title, which names the state in a few words.
    pub(super) title: &'static str,
    /// The reason for the state, and what to do.
    pub(super) text: Markup,
    /// Action that helps.
    pub(super) action: Option<Action>,
}

/// Returns the newest answer to a device, other than one that asked it to retry later.
pub(super) fn last_answer(history: &[AuditEntry]) -> Option<&AuditEntry> {
    history
        .iter()
        .find(|entry| matches!(entry.event, AuditEvent::Issued | AuditEvent::Reissued | AuditEvent::Refused))
}

impl Known<'_> {
    /// Returns the device's last request, if that request was refused and no one has changed the
    /// device since.
    fn refused_last(&self) -> Option<&AuditEntry> {
        let is_change = |entry: &AuditEntry| {
            matches!(
                entry.event,
                AuditEvent::Enabled | AuditEvent::Disabled | AuditEvent::Reset | AuditEvent::Registered
            )
        };
        let newest = self.history.iter().find(|entry| {
            is_change(entry)
                || matches!(entry.event, AuditEvent::Issued | AuditEvent::Reissued | AuditEvent::Refused)
        })?;
        (newest.event == AuditEvent::Refused).then_some(newest)
    }

    /// Returns the last request of the device if the answer asked it to retry later, and the device
    /// has had no other answer since.
    fn put_off(&self) -> Option<&Failure> {
        let is_later = |reason| matches!(reason, Unserved::Later | Unserved::TimedOut | Unserved::TooMany);
        let answered = last_answer(self.history).map_or(i64::MIN, |entry| entry.at);
        self.failure.filter(|failure| is_later(failure.reason) && failure.last > answered)
    }

    /// Returns the last failed handshake of a client that claimed to be the device, unless the
    /// device has had an answer since.
    fn failed_handshake(&self) -> Option<&Failed> {
        let answered = last_answer(self.history).map_or(i64::MIN, |entry| entry.at);
        self.handshake.filter(|failed| failed.counted.last > answered)
    }

    /// Returns advice about the most important problem of the device or, if it has none, about its
    /// progress.
    pub(super) fn advice(&self, t: Texts) -> Advice {
        let advice = |tone, title, text: Markup| Advice { tone, title, text, action: None };
        let with = |action, advice: Advice| Advice { action: Some(action), ..advice };
        let say = |key: &'static str| html! { (t.say(key)) };
        let Self { row, .. } = self;
        let Some(enrolled) = self.enrolled else {
            let text = t.rich("advice-not-configured-text", [("enrollment", (&row.enrollment).into())]);
            return advice(Tone::Bad, "advice-not-configured", text);
        };
        let verdict = policy::verdict(row, enrolled.terms(), self.taken, self.now);
        if verdict == Verdict::Refuse(Reason::Disabled) {
            let text = html! {
                (t.say("advice-disabled-text"))
                @if row.certificate.is_some() && row.first_issued.is_some() { " " strong { (t.say("advice-disabled-issued")) } }
            };
            return with(Action::Enable, advice(Tone::Warning, "advice-disabled", text));
        }
        match row.cloud_state {
            Some(CloudState::Deleted) => {
                let text = say("advice-cloud-deleted-text");
                return with(Action::Reset, advice(Tone::Bad, "advice-cloud-deleted", text));
            }
            Some(CloudState::Disabled) => {
                return advice(Tone::Warning, "advice-cloud-disabled", say("advice-cloud-disabled-text"));
            }
            None => {}
        }
        let refused = self.refused_last();
        if let Some(entry) = refused
            && let Some(other) = entry.enrollment.as_ref().filter(|other| **other != row.enrollment)
        {
            let values = [
                ("time", moment(entry.at).into()),
                ("other", other.into()),
                ("own", (&row.enrollment).into()),
            ];
            let text = html! {
                (t.rich("advice-other-key-text", values)) " "
                a href="/import" { (t.say("absent-import")) }
            };
            return advice(Tone::Bad, "advice-other-key", text);
        }
        match verdict {
            Verdict::Refuse(Reason::Refused(by, refusal)) => {
                let (title, text) = match by {
                    By::Cloud => {
                        ("advice-refused", t.rich("advice-refused-text", [("reason", refusal.into())]))
                    }
                    By::OwnForName => {
                        let name = row.name();
                        ("advice-name-taken", t.rich("advice-name-taken-text", [("name", (&name).into())]))
                    }
                    By::OwnForIotId => {
                        let text = t.rich("advice-iot-id-taken-text", [("reason", refusal.into())]);
                        ("advice-iot-id-taken", text)
                    }
                };
                return with(Action::Reset, advice(Tone::Bad, title, text));
            }
            Verdict::Refuse(Reason::Issued) => return self.issued(t, enrolled.reissue, refused),
            Verdict::Refuse(Reason::NotOpen { opens, .. }) => {
                let text = t.rich("advice-not-open-text", [("time", moment(opens).into())]);
                return advice(Tone::Note, "advice-not-open", text);
            }
            Verdict::Refuse(Reason::Closed(closed)) => {
                let text = t.rich("advice-closed-text", [("time", moment(closed).into())]);
                return advice(Tone::Warning, "advice-closed", text);
            }
            Verdict::Refuse(Reason::Full(max)) => {
                let text = t.rich("advice-full-text", [("number", max.into())]);
                return advice(Tone::Warning, "advice-full", text);
            }
            Verdict::Refuse(Reason::Filling { .. }) => {
                return advice(Tone::Note, "advice-filling", say("advice-filling-text"));
            }
            Verdict::Register if let Some(target) = self.lost_target => {
                let text = t.rich("advice-no-target-text", [("target", target.into())]);
                return advice(Tone::Bad, "advice-no-target", text);
            }
            Verdict::Register if let Some(reason) = self.stopped => {
                // The reason often ends with a full stop, and so does the sentence into which it is
                // inserted.
                let reason = reason.trim_end_matches('.');
                let overview = html! { a href="/" { (t.say("nav-overview")) } };
                let values = [("reason", reason.into()), ("overview", overview.into())];
                return advice(Tone::Bad, "advice-stopped", t.rich("advice-stopped-text", values));
            }
            // If the device was asked to retry later, advice about that answer is more useful than
            // the fact that a registration has begun.
            Verdict::Register if let Some(claim) = self.claim.filter(|_| self.put_off().is_none()) => {
                let overview = html! { a href="/" { (t.say("nav-overview")) } };
                let values = [("time", moment(claim.since).into()), ("overview", overview.into())];
                let (title, text) = match claim.owner {
                    Some(_) => ("advice-registering", t.rich("advice-registering-text", values)),
                    None => ("advice-left", t.rich("advice-left-text", values)),
                };
                return advice(Tone::Note, title, text);
            }
            // Advice about `Disabled` was returned above, before the state at IoT Platform was
            // considered. The other verdicts are no problem.
            Verdict::Refuse(Reason::Disabled) | Verdict::Register | Verdict::HandOut => {}
        }
        if let Some(failure) = self.put_off() {
            let answer = failures::sentence(t, failure.reason);
            let values = [("time", moment(failure.last).into()), ("answer", (&answer).into())];
            return advice(Tone::Warning, "advice-later", t.rich("advice-later-text", values));
        }
        if let Some(entry) = refused {
            let reason = history::detail(t, entry.event, entry.detail.as_deref().unwrap_or("–"));
            let values = [("time", moment(entry.at).into()), ("reason", (&*reason).into())];
            return advice(Tone::Warning, "advice-last-refused", t.rich("advice-last-refused-text", values));
        }
        if row.first_issued.is_none() {
            if let Some(failed) = self.failed_handshake() {
                let (reason, address) =
                    (handshakes::sentence(t, failed.reason), failed.counted.value.to_string());
                let values = [
                    ("time", moment(failed.counted.last).into()),
                    ("address", (&address).into()),
                    ("reason", reason.into()),
                    ("enrollment", (&row.enrollment).into()),
                ];
                return advice(Tone::Warning, "advice-handshake", t.rich("advice-handshake-text", values));
            }
            if let Some(entry) = last_answer(self.history) {
                let text = t.rich("advice-came-text", [("time", moment(entry.at).into())]);
                return advice(Tone::Note, "advice-came", text);
            }
            let link = html! { a href="/handshakes" { (t.say("handshakes-failed")) } };
            let text = match row.certificate {
                Some(_) => t.rich("advice-ready-text", [("handshakes", link.into())]),
                None => t.rich("advice-new-text", [("handshakes", link.into())]),
            };
            return advice(Tone::Note, "advice-not-come", text);
        }
        if row.activated.is_some() {
            return advice(Tone::Good, "advice-well", say("advice-well-text"));
        }
        let text = html! {
            (t.say("advice-has-it-text"))
            @if let Some(end) = window_end(row, enrolled.reissue) { " " (t.rich("advice-window-open", [("time", moment(end).into())])) }
        };
        advice(Tone::Good, "advice-has-it", text)
    }

    /// Returns advice about a device to which its certificate may not be issued again.
    fn issued(&self, t: Texts, reissue: Reissue, refused: Option<&AuditEntry>) -> Advice {
        let (tone, title) = match refused {
            Some(_) => (Tone::Warning, "advice-asks-again"),
            None if self.row.activated.is_some() => (Tone::Good, "advice-well"),
            None => (Tone::Note, "advice-issued"),
        };
        let text = html! {
            @if let Some(entry) = refused { (t.rich("advice-asks-again-text", [("time", moment(entry.at).into())])) " " }
            @if let Some(end) = window_end(self.row, reissue) { (t.rich("advice-window-over", [("time", moment(end).into())])) }
            @else { (t.say("advice-once")) }
            " " (t.say("advice-issued-text"))
        };
        Advice { tone, title, text, action: refused.map(|_| Action::Reset) }
    }
}

/// Returns the reason of a refusal in the visitor's language if it is certdist's own. A reason of
/// IoT Platform stays as it is.
pub(super) fn reason<'r>(t: Texts, refusal: &'r str) -> Cow<'r, str> {
    match policy::refused_by(refusal) {
        By::OwnForName => format!("{NAME_IS_TAKEN}: {}", t.say("refusal-name-taken")).into(),
        By::OwnForIotId | By::Cloud => refusal.into(),
    }
}

/// Returns the time until which a certificate may be issued to its device again.
fn window_end(row: &DeviceRow, reissue: Reissue) -> Option<UnixSeconds> {
    match reissue {
        Reissue::Window(window) => {
            Some(row.first_issued?.saturating_add(i64::try_from(window.as_secs()).unwrap_or(i64::MAX)))
        }
        Reissue::Always | Reissue::Once => None,
    }
}

/// Describes how often a device may fetch its certificate.
pub(super) fn reissue(t: Texts, policy: Reissue) -> String {
    match policy {
        Reissue::Always => t.say("reissue-always"),
        Reissue::Once => t.say("reissue-once"),
        Reissue::Window(window) => t.with("reissue-window", [("span", (&span(window)).into())]),
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
        admin::console::language::Language,
        device::DeviceId,
        dtls,
        guards::Guards,
        psk::{Enrollment, Kind},
        recent::Counted,
        server::failed_handshakes::Claimed,
        store::{DeviceState, audit::Asker},
    };

    fn row() -> DeviceRow {
        DeviceRow::imported(DeviceId::parse("SN-1").unwrap(), "plug", "a1")
    }

    fn with_certificate() -> DeviceRow {
        DeviceRow { first_issued: Some(100), ..row().with_certificate("SN-1", "a-secret") }
    }

    fn enrolled(reissue: Reissue, guards: Guards) -> EnrollmentOutline {
        let (name, product_key) = ("plug".into(), "a1".into());
        Enrollment { name, product_key, kind: Kind::Individual, reissue, next: None, guards }.outline()
    }

    fn answer(event: AuditEvent, at: UnixSeconds, enrollment: &str, detail: &str) -> AuditEntry {
        let asker =
            Asker { enrollment: enrollment.into(), identity: "one".into(), address: "192.0.2.1".into() };
        asker.entry(event, at, row().id, detail.into())
    }

    struct Case {
        row: DeviceRow,
        reissue: Option<Reissue>,
        guards: Guards,
        taken: Places,
        stopped: Option<&'static str>,
        lost_target: Option<&'static str>,
        claim: Option<ClaimView>,
        history: Vec<AuditEntry>,
        failure: Option<Failure>,
        handshake: Option<Failed>,
    }

    fn case(row: DeviceRow) -> Case {
        Case {
            row,
            reissue: Some(Reissue::Always),
            guards: Guards::default(),
            taken: Places::default(),
            stopped: None,
            lost_target: None,
            claim: None,
            history: Vec::new(),
            failure: None,
            handshake: None,
        }
    }

    impl Case {
        fn advice(&self) -> Advice {
            let enrolled = self.reissue.map(|reissue| enrolled(reissue, self.guards));
            let known = Known {
                row: &self.row,
                enrolled: enrolled.as_ref(),
                stopped: self.stopped,
                lost_target: self.lost_target,
                claim: self.claim.as_ref(),
                history: &self.history,
                failure: self.failure.as_ref(),
                handshake: self.handshake.as_ref(),
                taken: self.taken,
                now: 200,
            };
            known.advice(Texts(Language::English))
        }

        fn is(&self, tone: Tone, title: &str) {
            let advice = self.advice();
            assert_eq!((advice.tone, advice.title), (tone, title), "{}", advice.text.0);
        }

        fn says(&self, words: &str) {
            let text = self.advice().text.into_string();
            assert!(text.contains(words), "{text}");
        }
    }

    #[test]
    fn each_state_of_a_row_has_its_own_advice() {
        Case { reissue: None, ..case(row()) }.is(Tone::Bad, "advice-not-configured");
        case(row()).is(Tone::Note, "advice-not-come");
        let stopped = Case { stopped: Some("no permission."), ..case(row()) };
        stopped.is(Tone::Bad, "advice-stopped");
        stopped.says("<bdi>no permission</bdi>. ");
        Case { stopped: Some("no permission"), ..case(with_certificate()) }.is(Tone::Good, "advice-has-it");
        let lost = |row| Case { lost_target: Some("tokyo"), ..case(row) };
        lost(row()).is(Tone::Bad, "advice-no-target");
        lost(row()).says("<bdi>tokyo</bdi>");
        lost(with_certificate()).is(Tone::Good, "advice-has-it");
        let disabled = |row| DeviceRow { state: DeviceState::Disabled, ..row };
        case(disabled(with_certificate())).is(Tone::Warning, "advice-disabled");
        case(disabled(with_certificate())).says("still works at IoT Platform");
        assert!(!case(disabled(row())).advice().text.into_string().contains("still works"));
        let deleted = DeviceRow { cloud_state: Some(CloudState::Deleted), ..with_certificate() };
        case(deleted).is(Tone::Bad, "advice-cloud-deleted");
        let off = DeviceRow { cloud_state: Some(CloudState::Disabled), ..with_certificate() };
        case(off).is(Tone::Warning, "advice-cloud-disabled");
        let refused = case(DeviceRow { refusal: Some("no <such> product".into()), ..row() });
        refused.is(Tone::Bad, "advice-refused");
        refused.says("no &lt;such&gt; product");
        assert_eq!(refused.advice().action, Some(Action::Reset));
        for (reason, title, words) in [
            ("NameIsTaken: x", "advice-name-taken", "The name <bdi>SN-1</bdi> exists already"),
            ("IotIdIsTaken: x", "advice-iot-id-taken", "IotIdIsTaken"),
        ] {
            let ours = case(DeviceRow { refusal: Some(reason.into()), ..row() });
            ours.is(Tone::Bad, title);
            ours.says(words);
            assert_eq!(ours.advice().action, Some(Action::Reset));
        }
        case(DeviceRow { activated: Some(150), ..with_certificate() }).is(Tone::Good, "advice-well");
        let ready = case(row().with_certificate("SN-1", "a-secret"));
        ready.is(Tone::Note, "advice-not-come");
        ready.says("is ready");
    }

    #[test]
    fn a_reason_of_certdist_is_in_the_visitors_language() {
        let said = |language, refusal| reason(Texts(language), refusal).into_owned();
        let of_all = Language::ALL.map(|language| said(language, "NameIsTaken: as stored"));
        for (number, text) in of_all.iter().enumerate() {
            assert!(text.starts_with("NameIsTaken: ") && !text.contains("as stored"), "{text}");
            assert!(!of_all[..number].contains(text), "{text}");
        }
        assert_eq!(said(Language::Japanese, "NoPermission: odd"), "NoPermission: odd");
    }

    #[test]
    fn a_device_that_came_is_not_said_not_to_have_come() {
        let asked = |event, detail| Case { history: vec![answer(event, 190, "plug", detail)], ..case(row()) };
        asked(AuditEvent::Refused, "odd").is(Tone::Warning, "advice-last-refused");
        asked(AuditEvent::Refused, "odd").says("odd");
        asked(AuditEvent::Issued, "a1/SN-1").is(Tone::Note, "advice-came");
        let reset = AuditEntry::new(AuditEvent::Reset, 195);
        let history = vec![reset, answer(AuditEvent::Refused, 190, "plug", "odd")];
        Case { history, ..case(row()) }.is(Tone::Note, "advice-came");
    }

    fn failure(reason: Unserved) -> Failure {
        Failure {
            device: row().id,
            reason,
            enrollment: "plug".into(),
            origin: crate::rate_limit::Origin::of("192.0.2.1".parse().unwrap()),
            message: String::new(),
            first: 150,
            last: 190,
            count: 3,
        }
    }

    #[test]
    fn a_failed_handshake_explains_why_a_device_has_no_certificate() {
        let counted = Counted { first: 150, last: 190, count: 2, value: failure(Unserved::Later).origin };
        let claimed = Claimed::Identity("SN-1".into());
        let failed = || {
            Some(Failed {
                claimed: claimed.clone(),
                reason: dtls::Failure::WrongKey,
                counted: counted.clone(),
            })
        };
        let case_of = |row, history| Case { handshake: failed(), history, ..case(row) };
        let new = case_of(row(), Vec::new());
        new.is(Tone::Warning, "advice-handshake");
        new.says("Wrong key");
        new.says("192.0.2.1");
        let asked = |at| vec![answer(AuditEvent::Issued, at, "plug", "a1/SN-1")];
        case_of(row(), asked(189)).is(Tone::Warning, "advice-handshake");
        case_of(row(), asked(190)).is(Tone::Note, "advice-came");
        // Any client can claim any identity, so a failed handshake says nothing about a device that
        // has its certificate.
        case_of(with_certificate(), Vec::new()).is(Tone::Good, "advice-has-it");
    }

    #[test]
    fn a_request_that_was_put_off_is_said_until_a_later_answer() {
        let put_off = Case { failure: Some(failure(Unserved::TimedOut)), ..case(row()) };
        put_off.is(Tone::Warning, "advice-later");
        put_off.says("5.04");
        let history = vec![answer(AuditEvent::Reissued, 195, "plug", "a1/SN-1")];
        let served = Case { failure: Some(failure(Unserved::Later)), history, ..case(with_certificate()) };
        served.is(Tone::Good, "advice-has-it");
    }

    #[test]
    fn a_key_of_another_enrollment_is_named() {
        let history = || vec![answer(AuditEvent::Refused, 190, "lamp", "the device is invalid")];
        for row in [row(), with_certificate(), DeviceRow { refusal: Some("odd".into()), ..row() }] {
            let case = Case { history: history(), ..case(row) };
            case.is(Tone::Bad, "advice-other-key");
            case.says("<bdi>lamp</bdi>");
            case.says("<bdi>plug</bdi>");
        }
        let mut later = vec![answer(AuditEvent::Reissued, 195, "plug", "a1/SN-1")];
        later.extend(history());
        Case { history: later, ..case(with_certificate()) }.is(Tone::Good, "advice-has-it");
    }

    #[test]
    fn a_guard_of_the_enrollment_is_said() {
        let guarded = |guards| Case { guards, ..case(row()) };
        let not_open = guarded(Guards { opens: Some(300), ..Guards::default() });
        not_open.is(Tone::Note, "advice-not-open");
        not_open.says("1970-01-01T00:05:00Z");
        let closed = guarded(Guards { closes: Some(100), ..Guards::default() });
        closed.is(Tone::Warning, "advice-closed");
        let limited = Guards { max_devices: Some(3), ..Guards::default() };
        let full = Case { taken: Places { registered: 3, claimed: 0 }, ..guarded(limited) };
        full.is(Tone::Warning, "advice-full");
        let filling = Case { taken: Places { registered: 2, claimed: 1 }, ..guarded(limited) };
        filling.is(Tone::Note, "advice-filling");
        // The guards do not concern a device that has had its certificate.
        let issued = Case { guards: closed.guards, ..case(with_certificate()) };
        issued.is(Tone::Good, "advice-has-it");
    }

    #[test]
    fn the_end_of_a_reissue_window_is_said_with_its_time() {
        let window = |seconds| Some(Reissue::Window(Duration::from_secs(seconds)));
        let open = Case { reissue: window(100), ..case(with_certificate()) };
        open.is(Tone::Good, "advice-has-it");
        open.says("1970-01-01T00:03:20Z");
        let over = Case { reissue: window(99), ..case(with_certificate()) };
        over.is(Tone::Note, "advice-issued");
        over.says("1970-01-01T00:03:19Z");
        let once = Case { reissue: Some(Reissue::Once), ..case(with_certificate()) };
        once.is(Tone::Note, "advice-issued");
        let activated = DeviceRow { activated: Some(150), ..with_certificate() };
        Case { reissue: Some(Reissue::Once), ..case(activated) }.is(Tone::Good, "advice-well");
        let again = Case { history: vec![answer(AuditEvent::Refused, 190, "plug", "again")], ..once };
        again.is(Tone::Warning, "advice-asks-again");
        assert_eq!(again.advice().action, Some(Action::Reset));
    }

    #[test]
    fn a_registration_in_progress_is_said() {
        let entry = row().wanted(crate::target::DEFAULT);
        let claim = ClaimView { entry, since: 150, owner: Some("x".into()), last_beat: None, batch: None };
        Case { claim: Some(claim.clone()), ..case(row()) }.is(Tone::Note, "advice-registering");
        let put_off = Some(failure(Unserved::TimedOut));
        let asked = Case { claim: Some(claim.clone()), failure: put_off, ..case(row()) };
        asked.is(Tone::Warning, "advice-later");
        let left = ClaimView { owner: None, ..claim };
        Case { claim: Some(left), ..case(row()) }.is(Tone::Note, "advice-left");
    }
}
