//! Ranges of all numbers in the configuration. A value within its range cannot make a clock
//! overflow, or require more memory than a host has. A value outside its range is reported with its
//! configuration key and the range.

use std::ops::RangeInclusive;

use toml::de::DeValue;

use crate::{dtls::MIN_PATH_MTU, server::MAX_WORKERS};

/// Range of a number, both ends included.
#[derive(Debug)]
pub(super) struct Bounds {
    pub(super) section: &'static str,
    pub(super) key: &'static str,
    pub(super) least: f64,
    pub(super) most: f64,
    /// Unit, for messages and the documentation.
    pub(super) unit: &'static str,
}

/// Maximum duration: 30 days, in seconds.
const MONTH: f64 = 2_592_000.0;
/// An hour, in seconds: the maximum of a time for which a device or a shutdown waits.
const HOUR: f64 = 3600.0;
/// Range of the seconds in `reissue = "window:SECONDS"`: up to ten years.
pub(super) const WINDOW: RangeInclusive<u64> = 1..=315_360_000;

/// Range of calls per second to IoT Platform, in the configuration and in `register --qps`.
pub const QPS: RangeInclusive<f64> = 1.0..=100_000.0;

/// Ranges of all configuration keys whose values are numbers. [`crate::rate_limit::Rate::new`]
/// checks the numbers of rate limits (`{ burst, every }`).
pub(super) const NUMBERS: [Bounds; 21] = [
    number("audit", "keep_days", 0.0, 36_500.0, "days"),
    number("audit", "max_rows", 0.0, 1_000_000_000.0, "entries"),
    number("audit", "max_repeats", 0.0, 1_000_000_000.0, "entries"),
    number("iot_platform", "qps", *QPS.start(), *QPS.end(), "calls a second"),
    number("iot_platform", "connect_timeout", 0.1, 300.0, "seconds"),
    number("iot_platform", "first_byte_timeout", 0.1, 300.0, "seconds"),
    number("iot_platform", "timeout", 0.1, 300.0, "seconds"),
    number("iot_platform", "sweep", 1.0, MONTH, "seconds, or \"off\""),
    number("enrollment", "max_devices", 1.0, 1_000_000_000.0, "devices"),
    number("limits", "workers", 1.0, MAX_WORKERS as f64, "threads"),
    // The maximum number of sessions takes 5 GB of memory.
    number("limits", "max_sessions", 1.0, 10_000_000.0, "sessions"),
    number("limits", "sessions_per_device", 1.0, 1000.0, "sessions"),
    number("limits", "max_handshakes", 1.0, 1_000_000.0, "handshakes"),
    number("limits", "max_handshakes_per_address", 1.0, 1_000_000.0, "handshakes"),
    number("limits", "handshake_timeout", 1.0, HOUR, "seconds"),
    // RFC 6347 §4.2.4.1 refers to a maximum of 60 s.
    number("limits", "retransmission_timeout", 0.1, 60.0, "seconds"),
    number("limits", "session_idle", 1.0, MONTH, "seconds"),
    number("limits", "session_max_age", 1.0, MONTH, "seconds"),
    // The maximum is the size of an Ethernet jumbo frame.
    number("limits", "path_mtu", MIN_PATH_MTU as f64, 9000.0, "bytes"),
    number("limits", "patience", 1.0, HOUR, "seconds"),
    number("limits", "drain", 0.0, HOUR, "seconds"),
];

const fn number(
    section: &'static str,
    key: &'static str,
    least: f64,
    most: f64,
    unit: &'static str,
) -> Bounds {
    Bounds { section, key, least, most, unit }
}

