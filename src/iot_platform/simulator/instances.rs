//! Instances of the simulated account. Each has its own products and devices, and a call names the
//! instance that it is about. This module performs no I/O except reading the state file, and knows
//! neither signatures nor MQTT.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::SocketAddr,
    path::Path,
    time::Duration,
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use sha2::{Digest, Sha256};

use super::{
    SimulatorConfig,
    account::{self, Account, State},
    actions::Failure,
    request::Parameters,
};

/// Maximum length of an instance ID, in bytes. An ID is a label of a host name.
const MAX_ID: usize = 63;
/// Distance between the first `ApplyId`s of two instances, so that no batch of one instance has the
/// `ApplyId` of a batch of the other.
const APPLY_IDS: u64 = 1_000_000;

/// Settings of an instance.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct InstanceConfig {
    /// `IotInstanceId`; empty for a public instance without an ID.
    pub id: String,
    /// `RegionId` of the calls that reach the instance. If absent, calls of every region reach it.
    pub region: Option<String>,
    /// Address at which the devices of the instance sign in. If absent, they cannot sign in.
    pub mqtt: Option<SocketAddr>,
    /// Product keys of the instance; if empty, every product key is accepted.
    pub products: Vec<String>,
    /// Maximum number of devices. If absent, there is no limit.
    pub max_devices: Option<usize>,
    /// Time after the start at which the instance expires, and is deleted with its devices. If
    /// absent, it does not expire.
    pub expires: Option<Duration>,
}

impl InstanceConfig {
    /// Returns the name of the instance in messages, in `/stats` and in the state file.
    pub fn label(&self) -> String {
        match (self.id.as_str(), &self.region) {
            ("", None) => "without an ID".into(),
            ("", Some(region)) => format!("without an ID in {region}"),
            (id, _) => id.into(),
        }
    }

    /// Returns whether no call can be about both instances.
    fn differs_from(&self, other: &Self) -> bool {
        let regions_differ = self.region.is_some() && other.region.is_some() && self.region != other.region;
        // An ID belongs to one instance of the account. Without an ID, each region has an instance.
        self.id != other.id || (self.id.is_empty() && regions_differ)
    }
}

/// Checks that each call is about at most one instance, and that each product belongs to at most
/// one instance.
///
/// # Errors
///
/// Returns a sentence that says what is wrong and what is expected.
pub(super) fn check(instances: &[InstanceConfig]) -> Result<(), String> {
    let (mut seen, mut products): (Vec<&InstanceConfig>, _) = (Vec::new(), BTreeSet::new());
    for instance in instances {
        let is_legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
        if instance.id.len() > MAX_ID || !instance.id.bytes().all(is_legal) {
            return Err(format!(
                "{:?} is not an instance ID; expected up to {MAX_ID} of A-Z a-z 0-9 - _",
                instance.id
            ));
        }
        if seen.iter().any(|other| !instance.differs_from(other)) {
            let label = instance.label();
            return Err(format!(
                "two instances are the same ({label}); expected different IDs, or without an ID different regions"
            ));
        }
        if let Some(product) = instance.products.iter().find(|product| !products.insert(*product)) {
            return Err(format!("product {product} is there twice; expected it once, in one instance"));
        }
        seen.push(instance);
    }
    Ok(())
}

/// An instance and its data.
pub(super) struct Instance {
    pub config: InstanceConfig,
    pub account: Account,
    /// Set once the instance has expired.
    is_gone: bool,
}

/// All instances of the account; at least one.
pub(super) struct Instances {
    all: Vec<Instance>,
    /// Set if there is only one instance, which takes every call, no matter which instance the call
    /// names.
    takes_all: bool,
}

/// Content of the state file of several instances, by label.
#[derive(Serialize, Deserialize)]
struct Saved {
    instances: BTreeMap<String, State>,
}

