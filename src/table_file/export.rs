//! Forms of an export: certdist's own form, which an import can read, and Tablestore's form.
//! Decides which cells a spreadsheet would interpret as a formula.

use std::{borrow::Cow, io, ops::ControlFlow};

use csv::{QuoteStyle, WriterBuilder};

use super::COLUMNS;
use crate::{
    device::Secret,
    store::{Bulk, DeviceRow, StoreError, UnixSeconds, roll::DeviceKeys},
};

/// Columns of the Tablestore table `device_table`, in the order of `schema.sql`.
pub const TABLESTORE_COLUMNS: [&str; 7] =
    ["deviceId", "registerTime", "activateTime", "productKey", "deviceName", "deviceSecret", "IotId"];

/// Index of the PSK identity in [`COLUMNS`].
pub(super) const IDENTITY: usize = 6;

/// Indexes of the columns that an export may lack.
const NEXT: usize = 8;
const TARGET: usize = 9;

/// First characters of cells that a spreadsheet may interpret as formulas: the characters of
/// OWASP's page on CSV injection, and their full-width forms.
const FORMULA: [char; 11] = ['=', '+', '-', '@', '\t', '\r', '\n', '＝', '＋', '－', '＠'];

/// Mark that an export puts before a cell that a spreadsheet would interpret as a formula.
const MARK: char = '\'';

/// Form of an export.
#[derive(Debug, Clone, Copy, Default)]
pub struct Form {
    /// Set to write Tablestore's columns instead of certdist's own.
    pub tablestore: bool,
    /// Set to mark cells that a spreadsheet would interpret as a formula, and to quote every cell.
    pub for_spreadsheet: bool,
}

/// Error of an export.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The output could not be written.
    #[error("could not write the export")]
    Write(#[from] io::Error),
}

/// Writes the whole table, in order of device ID, in the form that
/// [`import_file`](super::import_file) reads. Returns the number of rows. The output contains all
/// secrets.
pub fn export_file(store: &dyn Bulk, writer: impl io::Write) -> Result<u64, ExportError> {
    export_as(store, Form::default(), writer)
}

/// Takes the system's error out of an error of the crate `csv`. The crate's own conversion would
/// hide the system's error.
fn unwrapped(error: csv::Error) -> io::Error {
    match error.into_kind() {
        csv::ErrorKind::Io(error) => error,
        other => io::Error::other(format!("{other:?}")),
    }
}

/// Writes the whole table like [`export_file`], in the given form.
pub fn export_as(store: &dyn Bulk, form: Form, writer: impl io::Write) -> Result<u64, ExportError> {
    let quotes = if form.for_spreadsheet { QuoteStyle::Always } else { QuoteStyle::Necessary };
    let mut writer = WriterBuilder::new().quote_style(quotes).from_writer(writer);
    // Without targets and second keys, an export has the columns that it had before there were any.
    let (has_target, has_next) = (!store.targets()?.is_empty(), store.are_rolling()?);
    let is_there = |column: usize| (column != NEXT || has_next) && (column != TARGET || has_target);
    let header = if form.tablestore { TABLESTORE_COLUMNS.to_vec() } else { there(COLUMNS, is_there) };
    writer.write_record(header).map_err(unwrapped)?;
    let (mut rows, mut written): (u64, Result<(), ExportError>) = (0, Ok(()));
    store.export(&mut |row: DeviceRow, keys| {
        if !form.tablestore && !has_next && keys.as_ref().is_some_and(|keys| keys.next.is_some()) {
            let reason = "a device was given a second key while the export began; export the table again";
            written = Err(StoreError::Conflict(reason.into()).into());
            return ControlFlow::Break(());
        }
        let times = form.tablestore.then(|| [row.registered, row.activated].map(seconds));
        let cells = match &times {
            Some([registered, activated]) => tablestore(&row, registered, activated).to_vec(),
            None => there(own(&row, keys.as_ref()), is_there),
        };
        let is_marked =
            |cell: &str| form.for_spreadsheet && needs_mark(cell) || !form.tablestore && has_mark(cell);
        let cells = cells.into_iter().map(|cell| match is_marked(cell) {
            true => Cow::Owned(format!("{MARK}{cell}")),
            false => Cow::Borrowed(cell),
        });
        written = writer.write_record(cells.map(Cell)).map_err(|error| unwrapped(error).into());
        if written.is_err() {
            return ControlFlow::Break(());
        }
        rows += 1;
        ControlFlow::Continue(())
    })?;
    written?;
    writer.flush()?;
    Ok(rows)
}

