//! The first page: shows the concerns that need an operator, and recent requests.

use std::sync::{Arc, atomic::Ordering};

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
    concerns::{self, Concern, Course, MAX_NAMES, Outlook, Situation},
    devices, failures, grouped, handshakes,
    language::Texts,
    page::{self, Frame, Tone, moment},
    unserved::{self, Recent},
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
    iot_platform::calls::Trouble,
    registrar::{Target, Targets},
    store::{StoreError, UnixSeconds, unix_now},
};

#[derive(Deserialize)]
pub(super) struct Choice {
    /// Name of the range.
    #[serde(default)]
    range: String,
}

impl Choice {
    fn range(&self) -> Range {
        Range::named(&self.range).unwrap_or_default()
    }
}

pub(super) async fn show(
    State(shared): State<Arc<Shared>>,
    frame: Frame,
    visitor: Visitor,
    headers: HeaderMap,
    Query(choice): Query<Choice>,
) -> Response {
    if wants_json(&headers) {
        return Json(summary(&shared).await).into_response();
    }
    let (t, range) = (frame.texts, choice.range());
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
    Query(choice): Query<Choice>,
) -> Markup {
    content(&shared, frame.texts, choice.range()).await
}

async fn summary(shared: &Shared) -> serde_json::Value {
    let (sources, now) = (&shared.sources, Sample::of(&shared.sources, unix_now()));
    let Looked { concerns, outlook, hour, .. } = look(shared, &now).await;
    let concerns: Vec<_> = concerns
        .iter()
        .map(|concern| {
            let mut shown = json!({
                "subject": concern.subject.keys()[0],
                "severity": concern.tone.class(),
                "course": match concern.course {
                    Course::On => "on",
                    Course::Over => "over",
                    Course::Untested => "untested",
                },
                "since": time(concern.since),
                "last": time(concern.last),
                "counted": time(concern.counted),
                "times": concern.times,
                "devices": concern.devices,
                "code": concern.code,
                "names": concern.names,
                "pairs": concern.pairs,
            });
            if let Some(target) = &concern.target {
                shown["target"] = target.as_str().into();
            }
            shown
        })
        .collect();
    json!({
        "concerns": concerns,
        "outlook": concerns.is_empty().then_some(match outlook {
            Outlook::Well => "well",
            Outlook::Idle => "idle",
            Outlook::Early => "early",
        }),
        "lastHour": {
            "served": hour.of_kind(Kind::Served),
            "refused": hour.sum(&Kind::REFUSED),
            "refusedByCloud": hour.of_kind(Kind::Operator),
            "later": hour.sum(&LATER),
            "failedHandshakes": hour.sum(&Kind::FAILED_HANDSHAKES),
        },
        "sessions": sessions(shared),
        "registrations": sources.targets.registrations(),
        "registrationsWaiting": sources.targets.waiting(),
        "batches": sources.targets.batches(),
        "breakersOpen": sources.targets.open_breakers(),
        "draining": sources.targets.is_draining(),
    })
}

const LATER: [Kind; 2] = [Kind::Later, Kind::TimedOut];

fn sessions(shared: &Shared) -> u64 {
    metrics::sum(&shared.sources, |worker| worker.sessions.load(Ordering::Relaxed))
}

/// State of the server at one moment.
struct Looked {
    concerns: Vec<Concern>,
    /// Conclusion if there is no concern.
    outlook: Outlook,
    /// Requests of the last day that were not served.
    recent: Recent,
    census: Option<Result<Arc<Census>, StoreError>>,
    /// Events of the last hour.
    hour: Sample,
}

/// Reads the present state of the server, and finds the concerns.
async fn look(shared: &Shared, now: &Sample) -> Looked {
    let sources = &shared.sources;
    let recent = unserved::since(shared, now.at - Range::Day.seconds()).await;
    let (handshakes, _) = handshakes::since(shared, now.at - Range::Hour.seconds());
    let census = shared.census().await;
    let enrollments = shared.enrollments();
    let ring = shared.ring();
    let hour = ring.total(Range::Hour, now);
    let unanswered = unanswered(&sources.targets);
    let situation = Situation {
        now: now.at,
        episodes: Kind::ALL.map(|kind| ring.episode(&[kind], now)),
        troubles: troubles(&sources.targets),
        unanswered_since: unanswered.as_ref().map(|(since, _)| *since),
        unanswered_target: unanswered.and_then(|(_, target)| target),
        clock_offset: sources.targets.clock_offset(),
        cloud_worked: last_worked(&sources.targets),
        has_cloud: sources.targets.has_cloud(),
        unserved: &recent.all,
        handshakes: &handshakes,
        census: census.as_ref().map(|census| match census {
            Ok(census) => Ok(&**census),
            Err(error) => Err(error.to_string()),
        }),
        configured: enrollments.iter().map(|enrolled| enrolled.name.as_str()).collect(),
        targets: sources.targets.all().iter().map(Target::name).collect(),
        is_draining: sources.targets.is_draining(),
        waiting: sources.targets.registrations() as u64,
    };
    let concerns = concerns::of(&situation);
    let outlook = concerns::outlook(&situation, sources.started, hour.sum(&Kind::ALL));
    Looked { concerns, outlook, recent, census, hour }
}

