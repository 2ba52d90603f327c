//! Reads the guards of an enrollment: the times at which it opens and closes, the maximum number of
//! its devices, and its treatment of devices that are not in the table.

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{self, MapAccess, Visitor, value::MapAccessDeserializer},
};

use super::{
    document::{Problems, Table},
    file,
};
use crate::guards::{self, Guards};

/// A time in seconds since 1970. In the file, it is written with its offset from UTC, as a
/// date-time of TOML or as a text in the same format (RFC 3339).
#[derive(Clone, Copy)]
pub(super) struct Time(i64);

const EXPECTED: &str = "expected a time with its offset, such as 2027-01-31T08:00:00+08:00";

impl<'de> Deserialize<'de> for Time {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Form;

        impl<'de> Visitor<'de> for Form {
            type Value = Time;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(EXPECTED.trim_start_matches("expected "))
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Time, E> {
                // RFC 3339 permits a blank in place of the T.
                match text.parse::<jiff::Timestamp>() {
                    Ok(time) => Ok(Time(time.as_second())),
                    Err(_) => Err(E::custom(format!("\"{}\": {EXPECTED}", text.escape_debug()))),
                }
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Time, A::Error> {
                let time = toml::value::Datetime::deserialize(MapAccessDeserializer::new(map))?;
                self.visit_str(&time.to_string())
            }
        }

        deserializer.deserialize_any(Form)
    }
}

/// Treatment of a device that is not in the table.
#[derive(Deserialize, Clone, Copy)]
#[serde(rename_all = "lowercase")]
pub(super) enum Unlisted {
    Refuse,
    Hold,
    Admit,
}

impl From<Unlisted> for guards::Unlisted {
    fn from(unlisted: Unlisted) -> Self {
        match unlisted {
            Unlisted::Refuse => Self::Refuse,
            Unlisted::Hold => Self::Hold,
            Unlisted::Admit => Self::Admit,
        }
    }
}

/// Reads the guards of one enrollment.
pub(super) fn read(table: &mut Table<file::Enrollment>, problems: &mut Problems) -> Guards {
    let file::Enrollment { kind, opens, closes, max_devices, unlisted, .. } = table.values;
    let seconds = |time: Option<Time>| time.map(|Time(seconds)| seconds);
    let guards = Guards {
        opens: seconds(opens),
        closes: seconds(closes),
        max_devices,
        unlisted: unlisted.map_or(guards::Unlisted::Refuse, Into::into),
    };
    if let (Some(opens), Some(closes)) = (guards.opens, guards.closes)
        && closes <= opens
    {
        table.wrong(problems, &["closes", "opens"], "closes is not after opens; expected a later time");
    }
    let wrong = match (unlisted, kind) {
        (Some(Unlisted::Hold | Unlisted::Admit), file::Kind::Individual) => Some(
            "unlisted is only for kind = \"derived\" and \"shared\": without a row, an individual device has no key",
        ),
        (Some(Unlisted::Admit), file::Kind::Shared) if max_devices.is_none() => Some(
            "unlisted = \"admit\" of a shared key needs max_devices: whoever has the key can invent device IDs",
        ),
        _ => None,
    };
    if let Some(what) = wrong {
        table.wrong(problems, &["unlisted"], what);
    }
    guards
}

