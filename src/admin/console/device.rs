//! Shows one device: its problem, its properties and its history. Changes the device, unless it has
//! been changed since the page was shown. `orders` has the changes at IoT Platform.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Query, State},
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Redirect, Response},
};
use maud::{Markup, html};
use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::{
    Fields, OperatorForm, Visitor,
    advice::{self, Known, last_answer},
    bulk,
    conditions::Conditions,
    devices::{link, pill},
    failures,
    handshakes::{self, Failed},
    history,
    language::Texts,
    orders,
    page::{self, Frame, Tone, english, moment},
    plain, wants_json,
};
use crate::{
    admin::{Shared, blocking, jobs::Action},
    device_view::{self, as_json},
    psk::EnrollmentOutline,
    registrar::Targets,
    resource::failures::Failure,
    store::{
        DeviceRow, DeviceState, StoreError, UnixSeconds,
        audit::AuditEntry,
        claim::ClaimView,
        filter::Listed,
        order::Order,
        place::{self, Places},
        roll::Roll,
        undo::ImportRecord,
    },
    table_file,
};

#[derive(Deserialize)]
pub(super) struct Which {
    #[serde(default)]
    id: String,
    /// The action that was just carried out.
    #[serde(default)]
    done: String,
    /// The action to confirm.
    #[serde(default)]
    action: String,
}

/// Everything that a device's page shows.
struct Device {
    row: DeviceRow,
    claim: Option<ClaimView>,
    history: Vec<AuditEntry>,
    imports: Vec<ImportRecord>,
    /// Roll of the device's own key, if it has two.
    roll: Option<Roll>,
    enrolled: Option<EnrollmentOutline>,
    /// Reason why calls for the device's product are stopped at present; `None` if they are not
    /// stopped.
    stopped: Option<String>,
    /// Target at which the device is registered or will be registered.
    target: String,
    /// Set if the page names the target: the configuration names targets, or lacks this one.
    names_target: bool,
    /// Set if the target is not configured.
    has_lost_target: bool,
    /// The order of the device that is not carried out yet.
    order: Option<Order>,
    /// The device's last request that was not served.
    failure: Option<Failure>,
    /// The last failed handshake of a client that claimed to be the device.
    handshake: Option<Failed>,
    /// Places of the device's enrollment that other devices have taken, if their number is limited.
    taken: Places,
    /// Time by the clock of the store.
    now: UnixSeconds,
}

impl Device {
    async fn read(shared: &Arc<Shared>, row: DeviceRow) -> Result<Self, StoreError> {
        let store = &shared.sources.store;
        let claim = store.claim_of(&row.id).await?;
        let history = store.history(&row.id, history::MOST).await?;
        let (work, id) = (store.clone(), row.id.clone());
        let imports = blocking(move || work.imports_of(&id)).await?;
        let enrolled = shared.enrollments().iter().find(|enrolled| enrolled.name == row.enrollment).cloned();
        let roll = store.roll_of(&row.id).await?;
        let order = store.order_of(&row.id).await?;
        let targets = &shared.sources.targets;
        let target = target_of(&row, claim.as_ref(), targets);
        let stopped = targets.stopped(&target, &row.product_key);
        let has_lost_target = targets.named(&target).is_none();
        let names_target = targets.are_named() || has_lost_target;
        let failure = shared.sources.failures.last_of(&row.id);
        let handshake = handshakes::last_of(shared, &row.id);
        let is_limited = enrolled.as_ref().is_some_and(|enrolled| enrolled.guards.max_devices.is_some());
        let taken = match is_limited {
            true => place::taken(&**store, &row.enrollment, &row.id).await?,
            false => Places::default(),
        };
        Ok(Self {
            row,
            claim,
            history,
            imports,
            roll,
            enrolled,
            stopped,
            target,
            names_target,
            has_lost_target,
            order,
            failure,
            handshake,
            taken,
            now: store.now(),
        })
    }

    fn advice(&self, t: Texts) -> advice::Advice {
        let Self { row, claim, history, enrolled, stopped, target, failure, handshake, taken, now, .. } =
            self;
        let known = Known {
            row,
            enrolled: enrolled.as_ref(),
            stopped: stopped.as_deref(),
            lost_target: self.has_lost_target.then_some(target.as_str()),
            claim: claim.as_ref(),
            history,
            failure: failure.as_ref(),
            handshake: handshake.as_ref(),
            taken: *taken,
            now: *now,
        };
        known.advice(t)
    }
}