/// Marks a cell if a spreadsheet would interpret it as a formula.
pub(super) fn for_spreadsheet(cell: &str) -> Cow<'_, str> {
    if needs_mark(cell) { Cow::Owned(format!("{MARK}{cell}")) } else { Cow::Borrowed(cell) }
}

/// A cell, in the form that the CSV writer accepts.
struct Cell<'a>(Cow<'a, str>);

impl AsRef<[u8]> for Cell<'_> {
    fn as_ref(&self) -> &[u8] {
        self.0.as_bytes()
    }
}

/// Returns the cells of the columns that an export has.
fn there(cells: [&str; COLUMNS.len()], has: impl Fn(usize) -> bool) -> Vec<&str> {
    cells.into_iter().enumerate().filter(|(column, _)| has(*column)).map(|(_, cell)| cell).collect()
}

fn own<'a>(row: &'a DeviceRow, keys: Option<&'a DeviceKeys>) -> [&'a str; COLUMNS.len()] {
    let (identity, psk) = keys.map_or(("", ""), |keys| (&keys.identity, keys.psk.expose()));
    let next = keys.and_then(|keys| keys.next.as_ref());
    [
        row.id.as_str(),
        &row.enrollment,
        &row.product_key,
        row.device_name.as_deref().unwrap_or_default(),
        secret(row),
        row.iot_id.as_deref().unwrap_or_default(),
        identity,
        psk,
        next.map_or("", Secret::expose),
        row.target.as_deref().unwrap_or_default(),
    ]
}

fn tablestore<'a>(
    row: &'a DeviceRow,
    registered: &'a str,
    activated: &'a str,
) -> [&'a str; TABLESTORE_COLUMNS.len()] {
    [
        row.id.as_str(),
        registered,
        activated,
        &row.product_key,
        row.device_name.as_deref().unwrap_or_default(),
        secret(row),
        row.iot_id.as_deref().unwrap_or_default(),
    ]
}

fn secret(row: &DeviceRow) -> &str {
    row.certificate.as_ref().map_or("", |certificate| certificate.device_secret.expose())
}

fn seconds(time: Option<UnixSeconds>) -> String {
    time.map(|time| time.to_string()).unwrap_or_default()
}

/// Returns whether a spreadsheet would interpret a cell as a formula or drop its first character.
fn needs_mark(cell: &str) -> bool {
    cell.starts_with(FORMULA) || cell.starts_with(MARK)
}

/// Returns whether a value already begins with a mark. An import removes one mark, so an export in
/// certdist's own form adds another mark to such a value.
fn has_mark(cell: &str) -> bool {
    cell.strip_prefix(MARK).is_some_and(needs_mark)
}

