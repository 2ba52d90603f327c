//! The MQTT host at which a device signs in. IoT Platform derives the host from the instance, or
//! from the product and the region, and an operator may configure another host. This module only
//! computes names: it resolves no name and opens no connection.

use std::{fmt, net::Ipv6Addr, str::FromStr};

/// Port of MQTT without TLS, for a host without a port.
pub const MQTT_PORT: u16 = 1883;

/// Maximum length of a host name (RFC 1035 §2.3.4), in bytes.
const MAX_NAME: usize = 253;

/// An MQTT host that an operator has configured: `HOST` or `HOST:PORT`. The host is a name, an IPv4
/// address, or an IPv6 address in brackets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MqttHost(String);

/// Error for a text that is not an MQTT host.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected a host name, and a port if it is not the usual one, such as \"mqtt.example.com:1883\"")]
pub struct NotAHost;

impl FromStr for MqttHost {
    type Err = NotAHost;

    fn from_str(text: &str) -> Result<Self, NotAHost> {
        let (host, port) = match text.rsplit_once(':') {
            Some((host, port)) if !text.ends_with(']') => (host, Some(port)),
            _ => (text, None),
        };
        // `parse` would also accept a sign and leading zeros.
        let is_port =
            |port: &str| port.parse().is_ok_and(|number: u16| number > 0 && number.to_string() == port);
        match (is_name(host) || is_ipv6(host)) && port.is_none_or(is_port) {
            true => Ok(Self(text.to_owned())),
            false => Err(NotAHost),
        }
    }
}

impl fmt::Display for MqttHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Returns whether a text is a host name (RFC 1123 §2.1) or an IPv4 address.
fn is_name(text: &str) -> bool {
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    text.len() <= MAX_NAME && text.split('.').all(is_label)
}

fn is_ipv6(text: &str) -> bool {
    let inner = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    inner.is_some_and(|inner| inner.parse::<Ipv6Addr>().is_ok())
}

/// Returns the MQTT host of a device, without a port unless the configured host has one:
///
/// - the configured host, if there is one;
/// - with an instance ID, the host of the instance. Enterprise instances have an ID, and so do
///   public instances that were opened since 2021-07-30;
/// - otherwise, the host of the product in the public instance of the region.
pub fn mqtt_host(
    configured: Option<&MqttHost>,
    instance_id: &str,
    region: &str,
    product_key: &str,
) -> String {
    match configured {
        Some(MqttHost(host)) => host.clone(),
        None if instance_id.is_empty() => format!("{product_key}.iot-as-mqtt.{region}.aliyuncs.com"),
        None => format!("{instance_id}.mqtt.iothub.aliyuncs.com"),
    }
}

/// Adds [`MQTT_PORT`] to a host without a port.
pub fn with_port(host: &str) -> String {
    let has_port = host.rsplit_once(':').is_some_and(|(_, port)| !port.contains(']'));
    if has_port { host.to_owned() } else { format!("{host}:{MQTT_PORT}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_follows_from_the_instance_or_from_product_and_region() {
        let host = |instance_id| mqtt_host(None, instance_id, "cn-shanghai", "a1BwAGVxyz1");
        assert_eq!(host(""), "a1BwAGVxyz1.iot-as-mqtt.cn-shanghai.aliyuncs.com");
        assert_eq!(host("iot-06z00abc"), "iot-06z00abc.mqtt.iothub.aliyuncs.com");
        let configured: MqttHost = "127.0.0.1:1884".parse().unwrap();
        for instance_id in ["", "iot-06z00abc"] {
            let host = mqtt_host(Some(&configured), instance_id, "cn-shanghai", "a1BwAGVxyz1");
            assert_eq!(host, "127.0.0.1:1884");
        }
    }

    #[test]
    fn a_configured_host_is_a_name_or_an_address_with_an_optional_port() {
        let longest =
            format!("{}.com", ["a".repeat(61), "b".repeat(61), "c".repeat(61), "d".repeat(63)].join("."));
        assert_eq!(longest.len(), 253);
        for text in [
            "mqtt.example.com",
            "MQTT-1.example.com:8883",
            "localhost",
            "127.0.0.1:1",
            "[::1]",
            "[2001:db8::1]:65535",
            &longest,
            &format!("{longest}:1883"),
        ] {
            assert_eq!(text.parse::<MqttHost>().map(|host| host.to_string()).as_deref(), Ok(text));
        }
        let too_long = format!("a{longest}");
        let long_label = "a".repeat(64);
        for text in [
            "",
            ":1883",
            "host:",
            "host:0",
            "host:65536",
            "host:+1",
            "host:01",
            "host:x",
            "mqtt://host",
            "host/path",
            "user@host",
            "ho st",
            "host\n",
            ".host",
            "host.",
            "a..b",
            "-a",
            "a-",
            "hôte",
            "::1",
            "[::1",
            "[::1]1883",
            "[host]",
            "[::1]:0",
            "a:1:2",
            &too_long,
            &long_label,
        ] {
            assert_eq!(text.parse::<MqttHost>(), Err(NotAHost), "{text:?}");
        }
    }

    #[test]
    fn a_host_without_a_port_gets_the_usual_one() {
        for (host, expected) in [
            ("a1.iot-as-mqtt.cn-shanghai.aliyuncs.com", "a1.iot-as-mqtt.cn-shanghai.aliyuncs.com:1883"),
            ("127.0.0.1:1884", "127.0.0.1:1884"),
            ("[::1]", "[::1]:1883"),
            ("[::1]:1884", "[::1]:1884"),
        ] {
            assert_eq!(with_port(host), expected);
        }
    }
}
