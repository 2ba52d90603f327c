//! Names of targets. A target is an account, a region and an instance of IoT Platform in which
//! devices are registered. This module knows only the names; the settings of targets are in the
//! configuration.

/// Name of the target of the section `[iot_platform]`. Devices that were registered before there
/// were several targets belong to it.
pub const DEFAULT: &str = "default";

/// Maximum number of targets. Each has its own queue, tasks and metrics.
pub const MAX: usize = 32;

/// Maximum length of a name, in characters.
const LONGEST: usize = 32;

/// Checks the form of a name. The error says what is expected.
pub fn check(name: &str) -> Result<(), String> {
    let is_legal = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    let is_text = (1..=LONGEST).contains(&name.len()) && name.bytes().all(is_legal);
    match is_text {
        true => Ok(()),
        false => Err(format!("expected 1 to {LONGEST} letters, digits or characters of ._-")),
    }
}

/// Returns the target of a device. `stored` is the target in the device's row, if any. Returns
/// `None` for a device that is not registered yet and has no stored target: the target of the
/// device's enrollment applies when the device is registered.
pub fn of(stored: Option<&str>, is_registered: bool) -> Option<&str> {
    stored.or(is_registered.then_some(DEFAULT))
}

/// Returns the value to store in the row of a device that is registered at this target. Returns
/// `None` for the default target, so that the rows of a server with a single target stay as they
/// are.
pub fn to_store(name: &str) -> Option<&str> {
    Some(name).filter(|name| *name != DEFAULT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_short_and_needs_no_quotes_anywhere() {
        for name in ["default", "shanghai", "eu-central-1", "A.b_2", &"x".repeat(LONGEST)] {
            assert_eq!(check(name), Ok(()), "{name}");
        }
        for name in ["", "a b", "tōkyō", "a/b", "a\"", "a\n", "=a", &"x".repeat(LONGEST + 1)] {
            assert!(check(name).is_err(), "{name:?}");
        }
    }

    #[test]
    fn a_registered_device_has_a_target_and_any_other_one_only_if_it_was_given_one() {
        assert_eq!(of(None, true), Some(DEFAULT));
        assert_eq!(of(None, false), None);
        assert_eq!((of(Some("a"), true), of(Some("a"), false)), (Some("a"), Some("a")));
        assert_eq!((to_store(DEFAULT), to_store("a")), (None, Some("a")));
    }
}
