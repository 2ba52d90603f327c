//! The first page: shows the concerns that need an operator, and recent requests.

use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::Ordering},
};

use axum::{
    Json,
    extract::{Query, State},
    http::HeaderMap,
    response::{IntoResponse, Response},
};
use maud::{Markup, html};
use serde::Deserialize;
use serde_json::json;

use super::{
    Visitor, chart,
    concerns::{self, Concern, MAX_NAMES, Situation},
    failures, grouped,
    language::Texts,
    page::{self, Frame, Tone, moment},
    wants_json,
};
use crate::{
    admin::{
        Shared, metrics,
        ring::{self, Kind, Range, Sample},
    },
    histogram::Distribution,
    resource::failures::{Failure, Reason},
    store::unix_now,
};

#[derive(Deserialize)]
pub(super) struct Shown {
    /// Name of the range.
    #[serde(default)]
    range: String,
}

impl Shown {
    fn range(&self) -> Range {
        Range::named(&self.range).unwrap_or_default()
    }
}

pub(super) async fn show(
    State(shared): State<Arc<Shared>>,
    frame: Frame,
    visitor: Visitor,
    headers: HeaderMap,
    Query(shown): Query<Shown>,
) -> Response {
    if wants_json(&headers) {
        return Json(summary(&shared).await).into_response();
    }
    let (t, range) = (frame.texts, shown.range());
    let content = content(&shared, t, range).await;
    let body = html! {
        h1 { (t.say("nav-overview")) }
        (frame.live(&format!("/live?range={}", range.name()), ring::EVERY, &content))
    };
    frame.page(&t.say("nav-overview"), Some(&visitor), "/", &body).into_response()
}

/// Serves the part of the page that its script updates regularly.
pub(super) async fn live(
    State(shared): State<Arc<Shared>>,
    frame: Frame,
    _: Visitor,
    Query(shown): Query<Shown>,
) -> Markup {
    content(&shared, frame.texts, shown.range()).await
}

async fn summary(shared: &Shared) -> serde_json::Value {
    let (sources, now) = (&shared.sources, Sample::of(&shared.sources, unix_now()));
    let hour = shared.ring().total(Range::Hour, &now);
    let found = look(shared, &now).await;
    let concerns: Vec<_> = found
        .iter()
        .map(|concern| {
            json!({
                "subject": concern.subject.keys()[0],
                "severity": concern.tone.class(),
                "since": concern.since.map(rfc3339),
                "last": concern.last.map(rfc3339),
                "times": concern.times,
                "devices": concern.devices,
                "code": concern.code,
                "names": concern.names,
            })
        })
        .collect();
    json!({
        "concerns": concerns,
        "lastHour": {
            "served": hour.of_kind(Kind::Served),
            "refused": hour.sum(&Kind::REFUSED),
            "refusedByCloud": hour.of_kind(Kind::Operator),
            "later": hour.sum(&LATER),
            "failedHandshakes": hour.sum(&Kind::FAILED_HANDSHAKES),
        },
        "sessions": sessions(shared),
        "registrations": sources.registrar.registrations(),
        "registrationsWaiting": sources.registrar.waiting(),
        "batches": sources.registrar.batches(),
        "breakersOpen": sources.registrar.open_breakers(),
        "draining": sources.registrar.is_draining(),
    })
}

fn rfc3339(seconds: i64) -> Option<String> {
    jiff::Timestamp::from_second(seconds).ok().map(|time| time.to_string())
}

const LATER: [Kind; 2] = [Kind::Later, Kind::TimedOut];

fn sessions(shared: &Shared) -> u64 {
    metrics::sum(&shared.sources, |worker| worker.sessions.load(Ordering::Relaxed))
}