/// Returns the target at which a device is registered or will be registered. A registration that has
/// begun continues at its target, even if the enrollment has another target by now.
fn target_of(row: &DeviceRow, claim: Option<&ClaimView>, targets: &Targets) -> String {
    match (row.target(), claim) {
        (None, Some(claim)) => claim.entry.target.clone(),
        _ => targets.of(row),
    }
}

pub(super) async fn show(
    State(shared): State<Arc<Shared>>,
    frame: Frame,
    visitor: Visitor,
    headers: HeaderMap,
    Query(which): Query<Which>,
) -> Response {
    let row = match row_of(&shared, &which.id).await {
        Ok(Some(row)) => row,
        Ok(None) => return absent(&shared, &frame, &visitor, &which.id).await,
        Err(error) => return frame.store_failed(&visitor, &error),
    };
    let device = match Device::read(&shared, row).await {
        Ok(device) => device,
        Err(error) => return frame.store_failed(&visitor, &error),
    };
    if wants_json(&headers) {
        let terms = device.enrolled.as_ref().map(EnrollmentOutline::terms);
        let listed = device.row.listed(device.claim.is_some());
        let rules = (terms, device.taken);
        let mut shown = as_json(&listed, rules, device.claim.as_ref(), device.names_target, device.now);
        if let Some(roll) = &device.roll {
            shown["keys"] = device_view::keys(roll);
        }
        if let Some(order) = &device.order {
            let waits_for = orders::waits_for(&shared.sources.targets, order);
            shown["order"] = device_view::order(order, waits_for).into();
        }
        return Json(shown).into_response();
    }
    let t = frame.texts;
    let notice = match done(&which.done) {
        Some(key) => html! { p.done role="status" { (t.say(key)) } },
        None => html! {},
    };
    page_of(&frame, &visitor, (&shared.sources.targets, &device), &notice).into_response()
}

fn done(action: &str) -> Option<&'static str> {
    Some(match action {
        "disable" => "done-disable",
        "enable" => "done-enable",
        "reset" => "done-reset",
        "order" => "done-order",
        "cancel" => "done-cancel",
        _ => return None,
    })
}

fn page_of(
    frame: &Frame,
    visitor: &Visitor,
    (targets, device): (&Targets, &Device),
    notice: &Markup,
) -> Markup {
    let (t, Device { row, claim, history, imports, .. }) = (frame.texts, device);
    let advice = device.advice(t);
    let listed = Listed::new(row.id.clone(), &row.seen(), claim.is_some());
    let advised = advice.action.filter(|_| visitor.is_operator());
    let text = html! {
        p { (advice.text) }
        @if let Some(action) = advised { (action_form(frame, visitor, row, action, "advised")) }
    };
    let body = html! {
        p.crumb { a href="/devices" { (t.say("nav-devices")) } }
        h1 { span.id { (row.id) } " " (pill(t, &listed)) }
        (notice)
        (page::message(advice.tone, &t.say(advice.title), &text))
        div.columns {
            section.card aria-labelledby="row" {
                h2 #row { (t.say("device-row")) }
                (facts(t, device))
            }
            section.card aria-labelledby="change" {
                h2 #change { (t.say("device-actions")) }
                @if visitor.is_operator() {
                    @for action in actions(row) {
                        @if Some(action) != advised { (action_form(frame, visitor, row, action, "other")) }
                    }
                } @else { p { (t.say("device-viewer")) } }
            }
        }
        @if let Some(orders) = orders::card(frame, visitor, row, (device.order.as_ref(), targets)) { (orders) }
        (history::show(t, history, imports))
    };
    frame.page(row.id.as_str(), Some(visitor), "/devices", &body)
}

/// Renders a button that copies a text. Without JavaScript, the button stays hidden.
fn copy(t: Texts, text: &str) -> Markup {
    html! { button.quiet type="button" hidden data-copy=(text) data-copied=(t.say("copied")) { (t.say("copy")) } }
}

