//! Three servers on one PostgreSQL database with a standby, behind a balancer (`scripts/test-cluster`).
//! While devices ask for their first certificates, servers are killed, the balancer sends devices to
//! other servers, connections hang, the disk of the database fills up, and the database fails over. A
//! seed determines what happens and when. At the end, each device has one certificate, the same at each
//! request, and exists once at the cloud.
//!
//! The first command makes as many runs as docs/scale.md reports, with 3,000 devices each. The second
//! command repeats a single run.
//!
//!     CERTDIST_SEEDS=0..200 cargo test --test clients cluster::whatever -- --nocapture
//!     CERTDIST_SEEDS=17..18 cargo test --test clients cluster::whatever -- --nocapture
#![cfg(feature = "simulation")]

use std::{
    collections::{BTreeMap, HashMap},
    env, fmt, fs,
    io::{BufRead, BufReader, Write},
    net::SocketAddr,
    ops::Range,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Output, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use rand::{RngExt, SeedableRng, rngs::StdRng, seq::SliceRandom};

use crate::support::{CERTDIST, MASTER, coapsload, http, http_get, stderr, stdout};

/// Number of devices of a run in `make test`, and of a run with a given seed.
const FEW: usize = 300;
const MANY: usize = 3000;

/// Seconds after which a device gives up, and begins again later.
const GIVE_UP: &str = "25";

/// Maximum number of times that all devices ask after the last fault until all are served.
const ROUNDS: usize = 8;

/// Maximum time to wait for a line of the script.
const PATIENCE: Duration = Duration::from_secs(120);

/// The processes that `scripts/test-cluster` starts. They end when this value is dropped.
struct Cluster {
    child: Child,
    commands: Option<ChildStdin>,
    lines: mpsc::Receiver<String>,
    /// Lines that the script printed at its start, by their first word.
    values: HashMap<String, Vec<String>>,
}

impl Cluster {
    /// Starts the processes, with this number of devices in the table.
    fn start(devices: usize, limits: &str, cloud: &[&str]) -> Self {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/test-cluster");
        let mut command = Command::new(script);
        command.args(["--devices", &devices.to_string(), "--limits", limits, CERTDIST, "--"]).args(cloud);
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("Python 3 is installed");
        let (commands, output) = (child.stdin.take(), child.stdout.take().expect("its output"));
        let (say, lines) = mpsc::channel();
        thread::spawn(move || {
            BufReader::new(output).lines().map_while(Result::ok).try_for_each(|line| say.send(line))
        });
        let mut cluster = Self { child, commands, lines, values: HashMap::new() };
        loop {
            let line = cluster.line();
            if line == "ready" {
                return cluster;
            }
            let (name, value) = line.split_once(' ').expect("a name and a value");
            cluster.values.entry(name.to_owned()).or_default().push(value.to_owned());
        }
    }

    fn line(&self) -> String {
        self.lines.recv_timeout(PATIENCE).expect("scripts/test-cluster says something; see its message")
    }

    /// Carries out a command of the script, and returns its notes.
    fn carry_out(&mut self, command: &str) -> Vec<String> {
        let commands = self.commands.as_mut().expect("open until the end");
        writeln!(commands, "{command}").expect("the script runs");
        let mut notes = Vec::new();
        loop {
            let line = self.line();
            match line.strip_prefix("note ") {
                Some(note) => notes.push(note.to_owned()),
                None => {
                    assert_eq!(line, "done", "{command}");
                    return notes;
                }
            }
        }
    }

    fn address(&self, name: &str, index: usize) -> SocketAddr {
        self.values[name][index].parse().expect("an address")
    }

    /// Returns a number that a statement selects.
    fn number(&mut self, sql: &str) -> u64 {
        let notes = self.carry_out(&format!("sql {sql}"));
        notes.first().and_then(|note| note.parse().ok()).unwrap_or_else(|| panic!("{sql}: {notes:?}"))
    }

    /// Runs a `certdist` command with the configuration of the first server.
    fn certdist(&self, arguments: &[&str]) -> Output {
        let configuration = &self.values["configuration"][0];
        let mut command = Command::new(CERTDIST);
        command.args(arguments).args(["--config", configuration]).env_remove("RUST_LOG");
        command.env("ALIBABA_CLOUD_ACCESS_KEY_ID", "test-id");
        command.env("ALIBABA_CLOUD_ACCESS_KEY_SECRET", "test-secret").output().expect("certdist runs")
    }

    fn succeeds(&self, arguments: &[&str]) -> String {
        let output = self.certdist(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", stderr(&output));
        stdout(&output)
    }

    /// Returns the status of a path of each server's admin port, and the bodies.
    fn health(&self, path: &str) -> Vec<(u16, String)> {
        (0..3)
            .map(|index| {
                let answer = http::send(self.address("admin", index), "GET", path, &[], b"");
                (answer.status, answer.body)
            })
            .collect()
    }

    /// Returns the calls and devices that the simulated cloud has counted.
    fn stats(&self) -> serde_json::Value {
        serde_json::from_str(&http_get(self.address("simulator", 0), "/stats")).expect("JSON")
    }

    /// Returns the secrets of the devices at the simulated cloud by name. Fails if a name is there
    /// twice.
    fn devices_at_the_cloud(&self) -> BTreeMap<String, String> {
        let path = Path::new(&self.values["folder"][0]).join("cloud.json");
        // The file is written soon after a change, and replaced in one step.
        let wanted = self.stats()["devices"].as_u64().expect("a number") as usize;
        let deadline = Instant::now() + PATIENCE;
        loop {
            let text = fs::read_to_string(&path).unwrap_or_default();
            let state: serde_json::Value = serde_json::from_str(&text).unwrap_or_default();
            let devices = state["devices"].as_array().cloned().unwrap_or_default();
            if devices.len() == wanted {
                let named: BTreeMap<_, _> = devices
                    .iter()
                    .map(|device| (text_of(device, "deviceName"), text_of(device, "deviceSecret")))
                    .collect();
                assert_eq!(named.len(), wanted, "a name is there twice");
                return named;
            }
            assert!(Instant::now() < deadline, "{} of {wanted} devices are in the file", devices.len());
            thread::sleep(Duration::from_millis(100));
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // When its input ends, the script ends the processes that it has started.
        drop(self.commands.take());
        let deadline = Instant::now() + PATIENCE;
        while self.child.try_wait().is_ok_and(|ended| ended.is_none()) && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(20));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn text_of(device: &serde_json::Value, key: &str) -> String {
    device[key].as_str().unwrap_or_else(|| panic!("no {key} in {device}")).to_owned()
}

/// Lets all devices ask once through the balancer. Returns the output of the load generator. `file`
/// gets the certificates.
fn ask(devices: usize, balancer: SocketAddr, file: &Path, more: &[&str]) -> String {
    let (port, count) = (balancer.port().to_string(), devices.to_string());
    let at_once = devices.min(300).to_string();
    let file = file.to_str().expect("UTF-8");
    let mut arguments = vec!["-p", &port, "-n", &count, "-c", &at_once, "-K", MASTER, "-o", file];
    arguments.extend(more);
    stdout(&coapsload(&arguments))
}

/// A fault of a server, the balancer or the database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    ServerKilled(usize),
    /// The balancer knows only two servers for a time, so devices come to other servers in the middle
    /// of their sessions.
    Rehashed(usize),
    ConnectionHangs,
    PrimaryHangs,
    DiskFull,
    /// The primary is killed, and the standby takes over. This fault has no end.
    Failover,
}

impl Fault {
    fn begin(self) -> String {
        match self {
            Self::ServerKilled(server) => format!("kill {server}"),
            Self::Rehashed(without) => {
                let others: Vec<String> =
                    (1..=3).filter(|server| *server != without).map(|server| server.to_string()).collect();
                format!("servers {}", others.join(" "))
            }
            Self::ConnectionHangs => "freeze connection".into(),
            Self::PrimaryHangs => "freeze primary".into(),
            Self::DiskFull => "fill".into(),
            Self::Failover => "fail".into(),
        }
    }

    fn end(self) -> Option<String> {
        Some(match self {
            Self::ServerKilled(server) => format!("start {server}"),
            Self::Rehashed(_) => "servers 1 2 3".into(),
            Self::ConnectionHangs | Self::PrimaryHangs => "thaw".into(),
            Self::DiskFull => "empty".into(),
            Self::Failover => return None,
        })
    }
}

/// A step of a run: a command of the script, and the pause before it.
struct Step {
    after: Duration,
    command: String,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.1} s: {}", self.after.as_secs_f32(), self.command)
    }
}

/// Returns the faults of a seed with their times, one after another. Each run has a failover, which may
/// begin while the primary hangs, and up to four other faults.
fn plan(random: &mut StdRng) -> Vec<Step> {
    let mut faults = vec![
        Fault::ServerKilled(random.random_range(1..=3)),
        Fault::ServerKilled(random.random_range(1..=3)),
        Fault::Rehashed(random.random_range(1..=3)),
        Fault::ConnectionHangs,
    ];
    // A full disk needs a mount namespace, which only root can create.
    if nix::unistd::geteuid().is_root() {
        faults.push(Fault::DiskFull);
    }
    faults.push(Fault::PrimaryHangs);
    faults.shuffle(random);
    faults.truncate(random.random_range(2..=4));
    let place = random.random_range(0..=faults.len());
    // After the failover, there is no primary with a small disk.
    let disk = faults.iter().position(|fault| *fault == Fault::DiskFull).map_or(0, |at| at + 1);
    faults.insert(place.max(disk), Fault::Failover);
    let mut steps = Vec::new();
    let mut step = |command: String, after: Range<u64>, random: &mut StdRng| {
        steps.push(Step { after: Duration::from_millis(random.random_range(after)), command });
    };
    let mut hangs = false;
    for (number, fault) in faults.iter().enumerate() {
        step(fault.begin(), 300..2500, random);
        // If the failover comes next, the primary hangs until then: an operator may begin a failover
        // because the primary hangs.
        hangs |= *fault == Fault::PrimaryHangs && faults.get(number + 1) == Some(&Fault::Failover);
        let end = fault.end().filter(|_| !std::mem::take(&mut hangs));
        if let Some(end) = end {
            step(end, 500..7000, random);
        }
    }
    steps
}

/// Returns the certificates in a file of the load generator by device ID, each as its payload in hex.
/// Fails if a device has had two different ones.
fn certificates(path: &Path) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    for line in fs::read_to_string(path).expect("the answers").lines() {
        let (number, payload) = line.split_once(' ').expect("a number and a payload");
        let id = format!("SN{:08}", number.parse::<u64>().expect("a number"));
        let former = all.insert(id.clone(), payload.to_owned());
        assert!(former.is_none_or(|former| former == payload), "{id} has had two certificates");
    }
    all
}

