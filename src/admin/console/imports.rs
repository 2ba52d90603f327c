//! Lists the imports of the last 30 days, and undoes one of them after a preview.

use std::sync::Arc;

use axum::{
    extract::{Query, State},
    http::StatusCode,
    response::{IntoResponse, Redirect, Response},
};
use maud::{Markup, html};
use serde::Deserialize;

use super::{
    OperatorForm, Visitor,
    conditions::Conditions,
    devices::link,
    grouped,
    language::Texts,
    page::{self, Frame, Tone, english, moment},
    plain,
};
use crate::{
    admin::{Shared, blocking},
    store::{
        StoreError,
        undo::{ImportId, ImportRecord, Left, NotUndone, Undo, UndoError, Undone},
    },
};

/// Maximum number of imports on the page.
const LISTED: usize = 30;
/// Maximum number of devices that are named when an undo leaves them as they are.
const NAMED: usize = 10;

/// Returns the recent imports, the newest first. Runs on a thread for blocking work.
pub(super) async fn recent(shared: &Shared) -> Result<Vec<ImportRecord>, StoreError> {
    let store = shared.sources.store.clone();
    blocking(move || store.imports()).await
}

/// Renders the list. Operators can undo the imports in it.
pub(super) fn list(t: Texts, visitor: &Visitor, imports: &[ImportRecord]) -> Markup {
    html! {
        @if !imports.is_empty() {
            section.card aria-labelledby="imports" {
                h2 #imports { (t.say("imports-title")) }
                table.stacked {
                    thead { tr {
                        th scope="col" { (t.say("imports-file")) }
                        th scope="col" { (t.say("imports-time")) }
                        th scope="col" { (t.say("imports-who")) }
                        th scope="col" { (t.say("imports-added")) }
                        th scope="col" { (t.say("imports-changed")) }
                        th scope="col" { (t.say("imports-undo")) }
                    } }
                    tbody {
                        @for import in imports.iter().take(LISTED) {
                            tr {
                                th scope="row" { bdi { (import.file) } }
                                td data-label=(t.say("imports-time")) { (moment(import.at)) }
                                td data-label=(t.say("imports-who")) { bdi { (import.who) } }
                                td data-label=(t.say("imports-added")) { (grouped(import.added)) }
                                td data-label=(t.say("imports-changed")) { (grouped(import.changed)) }
                                td data-label=(t.say("imports-undo")) {
                                    @match import.undone {
                                        Some(at) => (t.rich("imports-undone", [("time", moment(at).into())])),
                                        None if visitor.is_operator() => {
                                            a href={ "/import/undo?id=" (import.id) } { (t.say("imports-undo")) }
                                            " " span.hint { (import.id) }
                                        }
                                        None => span.hint { (import.id) },
                                    }
                                }
                            }
                        }
                    }
                }
                @if imports.len() > LISTED {
                    p.hint { (t.rich("imports-more", [("command", html! { code { "certdist import list" } }.into())])) }
                }
            }
        }
    }
}

#[derive(Deserialize)]
pub(super) struct Which {
    #[serde(default)]
    id: String,
}

/// Shows what undoing an import would change.
pub(super) async fn ask(
    State(shared): State<Arc<Shared>>,
    frame: Frame,
    visitor: Visitor,
    Query(Which { id }): Query<Which>,
) -> Response {
    if !visitor.is_operator() {
        return frame.not_allowed(&visitor);
    }
    let Ok(id) = id.parse::<ImportId>() else { return unknown(&frame, &visitor) };
    match undo(&shared, &visitor, id, true, false).await {
        Ok(would) => show(&frame, &visitor, StatusCode::OK, &preview(&frame, &visitor, id, would, false)),
        // Some devices have changed since the import. The preview shows for how many of the other
        // devices the import can be undone.
        Err(UndoError::NotUndone(reason @ NotUndone::Changed { .. })) => {
            let left = match left(&shared, id).await {
                Ok(left) => left,
                Err(error) => return frame.store_failed(&visitor, &error),
            };
            let rest = match undo(&shared, &visitor, id, true, true).await {
                Ok(would) => preview(&frame, &visitor, id, would, true),
                Err(UndoError::NotUndone(reason)) => refusal(frame.texts, &reason, &Left::default()),
                Err(UndoError::Store(error)) => return frame.store_failed(&visitor, &error),
            };
            let message = refusal(frame.texts, &reason, &left);
            show(&frame, &visitor, StatusCode::OK, &html! { (message) (rest) })
        }
        Err(error) => failed(&shared, &frame, &visitor, id, error).await,
    }
}

/// Undoes an import.
pub(super) async fn confirm(State(shared): State<Arc<Shared>>, OperatorForm(sent): OperatorForm) -> Response {
    let (frame, visitor) = (sent.frame, sent.visitor);
    let Ok(id) = sent.fields.id.parse::<ImportId>() else { return unknown(&frame, &visitor) };
    let rest = sent.fields.sure == "rest";
    match undo(&shared, &visitor, id, false, rest).await {
        Ok(undone) => {
            let Undone { removed, restored, left, .. } = undone;
            tracing::info!(user = visitor.name, import = %id, removed, restored, left, "an import was undone in the console");
            if visitor.is_script() {
                return plain(
                    StatusCode::OK,
                    format!("{id}: {removed} removed, {restored} restored, {left} left"),
                );
            }
            Redirect::to(&format!("/import?undone={id}")).into_response()
        }
        Err(error) => failed(&shared, &frame, &visitor, id, error).await,
    }
}

