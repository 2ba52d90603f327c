//! Counts of a sweep, and the log line about devices that were disabled, enabled or deleted at IoT
//! Platform: one line for each pass, however many devices changed.

use crate::store::{CloudState, sighting::Watched};

/// Maximum number of devices that a log line names.
const NAMED: usize = 10;

/// Result of a pass.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Swept {
    /// Devices for which a look-up was tried.
    pub devices: u64,
    /// Devices whose row was changed.
    pub changed: u64,
    /// Devices that could not be looked up, including devices for which no look-up was tried
    /// because the cloud had refused an earlier one.
    pub failed: u64,
}

impl Swept {
    /// Counts devices that could not be looked up.
    pub(super) fn fail(&mut self, devices: u64) {
        self.devices += devices;
        self.failed += devices;
    }
}

/// Devices that were disabled, enabled or deleted at IoT Platform since the last report.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct News {
    disabled: u64,
    enabled: u64,
    deleted: u64,
    /// IDs of the first of these devices.
    names: Vec<String>,
}

impl News {
    /// Notes the present state of a device if the state has changed.
    pub(super) fn note(&mut self, device: &Watched, state: Option<CloudState>) {
        if state == device.cloud_state {
            return;
        }
        match state {
            Some(CloudState::Disabled) => self.disabled += 1,
            Some(CloudState::Deleted) => self.deleted += 1,
            None => self.enabled += 1,
        }
        if self.names.len() < NAMED {
            self.names.push(device.id.to_string());
        }
    }

    /// Logs the changes, if there are any, and forgets them.
    pub(super) fn report(&mut self) {
        let Self { disabled, enabled, deleted, names } = std::mem::take(self);
        if disabled + enabled + deleted > 0 {
            tracing::warn!(
                disabled,
                enabled,
                deleted,
                devices = names.join(", "),
                "devices were disabled, enabled or deleted at IoT Platform; see `certdist device show`"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{device::DeviceId, store::DeviceRow};

    #[test]
    fn each_change_is_counted_and_the_first_devices_are_named() {
        let device = |number: u32, cloud_state| {
            let id = DeviceId::parse(&format!("SN{number:03}")).unwrap();
            Watched { cloud_state, ..Watched::from(&DeviceRow::imported(id, "lamp", "a1")) }
        };
        let mut news = News::default();
        for number in 0..1000 {
            news.note(&device(number, None), Some(CloudState::Deleted));
        }
        news.note(&device(0, Some(CloudState::Deleted)), None);
        news.note(&device(1, None), Some(CloudState::Disabled));
        news.note(&device(2, Some(CloudState::Disabled)), Some(CloudState::Disabled));
        assert_eq!((news.deleted, news.enabled, news.disabled), (1000, 1, 1));
        let names: Vec<String> = (0..10).map(|number| format!("SN{number:03}")).collect();
        assert_eq!(news.names, names);
        news.report();
        assert_eq!(news, News::default());
    }
}
