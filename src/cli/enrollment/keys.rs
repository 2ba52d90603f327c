//! Formats the keys in `enrollment show`, for an enrollment that has two keys or whose devices have
//! two: the last use of each key that servers have reported. Shows no key.

use serde_json::{Value, json};

use crate::{
    device_view::time,
    psk::{Enrollment, WhichKey, uses::Reported},
    store::{key_use::KeyUse, roll::RollCount},
};

/// Returns the name of a key in the configuration.
fn name(which: WhichKey) -> &'static str {
    match which {
        WhichKey::Current => "key",
        WhichKey::Next => "key_next",
    }
}

/// Returns a line for each key.
pub(super) fn lines(enrollment: &Enrollment, uses: &Reported) -> Vec<[String; 2]> {
    let line = |(which, used): &(WhichKey, Option<KeyUse>)| {
        let says = match used {
            None => "not known: no server has reported it; reload the servers with this configuration".into(),
            Some(KeyUse { since, last: None, .. }) => format!("not used since {}", at(*since)),
            Some(KeyUse { since, handshakes, last: Some(last), .. }) => {
                format!("last used {}; {handshakes} handshakes since {}", at(*last), at(*since))
            }
        };
        [name(*which).to_owned(), says]
    };
    let own = enrollment.next.as_ref().and_then(|next| next.identity.clone());
    let own = own.map(|identity| ["identity_next".to_owned(), identity]);
    own.into_iter().chain(uses.iter().map(line)).collect()
}

/// Returns the keys as JSON, or `null` if there is only one.
pub(super) fn as_json(enrollment: &Enrollment, uses: &Reported) -> Value {
    if uses.is_empty() {
        return Value::Null;
    }
    let mut object = json!({});
    for (which, used) in uses {
        object[which.as_str()] = json!({
            "since": used.as_ref().and_then(|used| time(Some(used.since))),
            "handshakes": used.as_ref().map(|used| used.handshakes),
            "lastUsed": used.as_ref().and_then(|used| time(used.last)),
        });
        if let Some(identity) = enrollment.shared_identity(*which) {
            object[which.as_str()]["identity"] = json!(identity);
        }
    }
    object
}

/// Returns a line for each key of devices that have two, and one for the devices that have used
/// neither.
pub(super) fn lines_of_devices(count: &RollCount) -> Vec<[String; 2]> {
    let RollCount { devices, by_key, used, is_complete } = *count;
    if devices == 0 {
        return Vec::new();
    }
    let least = if is_complete { "" } else { "at least " };
    let mut lines = Vec::new();
    for (which, (last, used)) in WhichKey::ALL.into_iter().zip(by_key.into_iter().zip(used)) {
        let time = used.map_or_else(String::new, |used| format!("; last used {}", at(used)));
        let says = format!("{least}{last} of {devices} devices with two keys used this one last{time}");
        lines.push([which.column().to_owned(), says]);
    }
    let neither = devices - by_key.iter().sum::<u64>();
    if neither > 0 {
        let says = format!("{least}{neither} devices have used neither since they were given the second key");
        lines.push(["no key".to_owned(), says]);
    }
    lines
}

/// Returns the keys of devices that have two as JSON.
pub(super) fn devices_as_json(count: &RollCount) -> Value {
    let RollCount { devices, by_key, used, is_complete } = *count;
    let mut object = json!({ "devices": devices, "isComplete": is_complete });
    for (which, (last, used)) in WhichKey::ALL.into_iter().zip(by_key.into_iter().zip(used)) {
        object[which.as_str()] = json!({ "devices": last, "lastUsed": time(used) });
    }
    object
}

fn at(seconds: i64) -> String {
    time(Some(seconds)).unwrap_or_else(|| seconds.to_string())
}
