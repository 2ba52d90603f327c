//! Shows the jobs of this server, with their actions, their progress, and the way in which they
//! ended.

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
    page::{self, Frame, Tone, english, moment},
};
use crate::{
    admin::{
        Shared, blocking,
        jobs::{
            Action, How, Job, Known, NO_ANSWER, Progress,
            record::{self, Recorded},
        },
        ring::Range,
    },
    store::unix_now,
};

/// Interval at which the page of a job updates itself.
const EVERY: Duration = Duration::from_secs(2);

/// Maximum time for which the audit log is searched for a job.
const SEARCH: Duration = Duration::from_secs(5);

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
        return all(&shared, &frame, &visitor).await;
    }
    let t = frame.texts;
    let job = match shared.pages.jobs.find(&which.id) {
        Known::Job(job) => job,
        Known::Elsewhere => return recorded(&shared, &frame, &visitor, which.id).await,
        Known::Unknown => return unknown(&frame, &visitor, ("job-unknown", "job-unknown-text")),
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
        Known::Elsewhere => recorded(&shared, &sent.frame, &sent.visitor, sent.fields.id).await,
        Known::Unknown => unknown(&sent.frame, &sent.visitor, ("job-unknown", "job-unknown-text")),
    }
}

pub(super) fn heading(t: Texts, job: &Job) -> String {
    let name = t.say(bulk::name_of(job.order.action));
    t.with("bulk-heading", [("action", (&name).into()), ("count", job.order.expected.into())])
}

fn content(t: Texts, job: &Job) -> Markup {
    let progress = job.progress();
    let Progress { changed, unchanged, absent, failed, disabled, refused, ref reasons, ref end } = progress;
    let expected = job.order.expected;
    let is_recorded = !matches!(end, Some((_, How::Unrecorded)));
    html! {
        (outcome(t, job, end.as_ref().map(|(_, how)| how)))
        section.card {
            @if is_recorded { div.step {
                span { (t.say("job-done")) }
                span.number { (t.rich("job-done-of", [("done", progress.done().into()), ("all", expected.into())])) }
                progress aria-label=(t.say("job-done")) value=(progress.done()) max=(expected.max(1)) {}
            } }
            dl.facts {
                @if is_recorded { (fact(t, "job-changed", changed)) }
                @if unchanged > 0 { (fact(t, "job-unchanged", unchanged)) }
                @if absent > 0 { (fact(t, "job-absent", absent)) }
                @if failed > 0 { (fact(t, "job-failed", failed)) }
                @if disabled > 0 { (fact(t, "job-disabled", disabled)) }
                @if refused > 0 { (fact(t, "job-refused", refused)) }
                div { dt { (t.say("job-by")) } dd { bdi { (job.order.by.name) } } }
                div { dt { (t.say("job-began")) } dd { (moment(job.began)) } }
                @if !is_recorded {}
                @else if let Some((at, _)) = end { div { dt { (t.say("job-ended")) } dd { (moment(*at)) } } }
                @else if let Some(at) = expected_end(job, &progress) { div { dt { (t.say("job-expected")) } dd { (moment(at)) } } }
            }
            p.hint { (t.say("job-audit")) }
        }
        @if !reasons.is_empty() {
            section.card {
                h2 { (t.say("job-reasons")) }
                ul {
                    @for (reason, (devices, first)) in reasons {
                        @let first = html! { a.id href=(device_link(first)) { (first) } };
                        li { (t.rich("job-reason", [("count", (*devices).into()), ("reason", said(t, reason).into()), ("device", first.into())])) }
                    }
                }
            }
        }
    }
}

