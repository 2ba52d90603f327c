//! Looks up all registered devices at IoT Platform, a hundred per call. A sweep updates the
//! stored `activateTime` and `registerTime`, and notices devices that were disabled or deleted at
//! IoT Platform.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Weak},
};

use super::{Registrar, breaker::Scope, registration::scope};
use crate::{
    device::DeviceId,
    iot_platform::{Action, ApiError, CloudDevice, ErrorClass, MAX_QUERY},
    store::{CloudState, DeviceRow, Sighting, StoreError},
};

/// Name of the lease that lets only one process sweep at a time.
const LEASE: &str = "sweep";
/// Maximum number of rows that one read of the store returns.
const ROWS: usize = 500;

/// Result of a sweep.
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

impl Registrar {
    /// Starts a task that repeats sweeps, with a pause before each, until the registrar is
    /// dropped.
    pub fn start_sweeps(self: &Arc<Self>) {
        let Some(pause) = self.config.sweep_pause else { return };
        let registrar: Weak<Self> = Arc::downgrade(self);
        self.runtime.spawn(async move {
            loop {
                tokio::time::sleep(pause).await;
                let Some(registrar) = registrar.upgrade() else { return };
                match registrar.sweep().await {
                    Ok(Swept { devices, changed, failed }) => {
                        tracing::debug!(devices, changed, failed, "looked up the devices at IoT Platform");
                    }
                    Err(error) => {
                        tracing::warn!(%error, "could not look up the devices at IoT Platform")
                    }
                }
            }
        });
    }

    /// Makes one sweep, unless another process is sweeping. If the last sweep ended early because
    /// its process ended, continues that sweep.
    pub async fn sweep(&self) -> Result<Swept, StoreError> {
        let sweep = async |cursor: String| self.sweep_from(DeviceId::parse_sn(&cursor).ok()).await;
        let swept = self.with_lease(LEASE, sweep).await?;
        if swept.is_none() {
            tracing::debug!("another process looks up the devices at IoT Platform");
        }
        Ok(swept.unwrap_or_default())
    }

    /// Sweeps over the devices that follow `after`, or over all devices.
    async fn sweep_from(&self, mut after: Option<DeviceId>) -> Result<Swept, StoreError> {
        let mut swept = Swept::default();
        let mut gathered: HashMap<String, Vec<DeviceRow>> = HashMap::new();
        // A refusal that only the operator can remove is logged once per sweep, and not for each
        // hundred devices.
        let mut refused: HashSet<Scope> = HashSet::new();
        while !refused.contains(&Scope::Action(Action::BatchQueryDeviceDetail)) {
            let rows = self.store.rows_after(after.as_ref(), ROWS).await?;
            let Some(last) = rows.last() else { break };
            let cursor = last.id.clone();
            for row in rows.into_iter().filter(|row| row.certificate.is_some()) {
                let list = gathered.entry(row.product_key.clone()).or_default();
                list.push(row);
                if list.len() == MAX_QUERY {
                    let list = std::mem::take(list);
                    self.look_at(&list, &mut swept, &mut refused).await?;
                }
            }
            // The new cursor is already beyond the few devices that are gathered but not yet looked
            // up. If this process ends now, these devices are looked up only in the next sweep.
            self.store.set_cursor(self.owner.id, LEASE, cursor.as_str()).await?;
            after = Some(cursor);
            // Without this yield, a sweep over many rows without certificates would occupy the
            // thread.
            tokio::task::yield_now().await;
        }
        for list in gathered.into_values() {
            self.look_at(&list, &mut swept, &mut refused).await?;
        }
        self.store.set_cursor(self.owner.id, LEASE, "").await?;
        Ok(swept)
    }

    /// Looks up at most [`MAX_QUERY`] devices of one product, unless the cloud already refuses
    /// calls for the product or the account.
    async fn look_at(
        &self,
        rows: &[DeviceRow],
        swept: &mut Swept,
        refused: &mut HashSet<Scope>,
    ) -> Result<(), StoreError> {
        let Some(product_key) = rows.first().map(|row| row.product_key.as_str()) else { return Ok(()) };
        if [Scope::Action(Action::BatchQueryDeviceDetail), Scope::Product(product_key.to_owned())]
            .iter()
            .any(|scope| refused.contains(scope))
        {
            swept.failed += rows.len() as u64;
            return Ok(());
        }
        let names: Vec<String> = rows.iter().filter_map(|row| row.device_name.clone()).collect();
        swept.devices += rows.len() as u64;
        let found = self
            .persist(Action::BatchQueryDeviceDetail, || {
                self.cloud.batch_query_device_detail(product_key, &names)
            })
            .await;
        let found: HashMap<String, CloudDevice> = match found {
            Ok(found) => {
                found.into_iter().map(|device| (device.certificate.device_name.clone(), device)).collect()
            }
            Err(error) => {
                tracing::warn!(product_key, %error, "could not look up devices");
                swept.failed += rows.len() as u64;
                if error.class == ErrorClass::Operator {
                    refused.insert(scope(product_key, Action::BatchQueryDeviceDetail, &error));
                }
                return Ok(());
            }
        };
        for row in rows {
            let Some(name) = &row.device_name else { continue };
            let sighting = match found.get(name) {
                Some(device) => seen(device),
                None => match self.find_missing(product_key, name).await {
                    Ok(None) => Sighting { state: Some(CloudState::Deleted), ..Sighting::default() },
                    Ok(Some(device)) => seen(&device),
                    Err(error) => {
                        tracing::warn!(device = %row.id, %error, "could not look up a device");
                        swept.failed += 1;
                        continue;
                    }
                },
            };
            let activated = row.activated.or(sighting.activated);
            let registered = sighting.registered.or(row.registered);
            if (activated, registered, sighting.state) != (row.activated, row.registered, row.cloud_state) {
                if let Some(state) = sighting.state.filter(|state| Some(*state) != row.cloud_state) {
                    tracing::warn!(device = %row.id, ?state, "a device was disabled, enabled or deleted at IoT Platform; see `certdist device show`");
                }
                self.store.store_sighting(row, sighting).await?;
                swept.changed += 1;
            }
        }
        Ok(())
    }

    /// Looks up one name that was missing when IoT Platform was asked for a list of names. Returns
    /// `None` if the device has been deleted.
    async fn find_missing(&self, product_key: &str, name: &str) -> Result<Option<CloudDevice>, ApiError> {
        let found = self
            .persist(Action::QueryDeviceDetail, || self.cloud.query_device_detail(product_key, name))
            .await;
        match found {
            Ok(device) => Ok(Some(device)),
            Err(error) if error.class == ErrorClass::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}

fn seen(device: &CloudDevice) -> Sighting {
    Sighting {
        registered: device.created,
        activated: device.activated,
        state: device.disabled.then_some(CloudState::Disabled),
    }
}
