//! Searches devices by ID or prefix, shows them one by one, and changes them.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Query, State},
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Redirect, Response},
};
use maud::{Markup, html};
use serde::Deserialize;

use super::{
    OperatorForm, Visitor, advice, history,
    page::{self, Frame, Tone},
    plain, time, wants_json,
};
use crate::{
    admin::Shared,
    device::DeviceId,
    device_view::{self, as_json},
    psk::EnrollmentOutline,
    store::{CloudState, DeviceRow, DeviceState, Store, StoreError, claim::ClaimView, unix_now},
    table_file,
};

/// Maximum number of devices on a page of search results.
const PAGE: usize = 50;

#[derive(Deserialize)]
pub(super) struct Search {
    #[serde(default)]
    q: String,
    /// ID of the last device of the previous page.
    after: Option<String>,
}

pub(super) async fn search(
    State(shared): State<Arc<Shared>>,
    frame: Frame,
    visitor: Visitor,
    Query(search): Query<Search>,
) -> Response {
    let wanted = search.q.trim();
    let found = match find(shared.sources.store.as_ref(), wanted, search.after.as_deref()).await {
        Ok(found) => found,
        Err(error) => return frame.store_failed(&visitor, &error),
    };
    let (rows, more) = (&found[..found.len().min(PAGE)], found.len() > PAGE);
    let body = html! {
        h1 { "Devices" }
        form.search.card role="search" action="/devices" {
            label for="q" { "Device ID, or its beginning" }
            div.row {
                input #q name="q" type="search" value=(wanted) autocapitalize="none" spellcheck="false" maxlength="64"
                    aria-describedby="q-hint" autofocus[wanted.is_empty()];
                button type="submit" { "Search" }
            }
            p.hint #q-hint { "A serial number, or a MAC address in any spelling." }
        }
        @if rows.is_empty() {
            @let text = html! { p { "No device ID begins with this text. Was the device imported? Serial numbers are case-sensitive." } };
            (page::message(Tone::Note, "Nothing found", &text))
        } @else {
            div.card {
                table.stacked {
                    caption { @if wanted.is_empty() { "All devices, in order of ID" } @else { "Devices whose ID begins with " b { (wanted) } } }
                    thead { tr { th scope="col" { "Device" } th scope="col" { "Enrollment" } th scope="col" { "State" } th scope="col" { "First issued" } } }
                    tbody {
                        @for row in rows {
                            tr {
                                th scope="row" { a.id href=(link(&row.id)) { (row.id) } }
                                td data-label="Enrollment" { (row.enrollment) }
                                td data-label="State" { (pill(row)) }
                                td data-label="First issued" { (time(row.first_issued).unwrap_or_else(|| "–".into())) }
                            }
                        }
                    }
                }
            }
            @if let Some(last) = rows.last().filter(|_| more) {
                p.pages { a.button href={ "/devices?" (query(&[("q", wanted), ("after", last.id.as_str())])) } { "Next " (PAGE) } }
            }
        }
    };
    frame.page("Devices", Some(&visitor), "/devices", &body).into_response()
}

/// Finds the devices for a page, and at least one more if another page follows. `wanted` is a
/// device ID in any spelling, or the beginning of one.
async fn find(store: &dyn Store, wanted: &str, after: Option<&str>) -> Result<Vec<DeviceRow>, StoreError> {
    let after = after.and_then(|after| DeviceId::parse_sn(after).ok());
    if wanted.is_empty() {
        return store.rows_after(after.as_ref(), PAGE + 1).await;
    }
    let mut found = Vec::new();
    for prefix in spellings(wanted) {
        if after.is_none() {
            found.extend(store.device(&prefix).await?);
        }
        let from = after.as_ref().unwrap_or(&prefix);
        let rows = store.rows_after(Some(from), PAGE + 1).await?;
        found.extend(rows.into_iter().take_while(|row| row.id.as_str().starts_with(prefix.as_str())));
        if !found.is_empty() {
            break;
        }
    }
    Ok(found)
}

/// Returns the text itself and, if a MAC address can begin with it, the text in the form in which
/// the table stores a MAC address.
fn spellings(wanted: &str) -> Vec<DeviceId> {
    let digits = wanted.strip_prefix("0x").or_else(|| wanted.strip_prefix("0X")).unwrap_or(wanted);
    let bare: String = digits.chars().filter(|c| !matches!(c, ':' | '-' | '.' | '_' | ' ')).collect();
    let is_mac = bare.len() <= 12 && bare.chars().all(|c| c.is_ascii_hexdigit());
    let mac = is_mac.then(|| bare.to_ascii_uppercase());
    let all = [Some(wanted.to_owned()), mac].into_iter().flatten();
    let mut ids: Vec<DeviceId> = all.filter_map(|text| DeviceId::parse_sn(&text).ok()).collect();
    ids.dedup();
    ids
}

