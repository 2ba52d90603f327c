//! Shows the progress of each enrollment: the numbers of devices that wait, are registered, issued,
//! activated and refused, and the expected end of the current registrations.

use std::{
    collections::{HashMap, VecDeque},
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
    admin::{
        Shared, blocking,
        jobs::{Action, Job},
    },
    psk::{EnrollmentOutline, KindName},
    store::{
        StoreError, Totals, UnixSeconds,
        filter::{Held, State as Kind},
        undo::ImportRecord,
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
    /// Rate of the registrations of each enrollment whose rate is known.
    rates: Arc<HashMap<String, Rate>>,
}

/// Number of registrations within a period.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Rate {
    registered: u64,
    time: Duration,
}

/// Devices of each enrollment at a point in time.
struct Sample {
    at: Instant,
    time: UnixSeconds,
    totals: Arc<Vec<Totals>>,
}

/// Returns the rate of an enrollment's registrations. Uses the samples after the time `disturbed`,
/// and goes back from the newest sample until the numbers of a sample show a change other than a
/// registration: a different number of devices, or more registered devices than later. Returns
/// `None` if the samples span less than [`MIN_RATE`].
fn measured(samples: &VecDeque<Sample>, name: &str, disturbed: UnixSeconds) -> Option<Rate> {
    let of = |sample: &Sample| {
        let totals = sample.totals.iter().find(|totals| totals.enrollment == name);
        totals.map(|totals| (totals.devices, totals.registered))
    };
    let mut newest_first = samples.iter().rev().filter(|sample| sample.time > disturbed);
    let newest = newest_first.next()?;
    let (devices, last) = of(newest)?;
    let mut first = (newest.at, last);
    for sample in newest_first {
        match of(sample) {
            Some((count, registered)) if count == devices && registered <= first.1 => {
                first = (sample.at, registered);
            }
            _ => break,
        }
    }
    let time = newest.at.saturating_duration_since(first.0);
    (time >= MIN_RATE).then_some(Rate { registered: last - first.1, time })
}

/// Returns the time of the last known change, other than a registration, to many devices: an
/// import, the undoing of an import, or a job that resets or deletes devices. Returns `now` while
/// such a job runs.
fn disturbed(imports: &[ImportRecord], jobs: &[Arc<Job>], now: UnixSeconds) -> UnixSeconds {
    let imports = imports.iter().map(|import| import.undone.unwrap_or(import.at).max(import.at));
    let removing = jobs.iter().filter(|job| matches!(job.order.action, Action::Reset | Action::Delete));
    let jobs = removing.map(|job| job.progress().end.map_or(now, |(at, _)| at));
    imports.chain(jobs).max().unwrap_or(0)
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
        let work = move || Ok::<_, StoreError>((store.totals()?, store.held(GROUPS)?, store.imports()?));
        let (progress, held, imports) = blocking(work).await?;
        let now = Instant::now();
        while samples.len() == SAMPLES || samples.front().is_some_and(|sample| now - sample.at > RATE) {
            samples.pop_front();
        }
        let (progress, held, time) = (Arc::new(progress), Arc::new(held), unix_now());
        samples.push_back(Sample { at: now, time, totals: progress.clone() });
        let disturbed = disturbed(&imports, &shared.pages.jobs.all(), time);
        let rates = progress.iter().filter_map(|totals| {
            measured(samples, &totals.enrollment, disturbed).map(|rate| (totals.enrollment.clone(), rate))
        });
        let rates = Arc::new(rates.collect());
        let counted = Counted { at: now, time, took: now - begun, progress, held, rates };
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
    rate: Option<Rate>,
}

impl Enrollment<'_> {
    /// Returns the rank of the enrollment on the page: first those that need an operator, then
    /// those whose devices are being registered.
    fn rank(&self) -> u8 {
        let is_missing = self.enrolled.is_none() && self.totals.devices > 0;
        match self {
            _ if is_missing || self.totals.refused > 0 => 0,
            Self { waiting: 1.., .. } | Self { rate: Some(Rate { registered: 1.., .. }), .. } => 1,
            _ => 2,
        }
    }
}

async fn content(shared: &Shared, t: Texts, page: usize) -> Result<Markup, StoreError> {
    let counted = shared.pages.enrollments.of(shared).await?;
    let is_registering =
        |job: &Arc<Job>| job.order.action == Action::Register && job.progress().end.is_none();
    let has_job = shared.pages.jobs.all().iter().any(is_registering);
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
        @for enrollment in all.iter().skip(page * PAGE).take(PAGE) { (card(t, enrollment, has_job)) }
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
    let rate = counted.rates.get(name).copied();
    Enrollment { name, enrolled, totals, waiting, refused, rate }
}

