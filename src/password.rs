//! Hashes and checks the passwords of the console's users.

use argon2::{Argon2, PasswordHash, PasswordHasher, PasswordVerifier};

use crate::device::Secret;

/// Maximum length of a password, in bytes.
pub const MAX_PASSWORD: usize = 256;
/// Minimum length of a new password, in characters.
pub const MIN_PASSWORD: usize = 12;
/// Hash that belongs to no user. It is checked for an unknown user name, so that the answer takes
/// as long as for a known name.
pub const UNKNOWN_USER: &str =
    "$argon2id$v=19$m=19456,t=2,p=1$AAAAAAAAAAAAAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";

/// Hashes a password, for `password_hash` of the configuration.
pub fn hash(password: &Secret) -> Result<String, String> {
    let text = password.expose();
    if text.chars().count() < MIN_PASSWORD || text.len() > MAX_PASSWORD {
        return Err(format!(
            "a password must have at least {MIN_PASSWORD} characters and at most {MAX_PASSWORD} bytes"
        ));
    }
    let hash: PasswordHash =
        Argon2::default().hash_password(text.as_bytes()).map_err(|error| error.to_string())?;
    Ok(hash.to_string())
}

/// Returns whether the password matches the hash. Takes 19 MiB of memory, and keeps a core busy
/// for a while.
pub fn is_right(password: &Secret, hash: &str) -> bool {
    let password = password.expose().as_bytes();
    password.len() <= MAX_PASSWORD && Argon2::default().verify_password(password, hash).is_ok()
}

/// Checks the value of a `password_hash`. The error says what is expected.
pub fn check_hash(text: &str) -> Result<(), String> {
    let expected = || "expected \"$argon2id$…\", as `certdist admin hash-password` prints it".to_owned();
    let hash = PasswordHash::new(text).map_err(|_| expected())?;
    if !text.starts_with("$argon2id$") || hash.hash.is_none() || hash.salt.is_none() {
        return Err(expected());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hash_is_checked_before_it_is_taken() {
        assert!(check_hash(&hash(&Secret::new("correct horse battery".into())).unwrap()).is_ok());
        assert!(check_hash(UNKNOWN_USER).is_ok());
        for wrong in
            ["", "correct horse battery", "$argon2id$v=19$m=19456,t=2,p=1", "$2b$12$abcdefghijklmnopqrstuv"]
        {
            assert!(check_hash(wrong).is_err(), "{wrong}");
        }
        assert!(hash(&Secret::new("too short".into())).is_err());
    }
}
