//! Actions on many devices. First shows a preview with counts and samples; when an operator confirms
//! the preview, begins a job. The devices come from a pasted list, or meet the conditions of a list
//! page.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    extract::{DefaultBodyLimit, Query, State},
    http::StatusCode,
    response::{IntoResponse, Redirect, Response},
};
use maud::{Markup, html};
use serde::Deserialize;

use super::{
    Fields, OperatorForm, SubmittedForm, Visitor,
    conditions::{Conditions, Unreadable},
    devices, jobs,
    language::Texts,
    page::{self, Frame, Tone},
    removed::Removed,
    search::{Label, MAX_LINES, Wanted},
};
use crate::{
    admin::{
        Shared, blocking,
        jobs::{Action, NotBegun, Order, Target},
    },
    device::DeviceId,
    store::{
        StoreError, Table,
        filter::{Cursor, End, Filter, Found, Listed, Tally, Text},
    },
};

/// Number of devices that a preview shows.
const SAMPLES: usize = 10;
/// Maximum number of devices that the page of a pasted list shows.
const SHOWN: usize = 200;
/// Maximum number of lines that the page of a pasted list shows as lines without a device.
const MISSING: usize = 50;
/// Maximum time for looking up, in another letter case, the lines that were not found.
const CASES: Duration = Duration::from_secs(2);
/// Maximum number of devices that are read to find a line in another letter case. These are the
/// devices whose ID ends with the text of the line.
const ENDS: usize = 100;
/// Maximum size of a list, in bytes. A line has an ID of at most 64 bytes, and a form may encode
/// each byte as three.
const MAX_LIST: usize = MAX_LINES * 100;
/// Maximum time for counting the devices of a preview.
const COUNT: Duration = Duration::from_secs(20);
/// Maximum time for looking up the lines of a list as device names. Looking them up as device IDs
/// takes hardly any time.
const NAMES: Duration = Duration::from_secs(2);

pub(super) fn limit() -> DefaultBodyLimit {
    DefaultBodyLimit::max(MAX_LIST)
}

/// Returns the catalogue key of an action's name.
pub(super) fn name_of(action: Action) -> &'static str {
    match action {
        Action::Disable => "action-disable",
        Action::Enable => "action-enable",
        Action::Reset => "action-reset",
        Action::Register => "action-register",
        Action::Delete => "action-delete",
    }
}

/// Returns the catalogue key of the sentence that says what an action does to a device.
pub(super) fn meaning_of(action: Action) -> &'static str {
    match action {
        Action::Disable => "action-disable-text",
        Action::Enable => "action-enable-text",
        Action::Reset => "action-reset-text",
        Action::Register => "action-register-text",
        Action::Delete => "action-delete-text",
    }
}

fn actions(t: Texts) -> Markup {
    html! {
        label for="action" { (t.say("bulk-action")) }
        div.row {
            select #action name="action" {
                @for action in Action::ALL { option value=(action.name()) { (t.say(name_of(action))) } }
            }
            button.secondary type="submit" { (t.say("bulk-preview-button")) }
        }
        p.hint { (t.say("bulk-hint")) }
    }
}

/// Renders the form that begins an action on all devices that meet the conditions.
pub(super) fn offer(t: Texts, conditions: &Conditions) -> Markup {
    html! {
        section.card aria-labelledby="bulk" {
            h2 #bulk { (t.say("bulk-title")) }
            form.stack action="/devices/bulk" {
                (conditions.hidden())
                (actions(t))
            }
        }
    }
}

/// Renders the form for a pasted list.
pub(super) fn list_form(frame: &Frame, visitor: &Visitor) -> Markup {
    let t = frame.texts;
    html! {
        details.card #paste {
            summary { (t.say("list-title")) }
            form.stack method="post" action="/devices/list" {
                (frame.hidden(visitor))
                label for="list" { (t.say("list-label")) }
                textarea #list name="list" rows="8" spellcheck="false" autocapitalize="none" aria-describedby="list-hint" {}
                p.hint #list-hint { (t.rich("list-hint", [("most", (MAX_LINES as u64).into())])) }
                button.secondary type="submit" { (t.say("list-button")) }
            }
        }
        p.hint { a href="/jobs" { (t.say("jobs-title")) } " · " a href="/orders" { (t.say("orders-title")) } }
    }
}

/// Conditions and action of a preview.
#[derive(Deserialize)]
pub(super) struct Asked {
    #[serde(default)]
    action: String,
    #[serde(flatten)]
    conditions: Conditions,
}

