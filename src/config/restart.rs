//! Finds the changes of a configuration that take effect only after a restart. A running server
//! applies all other changes.

use super::{Config, Target};
use crate::target;

impl Config {
    /// Returns the configuration keys whose values differ between the two configurations and cannot
    /// be applied by a running server. The names of their sections are in brackets. A running
    /// server can apply the enrollments, their pre-shared keys, the rate limits, `[audit]`, and the
    /// users, tokens, hosts and certificate of `[admin]`, so these are never returned.
    pub fn needs_restart(&self, other: &Self) -> Vec<&'static str> {
        let mut changed = Vec::new();
        let mut compare = |key, same: bool| {
            if !same {
                changed.push(key);
            }
        };
        compare("listen", self.listen == other.listen);
        compare("database", self.database == other.database);
        compare("server_name", self.server_name == other.server_name);
        match [self, other].map(|config| config.targets.iter().find(|target| target.name == target::DEFAULT))
        {
            [Some(own), Some(other)] if !own.is_named && !other.is_named => {
                changed_keys(own, other).into_iter().for_each(|key| compare(key, false));
            }
            [own, other] => {
                let has_section = |target: Option<&Target>| target.is_some_and(|target| !target.is_named);
                compare("[iot_platform]", has_section(own) == has_section(other));
            }
        }
        let [own, other_targets] =
            [self, other].map(|config| config.targets.iter().filter(|target| target.is_named));
        let same =
            |(own, other): (&Target, &Target)| own.name == other.name && changed_keys(own, other).is_empty();
        compare(
            "[[target]]",
            own.clone().count() == other_targets.clone().count() && own.zip(other_targets).all(same),
        );
        match (&self.admin, &other.admin) {
            (Some(own), Some(other)) => {
                compare("[admin] listen", own.listen == other.listen);
                // A running server applies a renewed certificate, but cannot turn TLS on or off.
                compare("[admin] tls_certificate", own.tls.is_some() == other.tls.is_some());
            }
            (own, other) => compare("[admin]", own.is_none() && other.is_none()),
        }
        let tells = |name: &str| self.tell_host.contains(name) == other.tell_host.contains(name);
        match (&self.plain_coap, &other.plain_coap) {
            (Some(own), Some(other)) => {
                compare("[plain_coap] listen", own.listen == other.listen);
                // Plain CoAP uses a copy of the enrollment that was made when the server started.
                let same = own.enrollment == other.enrollment && tells(&own.enrollment.name);
                compare("[plain_coap] enrollment", same);
            }
            (None, None) => {}
            _ => compare("[plain_coap]", false),
        }
        let (own, other) = (&self.limits, &other.limits);
        compare("[limits] workers", own.workers == other.workers);
        compare("[limits] max_sessions", own.dtls.max_sessions == other.dtls.max_sessions);
        compare(
            "[limits] sessions_per_device",
            own.dtls.sessions_per_holder == other.dtls.sessions_per_holder,
        );
        compare("[limits] max_handshakes", own.dtls.max_handshakes == other.dtls.max_handshakes);
        compare(
            "[limits] max_handshakes_per_address",
            own.dtls.max_handshakes_per_address == other.dtls.max_handshakes_per_address,
        );
        compare("[limits] handshake_timeout", own.dtls.handshake_timeout == other.dtls.handshake_timeout);
        compare(
            "[limits] retransmission_timeout",
            own.dtls.retransmission_timeout == other.dtls.retransmission_timeout,
        );
        compare("[limits] session_idle", own.dtls.session_idle == other.dtls.session_idle);
        compare("[limits] session_max_age", own.dtls.session_max_age == other.dtls.session_max_age);
        compare("[limits] path_mtu", own.dtls.path_mtu == other.dtls.path_mtu);
        compare(
            "[limits] extended_master_secret",
            own.dtls.require_extended_master_secret == other.dtls.require_extended_master_secret,
        );
        compare("[limits] patience", own.patience == other.patience);
        compare("[limits] drain", own.drain == other.drain);
        changed
    }
}

/// Returns the keys of `[iot_platform]` whose values differ between two targets.
fn changed_keys(own: &Target, other: &Target) -> Vec<&'static str> {
    let is_changed = |(key, same): (&'static str, bool)| (!same).then_some(key);
    // These settings are used even while the credentials are missing.
    let mut keys: Vec<_> = [
        ("[iot_platform] region", own.mqtt.region == other.mqtt.region),
        ("[iot_platform] instance_id", own.mqtt.instance_id == other.mqtt.instance_id),
        ("[iot_platform] host", own.mqtt.host == other.mqtt.host),
    ]
    .into_iter()
    .filter_map(is_changed)
    .collect();
    let (own, other) = match (&own.settings, &other.settings) {
        (Ok(own), Ok(other)) => (own, other),
        (own, other) => {
            let same = matches!((own, other), (Err(own), Err(other)) if own == other);
            keys.extend(is_changed(("[iot_platform] credentials", same)));
            return keys;
        }
    };
    let (client, changed) = (&own.client, &other.client);
    let of_calls = [
        ("[iot_platform] endpoint", client.endpoint == changed.endpoint),
        ("[iot_platform] qps", own.qps == other.qps),
        ("[iot_platform] batches", own.batches == other.batches),
        ("[iot_platform] manage", own.manages == other.manages),
        ("[iot_platform] sweep", own.sweep == other.sweep),
        ("[iot_platform] credentials", client.credentials == changed.credentials),
        ("[iot_platform] signature", client.signature == changed.signature),
        ("[iot_platform] ca_file", client.ca_file == changed.ca_file),
        ("[iot_platform] connect_timeout", client.timeouts.connect == changed.timeouts.connect),
        ("[iot_platform] first_byte_timeout", client.timeouts.first_byte == changed.timeouts.first_byte),
        ("[iot_platform] timeout", client.timeouts.whole == changed.timeouts.whole),
    ];
    keys.extend(of_calls.into_iter().filter_map(is_changed));
    keys
}
