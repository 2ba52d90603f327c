//! Lists the devices that meet conditions, page by page, and finds a device by the text on its
//! label. A search of a large table stops after a short time, and the page then says how far the
//! search has come.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    extract::{Query, State},
    http::StatusCode,
    response::{IntoResponse, Redirect, Response},
};
use maud::{Markup, html};
use serde::Deserialize;

use super::{
    Visitor, advice, bulk,
    conditions::{Conditions, Unreadable, name_of},
    language::Texts,
    page::{self, Frame, Tone, moment},
    search::{Label, MAX_LINES, Wanted},
};
use crate::{
    admin::{Shared, blocking},
    device::DeviceId,
    psk::EnrollmentOutline,
    registrar::Target,
    store::{
        CloudState, DeviceState, StoreError, UnixSeconds,
        filter::{Cursor, End, Filter, Found, Listed, State as Kind, Tally, Text},
        unix_now,
    },
};

/// Maximum number of devices on a page.
const PAGE: usize = 50;
/// Maximum time for which a page searches.
const SEARCH: Duration = Duration::from_millis(60);
/// Maximum time for counting the devices that a page does not show.
const COUNT: Duration = Duration::from_millis(25);
/// Maximum time for counting the devices when an operator asks for the number.
const COUNT_ALL: Duration = Duration::from_secs(20);
/// Maximum number of suggested enrollments or products in the form.
const CHOICES: usize = 500;

/// A request for a page of the list.
#[derive(Deserialize)]
pub(super) struct Asked {
    /// Text that the operator typed.
    #[serde(default)]
    q: String,
    /// ID of the device after which the page begins.
    #[serde(default)]
    after: String,
    /// ID of the device before which the page ends.
    #[serde(default)]
    before: String,
    /// `all` to count all devices for up to [`COUNT_ALL`].
    #[serde(default)]
    count: String,
    #[serde(flatten)]
    conditions: Conditions,
}

/// Result of a search.
enum Hit {
    /// The single device that the operator's text names.
    Device(DeviceId),
    /// A page of devices, and the text by which they were found. `tally` is the number of devices
    /// on all pages; `counted` is the time of the count if the operator has asked for the number.
    Page { text: Option<Text>, found: Found, tally: Tally, counted: Option<UnixSeconds> },
}

pub(super) async fn search(
    State(shared): State<Arc<Shared>>,
    frame: Frame,
    visitor: Visitor,
    Query(asked): Query<Asked>,
) -> Response {
    let filter = match asked.conditions.filter() {
        Ok(filter) => filter,
        Err(reason) => return unreadable(&shared, &frame, &visitor, &asked, reason),
    };
    let label = match Wanted::parse(&asked.q) {
        Wanted::Any => None,
        Wanted::One(label) => Some(label),
        Wanted::List(labels) => return bulk::list(&shared, &frame, &visitor, labels, StatusCode::OK).await,
        Wanted::TooMany => return too_many(&frame, &visitor),
    };
    let id = |text: &str| DeviceId::parse_sn(text).ok();
    let cursor = match (id(&asked.after), id(&asked.before)) {
        (Some(after), _) => Cursor::After(after),
        (None, Some(before)) => Cursor::Before(before),
        (None, None) => Cursor::First,
    };
    let (work, from) = (shared.clone(), cursor.clone());
    let all = asked.count == "all";
    match blocking(move || look(&work, &filter, label.as_ref(), &from, all)).await {
        Ok(Hit::Device(id)) => Redirect::to(&link(&id)).into_response(),
        Ok(Hit::Page { text, found, tally, counted }) => {
            let page = Page { asked: &asked, cursor, text, found, tally, counted };
            show(&shared, &frame, &visitor, &page)
        }
        Err(error) => frame.store_failed(&visitor, &error),
    }
}