/// Finds a device by its ID in any spelling.
pub(super) async fn row_of(shared: &Shared, id: &str) -> Result<Option<DeviceRow>, StoreError> {
    let Ok(asked) = table_file::device_id(id) else { return Ok(None) };
    let store = &shared.sources.store;
    for id in asked.ids() {
        if let Some(row) = store.device(id).await? {
            return Ok(Some(row));
        }
    }
    let Some(mac) = asked.mac() else { return Ok(None) };
    let Some(id) = store.spelled(&mac).await? else { return Ok(None) };
    store.device(&id).await
}

/// Says that a device is not in the table, and shows what is nevertheless known about it.
pub(super) async fn absent(shared: &Shared, frame: &Frame, visitor: &Visitor, id: &str) -> Response {
    if visitor.is_script() {
        return plain(StatusCode::NOT_FOUND, "this device is not in the table; check its ID, or import it");
    }
    let mut entries = Vec::new();
    if let Ok(asked) = table_file::device_id(id) {
        for id in asked.ids() {
            match shared.sources.store.history(id, history::MOST).await {
                Ok(found) => entries.extend(found),
                Err(error) => return frame.store_failed(visitor, &error),
            }
        }
    }
    let t = frame.texts;
    let text = html! {
        p { (t.rich("absent-text", [("device", id.into())])) }
        @if let Some(entry) = last_answer(&entries) {
            p { (t.rich("absent-asked", [("time", moment(entry.at).into()), ("enrollment", entry.enrollment.as_deref().unwrap_or("–").into())])) }
        }
        p {
            (t.say("absent-yours"))
            @if let Some(key) = last_answer(&entries).and_then(|entry| entry.enrollment.as_ref()) {
                " " (t.rich("absent-not-yours", [("enrollment", key.into())]))
            }
        }
        p { a href="/import" { (t.say("absent-import")) } " · " a href="/devices" { (t.say("absent-search")) } }
    };
    let tone = if last_answer(&entries).is_some() { Tone::Warning } else { Tone::Note };
    let title = t.say("absent-title");
    let body = html! {
        p.crumb { a href="/devices" { (t.say("nav-devices")) } }
        h1 { (title) }
        (page::message(tone, &t.say("absent"), &text))
        (history::show(t, &entries, &[]))
    };
    (StatusCode::NOT_FOUND, frame.page(&title, Some(visitor), "/devices", &body)).into_response()
}

fn facts(t: Texts, device: &Device) -> Markup {
    let Device { row, claim, history, enrolled, .. } = device;
    let text = |text: &str| html! { bdi { (text) } };
    let name = row.name();
    let mut facts: Vec<(&'static str, Markup)> = vec![
        ("column-device", html! { span.id { (row.id) } " " (copy(t, row.id.as_str())) }),
        (
            "column-enrollment",
            html! { a href=(Conditions::default().of(&row.enrollment).path("/devices", &[], &[])) { bdi { (row.enrollment) } } },
        ),
        ("fact-product", html! { (text(&row.product_key)) " " (copy(t, &row.product_key)) }),
        ("fact-name", html! { (text(&name)) " " (copy(t, &name)) }),
    ];
    if device.names_target {
        facts.push(("column-target", text(&device.target)));
    }
    let mut time = |key, at: Option<i64>| facts.extend(at.map(|at| (key, moment(at))));
    time("fact-registered", row.registered);
    time("column-issued", row.first_issued);
    time("fact-activated", row.activated);
    if let Some(enrolled) = enrolled {
        facts.push(("fact-reissue", html! { (advice::reissue(t, enrolled.reissue)) }));
    }
    if let Some(iot_id) = &row.iot_id {
        facts.push(("fact-iotid", html! { (text(iot_id)) " " (copy(t, iot_id)) }));
    }
    let certificate = if row.certificate.is_some() { "fact-certificate-yes" } else { "fact-certificate-no" };
    facts.push(("fact-certificate", html! { (t.say(certificate)) }));
    if let Some(Roll { since, used }) = device.roll {
        for (key, used) in ["fact-key-current", "fact-key-next"].into_iter().zip(used) {
            let says = match used {
                Some(used) => t.rich("fact-key-used", [("time", moment(used).into())]),
                None => t.rich("fact-key-unused", [("since", moment(since).into())]),
            };
            facts.push((key, says));
        }
    }
    if let Some(claim) = claim {
        let since = [("time", moment(claim.since).into())];
        let registration = match &claim.owner {
            Some(owner) => html! { (t.rich("fact-claim-held", since)) " · " (text(owner)) },
            None => t.rich("fact-claim-left", since),
        };
        facts.push(("fact-claim", registration));
    }
    if let Some(refusal) = &row.refusal {
        let all = Conditions { refusal: refusal.clone(), ..Conditions::default() };
        let link = html! { a href=(all.path("/devices", &[], &[])) { (t.say("fact-refusal-others")) } };
        facts.push(("fact-refusal", html! { (text(&advice::reason(t, refusal))) " " (link) }));
    }
    facts.extend(seen(t, history, device.failure.as_ref()).map(|seen| ("fact-seen", seen)));
    html! { dl.facts { @for (name, value) in facts { div { dt { (t.say(name)) } dd { (value) } } } } }
}

