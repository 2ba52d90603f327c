//! The server is killed (SIGKILL) at every step of a registration. Meanwhile, the cloud loses
//! answers, delays answers, executes calls twice, or fails after it has created the device. In half
//! of the runs, a second server or `certdist register` works on the same table. A seed determines
//! each run. At the end, each device of the table must have one certificate and exist once at the
//! cloud.
//!
//! The first command makes as many runs as docs/performance.md reports. The second command repeats
//! a single run.
//!
//!     CERTDIST_RUNS=500 cargo test --test alone crash:: -- --nocapture
//!     CERTDIST_SEED=17 CERTDIST_RUNS=1 cargo test --test alone crash::
#![cfg(feature = "simulation")]

use std::{
    env,
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use crate::{
    alone,
    support::{MASTER, Process, Site},
};
use certdist::iot_platform::simulator::{Action, Fault, Simulator, SimulatorConfig};
use rand::{RngExt, SeedableRng, rngs::StdRng, seq::IndexedRandom};
use rusqlite::{Connection, OpenFlags};

/// Number of runs in `make test`.
const RUNS: u64 = 15;
/// Maximum wait for a step, after which the server is killed anyway.
const STEP: Duration = Duration::from_secs(8);
/// Maximum time for the devices to get their certificates after the last start, in seconds.
const END: &str = "60";

/// Step after which the server is killed.
#[derive(Debug, Clone, Copy)]
enum Step {
    /// The devices have started to ask.
    Asked,
    /// The journal has an entry.
    Journal,
    /// The cloud has received a call and may be executing it.
    Call,
    /// The cloud is sending its answer.
    Answer,
    /// A certificate is in the table.
    Commit,
    /// The names of a batch are being checked.
    BatchCheck,
    /// The cloud's ID of the batch is in the journal.
    BatchJournal,
    /// The devices of a batch are being created.
    BatchCreate,
    /// A page of the batch's devices was requested.
    BatchPage,
}

const SINGLE: [Step; 5] = [Step::Asked, Step::Journal, Step::Call, Step::Answer, Step::Commit];
const BATCH: [Step; 7] = [
    Step::Journal,
    Step::Call,
    Step::Commit,
    Step::BatchCheck,
    Step::BatchJournal,
    Step::BatchCreate,
    Step::BatchPage,
];

struct Run {
    site: Site,
    cloud: Simulator,
    devices: u32,
    latency: Duration,
    random: StdRng,
    /// Another process on the same table, which keeps running when the server is killed.
    companion: Option<Companion>,
}

enum Companion {
    Server(Process),
    Register(Child),
}

impl Companion {
    fn kill(self) {
        match self {
            Self::Server(server) => server.kill(),
            Self::Register(mut run) => {
                let _ = run.kill();
                let _ = run.wait();
            }
        }
    }
}

impl Run {
    async fn new(seed: u64) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let batch = random.random_bool(0.2);
        let latency = Duration::from_millis(random.random_range(0..15));
        let cloud = Simulator::start(SimulatorConfig {
            access_key_id: "test-id".into(),
            access_key_secret: certdist::device::Secret::new("test-secret".into()),
            latency,
            batch_delay: Duration::from_millis(random.random_range(0..600)),
            seed: Some(seed),
            ..SimulatorConfig::default()
        })
        .await
        .expect("the simulator starts");
        // At 10 calls per second, more than 20 waiting devices are registered in a batch.
        let (devices, qps) =
            if batch { (random.random_range(50..120), 10) } else { (random.random_range(1..5), 1000) };
        let site = Site::with(&format!(
            "[iot_platform]\nendpoint = \"{}\"\nregion = \"cn-shanghai\"\nqps = {qps}\n",
            cloud.endpoint()
        ));
        let mut csv = String::from("deviceId,enrollment\n");
        for number in 1..=devices {
            csv.push_str(&format!("SN{number:08},lamp\n"));
        }
        site.import(&csv);
        Self { site, cloud, devices, latency, random, companion: None }
    }

    /// Starts or kills the companion at random.
    fn change_companion(&mut self) {
        if let Some(companion) = self.companion.take_if(|_| self.random.random_bool(0.5)) {
            companion.kill();
        }
        if self.companion.is_none() && self.random.random_bool(0.5) {
            let companion = if self.random.random_bool(0.5) {
                Companion::Server(self.site.serve())
            } else {
                let mut register = self.site.certdist(&["register"]);
                let register = register.stdout(Stdio::null()).stderr(Stdio::null());
                Companion::Register(register.spawn().expect("certdist runs"))
            };
            self.companion = Some(companion);
        }
    }

    /// Chooses the faults of the next calls.
    fn script(&mut self) {
        for action in [
            Action::RegisterDevice,
            Action::QueryDeviceDetail,
            Action::BatchCheckDeviceNames,
            Action::BatchRegisterDeviceWithApplyId,
            Action::QueryPageByApplyId,
            Action::BatchQueryDeviceDetail,
        ] {
            for _ in 0..self.random.random_range(0..3) {
                let fault = [
                    Fault::Drop,
                    Fault::Drop.after_carrying_out(),
                    Fault::Delay(Duration::from_millis(300)),
                    Fault::Twice,
                    Fault::gateway(503, "ServiceUnavailable").after_carrying_out(),
                    Fault::business("iot.system.SystemException").after_carrying_out(),
                    Fault::html(502),
                ];
                if let Some(fault) = fault.choose(&mut self.random) {
                    self.cloud.script(action, fault.clone());
                }
            }
        }
    }

    /// Starts all devices. A device that is asked to retry later retries, until `patience` seconds
    /// have passed.
    fn devices(&self, server: &Process, patience: &str) -> Child {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("build/coapsload");
        assert!(path.exists(), "{} is missing: run `make clients`", path.display());
        let (port, count) = (server.address.port().to_string(), self.devices.to_string());
        Command::new(path)
            .args(["-p", &port, "-n", &count, "-c", &count, "-K", MASTER, "-B", "-t", patience])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("the devices start")
    }

    /// Starts the server, and kills it right after a step.
    async fn killed(&mut self, step: Step) {
        self.change_companion();
        let server = self.site.serve();
        let mut devices = self.devices(&server, "10");
        let table = self.table();
        let rows = |sql: &str| table.query_row(sql, (), |row| row.get::<_, i64>(0)).unwrap_or(0);
        let journal = rows("SELECT count(*) FROM registration_claim");
        let certificates = rows("SELECT count(deviceSecret) FROM device_table");
        let calls = |action: Action| self.cloud.stats().calls.get(action.name()).copied().unwrap_or(0);
        let before = Action::ALL.map(calls);
        let called = |action: Action| {
            let at = Action::ALL.iter().position(|other| *other == action).unwrap_or(0);
            calls(action) > before[at]
        };
        let deadline = Instant::now() + STEP;
        let happened = || match step {
            Step::Asked => true,
            Step::Journal => rows("SELECT count(*) FROM registration_claim") > journal,
            Step::Call | Step::Answer => called(Action::RegisterDevice),
            Step::Commit => rows("SELECT count(deviceSecret) FROM device_table") > certificates,
            Step::BatchCheck => called(Action::BatchCheckDeviceNames),
            Step::BatchJournal => {
                rows("SELECT count(*) FROM registration_batch WHERE applyId IS NOT NULL") > 0
            }
            Step::BatchCreate => called(Action::BatchRegisterDeviceWithApplyId),
            Step::BatchPage => called(Action::QueryPageByApplyId),
        };
        while !happened() && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_micros(300)).await;
        }
        let after = match step {
            // After this delay, the cloud has probably executed the call and is sending its answer.
            Step::Answer => self.latency,
            _ => Duration::ZERO,
        };
        tokio::time::sleep(after + Duration::from_micros(self.random.random_range(0..4000))).await;
        server.kill();
        let _ = devices.kill();
        let _ = devices.wait();
    }

    fn table(&self) -> Connection {
        Connection::open_with_flags(self.site.path("certdist.db"), OpenFlags::SQLITE_OPEN_READ_ONLY)
            .expect("the table")
    }

    /// Starts the server a last time and checks that every device is served.
    async fn end(mut self) {
        let server = self.site.serve();
        let devices = self.devices(&server, END);
        let output = tokio::task::spawn_blocking(|| devices.wait_with_output())
            .await
            .expect("joined")
            .expect("it ran");
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let count = self.devices;
        assert!(said.contains(&format!("ok {count} (2.xx {count} ")), "{said}");
        // The server must also resume registrations that the companion has left behind.
        if let Some(companion) = self.companion.take() {
            companion.kill();
        }
        // The server registers devices that no longer ask, because they are in the journal.
        let table = self.table();
        let deadline = Instant::now() + Duration::from_secs(60);
        for journal in ["registration_claim", "registration_batch"] {
            let sql = format!("SELECT count(*) FROM {journal}");
            while table.query_row(&sql, (), |row| row.get::<_, i64>(0)).expect("a number") > 0 {
                assert!(Instant::now() < deadline, "{journal} is not closed");
                thread::sleep(Duration::from_millis(20));
            }
        }
        assert_eq!(server.stop(), Some(0));
        assert_eq!(self.cloud.stats().devices, u64::from(count), "one device each");
        let mut rows =
            table.prepare("SELECT deviceId, deviceName, deviceSecret FROM device_table").expect("a query");
        let refused = "SELECT count(*) FROM device_table WHERE refusal IS NOT NULL";
        assert_eq!(table.query_row(refused, (), |row| row.get::<_, i64>(0)).expect("a number"), 0);
        let registered = "SELECT count(*) FROM audit_log WHERE event = 'registered'";
        let registered: i64 = table.query_row(registered, (), |row| row.get(0)).expect("a number");
        assert_eq!(registered, i64::from(count), "one registration each");
        let rows = rows
            .query_map((), |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
            .expect("rows")
            .collect::<Result<Vec<(String, String, String)>, _>>()
            .expect("every row has its certificate");
        assert_eq!(rows.len(), count as usize);
        for (id, name, secret) in rows {
            let theirs =
                self.cloud.device("a1lamp", &name).unwrap_or_else(|| panic!("{id} is not at the cloud"));
            assert_eq!(theirs.device_secret.expose(), secret, "{id}");
        }
    }
}

#[test]
fn whenever_it_is_killed_every_device_ends_with_one_certificate() {
    let _alone = alone();
    tokio::runtime::Runtime::new().expect("a runtime").block_on(runs());
}

async fn runs() {
    let number = |name: &str| env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    let (first, runs) = (number("CERTDIST_SEED").unwrap_or(1), number("CERTDIST_RUNS").unwrap_or(RUNS));
    let (begun, mut kills) = (Instant::now(), 0);
    for seed in first..first + runs {
        let mut run = Run::new(seed).await;
        let steps: &[Step] = if run.devices >= 50 { &BATCH } else { &SINGLE };
        let deaths = run.random.random_range(1..3);
        let steps: Vec<Step> = (0..deaths).filter_map(|_| steps.choose(&mut run.random).copied()).collect();
        println!(
            "CERTDIST_SEED={seed} CERTDIST_RUNS=1 repeats it: {} devices, killed after {steps:?}",
            run.devices
        );
        for step in steps {
            run.script();
            run.killed(step).await;
            kills += 1;
        }
        run.end().await;
    }
    println!("{runs} runs from seed {first}, killed {kills} times, in {:.0?}", begun.elapsed());
}
