//! Shows what has happened to a device, from the audit log and the list of imports.

use std::borrow::Cow;

use maud::{Markup, html};

use super::{advice, failures, language::Texts, page::moment};
use crate::{
    resource::failures::{Reason, reason_of},
    store::{
        UnixSeconds,
        audit::{AuditEntry, AuditEvent},
        undo::ImportRecord,
    },
};

/// Maximum number of entries of the audit log that are shown. A single query reads this many.
pub(super) const MOST: usize = 100;

/// An event in the history of a device.
struct Event<'e> {
    at: UnixSeconds,
    kind: AuditEvent,
    detail: Option<&'e str>,
    who: Option<&'e str>,
    address: Option<&'e str>,
    /// Number of requests, and the time of the first one, if the event stands for several.
    times: Option<(u64, UnixSeconds)>,
}

/// Renders the history, newest event first, or nothing if it is empty.
pub(super) fn show(t: Texts, entries: &[AuditEntry], imports: &[ImportRecord]) -> Markup {
    let mut events: Vec<Event<'_>> = entries.iter().map(of_entry).collect();
    events.extend(imports.iter().map(|import| Event {
        at: import.at,
        kind: AuditEvent::Imported,
        detail: Some(&import.file),
        who: Some(&import.who),
        address: None,
        times: None,
    }));
    // The sort is stable, so entries of the same second keep their order.
    events.sort_by_key(|event| std::cmp::Reverse(event.at));
    html! {
        @if !events.is_empty() {
            section.card aria-labelledby="history" {
                h2 #history { (t.say("history-title")) }
                ol.history { @for event in &events { li { (moment(event.at)) " " (sentence(t, event)) } } }
                p.hint { (t.say("history-imports")) }
                @if entries.len() == MOST { p.hint { (t.rich("history-more", [("most", (MOST as u64).into())])) } }
            }
        }
    }
}

fn of_entry(entry: &AuditEntry) -> Event<'_> {
    Event {
        at: entry.at,
        kind: entry.event,
        detail: entry.detail.as_deref(),
        who: entry.who.as_deref(),
        address: entry.address.as_deref(),
        times: entry
            .repeats
            .as_ref()
            .filter(|repeats| repeats.count > 1)
            .map(|repeats| (repeats.count, repeats.first)),
    }
}

/// Returns the detail of an entry. The reason of a refusal is in the visitor's language, unless it
/// is IoT Platform's own.
pub(super) fn detail(t: Texts, event: AuditEvent, detail: &str) -> Cow<'_, str> {
    if event != AuditEvent::Refused {
        return detail.into();
    }
    match reason_of(detail) {
        Some((Reason::Invalid, _)) => t.say("history-invalid").into(),
        Some((Reason::Operator, reason)) => {
            format!("{}: {}", t.say("kind-operator"), advice::reason(t, reason)).into()
        }
        Some((reason, _)) => t.say(failures::names(reason).1).into(),
        None => detail.into(),
    }
}

/// Returns the catalogue key of the words before the name of the person or device that caused an
/// event. A device is named by its identity.
fn who_key(event: AuditEvent) -> &'static str {
    match event {
        AuditEvent::Issued | AuditEvent::Reissued | AuditEvent::Refused => "history-identity",
        _ => "history-by",
    }
}

/// Renders an event, its detail, the name of the person or device that caused it, and the address.
fn sentence(t: Texts, event: &Event<'_>) -> Markup {
    let some = |part: Option<&'_ str>| part.filter(|part| !part.is_empty()).map(str::to_owned);
    html! {
        b { (t.say(name_of(event.kind))) }
        @if let Some(text) = some(event.detail) { ": " bdi { (detail(t, event.kind, &text)) } }
        @if let Some(who) = some(event.who) { " · " (t.rich(who_key(event.kind), [("who", (&who).into())])) }
        @if let Some(address) = some(event.address) { " · " (t.rich("history-from", [("address", (&address).into())])) }
        @if let Some((count, first)) = event.times {
            " · " (t.rich("history-times", [("count", count.into()), ("time", moment(first).into())]))
        }
    }
}

