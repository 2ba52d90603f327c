//! Shows the jobs of this server: their actions, their progress, and how they ended.

use std::{sync::Arc, time::Duration};

use axum::{
    extract::{Query, State},
    http::StatusCode,
    response::{IntoResponse, Redirect, Response},
};
use maud::{Markup, html};

use super::{
    OperatorForm, Visitor, bulk,
    conditions::Conditions,
    devices::link as device_link,
    language::Texts,
    page::{self, Frame, Tone, moment},
};
use crate::{
    admin::{
        Shared,
        jobs::{How, Job, Known, Progress, Target},
    },
    store::unix_now,
};

/// Interval at which the page of a job updates itself.
const EVERY: Duration = Duration::from_secs(2);

/// Returns the address of a job's page.
pub(super) fn link(id: &str) -> String {
    Conditions::default().path("/jobs", &[("id", id)], &[])
}

/// ID of the requested job.
#[derive(serde::Deserialize)]
pub(super) struct Which {
    #[serde(default)]
    id: String,
}

pub(super) async fn show(
    State(shared): State<Arc<Shared>>,
    frame: Frame,
    visitor: Visitor,
    Query(which): Query<Which>,
) -> Response {
    if which.id.is_empty() {
        return all(&shared, &frame, &visitor);
    }
    let t = frame.texts;
    let job = match shared.pages.jobs.find(&which.id) {
        Known::Job(job) => job,
        other => return unknown(&shared, &frame, &visitor, matches!(other, Known::BeforeStart)),
    };
    let title = heading(t, &job);
    let is_running = job.progress().end.is_none();
    let live = Conditions::default().path("/jobs/live", &[("id", &job.id)], &[]);
    let body = html! {
        p.crumb { a href="/jobs" { (t.say("jobs-title")) } }
        h1 { (title) }
        @if is_running { (frame.live(&live, EVERY, &content(t, &job))) }
        @else { (content(t, &job)) }
        @if is_running && visitor.is_operator() {
            form.card method="post" action="/jobs/stop" {
                (frame.hidden(&visitor))
                input type="hidden" name="id" value=(job.id);
                button.danger type="submit" { (t.say("job-stop")) }
                p.hint { (t.say("job-stop-text")) }
            }
        }
    };
    frame.page(&title, Some(&visitor), "/devices", &body).into_response()
}

/// Serves the part of the page that its script updates regularly.
pub(super) async fn live(
    State(shared): State<Arc<Shared>>,
    frame: Frame,
    _: Visitor,
    Query(which): Query<Which>,
) -> Response {
    match shared.pages.jobs.find(&which.id) {
        Known::Job(job) => content(frame.texts, &job).into_response(),
        _ => StatusCode::NOT_FOUND.into_response(),
    }
}

pub(super) async fn stop(State(shared): State<Arc<Shared>>, OperatorForm(sent): OperatorForm) -> Response {
    match shared.pages.jobs.find(&sent.fields.id) {
        Known::Job(job) => {
            job.stop(&sent.visitor.actor().name);
            Redirect::to(&link(&job.id)).into_response()
        }
        other => unknown(&shared, &sent.frame, &sent.visitor, matches!(other, Known::BeforeStart)),
    }
}

fn heading(t: Texts, job: &Job) -> String {
    let name = t.say(bulk::name_of(job.order.action));
    t.with("bulk-heading", [("action", (&name).into()), ("count", job.order.expected.into())])
}

fn content(t: Texts, job: &Job) -> Markup {
    let progress = job.progress();
    let Progress { changed, unchanged, absent, failed, ref reasons, ref end } = progress;
    let expected = job.order.expected;
    html! {
        (outcome(t, job, end.as_ref().map(|(_, how)| how)))
        section.card {
            div.step {
                span { (t.say("job-done")) }
                span.number { (t.rich("job-done-of", [("done", progress.done().into()), ("all", expected.into())])) }
                progress aria-label=(t.say("job-done")) value=(progress.done()) max=(expected.max(1)) {}
            }
            dl.facts {
                (fact(t, "job-changed", changed))
                @if unchanged > 0 { (fact(t, "job-unchanged", unchanged)) }
                @if absent > 0 { (fact(t, "job-absent", absent)) }
                @if failed > 0 { (fact(t, "job-failed", failed)) }
                div { dt { (t.say("job-by")) } dd { bdi { (job.order.by.name) } } }
                div { dt { (t.say("job-began")) } dd { (moment(job.began)) } }
                @if let Some((at, _)) = end { div { dt { (t.say("job-ended")) } dd { (moment(*at)) } } }
                @else if let Some(at) = expected_end(job, &progress) { div { dt { (t.say("job-expected")) } dd { (moment(at)) } } }
            }
            @if let Target::Filter(_) = job.order.target { p.hint { (t.say("job-audit")) } }
        }
        @if !reasons.is_empty() {
            section.card {
                h2 { (t.say("job-reasons")) }
                ul {
                    @for (reason, (devices, first)) in reasons {
                        @let first = html! { a.id href=(device_link(first)) { (first) } };
                        li { (t.rich("job-reason", [("count", (*devices).into()), ("reason", reason.into()), ("device", first.into())])) }
                    }
                }
            }
        }
    }
}

