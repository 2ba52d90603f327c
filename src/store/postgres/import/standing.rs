//! Reads the table for the check of an import. The data about some hundred rows is read at once.

use std::{cell::RefCell, collections::HashMap};

use super::super::{
    engine::Blocking,
    failure::Failure,
    read::{self, device_columns},
    session::{Session, column, values},
    unfinished::Turn,
};
use crate::{
    device::DeviceId,
    store::{DeviceRow, ImportRow, StoreError, check::Standing, merge, roll::DeviceKeys},
};

/// View of the table for the check of an import. The data about the expected rows is read at once.
pub(super) struct View<'s> {
    session: &'s Blocking,
    /// Turn of the import, which must not seem idle for long.
    turn: Option<&'s Turn>,
    expected: RefCell<Expected>,
}

/// The table's data about some rows. An entry of `None` says that the table has nothing about a row.
#[derive(Default)]
pub(super) struct Expected {
    pub(super) devices: HashMap<DeviceId, Option<DeviceRow>>,
    pub(super) keys: HashMap<DeviceId, Option<DeviceKeys>>,
    /// Devices by PSK identity, and their keys.
    pub(super) owners: HashMap<String, Option<(String, DeviceKeys)>>,
    /// Devices by product and name.
    pub(super) names: HashMap<(String, String), Option<DeviceId>>,
    pub(super) iot_ids: HashMap<String, Option<DeviceId>>,
}

impl Expected {
    /// Reads what the table has about rows.
    pub(super) async fn read(session: &Session, rows: &[(u64, ImportRow)]) -> Result<Self, Failure> {
        const DEVICES: &str =
            concat!("SELECT ", device_columns!(), " FROM device_table d WHERE d.deviceId = ANY ($1)");
        const KEYS: &str = "SELECT deviceId, pskIdentity, psk, pskNext, pskUsed, pskNextUsed FROM device_key \
                            WHERE deviceId = ANY ($1) OR pskIdentity = ANY ($2)";
        const NAMES: &str = "SELECT deviceId, productKey, name FROM device_table WHERE name = ANY ($1)";
        const IOT_IDS: &str = "SELECT deviceId, IotId FROM device_table WHERE IotId = ANY ($1)";
        let mut all = Self::default();
        let ids: Vec<&str> = rows.iter().map(|(_, row)| row.device.as_str()).collect();
        all.devices.extend(rows.iter().map(|(_, row)| (row.device.clone(), None)));
        for row in session.rows(DEVICES, values![ids]).await? {
            let row = read::device_row(&row)?;
            all.devices.insert(row.id.clone(), Some(row));
        }
        all.keys.extend(rows.iter().map(|(_, row)| (row.device.clone(), None)));
        let identities: Vec<&str> =
            rows.iter().filter_map(|(_, row)| Some(row.key.as_ref()?.0.as_str())).collect();
        all.owners.extend(identities.iter().map(|identity| ((*identity).to_owned(), None)));
        for row in session.rows(KEYS, values![ids, identities]).await? {
            let (owner, keys): (String, DeviceKeys) = (column(&row, 0)?, read::keys(&row, 1)?);
            if let Some(known) = DeviceId::parse_sn(&owner).ok().and_then(|id| all.keys.get_mut(&id)) {
                *known = Some(keys.clone());
            }
            all.owners.insert(keys.identity.clone(), Some((owner, keys)));
        }
        for (_, row) in rows {
            let stored = all.devices.get(&row.device).and_then(Option::as_ref);
            let change = match stored {
                None => Some(merge::new_device(row)),
                // For a row that is in conflict, no name is read. The name does not depend on the
                // comparison of the secret, so `true` stands for its result.
                Some(stored) => {
                    merge::known_device(stored, row, true).ok().flatten().map(|change| change.columns)
                }
            };
            let Some(columns) = change else { continue };
            let name = merge::name_of(&row.device, &columns);
            all.names.insert((columns.product_key.to_owned(), name), None);
            all.iot_ids.extend(columns.iot_id.map(|iot_id| (iot_id.to_owned(), None)));
        }
        let names: Vec<&str> = all.names.keys().map(|(_, name)| name.as_str()).collect();
        for row in session.rows(NAMES, values![names]).await? {
            let key = (column(&row, 1)?, column(&row, 2)?);
            all.names.insert(key, Some(read::id(&row, 0)?));
        }
        let iot_ids: Vec<&str> = all.iot_ids.keys().map(String::as_str).collect();
        for row in session.rows(IOT_IDS, values![iot_ids]).await? {
            all.iot_ids.insert(column(&row, 1)?, Some(read::id(&row, 0)?));
        }
        Ok(all)
    }
}