async fn undo(
    shared: &Shared,
    visitor: &Visitor,
    id: ImportId,
    dry_run: bool,
    rest: bool,
) -> Result<Undone, UndoError> {
    let (store, by) = (shared.sources.store.clone(), visitor.actor());
    blocking(move || store.undo_import(Undo { id, by: &by, dry_run, rest })).await
}

fn preview(frame: &Frame, visitor: &Visitor, id: ImportId, would: Undone, rest: bool) -> Markup {
    let t = frame.texts;
    let text = html! {
        ul {
            li { (t.with("undo-removed", [("count", would.removed.into())])) }
            @if would.certificates > 0 { li { (t.with("undo-certificates", [("count", would.certificates.into())])) } }
            @if would.restored > 0 { li { (t.with("undo-restored", [("count", would.restored.into())])) } }
            @if would.left > 0 { li { (t.with("undo-left", [("count", would.left.into())])) } }
        }
        form method="post" action="/import/undo" {
            (frame.hidden(visitor))
            input type="hidden" name="id" value=(id);
            @if rest { input type="hidden" name="sure" value="rest"; }
            button.danger type="submit" { (t.say(if rest { "undo-the-rest" } else { "undo-it" })) }
        }
    };
    page::message(Tone::Note, &t.say("nothing-changed-yet"), &text)
}

fn show(frame: &Frame, visitor: &Visitor, status: StatusCode, result: &Markup) -> Response {
    let t = frame.texts;
    let body = html! {
        p.crumb { a href="/import" { (t.say("nav-import")) } }
        h1 { (t.say("undo-title")) }
        (result)
    };
    (status, frame.page(&t.say("undo-title"), Some(visitor), "/import", &body)).into_response()
}

fn unknown(frame: &Frame, visitor: &Visitor) -> Response {
    let t = frame.texts;
    let text = html! { p { (t.say("undo-unknown-text")) } };
    show(frame, visitor, StatusCode::NOT_FOUND, &page::message(Tone::Bad, &t.say("undo-unknown"), &text))
}

async fn failed(
    shared: &Shared,
    frame: &Frame,
    visitor: &Visitor,
    id: ImportId,
    error: UndoError,
) -> Response {
    let reason = match error {
        UndoError::NotUndone(NotUndone::Unknown(_)) => return unknown(frame, visitor),
        UndoError::NotUndone(reason) => reason,
        UndoError::Store(error) => return frame.store_failed(visitor, &error),
    };
    if visitor.is_script() {
        return plain(StatusCode::CONFLICT, reason.to_string());
    }
    let left = match reason {
        NotUndone::Changed { .. } => left(shared, id).await.unwrap_or_default(),
        _ => Left::default(),
    };
    let t = frame.texts;
    let again = html! {
        @if let NotUndone::Changed { .. } = reason {
            p { a href={ "/import/undo?id=" (id) } { (t.say("undo-preview-rest")) } }
        }
    };
    let result = html! { (refusal(t, &reason, &left)) (again) };
    show(frame, visitor, StatusCode::CONFLICT, &result)
}

/// Returns the devices of an import that an undo leaves as they are.
pub(super) async fn left(shared: &Shared, id: ImportId) -> Result<Left, StoreError> {
    let store = shared.sources.store.clone();
    blocking(move || store.left_of(id, NAMED)).await
}

/// Renders the first devices that an undo leaves as they are.
pub(super) fn left_list(t: Texts, left: &Left) -> Markup {
    let more = left.devices.saturating_sub(left.first.len() as u64);
    html! {
        @if !left.first.is_empty() {
            p { (t.with("undo-left-in-table", [("count", left.devices.into())])) }
            ul #left {
                @for id in &left.first { li { a.id href=(link(id)) { (id) } } }
                @if more > 0 { li { (t.rich("and-more", [("count", more.into())])) } }
            }
        }
    }
}

/// Renders the reason why an import was not undone.
fn refusal(t: Texts, reason: &NotUndone, left: &Left) -> Markup {
    let (tone, title, text) = match reason {
        NotUndone::Unknown(_) => (Tone::Bad, "undo-unknown", html! { (t.say("undo-unknown-text")) }),
        NotUndone::Again(_) => (Tone::Bad, "undo-refused", html! { (t.say("undo-again")) }),
        NotUndone::Changed { count, all, .. } => {
            let counts = [("count", (*count).into()), ("all", (*all).into())];
            (Tone::Warning, "undo-changed-title", t.rich("undo-changed", counts))
        }
        NotUndone::Keys { count, .. } => {
            (Tone::Bad, "undo-refused", t.rich("undo-keys", [("count", (*count).into())]))
        }
        NotUndone::Conflict { device, reason } => {
            let path = Conditions::default().path("/device", &[("id", device)], &[]);
            let values = [
                ("device", html! { a.id href=(path) { (device) } }.into()),
                ("reason", english(reason).into()),
            ];
            (Tone::Bad, "undo-refused", t.rich("undo-conflict", values))
        }
    };
    page::message(tone, &t.say(title), &html! { p { (text) } (left_list(t, left)) })
}
