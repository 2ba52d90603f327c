//! Tests of commits whose answers are lost: a proxy between the store and the server ends the connection
//! when the server has committed. The store then recognizes each write as done, and does not repeat it.

use std::{
    io::{Read, Write},
    net::Shutdown,
    os::unix::net::{UnixListener, UnixStream},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize},
    },
};

use super::*;
use crate::store::{
    DeviceState, OpenBatch,
    order::OrderKind,
    waiting::{Admission, Admits, NewDevice, WaitingList},
};

/// A proxy that loses the answers to commits.
struct Proxy {
    folder: tempfile::TempDir,
    loses: Arc<AtomicBool>,
    lost: Arc<AtomicUsize>,
}

impl Proxy {
    /// Starts a proxy for the server at a URL. Its threads end with the process.
    fn start(url: &str) -> Self {
        let host = url.split('@').nth(1).unwrap().split('/').next().unwrap().replace("%2F", "/");
        let server = Path::new(&host).join(".s.PGSQL.5432");
        let folder = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(folder.path().join(".s.PGSQL.5432")).unwrap();
        let (loses, lost) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        thread::spawn({
            let (loses, lost) = (loses.clone(), lost.clone());
            move || {
                for client in listener.incoming() {
                    let Ok(client) = client else { return };
                    pass(client, server.clone(), loses.clone(), lost.clone());
                }
            }
        });
        Self { folder, loses, lost }
    }

    /// Returns the URL of the same database through the proxy.
    fn url(&self, url: &str) -> String {
        let host = url.split('@').nth(1).unwrap().split('/').next().unwrap();
        url.replace(host, &self.folder.path().display().to_string().replace('/', "%2F"))
    }

    /// Loses the answers to all commits of this work, and checks that there was at least one.
    fn losing<T>(&self, work: impl FnOnce() -> T) -> T {
        let before = self.lost.load(Ordering::SeqCst);
        self.loses.store(true, Ordering::SeqCst);
        let outcome = work();
        self.loses.store(false, Ordering::SeqCst);
        assert!(self.lost.load(Ordering::SeqCst) > before, "no answer was lost");
        outcome
    }
}

/// Reads a message. Returns its type, and the whole message with type and length. The first message of
/// a client has no type.
fn message(stream: &mut UnixStream, is_first: bool) -> Option<(u8, Vec<u8>)> {
    let mut head = vec![0; if is_first { 4 } else { 5 }];
    stream.read_exact(&mut head).ok()?;
    let length = u32::from_be_bytes(head[head.len() - 4..].try_into().unwrap()) as usize;
    let mut body = vec![0; length - 4];
    stream.read_exact(&mut body).ok()?;
    let kind = if is_first { 0 } else { head[0] };
    head.extend(body);
    Some((kind, head))
}

