//! Shows the progress of each enrollment: the numbers of devices that wait, are registered, issued,
//! activated and refused, and the expected end of the current registrations.

mod keys;
mod targets;

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use axum::{
    extract::{Query, State},
    response::{IntoResponse, Response},
};
use maud::{Markup, html};
use serde::Deserialize;

use super::{
    Visitor, advice,
    conditions::Conditions,
    language::Texts,
    page::{self, Frame, Tone, encoded, moment},
};
use crate::{
    admin::{
        Shared,
        census::Census,
        jobs::{Action, Job},
    },
    guards::{Guards, Unlisted},
    obstacles::{self, Obstacle},
    psk::{
        EnrollmentOutline, KindName,
        uses::{Reported, reported},
    },
    store::{
        StoreError, Totals, UnixSeconds,
        filter::{Held, State as Kind},
        place,
        roll::RollCount,
        unix_now,
    },
};

/// Maximum and minimum time over which a rate is measured.
const RATE: Duration = Duration::from_secs(600);
const MIN_RATE: Duration = Duration::from_secs(10);
/// Maximum number of samples that are kept to measure the rate, and of enrollments in all of them.
const SAMPLES: usize = 200;
const SAMPLED: usize = 100_000;
/// Interval at which the page updates itself.
const EVERY: Duration = Duration::from_secs(5);
/// Maximum number of enrollments on a page.
const PAGE: usize = 50;
/// Maximum wait for the numbers of devices.
const PATIENCE: Duration = Duration::from_secs(5);
/// Maximum time for counting the devices of an enrollment that have two keys.
const COUNT: Duration = Duration::from_millis(10);
/// Maximum number of reasons shown for an enrollment.
const REASONS: usize = 5;

/// Samples from which the rates of the registrations are calculated.
#[derive(Default)]
pub(super) struct Rates(Mutex<VecDeque<Sample>>);

/// Number of registrations within a period.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Rate {
    registered: u64,
    time: Duration,
}

/// Devices of each enrollment at a point in time.
struct Sample {
    at: Instant,
    census: Arc<Census>,
}