fn query(pairs: &[(&str, &str)]) -> String {
    use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
    let pairs =
        pairs.iter().map(|(key, value)| format!("{key}={}", utf8_percent_encode(value, NON_ALPHANUMERIC)));
    pairs.collect::<Vec<_>>().join("&")
}

fn link(id: &DeviceId) -> String {
    format!("/device?{}", query(&[("id", id.as_str())]))
}

/// Renders the device's state in a few words.
fn pill(row: &DeviceRow) -> Markup {
    let (tone, word) = match row {
        DeviceRow { state: DeviceState::Disabled, .. } => (Tone::Warning, "disabled"),
        DeviceRow { cloud_state: Some(CloudState::Deleted), .. } => (Tone::Bad, "deleted at IoT Platform"),
        DeviceRow { cloud_state: Some(CloudState::Disabled), .. } => {
            (Tone::Warning, "disabled at IoT Platform")
        }
        DeviceRow { refusal: Some(_), .. } => (Tone::Bad, "refused"),
        DeviceRow { activated: Some(_), .. } => (Tone::Good, "activated"),
        DeviceRow { first_issued: Some(_), .. } => (Tone::Good, "issued"),
        DeviceRow { certificate: Some(_), .. } => (Tone::Note, "registered"),
        _ => (Tone::Note, "imported"),
    };
    html! { span class={ "pill " (tone.class()) } { (word) } }
}

#[derive(Deserialize)]
pub(super) struct Which {
    #[serde(default)]
    id: String,
    /// The action that was just carried out.
    done: Option<String>,
}

pub(super) async fn show(
    State(shared): State<Arc<Shared>>,
    frame: Frame,
    visitor: Visitor,
    headers: HeaderMap,
    Query(which): Query<Which>,
) -> Response {
    let Some((id, row)) = (match row_of(&shared, &which.id).await {
        Ok(found) => found,
        Err(error) => return frame.store_failed(&visitor, &error),
    }) else {
        return absent(&frame, &visitor, &which.id);
    };
    let enrollments = shared.enrollments();
    let enrolled = enrollments.iter().find(|enrolled| enrolled.name == row.enrollment);
    let claim = match shared.sources.store.claim_of(&id).await {
        Ok(claim) => claim,
        Err(error) => return frame.store_failed(&visitor, &error),
    };
    if wants_json(&headers) {
        return Json(as_json(&row, enrolled.map(|enrolled| enrolled.reissue), claim.as_ref()))
            .into_response();
    }
    let events = match history::of(shared.sources.store.as_ref(), &id).await {
        Ok(events) => events,
        Err(error) => return frame.store_failed(&visitor, &error),
    };
    let refusals = shared.sources.registrar.refusals();
    let stopped =
        refusals.iter().find(|(product, _)| product.as_ref().is_none_or(|key| *key == row.product_key));
    let advice = advice::of(&row, enrolled, stopped.map(|(_, reason)| reason.as_str()), unix_now());
    let done = which.done.as_deref().and_then(done);
    let body = html! {
        p.crumb { a href="/devices" { "Devices" } }
        h1 { span.id { (id) } " " (pill(&row)) }
        @if let Some(done) = done { p.done role="status" { (done) } }
        (page::message(advice.tone, advice.title, &html! { p { (advice.text) } }))
        div.columns {
            section.card aria-labelledby="row" {
                h2 #row { "In the table" }
                (facts(&row, enrolled, claim.as_ref()))
            }
            section.card aria-labelledby="change" {
                h2 #change { "Actions" }
                @if visitor.is_operator() { (actions(&frame, &visitor, &row)) }
                @else { p { "You are signed in as a viewer. Only operators can change devices." } }
            }
        }
        @if !events.is_empty() {
            section.card aria-labelledby="history" {
                h2 #history { "History" }
                ol.history { @for event in events { li { time { (time(Some(event.at)).unwrap_or_default()) } " " (event.text) } } }
            }
        }
    };
    frame.page(id.as_str(), Some(&visitor), "/devices", &body).into_response()
}

/// Finds a device by its ID in any spelling.
async fn row_of(shared: &Shared, id: &str) -> Result<Option<(DeviceId, DeviceRow)>, StoreError> {
    let Ok(asked) = table_file::device_id(id) else { return Ok(None) };
    let store = &shared.sources.store;
    for id in asked.ids() {
        if let Some(row) = store.device(id).await? {
            return Ok(Some((id.clone(), row)));
        }
    }
    let Some(mac) = asked.mac() else { return Ok(None) };
    let Some(id) = store.spelled(&mac).await? else { return Ok(None) };
    Ok(store.device(&id).await?.map(|row| (id, row)))
}