impl<'s> View<'s> {
    pub(super) fn new(session: &'s Blocking, turn: Option<&'s Turn>) -> Self {
        Self { session, turn, expected: RefCell::default() }
    }
}

impl Standing for View<'_> {
    fn expect(&self, rows: &[(u64, ImportRow)]) -> Result<(), StoreError> {
        self.turn.map_or(Ok(()), Turn::keep)?;
        let expected = self.session.run(async |session| Expected::read(session, rows).await)?;
        self.expected.replace(expected);
        Ok(())
    }

    fn device(&self, id: &DeviceId) -> Result<Option<DeviceRow>, StoreError> {
        if let Some(known) = self.expected.borrow().devices.get(id) {
            return Ok(known.clone());
        }
        self.session.run(async |session| read::device(session, id).await)
    }

    fn keys(&self, id: &DeviceId) -> Result<Option<DeviceKeys>, StoreError> {
        if let Some(known) = self.expected.borrow().keys.get(id) {
            return Ok(known.clone());
        }
        self.session.run(async |session| keys_of(session, id).await)
    }

    fn owner(&self, identity: &str) -> Result<Option<(String, DeviceKeys)>, StoreError> {
        if let Some(known) = self.expected.borrow().owners.get(identity) {
            return Ok(known.clone());
        }
        self.session.run(async |session| owner_of(session, identity).await)
    }

    fn holder_of_name(
        &self,
        device: &DeviceId,
        product_key: &str,
        name: &str,
    ) -> Result<Option<DeviceId>, StoreError> {
        let key = (product_key.to_owned(), name.to_owned());
        if let Some(known) = self.expected.borrow().names.get(&key) {
            return Ok(known.clone().filter(|holder| holder != device));
        }
        self.session.run(async |session| read::holder_of_name(session, device, product_key, name).await)
    }

    fn holder_of_iot_id(&self, device: &DeviceId, iot_id: &str) -> Result<Option<DeviceId>, StoreError> {
        if let Some(known) = self.expected.borrow().iot_ids.get(iot_id) {
            return Ok(known.clone().filter(|holder| holder != device));
        }
        self.session.run(async |session| read::holder_of_iot_id(session, device, iot_id).await)
    }
}

/// Returns the stored keys of a device.
async fn keys_of(session: &Session, device: &DeviceId) -> Result<Option<DeviceKeys>, Failure> {
    const SQL: &str =
        "SELECT pskIdentity, psk, pskNext, pskUsed, pskNextUsed FROM device_key WHERE deviceId = $1";
    session.row(SQL, values![device.as_str()]).await?.map(|row| read::keys(&row, 0)).transpose()
}

/// Returns the device to which a PSK identity belongs, and its stored keys.
async fn owner_of(session: &Session, identity: &str) -> Result<Option<(String, DeviceKeys)>, Failure> {
    const SQL: &str = "SELECT deviceId, pskIdentity, psk, pskNext, pskUsed, pskNextUsed FROM device_key WHERE pskIdentity = $1";
    let Some(row) = session.row(SQL, values![identity]).await? else { return Ok(None) };
    Ok(Some((column(&row, 0)?, read::keys(&row, 1)?)))
}