/// Returns the catalogue key of the name of a kind of keys.
fn kind_of(kind: KindName) -> &'static str {
    match kind {
        KindName::Individual => "key-individual",
        KindName::Derived => "key-derived",
        KindName::Shared => "key-shared",
    }
}

fn card(t: Texts, enrollment: &Enrollment<'_>, has_job: bool) -> Markup {
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
                        ("kind", (&t.say(kind_of(*kind))).into()),
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
                p { (t.rich("enrollments-waiting", [("count", in_state(Kind::Waiting, *waiting).into()), ("number", (*waiting).into())])) " " (forecast(t, enrollment, has_job)) }
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
/// registered. While a job registers devices, most of its devices do not wait yet, so the end
/// follows from the job, and not from the devices that wait.
fn forecast(t: Texts, enrollment: &Enrollment<'_>, has_job: bool) -> Markup {
    let job = html! { a href="/jobs" { (t.say("jobs-title")) } };
    let Some(Rate { registered, time }) = enrollment.rate else {
        return html! { (t.say("enrollments-rate-later")) @if has_job { " " (job) } };
    };
    let Some((per_minute, seconds)) = rate(registered, time, enrollment.waiting) else {
        return html! { (t.rich("enrollments-no-rate", [("seconds", time.as_secs().into())])) };
    };
    let per_minute = t.rich("enrollments-rate", [("rate", per_minute.into())]);
    if has_job {
        return html! { (per_minute) " " (t.rich("enrollments-rate-job", [("jobs", job.into())])) };
    }
    let end = moment(unix_now().saturating_add(seconds));
    html! { (per_minute) " " (t.rich("enrollments-rate-end", [("time", end.into())])) }
}

/// Returns the number of devices registered per minute, and the seconds until all waiting devices
/// are registered at this rate.
fn rate(registered: u64, time: Duration, waiting: u64) -> Option<(u64, i64)> {
    if registered == 0 {
        return None;
    }
    let millis = u64::try_from(time.as_millis()).unwrap_or(u64::MAX).max(1);
    // At least 1, so that the page does not say that none is registered.
    let per_minute = (registered.saturating_mul(60_000) / millis).max(1);
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
        assert_eq!(rate(1, Duration::from_secs(600), 2), Some((1, 1200)));
    }

    /// Returns samples at intervals of 10 s, from the numbers of devices and of registered ones.
    fn samples(numbers: &[(u64, u64)]) -> VecDeque<Sample> {
        let begun = Instant::now();
        let sample = |(number, (devices, registered)): (u32, &(u64, u64))| {
            let enrollment = "lamps".to_owned();
            let (devices, registered) = (*devices, *registered);
            let totals = Totals { enrollment, devices, registered, ..Totals::default() };
            let at = begun + MIN_RATE * number;
            Sample { at, time: 1000 + i64::from(number) * 10, totals: Arc::new(vec![totals]) }
        };
        (0..).zip(numbers).map(sample).collect()
    }

    #[test]
    fn a_rate_comes_from_registrations_only() {
        let of = |numbers: &[(u64, u64)], disturbed| {
            measured(&samples(numbers), "lamps", disturbed).map(|rate| (rate.registered, rate.time.as_secs()))
        };
        assert_eq!(of(&[], 0), None);
        assert_eq!(of(&[(9, 0)], 0), None, "there is nothing to compare with");
        assert_eq!(of(&[(9, 1), (9, 3), (9, 7)], 0), Some((6, 20)));
        assert_eq!(of(&[(9, 3), (9, 3)], 0), Some((0, 10)));
        assert_eq!(of(&[(9, 8), (9, 2)], 0), None, "a reset took certificates away");
        assert_eq!(of(&[(9, 8), (9, 2), (9, 5)], 0), Some((3, 10)), "since the reset");
        assert_eq!(of(&[(5, 1), (9, 5)], 0), None, "an import brought certificates");
        assert_eq!(of(&[(9, 1), (9, 5), (9, 6)], 1000), Some((1, 10)), "since the import");
        assert_eq!(of(&[(9, 1), (9, 5), (9, 6)], 1020), None, "a job removes certificates now");
        assert_eq!(measured(&samples(&[(9, 1), (9, 5)]), "plugs", 0), None);
    }
}