fn absent(frame: &Frame, visitor: &Visitor, id: &str) -> Response {
    if visitor.is_script() {
        return plain(StatusCode::NOT_FOUND, "this device is not in the table; check its ID, or import it");
    }
    let text = html! {
        p { "A device with the ID " b { (id) } " was never imported. Requests with this ID are answered with 4.04." }
        p { a href="/import" { "Import it" } ", or " a href="/devices" { "search for another" } "." }
    };
    let body = html! { h1 { "Not in the table" } (page::message(Tone::Note, "No such device", &text)) };
    (StatusCode::NOT_FOUND, frame.page("Not in the table", Some(visitor), "/devices", &body)).into_response()
}

fn facts(row: &DeviceRow, enrolled: Option<&EnrollmentOutline>, claim: Option<&ClaimView>) -> Markup {
    let dash = || "–".to_owned();
    let name = row.name();
    let certificate =
        if row.certificate.is_some() { "yes; the console does not show its secret" } else { "not yet" };
    let mut facts = vec![
        ("Enrollment", row.enrollment.clone()),
        (
            "May fetch its certificate",
            enrolled.map_or_else(dash, |enrolled| advice::reissue(enrolled.reissue)),
        ),
        ("Product key", row.product_key.clone()),
        ("Device name", name),
        ("IotId", row.iot_id.clone().unwrap_or_else(dash)),
        ("Certificate", certificate.to_owned()),
        ("Registered", time(row.registered).unwrap_or_else(dash)),
        ("First issued", time(row.first_issued).unwrap_or_else(dash)),
        ("Activated", time(row.activated).unwrap_or_else(dash)),
    ];
    if let Some(claim) = claim {
        facts.push(("Registration", device_view::registration(claim)));
    }
    if let Some(refusal) = &row.refusal {
        facts.push(("Refused", refusal.clone()));
    }
    html! { dl.facts { @for (name, value) in facts { div { dt { (name) } dd { (value) } } } } }
}

fn actions(frame: &Frame, visitor: &Visitor, row: &DeviceRow) -> Markup {
    let form = |action: &str, name: &str, class: &str, about: &str| {
        html! {
            form.action method="post" action={ "/device/" (action) } {
                (frame.hidden(visitor))
                input type="hidden" name="id" value=(row.id);
                button class=(class) type="submit" aria-describedby={ "about-" (action) } { (name) }
                p.hint #{ "about-" (action) } { (about) }
            }
        }
    };
    html! {
        @if row.state == DeviceState::Enabled {
            (form("disable", "Disable", "danger", "The device gets no certificate from its next request on (4.03). IoT Platform is not informed."))
        } @else {
            (form("enable", "Enable", "", "The device may have its certificate again, under its enrollment's policy."))
        }
        (form("reset", "Reset", "secondary", "Clears the first issue and any refusal, so that the device can fetch its certificate, or be registered, again."))
    }
}

fn done(what: &str) -> Option<&'static str> {
    Some(match what {
        "disable" => "It is disabled.",
        "enable" => "It is enabled.",
        "reset" => "It is reset.",
        _ => return None,
    })
}

pub(super) async fn disable(State(shared): State<Arc<Shared>>, order: OperatorForm) -> Response {
    change(&shared, order, "disable").await
}

pub(super) async fn enable(State(shared): State<Arc<Shared>>, order: OperatorForm) -> Response {
    change(&shared, order, "enable").await
}

pub(super) async fn reset(State(shared): State<Arc<Shared>>, order: OperatorForm) -> Response {
    change(&shared, order, "reset").await
}

async fn change(shared: &Shared, OperatorForm(sent): OperatorForm, what: &'static str) -> Response {
    let (frame, visitor, store) = (sent.frame, sent.visitor, &shared.sources.store);
    let id = match row_of(shared, &sent.fields.id).await {
        Ok(Some((id, _))) => id,
        Ok(None) => return absent(&frame, &visitor, &sent.fields.id),
        Err(error) => return frame.store_failed(&visitor, &error),
    };
    let by = visitor.actor();
    let outcome = match what {
        "disable" => store.set_state(&id, DeviceState::Disabled, &by).await,
        "enable" => store.set_state(&id, DeviceState::Enabled, &by).await,
        _ => store.reset(&id, &by).await,
    };
    match outcome {
        Ok(true) => {
            tracing::info!(device = %id, user = visitor.name, action = what, "a device was changed in the console");
            if visitor.is_script() {
                return plain(StatusCode::OK, format!("{id}: {what}"));
            }
            Redirect::to(&format!("{}&done={what}", link(&id))).into_response()
        }
        Ok(false) => absent(&frame, &visitor, id.as_str()),
        Err(error) => frame.store_failed(&visitor, &error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_beginning_of_a_mac_is_found_in_any_spelling() {
        let ids =
            |wanted: &str| -> Vec<String> { spellings(wanted).iter().map(ToString::to_string).collect() };
        assert_eq!(ids("SN00"), ["SN00"]);
        assert_eq!(ids("00:1a:2b"), ["00:1a:2b", "001A2B"]);
        assert_eq!(ids("001A2B"), ["001A2B"]);
        assert_eq!(ids("no such id"), [""; 0]);
    }
}
