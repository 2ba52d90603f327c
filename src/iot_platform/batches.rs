//! Model of the cloud's batches, for the simulator and test doubles. A batch first checks its
//! names, and then creates its devices. Each step takes some time. This module performs no I/O: the
//! time is an argument, and the caller provides the devices.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    time::Duration,
};

use serde::{Deserialize, Serialize};

use super::{ApplyId, BatchProgress, BatchStatus};
use crate::device::is_device_name;

/// First `ApplyId`. It is about as large as the `ApplyId`s of the real cloud.
const FIRST: u64 = 1_295_006;
/// Maximum number of batches. At the maximum, a new batch replaces the oldest batch that has no
/// step in progress. If every batch has a step in progress, the new batch replaces the oldest one.
const MAX_BATCHES: usize = 1000;

/// Devices on which the batches work.
pub(crate) trait Names {
    /// Returns whether the product has a device with this name.
    fn is_taken(&self, product_key: &str, device_name: &str) -> bool;

    /// Creates a device at the time `now_ms`. Returns false if the name is taken.
    fn create(&mut self, product_key: &str, device_name: &str, now_ms: i64) -> bool;
}

/// `Code` of the business level with which a call about a batch is refused.
pub(crate) type Refused = &'static str;

/// All batches of an account.
#[derive(Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Batches {
    batches: BTreeMap<u64, Batch>,
    /// Number of batches so far.
    count: u64,
    #[serde(skip)]
    changes: u64,
}

/// One batch.
#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Batch {
    product_key: String,
    stage: Stage,
}

#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
enum Stage {
    /// The check ends at `due`, in milliseconds since 1970.
    Check {
        names: Vec<String>,
        due: i64,
    },
    Checked {
        valid: Vec<String>,
        invalid: Vec<String>,
    },
    /// The creation ends at `due`, in milliseconds since 1970.
    Create {
        names: Vec<String>,
        due: i64,
    },
    Created {
        valid: Vec<String>,
        invalid: Vec<String>,
    },
}

impl Stage {
    fn due(&self) -> Option<i64> {
        match self {
            Self::Check { due, .. } | Self::Create { due, .. } => Some(*due),
            Self::Checked { .. } | Self::Created { .. } => None,
        }
    }
}

impl Batches {
    /// Returns the number of steps that have started or ended.
    #[cfg(feature = "simulation")]
    pub(crate) fn changes(&self) -> u64 {
        self.changes
    }

    /// Sets the number of batches so far. The next `ApplyId` follows from this number.
    #[cfg(feature = "simulation")]
    pub(crate) fn number_from(&mut self, count: u64) {
        self.count = count;
    }

    /// Deletes all batches.
    #[cfg(feature = "simulation")]
    pub(crate) fn clear(&mut self) {
        self.batches.clear();
        self.changes += 1;
    }

    /// Ends the steps that are due, in the order in which they are due.
    pub(crate) fn advance(&mut self, names: &mut impl Names, now_ms: i64) {
        let due: BTreeSet<(i64, u64)> = self
            .batches
            .iter()
            .filter_map(|(id, batch)| batch.stage.due().map(|due| (due, *id)))
            .filter(|(due, _)| *due <= now_ms)
            .collect();
        for (at, id) in &due {
            if let Some(batch) = self.batches.get_mut(id) {
                batch.end_step(names, *at);
                self.changes += 1;
            }
        }
    }

    /// Starts the first step (`BatchCheckDeviceNames`).
    pub(crate) fn check(
        &mut self,
        product_key: &str,
        names: Vec<String>,
        now_ms: i64,
        delay: Duration,
    ) -> ApplyId {
        if self.batches.len() >= MAX_BATCHES {
            let ended = self.batches.iter().find(|(_, batch)| batch.stage.due().is_none());
            let oldest = ended.or(self.batches.first_key_value()).map(|(id, _)| *id);
            oldest.and_then(|id| self.batches.remove(&id));
        }
        let id = FIRST + self.count;
        self.count += 1;
        self.changes += 1;
        let stage = Stage::Check { names, due: after(now_ms, delay) };
        self.batches.insert(id, Batch { product_key: product_key.to_owned(), stage });
        ApplyId(id)
    }