/// Finds the devices of a page. Blocks the thread.
fn look(
    shared: &Shared,
    filter: &Filter,
    label: Option<&Label>,
    cursor: &Cursor,
    all: bool,
) -> Result<Hit, StoreError> {
    let store = shared.sources.store.as_ref();
    let begun = Instant::now();
    let search = |text: Option<&Text>| {
        let filter = Filter { text: text.cloned().or(filter.text.clone()), ..filter.clone() };
        let left = SEARCH.saturating_sub(begun.elapsed());
        let found = store.find(&filter, cursor, PAGE, left)?;
        Ok::<_, StoreError>((filter, text.cloned(), found))
    };
    // The page of a single device is opened at once only if this is the first page and the operator
    // has set no other condition.
    let is_first = *cursor == Cursor::First;
    let opens = is_first && *filter == Filter::default();
    let mut best = None;
    if let (Some(label), None) = (label, &filter.text) {
        if opens {
            for asked in &label.ids {
                if let Some(id) = store.known_as(asked)? {
                    return Ok(Hit::Device(id));
                }
            }
        }
        let names = if is_first { label.names() } else { Vec::new() };
        let parts = label.parts();
        // The first page tries all guesses at the meaning of the text. A further page uses the
        // first guess, because its address names any other guess as a condition.
        let parts = if is_first { &parts[..] } else { &parts[..parts.len().min(1)] };
        for text in names.iter().chain(parts) {
            let result = search(Some(text))?;
            let found = &result.2;
            if opens
                && let [only] = &found.devices[..]
                && found.end == End::Complete
                && is_meant(only, text)
            {
                return Ok(Hit::Device(only.id.clone()));
            }
            let is_found = !found.devices.is_empty() || matches!(found.end, End::TimeUp(_));
            if is_found || best.is_none() {
                best = Some(result);
            }
            if is_found {
                break;
            }
        }
        if best.is_none() {
            // The label's text has characters that no ID or name has, so no search is needed.
            let found = Found { devices: Vec::new(), end: End::Complete };
            let tally = Tally { devices: 0, is_complete: true };
            return Ok(Hit::Page { text: None, found, tally, counted: None });
        }
    }
    let (filter, text, found) = match best {
        Some(best) => best,
        None => search(None)?,
    };
    let (tally, counted) = match found.end {
        End::Complete if is_first => (Tally { devices: found.devices.len() as u64, is_complete: true }, None),
        _ => (store.tally(&filter, if all { COUNT_ALL } else { COUNT })?, all.then(unix_now)),
    };
    Ok(Hit::Page { text, found, tally, counted })
}

/// Returns whether `text` is the whole name or ID of the device, and not only a part of the ID.
fn is_meant(device: &Listed, text: &Text) -> bool {
    match text {
        Text::Name(_) | Text::IotId(_) => true,
        Text::Begins(text) | Text::Ends(text) => device.id.as_str().eq_ignore_ascii_case(text),
    }
}

/// A page of the list.
struct Page<'p> {
    asked: &'p Asked,
    cursor: Cursor,
    text: Option<Text>,
    found: Found,
    tally: Tally,
    counted: Option<UnixSeconds>,
}

impl Page<'_> {
    /// Returns the conditions of the list, including the condition on the text of the search.
    fn conditions(&self) -> Conditions {
        match &self.text {
            Some(text) => self.asked.conditions.with_text(text),
            None => self.asked.conditions.clone(),
        }
    }

    /// Returns the address of another page of the list.
    fn path(&self, field: &'static str, value: &str) -> String {
        // Without a condition on the text, a further page tries the text as the beginning of an ID.
        // The address therefore need not name this guess.
        let is_guess = matches!(&self.text, Some(Text::Begins(text)) if *text == self.asked.q.trim());
        let conditions = if is_guess { self.asked.conditions.clone() } else { self.conditions() };
        let q = if conditions.part.is_empty() || is_guess { self.asked.q.trim() } else { "" };
        conditions.path("/devices", &[("q", q)], &[(field, value)])
    }

    /// Returns the IDs at which the previous page ends and the next page begins, if there are such
    /// pages.
    fn neighbours(&self) -> (Option<&str>, Option<&str>) {
        let devices = &self.found.devices;
        let first = devices.first().map(|device| device.id.as_str());
        let last = devices.last().map(|device| device.id.as_str());
        let is_more = self.found.end == End::More;
        match &self.cursor {
            Cursor::First => (None, last.filter(|_| is_more)),
            Cursor::After(id) => (first.or(Some(id.as_str())), last.filter(|_| is_more)),
            Cursor::Before(id) => (first.filter(|_| is_more), last.or(Some(id.as_str()))),
        }
    }
}

