//! Tests that traces of former values are removed from all places where SQLite leaves them, while
//! other processes write, and that nothing else changes. Each test makes its own traces, and first
//! checks that they are in the file.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
};

use proptest::prelude::*;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use tempfile::TempDir;

use super::*;
use crate::store::sqlite::connection::is_log_empty;

const TRACE: &str = "a-former-value-in-clear";

const WAIT: Duration = Duration::from_secs(60);

struct Database {
    folder: TempDir,
    /// A connection of another program, which writes as that program likes.
    foreign: Connection,
}

impl Database {
    /// Creates a database with tables of every kind.
    fn new(pragmas: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let foreign = Connection::open(folder.path().join("a.db")).unwrap();
        let tables = "PRAGMA journal_mode = wal; PRAGMA synchronous = off;
            CREATE TABLE with_rowid (id INTEGER PRIMARY KEY, value TEXT, filler TEXT);
            CREATE INDEX by_filler ON with_rowid (filler);
            CREATE TABLE without_rowid (id TEXT PRIMARY KEY, value TEXT) WITHOUT ROWID;
            CREATE TABLE doomed (id INTEGER PRIMARY KEY, value TEXT);";
        foreign.execute_batch(&format!("{pragmas}; {tables}")).unwrap();
        foreign.busy_timeout(WAIT).unwrap();
        Self { folder, foreign }
    }

    fn run(&self, sql: &str) {
        self.foreign.execute_batch(sql).unwrap();
    }

    /// Inserts rows with traces into a table, in random order, so that pages are split.
    fn fill(&self, table: &str, rows: u32) {
        let mut random = StdRng::seed_from_u64(7);
        for _ in 0..rows {
            let (id, length) = (random.random::<u32>(), random.random_range(0..60));
            let id = if table == "without_rowid" { format!("'device-{id:x}'") } else { id.to_string() };
            let value = format!("{TRACE}{}", "-".repeat(length));
            self.run(&format!("INSERT OR REPLACE INTO {table} (id, value) VALUES ({id}, '{value}')"));
        }
    }

    /// Replaces the values of a table in place, so that only traces of the former values are left.
    fn replace(&self, table: &str) {
        self.run(&format!("UPDATE {table} SET value = replace(value, '{TRACE}', upper('{TRACE}'))"));
    }

    fn wipe(&self) -> Result<Wiped, StoreError> {
        self.wipe_telling(&mut |_| ())
    }

    fn wipe_telling(&self, progress: &mut dyn FnMut(SealStep)) -> Result<Wiped, StoreError> {
        let path = self.folder.path().join("a.db");
        let writer = connection::open_again(&path, WAIT)?;
        wipe(&path, &writer, progress)
    }

    /// Returns whether the file, without its log, has a trace.
    fn has_trace(&self) -> bool {
        assert!(is_log_empty(&self.foreign).unwrap());
        let bytes = std::fs::read(self.folder.path().join("a.db")).unwrap();
        memchr::memmem::find(&bytes, TRACE.as_bytes()).is_some()
    }

    /// Returns all rows. The file must be intact.
    fn rows(&self) -> Vec<String> {
        let intact: String = self.foreign.query_row("PRAGMA integrity_check", (), |row| row.get(0)).unwrap();
        assert_eq!(intact, "ok");
        let all = "SELECT 'a' || id || ' ' || value || coalesce(filler, '') FROM with_rowid UNION ALL \
                   SELECT 'b' || id || ' ' || value FROM without_rowid UNION ALL \
                   SELECT 'c' || id || ' ' || value FROM doomed";
        let mut statement = self.foreign.prepare(all).unwrap();
        statement.query_map((), |row| row.get(0)).unwrap().collect::<rusqlite::Result<_>>().unwrap()
    }

    /// Removes the traces, and checks that nothing else changes.
    fn is_wiped(&self) -> Wiped {
        assert!(self.has_trace(), "the test makes no trace");
        let before = self.rows();
        let wiped = self.wipe().unwrap();
        assert!(!self.has_trace(), "a trace is left");
        assert_eq!(self.rows(), before);
        let again = self.wipe().unwrap();
        assert_eq!((again.pages, again.searches), (0, 1), "once more finds nothing");
        wiped
    }

    fn number(&self, sql: &str) -> u32 {
        self.foreign.query_row(sql, (), |row| row.get(0)).unwrap()
    }

    fn page(&self, number: u32) -> Vec<u8> {
        let sql = "SELECT data FROM sqlite_dbpage WHERE pgno = ?1";
        self.foreign.query_row(sql, [number], |row| row.get(0)).unwrap()
    }

    fn set_page(&self, number: u32, page: &[u8]) {
        let sql = "UPDATE sqlite_dbpage SET data = ?2 WHERE pgno = ?1";
        self.foreign.execute(sql, (number, page)).unwrap();
    }
}

