//! The lines of `enrollment show` about an enrollment that has two keys: when each was last used, as
//! far as servers have reported it. Shows no key.

use serde_json::{Value, json};

use crate::{
    device_view::time,
    psk::{Enrollment, WhichKey, uses::Reported},
    store::key_use::KeyUse,
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

fn at(seconds: i64) -> String {
    time(Some(seconds)).unwrap_or_else(|| seconds.to_string())
}
