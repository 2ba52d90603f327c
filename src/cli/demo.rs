//! `certdist demo`: runs the server, the cloud and the devices in one process, on loopback, in
//! a temporary folder. Only the cloud and the devices are simulated.

use std::{
    collections::HashMap,
    io::Write,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, ensure};
use tokio::{sync::Semaphore, task::JoinSet};

use super::{CommandResult, Failure, open_store, print, serve};
use crate::{
    app::App,
    config::{Config, IotPlatformSettings, MqttSettings, Target},
    device::{Certificate, Secret},
    iot_platform::{
        SWEEP_PAUSE,
        client::ClientConfig,
        host::with_port,
        simulator::{Simulator, SimulatorConfig},
    },
    psk::Enrollment,
    simulated_device::{self, Answer, SimulatedDevice},
    store::Actor,
    table_file::{self, Enrollments, Import},
    target,
};

/// Shows the whole chain at work, without an account or a configuration
#[derive(clap::Args)]
#[command(after_help = "\
Example: a hundred devices, and a server that keeps running for you to try
  certdist demo --devices 100 --keep

Exit code 0 only if every device got its own certificate.")]
pub struct Args {
    /// Number of devices that power on
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    devices: u32,
    /// Keep the server running until Ctrl-C
    #[arg(long)]
    keep: bool,
}

/// Maximum number of devices that are active at the same time. More devices would not be faster,
/// because the simulated devices are slower than the server.
const AT_ONCE: usize = 64;
/// Maximum number of devices that sign in. There is a limit because each device occupies a loopback
/// port for a minute.
const MAX_SIGN_INS: usize = 2000;
/// Time after which a device gives up.
const PATIENCE: Duration = Duration::from_secs(90);
const PRODUCT: &str = "a1DemoProduct";
/// Identity and key of the demo's shared enrollment. The key is readable text, so that a user can
/// type it on a command line.
const SHARED_IDENTITY: &str = "demo-batch";
const SHARED_KEY: &str = "only-for-the-demo";
/// Registrations per second. The simulated cloud has no limits.
const QPS: f64 = 500.0;

pub(super) async fn run(args: Args) -> CommandResult {
    let folder = Folder::new()?;
    let cloud = Simulator::start(SimulatorConfig {
        latency: Duration::from_millis(20),
        mqtt: Some(SocketAddr::from(([127, 0, 0, 1], 0))),
        ..SimulatorConfig::default()
    })
    .await
    .context("could not start the simulated cloud")?;
    print(|out| writeln!(out, "simulated IoT Platform   {}", cloud.endpoint()))?;
    for number in 1..=args.devices {
        imported(number).inspect(|certificate| cloud.insert(certificate));
    }
    let config = configuration(&folder, &cloud)?;
    import(&folder, &config, args.devices)?;
    let app = serve::start(&config).await?;
    print(|out| writeln!(out, "certdist                 coaps://{}", app.addresses()[0]))?;

    let outcome = provision(&args, &app, &cloud).await;
    if outcome.is_ok() {
        print(|out| {
            writeln!(out, "\nA device of your own, with libcoap's client (Debian: libcoap3-bin):\n")?;
            writeln!(out, "  {}\n", coap_client(app.addresses()[0]))
        })?;
        if args.keep {
            print(|out| writeln!(out, "The server runs until Ctrl-C."))?;
            tokio::signal::ctrl_c().await?;
        } else {
            print(|out| {
                writeln!(out, "The server ends now; `certdist demo --keep` keeps it running for that.")
            })?;
        }
    }
    app.stop().await;
    cloud.shutdown().await?;
    Ok(outcome?)
}

