//! Formats a device's row and its order, in the same form for `certdist device` and the console.

use serde_json::{Value, json};

use crate::{
    policy,
    psk::{Terms, WhichKey},
    store::{
        CloudState, DeviceState, UnixSeconds, claim::ClaimView, filter::Listed, order::Order, place::Places,
        roll::Roll,
    },
};

/// Formats a device, without its secrets. Values that also exist at IoT Platform have IoT Platform's
/// names. Times are RFC 3339 in UTC. `terms` are the terms of the row's enrollment, or `None` if
/// that enrollment is not in the configuration. `taken` has the places of the enrollment that other
/// devices have taken. `claim` is the claim on the device's registration, if any. The target is part
/// of the JSON only if the configuration names targets (`names_targets`); it is null if it is
/// decided when the device is registered. `now` is the time by the clock of the store.
pub fn as_json(
    row: &Listed,
    (terms, taken): (Option<Terms>, Places),
    claim: Option<&ClaimView>,
    names_targets: bool,
    now: UnixSeconds,
) -> Value {
    let mut shown = json!({
        "deviceId": row.id.as_str(),
        "enrollment": row.enrollment,
        "state": state(row.state),
        "productKey": row.product_key,
        "deviceName": row.name(),
        "hasCertificate": row.is_registered,
        "iotId": row.iot_id,
        "registerTime": time(row.registered),
        "firstIssued": time(row.first_issued),
        "activateTime": time(row.activated),
        "refusal": row.refusal,
        "cloudState": row.cloud_state.map(|state| match state {
            CloudState::Disabled => "disabled",
            CloudState::Deleted => "deleted",
        }),
        "registration": claim.map(|claim| json!({
            "since": time(Some(claim.since)),
            "owner": claim.owner,
            "ownerLastSeen": time(claim.last_beat),
            "inBatch": claim.batch.is_some(),
        })),
        "nextRequest": policy::next_request(row, terms, taken, now),
    });
    if names_targets {
        shown["target"] = row.target.as_deref().into();
    }
    shown
}

/// Formats the two keys of a device that has two: since when, and the last use of each.
pub fn keys(roll: &Roll) -> Value {
    let mut keys = json!({ "since": time(Some(roll.since)) });
    for (which, used) in WhichKey::ALL.into_iter().zip(roll.used) {
        keys[which.as_str()] = json!({ "lastUsed": time(used) });
    }
    keys
}

/// Returns the name of the state that the operator has set.
pub fn state(state: DeviceState) -> &'static str {
    match state {
        DeviceState::Enabled => "enabled",
        DeviceState::Disabled => "disabled",
    }
}

/// Describes the claim on a device's registration: the process that has the claim, and the time of
/// the claim.
pub fn registration(claim: &ClaimView) -> String {
    let since = time(Some(claim.since)).unwrap_or_default();
    let batch = if claim.batch.is_some() { " in a batch" } else { "" };
    match (&claim.owner, time(claim.last_beat)) {
        (Some(owner), Some(seen)) => {
            format!("in progress{batch} since {since}, by {owner}, last seen at {seen}")
        }
        _ => format!("begun{batch} at {since} and not finished; the device's next request continues it"),
    }
}

/// Describes an order that is not carried out yet. `waits_for` is the reason why no process of this
/// configuration makes its next call.
pub fn order(order: &Order, waits_for: Option<String>) -> String {
    let since = time(Some(order.at)).unwrap_or_default();
    let reason = not_yet(order, waits_for).map(|reason| format!("; not yet: {reason}"));
    format!("{} since {since}, by {}{}", order.work(), order.by.name, reason.unwrap_or_default())
}

/// Returns the reason why an order is not carried out yet, if it is known. `waits_for` takes
/// precedence, because it is more recent than the failure of an earlier call.
pub fn not_yet(order: &Order, waits_for: Option<String>) -> Option<String> {
    waits_for.or_else(|| order.failure.clone())
}

/// Formats an order that is not carried out yet. `failure` is the reason why it is not, or null.
/// `waits_for` is the same as for [`order`].
pub fn order_as_json(order: &Order, waits_for: Option<String>) -> Value {
    json!({
        "number": order.number,
        "deviceId": order.device.as_str(),
        "order": order.kind.name(),
        "target": order.target,
        "movesTo": order.moving.as_ref().map(|moving| &moving.to.target),
        "former": order.moving.as_ref().map(|moving| moving.to.former.name()),
        "isStored": order.moving.as_ref().map(|moving| moving.is_stored),
        "since": time(Some(order.at)),
        "by": order.by.name,
        "failure": not_yet(order, waits_for),
    })
}

/// Formats a time as RFC 3339, in UTC and to the second.
pub fn time(seconds: Option<UnixSeconds>) -> Option<String> {
    let time = jiff::Timestamp::from_second(seconds?).ok()?;
    Some(time.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{device::DeviceId, guards::Guards, psk::Reissue, store::DeviceRow};

    #[test]
    fn the_json_has_all_but_the_secret() {
        let imported = DeviceRow::imported(DeviceId::parse("AA:BB:CC:00:11:22").unwrap(), "plug", "a1");
        let row = DeviceRow {
            registered: Some(1_700_000_000),
            cloud_state: Some(CloudState::Deleted),
            ..imported.with_certificate("lamp-1", "a-secret")
        };
        let entry = row.wanted(crate::target::DEFAULT);
        let claim = ClaimView {
            entry,
            since: 1_700_000_000,
            owner: Some("certdist serve, process 7".into()),
            last_beat: Some(1_700_000_002),
            batch: None,
        };
        let terms = Terms { reissue: Reissue::Always, guards: Guards::default() };
        let rules = (Some(terms), Places::default());
        let shown = as_json(&row.listed(true), rules, Some(&claim), false, 0);
        assert_eq!(shown.get("target"), None);
        let named = as_json(&row.listed(true), (None, Places::default()), None, true, 0);
        assert_eq!(named["target"], "default");
        assert_eq!(shown["registration"]["owner"], "certdist serve, process 7");
        assert_eq!(shown["registration"]["since"], "2023-11-14T22:13:20Z");
        assert_eq!(
            registration(&claim),
            "in progress since 2023-11-14T22:13:20Z, by certdist serve, process 7, last seen at 2023-11-14T22:13:22Z"
        );
        let abandoned = ClaimView { owner: None, last_beat: None, batch: Some(1), ..claim };
        assert!(
            registration(&abandoned).starts_with("begun in a batch at 2023-11-14T22:13:20Z and not finished")
        );
        assert_eq!(shown["registerTime"], "2023-11-14T22:13:20Z");
        assert_eq!(shown["deviceName"], "AABBCC001122");
        assert_eq!((&shown["cloudState"], &shown["state"]), (&json!("deleted"), &json!("enabled")));
        assert_eq!(shown["hasCertificate"], true);
        assert_eq!(shown["nextRequest"], "gets its certificate");
        let guards = Guards { opens: Some(100), ..Guards::default() };
        let rules = (Some(Terms { reissue: Reissue::Always, guards }), Places::default());
        let next = |now| as_json(&row.listed(true), rules, None, false, now)["nextRequest"].clone();
        assert_eq!(next(100), "gets its certificate");
        assert_ne!(next(99), "gets its certificate");
        assert!(!shown.to_string().contains("a-secret"));
    }
}
