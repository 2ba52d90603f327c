//! Shows the progress of each enrollment: the numbers of devices that wait, are registered, issued,
//! activated and refused, and the expected end of the current registrations.

use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    extract::{Query, State},
    response::{IntoResponse, Response},
};
use maud::{Markup, html};
use serde::Deserialize;
use tokio::sync::Mutex;

use super::{
    Visitor, advice,
    conditions::Conditions,
    language::Texts,
    page::{self, Frame, Tone, moment},
};
use crate::{
    admin::{Shared, blocking},
    psk::EnrollmentOutline,
    store::{
        StoreError, Totals, UnixSeconds,
        filter::{Held, State as Kind},
        unix_now,
    },
};

/// Minimum time for which counts are reused, because counting reads the whole table.
const COUNTS: Duration = Duration::from_secs(3);
/// Minimum time for which counts are reused, as a multiple of the time that counting took. With
/// millions of rows, counting takes seconds.
const TIMES: u32 = 10;
/// Maximum and minimum time over which a rate is measured.
const RATE: Duration = Duration::from_secs(600);
const MIN_RATE: Duration = Duration::from_secs(10);
/// Maximum number of samples that are kept to measure the rate.
const SAMPLES: usize = 200;
/// Interval at which the page updates itself.
const EVERY: Duration = Duration::from_secs(5);
/// Maximum number of enrollments on a page.
const PAGE: usize = 50;
/// Maximum number of groups of devices that wait or are refused.
const GROUPS: usize = 10_000;
/// Maximum number of reasons shown for an enrollment.
const REASONS: usize = 5;

/// The most recent counts.
#[derive(Default)]
pub(super) struct Counts(Mutex<(Option<Counted>, VecDeque<Sample>)>);

#[derive(Clone)]
struct Counted {
    at: Instant,
    time: UnixSeconds,
    took: Duration,
    progress: Arc<Vec<Totals>>,
    held: Arc<Vec<Held>>,
    /// Registered devices at an earlier time, from which the rate is computed.
    earlier: Option<Sample>,
}

/// Registered devices of each enrollment at a point in time.
#[derive(Clone)]
struct Sample {
    at: Instant,
    registered: Arc<Vec<(String, u64)>>,
}

impl Counts {
    /// Returns recent counts. Concurrent requests wait for the same count of the table.
    async fn of(&self, shared: &Shared) -> Result<Counted, StoreError> {
        let mut guard = self.0.lock().await;
        let (last, samples) = &mut *guard;
        if let Some(counted) = &*last
            && counted.at.elapsed() < COUNTS.max(counted.took * TIMES)
        {
            return Ok(counted.clone());
        }
        let (store, begun) = (shared.sources.store.clone(), Instant::now());
        let work = move || Ok::<_, StoreError>((store.totals()?, store.held(GROUPS)?));
        let (progress, held) = blocking(work).await?;
        let now = Instant::now();
        while samples.len() == SAMPLES || samples.front().is_some_and(|sample| now - sample.at > RATE) {
            samples.pop_front();
        }
        let registered =
            progress.iter().map(|totals| (totals.enrollment.clone(), totals.registered)).collect();
        let earlier = samples.front().filter(|sample| now - sample.at >= MIN_RATE).cloned();
        samples.push_back(Sample { at: now, registered: Arc::new(registered) });
        let (progress, held) = (Arc::new(progress), Arc::new(held));
        let counted = Counted { at: now, time: unix_now(), took: now - begun, progress, held, earlier };
        *last = Some(counted.clone());
        Ok(counted)
    }
}

/// Number of the requested page, from 0.
#[derive(Deserialize)]
pub(super) struct Which {
    #[serde(default)]
    page: usize,
}

pub(super) async fn show(
    State(shared): State<Arc<Shared>>,
    frame: Frame,
    visitor: Visitor,
    Query(Which { page }): Query<Which>,
) -> Response {
    let t = frame.texts;
    match content(&shared, t, page).await {
        Ok(content) => {
            let live = path("/enrollments/live", page);
            let body = html! { h1 { (t.say("nav-enrollments")) } (frame.live(&live, EVERY, &content)) };
            frame.page(&t.say("nav-enrollments"), Some(&visitor), "/enrollments", &body).into_response()
        }
        Err(error) => frame.store_failed(&visitor, &error),
    }
}

