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
        Shared,
        census::Census,
        metrics,
        ring::{self, Kind, Range, Sample},
    },
    device_view::time,
    histogram::Distribution,
    resource::failures::{Failure, Reason},
    store::{StoreError, unix_now},
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
    let Looked { concerns, .. } = look(shared, &now).await;
    let concerns: Vec<_> = concerns
        .iter()
        .map(|concern| {
            json!({
                "subject": concern.subject.keys()[0],
                "severity": concern.tone.class(),
                "since": time(concern.since),
                "last": time(concern.last),
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

const LATER: [Kind; 2] = [Kind::Later, Kind::TimedOut];

fn sessions(shared: &Shared) -> u64 {
    metrics::sum(&shared.sources, |worker| worker.sessions.load(Ordering::Relaxed))
}

/// State of the server at one moment.
struct Looked {
    concerns: Vec<Concern>,
    /// Requests of the last hour that were not served, and whether earlier ones were forgotten.
    failures: (Vec<Failure>, bool),
    census: Option<Result<Arc<Census>, StoreError>>,
}

/// Looks at the server at this moment, and finds the concerns.
async fn look(shared: &Shared, now: &Sample) -> Looked {
    let sources = &shared.sources;
    let (failures, forgotten) = sources.failures.since(now.at - Range::Hour.seconds());
    let foreign = foreign(shared, &failures).await;
    let census = shared.census.last(&sources.store);
    let enrollments = shared.enrollments();
    let ring = shared.ring();
    let concerns = concerns::of(&Situation {
        now: now.at,
        episodes: Kind::ALL.map(|kind| ring.episode(&[kind], now)),
        troubles: sources.calls.troubles(),
        clock_offset: sources.registrar.clock_offset(),
        has_cloud: sources.has_cloud,
        failures: &failures,
        foreign,
        census: census.as_ref().map(|census| match census {
            Ok(census) => Ok(&**census),
            Err(error) => Err(error.to_string()),
        }),
        configured: enrollments.iter().map(|enrolled| enrolled.name.as_str()).collect(),
        is_draining: sources.registrar.is_draining(),
        waiting: sources.registrar.registrations() as u64,
    });
    Looked { concerns, failures: (failures, forgotten), census }
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
    let looked = look(shared, &now).await;
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
        @if looked.concerns.is_empty() { (all_is_well(shared, t, looked.census.as_ref())) }
        @for concern in &looked.concerns { (show_concern(t, concern)) }
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
                (numbers(t, &total, &RESULTS))
            }
            section.card aria-labelledby="handshakes" {
                h2 #handshakes { (t.say("overview-handshakes")) }
                (numbers(t, &total, &HANDSHAKES))
            }
        }
        (failures::top(t, &looked.failures))
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
fn all_is_well(shared: &Shared, t: Texts, census: Option<&Result<Arc<Census>, StoreError>>) -> Markup {
    let sources = &shared.sources;
    let cloud = match sources.calls.last_worked() {
        _ if !sources.has_cloud => html! { (t.say("looked-no-cloud")) },
        Some(at) => t.rich("looked-cloud", [("time", moment(at).into())]),
        None => html! { (t.say("looked-cloud-idle")) },
    };
    let table = match census {
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

/// A row of a table of events.
struct Counted {
    kind: Kind,
    /// Key of its name in the catalogue.
    name: &'static str,
    /// Code of the answer, if it is one.
    code: &'static str,
    /// Page with the requests, if there is one.
    link: &'static str,
    /// Set if the row is shown although nothing was counted.
    always: bool,
}

/// Answers to requests.
const RESULTS: [Counted; 10] = [
    Counted { kind: Kind::Served, name: "kind-served", code: "2.05", link: "", always: true },
    Counted {
        kind: Kind::Invalid,
        name: "kind-invalid",
        code: "4.04",
        link: "/failures?reason=invalid",
        always: false,
    },
    Counted {
        kind: Kind::NotYours,
        name: "kind-not-yours",
        code: "4.03",
        link: "/failures?reason=not-yours",
        always: false,
    },
    Counted {
        kind: Kind::Disabled,
        name: "kind-disabled",
        code: "4.03",
        link: "/failures?reason=disabled",
        always: false,
    },
    Counted {
        kind: Kind::Issued,
        name: "kind-issued",
        code: "4.03",
        link: "/failures?reason=issued",
        always: false,
    },
    Counted {
        kind: Kind::TooMany,
        name: "kind-too-many",
        code: "4.29",
        link: "/failures?reason=too-many",
        always: false,
    },
    Counted { kind: Kind::Malformed, name: "kind-malformed", code: "4.xx", link: "", always: false },
    Counted {
        kind: Kind::Operator,
        name: "kind-operator",
        code: "5.02",
        link: "/failures?reason=operator",
        always: false,
    },
    Counted {
        kind: Kind::Later,
        name: "kind-later",
        code: "5.03",
        link: "/failures?reason=later",
        always: false,
    },
    Counted {
        kind: Kind::TimedOut,
        name: "kind-timed-out",
        code: "5.04",
        link: "/failures?reason=timed-out",
        always: false,
    },
];

/// Results of handshakes.
const HANDSHAKES: [Counted; 4] = [
    Counted { kind: Kind::Handshake, name: "handshake-completed", code: "", link: "", always: true },
    Counted { kind: Kind::WrongKey, name: "handshake-wrong-key", code: "", link: "", always: true },
    Counted { kind: Kind::Silent, name: "handshake-silent", code: "", link: "", always: true },
    Counted { kind: Kind::OtherHandshake, name: "handshake-other", code: "", link: "", always: true },
];

/// Renders the number and share of each kind of event.
fn numbers(t: Texts, total: &Sample, rows: &[Counted]) -> Markup {
    let sum: u64 = rows.iter().map(|row| total.of_kind(row.kind)).sum();
    let shown = rows.iter().map(|row| (row, total.of_kind(row.kind)));
    html! {
        table.numbers {
            thead { tr {
                th scope="col" { (t.say("results-result")) }
                th scope="col" { (t.say("results-count")) }
                th scope="col" { (t.say("results-share")) }
            } }
            tbody {
                @for (row, count) in shown.filter(|(row, count)| row.always || *count > 0) {
                    tr {
                        th scope="row" { (t.say(row.name)) @if !row.code.is_empty() { " " span.hint { (row.code) } } }
                        td { @if row.link.is_empty() || count == 0 { (grouped(count)) } @else { a href=(row.link) { (grouped(count)) } } }
                        td { (share(count, sum)) }
                    }
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