/// Returns the catalogue key of an event's name.
pub(super) fn name_of(event: AuditEvent) -> &'static str {
    match event {
        AuditEvent::Issued => "event-issued",
        AuditEvent::Reissued => "event-reissued",
        AuditEvent::Refused => "event-refused",
        AuditEvent::Registered => "event-registered",
        AuditEvent::Disabled => "event-disabled",
        AuditEvent::Enabled => "event-enabled",
        AuditEvent::Reset => "event-reset",
        AuditEvent::Deleted => "event-deleted",
        AuditEvent::Admitted => "event-admitted",
        AuditEvent::Ordered => "event-ordered",
        AuditEvent::Rotated => "event-rotated",
        AuditEvent::Moved => "event-moved",
        AuditEvent::Cancelled => "event-cancelled",
        AuditEvent::Rekeyed => "event-rekeyed",
        AuditEvent::Imported => "event-imported",
        AuditEvent::Undone => "event-undone",
        AuditEvent::Sealed => "event-sealed",
        AuditEvent::Restored => "event-restored",
        AuditEvent::Copied => "event-copied",
        AuditEvent::Began => "event-began",
        AuditEvent::Ended => "event-ended",
        AuditEvent::Pruned => "event-pruned",
        AuditEvent::Dropped => "event-dropped",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        admin::console::language::Language,
        provision::Refusal,
        store::{audit::Repeats, undo::ImportId},
    };

    #[test]
    fn a_sentence_has_only_the_fields_of_its_entry() {
        let t = Texts(Language::English);
        let said = |entry: &AuditEntry| sentence(t, &of_entry(entry)).into_string();
        assert_eq!(said(&AuditEntry::new(AuditEvent::Disabled, 5)), "<b>disabled</b>");
        let whole = AuditEntry {
            detail: Some("a1/<b>".into()),
            who: Some("SN-1".into()),
            address: Some("192.0.2.7".into()),
            ..AuditEntry::new(AuditEvent::Issued, 5)
        };
        let expected =
            "<b>issued</b>: <bdi>a1/&lt;b&gt;</bdi> · identity <bdi>SN-1</bdi> · from <bdi>192.0.2.7</bdi>";
        assert_eq!(said(&whole), expected);
    }

    #[test]
    fn repeated_requests_are_one_sentence_with_their_number() {
        let t = Texts(Language::English);
        let repeated = |count| AuditEntry {
            address: Some("192.0.2.7".into()),
            repeats: Some(Repeats { count, first: 60, first_address: None }),
            ..AuditEntry::new(AuditEvent::Reissued, 90)
        };
        let said = |count| sentence(t, &of_entry(&repeated(count))).into_string();
        assert!(!said(1).contains("1970"), "{}", said(1));
        let many = said(17);
        assert!(many.contains("17 times since") && many.contains("1970-01-01"), "{many}");
    }

    #[test]
    fn the_reason_of_a_refusal_is_in_the_language_of_the_page() {
        let english = Texts(Language::English);
        for refusal in [Refusal::Invalid, Refusal::NotYours, Refusal::Disabled, Refusal::Issued] {
            let stored = refusal.to_string();
            let said = [Language::English, Language::Chinese, Language::Japanese]
                .map(|language| detail(Texts(language), AuditEvent::Refused, &stored).into_owned());
            assert!(!said.contains(&stored), "{said:?}");
        }
        let stored = Refusal::Operator("iot.prod.NotExistedProduct: no".into()).to_string();
        let said = detail(english, AuditEvent::Refused, &stored);
        assert_eq!(said, format!("{}: iot.prod.NotExistedProduct: no", english.say("kind-operator")));
        assert_eq!(detail(english, AuditEvent::Imported, "the device is invalid"), "the device is invalid");
    }

    #[test]
    fn imports_stand_between_the_entries_of_the_log() {
        let t = Texts(Language::English);
        let entries = [AuditEntry::new(AuditEvent::Issued, 30), AuditEntry::new(AuditEvent::Registered, 10)];
        let (file, who) = ("lamps.csv".into(), "console:anna".into());
        let import = ImportRecord { id: ImportId(1), at: 20, who, file, added: 1, changed: 0, undone: None };
        let shown = show(t, &entries, &[import]).into_string();
        let at = |word: &str| shown.find(word).unwrap_or_else(|| panic!("{word} in {shown}"));
        assert!(at("issued") < at("lamps.csv") && at("lamps.csv") < at("registered"), "{shown}");
        assert!(show(t, &[], &[]).into_string().is_empty());
    }
}