/// A temporary folder, removed when dropped.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Result<Self> {
        let path = std::env::temp_dir().join(format!("certdist-demo-{:016x}", rand::random::<u64>()));
        std::fs::create_dir(&path).with_context(|| format!("could not create {}", path.display()))?;
        Ok(Self(path))
    }

    fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // If the folder cannot be removed now, the system will remove it together with other
        // temporary files.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn configuration(folder: &Folder, cloud: &Simulator) -> Result<Config> {
    let text = format!(
        "listen = \"127.0.0.1:0\"\n\
         database = \"sqlite:demo.db\"\n\
         [[enrollment]]\n\
         name = \"demo\"\n\
         product_key = \"{PRODUCT}\"\n\
         kind = \"shared\"\n\
         identity = \"{SHARED_IDENTITY}\"\n\
         key = \"hex:{}\"\n",
        hex::encode(SHARED_KEY)
    );
    let mut config = Config::parse(&text, folder.path())?;
    let host = cloud.mqtt_addr().context("the simulated cloud accepts no devices")?;
    let settings = IotPlatformSettings {
        client: ClientConfig::new(cloud.endpoint(), "cn-shanghai", cloud.credentials()),
        qps: QPS,
        batches: true,
        sweep: Some(SWEEP_PAUSE),
        manages: true,
    };
    let mqtt = MqttSettings {
        host: Some(host.to_string().parse()?),
        instance_id: settings.client.instance_id.clone(),
        region: settings.client.region.clone(),
    };
    config.targets =
        vec![Target { name: target::DEFAULT.to_owned(), is_named: false, mqtt, settings: Ok(settings) }];
    Ok(config)
}

fn serial_number(number: u32) -> String {
    format!("DEMO{number:06}")
}

/// Returns the certificate that is imported with the device, if any. Every fifth device has one,
/// like a device that was registered before certdist was in use.
fn imported(number: u32) -> Option<Certificate> {
    number.is_multiple_of(5).then(|| Certificate {
        product_key: PRODUCT.into(),
        device_name: serial_number(number),
        device_secret: Secret::new(format!("{number:032x}")),
    })
}

fn import(folder: &Folder, config: &Config, devices: u32) -> Result<(), Failure> {
    let path = folder.path().join("devices.csv");
    let mut file = std::io::BufWriter::new(std::fs::File::create(&path)?);
    writeln!(file, "deviceId,deviceName,deviceSecret")?;
    for number in 1..=devices {
        let sn = serial_number(number);
        match imported(number) {
            Some(certificate) => writeln!(file, "{sn},{sn},{}", certificate.device_secret.expose())?,
            None => writeln!(file, "{sn},,")?,
        }
    }
    file.into_inner().context("could not write the devices' file")?.sync_all()?;
    let enrollments = Enrollments::new(config.enrollments.iter().map(Enrollment::outline));
    let how = Import {
        enrollments: &enrollments,
        by: &Actor::system_user(),
        dry_run: false,
        ignores_unknown: false,
    };
    let report = table_file::import_file(&*open_store(config)?, &path, how)?;
    print(|out| writeln!(out, "imported                 {} devices", report.report.added))?;
    Ok(())
}

fn device(server: SocketAddr, sn: String) -> SimulatedDevice {
    SimulatedDevice {
        server,
        identity: SHARED_IDENTITY.into(),
        psk: SHARED_KEY.into(),
        sn: Some(sn),
        asks_host: true,
        patience: PATIENCE,
    }
}

/// Powers on all devices, and checks each answer.
async fn provision(args: &Args, app: &App, cloud: &Simulator) -> Result<()> {
    let server = app.addresses()[0];
    let started = Instant::now();
    let first = fetch_all(args.devices, server).await?;
    let took = started.elapsed();
    let registered = first.keys().filter(|number| imported(**number).is_none()).count() as u64;
    for (number, fetched) in &first {
        check(*number, fetched, cloud)?;
    }
    print(|out| {
        writeln!(
            out,
            "powered on               {} devices, each with its own certificate, in {took:.1?}",
            args.devices
        )
    })?;
    let calls = || cloud.stats().calls.get("RegisterDevice").copied().unwrap_or(0);
    let batches = cloud.stats().calls.get("BatchRegisterDeviceWithApplyId").copied().unwrap_or(0);
    print(|out| {
        writeln!(
            out,
            "registered               {registered}, with {} RegisterDevice calls and {batches} batches",
            calls()
        )
    })?;
    // The cloud also has the devices whose certificates were imported.
    ensure!(
        cloud.stats().devices == u64::from(args.devices),
        "the cloud has {} devices, expected {}",
        cloud.stats().devices,
        args.devices
    );

    let before = calls();
    let again = fetch_all(args.devices.min(5), server).await?;
    ensure!(
        again.iter().all(|(number, fetched)| first.get(number) == Some(fetched)),
        "a device got another certificate the second time"
    );
    ensure!(calls() == before, "a device was registered a second time");
    print(|out| {
        writeln!(
            out,
            "powered on again         {} devices, the same certificates, no new registration",
            again.len()
        )
    })?;

    let signed_in = sign_in(first, cloud).await?;
    if signed_in == u64::from(args.devices) {
        let activated = app.activated().await?;
        ensure!(activated == signed_in, "activateTime is set for {activated} of {signed_in} devices");
        print(|out| writeln!(out, "activateTime             set for all of them, as the cloud reports"))?;
    }

    match device(server, "STRANGER".into()).fetch().await? {
        Answer::Refused { code, title, .. } if code == "4.04" => {
            print(|out| writeln!(out, "a stranger               {code} {title}"))?;
        }
        other => return Err(anyhow!("a device that is not in the table was answered {other:?}")),
    }
    Ok(())
}