/// Carries out one run.
fn run(seed: u64, devices: usize) {
    let random = &mut StdRng::seed_from_u64(seed);
    let begun = Instant::now();
    let (latency, delay) = (random.random_range(0..40), random.random_range(200..1500));
    let (latency, delay) = (format!("{latency}ms"), format!("{delay}ms"));
    let cloud = ["--limits", "real", "--latency", &latency, "--batch-delay", &delay, "--fail-rate", "0.01"];
    let mut cluster = Cluster::start(devices, "", &cloud);
    let balancer = cluster.address("devices", 0);
    let folder = PathBuf::from(&cluster.values["folder"][0]);
    let answers = folder.join("answers");
    let steps = plan(random);
    let said: Vec<String> = steps.iter().map(ToString::to_string).collect();
    println!("CERTDIST_SEEDS={seed}..{} repeats it: {}", seed + 1, said.join("; "));

    let asking = {
        let answers = answers.clone();
        thread::spawn(move || ask(devices, balancer, &answers, &["-B", "-t", GIVE_UP]))
    };
    for step in &steps {
        thread::sleep(step.after);
        for note in cluster.carry_out(&step.command) {
            println!("{}: {note}", step.command);
        }
    }
    let during = asking.join().expect("it ran");
    println!("during the faults: {}", during.lines().next().unwrap_or_default());
    // Devices without a certificate ask again later, and all others ask again, too.
    let mut rounds = 0;
    loop {
        rounds += 1;
        let said = ask(devices, balancer, &answers, &["-B", "-t", GIVE_UP]);
        if said.contains(&format!("ok {devices} (2.xx {devices} ")) {
            break;
        }
        assert!(rounds < ROUNDS, "seed {seed}: not all devices are served: {said}");
    }
    check(&mut cluster, &certificates(&answers), devices);
    println!("seed {seed}: served in {rounds} rounds after the faults, {:.0?} in all", begun.elapsed());
}

