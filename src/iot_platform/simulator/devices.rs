//! Devices of the simulated cloud. This module knows nothing about the API.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio::sync::Notify;

use crate::iot_platform::batches::Names;

/// A device of the simulated cloud. This type has no `Debug`, because it contains a secret.
#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Device {
    pub product_key: String,
    pub device_name: String,
    /// 32 lower-case hex digits.
    pub device_secret: String,
    /// 32 letters and digits.
    pub iot_id: String,
    #[serde(default)]
    pub nickname: String,
    /// Time of the creation, in milliseconds since 1970.
    pub created: i64,
    /// Time of the first sign-in, in milliseconds since 1970.
    #[serde(default)]
    pub activated: Option<i64>,
    /// Time of the last sign-in, in milliseconds since 1970.
    #[serde(default)]
    pub signed_in: Option<i64>,
    /// Set if the device may not sign in.
    #[serde(default)]
    pub disabled: bool,
    /// Ends the device's connection when notified. Present while the device is signed in. Not saved
    /// to the state file, because no device is signed in after a restart.
    #[serde(skip)]
    session: Option<Arc<Notify>>,
}

impl Device {
    /// Records a sign-in. The first sign-in activates the device.
    pub fn sign_in(&mut self, now_ms: i64) {
        self.activated.get_or_insert(now_ms);
        self.signed_in = Some(now_ms);
    }

    /// Stores the connection on which the device has signed in, and ends an older connection.
    pub fn begin(&mut self, session: Arc<Notify>) {
        self.end_session();
        self.session = Some(session);
    }

    /// Records that a connection of the device has ended, unless the device has a newer one.
    pub fn sign_out(&mut self, session: &Arc<Notify>) {
        self.session.take_if(|current| Arc::ptr_eq(current, session));
    }

    /// Disables the device and ends its connection.
    pub fn disable(&mut self) {
        self.disabled = true;
        self.end_session();
    }

    fn end_session(&mut self) {
        if let Some(session) = self.session.take() {
            session.notify_one();
        }
    }

    /// Returns the value of `Status`.
    pub fn status(&self) -> &'static str {
        match self {
            Self { disabled: true, .. } => "DISABLE",
            Self { activated: None, .. } => "UNACTIVE",
            Self { session: Some(_), .. } => "ONLINE",
            _ => "OFFLINE",
        }
    }
}

/// A device name, and the number of times that a device with this name was removed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Removed {
    product_key: String,
    device_name: String,
    times: u32,
}

/// All devices, by product and name.
pub(crate) struct Devices {
    rows: BTreeMap<(String, String), Device>,
    names_by_iot_id: HashMap<String, (String, String)>,
    /// Number of times that a device was removed, by product and name. The secret of the next
    /// device with the same product and name depends on this number, so that each device gets a
    /// different secret.
    removed: BTreeMap<(String, String), u32>,
    seed: u64,
    /// Maximum number of devices. If absent, there is no limit.
    most: Option<usize>,
    changes: u64,
}

impl Devices {
    /// Makes an empty collection. The secret and the ID of a device depend only on the seed, on the
    /// device's product and name, and on earlier removals of this name. So they do not depend on
    /// the order of calls.
    pub fn new(seed: u64) -> Self {
        Self {
            rows: BTreeMap::new(),
            names_by_iot_id: HashMap::new(),
            removed: BTreeMap::new(),
            seed,
            most: None,
            changes: 0,
        }
    }

    /// Sets the maximum number of devices.
    pub fn set_most(&mut self, most: Option<usize>) {
        self.most = most;
    }

    /// Returns whether `count` more devices can be created.
    pub fn has_room_for(&self, count: usize) -> bool {
        self.most.is_none_or(|most| self.rows.len().saturating_add(count) <= most)
    }

    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Iterates over all devices, ordered by product and name.
    pub fn iter(&self) -> impl Iterator<Item = &Device> {
        self.rows.values()
    }

    /// Returns the number of changes so far.
    pub fn changes(&self) -> u64 {
        self.changes
    }

    pub fn get(&self, product_key: &str, device_name: &str) -> Option<&Device> {
        self.rows.get(&(product_key.to_owned(), device_name.to_owned()))
    }

    pub fn get_by_iot_id(&self, iot_id: &str) -> Option<&Device> {
        self.names_by_iot_id.get(iot_id).and_then(|name| self.rows.get(name))
    }

    /// Creates a device, unless its name is taken or there is no room for it.
    pub fn create(
        &mut self,
        product_key: &str,
        device_name: &str,
        nickname: &str,
        now_ms: i64,
    ) -> Option<&Device> {
        if self.get(product_key, device_name).is_some() || !self.has_room_for(1) {
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
            signed_in: None,
            disabled: false,
            session: None,
        };
        Some(self.insert(device))
    }

    /// Returns an unused name for a device that was registered without one.
    pub fn free_name(&self, product_key: &str) -> String {
        (self.rows.len()..)
            .map(|count| {
                alphanumeric(&self.derived("name", product_key, &count.to_string()))[..20].to_owned()
            })
            .find(|name| self.get(product_key, name).is_none())
            .unwrap_or_default()
    }

