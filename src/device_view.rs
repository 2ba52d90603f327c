//! Formats a device's row as JSON, in one form for `certdist device` and the console.

use serde_json::{Value, json};

use crate::{
    policy,
    psk::Reissue,
    store::{CloudState, DeviceRow, DeviceState, UnixSeconds, unix_now},
};

/// Formats a row without its secrets. Values that IoT Platform also has carry its names. Times
/// are RFC 3339 in UTC. `reissue` is the policy of the row's enrollment; `None` if that
/// enrollment is not in the configuration.
pub fn as_json(row: &DeviceRow, reissue: Option<Reissue>) -> Value {
    json!({
        "deviceId": row.id.as_str(),
        "enrollment": row.enrollment,
        "state": state(row),
        "productKey": row.product_key,
        "deviceName": row.name(),
        "hasCertificate": row.certificate.is_some(),
        "iotId": row.iot_id,
        "registerTime": time(row.registered),
        "firstIssued": time(row.first_issued),
        "activateTime": time(row.activated),
        "refusal": row.refusal,
        "cloudState": row.cloud_state.map(|state| match state {
            CloudState::Disabled => "disabled",
            CloudState::Deleted => "deleted",
        }),
        "nextRequest": policy::next_request(row, reissue, unix_now()),
    })
}

/// Returns the name of the state that the operator has set.
pub fn state(row: &DeviceRow) -> &'static str {
    match row.state {
        DeviceState::Enabled => "enabled",
        DeviceState::Disabled => "disabled",
    }
}

/// Formats a time as RFC 3339, in UTC and to the second.
pub fn time(seconds: Option<UnixSeconds>) -> Option<String> {
    let time = jiff::Timestamp::from_second(seconds?).ok()?;
    Some(time.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::DeviceId;

    #[test]
    fn the_json_has_all_but_the_secret() {
        let imported = DeviceRow::imported(DeviceId::parse("AA:BB:CC:00:11:22").unwrap(), "plug", "a1");
        let row = DeviceRow {
            registered: Some(1_700_000_000),
            cloud_state: Some(CloudState::Deleted),
            ..imported.with_certificate("lamp-1", "a-secret")
        };
        let shown = as_json(&row, Some(Reissue::Always));
        assert_eq!(shown["registerTime"], "2023-11-14T22:13:20Z");
        assert_eq!(shown["deviceName"], "AABBCC001122");
        assert_eq!((&shown["cloudState"], &shown["state"]), (&json!("deleted"), &json!("enabled")));
        assert_eq!(shown["hasCertificate"], true);
        assert_eq!(shown["nextRequest"], "gets its certificate");
        assert!(!shown.to_string().contains("a-secret"));
    }
}