fn fact(t: Texts, key: &'static str, count: u64) -> Markup {
    html! { div { dt { (t.say(key)) } dd { (t.rich("count", [("count", count.into())])) } } }
}

/// Returns the time at which a job will end if it continues at its average rate.
fn expected_end(job: &Job, progress: &Progress) -> Option<i64> {
    let elapsed = unix_now().saturating_sub(job.began);
    let done = i64::try_from(progress.done()).ok().filter(|done| *done > 0)?;
    let left = i64::try_from(job.order.expected).ok()?.saturating_sub(done).max(0);
    Some(unix_now().saturating_add(elapsed.saturating_mul(left) / done))
}

/// Renders whether a job is running or how it ended.
fn outcome(t: Texts, job: &Job, end: Option<&How>) -> Markup {
    let message =
        |tone, title: &'static str, text: Markup| page::message(tone, &t.say(title), &html! { p { (text) } });
    let plain = |key: &'static str| html! { (t.say(key)) };
    let failed = job.progress().failed;
    match end {
        None => message(Tone::Note, "job-running", plain("job-running-text")),
        Some(How::Complete) if failed > 0 => {
            message(Tone::Warning, "job-complete-with-failures", plain("job-failures-text"))
        }
        Some(How::Complete) => message(Tone::Good, "job-complete", plain("job-complete-text")),
        Some(How::More) => message(Tone::Warning, "job-more", plain("job-more-text")),
        Some(How::Stopped(by)) => {
            message(Tone::Warning, "job-stopped", t.rich("job-stopped-text", [("who", by.into())]))
        }
        Some(How::ShuttingDown) => {
            message(Tone::Warning, "job-shutting-down", plain("job-shutting-down-text"))
        }
        Some(How::Failed(error)) => {
            message(Tone::Bad, "job-broken", t.rich("job-broken-text", [("error", error.into())]))
        }
    }
}

fn all(shared: &Shared, frame: &Frame, visitor: &Visitor) -> Response {
    let t = frame.texts;
    let jobs = shared.pages.jobs.all();
    let since = t.rich("jobs-since", [("time", moment(shared.sources.started).into())]);
    let body = html! {
        p.crumb { a href="/devices" { (t.say("nav-devices")) } }
        h1 { (t.say("jobs-title")) }
        p.hint { (since) }
        @if jobs.is_empty() { (page::message(Tone::Note, &t.say("jobs-none"), &html! { p { (t.say("jobs-none-text")) } })) }
        @else {
            div.card {
                table.stacked {
                    thead { tr {
                        th scope="col" { (t.say("column-job")) }
                        th scope="col" { (t.say("job-began")) }
                        th scope="col" { (t.say("job-by")) }
                        th scope="col" { (t.say("column-state")) }
                    } }
                    tbody {
                        @for job in &jobs {
                            @let progress = job.progress();
                            tr {
                                th scope="row" { a href=(link(&job.id)) { (heading(t, job)) } }
                                td data-label=(t.say("job-began")) { (moment(job.began)) }
                                td data-label=(t.say("job-by")) { bdi { (job.order.by.name) } }
                                td data-label=(t.say("column-state")) {
                                    (t.say(state(progress.end.as_ref().map(|(_, how)| how)))) " · "
                                    (t.rich("job-done-of", [("done", progress.done().into()), ("all", job.order.expected.into())]))
                                }
                            }
                        }
                    }
                }
            }
        }
    };
    frame.page(&t.say("jobs-title"), Some(visitor), "/devices", &body).into_response()
}

fn state(end: Option<&How>) -> &'static str {
    match end {
        None => "job-running",
        Some(How::Complete) => "job-complete",
        Some(How::More) => "job-more",
        Some(How::Stopped(_)) => "job-stopped",
        Some(How::ShuttingDown) => "job-shutting-down",
        Some(How::Failed(_)) => "job-broken",
    }
}

/// Says that the server does not know the job, and why.
fn unknown(shared: &Shared, frame: &Frame, visitor: &Visitor, was_before: bool) -> Response {
    let t = frame.texts;
    let (title, text) = if was_before {
        let started = moment(shared.sources.started);
        (t.say("job-before-start"), t.rich("job-before-start-text", [("time", started.into())]))
    } else {
        (t.say("job-unknown"), html! { (t.say("job-unknown-text")) })
    };
    let text = html! { p { (text) } p { a href="/jobs" { (t.say("jobs-title")) } } };
    let body = html! { h1 { (title) } (page::message(Tone::Warning, &title, &text)) };
    (StatusCode::NOT_FOUND, frame.page(&title, Some(visitor), "/devices", &body)).into_response()
}