/// Shows which devices an action would change.
pub(super) async fn preview(
    State(shared): State<Arc<Shared>>,
    frame: Frame,
    visitor: Visitor,
    Query(asked): Query<Asked>,
) -> Response {
    if !visitor.is_operator() {
        return frame.not_allowed(&visitor);
    }
    let (action, filter) = match read(&asked.action, &asked.conditions) {
        Ok(read) => read,
        Err(reason) => return unreadable(&frame, &visitor, reason),
    };
    let work = shared.clone();
    let counted = blocking(move || {
        let store = work.sources.store.as_ref();
        let found = store.find(&filter, &Cursor::First, SAMPLES, COUNT)?;
        let tally = store.tally(&filter, COUNT)?;
        Ok::<_, StoreError>((tally, found, Removed::of_filter(store, &filter, action)?))
    });
    let (tally, found, removed) = match counted.await {
        Ok(counted) => counted,
        Err(error) => return frame.store_failed(&visitor, &error),
    };
    if !tally.is_complete {
        return unreadable(&frame, &visitor, Unreadable("bulk-not-counted"));
    }
    let Tally { devices: count, .. } = tally;
    let t = frame.texts;
    let fields = html! { (asked.conditions.hidden()) };
    let words = asked.conditions.words(t);
    let which = html! {
        @if words.is_empty() { p { strong { (t.say("bulk-whole-table")) } } }
        @else { p.chosen { @for word in words { span.chip { (word) } " " } } }
    };
    let Found { devices: samples, .. } = found;
    let path = "/devices/bulk";
    let preview = Preview { action, count, removed, path, fields: &fields, which: &which };
    preview.show(&shared, &frame, &visitor, &samples).await
}

fn read(action: &str, conditions: &Conditions) -> Result<(Action, Filter), Unreadable> {
    let action = Action::named(action).ok_or(Unreadable("bulk-bad-action"))?;
    Ok((action, conditions.filter()?))
}

fn unreadable(frame: &Frame, visitor: &Visitor, Unreadable(reason): Unreadable) -> Response {
    let t = frame.texts;
    let text = html! {
        p { (t.say(reason)) }
        p { a href="/devices" { (t.say("devices-all")) } }
    };
    let body =
        html! { h1 { (t.say("bulk-title")) } (page::message(Tone::Bad, &t.say("bulk-refused"), &text)) };
    let page = frame.page(&t.say("bulk-title"), Some(visitor), "/devices", &body);
    (StatusCode::BAD_REQUEST, page).into_response()
}

/// Preview of a job, and the form that confirms it.
struct Preview<'p> {
    action: Action,
    count: u64,
    removed: Removed,
    /// Address to which the confirmation is sent.
    path: &'static str,
    /// Hidden fields that name the devices.
    fields: &'p Markup,
    /// Description of the devices.
    which: &'p Markup,
}

impl Preview<'_> {
    async fn show(&self, shared: &Shared, frame: &Frame, visitor: &Visitor, samples: &[Listed]) -> Response {
        let (t, Self { action, count, .. }) = (frame.texts, self);
        let token = match shared.pages.jobs.preview(&*shared.sources.store).await {
            Ok(token) => token,
            Err(error) => return frame.store_failed(visitor, &error),
        };
        let name = t.say(name_of(*action));
        let class = if matches!(action, Action::Disable | Action::Delete) { "danger" } else { "" };
        let sampled = t.rich("bulk-samples", [("count", (samples.len() as u64).into())]);
        let body = html! {
            p.crumb { a href="/devices" { (t.say("nav-devices")) } }
            h1 { (t.with("bulk-heading", [("action", (&name).into()), ("count", (*count).into())])) }
            (self.which)
            @for job in shared.pages.jobs.all().iter().filter(|job| job.progress().end.is_none()) {
                (page::message(Tone::Warning, &t.say("jobs-running"), &html! {
                    p { (t.say("jobs-running-text")) }
                    p { a href=(jobs::link(&job.id)) { (jobs::heading(t, job)) } " · " (t.rich("history-by", [("who", (&job.order.by.name).into())])) }
                }))
            }
            section.card aria-labelledby="confirm" {
                h2 #confirm { (t.say("bulk-confirm-title")) }
                p { (t.say(meaning_of(*action))) }
                @if *count > 0 { (self.removed.show(t, *action)) }
                @if *count == 0 { p { strong { (t.say("bulk-nothing")) } } }
                @else {
                    p.hint { (t.say("bulk-unchanged")) }
                    form method="post" action=(self.path) {
                        (frame.hidden(visitor))
                        (self.fields)
                        input type="hidden" name="action" value=(action.name());
                        input type="hidden" name="expected" value=(count);
                        input type="hidden" name="preview" value=(token);
                        @if *action == Action::Delete {
                            label.check { input type="checkbox" name="sure" value="yes" required; " " (t.rich("bulk-sure", [("count", (*count).into())])) }
                        }
                        p {
                            button class=(class) type="submit" autofocus[class.is_empty()] {
                                (t.with("bulk-confirm", [("action", (&name).into()), ("count", (*count).into())]))
                            }
                            " " a.button.secondary href="/devices" { (t.say("cancel")) }
                        }
                    }
                }
            }
            @if !samples.is_empty() { div.card { (devices::table(t, samples, &sampled, shared.sources.targets.are_named())) } }
        };
        let title = t.with("bulk-heading", [("action", (&name).into()), ("count", (*count).into())]);
        frame.page(&title, Some(visitor), "/devices", &body).into_response()
    }
}