#[test]
fn a_wipe_that_waits_for_a_writer_looks_often() {
    let database = Database::new("");
    database.fill("with_rowid", 100);
    database.replace("with_rowid");
    database.run("BEGIN IMMEDIATE");
    let path = database.folder.path().join("a.db");
    let writer = connection::open_again(&path, Duration::from_millis(300)).unwrap();
    connection::ATTEMPTS.set(0);
    let busy = wipe(&path, &writer, &mut |_| ()).unwrap_err();
    assert!(matches!(&busy, StoreError::Busy(_)), "{busy}");
    // SQLite's own busy handler would count as one attempt.
    assert!(connection::ATTEMPTS.get() > 1);
}

#[test]
fn this_build_can_read_and_write_single_pages() {
    let database = Database::new("");
    assert_eq!(obstacle(&database.foreign).unwrap(), None);
}

#[test]
fn traces_in_the_gaps_of_split_pages_are_removed() {
    for table in ["with_rowid", "without_rowid"] {
        let database = Database::new("PRAGMA secure_delete = 1");
        database.fill(table, 3000);
        database.replace(table);
        database.is_wiped();
    }
}

#[test]
fn traces_in_free_blocks_are_removed_from_leaves_and_from_inner_pages() {
    let database = Database::new("PRAGMA page_size = 512; PRAGMA secure_delete = 0");
    // SQLite also stores values of an index in its inner pages.
    database.run("CREATE INDEX by_value ON with_rowid (value)");
    database.fill("with_rowid", 2000);
    database.fill("without_rowid", 2000);
    let kinds = |database: &Database| {
        let pages = database.number("PRAGMA page_count");
        let dirty = (2..=pages).map(|number| database.page(number));
        let dirty = dirty.filter(|page| memchr::memmem::find(page, TRACE.as_bytes()).is_some());
        let mut kinds: Vec<u8> = dirty.map(|page| page[0]).collect();
        kinds.sort_unstable();
        kinds.dedup();
        kinds
    };
    // Deleting every third row removes cells from most pages, but frees few pages.
    database.run("DELETE FROM with_rowid WHERE id % 3 = 0");
    database.run("DELETE FROM without_rowid WHERE unicode(substr(id, -1)) % 3 = 0");
    database.replace("with_rowid");
    database.replace("without_rowid");
    assert!([2, 10, 13].iter().all(|kind| kinds(&database).contains(kind)), "{:?}", kinds(&database));
    database.is_wiped();
}

#[test]
fn traces_on_free_pages_are_removed() {
    let database = Database::new("PRAGMA secure_delete = 0");
    database.fill("doomed", 20_000);
    database.run("DELETE FROM doomed");
    // There are more free pages than one trunk page of the list can name.
    assert!(database.number("PRAGMA freelist_count") > 300);
    let first = u32::from_be_bytes(database.page(1)[32..36].try_into().unwrap());
    let trunk = database.page(first);
    assert!(memchr::memmem::find(&trunk, TRACE.as_bytes()).is_some(), "no trace beside the entries");
    database.is_wiped();
    // SQLite can use the wiped free pages again.
    database.fill("doomed", 20_000);
    database.rows();
}

#[test]
fn traces_at_the_end_of_long_values_are_removed() {
    let database = Database::new("PRAGMA secure_delete = 0");
    let long = TRACE.repeat(2000);
    database.run(&format!("INSERT INTO with_rowid VALUES (1, '{long}', ''), (2, '{long}', '')"));
    // Within one transaction, SQLite keeps the content of free pages that it uses again. A value of
    // this length leaves 300 bytes of its last page unused.
    let reuse = "BEGIN; DELETE FROM with_rowid; INSERT INTO with_rowid VALUES (3, '', ''), (4, '', '');
        UPDATE with_rowid SET value = replace(hex(zeroblob(2140)), '0', '-'); COMMIT";
    database.run(reuse);
    // The other free pages are overwritten, so that traces are left only behind the new values.
    while database.number("PRAGMA freelist_count") > 0 {
        database.run("INSERT INTO doomed (value) VALUES (replace(hex(zeroblob(2000)), '0', '+'))");
    }
    database.is_wiped();
}

#[test]
fn transactions_are_short_however_much_there_is_to_do() {
    let database = Database::new("PRAGMA secure_delete = 1");
    database.fill("without_rowid", 30_000);
    database.replace("without_rowid");
    let mut told = Vec::new();
    let wiped = database.wipe_telling(&mut |step| told.push(step)).unwrap();
    assert!((1..=128).contains(&wiped.largest) && wiped.pages > 300, "{wiped:?}");
    let pages = u64::from(database.number("PRAGMA page_count"));
    assert!(told.contains(&SealStep::Wiping(pages, pages)), "{told:?}");
    assert!(told.contains(&SealStep::Checking(pages, pages)), "{told:?}");
}

