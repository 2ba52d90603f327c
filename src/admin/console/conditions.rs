//! Conditions by which devices are listed: the form of a condition in URLs and forms, and the
//! filter that the condition stands for. A condition that cannot be read is an error. If it were
//! left out, an action would change more devices than intended.

use jiff::{ToSpan, civil::Date, tz::Offset};
use maud::{Markup, html};
use serde::Deserialize;

use super::{language::Texts, page::encoded};
use crate::store::{
    UnixSeconds,
    filter::{Filter, State, Text},
};

/// Conditions as texts; an empty text is no condition.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(super) struct Conditions {
    pub(super) enrollment: String,
    pub(super) product: String,
    pub(super) state: String,
    /// Reason for a refusal.
    pub(super) refusal: String,
    /// First and last permitted day of the first issue, in UTC, such as `2026-11-28`.
    pub(super) from: String,
    pub(super) to: String,
    /// Way in which `part` is compared: `begins`, `ends`, `name` or `iotid`.
    pub(super) by: String,
    /// Text that is a part or the whole of a device's ID, name or `IotId`.
    pub(super) part: String,
    /// Name of the target at which a device is registered or will be registered.
    pub(super) target: String,
}

/// Catalogue key of the sentence that says which condition cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Unreadable(pub(super) &'static str);

impl Conditions {
    /// Returns the conditions that select the devices in a state.
    pub(super) fn in_state(state: State) -> Self {
        Self { state: state.name().into(), ..Self::default() }
    }

    /// Returns the same conditions for one enrollment.
    pub(super) fn of(self, enrollment: &str) -> Self {
        Self { enrollment: enrollment.into(), ..self }
    }

    /// Returns the same conditions, with this text.
    pub(super) fn with_text(&self, text: &Text) -> Self {
        let (by, part) = match text {
            Text::Begins(part) => ("begins", part),
            Text::Ends(part) => ("ends", part),
            Text::Name(part) => ("name", part),
            Text::IotId(part) => ("iotid", part),
        };
        Self { by: by.into(), part: part.clone(), ..self.clone() }
    }

    /// Converts the conditions to a filter.
    pub(super) fn filter(&self) -> Result<Filter, Unreadable> {
        let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
        let state = match self.state.as_str() {
            "" => None,
            name => Some(State::named(name).ok_or(Unreadable("devices-bad-state"))?),
        };
        let text = match (self.by.as_str(), some(&self.part)) {
            ("", None) => None,
            ("begins", Some(part)) => Some(Text::Begins(part)),
            ("ends", Some(part)) => Some(Text::Ends(part)),
            ("name", Some(part)) => Some(Text::Name(part)),
            ("iotid", Some(part)) => Some(Text::IotId(part)),
            _ => return Err(Unreadable("devices-bad-part")),
        };
        let day = |text: &str, after: i64| match text {
            "" => Ok(None),
            text => midnight(text, after).map(Some).ok_or(Unreadable("devices-bad-date")),
        };
        Ok(Filter {
            enrollment: some(self.enrollment.trim()),
            product_key: some(self.product.trim()),
            state,
            is_registered: None,
            refusal: some(&self.refusal),
            issued_from: day(self.from.trim(), 0)?,
            issued_before: day(self.to.trim(), 1)?,
            text,
            target: some(self.target.trim()),
        })
    }