/// Renders the time, the answer and the address of the last known request.
fn seen(t: Texts, history: &[AuditEntry], failure: Option<&Failure>) -> Option<Markup> {
    let answered = last_answer(history);
    let unserved = failure.filter(|failure| answered.is_none_or(|entry| failure.last > entry.at));
    if let Some(failure) = unserved {
        return Some(html! {
            (moment(failure.last)) " · " (failures::sentence(t, failure.reason)) " · " bdi { (failure.origin) }
        });
    }
    answered.map(|entry| {
        html! {
            (moment(entry.at)) " · " (t.say(history::name_of(entry.event)))
            @if let Some(address) = &entry.address { " · " bdi { (address) } }
        }
    })
}

/// Returns the actions that a device's page offers.
fn actions(row: &DeviceRow) -> Vec<Action> {
    let listed = Listed::new(row.id.clone(), &row.seen(), false);
    let all = [Action::Enable, Action::Disable, Action::Reset, Action::Delete];
    all.into_iter().filter(|action| action.changes(&listed)).collect()
}

/// Returns whether an action needs a confirmation.
fn is_confirmed(action: Action) -> bool {
    matches!(action, Action::Reset | Action::Delete)
}

/// Renders the form of an action. `place` makes the form's element IDs unique on the page.
fn action_form(frame: &Frame, visitor: &Visitor, row: &DeviceRow, action: Action, place: &str) -> Markup {
    let (t, name) = (frame.texts, action.name());
    let class = if matches!(action, Action::Disable | Action::Delete) { "danger" } else { "secondary" };
    let about = format!("about-{place}-{name}");
    let button = html! {
        button class=(class) type="submit" aria-describedby=(about) { (t.say(bulk::name_of(action))) }
        p.hint id=(about) { (t.say(bulk::meaning_of(action))) }
    };
    html! {
        @if is_confirmed(action) {
            form.action action="/device/confirm" {
                input type="hidden" name="id" value=(row.id);
                input type="hidden" name="action" value=(name);
                (button)
            }
        } @else {
            form.action method="post" action={ "/device/" (name) } {
                (frame.hidden(visitor))
                input type="hidden" name="id" value=(row.id);
                input type="hidden" name="seen" value=(fingerprint(row));
                (button)
            }
        }
    }
}

/// Returns a short hash of the values on which an operator's decision depends. A different hash
/// shows that the device has been changed since.
pub(super) fn fingerprint(row: &DeviceRow) -> String {
    let seen = format!(
        "{:?}",
        (
            (row.state, row.cloud_state, row.first_issued, &row.refusal),
            (row.certificate.is_some(), &row.enrollment, &row.product_key, row.name()),
        )
    );
    hex::encode(&Sha256::digest(seen)[..8])
}