    /// Changes the device with this name, if there is one.
    pub fn change<T>(
        &mut self,
        product_key: &str,
        device_name: &str,
        change: impl FnOnce(&mut Device) -> T,
    ) -> Option<T> {
        let device = self.rows.get_mut(&(product_key.to_owned(), device_name.to_owned()))?;
        self.changes += 1;
        Some(change(device))
    }

    /// Removes the device with this name, if there is one.
    pub fn remove(&mut self, product_key: &str, device_name: &str) -> Option<Device> {
        let mut device = self.rows.remove(&(product_key.to_owned(), device_name.to_owned()))?;
        device.end_session();
        self.names_by_iot_id.remove(&device.iot_id);
        *self.removed.entry((product_key.to_owned(), device_name.to_owned())).or_default() += 1;
        self.changes += 1;
        Some(device)
    }

    /// Removes all devices.
    pub fn clear(&mut self) {
        let names: Vec<_> = self.rows.keys().cloned().collect();
        for (product_key, device_name) in names {
            self.remove(&product_key, &device_name);
        }
    }

    pub fn insert(&mut self, device: Device) -> &Device {
        self.changes += 1;
        let key = (device.product_key.clone(), device.device_name.clone());
        self.names_by_iot_id.insert(device.iot_id.clone(), key.clone());
        self.rows.entry(key).insert_entry(device).into_mut()
    }

    /// Returns the names whose devices were removed.
    pub fn removed(&self) -> Vec<Removed> {
        let removed = self.removed.iter().map(|((product_key, device_name), times)| Removed {
            product_key: product_key.clone(),
            device_name: device_name.clone(),
            times: *times,
        });
        removed.collect()
    }

    /// Adds the names whose devices were removed before a restart.
    pub fn set_removed(&mut self, removed: Vec<Removed>) {
        self.removed.extend(
            removed
                .into_iter()
                .map(|Removed { product_key, device_name, times }| ((product_key, device_name), times)),
        );
    }

    fn derived(&self, purpose: &str, product_key: &str, device_name: &str) -> [u8; 32] {
        let mut hash = Sha256::new().chain_update(self.seed.to_be_bytes());
        for part in [purpose, product_key, device_name] {
            hash.update([0]);
            hash.update(part);
        }
        if let Some(removed) = self.removed.get(&(product_key.to_owned(), device_name.to_owned())) {
            hash.update(removed.to_be_bytes());
        }
        hash.finalize().into()
    }
}

impl Names for Devices {
    fn is_taken(&self, product_key: &str, device_name: &str) -> bool {
        self.get(product_key, device_name).is_some()
    }

    fn create(&mut self, product_key: &str, device_name: &str, now_ms: i64) -> bool {
        Devices::create(self, product_key, device_name, "", now_ms).is_some()
    }
}

/// Derives 32 letters and digits from 32 bytes.
fn alphanumeric(bytes: &[u8; 32]) -> String {
    const ALPHABET: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    bytes.iter().map(|&byte| char::from(ALPHABET[usize::from(byte) % ALPHABET.len()])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_has_a_secret_and_an_id_in_the_clouds_format() {
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
    fn secrets_depend_on_the_seed_but_not_on_the_order() {
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
    fn a_device_that_was_deleted_leaves_its_name_free_and_its_secret_behind() {
        let mut devices = Devices::new(1);
        let Device { iot_id, device_secret, .. } = devices.create("a1", "SN01", "", 0).unwrap().clone();
        assert!(devices.remove("a1", "SN01").is_some() && devices.remove("a1", "SN01").is_none());
        assert!(devices.get_by_iot_id(&iot_id).is_none());
        let next = devices.create("a1", "SN01", "", 0).unwrap();
        assert!(next.iot_id != iot_id && next.device_secret != device_secret);
    }

    #[test]
    fn without_room_no_device_is_created_in_any_way() {
        let mut devices = Devices::new(1);
        devices.set_most(Some(2));
        assert!(devices.has_room_for(2) && !devices.has_room_for(3) && !devices.has_room_for(usize::MAX));
        assert!(devices.create("a1", "SN01", "", 0).is_some());
        assert!(Names::create(&mut devices, "a1", "SN02", 0));
        assert!(devices.create("a2", "SN01", "", 0).is_none());
        assert!(!Names::create(&mut devices, "a1", "SN03", 0));
        devices.remove("a1", "SN01");
        assert!(devices.create("a2", "SN01", "", 0).is_some());
        assert_eq!(devices.len(), 2);
    }

    #[test]
    fn the_status_is_the_worst_one_that_applies() {
        let mut devices = Devices::new(1);
        devices.create("a1", "SN01", "", 0).unwrap();
        let session = Arc::new(Notify::new());
        let mut status = |change: &dyn Fn(&mut Device)| {
            devices.change("a1", "SN01", change);
            devices.get("a1", "SN01").unwrap().status()
        };
        assert_eq!(status(&|_| {}), "UNACTIVE");
        assert_eq!(status(&|device| device.sign_in(0)), "OFFLINE");
        assert_eq!(status(&|device| device.begin(session.clone())), "ONLINE");
        assert_eq!(status(&|device| device.sign_out(&Arc::new(Notify::new()))), "ONLINE");
        assert_eq!(status(&|device| device.sign_out(&session)), "OFFLINE");
        assert_eq!(status(&Device::disable), "DISABLE");
    }
}
