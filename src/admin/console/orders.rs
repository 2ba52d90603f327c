//! Orders: changes to devices at IoT Platform. A device's page offers them where the configuration
//! permits them, and shows the order that is not carried out yet; a page lists all orders. The
//! module `ordering` decides which orders a device may have.

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
    OperatorForm, SubmittedForm, Visitor,
    conditions::Conditions,
    device,
    devices::link,
    language::Texts,
    page::{Frame, english, moment},
    plain, wants_json,
};
use crate::{
    admin::Shared,
    device_view::{not_yet, order_as_json},
    ordering::{self, Ordered},
    registrar::{Rights, Target, Targets},
    store::{
        CloudState, DeviceRow, DeviceState,
        order::{BY_OPERATOR, Former, Moving, Order, OrderKind, OrderNumber},
    },
};

/// Number of orders on a page.
const PAGE: usize = 50;

/// Returns the catalogue key of an order's name.
fn name_of(kind: OrderKind) -> &'static str {
    match kind {
        OrderKind::Disable => "order-disable",
        OrderKind::Enable => "order-enable",
        OrderKind::Delete => "order-delete",
        OrderKind::Rotate => "order-rotate",
        OrderKind::Move => "order-move",
    }
}

/// Returns the catalogue key of the sentence that says what an order does to a device.
fn meaning_of(kind: OrderKind) -> &'static str {
    match kind {
        OrderKind::Disable => "order-disable-text",
        OrderKind::Enable => "order-enable-text",
        OrderKind::Delete => "order-delete-text",
        OrderKind::Rotate => "order-rotate-text",
        OrderKind::Move => "order-move-text",
    }
}

/// Returns whether a device's page offers an order. A device without a certificate is not at IoT
/// Platform, so the actions in the table are enough for it.
fn is_offered(kind: OrderKind, row: &DeviceRow) -> bool {
    let is_disabled = row.state == DeviceState::Disabled || row.cloud_state == Some(CloudState::Disabled);
    row.certificate.is_some()
        && match kind {
            OrderKind::Disable => row.state == DeviceState::Enabled || row.cloud_state.is_none(),
            OrderKind::Enable => is_disabled,
            OrderKind::Delete | OrderKind::Rotate => true,
            // A move needs a destination, for which only `certdist device move` asks.
            OrderKind::Move => false,
        }
}

fn offered(row: &DeviceRow) -> impl Iterator<Item = OrderKind> {
    OrderKind::PLAIN.into_iter().filter(|kind| is_offered(*kind, row))
}

/// Renders the card of a device's page about changes at IoT Platform. Returns `None` if there is
/// nothing to change there.
pub(super) fn card(
    frame: &Frame,
    visitor: &Visitor,
    row: &DeviceRow,
    (order, targets): (Option<&Order>, &Targets),
) -> Option<Markup> {
    let t = frame.texts;
    let content = match (order, targets.rights(&targets.of(row))) {
        (Some(order), _) => html! {
            p { (described(t, order, waits_for(targets, order))) }
            @if visitor.is_operator() { (cancel_form(frame, visitor, order)) }
        },
        (None, _) if row.certificate.is_none() || !visitor.is_operator() => return None,
        (None, Rights::Permitted) => html! {
            @for kind in offered(row) {
                form.action action="/device/order" {
                    input type="hidden" name="id" value=(row.id);
                    input type="hidden" name="action" value=(kind.name());
                    button class=(class_of(kind)) type="submit" aria-describedby={ "about-order-" (kind) } { (t.say(name_of(kind))) }
                    p.hint id={ "about-order-" (kind) } { (t.say(meaning_of(kind))) }
                }
            }
        },
        (None, Rights::NotPermitted) => html! { p.hint { (t.say("orders-not-permitted")) } },
        (None, Rights::NoCloud(_) | Rights::NotConfigured) => return None,
    };
    Some(html! {
        section.card aria-labelledby="orders" {
            h2 #orders { (t.say("orders-device")) }
            (content)
            p.hint { a href="/orders" { (t.say("orders-title")) } }
        }
    })
}

/// Returns the kind of an order that needs no destination.
fn plain_kind(name: &str) -> Option<OrderKind> {
    OrderKind::PLAIN.into_iter().find(|kind| kind.name() == name)
}

