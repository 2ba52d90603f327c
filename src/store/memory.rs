//! A store in memory, for tests that run in virtual time: what it is told is
//! durable at once, and outlives whoever told it.

use std::{
    collections::HashMap,
    future::{pending, ready},
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering},
    },
};

use super::*;

#[derive(Default)]
struct Tables {
    devices: HashMap<DeviceId, DeviceRow>,
    journal: HashMap<DeviceId, JournalEntry>,
}

/// One process's hold of the tables.
#[derive(Clone, Default)]
pub(crate) struct Memory {
    tables: Arc<Mutex<Tables>>,
    dead: Arc<AtomicBool>,
}

impl Memory {
    pub(crate) fn insert(&self, row: DeviceRow) {
        self.tables().devices.insert(row.id.clone(), row);
    }

    pub(crate) fn row(&self, id: &DeviceId) -> Option<DeviceRow> {
        self.tables().devices.get(id).cloned()
    }

    /// Ends the process that has it: nothing of it is carried out any more. The
    /// next process has the tables as they are.
    pub(crate) fn kill(&mut self) {
        self.dead.store(true, Ordering::Relaxed);
        self.dead = Arc::default();
    }

    fn tables(&self) -> MutexGuard<'_, Tables> {
        self.tables.lock().unwrap()
    }

    fn answer<'a, T: Send + 'a>(
        &self,
        work: impl FnOnce(&mut Tables) -> Result<T, StoreError>,
    ) -> StoreFuture<'a, T> {
        if self.dead.load(Ordering::Relaxed) {
            Box::pin(pending())
        } else {
            Box::pin(ready(work(&mut self.tables())))
        }
    }
}

fn absent() -> StoreError {
    StoreError::Failed("not in the table".into())
}

impl Store for Memory {
    fn device<'a>(&'a self, id: &'a DeviceId) -> StoreFuture<'a, Option<DeviceRow>> {
        self.answer(|tables| Ok(tables.devices.get(id).cloned()))
    }

    fn individual_key<'a>(&'a self, _: &'a str) -> StoreFuture<'a, Option<IndividualKey>> {
        self.answer(|_| Ok(None))
    }

    fn record_issue<'a>(&'a self, id: &'a DeviceId, at: UnixSeconds) -> StoreFuture<'a, Issue> {
        self.answer(|tables| {
            let row = tables.devices.get_mut(id).ok_or_else(absent)?;
            let is_first = row.first_issued.is_none();
            Ok(Issue { first: *row.first_issued.get_or_insert(at), is_first })
        })
    }

    fn open_journal<'a>(&'a self, entry: &'a JournalEntry) -> StoreFuture<'a, ()> {
        self.answer(|tables| {
            tables.journal.insert(entry.device.clone(), entry.clone());
            Ok(())
        })
    }

    fn open_journal_entries(&self) -> StoreFuture<'_, Vec<JournalEntry>> {
        self.answer(|tables| {
            let mut entries: Vec<_> = tables.journal.values().cloned().collect();
            entries.sort_by(|one, other| one.device.cmp(&other.device));
            Ok(entries)
        })
    }

    fn store_registration<'a>(
        &'a self,
        id: &'a DeviceId,
        registration: &'a Registration,
    ) -> StoreFuture<'a, ()> {
        self.answer(|tables| {
            let row = tables.devices.get_mut(id).ok_or_else(absent)?;
            match &row.certificate {
                Some(known) if *known != registration.certificate => {
                    return Err(StoreError::Failed("another certificate is there".into()));
                }
                _ => row.certificate = Some(registration.certificate.clone()),
            }
            tables.journal.remove(id);
            Ok(())
        })
    }

    fn store_refusal<'a>(&'a self, id: &'a DeviceId, reason: &'a str) -> StoreFuture<'a, ()> {
        self.answer(|tables| {
            tables.devices.get_mut(id).ok_or_else(absent)?.refusal = Some(reason.to_owned());
            tables.journal.remove(id);
            Ok(())
        })
    }

    fn set_state<'a>(&'a self, id: &'a DeviceId, state: DeviceState) -> StoreFuture<'a, bool> {
        self.answer(|tables| Ok(tables.devices.get_mut(id).map(|row| row.state = state).is_some()))
    }

    fn reset<'a>(&'a self, id: &'a DeviceId) -> StoreFuture<'a, bool> {
        self.answer(|tables| {
            let row = tables.devices.get_mut(id);
            Ok(row.map(|row| (row.first_issued, row.refusal) = (None, None)).is_some())
        })
    }

    fn delete<'a>(&'a self, id: &'a DeviceId) -> StoreFuture<'a, bool> {
        self.answer(|tables| Ok(tables.devices.remove(id).is_some()))
    }
}
