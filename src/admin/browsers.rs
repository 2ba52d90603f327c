//! Recognizes, by a signed cookie, the browsers in which a user has signed in before. Wrong
//! passwords from elsewhere then cannot lock the user out of these browsers. The signing key is
//! derived from the hash of the user's password, so nothing is stored: browsers stay known after a
//! restart, and become unknown when the password changes. This module performs no I/O, takes the
//! time as an argument, and does not depend on HTTP.

use std::time::Duration;

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use crate::{operators::User, random::random, store::UnixSeconds};

/// Time for which a browser is known after its last sign-in.
pub(super) const KNOWN: Duration = Duration::from_secs(180 * 86_400);
/// Prefix of the signed text, so that the signature is valid for no other purpose.
const PURPOSE: &[u8] = b"certdist known browser 1\n";
/// Lengths of the ID, the time and the signature in a cookie, in bytes.
const PARTS: (usize, usize, usize) = (32, 8, 32);

/// Random ID of a browser. The ID grants no access. It only gives the browser separate rate limits.
pub(super) type Browser = [u8; PARTS.0];

/// Chooses the ID of a browser that is not known yet.
pub(super) fn new_browser() -> anyhow::Result<Browser> {
    random()
}

/// Returns the value of the cookie by which a browser is known to have signed in as `user`.
pub(super) fn cookie(user: &User, browser: Browser, now: UnixSeconds) -> String {
    let since = (now as u64).to_be_bytes();
    let signature = signature(user, &browser, &since).finalize().into_bytes();
    BASE64_URL_SAFE_NO_PAD.encode([&browser[..], &since, &signature].concat())
}

/// Returns the browser of a cookie, if the cookie was made for `user`, no longer than [`KNOWN`]
/// ago.
pub(super) fn recognize(user: &User, cookie: &str, now: UnixSeconds) -> Option<Browser> {
    let bytes = BASE64_URL_SAFE_NO_PAD.decode(cookie).ok()?;
    let (browser, rest) = bytes.split_first_chunk::<{ PARTS.0 }>()?;
    let (since, rest) = rest.split_first_chunk::<{ PARTS.1 }>()?;
    let given: &[u8; PARTS.2] = rest.try_into().ok()?;
    signature(user, browser, since).verify(given.into()).ok()?;
    let age = (now as u64).saturating_sub(u64::from_be_bytes(*since));
    (age < KNOWN.as_secs()).then_some(*browser)
}

fn signature(user: &User, browser: &Browser, since: &[u8; PARTS.1]) -> Hmac<Sha256> {
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(user.password_hash.as_bytes()) else {
        unreachable!("HMAC takes any key")
    };
    // The name is last, because it is the only part without a fixed length. The signed text can
    // then be split into its parts in only one way.
    for part in [PURPOSE, browser, since, user.name.as_bytes()] {
        mac.update(part);
    }
    mac
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operators::Role;

    fn user(name: &str, password_hash: &str) -> User {
        User { name: name.into(), password_hash: password_hash.into(), role: Role::Viewer }
    }

    #[test]
    fn a_browser_is_known_to_its_user_until_the_password_changes_or_half_a_year_is_over() {
        let (lead, now) = (user("lead", "$argon2id$1"), 1_800_000_000);
        let browser = new_browser().unwrap();
        let value = cookie(&lead, browser, now);
        assert_eq!(recognize(&lead, &value, now), Some(browser));
        let age = KNOWN.as_secs() as UnixSeconds;
        assert_eq!(recognize(&lead, &value, now + age - 1), Some(browser));
        assert_eq!(recognize(&lead, &value, now + age), None);
        assert_eq!(recognize(&lead, &value, now - 60), Some(browser), "clocks are set back");
        assert_eq!(recognize(&user("guest", "$argon2id$1"), &value, now), None);
        assert_eq!(recognize(&user("lead", "$argon2id$2"), &value, now), None);
    }

    #[test]
    fn a_cookie_that_was_made_up_or_changed_is_of_no_browser() {
        let (lead, now) = (user("lead", "$argon2id$1"), 1_800_000_000);
        let value = cookie(&lead, new_browser().unwrap(), now);
        let bytes = BASE64_URL_SAFE_NO_PAD.decode(&value).unwrap();
        for index in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[index] ^= 1;
            assert_eq!(recognize(&lead, &BASE64_URL_SAFE_NO_PAD.encode(changed), now), None, "{index}");
        }
        let longer = BASE64_URL_SAFE_NO_PAD.encode([&bytes[..], &[0]].concat());
        for other in ["", "AAAA", &value[..value.len() - 2], &longer] {
            assert_eq!(recognize(&lead, other, now), None, "{other}");
        }
    }
}