/// Renders the reason of a failure. Reasons from the store and from IoT Platform are in English.
fn said(t: Texts, reason: &str) -> Markup {
    if reason == NO_ANSWER {
        html! { (t.say("job-no-answer")) }
    } else {
        english(reason)
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

/// Renders whether a job is running or how it ended, and how to continue.
fn outcome(t: Texts, job: &Job, end: Option<&How>) -> Markup {
    let message = |tone, title: &'static str, text: Markup, is_whole: bool| {
        let text = html! { p { (text) } @if !is_whole { p { (t.say(again(job.order.action))) } } };
        page::message(tone, &t.say(title), &text)
    };
    let plain = |key: &'static str| html! { (t.say(key)) };
    let failed = job.progress().failed;
    match end {
        None => message(Tone::Note, "job-running", plain("job-running-text"), true),
        Some(How::Complete) if failed > 0 => {
            message(Tone::Warning, "job-complete-with-failures", plain("job-failures-text"), false)
        }
        Some(How::Complete) => message(Tone::Good, "job-complete", plain("job-complete-text"), true),
        Some(How::More) => message(Tone::Warning, "job-more", plain("job-more-text"), true),
        Some(How::Stopped(by)) => {
            message(Tone::Warning, "job-stopped", t.rich("job-stopped-text", [("who", by.into())]), true)
        }
        Some(How::ShuttingDown) => {
            message(Tone::Warning, "job-shutting-down", plain("job-shutting-down-text"), false)
        }
        Some(How::Failed(error)) => message(
            Tone::Bad,
            "job-broken",
            t.rich("job-broken-text", [("error", english(error).into())]),
            false,
        ),
        Some(How::Unrecorded) => {
            message(Tone::Warning, "job-unrecorded", plain("job-unrecorded-text"), false)
        }
    }
}

/// Returns the catalogue key of the advice on how to continue an action that was not carried out on
/// all devices. A reset has separate advice, because a device that was reset may have fetched its
/// certificate again in the meantime.
fn again(action: Action) -> &'static str {
    match action {
        Action::Reset => "job-again-reset",
        Action::Disable | Action::Enable | Action::Register | Action::Delete => "job-again",
    }
}

async fn all(shared: &Shared, frame: &Frame, visitor: &Visitor) -> Response {
    let t = frame.texts;
    let mut jobs = shared.pages.jobs.all();
    let (store, since) = (shared.sources.store.clone(), unix_now() - Range::Day.seconds());
    match blocking(move || record::unfinished(store.as_ref(), since, SEARCH)).await {
        Ok(unfinished) => {
            let is_known = |job: &Job| jobs.iter().any(|known| known.id == job.id);
            let lost: Vec<_> = unfinished.into_iter().filter(|job| !is_known(job)).map(Arc::new).collect();
            jobs.extend(lost);
        }
        Err(error) => return frame.store_failed(visitor, &error),
    }
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
                                    (t.say(state(progress.end.as_ref().map(|(_, how)| how))))
                                    @if !matches!(progress.end, Some((_, How::Unrecorded))) { " · "
                                    (t.rich("job-done-of", [("done", progress.done().into()), ("all", job.order.expected.into())])) }
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
        Some(How::Unrecorded) => "job-unrecorded",
    }
}

/// Shows a job that this server does not remember, as far as the audit log knows it.
async fn recorded(shared: &Shared, frame: &Frame, visitor: &Visitor, id: String) -> Response {
    let store = shared.sources.store.clone();
    let job = match blocking(move || record::find(store.as_ref(), &id, SEARCH)).await {
        Ok(Recorded::Job(job)) => job,
        Ok(Recorded::None) => return unknown(frame, visitor, ("job-unknown", "job-unknown-text")),
        Ok(Recorded::TimeUp) => return unknown(frame, visitor, ("job-not-found", "job-not-found-text")),
        Err(error) => return frame.store_failed(visitor, &error),
    };
    let t = frame.texts;
    let title = heading(t, &job);
    let started = t.rich("job-from-log", [("time", moment(shared.sources.started).into())]);
    let body = html! {
        p.crumb { a href="/jobs" { (t.say("jobs-title")) } }
        h1 { (title) }
        (content(t, &job))
        p.hint { (started) }
    };
    frame.page(&title, Some(visitor), "/devices", &body).into_response()
}

/// Reports that there is no such job, or that the server does not know it.
fn unknown(frame: &Frame, visitor: &Visitor, (title, text): (&'static str, &'static str)) -> Response {
    let (t, title) = (frame.texts, frame.texts.say(title));
    let text = html! { p { (t.say(text)) } p { a href="/jobs" { (t.say("jobs-title")) } } };
    let body = html! { h1 { (title) } (page::message(Tone::Warning, &title, &text)) };
    (StatusCode::NOT_FOUND, frame.page(&title, Some(visitor), "/devices", &body)).into_response()
}
