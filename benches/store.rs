//! Benchmark of the store: `cargo bench --bench store [-- ROWS…]`. By default, it uses tables of a
//! thousand and a million rows, each unsealed and sealed. Prints the time of a first import, of a
//! repeated import, of an export and of a read. For an unsealed table, it also prints the time to
//! seal the table and the cost of an audit entry.

use std::{
    error::Error,
    fs::File,
    io::{self, BufWriter, Write},
    ops::ControlFlow,
    path::Path,
    task::{Context, Poll, Waker},
    time::Instant,
};

use certdist::{
    device::DeviceId,
    psk::{Enrollment, Kind, Reissue},
    seal::{DatabaseKey, Keyring},
    store::{
        self, Actor, StoreFuture, Table,
        audit::{Asked, AuditEvent, Filter},
    },
    table_file::{Enrollments, Import, export_file, import_file},
};

type Outcome<T> = Result<T, Box<dyn Error>>;

/// Number of reads that are timed together.
const READS: u64 = 200_000;

fn main() -> Outcome<()> {
    let sizes: Vec<u64> = std::env::args().filter_map(|argument| argument.parse().ok()).collect();
    let sizes = if sizes.is_empty() { vec![1_000, 1_000_000] } else { sizes };
    for rows in sizes {
        for (order, shuffled) in [("in order", false), ("shuffled", true)] {
            for (form, sealed) in [("clear", false), ("sealed", true)] {
                println!("{rows} rows, {order}, {form}:");
                measure(rows, shuffled, sealed)?;
            }
        }
    }
    Ok(())
}

fn keys() -> Outcome<Keyring> {
    Ok(Keyring::new([DatabaseKey::parse(DatabaseKey::generate()?.expose())?]))
}

fn measure(rows: u64, shuffled: bool, sealed: bool) -> Outcome<()> {
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("batch.csv");
    write_batch(&file, rows, shuffled)?;
    let individual = Enrollment {
        name: "plugs".into(),
        product_key: "a1plugs".into(),
        kind: Kind::Individual,
        reissue: Reissue::Always,
        next: None,
        guards: Default::default(),
    };
    let enrollments = Enrollments::new([individual.outline()]);
    let keys = if sealed { keys()? } else { Keyring::default() };
    let url = format!("sqlite:{}", directory.path().join("certdist.db").display());
    let store = &*store::open(&url, keys)?;

    let by = Actor::system_user();
    let how = Import { enrollments: &enrollments, by: &by, dry_run: false, ignores_unknown: false };
    for name in ["first import", "same again"] {
        let start = Instant::now();
        let report = import_file(store, &file, how)?;
        println!("  {name}: {:.2} s ({report:?})", start.elapsed().as_secs_f64());
    }
    let start = Instant::now();
    export_file(store, io::sink())?;
    println!("  export: {:.2} s", start.elapsed().as_secs_f64());

    let devices: Vec<_> = (0..READS).map(|read| device(scramble(read) % rows, shuffled)).collect();
    let ids: Vec<_> = devices.iter().map(|device| DeviceId::parse(device)).collect::<Result<_, _>>()?;
    time_reads("device()", &ids, |id| store.device(id), Option::is_some)?;
    time_reads(
        "individual_key()",
        &devices,
        |device| store.individual_key(device),
        |key| key.found.is_some(),
    )?;
    if !sealed {
        time_entries(store, &ids)?;
        let start = Instant::now();
        store.set_keys(self::keys()?)?;
        let sealed = store.seal_all(&by, &mut |_| ())?.sealed;
        println!("  seal(): {:.2} s ({sealed} values)", start.elapsed().as_secs_f64());
    }
    Ok(())
}

/// Measures the cost of an audit entry: the time of the caller, and the CPU time of the whole
/// process until the entry is written.
fn time_entries(store: &dyn Table, ids: &[DeviceId]) -> Outcome<()> {
    let asker = ("plugs", "SN-1", "192.0.2.1");
    let entry =
        |id: &DeviceId| Asked::new(AuditEvent::Reissued, 1, id, asker, format_args!("a1plugs/name-1"));
    let before = requests(store)?;
    let cpu = cpu_time()?;
    let mut handing_in = 0.0;
    for some in ids.chunks(2000) {
        let start = Instant::now();
        some.iter().try_for_each(|id| store.audit(entry(id)))?;
        handing_in += start.elapsed().as_secs_f64();
        // The entries have the rate of a busy server: 2,000 per 100 ms.
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    std::thread::sleep(std::time::Duration::from_secs(1));
    let cpu = cpu_time()? - cpu;
    let written = requests(store)? - before;
    let each = 1e6 / ids.len() as f64;
    println!(
        "  audit(): {:.2} µs; with writing {:.2} µs of CPU ({written} written)",
        handing_in * each,
        cpu * each
    );
    time_reads("history()", &ids[..100], |id| store.history(id, 100), |_| true)
}

/// Returns the number of requests that the audit log has in records of repeats.
fn requests(store: &dyn Table) -> Outcome<u64> {
    let mut requests = 0;
    store.export_audit(&Filter::default(), &mut |entry, _| {
        requests += entry.repeats.map_or(0, |repeats| repeats.count);
        ControlFlow::Continue(())
    })?;
    Ok(requests)
}

/// Returns the CPU time that this process has used, in seconds.
fn cpu_time() -> Outcome<f64> {
    let usage = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_SELF)?;
    let seconds = |time: nix::sys::time::TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6;
    Ok(seconds(usage.user_time()) + seconds(usage.system_time()))
}

/// Times the reads of all items, first with cold and then with warm caches.
fn time_reads<'a, I, T>(
    name: &str,
    items: &'a [I],
    read: impl Fn(&'a I) -> StoreFuture<'a, T>,
    is_there: impl Fn(&T) -> bool,
) -> Outcome<()> {
    for round in ["cold", "warm"] {
        let start = cpu_time()?;
        for item in items {
            let mut future = read(item);
            match future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                Poll::Ready(found) => is_there(&found?).then_some(()).ok_or("a device is missing")?,
                Poll::Pending => return Err("a read is not ready at its first poll".into()),
            }
        }
        let each = (cpu_time()? - start) * 1e6 / items.len() as f64;
        println!("  {name}, {round}: {each:.2} µs of CPU");
    }
    Ok(())
}

fn write_batch(path: &Path, rows: u64, shuffled: bool) -> io::Result<()> {
    let mut file = BufWriter::new(File::create(path)?);
    writeln!(file, "deviceId,deviceName,deviceSecret,iotId,pskIdentity,psk")?;
    for row in 0..rows {
        let device = device(row, shuffled);
        writeln!(file, "{device},name-{row},{row:032x},iot-{row:016x},{device},{row:032x}")?;
    }
    file.flush()
}

/// Returns the device ID of a row, which is also its PSK identity.
fn device(row: u64, shuffled: bool) -> String {
    if shuffled { format!("SN-{:016x}", scramble(row)) } else { format!("SN-{row:010}") }
}

/// Permutes the 64-bit numbers without a visible order (SplitMix64).
fn scramble(number: u64) -> u64 {
    let number = number.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let number = (number ^ (number >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    number ^ (number >> 31)
}