/// Begins the job on all devices that meet the conditions.
pub(super) async fn confirm(State(shared): State<Arc<Shared>>, OperatorForm(sent): OperatorForm) -> Response {
    let SubmittedForm { frame, visitor, fields } = sent;
    match read(&fields.action, &fields.conditions) {
        Ok((action, filter)) => {
            let order = (action, Target::Filter(filter));
            begin(&shared, &frame, &visitor, order, &fields).await
        }
        Err(reason) => unreadable(&frame, &visitor, reason),
    }
}

/// Begins a confirmed job, and redirects to the job's page.
async fn begin(
    shared: &Shared,
    frame: &Frame,
    visitor: &Visitor,
    (action, target): (Action, Target),
    fields: &Fields,
) -> Response {
    let Ok(expected) = fields.expected.parse::<u64>() else {
        return unreadable(frame, visitor, Unreadable("bulk-not-confirmed"));
    };
    if action == Action::Delete && fields.sure != "yes" {
        return unreadable(frame, visitor, Unreadable("bulk-not-confirmed"));
    }
    let order = Order { action, target, expected, by: visitor.actor() };
    let (store, targets) = (shared.sources.store.clone(), shared.sources.targets.clone());
    // A script sends no token of a preview, because no page was shown to it.
    let preview = (!visitor.is_script() || !fields.preview.is_empty()).then_some(fields.preview.as_str());
    let (all, enrollments) = (&shared.pages.jobs, shared.enrollments());
    let begun = match preview {
        Some(preview) => all.confirm(order, preview, store, targets, enrollments).await,
        None => all.begin(order, None, store, targets, enrollments),
    };
    match begun {
        Ok(job) => Redirect::to(&jobs::link(&job.id)).into_response(),
        Err(NotBegun::Again(id)) => Redirect::to(&jobs::link(&id)).into_response(),
        Err(NotBegun::NotPreviewed) => unreadable(frame, visitor, Unreadable("bulk-not-confirmed")),
        Err(NotBegun::Busy) => {
            let keys = ["jobs-busy", "jobs-busy-text", "jobs-title"];
            let page = not_begun(frame, visitor, keys, "/jobs");
            (StatusCode::SERVICE_UNAVAILABLE, page).into_response()
        }
        Err(NotBegun::Unrecorded(error)) => frame.store_failed(visitor, &error),
        Err(NotBegun::Meanwhile(id)) => {
            let keys = ["jobs-meanwhile", "jobs-meanwhile-text", "jobs-other"];
            let page = not_begun(frame, visitor, keys, &jobs::link(&id));
            (StatusCode::CONFLICT, page).into_response()
        }
    }
}

