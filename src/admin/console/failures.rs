//! Shows the recent requests that were not served. The overview groups them by reason, enrollment
//! and address, and a separate page lists their devices. Devices that are not in the table can be
//! downloaded as a file to import.

use std::{
    collections::{HashMap, HashSet},
    hash::Hash,
    sync::Arc,
};

use axum::{
    extract::{Query, State},
    http::header,
    response::{IntoResponse, Response},
};
use maud::{Markup, html};
use serde::Deserialize;

use super::{
    Visitor,
    devices::link,
    grouped,
    language::Texts,
    page::{self, Frame, encoded, moment},
    unserved::{self, Recent, Unserved},
};
use crate::{
    admin::{Shared, ring::Range},
    resource::failures::{Failure, Reason},
    store::{UnixSeconds, unix_now},
};

/// Maximum number of groups of each kind on the overview.
const MAX_GROUPS: usize = 5;
/// Maximum number of devices on the page.
const MAX_LISTED: usize = 200;

/// Returns the name of a reason in URLs, and the catalogue key of its name.
pub(super) fn names(reason: Reason) -> (&'static str, &'static str) {
    match reason {
        Reason::Invalid => ("invalid", "kind-invalid"),
        Reason::NotYours => ("not-yours", "kind-not-yours"),
        Reason::Disabled => ("disabled", "kind-disabled"),
        Reason::Issued => ("issued", "kind-issued"),
        Reason::Closed => ("closed", "kind-closed"),
        Reason::TooMany => ("too-many", "kind-too-many"),
        Reason::Operator => ("operator", "kind-operator"),
        Reason::Later => ("later", "kind-later"),
        Reason::NotOpen => ("not-open", "kind-not-open"),
        Reason::Held => ("held", "kind-held"),
        Reason::TimedOut => ("timed-out", "kind-timed-out"),
    }
}

/// Returns the sentence about a reason, with the CoAP code of the answer.
pub(super) fn sentence(t: Texts, reason: Reason) -> String {
    format!("{} ({})", t.say(names(reason).1), reason.code())
}

/// Selection of failures.
#[derive(Deserialize, Default)]
pub(super) struct Selection {
    /// Name of a reason, or one of three groups: `unknown` for devices that are not in the table,
    /// `enrollment` for devices that use the key of another enrollment, and `waiting` for devices
    /// that were refused or asked to retry later because of IoT Platform or the database and have
    /// not been served since.
    #[serde(default)]
    reason: String,
    /// Enrollment whose key the device uses.
    #[serde(default)]
    enrollment: String,
    /// Origin of the last request.
    #[serde(default)]
    address: String,
    /// Name of the range in which the last request was; if empty, the range is a day.
    #[serde(default)]
    range: String,
}

impl Selection {
    fn range(&self) -> Range {
        Range::named(&self.range).unwrap_or(Range::Day)
    }

    fn admits(&self, one: &Unserved) -> bool {
        let failure = &one.failure;
        let reason = match self.reason.as_str() {
            "" => true,
            "unknown" => one.is_unknown(),
            "enrollment" => one.own_enrollment().is_some(),
            "waiting" => {
                one.is_open() && matches!(failure.reason, Reason::Operator | Reason::Later | Reason::TimedOut)
            }
            name => names(failure.reason).0 == name,
        };
        reason
            && (self.enrollment.is_empty() || self.enrollment == failure.enrollment)
            && (self.address.is_empty() || self.address == failure.origin.to_string())
    }

    /// Returns the name of the reason in the language of the page; `None` if there is no such
    /// reason.
    fn reason(&self, t: Texts) -> Option<String> {
        Some(match self.reason.as_str() {
            "unknown" => t.say("kind-unknown"),
            "enrollment" => t.say("failures-enrollment"),
            "waiting" => t.say("failures-waiting"),
            name => t.say(Reason::ALL.into_iter().map(names).find(|(known, _)| *known == name)?.1),
        })
    }

    fn is_some(&self) -> bool {
        [&self.reason, &self.enrollment, &self.address].into_iter().any(|text| !text.is_empty())
    }

