//! What the console asks of a table besides what requests ask of it: whole files and
//! whole counts, on a thread where that may block.

use crate::{
    store::{Bulk, ImportReport, Store, StoreError, Totals},
    table_file::{self, Import, ImportFileError},
};

/// A store, as the console sees it.
pub trait Table: Store {
    /// Imports a CSV file of this name that is in memory, all of it or nothing. Blocks.
    fn import_csv(&self, name: &str, csv: &[u8], how: Import<'_>) -> Result<ImportReport, ImportFileError>;

    /// How far each enrollment has come. Blocks, and reads the whole table.
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
