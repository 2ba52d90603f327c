//! What the console asks of a table besides what requests ask of it: whole files and
//! whole counts, on a thread where that may block.

use crate::{
    store::{Bulk, ImportReport, Store, StoreError, Totals},
    table_file::{self, Enrollments, ImportFileError},
};

/// A store, as the console sees it.
pub trait Table: Store {
    /// Imports a CSV file that is in memory, all of it or nothing. Blocks.
    fn import_csv(
        &self,
        csv: &[u8],
        enrollments: &Enrollments,
        dry_run: bool,
    ) -> Result<ImportReport, ImportFileError>;

    /// How far each enrollment has come. Blocks, and reads the whole table.
    fn totals(&self) -> Result<Vec<Totals>, StoreError>;
}

impl<S: Store + Bulk> Table for S {
    fn import_csv(
        &self,
        csv: &[u8],
        enrollments: &Enrollments,
        dry_run: bool,
    ) -> Result<ImportReport, ImportFileError> {
        let length = csv.len() as u64;
        table_file::import(self, csv, length, "the file".as_ref(), enrollments, dry_run, |_, _| ())
    }

    fn totals(&self) -> Result<Vec<Totals>, StoreError> {
        Bulk::totals(self)
    }
}