fn class_of(kind: OrderKind) -> &'static str {
    match kind {
        OrderKind::Disable | OrderKind::Delete | OrderKind::Rotate | OrderKind::Move => "danger",
        OrderKind::Enable => "secondary",
    }
}

/// Returns what is left to do of an order.
fn work_of(t: Texts, order: &Order) -> String {
    let Some(Moving { from, to, is_stored, .. }) = &order.moving else { return t.say(name_of(order.kind)) };
    match (is_stored, to.former) {
        (true, Former::Disable) => t.with("order-former-disable", [("target", from.as_str().into())]),
        (true, _) => t.with("order-former-delete", [("target", from.as_str().into())]),
        (false, _) => t.with("order-move-to", [("target", to.target.as_str().into())]),
    }
}

/// Returns the reason why no process with this configuration makes the next call of an order.
pub(super) fn waits_for(targets: &Targets, order: &Order) -> Option<String> {
    ordering::waits_for(order, targets.rights(&order.target))
}

/// Renders an order that is not carried out yet, in a sentence or two.
fn described(t: Texts, order: &Order, waits_for: Option<String>) -> Markup {
    let name = work_of(t, order);
    let values =
        [("order", (&name).into()), ("time", moment(order.at).into()), ("by", (&order.by.name).into())];
    html! {
        (t.rich("order-waits", values))
        @if let Some(reason) = not_yet(order, waits_for) { " " (t.rich("order-failed", [("reason", english(&reason).into())])) }
    }
}

fn cancel_form(frame: &Frame, visitor: &Visitor, order: &Order) -> Markup {
    let t = frame.texts;
    html! {
        form.action method="post" action="/device/cancel" {
            (frame.hidden(visitor))
            input type="hidden" name="id" value=(order.device);
            input type="hidden" name="order" value=(order.number);
            button.secondary type="submit" aria-describedby="about-order-cancel" { (t.say("order-cancel")) }
            p.hint #about-order-cancel { (t.say("order-cancel-text")) }
        }
    }
}

/// A request for the page that confirms an order.
#[derive(Deserialize)]
pub(super) struct Asked {
    #[serde(default)]
    id: String,
    /// Name of the kind of the order.
    #[serde(default)]
    action: String,
}

/// Asks the operator to confirm an order.
pub(super) async fn confirm(
    State(shared): State<Arc<Shared>>,
    frame: Frame,
    visitor: Visitor,
    Query(asked): Query<Asked>,
) -> Response {
    if !visitor.is_operator() {
        return frame.not_allowed(&visitor);
    }
    let row = match device::row_of(&shared, &asked.id).await {
        Ok(Some(row)) => row,
        Ok(None) => return device::absent(&shared, &frame, &visitor, &asked.id).await,
        Err(error) => return frame.store_failed(&visitor, &error),
    };
    let Some(kind) = plain_kind(&asked.action).filter(|kind| is_offered(*kind, &row)) else {
        return Redirect::to(&link(&row.id)).into_response();
    };
    let t = frame.texts;
    let name = t.say(name_of(kind));
    let title = t.with("confirm-title", [("action", (&name).into()), ("device", row.id.as_str().into())]);
    let body = html! {
        p.crumb { a href=(link(&row.id)) { span.id { (row.id) } } }
        h1 { (title) }
        section.card {
            p { (t.say(meaning_of(kind))) }
            p { (t.say("order-kept")) }
            form method="post" action="/device/order" {
                (frame.hidden(&visitor))
                input type="hidden" name="id" value=(row.id);
                input type="hidden" name="action" value=(kind.name());
                input type="hidden" name="seen" value=(device::fingerprint(&row));
                p {
                    button class=(class_of(kind)) type="submit" { (name) }
                    " " a.button.secondary href=(link(&row.id)) { (t.say("cancel")) }
                }
            }
        }
    };
    frame.page(&title, Some(&visitor), "/devices", &body).into_response()
}

