//! Shows the recent requests that were not served. The overview groups them by reason, enrollment
//! and address, and a separate page lists their devices. Devices that are not in the table can be
//! downloaded as a file to import.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
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
    overview::foreign,
    page::{Frame, encoded, moment},
};
use crate::{
    admin::{Shared, ring::Range},
    resource::failures::{Failure, Reason},
    store::unix_now,
};

/// Maximum number of groups of each kind on the overview.
const MAX_GROUPS: usize = 5;
/// Maximum number of devices on the page.
const MAX_LISTED: usize = 200;

/// Returns the name of a reason in URLs, and the key of its name in the catalogue.
fn names(reason: Reason) -> (&'static str, &'static str) {
    match reason {
        Reason::Invalid => ("invalid", "kind-invalid"),
        Reason::NotYours => ("not-yours", "kind-not-yours"),
        Reason::Disabled => ("disabled", "kind-disabled"),
        Reason::Issued => ("issued", "kind-issued"),
        Reason::TooMany => ("too-many", "kind-too-many"),
        Reason::Operator => ("operator", "kind-operator"),
        Reason::Later => ("later", "kind-later"),
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
    /// Name of a reason; `unknown` for devices that are not in the table, and `enrollment` for
    /// devices that use the key of another enrollment.
    #[serde(default)]
    reason: String,
    /// Enrollment whose key the device uses.
    #[serde(default)]
    enrollment: String,
    /// Origin of the last request.
    #[serde(default)]
    address: String,
}

/// Returns whether a failure is that of a device that is not in the table.
fn is_unknown(failure: &Failure, foreign: &BTreeMap<String, String>) -> bool {
    failure.reason == Reason::Invalid && !foreign.contains_key(failure.device.as_str())
}

impl Selection {
    fn admits(&self, failure: &Failure, foreign: &BTreeMap<String, String>) -> bool {
        let own = foreign.get(failure.device.as_str());
        let is_invalid = failure.reason == Reason::Invalid;
        let reason = match self.reason.as_str() {
            "" => true,
            "unknown" => is_unknown(failure, foreign),
            "enrollment" => is_invalid && own.is_some_and(|own| *own != failure.enrollment),
            // To the operator, both reasons mean that the device waits.
            "later" => matches!(failure.reason, Reason::Later | Reason::TimedOut),
            name => names(failure.reason).0 == name,
        };
        reason
            && (self.enrollment.is_empty() || self.enrollment == failure.enrollment)
            && (self.address.is_empty() || self.address == failure.origin.to_string())
    }

    fn is_some(&self) -> bool {
        [&self.reason, &self.enrollment, &self.address].into_iter().any(|text| !text.is_empty())
    }

    fn query(&self) -> String {
        format!(
            "reason={}&enrollment={}&address={}",
            encoded(&self.reason),
            encoded(&self.enrollment),
            encoded(&self.address)
        )
    }
}

/// Groups failures by a property, and counts the devices and requests of each group. The largest
/// group comes first.
fn groups<K: Hash + Ord + Clone>(failures: &[Failure], of: impl Fn(&Failure) -> K) -> Vec<(K, usize, u64)> {
    let mut groups = HashMap::<K, (HashSet<&str>, u64)>::new();
    for failure in failures {
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
pub(super) fn top(t: Texts, (failures, forgotten): &(Vec<Failure>, bool)) -> Markup {
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
            let link = format!("/failures?{key}={}", encoded(&name));
            (name, link, devices, requests)
        }
    };
    let by_reason =
        groups(failures, |failure| failure.reason).into_iter().map(|(reason, devices, requests)| {
            (sentence(t, reason), format!("/failures?reason={}", names(reason).0), devices, requests)
        });
    let by_enrollment = groups(failures, |failure| failure.enrollment.clone());
    let by_enrollment = by_enrollment.into_iter().map(linked("enrollment"));
    let by_address = groups(failures, |failure| failure.origin.to_string());
    let by_address = by_address.into_iter().map(linked("address"));
    html! {
        section.card aria-labelledby="failing" {
            h2 #failing { a href="/failures" { (t.say("failing-devices")) } }
            div.thirds {
                (list("failing-by-reason", by_reason.collect()))
                (list("failing-by-enrollment", by_enrollment.collect()))
                (list("failing-by-address", by_address.collect()))
            }
            @if *forgotten { p.hint { (t.say("failing-forgotten")) } }
        }
    }
}

async fn selected(shared: &Shared, selection: &Selection) -> (Vec<Failure>, BTreeMap<String, String>, bool) {
    let (mut failures, forgotten) = shared.sources.failures.since(unix_now() - Range::Day.seconds());
    let foreign = foreign(shared, &failures).await;
    failures.retain(|failure| selection.admits(failure, &foreign));
    (failures, foreign, forgotten)
}

pub(super) async fn show(
    State(shared): State<Arc<Shared>>,
    frame: Frame,
    visitor: Visitor,
    Query(selection): Query<Selection>,
) -> Response {
    let t = frame.texts;
    let (failures, foreign, forgotten) = selected(&shared, &selection).await;
    let unknown = failures.iter().filter(|failure| is_unknown(failure, &foreign)).count() as u64;
    let of_selection =
        [&selection.enrollment, &selection.address].into_iter().filter(|text| !text.is_empty());
    let body = html! {
        p.crumb { a href="/" { (t.say("nav-overview")) } }
        h1 { (t.say("failing-devices")) }
        p.hint {
            (t.with("failures-count", [("count", (failures.len() as u64).into())]))
            @for text in of_selection { " · " bdi { (text) } }
            @if selection.is_some() { " · " a href="/failures" { (t.say("failures-all")) } }
        }
        @if unknown > 0 {
            p { a.button.secondary href={ "/failures.csv?" (selection.query()) } download {
                (t.with("failures-download", [("count", unknown.into())]))
            } }
            p.hint { (t.rich("failures-download-hint", [("import", html! { a href="/import" { (t.say("nav-import")) } }.into())])) }
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
                        @for failure in failures.iter().take(MAX_LISTED) {
                            tr {
                                th scope="row" { a.id href=(link(&failure.device)) { (failure.device) } }
                                td data-label=(t.say("column-reason")) {
                                    (reason(t, failure, &foreign))
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
        @if forgotten { p.hint { (t.say("failing-forgotten")) } }
    };
    frame.page(&t.say("failing-devices"), Some(&visitor), "/", &body).into_response()
}

fn reason(t: Texts, failure: &Failure, foreign: &BTreeMap<String, String>) -> Markup {
    match foreign.get(failure.device.as_str()) {
        Some(own) if failure.reason == Reason::Invalid && *own == failure.enrollment => {
            html! { (t.say("failures-imported-since")) }
        }
        Some(own) if failure.reason == Reason::Invalid => {
            t.rich("failures-foreign", [("own", own.into()), ("key", (&failure.enrollment).into())])
        }
        _ => html! { (sentence(t, failure.reason)) },
    }
}

/// Serves the devices that are not in the table as a CSV file to import. IDs need no quoting: their
/// only characters with a special meaning in CSV or a spreadsheet are a leading `-` or `@`, which
/// `import` takes literally.
pub(super) async fn download(
    State(shared): State<Arc<Shared>>,
    _: Visitor,
    Query(selection): Query<Selection>,
) -> Response {
    let (failures, foreign, _) = selected(&shared, &selection).await;
    let unknown = failures.iter().filter(|failure| is_unknown(failure, &foreign));
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
    use crate::{device::DeviceId, rate_limit::Origin};

    fn failure(id: &str, reason: Reason, enrollment: &str) -> Failure {
        Failure {
            device: DeviceId::parse_sn(id).unwrap(),
            reason,
            enrollment: enrollment.into(),
            origin: Origin::of([192, 0, 2, 1].into()),
            message: String::new(),
            first: 1,
            last: 2,
            count: 3,
        }
    }

    #[test]
    fn a_selection_admits_what_it_names() {
        let foreign = BTreeMap::from([("SN-2".to_owned(), "plug".to_owned())]);
        let unknown = failure("SN-1", Reason::Invalid, "lamp");
        let other = failure("SN-2", Reason::Invalid, "lamp");
        let late = failure("SN-3", Reason::TimedOut, "plug");
        let admitted = |reason: &str, enrollment: &str, address: &str| {
            let selection =
                Selection { reason: reason.into(), enrollment: enrollment.into(), address: address.into() };
            [&unknown, &other, &late].map(|failure| selection.admits(failure, &foreign))
        };
        assert_eq!(admitted("", "", ""), [true, true, true]);
        assert_eq!(admitted("unknown", "", ""), [true, false, false]);
        assert_eq!(admitted("enrollment", "", ""), [false, true, false]);
        assert_eq!(admitted("invalid", "", ""), [true, true, false]);
        assert_eq!(admitted("later", "", ""), [false, false, true]);
        assert_eq!(admitted("", "plug", ""), [false, false, true]);
        assert_eq!(admitted("", "", "192.0.2.1"), [true, true, true]);
        assert_eq!(admitted("", "", "192.0.2.2"), [false, false, false]);
    }

    #[test]
    fn groups_count_each_device_once_and_the_largest_comes_first() {
        let mut all = vec![failure("SN-1", Reason::Invalid, "lamp"), failure("SN-1", Reason::Later, "lamp")];
        all.extend(
            (0..9).map(|number| failure(&format!("P-{number}"), Reason::Issued, &format!("e{number}"))),
        );
        assert_eq!(groups(&all, |failure| failure.reason)[0], (Reason::Issued, 9, 27));
        let by_enrollment = groups(&all, |failure| failure.enrollment.clone());
        assert_eq!(by_enrollment.len(), MAX_GROUPS);
        assert_eq!(by_enrollment[0], ("lamp".to_owned(), 1, 6));
    }
}