#[test]
fn a_writer_goes_on_meanwhile_and_no_trace_is_left() {
    let database = Database::new("PRAGMA secure_delete = 1");
    for table in ["with_rowid", "without_rowid"] {
        database.fill(table, 10_000);
        database.replace(table);
    }
    assert!(database.has_trace());
    let path = database.folder.path().join("a.db");
    let (is_over, written) = (AtomicBool::new(false), AtomicBool::new(false));
    thread::scope(|scope| {
        scope.spawn(|| {
            let other = connection::open_again(&path, WAIT).unwrap();
            let mut random = StdRng::seed_from_u64(1);
            while !is_over.load(Ordering::Relaxed) {
                let (id, length) = (random.random::<u32>(), random.random_range(0..300));
                let value = "+".repeat(length);
                other
                    .execute_batch(&format!(
                        "BEGIN IMMEDIATE; INSERT OR REPLACE INTO without_rowid VALUES ('device-{id:x}', '{value}');
                         DELETE FROM with_rowid WHERE id = (SELECT id FROM with_rowid WHERE id >= {id} LIMIT 1);
                         INSERT OR REPLACE INTO with_rowid VALUES ({id}, '{value}', '{id}'); COMMIT"
                    ))
                    .unwrap();
                written.store(true, Ordering::Relaxed);
                thread::yield_now();
            }
        });
        while !written.load(Ordering::Relaxed) {
            thread::yield_now();
        }
        let wiped = database.wipe();
        is_over.store(true, Ordering::Relaxed);
        wiped.unwrap();
    });
    assert!(!database.has_trace(), "a trace is left");
    database.rows();
}

/// Returns the number and the content of a page with one cell. The content has `text` in its gap.
fn with_trace(database: &Database, table: &str, text: &str) -> (u32, Vec<u8>) {
    let root = database.number(&format!("SELECT rootpage FROM sqlite_schema WHERE name = '{table}'"));
    let mut page = database.page(root);
    page[100..100 + text.len()].copy_from_slice(text.as_bytes());
    (root, page)
}

#[test]
fn a_trace_that_moves_between_the_search_and_the_writing_is_found_by_another_search() {
    let database = Database::new("");
    let (from, dirty) = with_trace(&database, "doomed", TRACE);
    let (to, moved) = with_trace(&database, "without_rowid", TRACE);
    let clean = database.page(from);
    let mut checks = 0;
    let wiped = database
        .wipe_telling(&mut |step| match step {
            SealStep::Wiping(done, total) if done == total => database.set_page(from, &dirty),
            SealStep::Checking(done, total) if done == total => {
                checks += 1;
                if checks == 1 {
                    database.set_page(from, &clean);
                    database.set_page(to, &moved);
                }
            }
            _ => {}
        })
        .unwrap();
    assert!(!database.has_trace(), "a trace is left");
    assert_eq!((wiped.searches, checks), (2, 2));
}

#[test]
fn searches_end_even_if_pages_change_during_each_of_them() {
    let database = Database::new("");
    let mut pages = [with_trace(&database, "doomed", TRACE), with_trace(&database, "without_rowid", TRACE)];
    let clean = pages.clone().map(|(number, _)| (number, database.page(number)));
    let wiped = database
        .wipe_telling(&mut |step| {
            if matches!(step, SealStep::Wiping(..) | SealStep::Checking(..)) {
                database.set_page(pages[0].0, &pages[0].1);
                for (number, page) in clean.iter().filter(|(number, _)| *number != pages[0].0) {
                    database.set_page(*number, page);
                }
                pages.reverse();
            }
        })
        .unwrap();
    assert_eq!(wiped.searches, MAX_SEARCHES);
    assert_eq!(database.wipe().unwrap().searches, 1);
    assert!(!database.has_trace());
}

