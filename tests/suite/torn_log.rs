//! Tests of a database after a power failure: the write-ahead log may be torn at any page.

use std::fs;

use certdist::{
    device::{Certificate, DeviceId, Secret},
    store::{
        Actor, Bulk, DeviceState, ImportJob, ImportRow, JournalEntry, OpenBatch, RegisteredDevice, Store,
        StoreFuture,
        audit::Asker,
        claim::{ClaimTime, Claims, Owner, Settlement},
        sqlite::Sqlite,
    },
    target,
};

fn wait<T>(future: StoreFuture<'_, T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .build()
        .expect("a runtime")
        .block_on(future)
        .expect("stored")
}

fn id(device: &str) -> DeviceId {
    DeviceId::parse(device).expect("an ID")
}

fn entry(device: &str) -> JournalEntry {
    JournalEntry {
        device: id(device),
        product_key: "a1".into(),
        device_name: device.into(),
        target: target::DEFAULT.into(),
    }
}

fn certificate(device: &str) -> Certificate {
    Certificate {
        product_key: "a1".into(),
        device_name: device.into(),
        device_secret: Secret::new(format!("secret of {device}")),
    }
}

fn registered(device: &str) -> Settlement {
    let certificate = certificate(device);
    Settlement::Registered(RegisteredDevice { certificate, iot_id: None, registered: 1000 })
}

fn asker() -> Asker {
    Asker { enrollment: "lamp".into(), ..Asker::default() }
}

/// Returns the whole content of a store as text.
fn state(store: &Sqlite) -> String {
    let rows = wait(store.rows_after(None, 100));
    let (journal, batches) = (wait(store.open_entries()), wait(store.open_batches()));
    let secrets: Vec<_> = rows
        .iter()
        .map(|row| row.certificate.as_ref().map(|certificate| certificate.device_secret.expose().to_owned()))
        .collect();
    format!("{rows:#?}{secrets:?}{journal:#?}{batches:#?}")
}

/// Returns three forms of a log of which only the first `kept` bytes were written before a power
/// failure. In the first form, the log is cut off after these bytes. In the other two, it has its
/// full length, and the rest is zeros or garbage.
fn torn(log: &[u8], kept: usize) -> [Vec<u8>; 3] {
    let rest = log.len() - kept;
    let cut = log[..kept].to_vec();
    [cut.clone(), [&cut[..], &vec![0; rest]].concat(), [&cut[..], &vec![0xa5; rest]].concat()]
}

#[test]
fn a_log_that_is_torn_at_any_page_leaves_the_last_write_that_was_whole() {
    const FRAME: usize = 24 + 4096;
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("certdist.db");
    let store = Sqlite::open(&path).expect("a database");
    let mut rows =
        ["SN-1", "SN-2", "SN-3"].into_iter().map(|device| Ok(ImportRow::new(id(device), "lamp", "a1")));
    let by = Actor::system_user();
    store
        .import(ImportJob::new(&by, "batch.csv"), &mut rows, &mut |_, _| panic!("rejected"))
        .expect("imported");

    let log = || fs::read(path.with_extension("db-wal")).unwrap_or_default();
    let mut written = vec![(log().len(), state(&store))];
    let batch =
        || OpenBatch { id: 1, product_key: "a1".into(), apply_id: None, target: target::DEFAULT.into() };
    let now = ClaimTime { at: 1000, cloud_offset: None };
    let owner = Owner { id: 1, name: "test".into() };
    let steps: [&dyn Fn(); 8] = [
        &|| _ = wait(store.claim(&owner, &entry("SN-1"), now)),
        &|| wait(store.settle(1, &entry("SN-1"), &registered("SN-1"))),
        &|| _ = wait(store.record_issue(&id("SN-1"), &certificate("SN-1"), 1, asker())),
        &|| {
            let entries = [entry("SN-2"), entry("SN-3")];
            wait(store.claim_batch(&owner, &batch(), &entries, now));
        },
        &|| wait(store.set_apply_id(1, 1, 1_295_006)),
        &|| wait(store.settle(1, &entry("SN-2"), &registered("SN-2"))),
        &|| wait(store.settle(1, &entry("SN-3"), &Settlement::Refused("no".into()))),
        &|| wait(store.close_batch(1, 1)),
    ];
    for step in steps {
        step();
        written.push((log().len(), state(&store)));
    }
    let (database, log) = (fs::read(&path).expect("the database"), log());
    assert!(written.windows(2).all(|pair| pair[0].0 < pair[1].0 && pair[0].1 != pair[1].1));

    let pages = (32..=log.len()).step_by(FRAME);
    let within = pages.clone().flat_map(|page| [page + 1, page + 30, page + FRAME / 2, page + FRAME - 1]);
    let mut places: Vec<usize> =
        pages.chain(within).chain([0, 1, 31]).filter(|kept| *kept <= log.len()).collect();
    places.sort_unstable();
    let (mut cuts, mut before) = (0, 0);
    for kept in places {
        // Number of the last step whose part of the log was kept whole. The next step may also be
        // complete, because its recorded length can include later pages of the audit log. It may
        // also be complete because its last page ends with the same zeros that replace the lost
        // part.
        let answered = written.iter().rposition(|(length, _)| *length <= kept).unwrap_or(0);
        for torn in torn(&log, kept) {
            let after = tempfile::tempdir().expect("a folder");
            let path = after.path().join("certdist.db");
            fs::write(&path, &database).expect("written");
            fs::write(path.with_extension("db-wal"), &torn).expect("written");
            let recovered = Sqlite::open(&path).expect("it recovers by itself");
            let recovered_state = state(&recovered);
            let whole = written.iter().position(|(_, state)| *state == recovered_state);
            let whole =
                whole.unwrap_or_else(|| panic!("torn after {kept} bytes, half a step: {recovered_state}"));
            assert!(
                (answered..=answered + 1).contains(&whole),
                "torn after {kept} bytes: step {whole}, not {answered}"
            );
            if torn.len() == kept {
                assert!(whole >= before, "torn after {kept} bytes: step {whole} after step {before}");
                before = whole;
            }
            let check: String = rusqlite::Connection::open(&path)
                .and_then(|connection| connection.query_row("PRAGMA integrity_check", (), |row| row.get(0)))
                .expect("checked");
            assert_eq!(check, "ok");
            // The recovered database accepts writes.
            assert!(wait(recovered.set_state(&id("SN-3"), DeviceState::Enabled, &Actor::system_user())));
            cuts += 1;
        }
    }
    assert!(cuts > 100, "{cuts} logs");
    assert_eq!(before, written.len() - 1, "the whole log has every step");
}