/// Signs devices in to the simulated cloud with their certificates, at the host that each was told.
/// Returns the number of devices that have signed in.
async fn sign_in(fetched: HashMap<u32, Fetched>, cloud: &Simulator) -> Result<u64> {
    let turns = Arc::new(Semaphore::new(AT_ONCE));
    let mut tasks = JoinSet::new();
    for Fetched { certificate, host } in fetched.into_values().take(MAX_SIGN_INS) {
        let turn = turns.clone().acquire_owned().await?;
        tasks.spawn(async move {
            let outcome = simulated_device::sign_in(&certificate, &with_port(&host), PATIENCE).await;
            drop(turn);
            outcome.map(|()| certificate.device_name)
        });
    }
    let mut count = 0;
    while let Some(done) = tasks.join_next().await {
        let name = done??;
        let status = cloud.status(PRODUCT, &name);
        ensure!(matches!(status, Some("ONLINE" | "OFFLINE")), "{name} is {status:?} after it signed in");
        count += 1;
    }
    print(|out| writeln!(out, "signed in over MQTT      {count} devices, each with its certificate"))?;
    Ok(count)
}

/// A certificate, and the MQTT host that came with it.
#[derive(PartialEq, Eq)]
struct Fetched {
    certificate: Certificate,
    host: String,
}

async fn fetch_all(devices: u32, server: SocketAddr) -> Result<HashMap<u32, Fetched>> {
    let turns = Arc::new(Semaphore::new(AT_ONCE));
    let mut tasks = JoinSet::new();
    for number in 1..=devices {
        let turn = turns.clone().acquire_owned().await?;
        tasks.spawn(async move {
            let answer = device(server, serial_number(number)).fetch().await;
            drop(turn);
            (number, answer)
        });
    }
    let mut all = HashMap::new();
    while let Some(done) = tasks.join_next().await {
        let (number, answer) = done?;
        match answer.with_context(|| serial_number(number))? {
            Answer::Certificate { certificate, host: Some(host) } => {
                all.insert(number, Fetched { certificate, host })
            }
            Answer::Certificate { host: None, .. } => {
                return Err(anyhow!("{} asked for its host and was not told", serial_number(number)));
            }
            Answer::Refused { code, title, .. } => {
                return Err(anyhow!("{}: {code} {title}", serial_number(number)));
            }
        };
    }
    Ok(all)
}

fn check(number: u32, Fetched { certificate, .. }: &Fetched, cloud: &Simulator) -> Result<()> {
    let sn = serial_number(number);
    let at_cloud = cloud.device(PRODUCT, &sn).with_context(|| format!("{sn} is not at the cloud"))?;
    let expected = imported(number).unwrap_or(at_cloud);
    ensure!(*certificate == expected, "{sn} got a certificate that is not its own");
    Ok(())
}

fn coap_client(server: SocketAddr) -> String {
    let sn = serial_number(1);
    format!(
        "coap-client-openssl -m get -u {SHARED_IDENTITY} -k {SHARED_KEY} -A 50 'coaps://{server}/cert?sn={sn}'"
    )
}
