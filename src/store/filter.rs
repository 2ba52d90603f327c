//! Selects devices by their state, their enrollment and the text on their label. Pure: a store
//! finds the rows, and this module decides which of them a filter admits. This module sees no
//! secrets.

use super::{CloudState, DeviceRow, DeviceState, UnixSeconds};
use crate::{device::DeviceId, target};

/// Number of characters at the end of a device ID that a store indexes. A search for an end of at
/// least this length does not read the whole table.
pub const INDEXED_END: usize = 4;

/// State of a device. A device can have several states: a device that was activated was also
/// issued.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum State {
    /// The device is neither registered nor refused, and no registration has begun.
    Imported,
    /// The device's registration has begun, but its certificate is not stored yet.
    Waiting,
    /// The device has a certificate.
    Registered,
    /// The device has a certificate that was never issued.
    Unissued,
    /// The device's certificate was issued.
    Issued,
    /// The device is known to have signed in at IoT Platform.
    Activated,
    /// IoT Platform refuses the device.
    Refused,
    /// The operator has disabled the device.
    Disabled,
    /// The device is disabled at IoT Platform.
    DisabledAtCloud,
    /// The device was deleted at IoT Platform.
    DeletedAtCloud,
}

impl State {
    /// All states, in the order of a device's life.
    pub const ALL: [Self; 10] = [
        Self::Imported,
        Self::Waiting,
        Self::Registered,
        Self::Unissued,
        Self::Issued,
        Self::Activated,
        Self::Refused,
        Self::Disabled,
        Self::DisabledAtCloud,
        Self::DeletedAtCloud,
    ];

    /// Returns the name of the state in URLs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Imported => "imported",
            Self::Waiting => "waiting",
            Self::Registered => "registered",
            Self::Unissued => "unissued",
            Self::Issued => "issued",
            Self::Activated => "activated",
            Self::Refused => "refused",
            Self::Disabled => "disabled",
            Self::DisabledAtCloud => "cloud-disabled",
            Self::DeletedAtCloud => "cloud-deleted",
        }
    }

    /// Returns the state of this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.name() == name)
    }
}

/// Text by which a device is found.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Text {
    /// Beginning of the device ID, in the letter case of the ID.
    Begins(String),
    /// End of the device ID, in any letter case.
    Ends(String),
    /// The whole device name; for a device without a device name, the whole device ID.
    Name(String),
    /// The whole `IotId`.
    IotId(String),
}

/// Conditions that a device must meet; the default admits every device.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Filter {
    /// Name of the enrollment.
    pub enrollment: Option<String>,
    /// The product.
    pub product_key: Option<String>,
    /// The state.
    pub state: Option<State>,
    /// Set to `true` for devices with a certificate, and to `false` for devices without one.
    pub is_registered: Option<bool>,
    /// The reason for the refusal, as the row has it.
    pub refusal: Option<String>,
    /// Earliest time of the first issue.
    pub issued_from: Option<UnixSeconds>,
    /// Time before which the first issue must be.
    pub issued_before: Option<UnixSeconds>,
    /// Text by which the device is found.
    pub text: Option<Text>,
    /// Target at which the device is registered or will be registered, as its row says.
    pub target: Option<String>,
}

/// The columns by which a filter decides, borrowed from a row.
#[derive(Debug, Clone, Copy)]
pub struct Seen<'r> {
    /// The device ID.
    pub id: &'r str,
    /// Name of the enrollment.
    pub enrollment: &'r str,
    /// The product.
    pub product_key: &'r str,
    /// The device name, if it is set.
    pub device_name: Option<&'r str>,
    /// Set if the device has a certificate.
    pub is_registered: bool,
    /// The identifier that IoT Platform gave the device.
    pub iot_id: Option<&'r str>,
    /// State that the operator has set.
    pub state: DeviceState,
    /// Time of the first issue.
    pub first_issued: Option<UnixSeconds>,
    /// Time of the registration at IoT Platform.
    pub registered: Option<UnixSeconds>,
    /// Time of the first sign-in at IoT Platform.
    pub activated: Option<UnixSeconds>,
    /// Reason why IoT Platform refuses the device.
    pub refusal: Option<&'r str>,
    /// Abnormal state at IoT Platform.
    pub cloud_state: Option<CloudState>,
    /// Target in the row.
    pub target: Option<&'r str>,
}