/// Checks a number against the range of its configuration key. Accepts values of other types, and
/// configuration keys without a range.
///
/// # Errors
///
/// Fails with the configuration key, the value and the range if the value is outside its range.
pub(super) fn check(section: &str, key: &str, value: &DeValue<'_>) -> Result<(), String> {
    // A target has the keys of `[iot_platform]`.
    let section = if section == "target" { "iot_platform" } else { section };
    let bounds = NUMBERS.iter().find(|bounds| (bounds.section, bounds.key) == (section, key));
    let Some(Bounds { least, most, unit, .. }) = bounds else { return Ok(()) };
    let (number, text) = match value {
        // A number that does not fit into an i128 is outside every range.
        DeValue::Integer(whole) => (
            i128::from_str_radix(whole.as_str(), whole.radix()).map_or(f64::INFINITY, |whole| whole as f64),
            whole.to_string(),
        ),
        DeValue::Float(float) => (float.as_str().parse().unwrap_or(f64::NAN), float.to_string()),
        _ => return Ok(()),
    };
    if (*least..=*most).contains(&number) {
        Ok(())
    } else {
        Err(format!("{key} = {text}: expected {least} to {most} {unit}"))
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::Config;

    /// Parses a configuration with one more configuration key, or returns its error.
    fn with(section: &str, key: &str, value: &str) -> Result<Config, String> {
        let cloud = "endpoint = \"http://127.0.0.1:1\"\nregion = \"r\"\ncredentials = \"ecs-role\"\n";
        // `connect_timeout` may not exceed `first_byte_timeout`, and `first_byte_timeout` may not
        // exceed `timeout`. So the timeouts that limit the configuration key under test are set to
        // their maximum.
        let others = match key {
            "connect_timeout" => "first_byte_timeout = 300\ntimeout = 300\n",
            "first_byte_timeout" => "timeout = 300\n",
            _ => "",
        };
        let rest = if section == "iot_platform" { format!("{cloud}{others}") } else { String::new() };
        let enrollment = "name = \"lamp\"\nproduct_key = \"a1\"\nkind = \"individual\"\n";
        let keys = match section {
            "enrollment" => format!("[[enrollment]]\n{key} = {value}\n{enrollment}"),
            _ => format!("[{section}]\n{key} = {value}\n{rest}[[enrollment]]\n{enrollment}"),
        };
        let text = format!("listen = \"127.0.0.1:5684\"\ndatabase = \"sqlite:certdist.db\"\n{keys}");
        Config::parse(&text, Path::new("/etc/certdist")).map_err(|error| format!("{error:#}"))
    }

    #[test]
    fn a_number_is_accepted_up_to_both_ends_of_its_range_and_not_beyond() {
        for Bounds { section, key, least, most, unit } in &NUMBERS {
            for value in [least, most] {
                assert!(with(section, key, &value.to_string()).is_ok(), "[{section}] {key} = {value}");
            }
            let wrong = [(least - 1.0).to_string(), (least - 0.01).to_string(), (most + 1.0).to_string()];
            let wrong = wrong.iter().map(String::as_str);
            for value in wrong.chain(["9223372036854775807", "-9223372036854775808", "1e300", "inf", "nan"]) {
                let error = with(section, key, value).expect_err(key);
                let title = match *section {
                    "enrollment" => "[[enrollment]] \"lamp\"".to_owned(),
                    section => format!("[{section}]"),
                };
                let expected = format!("line 4: {title} {key} = {value}: expected {least} to {most} {unit}");
                assert_eq!(
                    error.rsplit_once("not a valid configuration: ").map_or(&*error, |e| e.1),
                    expected
                );
            }
        }
        let error = with("limits", "path_mtu", "0x7fff_ffff_ffff_ffff").expect_err("too long");
        assert!(error.ends_with("path_mtu = 0x7fffffffffffffff: expected 576 to 9000 bytes"), "{error}");
    }

    #[test]
    fn no_key_takes_a_number_without_a_range() {
        for (section, keys) in Config::keys() {
            let header = match section {
                "" => "",
                "enrollment" | "target" => &format!("[[{section}]]"),
                other => &format!("[{other}]"),
            };
            for key in keys {
                for value in ["100000000000000000", "-100000000000000000", "1e17"] {
                    let text = format!("{header}\n{key} = {value}\n");
                    let error = Config::parse(&text, Path::new("/")).expect_err("keys are missing");
                    let error = format!("{error:#}");
                    let line = error.lines().find(|line| line.contains("line 2: ")).unwrap_or("");
                    assert!(line.contains(key), "[{section}] {key} = {value} is taken: {error}");
                    assert!(!line.contains("invalid value"), "[{section}] {key} has no range: {line}");
                }
            }
        }
    }

    #[test]
    fn the_defaults_are_within_the_ranges() {
        let example: toml::Table = crate::config::tests::whole_example().parse().expect("it is valid");
        for Bounds { section, key, least, most, .. } in &NUMBERS {
            // No enrollment has a limit of devices by default.
            if *section == "enrollment" {
                continue;
            }
            let value = &example[*section][*key];
            let value = value.as_float().or(value.as_integer().map(|whole| whole as f64));
            assert!(value.is_some_and(|value| (*least..=*most).contains(&value)), "[{section}] {key}");
        }
    }

    #[test]
    fn every_range_is_in_the_documentation() {
        let documentation = include_str!("../../docs/operations.md");
        for Bounds { section, key, least, most, unit } in &NUMBERS {
            let section = if *section == "enrollment" { "[[enrollment]]" } else { &format!("[{section}]") };
            let (row, key) = (format!("| `{section}` | {least} to {most} {unit} |"), format!("`{key}`"));
            let is_there = documentation.lines().any(|line| line.starts_with(&row) && line.contains(&key));
            assert!(is_there, "{row} {key} is not in docs/operations.md");
        }
    }
}
