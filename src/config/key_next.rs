//! The second key of an `[[enrollment]]`, `key_next`, and its identity. While the key is being
//! replaced, devices may have either one, so the two must differ.

use std::{collections::HashSet, path::Path};

use super::{IDENTITY, Problems, Secrets, Table, file, read_key};
use crate::psk::{Key, NextKey};

/// Reads `key_next` and `identity_next` of an enrollment that has this key. `identities` contains
/// the identities that were read before.
pub(super) fn read(
    table: &mut Table<file::Enrollment>,
    key: Option<&Key>,
    (folder, secrets): (&Path, Secrets),
    identities: &mut HashSet<String>,
    problems: &mut Problems,
) -> Option<NextKey> {
    let file::Enrollment { kind, identity, key_next, identity_next, .. } = &table.values;
    let (kind, identity, identity_next) = (*kind, identity.clone(), identity_next.clone());
    let source = key_next.clone();
    let next = source.as_ref().map(|source| read_key("key_next", source, folder, secrets));
    let takes = match (kind, source.is_some(), identity_next.is_some()) {
        (_, false, false) => return None,
        (file::Kind::Derived, true, false) | (file::Kind::Shared, true, _) => None,
        (file::Kind::Individual, ..) => Some(
            "kind = \"individual\" takes no key_next and no identity_next: each device has its own keys in the table \
             (columns psk and pskNext of an import)",
        ),
        (file::Kind::Derived, ..) => {
            Some("kind = \"derived\" takes key_next (a second master key) and no identity_next")
        }
        (file::Kind::Shared, false, _) => {
            Some("identity_next is the identity of key_next; expected key_next too")
        }
    };
    if let Some(what) = takes {
        table.wrong(problems, &["key_next", "identity_next"], what);
    }
    if let Some(identity_next) = &identity_next {
        let place = &["identity_next"];
        if !IDENTITY.contains(&identity_next.len()) {
            let what = format!("identity_next has {} bytes, expected 1 to 128", identity_next.len());
            table.wrong(problems, place, what);
        } else if identity.as_ref() == Some(identity_next) {
            let what = "identity_next is the same as identity; expected another one, or none if both keys have \
                        the same identity";
            table.wrong(problems, place, what);
        } else if !identities.insert(identity_next.clone()) {
            let what = format!(
                "another enrollment has the identity \"{identity_next}\" too; expected different identities"
            );
            table.wrong(problems, place, what);
        }
    }
    let next = table.checked(problems, &["key_next"], next?)?;
    if key == Some(&next) {
        let what = "key_next is the same key as key; expected another one (`certdist key new` makes one)";
        table.wrong(problems, &["key_next"], what);
        return None;
    }
    Some(NextKey { key: next, identity: identity_next })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        config::Config,
        psk::{Enrollment, WhichKey},
    };

    const ONE: &str = "000102030405060708090a0b0c0d0e0f";
    const OTHER: &str = "ff0102030405060708090a0b0c0d0e0f";

    fn parse(enrollments: &str) -> Result<Vec<Enrollment>, String> {
        let text = format!("listen = \"127.0.0.1:5684\"\ndatabase = \"sqlite:certdist.db\"\n{enrollments}");
        let parsed = Config::parse(&text, Path::new("/etc/certdist"));
        parsed.map(|config| config.enrollments).map_err(|error| format!("{error:#}"))
    }

    fn enrollment(name: &str, kind: &str, keys: &str) -> String {
        format!("[[enrollment]]\nname = \"{name}\"\nproduct_key = \"a1\"\nkind = \"{kind}\"\n{keys}")
    }

    fn shared(name: &str, keys: &str) -> String {
        enrollment(name, "shared", &format!("identity = \"{name}\"\nkey = \"hex:{ONE}\"\n{keys}\n"))
    }

    #[test]
    fn an_enrollment_may_have_a_second_key() {
        let other = Key::from_hex(OTHER).unwrap();
        let derived =
            enrollment("lamp", "derived", &format!("key = \"hex:{ONE}\"\nkey_next = \"hex:{OTHER}\""));
        let derived = parse(&derived).unwrap().remove(0);
        assert_eq!(derived.key(WhichKey::Next), Some(&other));
        assert_eq!(derived.shared_identity(WhichKey::Next), None);
        for (identity, expected) in [("", "plug"), ("identity_next = \"socket\"\n", "socket")] {
            let one =
                parse(&shared("plug", &format!("{identity}key_next = \"hex:{OTHER}\""))).unwrap().remove(0);
            assert_eq!(one.key(WhichKey::Next), Some(&other));
            assert_eq!(one.shared_identity(WhichKey::Next), Some(expected));
            assert_eq!(one.shared_identity(WhichKey::Current), Some("plug"));
        }
        assert_eq!(parse(&shared("plug", "")).unwrap().remove(0).next, None);
    }

    #[test]
    fn a_second_key_that_cannot_be_used_is_refused_and_not_repeated() {
        let next = format!("key_next = \"hex:{OTHER}\"");
        let derived = |keys: &str| enrollment("lamp", "derived", &format!("key = \"hex:{ONE}\"\n{keys}"));
        for (text, expected) in [
            (
                enrollment("own", "individual", &next),
                "line 7: [[enrollment]] \"own\" kind = \"individual\" takes no key_next",
            ),
            (
                derived(&format!("{next}\nidentity_next = \"x\"")),
                "line 8: [[enrollment]] \"lamp\" kind = \"derived\" takes key_next",
            ),
            (
                shared("plug", "identity_next = \"x\""),
                "line 9: [[enrollment]] \"plug\" identity_next is the identity of key_next",
            ),
            (
                shared("plug", &format!("{next}\nidentity_next = \"\"")),
                "line 10: [[enrollment]] \"plug\" identity_next has 0 bytes",
            ),
            (
                shared("plug", &format!("{next}\nidentity_next = \"{}\"", "x".repeat(129))),
                "has 129 bytes, expected 1 to 128",
            ),
            (
                shared("plug", &format!("{next}\nidentity_next = \"plug\"")),
                "identity_next is the same as identity",
            ),
            (
                shared("one", "") + &shared("plug", &format!("{next}\nidentity_next = \"one\"")),
                "line 17: [[enrollment]] \"plug\" another enrollment has the identity \"one\" too",
            ),
            (
                shared("plug", &format!("{next}\nidentity_next = \"one\"")) + &shared("one", ""),
                "\"one\" two enrollments have identity = \"one\"",
            ),
            (
                derived(&format!("key_next = \"hex:{ONE}\"")),
                "line 8: [[enrollment]] \"lamp\" key_next is the same key as key",
            ),
            (derived("key_next = \"hex:ff01\""), "key_next = \"hex:…\": 2 bytes, expected 16 to 64"),
            (
                derived(&format!("key_next = \"{OTHER}\"")),
                "key_next: expected \"env:NAME\", \"file:PATH\" or \"hex:DIGITS\"",
            ),
            (
                derived("key_next = \"file:not-there.key\""),
                "key_next = \"file:not-there.key\": /etc/certdist/not-there.key",
            ),
            (
                derived("key_next = \"env:CERTDIST_NOT_THERE\""),
                "key_next = \"env:CERTDIST_NOT_THERE\": the environment has no",
            ),
            (derived("key_next = 12345678"), "line 8: [[enrollment]] \"lamp\" key_next: expected a string"),
        ] {
            let error = parse(&text).expect_err(expected);
            assert!(error.contains(expected), "{error}\n{expected}");
            assert!(!error.contains("0102030405") && !error.contains("12345678"), "{error}");
        }
    }

    #[test]
    fn the_file_of_a_second_key_is_one_with_a_secret() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("next.key"), OTHER).unwrap();
        std::fs::write(folder.path().join("own.key"), ONE).unwrap();
        let read = |key: &str, next: &str| {
            let text = enrollment("lamp", "derived", &format!("key = \"{key}\"\nkey_next = \"{next}\"\n"));
            let text = format!("listen = \"127.0.0.1:1\"\ndatabase = \"sqlite:a.db\"\n{text}");
            Config::parse(&text, folder.path()).unwrap()
        };
        let config = read("file:own.key", "file:next.key");
        assert!(config.secret_files.contains(&folder.path().join("next.key")), "{:?}", config.secret_files);
        assert!(!config.has_inline_secrets);
        assert!(read("file:own.key", &format!("hex:{OTHER}")).has_inline_secrets);
        // A running server applies the change.
        assert_eq!(config.needs_restart(&read("file:next.key", "file:own.key")), [] as [&str; 0]);
    }
}