/// Returns the rate of an enrollment's registrations. Uses the samples after the time `disturbed`,
/// from the newest one back to the first whose numbers show a change other than a registration: a
/// different number of devices, or more registered devices than in a later sample. Returns `None` if
/// the samples span less than [`MIN_RATE`].
fn measured(samples: &VecDeque<Sample>, name: &str, disturbed: UnixSeconds) -> Option<Rate> {
    let of = |sample: &Sample| sample.census.of(name).map(|totals| (totals.devices, totals.registered));
    let mut newest_first = samples.iter().rev().filter(|sample| sample.census.at > disturbed);
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
fn disturbed(imported: UnixSeconds, jobs: &[Arc<Job>], now: UnixSeconds) -> UnixSeconds {
    let removing = jobs.iter().filter(|job| matches!(job.order.action, Action::Reset | Action::Delete));
    removing.map(|job| job.progress().end.map_or(now, |(at, _)| at)).fold(imported, UnixSeconds::max)
}

/// Adds a sample, unless it is the last one. Keeps the newest sample, and older samples at equal
/// intervals. All samples together have about [`SAMPLED`] enrollments at most.
fn add(samples: &mut VecDeque<Sample>, census: &Arc<Census>, now: Instant) {
    if samples.back().is_some_and(|last| Arc::ptr_eq(&last.census, census)) {
        return;
    }
    let most = (SAMPLED / census.totals.len().max(1)).clamp(3, SAMPLES);
    let interval = RATE / u32::try_from(most).unwrap_or(u32::MAX);
    if let [.., former, last] = samples.make_contiguous()
        && last.at.saturating_duration_since(former.at) < interval
    {
        samples.pop_back();
    }
    while samples.len() >= most
        || samples.front().is_some_and(|sample| now.saturating_duration_since(sample.at) > RATE)
    {
        samples.pop_front();
    }
    samples.push_back(Sample { at: now, census: census.clone() });
}

impl Rates {
    /// Returns the rates of the registrations of the enrollments whose rate is known.
    fn of(&self, census: &Arc<Census>, disturbed: UnixSeconds) -> HashMap<String, Rate> {
        let mut samples = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        add(&mut samples, census, Instant::now());
        let rates = census.totals.iter().filter_map(|totals| {
            measured(&samples, &totals.enrollment, disturbed).map(|rate| (totals.enrollment.clone(), rate))
        });
        rates.collect()
    }
}

/// The requested page.
#[derive(Deserialize)]
pub(super) struct Which {
    /// Number of the page, from 0.
    #[serde(default)]
    page: usize,
    /// Text that the names contain.
    #[serde(default)]
    q: String,
}

impl Which {
    /// Returns the address of a page with the same text.
    fn path(&self, path: &str, page: usize) -> String {
        let fields = [("q", self.q.trim().to_owned()), ("page", page.to_string())];
        let fields = fields.iter().filter(|(_, value)| !value.is_empty() && value != "0");
        let fields: Vec<_> = fields.map(|(name, value)| format!("{name}={}", encoded(value))).collect();
        if fields.is_empty() { path.to_owned() } else { format!("{path}?{}", fields.join("&")) }
    }
}

pub(super) async fn show(
    State(shared): State<Arc<Shared>>,
    frame: Frame,
    visitor: Visitor,
    Query(which): Query<Which>,
) -> Response {
    let t = frame.texts;
    match content(&shared, t, &which).await {
        Ok(content) => {
            let live = which.path("/enrollments/live", which.page);
            let has_search = shared.enrollments().len() > PAGE || !which.q.is_empty();
            let body = html! { h1 { (t.say("nav-enrollments")) } @if has_search { (form(t, &which)) } (frame.live(&live, EVERY, &content)) };
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
    Query(which): Query<Which>,
) -> Response {
    match content(&shared, frame.texts, &which).await {
        Ok(content) => content.into_response(),
        Err(error) => frame.store_failed(&visitor, &error),
    }
}

fn form(t: Texts, which: &Which) -> Markup {
    html! {
        form.search.card role="search" action="/enrollments" {
            label for="q" { (t.say("enrollments-search")) }
            div.row {
                input #q name="q" type="search" value=(which.q.trim()) autocapitalize="none" spellcheck="false" autocomplete="off";
                button type="submit" { (t.say("devices-search-button")) }
            }
        }
    }
}

/// An enrollment that the configuration, the table or both have.
struct Enrollment<'e> {
    name: &'e str,
    enrolled: Option<&'e EnrollmentOutline>,
    /// Target of its devices, if the configuration names targets.
    target: Option<String>,
    totals: Totals,
    waiting: u64,
    /// Number of devices that wait to be admitted.
    to_admit: u64,
    refused: Vec<&'e Held>,
    /// Obstacles of the enrollment's devices; empty unless the enrollment is on the page.
    obstacles: Vec<Obstacle>,
    rate: Option<Rate>,
    /// Uses of the enrollment's keys; empty unless the enrollment has two keys and is on the page.
    keys: Reported,
    /// Devices of the enrollment that have two keys; zero unless the enrollment is on the page.
    rolling: RollCount,
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

async fn content(shared: &Shared, t: Texts, which: &Which) -> Result<Markup, StoreError> {
    let read = shared.census.last(&shared.sources.store, PATIENCE).await;
    let census = read.unwrap_or_else(|| {
        let seconds = PATIENCE.as_secs();
        Err(StoreError::Busy(format!("it has not answered within {seconds} s; reload this page")))
    })?;
    let jobs = shared.pages.jobs.all();
    let has_job = jobs.iter().any(|job| job.order.action == Action::Register && job.progress().end.is_none());
    let rates = shared.pages.rates.of(&census, disturbed(census.imported, &jobs, census.at));
    let mut held: HashMap<&str, Vec<&Held>> = HashMap::new();
    for group in &census.held {
        held.entry(&group.enrollment).or_default().push(group);
    }
    let targets = &shared.sources.targets;
    let of_enrollments = targets.of_enrollments();
    let configured = shared.enrollments();
    let known: HashSet<&str> = configured.iter().map(|enrolled| enrolled.name.as_str()).collect();
    let unknown = census.totals.iter().filter(|totals| !known.contains(totals.enrollment.as_str()));
    let text = which.q.trim().to_lowercase();
    let names = configured.iter().map(|enrolled| (enrolled.name.as_str(), Some(enrolled)));
    let names = names.chain(unknown.map(|totals| (totals.enrollment.as_str(), None)));
    let mut all: Vec<Enrollment<'_>> = names
        .filter(|(name, _)| name.to_lowercase().contains(&text))
        .map(|(name, enrolled)| {
            let own = held.get(name).map_or(&[][..], |own| own);
            let (refused, waiting): (Vec<&Held>, Vec<&Held>) =
                own.iter().partition(|held| held.refusal.is_some());
            Enrollment {
                name,
                enrolled,
                target: of_enrollments.get(name).cloned().filter(|_| targets.are_named()),
                totals: census.of(name).cloned().unwrap_or_default(),
                waiting: waiting.iter().map(|held| held.devices).sum(),
                to_admit: census.waiting.get(name).copied().unwrap_or(0),
                refused,
                obstacles: Vec::new(),
                rate: rates.get(name).copied(),
                keys: Reported::new(),
                rolling: RollCount::default(),
            }
        })
        .collect();
    all.sort_by_key(Enrollment::rank);
    let pages = all.len().div_ceil(PAGE);
    let page = which.page.min(pages.saturating_sub(1));
    let now = shared.sources.store.now();
    for enrollment in all.iter_mut().skip(page * PAGE).take(PAGE) {
        let Enrollment { enrolled, totals, to_admit, .. } = enrollment;
        let product_key = enrolled.map_or("", |enrolled| &enrolled.product_key);
        let cloud = match of_enrollments.get(enrollment.name) {
            Some(target) => targets::cloud(targets, target, product_key),
            None => obstacles::Cloud::Called,
        };
        let max = enrolled.and_then(|enrolled| enrolled.guards.max_devices);
        let store = &*shared.sources.store;
        let taken = place::reported(store, enrollment.name, totals.registered, max).await?;
        enrollment.obstacles = obstacles::of(*enrolled, totals, taken, *to_admit, cloud, now);
        if let Some(enrolled) = enrollment.enrolled {
            let (store, ids) = (&*shared.sources.store, enrolled.key_ids.as_ref());
            enrollment.keys = reported(store, &enrolled.name, ids).await?;
            if enrolled.kind == KindName::Individual {
                enrollment.rolling = shared.sources.store.count_rolling(&enrolled.name, COUNT).await?;
            }
        }
    }
    let has_targets = targets.are_named() && page == 0 && text.is_empty();
    let none = if text.is_empty() { "enrollments-none-text" } else { "enrollments-none-found" };
    Ok(html! {
        p.hint { (t.rich("enrollments-counted", [("time", moment(census.at).into())])) }
        @if has_targets { (targets::section(t, targets, &census)) }
        @if all.is_empty() { (page::message(Tone::Note, &t.say("enrollments-none"), &html! { p { (t.say(none)) } })) }
        @for enrollment in all.iter().skip(page * PAGE).take(PAGE) { (card(t, enrollment, has_job)) }
        @if pages > 1 {
            p.pages {
                @if page > 0 { a.button href=(which.path("/enrollments", page - 1)) rel="prev" { (t.say("devices-previous")) } " " }
                span.hint { ((page + 1)) " / " (pages) } " "
                @if page + 1 < pages { a.button href=(which.path("/enrollments", page + 1)) rel="next" { (t.say("devices-next")) } }
            }
        }
    })
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
    let Enrollment { name, enrolled, target, totals, waiting, refused, .. } = enrollment;
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
            @if let Some(enrolled) = enrolled {
                @let EnrollmentOutline { product_key, kind, reissue, .. } = enrolled;
                p.hint {
                    (t.rich("enrollments-about", [
                        ("kind", (&t.say(kind_of(*kind))).into()),
                        ("product", product_key.into()),
                        ("reissue", (&advice::reissue(t, *reissue)).into()),
                    ]))
                    @if let Some(target) = target { " · " (t.rich("fact-at-target", [("target", target.into())])) }
                }
                (guards(t, &enrolled.guards, totals.registered))
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
            (targets::obstacles(t, &enrollment.obstacles))
            @if enrollment.to_admit > 0 {
                p { (t.rich("enrollments-to-admit", [("count", html! { a href="/waiting" { (number(enrollment.to_admit)) } }.into())])) }
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
            (keys::lines(t, &enrollment.keys))
            (keys::of_devices(t, &enrollment.rolling))
            @if totals.disabled > 0 {
                p { (t.rich("enrollments-disabled", [("count", in_state(Kind::Disabled, totals.disabled).into())])) }
            }
        }
    }
}

/// Renders the guards of an enrollment, if it has any. `registered` is the number of its devices with
/// a certificate.
fn guards(t: Texts, guards: &Guards, registered: u64) -> Markup {
    let Guards { opens, closes, max_devices, unlisted } = *guards;
    html! {
        @if let Some(opens) = opens { p.hint { (t.rich("enrollments-opens", [("time", moment(opens).into())])) } }
        @if let Some(closes) = closes { p.hint { (t.rich("enrollments-closes", [("time", moment(closes).into())])) } }
        @if let Some(max) = max_devices {
            p.hint { (t.rich("enrollments-places", [("count", registered.into()), ("max", max.into())])) }
        }
        @match unlisted {
            Unlisted::Refuse => {}
            Unlisted::Hold => p.hint { (t.say("enrollments-holds")) " " a href="/waiting" { (t.say("waiting-title")) } },
            Unlisted::Admit => p.hint { (t.say("enrollments-admits")) },
        }
    }
}

/// Renders the rate of the registrations, and the time at which all waiting devices will be
/// registered. While a job registers devices, most of its devices do not wait yet, so a link to the
/// job takes the place of this time.
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
            let (at, time) = (begun + MIN_RATE * number, 1000 + i64::from(number) * 10);
            let census = Census { at: time, totals: vec![totals], ..Census::default() };
            Sample { at, census: Arc::new(census) }
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

    #[test]
    fn the_samples_are_bounded_and_begin_with_the_longest_period() {
        let begun = Instant::now();
        for (enrollments, most) in [(1, SAMPLES), (SAMPLED / 10, 10), (2 * SAMPLED, 3)] {
            let mut samples = VecDeque::new();
            for second in (0..3000).step_by(4) {
                let totals = vec![Totals::default(); enrollments];
                let census = Arc::new(Census { at: second, totals, ..Census::default() });
                for _again in 0..2 {
                    add(&mut samples, &census, begun + Duration::from_secs(second.unsigned_abs()));
                }
            }
            let [first, last] = [samples.front(), samples.back()].map(|sample| sample.unwrap().census.at);
            assert!(samples.len() <= most && last == 2996, "{} samples to {last}", samples.len());
            assert!(last - first <= 600 && last - first > 300, "{enrollments}: {first} to {last}");
        }
    }
}