/// Checks the table, the cloud and the audit log at the end of a run. `answers` contains the
/// certificates that the devices have received.
fn check(cluster: &mut Cluster, answers: &BTreeMap<String, String>, devices: usize) {
    assert_eq!(answers.len(), devices);
    // Registrations of devices that have given up may still be in the journal, and the newest entries of
    // the audit log are not in the chain yet.
    let deadline = Instant::now() + PATIENCE;
    for journal in ["registration_claim", "registration_batch", "audit_pending"] {
        while cluster.number(&format!("SELECT count(*) FROM {journal}")) > 0 {
            assert!(Instant::now() < deadline, "{journal} is not empty");
            thread::sleep(Duration::from_millis(100));
        }
    }
    let stats = cluster.stats();
    assert_eq!(stats["devices"], devices, "one device for each: {stats}");
    assert_eq!(stats["throttled"], 0, "the account's limits are kept: {stats}");
    for (what, wanted) in [
        ("deviceSecret IS NOT NULL", devices),
        ("firstIssued IS NOT NULL", devices),
        ("refusal IS NOT NULL", 0),
        ("refusal IS NOT NULL AND deviceSecret IS NOT NULL", 0),
    ] {
        let found = cluster.number(&format!("SELECT count(*) FROM device_table WHERE {what}"));
        assert_eq!(found, wanted as u64, "{what}");
    }
    let table = cluster.succeeds(&["export"]);
    let mut lines = table.lines();
    let columns: Vec<&str> = lines.next().expect("a header").split(',').collect();
    let column = |name: &str| columns.iter().position(|column| *column == name).expect(name);
    let (id, name, secret) = (column("deviceId"), column("deviceName"), column("deviceSecret"));
    let mut rows = BTreeMap::new();
    for line in lines {
        let fields: Vec<&str> = line.split(',').collect();
        rows.insert(fields[name].to_owned(), fields[secret].to_owned());
        let answer = hex::decode(&answers[fields[id]]).expect("hex");
        let contains = |text: &str| answer.windows(text.len()).any(|window| window == text.as_bytes());
        assert!(contains(fields[name]) && contains(fields[secret]), "{} has had another one", fields[id]);
    }
    assert_eq!(rows, cluster.devices_at_the_cloud(), "each device of the cloud has a row, with its secret");
    // The chain is whole, and each registration and each first issue is in it once.
    let verified = cluster.succeeds(&["audit", "verify"]);
    assert!(verified.contains("complete"), "{verified}");
    let log = cluster.succeeds(&["audit", "export"]);
    for event in ["registered", "issued"] {
        let mut of: Vec<String> = log
            .lines()
            .map(|line| serde_json::from_str::<serde_json::Value>(line).expect("JSON"))
            .filter(|entry| entry["event"] == event)
            .map(|entry| entry["deviceId"].as_str().expect("a device").to_owned())
            .collect();
        let all = of.len();
        of.sort();
        of.dedup();
        assert_eq!((all, of.len()), (devices, devices), "{event}");
    }
    assert!(cluster.succeeds(&["database", "check"]).contains(&format!("{devices} devices")));
}