/// Finds the concerns at this moment.
async fn look(shared: &Shared, now: &Sample) -> Vec<Concern> {
    let sources = &shared.sources;
    let (failures, _) = sources.failures.since(now.at - Range::Hour.seconds());
    let foreign = foreign(shared, &failures).await;
    let census = shared.census.last(&sources.store);
    let enrollments = shared.enrollments();
    let ring = shared.ring();
    concerns::of(&Situation {
        now: now.at,
        episodes: Kind::ALL.map(|kind| ring.episode(&[kind], now)),
        troubles: sources.calls.troubles(),
        clock_offset: sources.registrar.clock_offset(),
        has_cloud: sources.has_cloud,
        failures,
        foreign,
        census: census.as_ref().map(|census| match census {
            Ok(census) => Ok(&**census),
            Err(error) => Err(error.to_string()),
        }),
        configured: enrollments.iter().map(|enrolled| enrolled.name.as_str()).collect(),
        is_draining: sources.registrar.is_draining(),
        waiting: sources.registrar.registrations() as u64,
    })
}

/// Maximum number of devices that are looked up to find out whether they are in another enrollment.
const MAX_LOOKUPS: usize = 500;

/// Returns those devices that were answered with 4.04 although they are in the table, each with its
/// enrollment.
pub(super) async fn foreign(shared: &Shared, failures: &[Failure]) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let invalid = failures.iter().filter(|failure| failure.reason == Reason::Invalid);
    for failure in invalid.take(MAX_LOOKUPS) {
        // If the table cannot be read, another concern reports it.
        if let Ok(Some(enrollment)) = shared.sources.store.enrollment_of(&failure.device).await {
            found.insert(failure.device.to_string(), enrollment);
        }
    }
    found
}

async fn content(shared: &Shared, t: Texts, range: Range) -> Markup {
    let (sources, now) = (&shared.sources, Sample::of(&shared.sources, unix_now()));
    let found = look(shared, &now).await;
    let (bars, total) = {
        let ring = shared.ring();
        (ring.bars(range, &now), ring.total(range, &now))
    };
    let registrar = &sources.registrar;
    let waiting = sources.store.metrics().map_or(0, |metrics| metrics.waiting.load(Ordering::Relaxed));
    let tile = |name, value: &str, about: Markup| {
        html! { div.tile { dt { (t.say(name)) } dd { strong { (value) } " " span { (about) } } } }
    };
    html! {
        p.hint.asof { (t.rich("overview-as-of", [("time", moment(now.at).into())])) }
        @if found.is_empty() { (all_is_well(shared, t)) }
        @for concern in &found { (show_concern(t, concern)) }
        section.card aria-labelledby="requests" {
            div.head {
                h2 #requests { (t.say("overview-requests")) }
                p.ranges {
                    @for choice in Range::ALL {
                        @let name = t.say(match choice { Range::Hour => "range-hour", Range::Day => "range-day", Range::Week => "range-week" });
                        @if choice == range { b aria-current="true" { (name) } }
                        @else { a href={ "/?range=" (choice.name()) } { (name) } }
                    }
                }
            }
            (chart::draw(t, range, &bars, sources.started, now.at))
        }
        div.columns.even {
            section.card aria-labelledby="results" {
                h2 #results { (t.say("overview-results")) }
                (results(t, &total))
            }
            section.card aria-labelledby="handshakes" {
                h2 #handshakes { (t.say("overview-handshakes")) }
                (handshakes(t, &total))
            }
        }
        (failures::top(shared, t))
        dl.tiles {
            (tile("tile-sessions", &grouped(sessions(shared)), html! { (t.say("tile-sessions-about")) }))
            (tile("tile-registrations", &grouped(registrar.registrations() as u64),
                html! { (t.with("tile-registrations-about", [("count", (registrar.waiting() as u64).into())])) }))
            (tile("tile-batches", &grouped(registrar.batches() as u64),
                html! { (t.with("tile-batches-about", [("count", registrar.counters().batches.into())])) }))
            (tile("tile-answered", &within(&metrics::request_latency(sources)), html! { (t.say("tile-answered-about")) }))
            (tile("tile-registered", &within(&registrar.latency()), html! { (t.say("tile-registered-about")) }))
            (tile("tile-writes", &grouped(waiting), html! { (t.say("tile-writes-about")) }))
        }
    }
}