/// Says that no job has begun. The catalogue keys are those of the title, of the text, and of a
/// link.
fn not_begun(frame: &Frame, visitor: &Visitor, [title, text, name]: [&'static str; 3], link: &str) -> Markup {
    let t = frame.texts;
    let text = html! { p { (t.say(text)) } p { a href=(link) { (t.say(name)) } } };
    let body = html! { h1 { (t.say("bulk-title")) } (page::message(Tone::Warning, &t.say(title), &text)) };
    frame.page(&t.say("bulk-title"), Some(visitor), "/devices", &body)
}

/// Devices of a list that the table has, and the lines for which the table has no device.
#[derive(Default)]
struct Resolved {
    ids: Vec<DeviceId>,
    /// Lines that were found only in another letter case, each with its device.
    other_case: Vec<(String, DeviceId)>,
    missing: Vec<String>,
    /// Set if there was no time to look for all of the missing lines.
    is_partial: bool,
}

/// Looks up the lines of a list. Blocks the thread.
fn resolve(store: &dyn Table, labels: &[Label]) -> Result<Resolved, StoreError> {
    let mut known = std::collections::HashSet::new();
    let (mut resolved, mut missing) = (Resolved::default(), Vec::new());
    let deadline = Instant::now() + NAMES;
    for label in labels {
        match of_label(store, label, deadline)? {
            Some(id) if known.insert(id.clone()) => resolved.ids.push(id),
            // An earlier line names the same device.
            Some(_) => {}
            None => missing.push(label),
        }
    }
    resolved.is_partial = !missing.is_empty() && Instant::now() >= deadline;
    let deadline = Instant::now() + CASES;
    for label in missing {
        let Some(id) = in_other_case(store, label, deadline)? else {
            resolved.missing.push(label.text.clone());
            continue;
        };
        resolved.other_case.push((label.text.clone(), id.clone()));
        if known.insert(id.clone()) {
            resolved.ids.push(id);
        }
    }
    resolved.is_partial |= !resolved.missing.is_empty() && Instant::now() >= deadline;
    Ok(resolved)
}

fn of_label(store: &dyn Table, label: &Label, deadline: Instant) -> Result<Option<DeviceId>, StoreError> {
    for asked in &label.ids {
        if let Some(id) = store.known_as(asked)? {
            return Ok(Some(id));
        }
    }
    for text in label.names() {
        if Instant::now() >= deadline {
            break;
        }
        let filter = Filter { text: Some(text), ..Filter::default() };
        let found = store.find(&filter, &Cursor::First, 2, NAMES)?;
        // A name that several devices share does not say which of them is meant.
        if let [only] = &found.devices[..] {
            return Ok(Some(only.id.clone()));
        }
    }
    Ok(None)
}

/// Returns the device whose ID is the text of the label in another letter case, if there is exactly
/// one. Tries the same spellings of the text as the search for a single device.
fn in_other_case(
    store: &dyn Table,
    label: &Label,
    deadline: Instant,
) -> Result<Option<DeviceId>, StoreError> {
    let whole = label.parts().into_iter().filter_map(|part| match part {
        Text::Ends(text) => Some(text),
        Text::Begins(_) | Text::Name(_) | Text::IotId(_) => None,
    });
    for text in whole {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            break;
        }
        let filter = Filter { text: Some(Text::Ends(text.clone())), ..Filter::default() };
        let found = store.find(&filter, &Cursor::First, ENDS, left)?;
        let mut same = found.devices.iter().filter(|device| device.id.as_str().eq_ignore_ascii_case(&text));
        // If the search did not read all devices, another device may have an ID that differs only in
        // case, so none is returned.
        if found.end == End::Complete
            && let (Some(only), None) = (same.next(), same.next())
        {
            return Ok(Some(only.id.clone()));
        }
    }
    Ok(None)
}

/// Says which lines were found only in another letter case.
fn other_case(t: Texts, lines: &[(String, DeviceId)]) -> Markup {
    let text = html! {
        ul {
            @for (line, id) in lines.iter().take(MISSING) {
                li { bdi.id { (line) } " → " a.id href=(devices::link(id)) { (id) } }
            }
        }
        @if lines.len() > MISSING { p { (t.rich("and-more", [("count", ((lines.len() - MISSING) as u64).into())])) } }
    };
    let title = t.with("list-other-case", [("count", (lines.len() as u64).into())]);
    html! { @if !lines.is_empty() { (page::message(Tone::Note, &title, &text)) } }
}