/// Checks that at most one derived enrollment takes devices that are not in the table. With
/// several, nothing would say to which of them such a device belongs. `first` is the name of the
/// enrollment of this kind that was read earlier.
pub(super) fn check_unlisted(
    table: &mut Table<file::Enrollment>,
    first: &mut Option<String>,
    problems: &mut Problems,
) {
    let is_one = matches!(table.values.kind, file::Kind::Derived)
        && matches!(table.values.unlisted, Some(Unlisted::Hold | Unlisted::Admit));
    if !is_one {
        return;
    }
    match first {
        None => *first = Some(table.values.name.clone()),
        Some(first) => {
            let what = format!(
                "unlisted: enrollment \"{}\" takes devices that are not in the table already; only one derived \
                 enrollment can, because nothing says to which such a device belongs",
                first.escape_debug()
            );
            table.wrong(problems, &["unlisted"], what);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::Config;

    /// Returns the guards of an enrollment with these further lines, or the error.
    fn with(kind: &str, lines: &str) -> Result<Guards, String> {
        let key = "00112233445566778899aabbccddeeff";
        let kind = match kind {
            "shared" => format!("kind = \"shared\"\nidentity = \"x\"\nkey = \"hex:{key}\""),
            "derived" => format!("kind = \"derived\"\nkey = \"hex:{key}\""),
            other => format!("kind = \"{other}\""),
        };
        let text = format!(
            "listen = \"127.0.0.1:5684\"\ndatabase = \"sqlite:certdist.db\"\n[[enrollment]]\nname = \"lamp\"\n\
             product_key = \"a1\"\n{kind}\n{lines}\n"
        );
        let config = Config::parse(&text, Path::new("/")).map_err(|error| format!("{error:#}"))?;
        Ok(config.enrollments[0].guards)
    }

    #[test]
    fn a_time_is_a_date_time_or_a_text_and_has_an_offset() {
        for time in [
            "2027-01-31T08:00:00+08:00",
            "2027-01-31T00:00:00Z",
            "2027-01-31 00:00:00Z",
            "\"2027-01-31T08:00:00+08:00\"",
            "\"2027-01-31T00:00:00Z\"",
        ] {
            let guards = with("individual", &format!("opens = {time}")).expect(time);
            assert_eq!(guards, Guards { opens: Some(1_801_353_600), ..Guards::default() }, "{time}");
        }
        for wrong in ["2027-01-31", "2027-01-31T08:00:00", "08:00:00", "\"soon\"", "\"\"", "1801353600", "[]"]
        {
            let error = with("individual", &format!("closes = {wrong}")).expect_err(wrong);
            assert!(error.contains("closes: ") && error.contains(EXPECTED), "{wrong}: {error}");
        }
    }

    #[test]
    fn an_enrollment_closes_after_it_opens() {
        let between = |opens: &str, closes: &str| {
            with(
                "individual",
                &format!("opens = 2027-01-{opens}T00:00:00Z\ncloses = 2027-01-{closes}T00:00:00Z"),
            )
        };
        assert!(between("01", "02").is_ok());
        for (opens, closes) in [("02", "02"), ("02", "01")] {
            let error = between(opens, closes).expect_err("not after");
            assert!(error.contains("[[enrollment]] \"lamp\" closes is not after opens"), "{error}");
        }
    }

    #[test]
    fn only_an_identity_that_can_be_unlisted_may_be_taken() {
        for (kind, lines, error) in [
            ("individual", "unlisted = \"refuse\"", None),
            ("individual", "unlisted = \"hold\"", Some("has no key")),
            ("individual", "unlisted = \"admit\"", Some("has no key")),
            ("derived", "unlisted = \"hold\"", None),
            ("derived", "unlisted = \"admit\"", None),
            ("shared", "unlisted = \"hold\"", None),
            ("shared", "unlisted = \"admit\"", Some("needs max_devices")),
            ("shared", "unlisted = \"admit\"\nmax_devices = 10", None),
            ("shared", "unlisted = \"maybe\"", Some("expected one of `refuse`, `hold`, `admit`")),
            ("shared", "max_devices = 0", Some("expected 1 to 1000000000 devices")),
        ] {
            match (with(kind, lines), error) {
                (Ok(_), None) => {}
                (Err(found), Some(error)) => assert!(found.contains(error), "{found}"),
                (found, _) => panic!("{kind} {lines}: {found:?}"),
            }
        }
    }

    #[test]
    fn one_derived_enrollment_takes_unlisted_devices() {
        let second = |unlisted: &str| {
            format!(
                "unlisted = \"hold\"\n[[enrollment]]\nname = \"plug\"\nproduct_key = \"a2\"\nkind = \"derived\"\n\
                 key = \"hex:00112233445566778899aabbccddeefa\"\nunlisted = \"{unlisted}\""
            )
        };
        assert!(with("derived", &second("refuse")).is_ok());
        assert!(with("shared", &second("hold")).is_ok());
        let error = with("derived", &second("admit")).expect_err("two");
        assert!(
            error.contains("[[enrollment]] \"plug\" unlisted: enrollment \"lamp\" takes devices"),
            "{error}"
        );
    }
}