fn pass(client: UnixStream, server: PathBuf, loses: Arc<AtomicBool>, lost: Arc<AtomicUsize>) {
    let Ok(server) = UnixStream::connect(server) else { return };
    let is_losing = Arc::new(AtomicBool::new(false));
    let (mut from, mut to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
    let set = is_losing.clone();
    thread::spawn(move || {
        let mut is_first = true;
        while let Some((kind, bytes)) = message(&mut from, is_first) {
            is_first = false;
            if kind == b'Q' && bytes[5..].starts_with(b"COMMIT") && loses.load(Ordering::SeqCst) {
                set.store(true, Ordering::SeqCst);
            }
            if to.write_all(&bytes).is_err() {
                break;
            }
        }
        // Fails if the connection has ended.
        let _ = to.shutdown(Shutdown::Both);
    });
    let (mut from, mut to) = (server, client);
    thread::spawn(move || {
        while let Some((kind, bytes)) = message(&mut from, false) {
            if is_losing.load(Ordering::SeqCst) {
                // `Z` (ReadyForQuery): the server has committed, and waits for the next statement.
                if kind == b'Z' {
                    lost.fetch_add(1, Ordering::SeqCst);
                    break;
                }
                continue;
            }
            if to.write_all(&bytes).is_err() {
                break;
            }
        }
        for stream in [&from, &to] {
            let _ = stream.shutdown(Shutdown::Both);
        }
    });
}

/// Opens an empty database. Returns a proxy, a handle that uses the proxy, and a handle that does not.
fn lossy() -> (Proxy, Postgres, Postgres) {
    let url = postgres::empty();
    let direct = Postgres::open(&url).unwrap();
    let proxy = Proxy::start(&url);
    let lossy = Postgres::open(&proxy.url(&url)).unwrap();
    (proxy, lossy, direct)
}

fn events(store: &Postgres, number: u64) -> Vec<AuditEvent> {
    wait(store.history(&id(number), 99)).unwrap().into_iter().map(|entry| entry.event).collect()
}

#[test]
#[ignore = "needs PostgreSQL"]
fn a_registration_whose_answers_are_lost_is_made_once() {
    let (proxy, lossy, direct) = lossy();
    import(&direct, 0..3);
    let claimed = proxy.losing(|| wait(lossy.claim(&owner(1), &entry(0), NOW)).unwrap());
    assert!(matches!(claimed, Claimed::Yours(_)), "{claimed:?}");
    assert!(wait(direct.claim_of(&id(0))).unwrap().is_some());
    let batch = OpenBatch { id: 9, product_key: "a1lamp".into(), apply_id: None, target: "default".into() };
    let claimed =
        proxy.losing(|| wait(lossy.claim_batch(&owner(1), &batch, &[entry(1), entry(2)], NOW)).unwrap());
    assert!(claimed.iter().all(|claimed| matches!(claimed, Claimed::Yours(_))), "{claimed:?}");
    assert_eq!(wait(direct.open_batches()).unwrap().len(), 1);
    proxy.losing(|| wait(lossy.settle(1, &entry(0), &registered(0))).unwrap());
    assert_eq!(wait(direct.claim_of(&id(0))).unwrap(), None);
    // The claim is gone, so a second settlement of a refusal would be fenced.
    let refused = Settlement::Refused("unknown product".into());
    proxy.losing(|| wait(lossy.settle(1, &entry(1), &refused)).unwrap());
    let row = wait(direct.device(&id(0))).unwrap().unwrap();
    let asker = Asker { enrollment: "lamps".into(), ..Asker::default() };
    let certificate = row.certificate.unwrap();
    let issue = proxy.losing(|| wait(lossy.record_issue(&row.id, &certificate, 5, asker)).unwrap());
    assert!(issue.is_first);
    assert_eq!(events(&direct, 0), [AuditEvent::Issued, AuditEvent::Registered]);
    assert_eq!(direct.check_counts().unwrap().different, 0);
}

#[test]
#[ignore = "needs PostgreSQL"]
fn an_operators_change_whose_answer_is_lost_is_made_and_logged_once() {
    let (proxy, lossy, direct) = lossy();
    import_rows(
        &direct,
        (0..2).map(|number| ImportRow {
            device_name: Some(id(number).device_name()),
            device_secret: Some(Secret::new("s3cret".into())),
            ..ImportRow::new(id(number), "lamps", "a1lamp")
        }),
    );
    let by = by();
    assert!(proxy.losing(|| wait(lossy.set_state(&id(0), DeviceState::Disabled, &by)).unwrap()));
    assert_eq!(events(&direct, 0), [AuditEvent::Disabled]);
    let placed = proxy.losing(|| wait(lossy.place_order(&id(1), OrderKind::Delete, &by)).unwrap());
    assert!(matches!(placed, Placed::Yes(_)), "{placed:?}");
    let order = wait(direct.order_of(&id(1))).unwrap().unwrap();
    let logged = events(&direct, 1);
    assert_eq!(logged.iter().filter(|event| **event == AuditEvent::Ordered).count(), 1, "{logged:?}");
    let ended = proxy.losing(|| wait(lossy.end_order(order.number, "no longer wanted", &by)).unwrap());
    assert!(ended, "a second end would find no order");
    let device = NewDevice { device: id(5), enrollment: "lamps".into(), product_key: "a1lamp".into() };
    let admitted = proxy.losing(|| wait(lossy.admit(vec![device], Admits::Operator(by.clone()))).unwrap());
    assert_eq!(admitted, [Admission::Added]);
    assert!(proxy.losing(|| wait(lossy.delete(&id(5), &by)).unwrap()), "a second one would find no device");
    assert_eq!(direct.check_counts().unwrap().different, 0);
}

#[test]
#[ignore = "needs PostgreSQL"]
fn repeats_whose_answers_are_lost_are_counted_once() {
    let (proxy, lossy, direct) = lossy();
    import(&direct, 0..1);
    proxy.losing(|| {
        for _ in 0..5 {
            let asker = ("lamps", "SN-000", "192.0.2.1");
            let asked = Asked::new(AuditEvent::Reissued, 1000, &id(0), asker, format_args!("again"));
            lossy.audit(asked).unwrap();
        }
        drop(lossy);
    });
    let history = wait(direct.history(&id(0), 9)).unwrap();
    let [record] = &history[..] else { panic!("{history:?}") };
    assert_eq!(record.as_repeats().count, 5);
}

#[test]
#[ignore = "needs PostgreSQL"]
fn an_import_whose_answers_are_lost_is_made_once() {
    const NEW: u64 = 500;
    let (proxy, lossy, direct) = lossy();
    let by = by();
    let slices = AtomicU64::new(0);
    let progress = |stage, _, _| {
        if stage == ImportStage::Writing {
            slices.fetch_add(1, Ordering::SeqCst);
        }
    };
    for (number, range) in [(7, 0..5), (8, 5..5 + NEW), (9, 0..5)] {
        let name = |row: ImportRow| match number {
            9 => ImportRow { device_name: Some(format!("of-{}", row.device)), ..row },
            _ => row,
        };
        let job =
            ImportJob { id: Some(ImportId(number)), progress: &progress, ..ImportJob::new(&by, "file.csv") };
        let rows = &mut rows(range.clone()).map(name).map(Ok);
        let report =
            proxy.losing(|| lossy.import(job, rows, &mut |at, why| panic!("{at}: {why:?}")).unwrap());
        let count = range.end - range.start;
        let expected = if number == 9 { (0, count) } else { (count, 0) };
        assert_eq!((report.added, report.changed), expected);
    }
    assert!(slices.load(Ordering::SeqCst) > 1);
    assert_eq!(direct.count().unwrap(), 5 + NEW);
    let imports = direct.imports().unwrap();
    let counts: Vec<_> = imports.iter().map(|import| (import.id.0, import.added, import.changed)).collect();
    assert_eq!(counts, [(9, 0, 5), (8, NEW, 0), (7, 5, 0)]);
    assert!(!direct.import_activity().unwrap().is_unfinished);
    assert_eq!(direct.check_counts().unwrap().different, 0);
    assert_eq!(direct.verify_audit(&mut |_, _| ()).unwrap().entries, 3);
}