/// Serves the part of the page that its script updates regularly.
pub(super) async fn live(
    State(shared): State<Arc<Shared>>,
    frame: Frame,
    visitor: Visitor,
    Query(Which { page }): Query<Which>,
) -> Response {
    match content(&shared, frame.texts, page).await {
        Ok(content) => content.into_response(),
        Err(error) => frame.store_failed(&visitor, &error),
    }
}

fn path(path: &str, page: usize) -> String {
    if page == 0 { path.to_owned() } else { format!("{path}?page={page}") }
}

/// An enrollment that the configuration, the table or both have.
struct Enrollment<'e> {
    name: &'e str,
    enrolled: Option<&'e EnrollmentOutline>,
    totals: Totals,
    waiting: u64,
    refused: Vec<&'e Held>,
    /// Number of devices that were registered while the rate was measured, and the duration of the
    /// measurement.
    rate: Option<(u64, Duration)>,
}

impl Enrollment<'_> {
    /// Returns the rank of the enrollment on the page: first those that need an operator, then
    /// those whose devices are being registered.
    fn rank(&self) -> u8 {
        let is_missing = self.enrolled.is_none() && self.totals.devices > 0;
        match self {
            _ if is_missing || self.totals.refused > 0 => 0,
            Self { waiting: 1.., .. } | Self { rate: Some((1.., _)), .. } => 1,
            _ => 2,
        }
    }
}

async fn content(shared: &Shared, t: Texts, page: usize) -> Result<Markup, StoreError> {
    let counted = shared.pages.enrollments.of(shared).await?;
    let configured = shared.enrollments();
    let mut all: Vec<Enrollment<'_>> = Vec::with_capacity(configured.len());
    let totals_of = |name: &str| counted.progress.iter().find(|totals| totals.enrollment == name);
    all.extend(configured.iter().map(|enrolled| {
        let totals = totals_of(&enrolled.name).cloned().unwrap_or_default();
        of(&counted, &enrolled.name, Some(enrolled), totals)
    }));
    let known: std::collections::HashSet<&str> =
        configured.iter().map(|enrolled| enrolled.name.as_str()).collect();
    let unknown = counted.progress.iter().filter(|totals| !known.contains(totals.enrollment.as_str()));
    all.extend(unknown.map(|totals| of(&counted, &totals.enrollment, None, totals.clone())));
    all.sort_by_key(Enrollment::rank);
    let pages = all.len().div_ceil(PAGE);
    let page = page.min(pages.saturating_sub(1));
    Ok(html! {
        p.hint { (t.rich("enrollments-counted", [("time", moment(counted.time).into())])) }
        @if all.is_empty() { (page::message(Tone::Note, &t.say("enrollments-none"), &html! { p { (t.say("enrollments-none-text")) } })) }
        @for enrollment in all.iter().skip(page * PAGE).take(PAGE) { (card(t, enrollment)) }
        @if pages > 1 {
            p.pages {
                @if page > 0 { a.button href=(path("/enrollments", page - 1)) rel="prev" { (t.say("devices-previous")) } " " }
                @if page + 1 < pages { a.button href=(path("/enrollments", page + 1)) rel="next" { (t.say("devices-next")) } }
            }
        }
    })
}

fn of<'e>(
    counted: &'e Counted,
    name: &'e str,
    enrolled: Option<&'e EnrollmentOutline>,
    totals: Totals,
) -> Enrollment<'e> {
    let own = || counted.held.iter().filter(|held| held.enrollment == name);
    let waiting = own().filter(|held| held.refusal.is_none()).map(|held| held.devices).sum();
    let refused = own().filter(|held| held.refusal.is_some()).collect();
    let rate = counted.earlier.as_ref().map(|sample| {
        let before = sample.registered.iter().find(|(known, _)| known == name).map_or(0, |(_, count)| *count);
        (totals.registered.saturating_sub(before), counted.at - sample.at)
    });
    Enrollment { name, enrolled, totals, waiting, refused, rate }
}