impl Seen<'_> {
    /// Returns the target of the device, as [`DeviceRow::target`] does.
    fn target(&self) -> Option<&str> {
        target::of(self.target, self.is_registered)
    }
}

impl Filter {
    /// Returns whether the filter admits a device. `is_claimed` returns whether the device's
    /// registration is in the journal, and is called only if the answer depends on the journal.
    pub fn admits(&self, seen: &Seen<'_>, is_claimed: impl FnOnce() -> bool) -> bool {
        let is = |wanted: &Option<String>, value: &str| wanted.as_ref().is_none_or(|wanted| wanted == value);
        is(&self.enrollment, seen.enrollment)
            && is(&self.product_key, seen.product_key)
            && self.is_registered.is_none_or(|wanted| wanted == seen.is_registered)
            && self.refusal.as_ref().is_none_or(|reason| seen.refusal == Some(reason))
            && self.issued_from.is_none_or(|from| seen.first_issued.is_some_and(|at| at >= from))
            && self.issued_before.is_none_or(|before| seen.first_issued.is_some_and(|at| at < before))
            && self.target.as_ref().is_none_or(|target| seen.target() == Some(target))
            && self.text.as_ref().is_none_or(|text| text.fits(seen))
            && self.state.is_none_or(|state| state.fits(seen, is_claimed))
    }
}

impl State {
    fn fits(self, seen: &Seen<'_>, is_claimed: impl FnOnce() -> bool) -> bool {
        match self {
            Self::Imported => !seen.is_registered && seen.refusal.is_none() && !is_claimed(),
            Self::Waiting => !seen.is_registered && is_claimed(),
            Self::Registered => seen.is_registered,
            Self::Unissued => seen.is_registered && seen.first_issued.is_none(),
            Self::Issued => seen.first_issued.is_some(),
            Self::Activated => seen.activated.is_some(),
            Self::Refused => seen.refusal.is_some(),
            Self::Disabled => seen.state == DeviceState::Disabled,
            Self::DisabledAtCloud => seen.cloud_state == Some(CloudState::Disabled),
            Self::DeletedAtCloud => seen.cloud_state == Some(CloudState::Deleted),
        }
    }
}

impl Text {
    fn fits(&self, seen: &Seen<'_>) -> bool {
        match self {
            Self::Begins(text) => seen.id.starts_with(text.as_str()),
            Self::Ends(text) => {
                let (id, end) = (seen.id.as_bytes(), text.as_bytes());
                id.len() >= end.len() && id[id.len() - end.len()..].eq_ignore_ascii_case(end)
            }
            Self::Name(text) => seen.device_name.unwrap_or(seen.id) == text,
            Self::IotId(text) => seen.iot_id == Some(text),
        }
    }
}

impl DeviceRow {
    /// Returns the columns by which a filter decides.
    pub fn seen(&self) -> Seen<'_> {
        Seen {
            id: self.id.as_str(),
            enrollment: &self.enrollment,
            product_key: &self.product_key,
            device_name: self.device_name.as_deref(),
            is_registered: self.certificate.is_some(),
            iot_id: self.iot_id.as_deref(),
            state: self.state,
            first_issued: self.first_issued,
            registered: self.registered,
            activated: self.activated,
            refusal: self.refusal.as_deref(),
            cloud_state: self.cloud_state,
            target: self.target.as_deref(),
        }
    }

    /// Returns the row without its secret, as a list shows it. `is_claimed` is set if the device's
    /// registration is in the journal.
    pub fn listed(&self, is_claimed: bool) -> Listed {
        Listed::new(self.id.clone(), &self.seen(), is_claimed)
    }
}

/// A device as a list shows it. Secrets are left out, so that a device whose secret is damaged is
/// listed, too.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// The device ID.
    pub id: DeviceId,
    /// Name of the enrollment.
    pub enrollment: String,
    /// The product.
    pub product_key: String,
    /// The device name, if it is set.
    pub device_name: Option<String>,
    /// Set if the device has a certificate.
    pub is_registered: bool,
    /// The identifier that IoT Platform gave the device.
    pub iot_id: Option<String>,
    /// State that the operator has set.
    pub state: DeviceState,
    /// Time of the first issue.
    pub first_issued: Option<UnixSeconds>,
    /// Time of the registration at IoT Platform.
    pub registered: Option<UnixSeconds>,
    /// Time of the first sign-in at IoT Platform.
    pub activated: Option<UnixSeconds>,
    /// Reason why IoT Platform refuses the device.
    pub refusal: Option<String>,
    /// Abnormal state at IoT Platform.
    pub cloud_state: Option<CloudState>,
    /// Target at which the device is registered or will be registered; `None` if that is decided
    /// when it is registered.
    pub target: Option<String>,
    /// Set if the device's registration is in the journal.
    pub is_claimed: bool,
}

