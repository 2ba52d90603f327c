//! Store operations for the console: importing a file and counting the whole table. They block,
//! so the caller runs them on a thread for blocking work.

use crate::{
    store::{Bulk, ImportReport, Store, StoreError, Totals},
    table_file::{self, Import, ImportFileError},
};

/// A store with the operations of the console.
pub trait Table: Store {
    /// Imports a CSV file from memory, completely or not at all. Blocks. `name` is the
    /// file's name, for errors and the audit log.
    fn import_csv(&self, name: &str, csv: &[u8], how: Import<'_>) -> Result<ImportReport, ImportFileError>;

    /// Counts the devices of each enrollment by state. Blocks, and reads the whole table.
    fn totals(&self) -> Result<Vec<Totals>, StoreError>;
}

impl<S: Store + Bulk> Table for S {
    fn import_csv(&self, name: &str, csv: &[u8], how: Import<'_>) -> Result<ImportReport, ImportFileError> {
        table_file::import(self, csv, csv.len() as u64, name.as_ref(), how, |_, _| ())
    }

    fn totals(&self) -> Result<Vec<Totals>, StoreError> {
        Bulk::totals(self)
    }
}