/// Places an order.
pub(super) async fn place(State(shared): State<Arc<Shared>>, OperatorForm(sent): OperatorForm) -> Response {
    let SubmittedForm { frame, visitor, fields } = sent;
    let row = match device::row_as_seen(&shared, &frame, &visitor, &fields).await {
        Ok(row) => row,
        Err(answer) => return answer,
    };
    let Some(kind) = plain_kind(&fields.action) else {
        return plain(StatusCode::BAD_REQUEST, "expected the name of an order in the field action");
    };
    let (store, targets, by) = (&shared.sources.store, &shared.sources.targets, visitor.actor());
    let enrolled = shared.enrollments();
    let terms = |name: &str| enrolled.iter().find(|known| known.name == name).map(|known| known.terms());
    let id = row.id.clone();
    match ordering::place(&**store, targets, terms, &id, (kind, &by)).await {
        Ok(Ordered::Placed(_)) => {
            tracing::info!(device = %id, user = visitor.name, work = %kind, "an order was placed in the console");
            if let Some(target) = targets.named(&targets.of(&row))
                && let Err(error) = target.registrar.look_for_orders().await
            {
                tracing::debug!(%error, "could not look for orders; trying again");
            }
            done(&visitor, &row, ("order", format!("order to {kind} placed")))
        }
        Ok(Ordered::Here | Ordered::There) => {
            tracing::info!(device = %id, user = visitor.name, action = %kind, "a device was changed in the console");
            done(&visitor, &row, (kind.name(), format!("{kind}, in the table only")))
        }
        Ok(Ordered::Refused(refusal)) => {
            let reason = format!("{id}: {refusal}");
            device::refused(&shared, &frame, &visitor, row, &reason).await
        }
        Err(error) => frame.store_failed(&visitor, &error),
    }
}

/// Ends an order that is not carried out yet.
pub(super) async fn cancel(State(shared): State<Arc<Shared>>, OperatorForm(sent): OperatorForm) -> Response {
    let SubmittedForm { frame, visitor, fields } = sent;
    let row = match device::row_of(&shared, &fields.id).await {
        Ok(Some(row)) => row,
        Ok(None) => return device::absent(&shared, &frame, &visitor, &fields.id).await,
        Err(error) => return frame.store_failed(&visitor, &error),
    };
    let store = &shared.sources.store;
    let order = match store.order_of(&row.id).await {
        Ok(order) => order,
        Err(error) => return frame.store_failed(&visitor, &error),
    };
    // A script has seen no page, so it cancels any order that the device has.
    let has_seen_nothing = visitor.is_script() && fields.order.is_empty();
    let seen = |order: &Order| has_seen_nothing || fields.order == order.number.to_string();
    let Some(order) = order.filter(seen) else {
        if visitor.is_script() {
            return plain(StatusCode::CONFLICT, format!("{} has no such order", row.id));
        }
        return device::changed_meanwhile(&shared, &frame, &visitor, row).await;
    };
    match store.end_order(order.number, BY_OPERATOR, &visitor.actor()).await {
        Ok(true) => {
            tracing::info!(device = %row.id, user = visitor.name, work = %order.kind, "an order was cancelled in the console");
            done(&visitor, &row, ("cancel", format!("order to {} cancelled", order.kind)))
        }
        Ok(false) => device::changed_meanwhile(&shared, &frame, &visitor, row).await,
        Err(error) => frame.store_failed(&visitor, &error),
    }
}

/// Returns to the device's page, which says what was done; a script gets the text.
fn done(visitor: &Visitor, row: &DeviceRow, (what, text): (&str, String)) -> Response {
    if visitor.is_script() {
        return plain(StatusCode::OK, format!("{}: {text}", row.id));
    }
    let fields = [("id", row.id.as_str()), ("done", what)];
    Redirect::to(&Conditions::default().path("/device", &fields, &[])).into_response()
}

/// A request for a page of the list.
#[derive(Deserialize)]
pub(super) struct Which {
    /// Name of the target; empty for all.
    #[serde(default)]
    target: String,
    /// Number of the order after which the page begins.
    #[serde(default)]
    after: OrderNumber,
}