impl Listed {
    /// Copies the columns of a row.
    pub fn new(id: DeviceId, seen: &Seen<'_>, is_claimed: bool) -> Self {
        Self {
            id,
            enrollment: seen.enrollment.to_owned(),
            product_key: seen.product_key.to_owned(),
            device_name: seen.device_name.map(str::to_owned),
            is_registered: seen.is_registered,
            iot_id: seen.iot_id.map(str::to_owned),
            state: seen.state,
            first_issued: seen.first_issued,
            registered: seen.registered,
            activated: seen.activated,
            refusal: seen.refusal.map(str::to_owned),
            cloud_state: seen.cloud_state,
            target: seen.target().map(str::to_owned),
            is_claimed,
        }
    }

    /// Returns the columns by which a filter decides.
    pub fn seen(&self) -> Seen<'_> {
        Seen {
            id: self.id.as_str(),
            enrollment: &self.enrollment,
            product_key: &self.product_key,
            device_name: self.device_name.as_deref(),
            is_registered: self.is_registered,
            iot_id: self.iot_id.as_deref(),
            state: self.state,
            first_issued: self.first_issued,
            registered: self.registered,
            activated: self.activated,
            refusal: self.refusal.as_deref(),
            cloud_state: self.cloud_state,
            target: self.target.as_deref(),
        }
    }

    /// Returns the device's name at IoT Platform, as [`DeviceRow::name`] does.
    pub fn name(&self) -> String {
        self.device_name.clone().unwrap_or_else(|| self.id.device_name())
    }
}

/// Position in the table at which a search continues, in order of device ID.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Cursor {
    /// Search forward, from the first device.
    #[default]
    First,
    /// Search forward, after this ID. The table need not have the ID.
    After(DeviceId),
    /// Search backward, before this ID.
    Before(DeviceId),
}

/// Returns the bounds of the IDs with this prefix in a search: the first ID, and the ID before which the
/// search ends.
pub(super) fn bounds(prefix: &str, from: &Cursor) -> (String, String) {
    // Each character of an ID is at least `!` and less than DEL (7F).
    let (first, end) = (prefix.to_owned(), format!("{prefix}\x7f"));
    match from {
        Cursor::First => (first, end),
        Cursor::After(id) => (first.max(format!("{id}!")), end),
        Cursor::Before(id) => (first, end.min(id.to_string())),
    }
}

/// Devices that a search has found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// The devices in order of device ID, even if the search went backward.
    pub devices: Vec<Listed>,
    /// Reason why the search ended.
    pub end: End,
}

impl Found {
    /// Returns the cursor at which a forward search continues after these devices; `None` if the search
    /// is complete.
    pub fn rest(&self) -> Option<Cursor> {
        match (&self.end, self.devices.last()) {
            (End::TimeUp(last), _) => Some(Cursor::After(last.clone())),
            (End::More, Some(last)) => Some(Cursor::After(last.id.clone())),
            (End::Complete, _) | (End::More, None) => None,
        }
    }
}

/// Reason why a search ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// There are no more devices in this direction.
    Complete,
    /// There is at least one more device.
    More,
    /// The time was over. Contains the ID of the last device that was examined.
    TimeUp(DeviceId),
}

/// Number of devices that a filter admits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tally {
    /// Number of devices found.
    pub devices: u64,
    /// Set if the search was complete; otherwise, there may be more devices.
    pub is_complete: bool,
}