fn show(shared: &Shared, frame: &Frame, visitor: &Visitor, page: &Page<'_>) -> Response {
    let t = frame.texts;
    let Page { asked, found, .. } = page;
    let conditions = page.conditions();
    let (previous, next) = page.neighbours();
    let body = html! {
        h1 { (t.say("nav-devices")) }
        (form(shared, t, asked, found.devices.is_empty()))
        (chosen(t, asked, &conditions))
        @if let End::TimeUp(last) = &found.end {
            @let field = if matches!(page.cursor, Cursor::Before(_)) { "before" } else { "after" };
            @let text = html! {
                p { (t.rich("devices-partly-text", [("device", html! { span.id { (last) } }.into())])) }
                p { a.button href=(page.path(field, last.as_str())) { (t.say("devices-go-on")) } }
            };
            (page::message(Tone::Note, &t.say("devices-partly"), &text))
        } @else if found.devices.is_empty() {
            (page::message(Tone::Note, &t.say("devices-none"), &html! { p { (t.say("devices-none-text")) } }))
        }
        @if !found.devices.is_empty() {
            div.card {
                (table(t, &found.devices, &total(t, page, &conditions), shared.sources.targets.are_named()))
            }
            @if previous.is_some() || next.is_some() {
                p.pages {
                    @if let Some(id) = previous { a.button href=(page.path("before", id)) rel="prev" { (t.say("devices-previous")) } " " }
                    @if let Some(id) = next { a.button href=(page.path("after", id)) rel="next" { (t.say("devices-next")) } }
                }
            }
            @if visitor.is_operator() { (bulk::offer(t, &conditions)) }
        }
        (bulk::list_form(frame, visitor))
    };
    frame.page(&t.say("nav-devices"), Some(visitor), "/devices", &body).into_response()
}

/// Renders the number of devices, and the time at which they were counted.
fn total(t: Texts, page: &Page<'_>, conditions: &Conditions) -> Markup {
    let Tally { devices, is_complete } = page.tally;
    html! {
        @if is_complete { (t.rich("devices-total", [("count", devices.into())])) }
        @else {
            (t.rich("devices-more-than", [("count", devices.into())])) " "
            a href=(conditions.path("/devices", &[], &[("count", "all")])) { (t.say("devices-count")) }
        }
        @if let Some(at) = page.counted { " " (t.rich("devices-counted", [("time", moment(at).into())])) }
    }
}

/// Renders a table of devices. The table has a column for the targets if `names_targets` is set.
pub(super) fn table(t: Texts, devices: &[Listed], caption: &Markup, names_targets: bool) -> Markup {
    html! {
        table.stacked {
            caption { (caption) }
            thead { tr {
                th scope="col" { (t.say("column-device")) }
                th scope="col" { (t.say("column-enrollment")) }
                @if names_targets { th scope="col" { (t.say("column-target")) } }
                th scope="col" { (t.say("column-state")) }
                th scope="col" { (t.say("column-issued")) }
            } }
            tbody {
                @for device in devices {
                    tr {
                        th scope="row" { a.id href=(link(&device.id)) { (device.id) } }
                        td data-label=(t.say("column-enrollment")) { bdi { (device.enrollment) } }
                        @if names_targets {
                            td data-label=(t.say("column-target")) { bdi { (device.target.as_deref().unwrap_or("–")) } }
                        }
                        td data-label=(t.say("column-state")) {
                            (pill(t, device))
                            @if let Some(reason) = &device.refusal { " " bdi.hint { (shortened(&advice::reason(t, reason))) } }
                        }
                        td data-label=(t.say("column-issued")) { @if let Some(at) = device.first_issued { (moment(at)) } @else { "–" } }
                    }
                }
            }
        }
    }
}

/// Maximum length of a reason in a table, in characters.
const SHORT: usize = 80;

fn shortened(text: &str) -> String {
    match text.char_indices().nth(SHORT) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// Renders the form in which an operator sets the conditions.
fn form(shared: &Shared, t: Texts, asked: &Asked, is_empty: bool) -> Markup {
    let Conditions { enrollment, product, state, from, to, refusal, target, .. } = &asked.conditions;
    let targets = &shared.sources.targets;
    let enrollments = shared.enrollments();
    let mut products: Vec<&str> = enrollments.iter().map(|enrolled| enrolled.product_key.as_str()).collect();
    products.sort_unstable();
    products.dedup();
    let is_open = asked.conditions != Conditions::default() || is_empty;
    html! {
        form.search.card role="search" action="/devices" {
            label for="q" { (t.say("devices-search")) }
            div.row {
                input #q name="q" type="search" value=(asked.q.trim()) autocapitalize="none" spellcheck="false"
                    autocomplete="off" aria-describedby="q-hint" autofocus[asked.q.trim().is_empty()];
                button type="submit" { (t.say("devices-search-button")) }
            }
            p.hint #q-hint { (t.say("devices-search-hint")) }
            details #conditions open[is_open] {
                summary { (t.say("devices-conditions")) }
                div.fields {
                    div {
                        label for="enrollment" { (t.say("column-enrollment")) }
                        input #enrollment name="enrollment" value=(enrollment) list="enrollments" autocomplete="off" autocapitalize="none" spellcheck="false";
                        (choices("enrollments", enrollments.iter().map(|enrolled: &EnrollmentOutline| enrolled.name.as_str())))
                    }
                    div {
                        label for="product" { (t.say("fact-product")) }
                        input #product name="product" value=(product) list="products" autocomplete="off" autocapitalize="none" spellcheck="false";
                        (choices("products", products.into_iter()))
                    }
                    @if targets.are_named() {
                        div {
                            label for="target" { (t.say("column-target")) }
                            input #target name="target" value=(target) list="targets" autocomplete="off" autocapitalize="none" spellcheck="false";
                            (choices("targets", targets.all().iter().map(Target::name)))
                        }
                    }
                    div {
                        label for="state" { (t.say("column-state")) }
                        select #state name="state" {
                            option value="" { (t.say("devices-any-state")) }
                            @for kind in Kind::ALL {
                                option value=(kind.name()) selected[kind.name() == state] { (t.say(name_of(kind))) }
                            }
                        }
                    }
                    div {
                        label for="from" { (t.say("devices-from")) }
                        input #from type="date" name="from" value=(from);
                    }
                    div {
                        label for="to" { (t.say("devices-to")) }
                        input #to type="date" name="to" value=(to);
                    }
                }
                @if !refusal.is_empty() { input type="hidden" name="refusal" value=(refusal); }
                p { button.secondary type="submit" { (t.say("devices-apply")) } }
            }
        }
    }
}