impl Instances {
    /// Makes instances without devices.
    pub fn new(config: &SimulatorConfig, seed: u64) -> Self {
        if config.instances.is_empty() {
            let only = InstanceConfig {
                mqtt: config.mqtt,
                products: config.products.clone(),
                ..InstanceConfig::default()
            };
            let only = Instance { config: only, account: Account::new(seed), is_gone: false };
            return Self { all: vec![only], takes_all: true };
        }
        let instance = |(number, config): (u64, &InstanceConfig)| {
            // Each instance has its own seed, so that devices with the same product and name get
            // different secrets in two instances.
            let seed = Sha256::new().chain_update(seed.to_be_bytes()).chain_update(config.label()).finalize();
            let mut account =
                Account::new(seed.iter().take(8).fold(0, |seed, byte| seed << 8 | u64::from(*byte)));
            account.batches.number_from(number * APPLY_IDS);
            account.devices.set_most(config.max_devices);
            Instance { config: config.clone(), account, is_gone: false }
        };
        Self { all: (0..).zip(&config.instances).map(instance).collect(), takes_all: false }
    }

    /// Reads a state file. Changes nothing if the file does not exist yet.
    pub fn load(&mut self, path: &Path) -> io::Result<()> {
        let Some(text) = account::read(path)? else { return Ok(()) };
        if self.takes_all {
            self.all[0].account.restore(parsed::<State, Saved>(&text, "it is of several instances")?);
            return Ok(());
        }
        let saved: Saved = parsed::<Saved, State>(&text, "it is of an account without several instances")?;
        for (label, state) in saved.instances {
            let Some(instance) = self.all.iter_mut().find(|instance| instance.config.label() == label) else {
                let what = format!("it has the instance {label}, which is not among the configured ones");
                return Err(io::Error::new(io::ErrorKind::InvalidData, what));
            };
            instance.account.restore(state);
        }
        Ok(())
    }

    /// Returns the content of a state file.
    pub fn to_json(&self) -> io::Result<Vec<u8>> {
        if self.takes_all {
            return self.all[0].account.to_json();
        }
        let state = |instance: &Instance| (instance.config.label(), instance.account.state());
        let saved = Saved { instances: self.all.iter().map(state).collect() };
        Ok(serde_json::to_vec_pretty(&saved)?)
    }

    /// Completes every batch step that is due at `now_ms`.
    pub fn advance(&mut self, now_ms: i64) {
        self.all.iter_mut().for_each(|instance| instance.account.advance(now_ms));
    }

    /// Returns the number of changes so far.
    pub fn changes(&self) -> u64 {
        self.all.iter().map(|instance| instance.account.changes()).sum()
    }

    /// Returns the data of the instance with this number, counted from 0 in the configured order.
    pub fn account(&mut self, number: usize) -> &mut Account {
        &mut self.all[number].account
    }

    /// Returns the settings of all instances, in order.
    pub fn configs(&self) -> impl Iterator<Item = &InstanceConfig> {
        self.all.iter().map(|instance| &instance.config)
    }

    /// Returns the number of devices of each instance, by label. The result is empty if there is
    /// only one instance that takes all calls.
    pub fn counts(&self) -> BTreeMap<String, u64> {
        let count = |instance: &Instance| (instance.config.label(), instance.account.devices.len() as u64);
        self.all.iter().filter(|_| !self.takes_all).map(count).collect()
    }

    /// Returns the number of devices of all instances.
    pub fn devices(&self) -> u64 {
        self.all.iter().map(|instance| instance.account.devices.len() as u64).sum()
    }

    /// Deletes an instance with its devices, whose connections end.
    pub fn expire(&mut self, number: usize) {
        let instance = &mut self.all[number];
        instance.is_gone = true;
        instance.account.clear();
    }