/// Says that there is nothing to do, and what was checked.
fn all_is_well(shared: &Shared, t: Texts) -> Markup {
    let sources = &shared.sources;
    let cloud = match sources.calls.last_worked() {
        _ if !sources.has_cloud => html! { (t.say("looked-no-cloud")) },
        Some(at) => t.rich("looked-cloud", [("time", moment(at).into())]),
        None => html! { (t.say("looked-cloud-idle")) },
    };
    let table = match shared.census.last(&sources.store) {
        Some(Ok(census)) => {
            let devices: u64 = census.totals.iter().map(|totals| totals.devices).sum();
            t.rich("looked-table", [("count", devices.into()), ("time", moment(census.at).into())])
        }
        _ => html! { (t.say("looked-table-not-yet")) },
    };
    let text = html! {
        p { (t.say("nothing-to-do")) }
        ul.looked {
            li { (t.say("looked-requests")) }
            li { (cloud) }
            li { (table) }
            li { (t.say("looked-server")) }
        }
    };
    page::message(Tone::Good, &t.say("all-is-well"), &text)
}

fn show_concern(t: Texts, concern: &Concern) -> Markup {
    let [title, cause, remedy] = concern.subject.keys();
    let listed = concern.names.iter().take(MAX_NAMES).map(String::as_str).collect::<Vec<_>>().join(", ");
    let names = if concern.names.len() > MAX_NAMES { format!("{listed}, …") } else { listed };
    let say = |key| {
        t.rich(
            key,
            [
                ("devices", concern.devices.unwrap_or(0).into()),
                ("times", concern.times.into()),
                ("names", (&names).into()),
            ],
        )
    };
    let own_remedy = concern.code.as_deref().and_then(concerns::remedy_of);
    let facts = [
        concern.since.map(|at| t.rich("fact-since", [("time", moment(at).into())])),
        concern.last.map(|at| t.rich("fact-last", [("time", moment(at).into())])),
        concern.devices.map(|count| html! { (t.with("fact-devices", [("count", count.into())])) }),
    ];
    html! {
        section class={ "message concern " (concern.tone.class()) } {
            h2 { (say(title)) }
            @if facts.iter().any(Option::is_some) {
                p.facts-line { @for fact in facts.iter().flatten() { span { (fact) } } }
            }
            p { b { (t.say("label-cause")) } " " (say(cause)) }
            @if concern.code.is_some() || concern.said.is_some() {
                p { b { (t.say("label-said")) } " " code { bdi {
                    @if let Some(code) = &concern.code { (code) }
                    @if concern.code.is_some() && concern.said.is_some() { ": " }
                    @if let Some(said) = &concern.said { (said) }
                } } }
            }
            p { b { (t.say("label-remedy")) } " "
                @match own_remedy { Some(key) => (t.say(key)), None => (say(remedy)) }
            }
            @if let Some(link) = concern.subject.link() { p { a href=(link) { (t.say("show-concerned")) } } }
        }
    }
}

/// Rows of the table of results: kind of result, catalogue key of its name, code, and link to the
/// requests.
const RESULTS: [(Kind, &str, &str, &str); 10] = [
    (Kind::Served, "kind-served", "2.05", ""),
    (Kind::Invalid, "kind-invalid", "4.04", "/failures?reason=invalid"),
    (Kind::NotYours, "kind-not-yours", "4.03", "/failures?reason=not-yours"),
    (Kind::Disabled, "kind-disabled", "4.03", "/failures?reason=disabled"),
    (Kind::Issued, "kind-issued", "4.03", "/failures?reason=issued"),
    (Kind::TooMany, "kind-too-many", "4.29", "/failures?reason=too-many"),
    (Kind::Malformed, "kind-malformed", "4.xx", ""),
    (Kind::Operator, "kind-operator", "5.02", "/failures?reason=operator"),
    (Kind::Later, "kind-later", "5.03", "/failures?reason=later"),
    (Kind::TimedOut, "kind-timed-out", "5.04", "/failures?reason=timed-out"),
];