/// Renders names that a field suggests.
pub(super) fn choices<'n>(id: &str, names: impl Iterator<Item = &'n str>) -> Markup {
    html! { datalist id=(id) { @for name in names.take(CHOICES) { option value=(name) {} } } }
}

/// Renders the conditions of the list, and a link to the list of all devices.
fn chosen(t: Texts, asked: &Asked, conditions: &Conditions) -> Markup {
    let words = conditions.words(t);
    html! {
        @if !words.is_empty() {
            p.chosen {
                @for word in words { span.chip { (word) } " " }
                a href="/devices" { (t.say("devices-all")) }
            }
        } @else if !asked.q.trim().is_empty() {
            p.chosen { span.chip { bdi { (asked.q.trim()) } } " " a href="/devices" { (t.say("devices-all")) } }
        }
    }
}

fn unreadable(
    shared: &Shared,
    frame: &Frame,
    visitor: &Visitor,
    asked: &Asked,
    Unreadable(reason): Unreadable,
) -> Response {
    let t = frame.texts;
    let body = html! {
        h1 { (t.say("nav-devices")) }
        (page::message(Tone::Bad, &t.say("devices-unreadable"), &html! { p { (t.say(reason)) } }))
        (form(shared, t, asked, false))
    };
    (StatusCode::BAD_REQUEST, frame.page(&t.say("nav-devices"), Some(visitor), "/devices", &body))
        .into_response()
}

/// Reports that a list has too many lines.
pub(super) fn too_many(frame: &Frame, visitor: &Visitor) -> Response {
    let t = frame.texts;
    let text = html! { p { (t.rich("list-too-many", [("most", (MAX_LINES as u64).into())])) } };
    let body = html! {
        h1 { (t.say("list-title")) }
        (page::message(Tone::Bad, &t.say("list-not-read"), &text))
        (bulk::list_form(frame, visitor))
    };
    let page = frame.page(&t.say("list-title"), Some(visitor), "/devices", &body);
    (StatusCode::PAYLOAD_TOO_LARGE, page).into_response()
}

/// Returns the address of a device's page.
pub(super) fn link(id: &DeviceId) -> String {
    Conditions::default().path("/device", &[("id", id.as_str())], &[])
}

/// Renders the device's state in a few words.
pub(super) fn pill(t: Texts, device: &Listed) -> Markup {
    let (tone, word) = match device {
        Listed { state: DeviceState::Disabled, .. } => (Tone::Warning, "state-disabled"),
        Listed { cloud_state: Some(CloudState::Deleted), .. } => (Tone::Bad, "state-cloud-deleted"),
        Listed { cloud_state: Some(CloudState::Disabled), .. } => (Tone::Warning, "state-cloud-disabled"),
        Listed { refusal: Some(_), .. } => (Tone::Bad, "state-refused"),
        Listed { activated: Some(_), .. } => (Tone::Good, "state-activated"),
        Listed { first_issued: Some(_), .. } => (Tone::Good, "state-issued"),
        Listed { is_registered: true, .. } => (Tone::Note, "state-registered"),
        Listed { is_claimed: true, .. } => (Tone::Note, "state-waiting"),
        _ => (Tone::Note, "state-imported"),
    };
    html! { span class={ "pill " (tone.class()) } { (t.say(word)) } }
}