/// Shows the devices of a list. If an action is given, shows its preview instead or, if the form is
/// the preview's confirmation, begins the job.
pub(super) async fn submitted_list(
    State(shared): State<Arc<Shared>>,
    page: Frame,
    reader: Option<Visitor>,
    sent: Result<SubmittedForm, Response>,
) -> Response {
    let SubmittedForm { frame, visitor, fields } = match (sent, reader) {
        (Ok(sent), _) => sent,
        (Err(refusal), Some(visitor)) if refusal.status() == StatusCode::PAYLOAD_TOO_LARGE => {
            return devices::too_many(&page, &visitor);
        }
        (Err(refusal), _) => return refusal,
    };
    let labels = match Wanted::parse(&fields.list) {
        Wanted::Any => Vec::new(),
        Wanted::One(label) => vec![label],
        Wanted::List(labels) => labels,
        Wanted::TooMany => return devices::too_many(&frame, &visitor),
    };
    if fields.action.is_empty() || labels.is_empty() {
        return list(&shared, &frame, &visitor, labels, StatusCode::OK).await;
    }
    if !visitor.is_operator() {
        return frame.not_allowed(&visitor);
    }
    let Some(action) = Action::named(&fields.action) else {
        return unreadable(&frame, &visitor, Unreadable("bulk-bad-action"));
    };
    let resolved = match resolved(&shared, labels).await {
        Ok((resolved, _)) => resolved,
        Err(error) => return frame.store_failed(&visitor, &error),
    };
    if !fields.expected.is_empty() {
        let target = Target::List(resolved.ids.into());
        return begin(&shared, &frame, &visitor, (action, target), &fields).await;
    }
    // All rows are read, because a list has at most 10,000 devices.
    let all = match listed(&shared, &resolved.ids).await {
        Ok(all) => all,
        Err(error) => return frame.store_failed(&visitor, &error),
    };
    let fields = hidden_list(&resolved.ids);
    let t = frame.texts;
    let which = html! {
        p { (t.say("bulk-of-list")) }
        (other_case(t, &resolved.other_case))
        @if !resolved.missing.is_empty() { p.bad { (t.rich("list-missing", [("count", (resolved.missing.len() as u64).into())])) } }
        @if resolved.is_partial { p.bad { (t.say("list-time-up")) } }
    };
    let count = resolved.ids.len() as u64;
    let mut removed = Removed::default();
    all.iter().for_each(|device| removed.add(device, action));
    let path = "/devices/list";
    let preview = Preview { action, count, removed, path, fields: &fields, which: &which };
    preview.show(&shared, &frame, &visitor, &all[..all.len().min(SAMPLES)]).await
}

fn hidden_list(ids: &[DeviceId]) -> Markup {
    let list: Vec<&str> = ids.iter().map(DeviceId::as_str).collect();
    html! { input type="hidden" name="list" value=(list.join(",")); }
}

async fn resolved(shared: &Arc<Shared>, labels: Vec<Label>) -> Result<(Resolved, usize), StoreError> {
    let work = shared.clone();
    blocking(move || {
        let lines = labels.len();
        resolve(work.sources.store.as_ref(), &labels).map(|resolved| (resolved, lines))
    })
    .await
}

/// Reads the rows of the devices that a page shows.
async fn listed(shared: &Shared, ids: &[DeviceId]) -> Result<Vec<Listed>, StoreError> {
    let (store, ids) = (shared.sources.store.clone(), ids.to_vec());
    blocking(move || store.listed(&ids)).await
}

/// Shows the devices of a list.
pub(super) async fn list(
    shared: &Arc<Shared>,
    frame: &Frame,
    visitor: &Visitor,
    labels: Vec<Label>,
    status: StatusCode,
) -> Response {
    let (Resolved { ids, other_case: cases, missing, is_partial }, lines) =
        match resolved(shared, labels).await {
            Ok(resolved) => resolved,
            Err(error) => return frame.store_failed(visitor, &error),
        };
    let shown = match listed(shared, &ids[..ids.len().min(SHOWN)]).await {
        Ok(shown) => shown,
        Err(error) => return frame.store_failed(visitor, &error),
    };
    let t = frame.texts;
    let caption = t.rich(
        "list-found",
        [
            ("found", (ids.len() as u64).into()),
            ("lines", (lines as u64).into()),
            ("shown", (shown.len() as u64).into()),
        ],
    );
    let body = html! {
        p.crumb { a href="/devices" { (t.say("nav-devices")) } }
        h1 { (t.say("list-title")) }
        @if lines == 0 { (page::message(Tone::Note, &t.say("list-empty"), &html! { p { (t.say("list-empty-text")) } })) }
        (other_case(t, &cases))
        @if !missing.is_empty() {
            @let text = html! {
                p { (t.say("list-missing-text")) }
                @if is_partial { p { (t.say("list-time-up")) } }
                ul { @for line in missing.iter().take(MISSING) { li { bdi.id { (line) } } } }
                @if missing.len() > MISSING { p { (t.rich("and-more", [("count", ((missing.len() - MISSING) as u64).into())])) } }
            };
            (page::message(Tone::Warning, &t.with("list-missing", [("count", (missing.len() as u64).into())]), &text))
        }
        @if !ids.is_empty() {
            @if visitor.is_operator() {
                section.card aria-labelledby="bulk" {
                    h2 #bulk { (t.say("bulk-of-list")) }
                    form.stack method="post" action="/devices/list" {
                        (frame.hidden(visitor))
                        (hidden_list(&ids))
                        (actions(t))
                    }
                }
            }
            div.card { (devices::table(t, &shown, &caption, shared.sources.targets.are_named())) }
        }
        (list_form(frame, visitor))
    };
    (status, frame.page(&t.say("list-title"), Some(visitor), "/devices", &body)).into_response()
}
