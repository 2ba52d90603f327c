//! `certdist demo`: runs the server, a cloud with two instances, and the devices in one process, on
//! loopback, in a temporary folder. Only the cloud and the devices are simulated.

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
    config::Config,
    device::{Certificate, DeviceId, Secret},
    iot_platform::{
        host::with_port,
        simulator::{At, InstanceConfig, Simulator, SimulatorConfig},
    },
    psk::Enrollment,
    simulated_device::{self, Answer, SimulatedDevice},
    store::{
        Actor,
        order::{Former, Move},
    },
    table_file::{self, Enrollments, Import},
};

/// Shows the whole chain at work, without an account or a configuration
#[derive(clap::Args)]
#[command(after_help = "\
Example: a hundred devices, and a server that keeps running for you to try
  certdist demo --devices 100 --keep

Half of the devices belong to one instance of IoT Platform, and half to another. Exit code 0
only if every device got its own certificate, and signed in where it belongs.")]
pub struct Args {
    /// Number of devices that power on
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    devices: u32,
    /// Keep the server running until Ctrl-C
    #[arg(long)]
    keep: bool,
}

/// Maximum number of devices that are active at the same time. A higher number would not make the
/// demo faster, because the simulated devices are slower than the server.
const AT_ONCE: usize = 64;
/// Maximum number of devices that sign in. There is a limit because each device occupies a loopback
/// port for a minute.
const MAX_SIGN_INS: usize = 2000;
/// Time after which a device gives up.
const PATIENCE: Duration = Duration::from_secs(90);
/// Beginning of the devices' keys. They are readable text, so that a user can type one on a command
/// line.
const KEY: &str = "demo-key-of";

/// A target of the demo, with the enrollment of its devices.
struct Site {
    /// Name of the target.
    target: &'static str,
    region: &'static str,
    /// `IotInstanceId` of its instance.
    instance: &'static str,
    product: &'static str,
    /// Name and PSK identity of its enrollment.
    enrollment: &'static str,
}

const SITES: [Site; 2] = [
    Site {
        target: "shanghai",
        region: "cn-shanghai",
        instance: "iot-shanghai",
        product: "a1DemoShanghai",
        enrollment: "demo-shanghai",
    },
    Site {
        target: "tokyo",
        region: "ap-northeast-1",
        instance: "iot-tokyo",
        product: "a1DemoTokyo",
        enrollment: "demo-tokyo",
    },
];

impl Site {
    /// Returns the site to which a device belongs.
    fn of(number: u32) -> &'static Self {
        &SITES[usize::from(number.is_multiple_of(2))]
    }

    fn key(&self) -> String {
        format!("{KEY}-{}", self.target)
    }

    /// Returns the target's instance of the simulated cloud.
    fn at<'c>(&self, cloud: &'c Simulator) -> Result<At<'c>> {
        cloud.instance(self.instance).with_context(|| format!("the cloud has no instance {}", self.instance))
    }

    /// Returns the address where the target's devices sign in.
    fn mqtt(&self, cloud: &Simulator) -> Result<SocketAddr> {
        self.at(cloud)?.mqtt_addr().context("the simulated cloud accepts no devices")
    }
}

/// Registrations per second. The simulated cloud has no limits.
const QPS: u32 = 500;

pub(super) async fn run(args: Args) -> CommandResult {
    let folder = Folder::new()?;
    let instance = |site: &Site| InstanceConfig {
        id: site.instance.into(),
        region: Some(site.region.into()),
        mqtt: Some(SocketAddr::from(([127, 0, 0, 1], 0))),
        ..InstanceConfig::default()
    };
    let cloud = Simulator::start(SimulatorConfig {
        latency: Duration::from_millis(20),
        instances: SITES.iter().map(instance).collect(),
        ..SimulatorConfig::default()
    })
    .await
    .context("could not start the simulated cloud")?;
    print(|out| writeln!(out, "simulated IoT Platform   {}", cloud.endpoint()))?;
    for site in &SITES {
        let mqtt = site.mqtt(&cloud)?;
        print(|out| {
            writeln!(out, "{:24} instance {}, devices sign in at {mqtt}", site.target, site.instance)
        })?;
    }
    for number in 1..=args.devices {
        if let Some(certificate) = imported(number) {
            Site::of(number).at(&cloud)?.insert(&certificate);
        }
    }
    let config = configuration(&folder, &cloud)?;
    import(&folder, &config, args.devices)?;
    let app = serve::start(&config).await?;
    print(|out| writeln!(out, "certdist                 coaps://{}", app.addresses()[0]))?;

    let outcome = show(&args, &app, &cloud).await;
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
    let credentials = cloud.credentials();
    let profile = format!(
        "[default]\ntype = access_key\naccess_key_id = {}\naccess_key_secret = {}\n",
        credentials.access_key_id,
        credentials.access_key_secret.expose()
    );
    std::fs::write(folder.path().join("credentials.ini"), profile)?;
    let mut text = "listen = \"127.0.0.1:0\"\ndatabase = \"sqlite:demo.db\"\n".to_owned();
    for site in &SITES {
        let Site { target, region, instance, product, enrollment } = site;
        let (endpoint, host, key) = (cloud.endpoint(), site.mqtt(cloud)?, hex::encode(site.key()));
        text += &format!(
            "[[target]]\nname = \"{target}\"\nendpoint = \"{endpoint}\"\nregion = \"{region}\"\n\
             instance_id = \"{instance}\"\nhost = \"{host}\"\ncredentials = \"file:credentials.ini\"\n\
             qps = {QPS}\nmanage = true\n\
             [[enrollment]]\nname = \"{enrollment}\"\nproduct_key = \"{product}\"\nkind = \"shared\"\n\
             identity = \"{enrollment}\"\nkey = \"hex:{key}\"\ntarget = \"{target}\"\n"
        );
    }
    Config::parse(&text, folder.path())
}

