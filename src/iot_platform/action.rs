//! The actions of the API by name, and how often an account may call each: what
//! the registrar paces itself by, and the simulator enforces.

/// An action that certdist calls, or that the simulator knows beside those.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Action {
    /// Creates a device.
    RegisterDevice,
    /// Tells a device's certificate and state.
    QueryDeviceDetail,
    /// First step of a batch: has its names checked.
    BatchCheckDeviceNames,
    /// How far either step of a batch is.
    QueryBatchRegisterDeviceStatus,
    /// Second step of a batch: has its devices created.
    BatchRegisterDeviceWithApplyId,
    /// Tells the certificates that a batch has made, by pages.
    QueryPageByApplyId,
    /// Tells the certificates and states of up to 100 devices.
    BatchQueryDeviceDetail,
    /// Lets a device no longer sign in. Not called by certdist.
    DisableThing,
    /// Lets a disabled device sign in again. Not called by certdist.
    EnableThing,
    /// Removes a device, its name free again. Not called by certdist.
    DeleteDevice,
}

impl Action {
    /// All of them.
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

    /// The value of the parameter `Action`.
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

    /// The documented limit of an account, which its RAM users share.
    pub fn calls_per_second(self) -> u32 {
        match self {
            Self::RegisterDevice | Self::QueryBatchRegisterDeviceStatus => 30,
            Self::QueryDeviceDetail | Self::QueryPageByApplyId => 50,
            Self::BatchCheckDeviceNames | Self::BatchRegisterDeviceWithApplyId => 10,
            Self::BatchQueryDeviceDetail => 5,
            Self::DisableThing | Self::EnableThing | Self::DeleteDevice => 500,
        }
    }

    /// The action of that name.
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