    fn query(&self, range: Range) -> String {
        format!(
            "reason={}&enrollment={}&address={}&range={}",
            encoded(&self.reason),
            encoded(&self.enrollment),
            encoded(&self.address),
            range.name()
        )
    }
}

/// Groups failures by a property, and counts the devices and requests of each group. The largest
/// group comes first.
fn groups<K: Hash + Ord + Clone>(all: &[&Failure], of: impl Fn(&Failure) -> K) -> Vec<(K, usize, u64)> {
    let mut groups = HashMap::<K, (HashSet<&str>, u64)>::new();
    for failure in all {
        let group = groups.entry(of(failure)).or_default();
        group.0.insert(failure.device.as_str());
        group.1 += failure.count;
    }
    let mut groups: Vec<_> =
        groups.into_iter().map(|(key, (devices, requests))| (key, devices.len(), requests)).collect();
    groups.sort_by(|a, b| (b.1, b.2, &a.0).cmp(&(a.1, a.2, &b.0)));
    groups.truncate(MAX_GROUPS);
    groups
}

/// Renders the most frequent failures of the last hour, or nothing if there were none.
pub(super) fn top(t: Texts, recent: &Recent, from: UnixSeconds) -> Markup {
    let failures: Vec<&Failure> =
        recent.all.iter().map(|one| &one.failure).filter(|failure| failure.last >= from).collect();
    if failures.is_empty() {
        return html! {};
    }
    let list = |title, groups: Vec<(String, String, usize, u64)>| {
        html! {
            div {
                h3 { (t.say(title)) }
                ul.groups {
                    @for (name, link, devices, requests) in groups {
                        li {
                            a href=(link) { bdi { (name) } } " "
                            span.hint { (t.with("group-counts", [("devices", (devices as u64).into()), ("requests", requests.into())])) }
                        }
                    }
                }
            }
        }
    };
    let linked = |key: &'static str| {
        move |(name, devices, requests): (String, usize, u64)| {
            let link = format!("/failures?{key}={}&range=hour", encoded(&name));
            (name, link, devices, requests)
        }
    };
    let by_reason =
        groups(&failures, |failure| failure.reason).into_iter().map(|(reason, devices, requests)| {
            (
                sentence(t, reason),
                format!("/failures?reason={}&range=hour", names(reason).0),
                devices,
                requests,
            )
        });
    let by_enrollment = groups(&failures, |failure| failure.enrollment.clone());
    let by_enrollment = by_enrollment.into_iter().map(linked("enrollment"));
    let by_address = groups(&failures, |failure| failure.origin.to_string());
    let by_address = by_address.into_iter().map(linked("address"));
    html! {
        section.card aria-labelledby="failing" {
            h2 #failing { a href="/failures?range=hour" { (t.say("failing-devices")) } }
            div.thirds {
                (list("failing-by-reason", by_reason.collect()))
                (list("failing-by-enrollment", by_enrollment.collect()))
                (list("failing-by-address", by_address.collect()))
            }
            (hints(t, recent))
        }
    }
}

/// Renders a hint about requests that the list lacks, if there are any.
fn hints(t: Texts, recent: &Recent) -> Markup {
    html! {
        @if recent.forgotten { p.hint { (t.say("failing-forgotten")) } }
        @if recent.partly { p.hint { (t.say("failing-partly")) } }
    }
}

async fn selected(shared: &Shared, selection: &Selection) -> Recent {
    let mut recent = unserved::since(shared, unix_now() - selection.range().seconds()).await;
    recent.all.retain(|one| selection.admits(one));
    recent
}