#[test]
fn a_damaged_page_is_left_as_it_is_and_reported() {
    let database = Database::new("");
    database.run("INSERT INTO doomed (value) VALUES ('intact')");
    let (number, page) = with_trace(&database, "doomed", TRACE);
    // The cases damage the start of the cells, the first pointer (twice), the number of cells, and
    // the first free block.
    for (at, bytes) in [(5, [0x0f, 0xff]), (8, [0x0f, 0xff]), (8, [0, 4]), (3, [0xff, 0xff]), (1, [0x0f, 0])]
    {
        let mut damaged = page.clone();
        damaged[at..at + 2].copy_from_slice(&bytes);
        database.set_page(number, &damaged);
        let error = database.wipe().unwrap_err().to_string();
        assert!(error.contains(&format!("damaged (page {number} ")), "{error}");
        assert_eq!(database.page(number), damaged);
    }
    // The list of free pages does not end.
    database.set_page(number, &page);
    let mut first = database.page(1);
    first[32..36].copy_from_slice(&number.to_be_bytes());
    first[36..40].copy_from_slice(&1u32.to_be_bytes());
    database.set_page(1, &first);
    let mut trunk = vec![0; page.len()];
    trunk[..4].copy_from_slice(&number.to_be_bytes());
    database.set_page(number, &trunk);
    assert!(database.wipe().unwrap_err().to_string().contains("damaged"));
    // The list names the page of the schema, or has fewer pages than the file header says.
    for entries in [1_u32, 0] {
        trunk[..8].copy_from_slice(&u64::from(entries).to_be_bytes());
        trunk[8..12].copy_from_slice(&1_u32.to_be_bytes());
        first[36..40].copy_from_slice(&2_u32.to_be_bytes());
        database.set_page(number, &trunk);
        database.set_page(1, &first);
        assert!(database.wipe().unwrap_err().to_string().contains("damaged"), "{entries}");
    }
}

#[test]
fn a_page_of_a_lost_table_that_leads_to_another_value_does_no_harm() {
    let database = Database::new("");
    let value = "replace(hex(zeroblob(2140)), '0', '-')";
    database.run(&format!("INSERT INTO with_rowid VALUES (1, {value}, '')"));
    let root = |table| database.number(&format!("SELECT rootpage FROM sqlite_schema WHERE name = '{table}'"));
    let (lost, mut page) = (root("doomed"), database.page(root("with_rowid")));
    database.run("PRAGMA writable_schema = 1; DELETE FROM sqlite_schema WHERE name = 'doomed'");
    // The lost page has a former state of the row, with a shorter value.
    let cell = usize::from(u16::from_be_bytes([page[8], page[9]]));
    page[cell + 1] -= 46;
    database.set_page(lost, &page);
    let error = database.wipe().unwrap_err().to_string();
    assert!(error.contains("damaged"), "{error}");
    let is_whole = format!("SELECT value = {value} FROM with_rowid");
    assert_eq!(database.number(&is_whole), 1);
}

#[test]
fn a_file_whose_pages_cannot_be_told_apart_is_rewritten() {
    let database = Database::new("PRAGMA auto_vacuum = full; PRAGMA secure_delete = 1");
    database.fill("without_rowid", 3000);
    database.replace("without_rowid");
    assert!(database.has_trace());
    assert_eq!(obstacle(&database.foreign).unwrap(), Some("the database has auto_vacuum"));
    let before = database.rows();
    assert_eq!(database.wipe().unwrap(), Wiped::default());
    assert!(!database.has_trace(), "a trace is left");
    assert_eq!(database.rows(), before);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// Inserts, changes and deletes rows, with and without `secure_delete`. After the wipe, every
    /// byte outside a row is zero.
    #[test]
    fn whatever_has_happened_to_a_file_no_trace_is_left(seed in any::<u64>(), size in 9_u32..=16) {
        let database = Database::new(&format!("PRAGMA page_size = {}", 1_u32 << size));
        let mut random = StdRng::seed_from_u64(seed);
        for _ in 0..random.random_range(1..12) {
            database.run(&format!("PRAGMA secure_delete = {}", random.random_range(0..3)));
            database.run("BEGIN");
            let (first, rows) = (random.random_range(0..3000_u32), random.random_range(1..600_u32));
            let length = random.random_range(1..60) * random.random_range(1..60);
            for id in first..first + rows {
                let value = format!("{TRACE}{}", "-".repeat(random.random_range(0..length)));
                let sql = match random.random_range(0..6) {
                    0 => format!("DELETE FROM with_rowid WHERE id = {id}"),
                    1 => format!("DELETE FROM without_rowid WHERE id = 'device-{id}'"),
                    2 => format!("INSERT OR REPLACE INTO without_rowid VALUES ('device-{id}', '{value}')"),
                    3 => format!("UPDATE without_rowid SET value = '{value}' WHERE id = 'device-{id}'"),
                    _ => format!("INSERT OR REPLACE INTO with_rowid VALUES ({id}, '{value}', '{value}')"),
                };
                database.run(&sql);
            }
            database.run("COMMIT");
        }
        database.run("INSERT INTO doomed (value) VALUES ('')");
        for table in ["with_rowid", "without_rowid"] {
            database.replace(table);
        }
        database.run("UPDATE with_rowid SET filler = upper(filler)");
        let before = database.rows();
        database.wipe().unwrap();
        prop_assert!(!database.has_trace(), "a trace is left");
        prop_assert_eq!(database.rows(), before);
        prop_assert_eq!(database.wipe().unwrap().pages, 0);
    }
}