    /// Starts the second step (`BatchRegisterDeviceWithApplyId`) if the first step has succeeded.
    pub(crate) fn register(
        &mut self,
        product_key: &str,
        apply_id: ApplyId,
        now_ms: i64,
        delay: Duration,
    ) -> Result<(), Refused> {
        self.of(product_key, apply_id)?;
        let batch = self.batches.get_mut(&apply_id.0).ok_or("iot.device.DeviceApplyIsNotFound")?;
        match &mut batch.stage {
            Stage::Checked { valid, invalid } if invalid.is_empty() => {
                batch.stage = Stage::Create { names: std::mem::take(valid), due: after(now_ms, delay) };
                self.changes += 1;
                Ok(())
            }
            Stage::Create { .. } => Err("iot.device.CreateDeviceTaskIsRunning"),
            Stage::Check { .. } | Stage::Checked { .. } | Stage::Created { .. } => {
                Err("iot.device.ApplyManyDevicesFailed")
            }
        }
    }

    /// Returns the status of a batch (`QueryBatchRegisterDeviceStatus`).
    pub(crate) fn progress(&self, product_key: &str, apply_id: ApplyId) -> Result<BatchProgress, Refused> {
        let (status, lists) = match &self.of(product_key, apply_id)?.stage {
            Stage::Check { .. } => (BatchStatus::Check, None),
            Stage::Create { .. } => (BatchStatus::Create, None),
            Stage::Checked { valid, invalid } => {
                let failed = !invalid.is_empty();
                let status = if failed { BatchStatus::CheckFailed } else { BatchStatus::CheckSuccess };
                (status, Some((valid, invalid)))
            }
            Stage::Created { valid, invalid } => {
                let failed = valid.is_empty();
                let status = if failed { BatchStatus::CreateFailed } else { BatchStatus::CreateSuccess };
                (status, Some((valid, invalid)))
            }
        };
        let (valid, invalid) =
            lists.map_or_else(Default::default, |(valid, invalid)| (valid.clone(), invalid.clone()));
        Ok(BatchProgress { status, valid, invalid })
    }

    /// Returns the product of a batch and the names of the created devices, in the order of the
    /// request. There are no names before the second step has ended.
    pub(crate) fn created(&self, apply_id: ApplyId) -> Result<(&str, &[String]), Refused> {
        let batch = self.batches.get(&apply_id.0).ok_or("iot.device.DeviceApplyIsNotFound")?;
        let names: &[String] = match &batch.stage {
            Stage::Created { valid, .. } => valid,
            _ => &[],
        };
        Ok((&batch.product_key, names))
    }

    fn of(&self, product_key: &str, apply_id: ApplyId) -> Result<&Batch, Refused> {
        let batch = self.batches.get(&apply_id.0).ok_or("iot.device.DeviceApplyIsNotFound")?;
        match batch.product_key == product_key {
            true => Ok(batch),
            // The misspelling in this code is the cloud's own.
            false => Err("iot.device.IncorrentDeviceApplyInfo"),
        }
    }
}

impl Batch {
    fn end_step(&mut self, devices: &mut impl Names, now_ms: i64) {
        let product_key = &self.product_key;
        match &mut self.stage {
            Stage::Check { names, .. } => {
                let mut seen = HashSet::new();
                let (valid, invalid) = std::mem::take(names).into_iter().partition(|name| {
                    seen.insert(name.clone()) && is_device_name(name) && !devices.is_taken(product_key, name)
                });
                self.stage = Stage::Checked { valid, invalid };
            }
            Stage::Create { names, .. } => {
                let (valid, invalid) = std::mem::take(names)
                    .into_iter()
                    .partition(|name| devices.create(product_key, name, now_ms));
                self.stage = Stage::Created { valid, invalid };
            }
            Stage::Checked { .. } | Stage::Created { .. } => {}
        }
    }
}

