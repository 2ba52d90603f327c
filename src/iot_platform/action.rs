//! Names and rate limits of the API's actions. The registrar does not exceed these rates, and the
//! simulator enforces them.

/// An action that certdist calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Action {
    /// Creates a device.
    RegisterDevice,
    /// Returns a device's certificate and state.
    QueryDeviceDetail,
    /// First step of a batch: checks the names.
    BatchCheckDeviceNames,
    /// Returns the status of either step of a batch.
    QueryBatchRegisterDeviceStatus,
    /// Second step of a batch: creates the devices.
    BatchRegisterDeviceWithApplyId,
    /// Returns the certificates of a batch, page by page.
    QueryPageByApplyId,
    /// Returns the certificates and states of up to 100 devices.
    BatchQueryDeviceDetail,
    /// Disables a device, so that it cannot sign in. The device stays known.
    DisableThing,
    /// Allows a disabled device to sign in again.
    EnableThing,
    /// Deletes a device for good and frees its name.
    DeleteDevice,
}

impl Action {
    /// All actions.
    pub const ALL: [Self; 10] = [
        Self::RegisterDevice,
        Self::QueryDeviceDetail,
        Self::BatchCheckDeviceNames,
        Self::QueryBatchRegisterDeviceStatus,
        Self::BatchRegisterDeviceWithApplyId,
        Self::QueryPageByApplyId,
        Self::BatchQueryDeviceDetail,
        Self::DisableThing,
        Self::EnableThing,
        Self::DeleteDevice,
    ];

    /// Returns the value of the parameter `Action`.
    pub fn name(self) -> &'static str {
        match self {
            Self::RegisterDevice => "RegisterDevice",
            Self::QueryDeviceDetail => "QueryDeviceDetail",
            Self::BatchCheckDeviceNames => "BatchCheckDeviceNames",
            Self::QueryBatchRegisterDeviceStatus => "QueryBatchRegisterDeviceStatus",
            Self::BatchRegisterDeviceWithApplyId => "BatchRegisterDeviceWithApplyId",
            Self::QueryPageByApplyId => "QueryPageByApplyId",
            Self::BatchQueryDeviceDetail => "BatchQueryDeviceDetail",
            Self::DisableThing => "DisableThing",
            Self::EnableThing => "EnableThing",
            Self::DeleteDevice => "DeleteDevice",
        }
    }

    /// Returns the documented rate limit of an account, in calls per second. All RAM users of the
    /// account share it.
    pub fn calls_per_second(self) -> u32 {
        match self {
            Self::RegisterDevice | Self::QueryBatchRegisterDeviceStatus => 30,
            Self::QueryDeviceDetail | Self::QueryPageByApplyId | Self::DeleteDevice => 50,
            Self::BatchCheckDeviceNames | Self::BatchRegisterDeviceWithApplyId => 10,
            Self::BatchQueryDeviceDetail => 5,
            Self::DisableThing | Self::EnableThing => 500,
        }
    }

    /// Finds the action with this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|action| action.name() == name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_action_is_found_by_its_name() {
        for action in Action::ALL {
            assert_eq!(Action::named(action.name()), Some(action));
        }
        assert_eq!(Action::named("DropAll"), None);
    }
}