fn card(t: Texts, enrollment: &Enrollment<'_>) -> Markup {
    let Enrollment { name, enrolled, totals, waiting, refused, .. } = enrollment;
    let number = |count: u64| t.rich("count", [("count", count.into())]);
    let link = |conditions: Conditions, text: Markup| {
        html! { a href=(conditions.of(name).path("/devices", &[], &[])) { (text) } }
    };
    let in_state = |kind: Kind, count: u64| link(Conditions::in_state(kind), number(count));
    let steps = [
        ("enrollments-registered", "enrollments-registered-text", Kind::Registered, totals.registered),
        ("enrollments-issued", "enrollments-issued-text", Kind::Issued, totals.issued),
        ("enrollments-activated", "enrollments-activated-text", Kind::Activated, totals.activated),
    ];
    html! {
        section.card.enrollment {
            h2 { bdi { (name) } }
            @if let Some(EnrollmentOutline { product_key, kind, reissue, .. }) = enrolled {
                p.hint {
                    (t.rich("enrollments-about", [
                        ("kind", kind.as_str().into()),
                        ("product", product_key.into()),
                        ("reissue", (&advice::reissue(t, *reissue)).into()),
                    ]))
                }
            } @else {
                (page::message(Tone::Warning, &t.say("enrollments-not-configured"), &html! { p { (t.say("enrollments-not-configured-text")) } }))
            }
            p { strong.count { (link(Conditions::default(), number(totals.devices))) } " " (t.say("enrollments-imported")) }
            @for (step, about, kind, count) in steps {
                div.step {
                    span { b { (t.say(step)) } " " span.hint { (t.say(about)) } }
                    span.number { (in_state(kind, count)) " · " (percent(t, count, totals.devices)) }
                    progress aria-label={ (name) ": " (t.say(step)) } value=(count) max=(totals.devices.max(1)) {}
                }
            }
            @if *waiting > 0 {
                p { (t.rich("enrollments-waiting", [("count", in_state(Kind::Waiting, *waiting).into())])) " " (forecast(t, enrollment)) }
            }
            @if totals.refused > 0 {
                p.bad { (t.rich("enrollments-refused", [("count", in_state(Kind::Refused, totals.refused).into())])) }
                ul {
                    @for held in refused.iter().take(REASONS) {
                        @let reason = held.refusal.clone().unwrap_or_default();
                        @let same = link(Conditions { refusal: reason.clone(), ..Conditions::in_state(Kind::Refused) }, number(held.devices));
                        li { (same) ": " bdi { (reason) } }
                    }
                    @if refused.len() > REASONS { li { (t.rich("enrollments-more-reasons", [("count", ((refused.len() - REASONS) as u64).into())])) } }
                }
            }
            @if totals.disabled > 0 {
                p { (t.rich("enrollments-disabled", [("count", in_state(Kind::Disabled, totals.disabled).into())])) }
            }
        }
    }
}

/// Renders the rate of the registrations, and the time at which all waiting devices will be
/// registered.
fn forecast(t: Texts, enrollment: &Enrollment<'_>) -> Markup {
    let Some((registered, time)) = enrollment.rate else {
        return html! { (t.say("enrollments-rate-later")) };
    };
    let Some((per_minute, seconds)) = rate(registered, time, enrollment.waiting) else {
        return html! { (t.rich("enrollments-no-rate", [("seconds", time.as_secs().into())])) };
    };
    let end = unix_now().saturating_add(seconds);
    t.rich("enrollments-rate", [("rate", per_minute.into()), ("time", moment(end).into())])
}

/// Returns the number of devices registered per minute, and the seconds until all waiting devices
/// are registered at this rate.
fn rate(registered: u64, time: Duration, waiting: u64) -> Option<(u64, i64)> {
    if registered == 0 {
        return None;
    }
    let millis = u64::try_from(time.as_millis()).unwrap_or(u64::MAX).max(1);
    let per_minute = registered.saturating_mul(60_000) / millis;
    let seconds = waiting.saturating_mul(millis) / registered / 1000;
    Some((per_minute, i64::try_from(seconds).unwrap_or(i64::MAX)))
}

/// Formats a share in percent. It is rounded down, so that 100 % means all.
fn percent(t: Texts, count: u64, of: u64) -> String {
    match (count, of) {
        (0, _) | (_, 0) => "0 %".to_owned(),
        (count, of) if count.saturating_mul(100) < of => t.say("under-one-percent"),
        (count, of) => format!("{} %", count.saturating_mul(100) / of),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::console::language::Language;

    #[test]
    fn a_hundred_percent_means_all() {
        let percent = |count, of| percent(Texts(Language::English), count, of);
        assert_eq!(percent(0, 0), "0 %");
        assert_eq!(percent(1, 1000), "under 1 %");
        assert_eq!(percent(999, 1000), "99 %");
        assert_eq!(percent(1000, 1000), "100 %");
    }

    #[test]
    fn the_end_follows_from_the_rate() {
        assert_eq!(rate(0, Duration::from_secs(60), 10), None);
        assert_eq!(rate(1500, Duration::from_secs(60), 3000), Some((1500, 120)));
        assert_eq!(rate(1, Duration::from_secs(600), 2), Some((0, 1200)));
    }
}
