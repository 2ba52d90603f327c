//! Recent requests that were not served, each with the row that its device has now. The row shows
//! whether the reason still holds: the device may have been served, imported or enabled since.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use crate::{
    admin::{Shared, blocking},
    device::DeviceId,
    resource::failures::{Failure, Reason},
    store::{DeviceState, StoreError, UnixSeconds, filter::Listed},
};

/// Maximum number of devices that are looked up in the table, the latest first. Each lookup takes a
/// few microseconds.
const MAX_LOOKUPS: usize = 20_000;

/// Row of a device at present.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Row {
    /// The row was not read, because there are too many devices, or because the table cannot be
    /// read.
    NotRead,
    /// The device is not in the table.
    Absent,
    /// The device is in the table.
    Found(Box<Listed>),
}

/// Requests of one device that were not served for the same reason.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Unserved {
    /// The requests.
    pub(super) failure: Failure,
    /// The device's row.
    pub(super) row: Row,
    /// Set if the device has had another answer since.
    pub(super) is_superseded: bool,
    /// Seconds by which the store's clock is ahead of the clock of the failures.
    pub(super) ahead: i64,
}

impl Unserved {
    /// Returns the device's row, if it was found.
    pub(super) fn found(&self) -> Option<&Listed> {
        match &self.row {
            Row::Found(row) => Some(row),
            Row::NotRead | Row::Absent => None,
        }
    }

    /// Returns whether the reason still holds, as far as the row shows.
    pub(super) fn is_open(&self) -> bool {
        let row = match &self.row {
            Row::NotRead => return true,
            // The device may have been deleted here since its request. It then waits for nothing.
            // Only these reasons hold for a device without a row.
            Row::Absent => {
                return matches!(
                    self.failure.reason,
                    Reason::Invalid | Reason::NotYours | Reason::TooMany | Reason::Held
                );
            }
            Row::Found(row) => row,
        };
        match self.failure.reason {
            Reason::Invalid => row.enrollment != self.failure.enrollment && !self.was_issued_since(row),
            Reason::Disabled => row.state == DeviceState::Disabled,
            // If the row is in the enrollment of the request, the device has been imported or
            // admitted since.
            Reason::Held => row.enrollment != self.failure.enrollment && !self.was_issued_since(row),
            Reason::Closed | Reason::NotOpen => !self.was_issued_since(row),
            // After a reset, the device may fetch its certificate again.
            Reason::Issued => row.first_issued.is_some_and(|issued| self.here(issued) <= self.failure.last),
            Reason::Operator | Reason::Later | Reason::TimedOut => {
                !self.was_issued_since(row) && !self.is_superseded && row.state != DeviceState::Disabled
            }
            Reason::NotYours | Reason::TooMany => true,
        }
    }

    /// Returns whether the device has fetched its certificate for the first time since the last
    /// request that was not served.
    fn was_issued_since(&self, row: &Listed) -> bool {
        row.first_issued.is_some_and(|issued| self.here(issued) >= self.failure.last)
    }

    /// Converts a time of the store to the clock of the failures.
    fn here(&self, time: UnixSeconds) -> UnixSeconds {
        time.saturating_sub(self.ahead)
    }

    /// Returns whether the device is not in the table.
    pub(super) fn is_unknown(&self) -> bool {
        self.failure.reason == Reason::Invalid && self.row == Row::Absent
    }

    /// Returns the enrollment in which the table has the device, if the request was refused because
    /// the device uses the key of another enrollment.
    pub(super) fn own_enrollment(&self) -> Option<&str> {
        let own = self.found().filter(|_| self.failure.reason == Reason::Invalid)?;
        self.is_open().then_some(own.enrollment.as_str())
    }
}

/// Recent requests that were not served.
pub(super) struct Recent {
    /// The requests, the latest first.
    pub(super) all: Vec<Unserved>,
    /// Set if earlier requests were forgotten for lack of room.
    pub(super) forgotten: bool,
    /// Set if the rows of some devices were not read.
    pub(super) partly: bool,
}

/// Reads the requests since `from` that were not served, and the rows of their devices.
pub(super) async fn since(shared: &Shared, from: UnixSeconds) -> Recent {
    let (failures, forgotten) = shared.sources.failures.since(from);
    let mut ids: Vec<DeviceId> =
        failures.iter().take(MAX_LOOKUPS).map(|failure| failure.device.clone()).collect();
    let looked_up = ids.len();
    ids.sort_unstable();
    ids.dedup();
    let rows = match ids.is_empty() {
        true => Ok(Vec::new()),
        false => rows(shared, ids).await,
    };
    // If the table cannot be read, another concern reports it.
    let is_read = rows.is_ok();
    let rows: HashMap<DeviceId, Listed> =
        rows.unwrap_or_default().into_iter().map(|row| (row.id.clone(), row)).collect();
    let ahead = shared.sources.store.ahead();
    let partly = !failures.is_empty() && (!is_read || failures.len() > looked_up);
    let mut later = HashSet::new();
    let all = failures.into_iter().enumerate().map(|(index, failure)| {
        // The failures are sorted from the latest, so a device that is met again has a later
        // failure.
        let is_superseded = !later.insert(failure.device.clone());
        let row = match rows.get(&failure.device) {
            _ if !is_read || index >= looked_up => Row::NotRead,
            Some(row) => Row::Found(Box::new(row.clone())),
            None => Row::Absent,
        };
        Unserved { failure, row, is_superseded, ahead }
    });
    Recent { all: all.collect(), forgotten, partly }
}

async fn rows(shared: &Shared, ids: Vec<DeviceId>) -> Result<Vec<Listed>, StoreError> {
    let store = Arc::clone(&shared.sources.store);
    blocking(move || store.listed(&ids)).await
}