/// Returns the name of a target, if the configuration names targets.
fn shown_name(targets: &Targets, target: &Target) -> Option<String> {
    targets.are_named().then(|| target.name().to_owned())
}

/// Returns the failing calls to the clouds of all targets.
fn troubles(targets: &Targets) -> Vec<Trouble> {
    let of = |target: &Target| {
        let name = shown_name(targets, target);
        target.calls.troubles().into_iter().map(move |trouble| Trouble { target: name.clone(), ..trouble })
    };
    targets.all().iter().flat_map(of).collect()
}

/// Returns the start time of the oldest call that has no answer yet, and its target.
fn unanswered(targets: &Targets) -> Option<(UnixSeconds, Option<String>)> {
    let of = |target: &Target| Some((target.calls.unanswered_since()?, shown_name(targets, target)));
    targets.all().iter().filter_map(of).min()
}

/// Returns the time of the last successful call to the cloud of any target.
fn last_worked(targets: &Targets) -> Option<UnixSeconds> {
    targets.all().iter().filter_map(|target| target.calls.last_worked()).max()
}

async fn content(shared: &Shared, t: Texts, range: Range) -> Markup {
    let (sources, now) = (&shared.sources, Sample::of(&shared.sources, unix_now()));
    let looked = look(shared, &now).await;
    let (bars, total) = {
        let ring = shared.ring();
        (ring.bars(range, &now), ring.total(range, &now))
    };
    let registrar = &sources.targets;
    let waiting = sources.store.metrics().map_or(0, |metrics| metrics.waiting.load(Ordering::Relaxed));
    let tile = |name, value: &str, about: Markup| {
        html! { div.tile { dt { (t.say(name)) } dd { strong { (value) } " " span { (about) } } } }
    };
    html! {
        p.hint.asof { (t.rich("overview-as-of", [("time", moment(now.at).into())])) }
        @if looked.concerns.is_empty() { (no_concern(shared, t, &looked, now.at)) }
        @if looked.concerns.len() > 1 {
            p { (t.with("concerns-count", [("count", (looked.concerns.len() as u64).into())])) }
        }
        @for concern in &looked.concerns { (Shown::of(shared, t, concern).render()) }
        section.card aria-labelledby="requests" {
            div.head {
                h2 #requests { (t.say("overview-requests")) }
                (page::ranges(t, range, |other| format!("/?range={}", other.name())))
            }
            (chart::draw(t, range, &bars, sources.started, now.at))
        }
        div.columns.even {
            section.card aria-labelledby="results" {
                h2 #results { (t.say("overview-results")) }
                (numbers(t, range, &total, &RESULTS))
            }
            section.card aria-labelledby="handshakes" {
                h2 #handshakes { (t.say("overview-handshakes")) }
                (numbers(t, range, &total, &HANDSHAKES))
            }
        }
        (failures::top(t, &looked.recent, now.at - Range::Hour.seconds()))
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

/// Renders the message that no fault is known, and the checks on which it is based. The message is
/// grey if the checks prove little.
fn no_concern(shared: &Shared, t: Texts, looked: &Looked, now: UnixSeconds) -> Markup {
    let sources = &shared.sources;
    let cloud = match last_worked(&sources.targets) {
        _ if !sources.targets.has_cloud() => html! { (t.say("looked-no-cloud")) },
        Some(at) => t.rich("looked-cloud", [("time", moment(at).into())]),
        None => html! { (t.say("looked-cloud-idle")) },
    };
    let table = match &looked.census {
        Some(Ok(census)) => {
            t.rich("looked-table", [("count", census.sum.devices.into()), ("time", moment(census.at).into())])
        }
        _ => html! { (t.say("looked-table-not-yet")) },
    };
    let hour = &looked.hour;
    let since = moment(sources.started.max(now - Range::Hour.seconds()));
    let served = hour.of_kind(Kind::Served);
    let unserved = hour.sum(&Kind::REFUSED) + hour.of_kind(Kind::Operator) + hour.sum(&LATER);
    let requests = match (served, unserved) {
        (0, 0) => t.rich("looked-requests-none", [("time", since.into())]),
        (_, 0) => t.rich("looked-requests", [("time", since.into()), ("served", served.into())]),
        _ => t.rich(
            "looked-requests-mended",
            [("time", since.into()), ("served", served.into()), ("unserved", unserved.into())],
        ),
    };
    let started = sources.started;
    let (tone, title, text) = match looked.outlook {
        Outlook::Well => (Tone::Good, "all-is-well", html! { (t.say("nothing-to-do")) }),
        Outlook::Idle => (Tone::Note, "no-device-came", html! { (t.say("no-device-came-text")) }),
        Outlook::Early if now - started < concerns::EARLY => {
            let until = started.saturating_add(concerns::EARLY);
            let values = [("time", moment(started).into()), ("until", moment(until).into())];
            (Tone::Note, "too-early", t.rich("too-early-text", values))
        }
        Outlook::Early => (Tone::Note, "too-early", html! { (t.say("too-early-counting")) }),
    };
    let text = html! {
        p { (text) }
        ul.looked {
            li { (requests) }
            li { (cloud) }
            li { (table) }
            li { (t.say("looked-server")) }
        }
    };
    page::message(tone, &t.say(title), &text)
}

/// A concern, with the context that its texts need.
struct Shown<'c> {
    t: Texts,
    concern: &'c Concern,
    started: UnixSeconds,
    /// Host of IoT Platform.
    cloud: &'c str,
}

impl<'c> Shown<'c> {
    fn of(shared: &'c Shared, t: Texts, concern: &'c Concern) -> Self {
        let targets = &shared.sources.targets;
        let own = concern.target.as_deref().and_then(|name| targets.named(name));
        let cloud =
            own.or(targets.all().first()).and_then(|target| target.host.as_deref()).unwrap_or_default();
        Self { t, concern, started: shared.sources.started, cloud }
    }

    fn say(&self, key: &'static str) -> Markup {
        let Self { t, concern, .. } = self;
        let pair = |(own, key): &(String, String)| {
            t.with("enrollment-pair", [("own", own.into()), ("key", key.into())])
        };
        let names = || concern.names.iter().cloned().chain(concern.pairs.iter().map(pair));
        let mut listed = names().take(MAX_NAMES).collect::<Vec<_>>().join(&t.say("list-comma"));
        if names().count() > MAX_NAMES {
            listed += &t.say("list-comma");
            listed += "…";
        }
        let (own, of_key) = concern.pairs.first().map_or(("", ""), |(own, key)| (own, key));
        t.rich(
            key,
            [
                ("devices", concern.devices.unwrap_or(0).into()),
                ("times", concern.times.into()),
                ("names", (&listed).into()),
                ("cloud", self.cloud.into()),
                ("own", own.into()),
                ("key", of_key.into()),
            ],
        )
    }

    /// Returns the times, and the number of devices.
    fn facts(&self) -> Vec<Markup> {
        let Self { t, concern, started, .. } = self;
        let at = |key, time| t.rich(key, [("time", moment(time).into())]);
        let is_single = concern.times == 1 && concern.last.is_some();
        let since = concern.since.filter(|_| !is_single).map(|since| {
            // The samples begin when the server starts, but the fault may have begun earlier.
            let is_vague = since - started <= ring::EVERY.as_secs().cast_signed();
            at(if is_vague { "fact-since-or-earlier" } else { "fact-since" }, since)
        });
        let last = concern.last.map(|last| match concern.course {
            Course::Over => at("fact-over", last),
            Course::On | Course::Untested if is_single => at("fact-at", last),
            Course::On | Course::Untested => at("fact-last", last),
        });
        let counted = concern.counted.map(|counted| at("fact-counted", counted));
        let devices =
            concern.devices.map(|count| html! { (t.with("fact-devices", [("count", count.into())])) });
        let target =
            concern.target.as_ref().map(|target| t.rich("fact-at-target", [("target", target.into())]));
        [target, devices, since, last, counted].into_iter().flatten().collect()
    }

    fn render(&self) -> Markup {
        let Self { t, concern, .. } = self;
        let [title, cause, remedy] = concern.subject.keys();
        let code = concern.code.as_deref();
        let title = code.and_then(concerns::title_of).unwrap_or(title);
        let cause = code.and_then(concerns::cause_of).unwrap_or(cause);
        let remedy = match code.and_then(concerns::remedy_of) {
            Some(own) => own,
            None if concern.pairs.len() > 1 => "wrong-enrollment-remedy-several",
            None => remedy,
        };
        let facts = self.facts();
        html! {
            section class={ "message concern " (concern.tone.class()) } {
                h2 { (self.say(title)) }
                @if !facts.is_empty() { p.facts-line { @for fact in &facts { span { (fact) } } } }
                p { b { (t.say("label-cause")) } " " (self.say(cause)) }
                @if concern.code.is_some() || concern.said.is_some() {
                    p { b { (t.say("label-said")) } " " code { bdi {
                        @if let Some(code) = &concern.code { (code) }
                        @if concern.code.is_some() && concern.said.is_some() { ": " }
                        @if let Some(said) = &concern.said { (said) }
                    } } }
                }
                p { b { (t.say("label-remedy")) } " " (self.say(remedy)) }
                @match concern.course {
                    Course::On => {}
                    Course::Over => { p { (t.say("course-over")) } }
                    Course::Untested => { p { (t.say("course-untested")) } }
                }
                (self.devices())
            }
        }
    }

    /// Renders links to the first of the devices concerned, and to all of them.
    fn devices(&self) -> Markup {
        let Self { t, concern, .. } = self;
        let Some(link) = concern.link() else { return html! {} };
        html! {
            p {
                @for id in &concern.ids { a.id href=(devices::link(id)) { (id) } " " }
                a href=(link) {
                    (t.say(if link.starts_with("/handshakes") { "show-handshakes" } else { "show-concerned" }))
                }
            }
        }
    }
}

/// A row of a table of events.
struct Counted {
    kind: Kind,
    /// Catalogue key of the name of the event.
    name: &'static str,
    /// Code of the answer; empty if the event is not an answer.
    code: &'static str,
    /// Page that lists the requests; empty if there is no such page.
    link: &'static str,
    /// Set if the row is shown although nothing was counted.
    always: bool,
}

/// Answers to requests.
const RESULTS: [Counted; 13] = [
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
        kind: Kind::Closed,
        name: "kind-closed",
        code: "4.03",
        link: "/failures?reason=closed",
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
        kind: Kind::NotOpen,
        name: "kind-not-open",
        code: "5.03",
        link: "/failures?reason=not-open",
        always: false,
    },
    Counted {
        kind: Kind::Held,
        name: "kind-held",
        code: "5.03",
        link: "/failures?reason=held",
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
    Counted {
        kind: Kind::WrongKey,
        name: "handshake-wrong-key",
        code: "",
        link: "/handshakes?result=wrong-key",
        always: true,
    },
    Counted {
        kind: Kind::Silent,
        name: "handshake-silent",
        code: "",
        link: "/handshakes?result=silent",
        always: true,
    },
    Counted {
        kind: Kind::OtherHandshake,
        name: "handshake-other",
        code: "",
        link: "/handshakes?result=other",
        always: true,
    },
];

/// Renders the number and share of each kind of event in a range.
fn numbers(t: Texts, range: Range, total: &Sample, rows: &[Counted]) -> Markup {
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
                        td { @if row.link.is_empty() || count == 0 { (grouped(count)) } @else { a href={ (row.link) "&range=" (range.name()) } { (grouped(count)) } } }
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

    fn shown_at(since: UnixSeconds, last: UnixSeconds) -> Concern {
        let subject = concerns::Subject::CloudFails;
        Concern { since: Some(since), last: Some(last), ..Concern::of(subject) }
    }

    #[test]
    fn the_times_of_a_concern_say_how_sure_they_are() {
        let t = Texts(super::super::language::Language::English);
        let facts = |concern: &Concern| {
            let shown = Shown { t, concern, started: 1000, cloud: "" };
            shown.facts().into_iter().map(|fact| fact.into_string()).collect::<Vec<_>>().join("; ")
        };
        let several = |since| Concern { times: 9, ..shown_at(since, 5000) };
        assert!(facts(&several(1010)).contains("before that"));
        assert!(!facts(&several(1011)).contains("before that"));
        let single = facts(&Concern { times: 1, ..shown_at(4990, 5000) });
        assert!(single.starts_with("at ") && !single.contains("since"), "{single}");
        let over = facts(&Concern { course: Course::Over, ..several(2000) });
        assert!(over.contains("none since"), "{over}");
    }

    #[test]
    fn a_concern_never_shows_foreign_text_as_markup() {
        let t = Texts(super::super::language::Language::English);
        let concern = Concern {
            times: 3,
            devices: Some(2),
            code: Some("<script>".into()),
            said: Some("\u{202e}<img src=x>".into()),
            names: (0..7).map(|number| format!("<b>{number}")).collect(),
            ..shown_at(0, 0)
        };
        let shown = Shown { t, concern: &concern, started: 0, cloud: "<i>" }.render().into_string();
        for hostile in ["<script>", "<img", "<b>0", "<i>"] {
            assert!(!shown.contains(hostile), "{shown}");
        }
        assert!(shown.contains("1970-01-01 00:00:00 UTC") && shown.contains("2 devices"), "{shown}");
    }
}