fn after(now_ms: i64, delay: Duration) -> i64 {
    now_ms.saturating_add(i64::try_from(delay.as_millis()).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Names for BTreeSet<String> {
        fn is_taken(&self, _: &str, device_name: &str) -> bool {
            self.contains(device_name)
        }

        fn create(&mut self, _: &str, device_name: &str, _: i64) -> bool {
            self.insert(device_name.to_owned())
        }
    }

    const DELAY: Duration = Duration::from_millis(100);

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|&name| name.to_owned()).collect()
    }

    fn status(batches: &Batches, id: ApplyId) -> BatchStatus {
        batches.progress("a1", id).unwrap().status
    }

    #[test]
    fn each_step_takes_its_time_and_nothing_exists_before_the_second_has_ended() {
        let (mut batches, mut devices) = (Batches::default(), BTreeSet::new());
        let id = batches.check("a1", names(&["SN02", "SN01"]), 0, DELAY);
        batches.advance(&mut devices, 99);
        assert_eq!(status(&batches, id), BatchStatus::Check);
        batches.advance(&mut devices, 100);
        assert_eq!(status(&batches, id), BatchStatus::CheckSuccess);
        assert!(devices.is_empty());

        batches.register("a1", id, 200, DELAY).unwrap();
        batches.advance(&mut devices, 299);
        assert_eq!(status(&batches, id), BatchStatus::Create);
        assert_eq!(batches.register("a1", id, 299, DELAY), Err("iot.device.CreateDeviceTaskIsRunning"));
        assert!(devices.is_empty() && batches.created(id).unwrap().1.is_empty());
        batches.advance(&mut devices, 300);
        let expected = names(&["SN02", "SN01"]);
        let progress = batches.progress("a1", id).unwrap();
        assert_eq!((progress.status, &progress.valid), (BatchStatus::CreateSuccess, &expected));
        assert_eq!(batches.created(id).unwrap(), ("a1", &expected[..]));
        assert_eq!(batches.register("a1", id, 300, DELAY), Err("iot.device.ApplyManyDevicesFailed"));
    }

    #[test]
    fn one_name_that_may_not_be_registered_fails_the_check_of_all() {
        let (mut batches, mut devices) = (Batches::default(), BTreeSet::from(["SN01".to_owned()]));
        let asked = names(&["SN01", "SN02", "SN02", "S", "SN 3", "SN04"]);
        let id = batches.check("a1", asked, 0, DELAY);
        assert_eq!(batches.register("a1", id, 0, DELAY), Err("iot.device.ApplyManyDevicesFailed"));
        batches.advance(&mut devices, 100);
        let progress = batches.progress("a1", id).unwrap();
        assert_eq!(progress.status, BatchStatus::CheckFailed);
        assert_eq!(progress.valid, names(&["SN02", "SN04"]));
        assert_eq!(progress.invalid, names(&["SN01", "SN02", "S", "SN 3"]));
        assert_eq!(batches.register("a1", id, 100, DELAY), Err("iot.device.ApplyManyDevicesFailed"));
    }

    #[test]
    fn a_name_that_is_taken_meanwhile_is_invalid_and_the_others_are_created() {
        for (taken, status) in
            [(&["SN01"][..], BatchStatus::CreateSuccess), (&["SN01", "SN02"], BatchStatus::CreateFailed)]
        {
            let (mut batches, mut devices) = (Batches::default(), BTreeSet::new());
            let id = batches.check("a1", names(&["SN01", "SN02"]), 0, DELAY);
            batches.advance(&mut devices, 100);
            batches.register("a1", id, 100, DELAY).unwrap();
            devices.extend(names(taken));
            batches.advance(&mut devices, 200);
            let progress = batches.progress("a1", id).unwrap();
            assert_eq!((progress.status, progress.invalid), (status, names(taken)));
        }
    }

    #[test]
    fn a_batch_is_of_its_product() {
        let mut batches = Batches::default();
        let id = batches.check("a1", names(&["SN01"]), 0, DELAY);
        assert_eq!(batches.progress("a2", id).unwrap_err(), "iot.device.IncorrentDeviceApplyInfo");
        assert_eq!(batches.register("a2", id, 0, DELAY), Err("iot.device.IncorrentDeviceApplyInfo"));
        assert_eq!(batches.progress("a1", ApplyId(1)).unwrap_err(), "iot.device.DeviceApplyIsNotFound");
    }

    #[test]
    fn batches_never_grow_without_bound() {
        let mut batches = Batches::default();
        let first = batches.check("a1", names(&["SN01"]), 0, Duration::ZERO);
        for _ in 0..MAX_BATCHES {
            batches.check("a1", names(&["SN01"]), 0, DELAY);
        }
        assert_eq!(batches.batches.len(), MAX_BATCHES);
        assert!(batches.progress("a1", first).is_err());
    }
}