/// Lists the orders that are not carried out yet, the oldest first.
pub(super) async fn list(
    State(shared): State<Arc<Shared>>,
    frame: Frame,
    visitor: Visitor,
    headers: HeaderMap,
    Query(which): Query<Which>,
) -> Response {
    let target = Some(which.target.trim()).filter(|target| !target.is_empty());
    let mut orders = match shared.sources.store.orders_after(target, which.after, PAGE + 1).await {
        Ok(orders) => orders,
        Err(error) => return frame.store_failed(&visitor, &error),
    };
    let is_more = orders.len() > PAGE;
    orders.truncate(PAGE);
    if wants_json(&headers) {
        let shown = |order| order_as_json(order, waits_for(&shared.sources.targets, order));
        return Json(orders.iter().map(shown).collect::<Vec<_>>()).into_response();
    }
    let t = frame.texts;
    let path = |after: Option<OrderNumber>| {
        let after = after.map(|number| number.to_string()).unwrap_or_default();
        let conditions = Conditions { target: which.target.trim().to_owned(), ..Conditions::default() };
        conditions.path("/orders", &[("after", &after)], &[])
    };
    let next = orders.last().map(|order| order.number).filter(|_| is_more);
    let targets = &shared.sources.targets;
    let body = html! {
        p.crumb { a href="/devices" { (t.say("nav-devices")) } }
        h1 { (t.say("orders-title")) }
        p.hint { (t.say("orders-text")) }
        @if targets.are_named() {
            form.search.card action="/orders" {
                label for="target" { (t.say("column-target")) }
                div.row {
                    select #target name="target" {
                        option value="" { (t.say("orders-all-targets")) }
                        @for name in targets.all().iter().map(Target::name) {
                            option value=(name) selected[Some(name) == target] { (name) }
                        }
                    }
                    button.secondary type="submit" { (t.say("devices-apply")) }
                }
            }
        }
        @if orders.is_empty() { p { (t.say("orders-none")) } }
        @else { div.card { (table(t, &orders, targets)) } }
        @if which.after > 0 || next.is_some() {
            p.pages {
                @if which.after > 0 { a.button href=(path(None)) { (t.say("orders-first")) } " " }
                @if let Some(number) = next { a.button href=(path(Some(number))) rel="next" { (t.say("devices-next")) } }
            }
        }
    };
    frame.page(&t.say("orders-title"), Some(&visitor), "/devices", &body).into_response()
}

fn table(t: Texts, orders: &[Order], targets: &Targets) -> Markup {
    let names_targets = targets.are_named();
    html! {
        table.stacked {
            thead { tr {
                th scope="col" { (t.say("column-device")) }
                th scope="col" { (t.say("column-order")) }
                @if names_targets { th scope="col" { (t.say("column-target")) } }
                th scope="col" { (t.say("column-since")) }
                th scope="col" { (t.say("column-by")) }
                th scope="col" { (t.say("column-not-yet")) }
            } }
            tbody {
                @for order in orders {
                    tr {
                        th scope="row" { a.id href=(link(&order.device)) { (order.device) } }
                        td data-label=(t.say("column-order")) { (work_of(t, order)) }
                        @if names_targets { td data-label=(t.say("column-target")) { bdi { (order.target) } } }
                        td data-label=(t.say("column-since")) { (moment(order.at)) }
                        td data-label=(t.say("column-by")) { bdi { (order.by.name) } }
                        td data-label=(t.say("column-not-yet")) { @if let Some(reason) = not_yet(order, waits_for(targets, order)) { (english(&reason)) } @else { "–" } }
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::DeviceId;

    #[test]
    fn a_page_offers_what_would_change_the_device() {
        use OrderKind::{Delete, Disable, Enable, Rotate};
        let row = DeviceRow::imported(DeviceId::parse("SN-1").unwrap(), "lamps", "a1");
        assert_eq!(offered(&row).count(), 0, "it is not at IoT Platform");
        let row = row.with_certificate("SN-1", "s3cret");
        let off = |state, cloud_state| DeviceRow { state, cloud_state, ..row.clone() };
        for (row, expected) in [
            (row.clone(), &[Disable, Delete, Rotate][..]),
            (off(DeviceState::Disabled, None), &[Disable, Enable, Delete, Rotate]),
            (off(DeviceState::Disabled, Some(CloudState::Disabled)), &[Enable, Delete, Rotate]),
            (off(DeviceState::Enabled, Some(CloudState::Disabled)), &[Disable, Enable, Delete, Rotate]),
        ] {
            assert_eq!(offered(&row).collect::<Vec<_>>(), expected, "{row:?}");
        }
    }
}
