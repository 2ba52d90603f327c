//! The page of devices that are not in the table and wait to be admitted. An operator admits or
//! dismisses one of them here; `certdist device admit` admits many.

use std::sync::Arc;

use axum::{
    extract::{Query, State},
    http::StatusCode,
    response::{IntoResponse, Redirect, Response},
};
use maud::{Markup, html};
use serde::Deserialize;

use super::{
    OperatorForm, SubmittedForm, Visitor, grouped,
    language::Texts,
    page::{Frame, moment},
    plain,
};
use crate::{
    admin::Shared,
    device::DeviceId,
    store::waiting::{Admission, Admits, NewDevice, Waiting},
};

/// Maximum number of devices on the page.
const MAX_LISTED: usize = 200;

#[derive(Deserialize)]
pub(super) struct Which {
    /// Result of the action that was just carried out.
    #[serde(default)]
    done: String,
}

pub(super) async fn show(
    State(shared): State<Arc<Shared>>,
    frame: Frame,
    visitor: Visitor,
    Query(which): Query<Which>,
) -> Response {
    let t = frame.texts;
    let store = &shared.sources.store;
    let (waiting, counts) = match (store.waiting(None, None, MAX_LISTED).await, store.waiting_counts().await)
    {
        (Ok(waiting), Ok(counts)) => (waiting, counts),
        (Err(error), _) | (_, Err(error)) => return frame.store_failed(&visitor, &error),
    };
    let all: u64 = counts.iter().map(|(_, count)| count).sum();
    let done = match which.done.as_str() {
        "added" => Some("done-admit"),
        "known" => Some("done-admit-known"),
        "taken" => Some("done-admit-taken"),
        "later" => Some("done-admit-later"),
        "dismissed" => Some("done-dismiss"),
        _ => None,
    };
    let body = html! {
        p.crumb { a href="/" { (t.say("nav-overview")) } }
        h1 { (t.say("waiting-title")) }
        @if let Some(key) = done { p.done role="status" { (t.say(key)) } }
        p.hint { (t.say("waiting-text")) }
        @if waiting.is_empty() { p { (t.say("waiting-none")) } }
        @else { div.card { (table(t, &frame, &visitor, &waiting)) } }
        @if all > waiting.len() as u64 { p.hint { (t.with("waiting-more", [("count", all.into())])) } }
    };
    frame.page(&t.say("waiting-title"), Some(&visitor), "/", &body).into_response()
}

fn table(t: Texts, frame: &Frame, visitor: &Visitor, waiting: &[Waiting]) -> Markup {
    html! {
        table.stacked {
            thead { tr {
                th scope="col" { (t.say("column-device")) }
                th scope="col" { (t.say("column-key-of")) }
                th scope="col" { (t.say("column-address")) }
                th scope="col" { (t.say("column-last")) }
                th scope="col" { (t.say("column-requests")) }
                @if visitor.is_operator() { th scope="col" { } }
            } }
            tbody {
                @for one in waiting {
                    tr {
                        th scope="row" { span.id { (one.device) } }
                        td data-label=(t.say("column-key-of")) { bdi { (one.enrollment) } }
                        td data-label=(t.say("column-address")) { (one.address) }
                        td data-label=(t.say("column-last")) { (moment(one.last)) }
                        td data-label=(t.say("column-requests")) { (grouped(one.count)) }
                        @if visitor.is_operator() { td {
                            form method="post" action="/waiting/admit" {
                                (frame.hidden(visitor))
                                input type="hidden" name="id" value=(one.device);
                                input type="hidden" name="enrollment" value=(one.enrollment);
                                button { (t.say("waiting-admit")) }
                                " "
                                button.secondary formaction="/waiting/dismiss" { (t.say("waiting-dismiss")) }
                            }
                        } }
                    }
                }
            }
        }
    }
}

/// Returns the device of a form, and its enrollment.
fn device_of(sent: &SubmittedForm) -> Option<(DeviceId, String)> {
    let device = DeviceId::parse_sn(&sent.fields.id).ok()?;
    Some((device, sent.fields.conditions.enrollment.clone()))
}

pub(super) async fn admit(State(shared): State<Arc<Shared>>, OperatorForm(sent): OperatorForm) -> Response {
    let store = &shared.sources.store;
    let enrolled = shared.enrollments();
    let new = device_of(&sent).and_then(|(device, enrollment)| {
        let product_key = enrolled.iter().find(|known| known.name == enrollment)?.product_key.clone();
        Some(NewDevice { device, enrollment, product_key })
    });
    let Some(new) = new else { return StatusCode::BAD_REQUEST.into_response() };
    let device = new.device.clone();
    match store.admit(vec![new], Admits::Operator(sent.visitor.actor())).await.as_deref() {
        Ok(results) => {
            let result = match results {
                [Admission::Added] => "added",
                [Admission::Known | Admission::Elsewhere] => "known",
                [Admission::Later] => "later",
                _ => "taken",
            };
            tracing::info!(%device, user = sent.visitor.name, result, "a waiting device was admitted in the console");
            done(&sent, &device, result)
        }
        Err(error) => sent.frame.store_failed(&sent.visitor, error),
    }
}

pub(super) async fn dismiss(State(shared): State<Arc<Shared>>, OperatorForm(sent): OperatorForm) -> Response {
    let Some((device, enrollment)) = device_of(&sent) else { return StatusCode::BAD_REQUEST.into_response() };
    match shared.sources.store.dismiss(&enrollment, std::slice::from_ref(&device)).await {
        Ok(_) => done(&sent, &device, "dismissed"),
        Err(error) => sent.frame.store_failed(&sent.visitor, &error),
    }
}

fn done(sent: &SubmittedForm, device: &DeviceId, result: &str) -> Response {
    if sent.visitor.is_script() {
        return plain(StatusCode::OK, format!("{device}: {result}"));
    }
    Redirect::to(&format!("/waiting?done={result}")).into_response()
}