pub(super) async fn show(
    State(shared): State<Arc<Shared>>,
    frame: Frame,
    visitor: Visitor,
    Query(selection): Query<Selection>,
) -> Response {
    let t = frame.texts;
    let (recent, range) = (selected(&shared, &selection).await, selection.range());
    let failures = &recent.all;
    let unknown = failures.iter().filter(|one| one.is_unknown()).count() as u64;
    let of_selection =
        [&selection.enrollment, &selection.address].into_iter().filter(|text| !text.is_empty());
    let requests: u64 = failures.iter().map(|one| one.failure.count).sum();
    let devices = failures.iter().map(|one| &one.failure.device).collect::<HashSet<_>>().len() as u64;
    let body = html! {
        p.crumb { a href="/" { (t.say("nav-overview")) } }
        div.head {
            h1 { (t.say("failing-devices")) }
            (page::ranges(t, range, |other| format!("/failures?{}", selection.query(other))))
        }
        p.hint {
            @if recent.forgotten { (t.say("at-least")) " " }
            (t.with("group-counts", [("devices", devices.into()), ("requests", requests.into())]))
            " · " (t.rich("failures-since", [("time", moment(shared.sources.started.max(unix_now() - range.seconds())).into())]))
            @if let Some(reason) = selection.reason(t) { " · " (t.with("failures-only", [("reason", (&reason).into())])) }
            @for text in of_selection { " · " bdi { (text) } }
            @if selection.is_some() { " · " a href={ "/failures?range=" (range.name()) } { (t.say("failures-all")) } }
        }
        @if unknown > 0 {
            p { (t.rich("failures-download-hint", [("import", html! { a href="/import" { (t.say("nav-import")) } }.into())])) }
            p { a.button.secondary href={ "/failures.csv?" (selection.query(range)) } download {
                (t.with("failures-download", [("count", unknown.into())]))
            } }
        }
        @if failures.is_empty() { p { (t.say("failures-none")) } }
        @else {
            div.card {
                table.stacked {
                    thead { tr {
                        th scope="col" { (t.say("column-device")) }
                        th scope="col" { (t.say("column-reason")) }
                        th scope="col" { (t.say("column-key-of")) }
                        th scope="col" { (t.say("column-address")) }
                        th scope="col" { (t.say("column-last")) }
                        th scope="col" { (t.say("column-requests")) }
                    } }
                    tbody {
                        @for one in failures.iter().take(MAX_LISTED) {
                            @let failure = &one.failure;
                            tr {
                                th scope="row" { a.id href=(link(&failure.device)) { (failure.device) } }
                                td data-label=(t.say("column-reason")) {
                                    (reason(t, one))
                                    @if !failure.message.is_empty() { br; span.hint { bdi { (failure.message) } } }
                                }
                                td data-label=(t.say("column-key-of")) { bdi { (failure.enrollment) } }
                                td data-label=(t.say("column-address")) { (failure.origin) }
                                td data-label=(t.say("column-last")) { (moment(failure.last)) }
                                td data-label=(t.say("column-requests")) { (grouped(failure.count)) }
                            }
                        }
                    }
                }
            }
            @if failures.len() > MAX_LISTED { p.hint { (t.with("failures-latest", [("count", (MAX_LISTED as u64).into())])) } }
        }
        (hints(t, &recent))
    };
    frame.page(&t.say("failing-devices"), Some(&visitor), "/", &body).into_response()
}

/// Renders the reason why a device was not served, and whether the reason still holds.
fn reason(t: Texts, one: &Unserved) -> Markup {
    let failure = &one.failure;
    if let Some(own) = one.own_enrollment() {
        return t.rich("failures-foreign", [("own", own.into()), ("key", (&failure.enrollment).into())]);
    }
    let said = match one.is_unknown() {
        true => format!("{} ({})", t.say("kind-unknown"), failure.reason.code()),
        false => sentence(t, failure.reason),
    };
    html! {
        (said)
        @if !one.is_open() {
            br;
            span.hint {
                (t.say(match failure.reason {
                    Reason::Invalid => "failures-imported-since",
                    Reason::Operator | Reason::Later | Reason::TimedOut if one.found().is_some() => "failures-served-since",
                    _ => "failures-mended-since",
                }))
            }
        }
    }
}