    fn pairs(&self) -> [(&'static str, &str); 9] {
        [
            ("enrollment", &self.enrollment),
            ("product", &self.product),
            ("state", &self.state),
            ("refusal", &self.refusal),
            ("from", &self.from),
            ("to", &self.to),
            ("by", &self.by),
            ("part", &self.part),
            ("target", &self.target),
        ]
    }

    /// Returns a path whose query has the fields `before`, these conditions, and the fields
    /// `after`. Empty fields are left out.
    pub(super) fn path(&self, path: &str, before: &[(&str, &str)], after: &[(&str, &str)]) -> String {
        let pairs = self.pairs();
        let all = before.iter().chain(&pairs).chain(after).filter(|(_, value)| !value.is_empty());
        let fields: Vec<String> = all.map(|(key, value)| format!("{key}={}", encoded(value))).collect();
        if fields.is_empty() { path.to_owned() } else { format!("{path}?{}", fields.join("&")) }
    }

    /// Renders the conditions as hidden fields of a form.
    pub(super) fn hidden(&self) -> Markup {
        html! {
            @for (key, value) in self.pairs() {
                @if !value.is_empty() { input type="hidden" name=(key) value=(value); }
            }
        }
    }

    /// Renders a description of each condition.
    pub(super) fn words(&self, t: Texts) -> Vec<Markup> {
        let mut all = Vec::new();
        let mut add = |key: &'static str, value: &str| {
            if !value.is_empty() {
                all.push(t.rich(key, [("value", value.into())]));
            }
        };
        add("where-enrollment", &self.enrollment);
        add("where-target", &self.target);
        add("where-product", &self.product);
        if let Some(state) = State::named(&self.state) {
            add("where-state", &t.say(name_of(state)));
        }
        add("where-refusal", &self.refusal);
        add("where-from", &self.from);
        add("where-to", &self.to);
        let part = match self.by.as_str() {
            "ends" => "where-ends",
            "name" => "where-name",
            "iotid" => "where-iotid",
            _ => "where-begins",
        };
        add(part, &self.part);
        all
    }
}

/// Returns the catalogue key of a state's name.
pub(super) fn name_of(state: State) -> &'static str {
    match state {
        State::Imported => "state-imported",
        State::Waiting => "state-waiting",
        State::Registered => "state-registered",
        State::Unissued => "state-unissued",
        State::Issued => "state-issued",
        State::Activated => "state-activated",
        State::Refused => "state-refused",
        State::Disabled => "state-disabled",
        State::DisabledAtCloud => "state-cloud-disabled",
        State::DeletedAtCloud => "state-cloud-deleted",
    }
}

/// Returns the time at which, in UTC, the day begins that is `after` days later than `day`.
fn midnight(day: &str, after: i64) -> Option<UnixSeconds> {
    let day: Date = day.parse().ok()?;
    let day = day.checked_add(after.days()).ok()?;
    Some(Offset::UTC.to_timestamp(day.at(0, 0, 0, 0)).ok()?.as_second())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filter(change: impl FnOnce(&mut Conditions)) -> Result<Filter, Unreadable> {
        let mut conditions = Conditions::default();
        change(&mut conditions);
        conditions.filter()
    }

    #[test]
    fn a_condition_that_cannot_be_read_is_an_error_and_not_left_out() {
        assert_eq!(filter(|_| ()), Ok(Filter::default()));
        for change in [
            (|all: &mut Conditions| all.state = "refuse".into()) as fn(&mut Conditions),
            |all| all.from = "28.11.2026".into(),
            |all| all.to = "2026-02-30".into(),
            |all| all.to = "9999-12-31".into(),
            |all| all.by = "ends".into(),
            |all| all.part = "4D5E".into(),
            |all| (all.by, all.part) = ("like".into(), "4D5E".into()),
        ] {
            assert!(filter(change).is_err());
        }
        let days = filter(|all| (all.from, all.to) = ("2026-11-28".into(), "2026-11-28".into())).unwrap();
        assert_eq!(days.issued_before.unwrap() - days.issued_from.unwrap(), 86_400);
        assert_eq!(days.issued_from, Some(1_795_824_000));
    }

    #[test]
    fn a_path_and_a_form_carry_all_conditions_and_escape_them() {
        let all = Conditions {
            enrollment: "a&b".into(),
            refusal: "<script>\"\u{202E}\n".into(),
            ..Conditions::in_state(State::Refused)
        };
        let path = all.path("/devices", &[("q", "")], &[("after", "SN-1")]);
        let expected =
            "/devices?enrollment=a%26b&state=refused&refusal=%3Cscript%3E%22%E2%80%AE%0A&after=SN%2D1";
        assert_eq!(path, expected);
        let form = all.hidden().into_string();
        assert!(form.contains("value=\"&lt;script&gt;&quot;\u{202E}\n\""), "{form}");
        assert_eq!(Conditions::default().path("/devices", &[], &[]), "/devices");
        let ends = all.with_text(&Text::Ends("4D5E".into())).filter().unwrap();
        assert_eq!(ends.text, Some(Text::Ends("4D5E".into())));
    }
}
