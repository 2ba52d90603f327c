//! Data of an instance of the simulated cloud, and the file that keeps it across restarts.

use std::{fs, io, path::Path};

use serde::{Deserialize, Serialize};

use super::devices::{Device, Devices, Removed};
use crate::iot_platform::batches::Batches;

/// Data of an instance, or of the whole account if no instances are configured.
pub(crate) struct Account {
    pub devices: Devices,
    pub batches: Batches,
}

/// Data of an instance, as the state file has it. Without configured instances, this is the whole
/// content of the state file.
#[derive(Serialize, Deserialize)]
pub(super) struct State {
    devices: Vec<Device>,
    #[serde(default)]
    batches: Batches,
    #[serde(default)]
    removed: Vec<Removed>,
}

impl Account {
    /// Makes an account without devices.
    pub fn new(seed: u64) -> Self {
        Self { devices: Devices::new(seed), batches: Batches::default() }
    }

    /// Restores the data that a state file has kept.
    pub(super) fn restore(&mut self, state: State) {
        for device in state.devices {
            self.devices.insert(device);
        }
        self.devices.set_removed(state.removed);
        self.batches = state.batches;
    }

    pub(super) fn state(&self) -> State {
        let devices = self.devices.iter().cloned().collect();
        State { devices, batches: self.batches.clone(), removed: self.devices.removed() }
    }

    /// Returns the account's state as the content of a state file.
    pub fn to_json(&self) -> io::Result<Vec<u8>> {
        Ok(serde_json::to_vec_pretty(&self.state())?)
    }

    /// Deletes all devices and batches.
    pub fn clear(&mut self) {
        self.devices.clear();
        self.batches.clear();
    }

    /// Completes every batch step that is due at `now_ms`.
    pub fn advance(&mut self, now_ms: i64) {
        self.batches.advance(&mut self.devices, now_ms);
    }

    /// Returns the number of changes so far.
    pub fn changes(&self) -> u64 {
        self.devices.changes() + self.batches.changes()
    }
}

/// Reads a state file. Returns `None` if the file does not exist yet.
pub(super) fn read(path: &Path) -> io::Result<Option<Vec<u8>>> {
    match fs::read(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Replaces a file in one step. Even after a crash, a reader finds either the whole old content or
/// the whole new content.
pub(crate) fn write_atomically(path: &Path, text: &[u8]) -> io::Result<()> {
    use std::io::Write as _;

    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    let mut options = fs::OpenOptions::new();
    options.write(true).create(true).truncate(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600); // the file holds device secrets
    let mut file = options.open(&beside)?;
    file.write_all(text)?;
    file.sync_all()?;
    drop(file);
    fs::rename(&beside, path)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::iot_platform::BatchStatus;

    /// Reads an account from its state file.
    fn load(path: &Path, seed: u64) -> io::Result<Account> {
        let mut account = Account::new(seed);
        if let Some(text) = read(path)? {
            account.restore(serde_json::from_slice(&text)?);
        }
        Ok(account)
    }

    #[test]
    fn the_state_file_gives_the_same_devices_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.json");
        let mut account = load(&path, 1).unwrap();
        account.devices.create("a1", "SN01", "lamp", 1_500_000_000_123);
        account.devices.change("a1", "SN01", |device| device.disabled = true);
        account.devices.create("a1", "SN02", "", 0);
        account.devices.remove("a1", "SN02");
        write_atomically(&path, &account.to_json().unwrap()).unwrap();
        let again = load(&path, 2).unwrap();
        let (device, before) =
            (again.devices.get("a1", "SN01").unwrap(), account.devices.get("a1", "SN01").unwrap());
        assert_eq!(device.device_secret, before.device_secret);
        assert_eq!((device.created, device.nickname.as_str()), (1_500_000_000_123, "lamp"));
        assert!(device.disabled);
        assert_eq!(again.devices.removed(), account.devices.removed());
        assert_eq!(again.devices.removed().len(), 1);
        assert_eq!(again.devices.get_by_iot_id(&before.iot_id).unwrap().device_name, "SN01");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_batch_goes_on_after_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.json");
        let delay = Duration::from_millis(100);
        let mut account = Account::new(1);
        let id = account.batches.check("a1", vec!["SN01".into()], 0, delay);
        account.advance(100);
        account.batches.register("a1", id, 100, delay).unwrap();
        write_atomically(&path, &account.to_json().unwrap()).unwrap();
        let mut again = load(&path, 1).unwrap();
        again.advance(199);
        assert_eq!(again.batches.progress("a1", id).unwrap().status, BatchStatus::Create);
        again.advance(200);
        assert_eq!(again.batches.progress("a1", id).unwrap().status, BatchStatus::CreateSuccess);
        assert_eq!(again.devices.get("a1", "SN01").unwrap().created, 200);
        assert_ne!(again.batches.check("a1", vec!["SN01".into()], 200, delay), id);
    }

    #[test]
    fn a_state_file_of_devices_alone_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.json");
        let text = r#"{"devices": [{"productKey": "a1", "deviceName": "SN01", "deviceSecret": "s", "iotId": "i", "created": 0}]}"#;
        fs::write(&path, text).unwrap();
        assert_eq!(load(&path, 1).unwrap().devices.len(), 1);
    }

    #[test]
    fn an_invalid_state_file_is_refused_and_not_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.json");
        fs::write(&path, "[1, 2").unwrap();
        assert!(load(&path, 1).is_err());
    }
}