/// Serves the devices that are not in the table as a CSV file to import. The IDs are not quoted:
/// their only characters with a special meaning in CSV or in a spreadsheet are a leading `-` or
/// `@`, which `import` takes literally.
pub(super) async fn download(
    State(shared): State<Arc<Shared>>,
    _: Visitor,
    Query(selection): Query<Selection>,
) -> Response {
    let recent = selected(&shared, &selection).await;
    let unknown = recent.all.iter().filter(|one| one.is_unknown()).map(|one| &one.failure);
    let mut writer = csv::Writer::from_writer(Vec::new());
    // Writing to memory cannot fail.
    let _ = writer.write_record(["deviceId", "enrollment"]);
    let mut seen = HashSet::new();
    for failure in unknown.filter(|failure| seen.insert(&failure.device)) {
        let _ = writer.write_record([failure.device.as_str(), &failure.enrollment]);
    }
    let headers = [
        (header::CONTENT_TYPE, "text/csv; charset=utf-8"),
        (header::CONTENT_DISPOSITION, "attachment; filename=\"unknown-devices.csv\""),
    ];
    (headers, writer.into_inner().unwrap_or_default()).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        admin::console::unserved::Row,
        device::DeviceId,
        rate_limit::Origin,
        store::{DeviceRow, filter::Listed},
    };

    fn unserved(id: &str, reason: Reason, enrollment: &str, own: Option<&str>) -> Unserved {
        let id = DeviceId::parse_sn(id).unwrap();
        let row = own.map(|own| DeviceRow::imported(id.clone(), own, "a1"));
        let row = row.map(|row| Listed::new(row.id.clone(), &row.seen(), false));
        let failure = Failure {
            device: id,
            reason,
            enrollment: enrollment.into(),
            origin: Origin::of([192, 0, 2, 1].into()),
            message: String::new(),
            first: 1,
            last: 2,
            count: 3,
        };
        Unserved {
            failure,
            row: row.map_or(Row::Absent, |row| Row::Found(Box::new(row))),
            is_superseded: false,
            ahead: 0,
        }
    }

    #[test]
    fn a_selection_admits_what_it_names() {
        let mut served = unserved("SN-4", Reason::Later, "plug", Some("plug"));
        if let Row::Found(row) = &mut served.row {
            row.first_issued = Some(2);
        }
        let all = [
            unserved("SN-1", Reason::Invalid, "lamp", None),
            unserved("SN-2", Reason::Invalid, "lamp", Some("plug")),
            unserved("SN-3", Reason::TimedOut, "plug", Some("plug")),
            served,
        ];
        let admitted = |reason: &str, enrollment: &str, address: &str| {
            let selection = Selection {
                reason: reason.into(),
                enrollment: enrollment.into(),
                address: address.into(),
                range: String::new(),
            };
            all.iter().map(|one| selection.admits(one)).collect::<Vec<_>>()
        };
        assert_eq!(admitted("", "", ""), [true, true, true, true]);
        assert_eq!(admitted("unknown", "", ""), [true, false, false, false]);
        assert_eq!(admitted("enrollment", "", ""), [false, true, false, false]);
        assert_eq!(admitted("invalid", "", ""), [true, true, false, false]);
        assert_eq!(admitted("later", "", ""), [false, false, false, true]);
        assert_eq!(admitted("waiting", "", ""), [false, false, true, false]);
        assert_eq!(admitted("", "plug", ""), [false, false, true, true]);
        assert_eq!(admitted("", "", "192.0.2.1"), [true, true, true, true]);
        assert_eq!(admitted("", "", "192.0.2.2"), [false, false, false, false]);
    }

    #[test]
    fn groups_count_each_device_once_and_the_largest_comes_first() {
        let mut all = vec![
            unserved("SN-1", Reason::Invalid, "lamp", None),
            unserved("SN-1", Reason::Later, "lamp", None),
        ];
        all.extend(
            (0..9)
                .map(|number| unserved(&format!("P-{number}"), Reason::Issued, &format!("e{number}"), None)),
        );
        let all: Vec<&Failure> = all.iter().map(|one| &one.failure).collect();
        assert_eq!(groups(&all, |failure| failure.reason)[0], (Reason::Issued, 9, 27));
        let by_enrollment = groups(&all, |failure| failure.enrollment.clone());
        assert_eq!(by_enrollment.len(), MAX_GROUPS);
        assert_eq!(by_enrollment[0], ("lamp".to_owned(), 1, 6));
    }
}