fn results(t: Texts, total: &Sample) -> Markup {
    let sum: u64 = RESULTS.iter().map(|(kind, ..)| total.of_kind(*kind)).sum();
    let rows = RESULTS.iter().filter(|(kind, ..)| *kind == Kind::Served || total.of_kind(*kind) > 0);
    html! {
        table.numbers {
            thead { tr {
                th scope="col" { (t.say("results-result")) }
                th scope="col" { (t.say("results-count")) }
                th scope="col" { (t.say("results-share")) }
            } }
            tbody {
                @for (kind, name, code, link) in rows {
                    @let count = total.of_kind(*kind);
                    tr {
                        th scope="row" { (t.say(name)) " " span.hint { (code) } }
                        td { @if link.is_empty() || count == 0 { (grouped(count)) } @else { a href=(link) { (grouped(count)) } } }
                        td { (share(count, sum)) }
                    }
                }
            }
        }
    }
}

fn handshakes(t: Texts, total: &Sample) -> Markup {
    let rows = [
        (Kind::Handshake, "handshake-completed"),
        (Kind::WrongKey, "handshake-wrong-key"),
        (Kind::Silent, "handshake-silent"),
        (Kind::OtherHandshake, "handshake-other"),
    ];
    let sum: u64 = rows.iter().map(|(kind, _)| total.of_kind(*kind)).sum();
    html! {
        table.numbers {
            thead { tr {
                th scope="col" { (t.say("results-result")) }
                th scope="col" { (t.say("results-count")) }
                th scope="col" { (t.say("results-share")) }
            } }
            tbody {
                @for (kind, name) in rows {
                    @let count = total.of_kind(kind);
                    tr { th scope="row" { (t.say(name)) } td { (grouped(count)) } td { (share(count, sum)) } }
                }
            }
        }
    }
}

/// Formats a share in percent, with one decimal. Only a count of zero is shown as 0 %, and only a
/// complete count as 100 %.
fn share(count: u64, of: u64) -> String {
    match (count, of) {
        (_, 0) => "–".to_owned(),
        (0, _) => "0 %".to_owned(),
        (count, of) if count == of => "100 %".to_owned(),
        (count, of) => {
            let permille = (u128::from(count) * 1000 / u128::from(of)).clamp(1, 999);
            format!("{}.{} %", permille / 10, permille % 10)
        }
    }
}

/// Formats the time within which 95 % of the requests or registrations were completed.
fn within(read: &Distribution) -> String {
    match read.quantile(0.95) {
        _ if read.count() == 0 => "–".to_owned(),
        None => "> 30 s".to_owned(),
        Some(seconds) if seconds < 0.001 => format!("{:.0} µs", seconds * 1e6),
        Some(seconds) if seconds < 1.0 => format!("{} ms", seconds * 1e3),
        Some(seconds) => format!("{seconds} s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_hides_neither_one_failure_nor_one_success() {
        for (count, of, expected) in [
            (0, 0, "–"),
            (0, 5, "0 %"),
            (5, 5, "100 %"),
            (1, 1_000_000, "0.1 %"),
            (999_999, 1_000_000, "99.9 %"),
            (118, 284, "41.5 %"),
        ] {
            assert_eq!(share(count, of), expected, "{count} of {of}");
        }
    }

    #[test]
    fn a_concern_never_shows_foreign_text_as_markup() {
        let t = Texts(super::super::language::Language::English);
        let concern = Concern {
            subject: concerns::Subject::CloudFails,
            tone: Tone::Bad,
            since: Some(0),
            last: None,
            times: 3,
            devices: Some(2),
            code: Some("<script>".into()),
            said: Some("\u{202e}<img src=x>".into()),
            names: (0..7).map(|number| format!("<b>{number}")).collect(),
        };
        let shown = show_concern(t, &concern).into_string();
        for hostile in ["<script>", "<img", "<b>0"] {
            assert!(!shown.contains(hostile), "{shown}");
        }
        assert!(shown.contains("1970-01-01 00:00:00 UTC") && shown.contains("2 devices"), "{shown}");
    }
}