/// Group of devices in one enrollment: either those whose registration has begun, or those that IoT
/// Platform refuses for one reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// Name of the enrollment.
    pub enrollment: String,
    /// Reason why IoT Platform refuses the devices; `None` if their registration has begun.
    pub refusal: Option<String>,
    /// Number of devices.
    pub devices: u64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::DeviceId;

    fn row(id: &str) -> DeviceRow {
        DeviceRow::imported(DeviceId::parse_sn(id).unwrap(), "lamps", "a1lamp")
    }

    fn admits(filter: &Filter, row: &DeviceRow, is_claimed: bool) -> bool {
        filter.admits(&row.seen(), || is_claimed)
    }

    #[test]
    fn each_state_admits_the_devices_that_are_in_it() {
        let registered = row("SN-1").with_certificate("SN-1", "s3cret");
        let issued = DeviceRow { first_issued: Some(5), ..registered.clone() };
        let activated = DeviceRow { activated: Some(6), ..issued.clone() };
        let refused = DeviceRow { refusal: Some("odd".into()), ..row("SN-1") };
        let disabled = DeviceRow { state: DeviceState::Disabled, ..row("SN-1") };
        let off = DeviceRow { cloud_state: Some(CloudState::Disabled), ..registered.clone() };
        let gone = DeviceRow { cloud_state: Some(CloudState::Deleted), ..registered.clone() };
        use State::*;
        for (row, is_claimed, states) in [
            (row("SN-1"), false, &[Imported][..]),
            (row("SN-1"), true, &[Waiting]),
            (registered.clone(), false, &[Registered, Unissued]),
            // The claim of an earlier attempt may remain after the device is registered.
            (registered, true, &[Registered, Unissued]),
            (issued, false, &[Registered, Issued]),
            (activated, false, &[Registered, Issued, Activated]),
            (refused, false, &[Refused]),
            (disabled, false, &[Imported, Disabled]),
            (off, false, &[Registered, Unissued, DisabledAtCloud]),
            (gone, false, &[Registered, Unissued, DeletedAtCloud]),
        ] {
            let fits = |state| admits(&Filter { state: Some(state), ..Filter::default() }, &row, is_claimed);
            let found: Vec<State> = State::ALL.into_iter().filter(|state| fits(*state)).collect();
            assert_eq!(found, states, "{row:?} {is_claimed}");
        }
        for state in State::ALL {
            assert_eq!(State::named(state.name()), Some(state));
        }
    }

    #[test]
    fn each_condition_must_be_met() {
        let row = DeviceRow {
            device_name: Some("lamp-1".into()),
            iot_id: Some("iot-1".into()),
            first_issued: Some(100),
            refusal: Some("odd".into()),
            target: Some("tokyo".into()),
            ..row("001A2B3C4D5E")
        };
        let text = |text| Filter { text: Some(text), ..Filter::default() };
        let some = |text: &str| Some(text.to_owned());
        for (filter, is_admitted) in [
            (Filter::default(), true),
            (Filter { enrollment: some("lamps"), ..Filter::default() }, true),
            (Filter { enrollment: some("lamp"), ..Filter::default() }, false),
            (Filter { product_key: some("a1lamp"), ..Filter::default() }, true),
            (Filter { product_key: some("a1"), ..Filter::default() }, false),
            (Filter { is_registered: Some(false), ..Filter::default() }, true),
            (Filter { is_registered: Some(true), ..Filter::default() }, false),
            (Filter { refusal: some("odd"), ..Filter::default() }, true),
            (Filter { refusal: some("od"), ..Filter::default() }, false),
            (Filter { issued_from: Some(100), issued_before: Some(101), ..Filter::default() }, true),
            (Filter { issued_from: Some(101), ..Filter::default() }, false),
            (Filter { issued_before: Some(100), ..Filter::default() }, false),
            (Filter { target: some("tokyo"), ..Filter::default() }, true),
            (Filter { target: some("default"), ..Filter::default() }, false),
            (text(Text::Begins("001A".into())), true),
            (text(Text::Begins("001a".into())), false),
            (text(Text::Ends("4d5e".into())), true),
            (text(Text::Ends("4d5".into())), false),
            (text(Text::Ends("X001A2B3C4D5E".into())), false),
            (text(Text::Name("lamp-1".into())), true),
            (text(Text::Name("001A2B3C4D5E".into())), false),
            (text(Text::IotId("iot-1".into())), true),
            (text(Text::IotId("iot-".into())), false),
            (Filter { enrollment: some("plugs"), ..text(Text::IotId("iot-1".into())) }, false),
        ] {
            assert_eq!(admits(&filter, &row, false), is_admitted, "{filter:?}");
        }
        let unissued = DeviceRow { first_issued: None, ..row };
        assert!(!admits(&Filter { issued_before: Some(200), ..Filter::default() }, &unissued, false));
    }
}