fn serial_number(number: u32) -> String {
    format!("DEMO{number:06}")
}

/// Returns the certificate that is imported with the device, if any. Every fifth device has one,
/// like a device that was registered before certdist was in use.
fn imported(number: u32) -> Option<Certificate> {
    number.is_multiple_of(5).then(|| Certificate {
        product_key: Site::of(number).product.into(),
        device_name: serial_number(number),
        device_secret: Secret::new(format!("{number:032x}")),
    })
}

fn import(folder: &Folder, config: &Config, devices: u32) -> Result<(), Failure> {
    let path = folder.path().join("devices.csv");
    let mut file = std::io::BufWriter::new(std::fs::File::create(&path)?);
    writeln!(file, "deviceId,enrollment,deviceName,deviceSecret")?;
    for number in 1..=devices {
        let (sn, enrollment) = (serial_number(number), Site::of(number).enrollment);
        match imported(number) {
            Some(certificate) => {
                writeln!(file, "{sn},{enrollment},{sn},{}", certificate.device_secret.expose())?;
            }
            None => writeln!(file, "{sn},{enrollment},,")?,
        }
    }
    file.into_inner().context("could not write the devices' file")?.sync_all()?;
    let targets = config.targets.iter().map(|target| target.name.clone());
    let enrollments = Enrollments::new(config.enrollments.iter().map(Enrollment::outline))
        .with_targets(targets, config.target_of.clone());
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

fn device(server: SocketAddr, site: &Site, sn: String) -> SimulatedDevice {
    SimulatedDevice {
        server,
        identity: site.enrollment.into(),
        psk: site.key().into(),
        sn: Some(sn),
        asks_host: true,
        patience: PATIENCE,
    }
}

/// Shows the scenes of the demo, one after the other. Each prints what has happened.
async fn show(args: &Args, app: &App, cloud: &Simulator) -> Result<()> {
    let server = app.addresses()[0];
    let first = power_on(args.devices, server, cloud).await?;
    power_on_again(&first, server, cloud).await?;
    activate(first, app, cloud).await?;
    move_away(app, cloud).await?;
    turn_away(server).await
}

/// Returns the number of calls of an action so far.
fn calls(cloud: &Simulator, action: &str) -> u64 {
    cloud.stats().calls.get(action).copied().unwrap_or(0)
}

/// Powers on all devices, and checks each answer. Returns what the devices have got, by number.
async fn power_on(devices: u32, server: SocketAddr, cloud: &Simulator) -> Result<HashMap<u32, Fetched>> {
    let started = Instant::now();
    let first = fetch_all(devices, server).await?;
    let took = started.elapsed();
    let registered = first.keys().filter(|number| imported(**number).is_none()).count();
    for (number, fetched) in &first {
        check(*number, Site::of(*number), fetched, cloud)?;
    }
    let batches = calls(cloud, "BatchRegisterDeviceWithApplyId");
    print(|out| {
        writeln!(
            out,
            "powered on               {devices} devices, each with its own certificate, in {took:.1?}"
        )?;
        writeln!(
            out,
            "registered               {registered}, with {} RegisterDevice calls and {batches} batches",
            calls(cloud, "RegisterDevice")
        )?;
        SITES.iter().try_for_each(|site| {
            let own = first.keys().filter(|number| Site::of(**number).target == site.target).count();
            writeln!(out, "at {:21} {own}, each told the host of {}", site.target, site.instance)
        })
    })?;
    // The cloud also has the devices whose certificates were imported.
    let there = cloud.stats().devices;
    ensure!(there == u64::from(devices), "the cloud has {there} devices, expected {devices}");
    Ok(first)
}

/// Powers on some devices again, and checks that they get the same certificates.
async fn power_on_again(first: &HashMap<u32, Fetched>, server: SocketAddr, cloud: &Simulator) -> Result<()> {
    let before = calls(cloud, "RegisterDevice");
    let again = fetch_all(u32::try_from(first.len())?.min(5), server).await?;
    ensure!(
        again.iter().all(|(number, fetched)| first.get(number) == Some(fetched)),
        "a device got another certificate the second time"
    );
    ensure!(calls(cloud, "RegisterDevice") == before, "a device was registered a second time");
    print(|out| {
        writeln!(
            out,
            "powered on again         {} devices, the same certificates, no new registration",
            again.len()
        )
    })
}

/// Signs devices in, and checks that the table records it.
async fn activate(fetched: HashMap<u32, Fetched>, app: &App, cloud: &Simulator) -> Result<()> {
    let all = fetched.len() as u64;
    let signed_in = sign_in(fetched, cloud).await?;
    if signed_in == all {
        let activated = app.activated().await?;
        ensure!(activated == signed_in, "activateTime is set for {activated} of {signed_in} devices");
        print(|out| writeln!(out, "activateTime             set for all of them, as the cloud reports"))?;
    }
    Ok(())
}

/// Moves the first device to the other target, and checks that it gets another certificate with its
/// next request, and signs in there.
async fn move_away(app: &App, cloud: &Simulator) -> Result<()> {
    let [from, to] = &SITES;
    let sn = serial_number(1);
    let destination =
        Move { target: to.target.into(), product_key: to.product.into(), former: Former::Disable };
    app.move_device(&DeviceId::parse(&sn)?, &destination).await?;
    let fetched = fetch_all(1, app.addresses()[0]).await?.remove(&1).context("the device got no answer")?;
    check(1, to, &fetched, cloud)?;
    simulated_device::sign_in(&fetched.certificate, &with_port(&fetched.host), PATIENCE).await?;
    let former = from.at(cloud)?.status(from.product, &sn);
    ensure!(former == Some("DISABLE"), "{sn} is {former:?} at {} after it has moved", from.target);
    print(|out| {
        writeln!(
            out,
            "moved to {:15} {sn}: a new certificate, signed in there; disabled in {}",
            to.target, from.target
        )
    })
}

/// Lets a device that is not in the table ask for a certificate.
async fn turn_away(server: SocketAddr) -> Result<()> {
    match device(server, &SITES[0], "STRANGER".into()).fetch().await? {
        Answer::Refused { code, title, .. } if code == "4.04" => {
            print(|out| writeln!(out, "a stranger               {code} {title}"))
        }
        other => Err(anyhow!("a device that is not in the table was answered {other:?}")),
    }
}

/// Signs devices in to the simulated cloud with their certificates, at the host that came with each
/// certificate; an instance refuses the devices of another instance. Returns the number of devices
/// that have signed in.
async fn sign_in(fetched: HashMap<u32, Fetched>, cloud: &Simulator) -> Result<u64> {
    let turns = Arc::new(Semaphore::new(AT_ONCE));
    let mut tasks = JoinSet::new();
    for (number, Fetched { certificate, host }) in fetched.into_iter().take(MAX_SIGN_INS) {
        let turn = turns.clone().acquire_owned().await?;
        tasks.spawn(async move {
            let outcome = simulated_device::sign_in(&certificate, &with_port(&host), PATIENCE).await;
            drop(turn);
            outcome.map(|()| (number, certificate.device_name))
        });
    }
    let mut count = 0;
    while let Some(done) = tasks.join_next().await {
        let (number, name) = done??;
        let site = Site::of(number);
        let status = site.at(cloud)?.status(site.product, &name);
        ensure!(matches!(status, Some("ONLINE" | "OFFLINE")), "{name} is {status:?} after it signed in");
        count += 1;
    }
    print(|out| {
        writeln!(out, "signed in over MQTT      {count} devices, each at the host that it was told")
    })?;
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
            let answer = device(server, Site::of(number), serial_number(number)).fetch().await;
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

/// Checks that a device has its own certificate, and the host of this site.
fn check(number: u32, site: &Site, fetched: &Fetched, cloud: &Simulator) -> Result<()> {
    let sn = serial_number(number);
    let at_cloud = site
        .at(cloud)?
        .device(site.product, &sn)
        .with_context(|| format!("{sn} is not at {}", site.instance))?;
    let expected = imported(number).unwrap_or(at_cloud);
    ensure!(fetched.certificate == expected, "{sn} got a certificate that is not its own");
    let host = site.mqtt(cloud)?.to_string();
    ensure!(fetched.host == host, "{sn} was told the host {}, expected {host}", fetched.host);
    Ok(())
}

fn coap_client(server: SocketAddr) -> String {
    let (site, sn) = (Site::of(1), serial_number(1));
    format!(
        "coap-client-openssl -m get -u {} -k {} -A 50 'coaps://{server}/cert?sn={sn}'",
        site.enrollment,
        site.key()
    )
}