/// Asks the operator to confirm the reset or the deletion of a device.
pub(super) async fn confirm(
    State(shared): State<Arc<Shared>>,
    frame: Frame,
    visitor: Visitor,
    Query(which): Query<Which>,
) -> Response {
    if !visitor.is_operator() {
        return frame.not_allowed(&visitor);
    }
    let action = Action::named(&which.action).filter(|action| is_confirmed(*action));
    let row = match row_of(&shared, &which.id).await {
        Ok(Some(row)) => row,
        Ok(None) => return absent(&shared, &frame, &visitor, &which.id).await,
        Err(error) => return frame.store_failed(&visitor, &error),
    };
    let Some(action) = action else { return Redirect::to(&link(&row.id)).into_response() };
    let t = frame.texts;
    let title = t.with(
        "confirm-title",
        [("action", (&t.say(bulk::name_of(action))).into()), ("device", row.id.as_str().into())],
    );
    let class = if action == Action::Delete { "danger" } else { "" };
    let body = html! {
        p.crumb { a href=(link(&row.id)) { span.id { (row.id) } } }
        h1 { (title) }
        section.card {
            p { (t.say(bulk::meaning_of(action))) }
            ul { @for line in removed(t, &row, action) { li { (line) } } }
            form method="post" action={ "/device/" (action.name()) } {
                (frame.hidden(&visitor))
                input type="hidden" name="id" value=(row.id);
                input type="hidden" name="seen" value=(fingerprint(&row));
                p {
                    button class=(class) type="submit" autofocus[class.is_empty()] { (t.say(bulk::name_of(action))) }
                    " " a.button.secondary href=(link(&row.id)) { (t.say("cancel")) }
                }
            }
        }
    };
    frame.page(&title, Some(&visitor), "/devices", &body).into_response()
}

/// Returns descriptions of what an action removes.
fn removed(t: Texts, row: &DeviceRow, action: Action) -> Vec<Markup> {
    let say = |key: &'static str| html! { (t.say(key)) };
    let mut all = Vec::new();
    if action == Action::Delete {
        all.push(say("removes-row"));
        if row.certificate.is_some() {
            all.push(say("removes-certificate-here"));
        }
        return all;
    }
    all.extend(row.first_issued.map(|at| t.rich("removes-issue", [("time", moment(at).into())])));
    all.extend(row.refusal.as_ref().map(|refusal| {
        let reason = advice::reason(t, refusal);
        t.rich("removes-refusal", [("reason", (&*reason).into())])
    }));
    match row.cloud_state {
        Some(crate::store::CloudState::Deleted) => all.push(say("removes-certificate")),
        _ if row.certificate.is_some() => all.push(say("keeps-certificate")),
        _ => {}
    }
    if all.is_empty() {
        all.push(say("removes-nothing"));
    }
    all
}

pub(super) async fn disable(State(shared): State<Arc<Shared>>, order: OperatorForm) -> Response {
    change(&shared, order, Action::Disable).await
}

pub(super) async fn enable(State(shared): State<Arc<Shared>>, order: OperatorForm) -> Response {
    change(&shared, order, Action::Enable).await
}

pub(super) async fn reset(State(shared): State<Arc<Shared>>, order: OperatorForm) -> Response {
    change(&shared, order, Action::Reset).await
}

pub(super) async fn delete(State(shared): State<Arc<Shared>>, order: OperatorForm) -> Response {
    change(&shared, order, Action::Delete).await
}

/// Returns the device that a form names. The error is the response if the device is not in the
/// table, or has changed since the operator saw it.
pub(super) async fn row_as_seen(
    shared: &Arc<Shared>,
    frame: &Frame,
    visitor: &Visitor,
    fields: &Fields,
) -> Result<DeviceRow, Response> {
    let row = match row_of(shared, &fields.id).await {
        Ok(Some(row)) => row,
        Ok(None) => return Err(absent(shared, frame, visitor, &fields.id).await),
        Err(error) => return Err(frame.store_failed(visitor, &error)),
    };
    // A script sends no fingerprint, because no page was shown to it.
    let has_seen_nothing = visitor.is_script() && fields.seen.is_empty();
    if !has_seen_nothing && fields.seen != fingerprint(&row) {
        return Err(changed_meanwhile(shared, frame, visitor, row).await);
    }
    Ok(row)
}