    /// Finds the instance that a call is about, by its `IotInstanceId`, and by its `RegionId` if it
    /// has one. A call without `IotInstanceId` is about the instance without an ID.
    pub fn select(&mut self, parameters: &Parameters) -> Result<&mut Instance, Failure> {
        let id = parameters.get("IotInstanceId").unwrap_or_default();
        let region = parameters.get("RegionId");
        let is_meant = |instance: &Instance| {
            let Instance { config, is_gone, .. } = instance;
            let is_in_region =
                config.region.as_deref().is_none_or(|own| region.is_none_or(|named| named == own));
            !is_gone && config.id == id && is_in_region
        };
        let takes_all = self.takes_all;
        let found = self.all.iter_mut().find(|instance| takes_all || is_meant(instance));
        // IoT Platform's documentation has no other code for a call that lacks the ID of its
        // instance.
        found.ok_or(Failure::Business {
            code: "iot.system.InstanceNotFound",
            message: "The specified instance ID does not exist.",
        })
    }
}

/// Parses a state file. If the file is of the kind `Other`, the error says `what`.
fn parsed<T: DeserializeOwned, Other: DeserializeOwned>(text: &[u8], what: &str) -> io::Result<T> {
    serde_json::from_slice(text).map_err(|error| match serde_json::from_slice::<Other>(text) {
        Ok(_) => {
            let what = format!("{what}; start the simulator with the options with which it was written");
            io::Error::new(io::ErrorKind::InvalidData, what)
        }
        Err(_) => error.into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn instance(id: &str, region: Option<&str>) -> InstanceConfig {
        InstanceConfig { id: id.into(), region: region.map(str::to_owned), ..InstanceConfig::default() }
    }

    fn instances(all: Vec<InstanceConfig>) -> Instances {
        Instances::new(&SimulatorConfig { instances: all, ..SimulatorConfig::default() }, 1)
    }

    /// Returns the label of the selected instance, or the code of the refusal.
    fn selected(instances: &mut Instances, query: &str) -> String {
        let mut parameters = Parameters::default();
        parameters.read_form(query.as_bytes()).unwrap_or_else(|_| panic!("{query}"));
        match instances.select(&parameters) {
            Ok(instance) => instance.config.label(),
            Err(Failure::Business { code, .. }) => code.into(),
            Err(Failure::Refused(refusal)) => refusal.code.into_owned(),
        }
    }

    const NOT_FOUND: &str = "iot.system.InstanceNotFound";

    #[test]
    fn a_call_is_about_the_instance_that_it_names() {
        let mut all = instances(vec![
            instance("iot-a", Some("cn-shanghai")),
            instance("iot-b", Some("eu-central-1")),
            instance("", Some("ap-northeast-1")),
        ]);
        for (query, expected) in [
            ("IotInstanceId=iot-a&RegionId=cn-shanghai", "iot-a"),
            ("IotInstanceId=iot-b&RegionId=eu-central-1", "iot-b"),
            ("IotInstanceId=iot-b", "iot-b"),
            ("IotInstanceId=iot-b&RegionId=cn-shanghai", NOT_FOUND),
            ("IotInstanceId=iot-c", NOT_FOUND),
            ("IotInstanceId=IOT-A", NOT_FOUND),
            ("RegionId=ap-northeast-1", "without an ID in ap-northeast-1"),
            ("IotInstanceId=&RegionId=ap-northeast-1", "without an ID in ap-northeast-1"),
            ("RegionId=cn-shanghai", NOT_FOUND),
        ] {
            assert_eq!(selected(&mut all, query), expected, "{query}");
        }
        let mut with_ids = instances(vec![instance("iot-a", None)]);
        assert_eq!(selected(&mut with_ids, ""), NOT_FOUND);
        // Without configured instances, there is one for all calls.
        assert_eq!(selected(&mut instances(Vec::new()), "IotInstanceId=iot-c"), "without an ID");
    }

    #[test]
    fn an_expired_instance_is_gone_with_its_devices() {
        let mut all = instances(vec![instance("iot-a", None), instance("iot-b", None)]);
        all.account(0).devices.create("a1", "SN01", "", 0).unwrap();
        all.account(1).devices.create("a1", "SN01", "", 0).unwrap();
        let before = all.changes();
        all.expire(0);
        assert!(all.changes() > before, "the state file is written");
        assert_eq!(selected(&mut all, "IotInstanceId=iot-a"), NOT_FOUND);
        assert_eq!(selected(&mut all, "IotInstanceId=iot-b"), "iot-b");
        assert_eq!((all.devices(), all.account(0).devices.len()), (1, 0));
    }

    #[test]
    fn two_instances_have_nothing_in_common() {
        let mut all = instances(vec![instance("iot-a", None), instance("iot-b", None)]);
        let mut made = |number: usize| {
            let device = all.account(number).devices.create("a1", "SN01", "", 0).unwrap();
            let (secret, iot_id) = (device.device_secret.clone(), device.iot_id.clone());
            let batch = all.account(number).batches.check("a1", vec!["SN02".into()], 0, Duration::ZERO);
            (secret, iot_id, batch)
        };
        let (first, second) = (made(0), made(1));
        assert!(first.0 != second.0 && first.1 != second.1 && first.2 != second.2);
        assert!(all.account(1).devices.get_by_iot_id(&first.1).is_none());
    }

    #[test]
    fn the_state_file_has_the_devices_of_each_instance() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.json");
        let both = vec![instance("iot-a", None), instance("", None)];
        let mut all = instances(both.clone());
        all.load(&path).unwrap();
        let secret = all.account(1).devices.create("a1", "SN01", "", 0).unwrap().device_secret.clone();
        account::write_atomically(&path, &all.to_json().unwrap()).unwrap();
        let mut again = instances(both);
        again.load(&path).unwrap();
        assert_eq!(again.account(1).devices.get("a1", "SN01").unwrap().device_secret, secret);
        assert_eq!(again.account(0).devices.len(), 0);
        let error = instances(vec![instance("iot-a", None)]).load(&path).unwrap_err().to_string();
        assert!(error.contains("the instance without an ID, which is not among"), "{error}");
        let error = instances(Vec::new()).load(&path).unwrap_err().to_string();
        assert!(error.contains("it is of several instances; start"), "{error}");
        account::write_atomically(&path, &instances(Vec::new()).to_json().unwrap()).unwrap();
        let error = instances(vec![instance("iot-a", None)]).load(&path).unwrap_err().to_string();
        assert!(error.contains("without several instances; start"), "{error}");
        account::write_atomically(&path, b"[1, 2").unwrap();
        assert!(instances(vec![instance("iot-a", None)]).load(&path).is_err());
    }

    #[test]
    fn instances_that_one_call_could_mean_are_refused() {
        let product =
            |id: &str, product: &str| InstanceConfig { products: vec![product.into()], ..instance(id, None) };
        for (all, expected) in [
            (vec![instance("iot-a", None), instance("iot-a", Some("cn-shanghai"))], "the same (iot-a)"),
            (vec![instance("iot-a", Some("r1")), instance("iot-a", Some("r2"))], "the same (iot-a)"),
            (vec![instance("", None), instance("", Some("r1"))], "the same (without an ID in r1)"),
            (vec![instance("", Some("r1")), instance("", Some("r1"))], "the same"),
            (vec![product("iot-a", "a1"), product("iot-b", "a1")], "product a1 is there twice"),
            (vec![instance("iot a", None)], "is not an instance ID"),
            (vec![instance("iot.a", None)], "is not an instance ID"),
            (vec![instance(&"a".repeat(64), None)], "is not an instance ID"),
        ] {
            let error = check(&all).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
        let different = [
            instance("", Some("r1")),
            instance("", Some("r2")),
            product("iot-a", "a1"),
            product("iot-b", "a2"),
        ];
        assert_eq!(check(&different), Ok(()));
    }
}
