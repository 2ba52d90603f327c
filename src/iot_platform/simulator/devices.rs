//! The devices that the simulated cloud has, and the file that keeps them over a
//! restart. Knows neither calls nor who makes them.

use std::{
    collections::{BTreeMap, HashMap},
    fs, io,
    path::Path,
};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// A device as the cloud keeps it. Has no `Debug`: it holds a secret.
#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Device {
    pub product_key: String,
    pub device_name: String,
    /// 32 lower-case hex digits.
    pub device_secret: String,
    /// 32 letters and digits.
    pub iot_id: String,
    #[serde(default)]
    pub nickname: String,
    /// Milliseconds since 1970.
    pub created: i64,
    /// Milliseconds since 1970, once it has signed in.
    #[serde(default)]
    pub activated: Option<i64>,
}

/// All devices, by product and name.
pub(super) struct Devices {
    rows: BTreeMap<(String, String), Device>,
    names_by_iot_id: HashMap<String, (String, String)>,
    seed: u64,
}

/// What the state file holds.
#[derive(Serialize, Deserialize)]
struct State {
    devices: Vec<Device>,
}

impl Devices {
    /// No devices yet. Secrets and IDs of those to come follow from the seed and
    /// the device's name, so that runs are alike whatever the order of calls.
    pub fn new(seed: u64) -> Self {
        Self { rows: BTreeMap::new(), names_by_iot_id: HashMap::new(), seed }
    }

    /// The devices of a state file; none when there is no file yet.
    pub fn load(path: &Path, seed: u64) -> io::Result<Self> {
        let mut devices = Self::new(seed);
        let text = match fs::read(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(devices),
            Err(error) => return Err(error),
        };
        let state: State = serde_json::from_slice(&text)?;
        for device in state.devices {
            devices.insert(device);
        }
        Ok(devices)
    }

    /// The text of a state file.
    pub fn to_json(&self) -> io::Result<Vec<u8>> {
        let state = State { devices: self.rows.values().cloned().collect() };
        Ok(serde_json::to_vec_pretty(&state)?)
    }

    pub fn len(&self) -> usize {
        self.rows.len()
    }

    pub fn get(&self, product_key: &str, device_name: &str) -> Option<&Device> {
        self.rows.get(&(product_key.to_owned(), device_name.to_owned()))
    }

    pub fn get_by_iot_id(&self, iot_id: &str) -> Option<&Device> {
        self.names_by_iot_id.get(iot_id).and_then(|name| self.rows.get(name))
    }

    /// Creates a device, unless its name is taken.
    pub fn create(
        &mut self,
        product_key: &str,
        device_name: &str,
        nickname: &str,
        now_ms: i64,
    ) -> Option<&Device> {
        if self.get(product_key, device_name).is_some() {
            return None;
        }
        let derived = |purpose: &str| self.derived(purpose, product_key, device_name);
        let device = Device {
            device_secret: hex::encode(&derived("secret")[..16]),
            iot_id: alphanumeric(&derived("iot id")),
            product_key: product_key.to_owned(),
            device_name: device_name.to_owned(),
            nickname: nickname.to_owned(),
            created: now_ms,
            activated: None,
        };
        Some(self.insert(device))
    }

    /// A name for a device that came without one.
    pub fn free_name(&self, product_key: &str) -> String {
        (self.rows.len()..)
            .map(|count| {
                alphanumeric(&self.derived("name", product_key, &count.to_string()))[..20].to_owned()
            })
            .find(|name| self.get(product_key, name).is_none())
            .unwrap_or_default()
    }

    fn insert(&mut self, device: Device) -> &Device {
        let key = (device.product_key.clone(), device.device_name.clone());
        self.names_by_iot_id.insert(device.iot_id.clone(), key.clone());
        self.rows.entry(key).insert_entry(device).into_mut()
    }

    fn derived(&self, purpose: &str, product_key: &str, device_name: &str) -> [u8; 32] {
        let mut hash = Sha256::new().chain_update(self.seed.to_be_bytes());
        for part in [purpose, product_key, device_name] {
            hash.update([0]);
            hash.update(part);
        }
        hash.finalize().into()
    }
}

/// 32 letters and digits that follow from 32 bytes.
fn alphanumeric(bytes: &[u8; 32]) -> String {
    const ALPHABET: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    bytes.iter().map(|&byte| char::from(ALPHABET[usize::from(byte) % ALPHABET.len()])).collect()
}

/// Replaces a file as a whole: whoever reads it, or whatever a crash leaves, is
/// the old state or the new one.
pub(super) fn write_atomically(path: &Path, text: &[u8]) -> io::Result<()> {
    use std::io::Write as _;

    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    let mut options = fs::OpenOptions::new();
    options.write(true).create(true).truncate(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600); // device secrets
    let mut file = options.open(&beside)?;
    file.write_all(text)?;
    file.sync_all()?;
    drop(file);
    fs::rename(&beside, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_has_a_secret_and_an_id_of_the_clouds_shape() {
        let mut devices = Devices::new(1);
        let device = devices.create("a1", "SN01", "", 0).unwrap();
        assert_eq!(device.device_secret.len(), 32);
        assert!(device.device_secret.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')));
        assert_eq!(device.iot_id.len(), 32);
        assert!(device.iot_id.bytes().all(|byte| byte.is_ascii_alphanumeric()));
    }

    #[test]
    fn a_name_is_taken_once_per_product() {
        let mut devices = Devices::new(1);
        let first = devices.create("a1", "SN01", "", 0).unwrap().device_secret.clone();
        assert!(devices.create("a1", "SN01", "", 0).is_none());
        let other = devices.create("a2", "SN01", "", 0).unwrap();
        assert_ne!(first, other.device_secret);
        assert_eq!(devices.len(), 2);
    }

    #[test]
    fn secrets_follow_from_the_seed_whatever_the_order() {
        let secret = |seed, before: &[&str]| {
            let mut devices = Devices::new(seed);
            for name in before {
                devices.create("a1", name, "", 0);
            }
            devices.create("a1", "SN01", "", 0).unwrap().device_secret.clone()
        };
        assert_eq!(secret(1, &[]), secret(1, &["SN02", "SN03"]));
        assert_ne!(secret(1, &[]), secret(2, &[]));
    }

    #[test]
    fn a_name_that_the_cloud_chooses_is_free() {
        let mut devices = Devices::new(1);
        for _ in 0..10 {
            let name = devices.free_name("a1");
            assert!(devices.create("a1", &name, "", 0).is_some());
        }
    }

    #[test]
    fn the_state_file_gives_the_same_devices_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.json");
        let mut devices = Devices::load(&path, 1).unwrap();
        devices.create("a1", "SN01", "lamp", 1_500_000_000_123);
        write_atomically(&path, &devices.to_json().unwrap()).unwrap();
        let again = Devices::load(&path, 2).unwrap();
        let (device, before) = (again.get("a1", "SN01").unwrap(), devices.get("a1", "SN01").unwrap());
        assert_eq!(device.device_secret, before.device_secret);
        assert_eq!((device.created, device.nickname.as_str()), (1_500_000_000_123, "lamp"));
        assert_eq!(again.get_by_iot_id(&before.iot_id).unwrap().device_name, "SN01");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_state_file_that_is_none_is_not_overwritten_but_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.json");
        fs::write(&path, "[1, 2").unwrap();
        assert!(Devices::load(&path, 1).is_err());
    }
}