async fn change(shared: &Arc<Shared>, OperatorForm(sent): OperatorForm, action: Action) -> Response {
    let (frame, visitor, store) = (sent.frame, sent.visitor, &shared.sources.store);
    let row = match row_as_seen(shared, &frame, &visitor, &sent.fields).await {
        Ok(row) => row,
        Err(answer) => return answer,
    };
    let (id, by) = (row.id.clone(), visitor.actor());
    let outcome = match action {
        Action::Disable => store.set_state(&id, DeviceState::Disabled, &by).await,
        Action::Enable => store.set_state(&id, DeviceState::Enabled, &by).await,
        Action::Delete => store.delete(&id, &by).await,
        Action::Reset | Action::Register => store.reset(&id, &by).await,
    };
    let what = action.name();
    match outcome {
        Ok(true) => {
            tracing::info!(device = %id, user = visitor.name, action = what, "a device was changed in the console");
            if visitor.is_script() {
                return plain(StatusCode::OK, format!("{id}: {what}"));
            }
            let fields: &[(&str, &str)] = &[("id", id.as_str()), ("done", what)];
            Redirect::to(&Conditions::default().path("/device", fields, &[])).into_response()
        }
        Ok(false) => absent(shared, &frame, &visitor, id.as_str()).await,
        Err(StoreError::Conflict(reason)) => refused(shared, &frame, &visitor, row, &reason).await,
        Err(error) => frame.store_failed(&visitor, &error),
    }
}

/// Says why a device was not changed, and shows the device.
pub(super) async fn refused(
    shared: &Arc<Shared>,
    frame: &Frame,
    visitor: &Visitor,
    row: DeviceRow,
    reason: &str,
) -> Response {
    if visitor.is_script() {
        return plain(StatusCode::CONFLICT, reason);
    }
    let text = html! { p { (english(reason)) } };
    let notice = page::message(Tone::Warning, &frame.texts.say("bulk-refused"), &text);
    with_notice(shared, frame, visitor, row, &notice).await
}

/// Says that another operator, or the device itself, has changed the row since the page was shown.
/// Shows the current row.
pub(super) async fn changed_meanwhile(
    shared: &Arc<Shared>,
    frame: &Frame,
    visitor: &Visitor,
    row: DeviceRow,
) -> Response {
    let t = frame.texts;
    let text = html! { p { (t.say("changed-meanwhile-text")) } };
    let notice = page::message(Tone::Warning, &t.say("changed-meanwhile"), &text);
    with_notice(shared, frame, visitor, row, &notice).await
}

/// Shows a device that was not changed, with the reason.
async fn with_notice(
    shared: &Arc<Shared>,
    frame: &Frame,
    visitor: &Visitor,
    row: DeviceRow,
    notice: &Markup,
) -> Response {
    match Device::read(shared, row).await {
        Ok(device) => {
            let targets = &shared.sources.targets;
            (StatusCode::CONFLICT, page_of(frame, visitor, (targets, &device), notice)).into_response()
        }
        Err(error) => frame.store_failed(visitor, &error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::DeviceId;

    #[test]
    fn whatever_an_operator_decides_by_changes_the_fingerprint() {
        let id = DeviceId::parse("SN-1").unwrap();
        let row = DeviceRow::imported(id, "lamps", "a1");
        let seen = fingerprint(&row);
        assert_eq!(fingerprint(&row.clone()), seen);
        for other in [
            DeviceRow { state: DeviceState::Disabled, ..row.clone() },
            DeviceRow { refusal: Some("odd".into()), ..row.clone() },
            DeviceRow { first_issued: Some(1), ..row.clone() },
            DeviceRow { enrollment: "plugs".into(), ..row.clone() },
            row.clone().with_certificate("SN-1", "s3cret"),
        ] {
            assert_ne!(fingerprint(&other), seen, "{other:?}");
        }
    }

    #[test]
    fn a_registration_that_has_begun_has_its_own_target_and_not_that_of_the_enrollment() {
        let row = DeviceRow::imported(DeviceId::parse("SN-1").unwrap(), "lamps", "a1");
        let of_enrollments = [("lamps".to_owned(), "osaka".to_owned())].into();
        let targets = Targets::new(Vec::new(), of_enrollments, true);
        let claim =
            ClaimView { entry: row.wanted("tokyo"), since: 1, owner: None, last_beat: None, batch: None };
        assert_eq!(target_of(&row, None, &targets), "osaka");
        assert_eq!(target_of(&row, Some(&claim), &targets), "tokyo");
        let registered = DeviceRow { target: Some("kobe".into()), ..row.with_certificate("SN-1", "s3cret") };
        assert_eq!(target_of(&registered, Some(&claim), &targets), "kobe");
    }
}
