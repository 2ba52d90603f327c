//! Counts the issues, refusals and certificates that an action on many devices removes, and shows
//! these numbers in the action's preview.

use std::time::{Duration, Instant};

use maud::{Markup, html};

use super::language::Texts;
use crate::{
    admin::jobs::Action,
    store::{
        CloudState, StoreError, Table,
        filter::{Cursor, Filter, Listed},
    },
};

/// Number of devices that are read at a time.
const STEP: usize = 1000;
/// Maximum time for which the devices of a filter are read.
const TIME: Duration = Duration::from_secs(10);

/// Numbers of devices from which an action removes an issue, a refusal or a certificate.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Removed {
    issues: u64,
    refusals: u64,
    certificates: u64,
    /// Set if the time was too short to read all devices.
    is_partial: bool,
}

impl Removed {
    /// Counts the issues, refusals and certificates that the action would remove from the devices
    /// that the filter admits. Blocks the thread.
    pub(super) fn of_filter(store: &dyn Table, filter: &Filter, action: Action) -> Result<Self, StoreError> {
        let (mut removed, mut from) = (Self::default(), Cursor::First);
        if !counts(action) {
            return Ok(removed);
        }
        let deadline = Instant::now() + TIME;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let found = store.find(filter, &from, STEP, left)?;
            found.devices.iter().for_each(|device| removed.add(device, action));
            let Some(rest) = found.rest() else { return Ok(removed) };
            from = rest;
            if Instant::now() >= deadline {
                removed.is_partial = true;
                return Ok(removed);
            }
        }
    }

    /// Adds the issue, the refusal and the certificate that the action removes from one device.
    pub(super) fn add(&mut self, device: &Listed, action: Action) {
        let has_certificate = device.is_registered;
        match action {
            Action::Reset => {
                let is_removed = has_certificate && device.cloud_state == Some(CloudState::Deleted);
                self.certificates += u64::from(is_removed);
                self.issues += u64::from(device.first_issued.is_some());
                self.refusals += u64::from(device.refusal.is_some());
            }
            Action::Delete => self.certificates += u64::from(has_certificate),
            Action::Disable | Action::Enable | Action::Register => {}
        }
    }

    /// Renders the numbers that are not zero.
    pub(super) fn show(&self, t: Texts, action: Action) -> Markup {
        let Self { issues, refusals, certificates, is_partial } = *self;
        let of_certificates = match action {
            Action::Delete => "bulk-removes-certificates-here",
            _ => "bulk-removes-certificates",
        };
        let counts = [
            ("bulk-removes-issues", issues),
            ("bulk-removes-refusals", refusals),
            (of_certificates, certificates),
        ];
        html! {
            @if issues + refusals + certificates > 0 {
                ul #removes {
                    @for (key, count) in counts {
                        @if count > 0 { li { (t.rich(key, [("count", count.into())])) } }
                    }
                }
            } @else if action == Action::Reset && !is_partial { p { (t.say("removes-nothing")) } }
            @if is_partial { p { (t.say("bulk-removes-more")) } }
        }
    }
}

/// Returns whether the action can remove something besides the row and the key.
fn counts(action: Action) -> bool {
    matches!(action, Action::Reset | Action::Delete)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{admin::console::language::Language, device::DeviceId, store::DeviceRow};

    #[test]
    fn a_reset_removes_the_certificate_of_a_deleted_device_only() {
        let row = |id: &str| DeviceRow::imported(DeviceId::parse(id).unwrap(), "lamps", "a1");
        let issued = DeviceRow { first_issued: Some(5), ..row("SN-1").with_certificate("SN-1", "s3cret") };
        let deleted = DeviceRow { cloud_state: Some(CloudState::Deleted), ..issued.clone() };
        let refused = DeviceRow { refusal: Some("odd".into()), ..row("SN-3") };
        let all = [row("SN-0"), issued, deleted, refused]
            .map(|row| Listed::new(row.id.clone(), &row.seen(), false));
        let of = |action| {
            let mut removed = Removed::default();
            all.iter().for_each(|device| removed.add(device, action));
            removed
        };
        let reset = of(Action::Reset);
        assert_eq!((reset.issues, reset.refusals, reset.certificates), (2, 1, 1));
        assert_eq!(of(Action::Delete), Removed { certificates: 2, ..Removed::default() });
        assert_eq!(of(Action::Disable), Removed::default());
        let said = reset.show(Texts(Language::English), Action::Reset).into_string();
        assert!(said.contains("The certificate of 1 device is removed"), "{said}");
        assert!(said.contains("The first issue of 2 devices is forgotten"), "{said}");
    }
}