/// Removes the mark of a cell. This is for PSK identities: an import leaves them unchanged in every
/// other respect. Other values lose the mark together with the blanks and quotes around them.
pub(super) fn unmarked(cell: Cow<'_, str>) -> Cow<'_, str> {
    match has_mark(&cell) {
        true => Cow::Owned(cell[MARK.len_utf8()..].to_owned()),
        false => cell,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        device::DeviceId,
        store::{
            ImportRow, Store,
            sighting::{Sighting, Sightings},
        },
        testing::store::{Memory, import},
    };

    fn exported(store: &Memory, form: Form) -> String {
        let mut text = Vec::new();
        export_as(store, form, &mut text).unwrap();
        String::from_utf8(text).unwrap()
    }

    fn row(device: &str) -> ImportRow {
        ImportRow::new(DeviceId::parse_sn(device).unwrap(), "lamp", "a1lamp")
    }

    #[test]
    fn a_cell_that_a_spreadsheet_would_run_is_marked_and_every_cell_is_quoted() {
        let store = Memory::default();
        let psk = Secret::new("00112233445566778899aabbccddeeff".into());
        let identities = ["=1+1", "+1", "-1", "@x", "\tx", "\rx", "\nx", "＝1", "'x", "a=1", "x\"y"];
        import(
            &store,
            identities.iter().enumerate().map(|(number, identity)| ImportRow {
                individual: true,
                key: Some(((*identity).to_owned(), psk.clone())),
                ..row(&format!("@SN-{number:02}"))
            }),
        );
        let text = exported(&store, Form { for_spreadsheet: true, tablestore: false });
        let cells = |text: &str| -> Vec<(String, String)> {
            let mut reader = csv::Reader::from_reader(text.as_bytes());
            reader.records().map(|row| row.unwrap()).map(|row| (row[0].into(), row[6].into())).collect()
        };
        for ((device, identity), known) in cells(&text).iter().zip(identities) {
            assert!(device.starts_with("'@SN-"), "{device}");
            let is_marked = !matches!(known, "a=1" | "x\"y");
            assert_eq!(*identity, if is_marked { format!("'{known}") } else { known.to_owned() });
        }
        let header = "\"deviceId\",\"enrollment\",\"productKey\",";
        assert!(text.starts_with(header) && text.contains(",\"x\"\"y\","), "{text}");
        // If `for_spreadsheet` is not set, the values are written unchanged.
        let plain = cells(&exported(&store, Form::default()));
        assert!(plain.iter().zip(identities).all(|((_, identity), known)| identity == known), "{plain:?}");
    }

    #[test]
    fn an_identity_that_looks_marked_comes_back_as_it_is() {
        let store = Memory::default();
        let psk = Secret::new("00112233445566778899aabbccddeeff".into());
        let identities = ["'=1", "''x", "'x", "'", "=1'"];
        import(
            &store,
            identities.iter().enumerate().map(|(number, identity)| ImportRow {
                individual: true,
                key: Some(((*identity).to_owned(), psk.clone())),
                ..row(&format!("SN-{number}"))
            }),
        );
        for for_spreadsheet in [true, false] {
            let text = exported(&store, Form { for_spreadsheet, tablestore: false });
            let mut reader = csv::Reader::from_reader(text.as_bytes());
            for (row, known) in reader.records().zip(identities) {
                assert_eq!(unmarked(row.unwrap()[6].into()), known);
            }
        }
    }

    #[tokio::test]
    async fn tablestores_columns_have_the_times_as_seconds_and_no_key() {
        let store = Memory::default();
        let device = DeviceId::parse_sn("SN-1").unwrap();
        let secret = Some(Secret::new("8d1f0cbf2f3a4e6d9b7c5a4e3d2c1b0a".into()));
        let registered =
            ImportRow { device_name: Some("lamp-1".into()), device_secret: secret, ..row("SN-1") };
        import(&store, [registered, row("SN-2")]);
        let seen = store.device(&device).await.unwrap().unwrap();
        let sighting =
            Sighting { registered: Some(1_795_681_600), activated: Some(1_795_681_700), state: None };
        store.store_sighting(&seen, sighting).await.unwrap();
        let text = exported(&store, Form { tablestore: true, for_spreadsheet: false });
        assert_eq!(
            text,
            "deviceId,registerTime,activateTime,productKey,deviceName,deviceSecret,IotId\n\
             SN-1,1795681600,1795681700,a1lamp,lamp-1,8d1f0cbf2f3a4e6d9b7c5a4e3d2c1b0a,\n\
             SN-2,,,a1lamp,,,\n"
        );
    }
}