#[test]
fn whatever_fails_each_device_has_one_certificate() {
    match env::var("CERTDIST_SEEDS") {
        Err(_) => run(1, FEW),
        Ok(seeds) => {
            let (first, end) = seeds.split_once("..").expect("CERTDIST_SEEDS=FIRST..END");
            let [first, end] = [first, end].map(|number| number.parse::<u64>().expect("a number"));
            (first..end).for_each(|seed| run(seed, MANY));
        }
    }
}

#[test]
fn without_its_database_a_server_asks_devices_to_retry_and_recovers_by_itself() {
    let mut cluster = Cluster::start(20, "", &[]);
    let folder = PathBuf::from(&cluster.values["folder"][0]);
    let (balancer, answers) = (cluster.address("devices", 0), folder.join("answers"));
    let all = |certificates: &str| format!("ok 20 (2.xx {certificates} ");
    assert!(ask(20, balancer, &answers, &["-t", "60"]).contains(&all("20")));
    let psk = cluster.succeeds(&["key", "new", "--derive", "SN00000001", "--enrollment", "lamp"]);

    cluster.carry_out("freeze primary");
    let address = balancer.to_string();
    let device = [
        "device-sim",
        "--server",
        &address,
        "--identity",
        "SN00000001",
        "--psk",
        psk.trim(),
        "--patience",
        "60",
    ];
    let refused = Command::new(CERTDIST).args(device).output().expect("certdist runs");
    let said = stderr(&refused);
    assert!(said.contains("5.03") && said.contains("; retry in "), "{}{said}", stdout(&refused));
    // The servers are not ready, but healthy: a restart would not help.
    assert!(cluster.health("/readyz").iter().all(|(status, _)| *status == 503));
    assert!(cluster.health("/healthz").iter().all(|(status, _)| *status == 200));

    cluster.carry_out("thaw");
    let deadline = Instant::now() + PATIENCE;
    while cluster.health("/readyz").iter().any(|(status, _)| *status != 200) {
        assert!(Instant::now() < deadline, "{:?}", cluster.health("/readyz"));
        thread::sleep(Duration::from_millis(200));
    }
    let said = ask(20, balancer, &answers, &["-B", "-t", "60"]);
    assert!(said.contains(&all("20")), "{said}");
    assert_eq!(certificates(&answers).len(), 20, "each device has the same certificate as before");
    assert_eq!(cluster.stats()["devices"], 20);
    assert!(cluster.succeeds(&["audit", "verify"]).contains("complete"));
}
