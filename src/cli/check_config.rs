//! `certdist check-config`: checks everything that `serve` needs, without serving. It checks the
//! configuration file, the environment variables, the pre-shared keys, the database keys, the
//! database and, with `--online`, IoT Platform.

use anyhow::{Context, anyhow};

use super::{CommandResult, ConfigArgs, Failure, concerns, print, remark};
use crate::{
    config::{Config, Target},
    iot_platform::{ErrorClass, IotPlatform as _, client::Client},
    store::{self, Condition, SharedName},
};

/// Maximum number of shared names, and of enrollments with two keys, that are reported.
const MAX_SHARED: usize = 20;

/// Name of the device about which IoT Platform is asked. The name is legal, but no real device has
/// it.
const UNUSED_NAME: &str = "@certdist-check-config";

/// Checks the configuration, the keys and credentials that it refers to, and the database
#[derive(clap::Args)]
#[command(after_help = "\
Example
  certdist check-config --config /etc/certdist/certdist.toml --online

Exit code 0 if the server would start, 2 with all errors of the configuration, 1 if the
database or IoT Platform fails. Creates and changes nothing: --online asks IoT Platform
for a device that does not exist.")]
pub(super) struct Args {
    /// Call IoT Platform once at each target, to check the credentials
    #[arg(long)]
    online: bool,
    #[command(flatten)]
    config: ConfigArgs,
}

pub(super) async fn run(args: Args) -> CommandResult {
    let config = args.config.read()?;
    let path = args.config.path();
    let path = path.display();
    let enrollments = match config.enrollments.len() {
        1 => "1 enrollment".to_owned(),
        count => format!("{count} enrollments"),
    };
    let listen: Vec<String> = config.listen.iter().map(ToString::to_string).collect();
    print(|out| writeln!(out, "{path}: {enrollments}, listen {}", listen.join(", ")))?;
    report_two_keys(&config)?;
    if config.names_targets {
        report_targets(&config)?;
    }
    let database = store::examine(&config.database).and_then(|condition| {
        if condition == Condition::Current {
            store::check_keys(&config.database, &config.database_keys)?;
        }
        Ok(condition)
    });
    if let Ok(condition) = &database {
        let says = match condition {
            Condition::Missing => {
                "does not exist yet: `certdist serve` and `certdist import` create it".into()
            }
            Condition::Current => "good".into(),
            Condition::Older(version) => {
                format!("has version {version}: `certdist serve` and `certdist import` upgrade it")
            }
        };
        print(|out| writeln!(out, "{}: {says}", store::shown(&config.database)))?;
        if *condition == Condition::Current {
            report_shared_names(&config.database)?;
        }
    }
    for concern in concerns::of_configuration(&config, &args.config.path())
        .into_iter()
        .chain(concerns::of_table(&config))
        .chain(concerns::of_servers(&config).await)
    {
        remark(&format!("warning: {concern}\n"));
    }
    // IoT Platform is called even if the database failed, so that both results are reported.
    let cloud = match args.online {
        true => online(&config).await,
        false => Ok(()),
    };
    match (database, cloud) {
        (Err(error), Err(Failure::Failed(cloud) | Failure::Usage(cloud))) => {
            Err(anyhow!("{error}\nerror: {cloud:#}").into())
        }
        (Err(error), Ok(())) => Err(error.into()),
        (Ok(_), cloud) => cloud,
    }
}

/// Reports the enrollments that accept two keys, as a reminder to remove the former key in the end.
fn report_two_keys(config: &Config) -> CommandResult {
    let two = config.enrollments.iter().filter(|enrollment| enrollment.next.is_some());
    let mut names: Vec<String> = two.map(|enrollment| enrollment.name.escape_debug().to_string()).collect();
    let Some(first) = names.first().cloned() else { return Ok(()) };
    let count = names.len();
    if count > MAX_SHARED {
        names.truncate(MAX_SHARED);
        names.push("…".into());
    }
    let names = names.join(", ");
    Ok(print(|out| {
        writeln!(
            out,
            "enrollments that accept both key and key_next: {count} ({names}); `certdist enrollment show {first}` says \
             when each was last used"
        )
    })?)
}

/// Reports devices that share a name. Shared names do not prevent the server from starting.
fn report_shared_names(database: &str) -> CommandResult {
    for shared in store::shared_names(database, MAX_SHARED)? {
        let SharedName { product_key, device_name, device, devices } = shared;
        print(|out| {
            writeln!(
                out,
                "{}: {devices} devices, such as {device}, have the name {device_name} in product \
                 {product_key}; those without a certificate are refused: import a deviceName of its own for each",
                store::shown(database)
            )
        })?;
    }
    Ok(())
}

/// Reports each target, with the enrollments whose devices are registered there.
fn report_targets(config: &Config) -> CommandResult {
    for target in &config.targets {
        let is_own = |name: &str| config.target_of.get(name) == Some(&target.name);
        let own: Vec<&str> =
            config.enrollments.iter().map(|own| own.name.as_str()).filter(|own| is_own(own)).collect();
        let cloud = match &target.settings {
            Ok(settings) if settings.client.instance_id.is_empty() => settings.client.endpoint.clone(),
            Ok(settings) => format!("{}, instance {}", settings.client.endpoint, settings.client.instance_id),
            Err(_) => "without credentials".to_owned(),
        };
        let enrollments = match own.len() {
            0 => "of no enrollment".to_owned(),
            1 => format!("of enrollment \"{}\"", own[0].escape_debug()),
            count => format!("of {count} enrollments"),
        };
        print(|out| writeln!(out, "target {}: {cloud}, {enrollments}", target.name))?;
    }
    Ok(())
}

/// Calls the cloud of each target once, and reports each result. Fails if any call fails.
async fn online(config: &Config) -> CommandResult {
    let [first, ..] = &config.targets[..] else {
        return Err(Failure::Usage(anyhow!("--online: the configuration has no [iot_platform] to call")));
    };
    if !config.names_targets {
        return call(config, first).await;
    }
    let mut failed = Vec::new();
    for target in &config.targets {
        match call(config, target).await {
            Ok(()) => {}
            Err(Failure::Failed(error) | Failure::Usage(error)) => {
                failed.push(format!("target {}: {error:#}", target.name));
            }
        }
    }
    if failed.is_empty() { Ok(()) } else { Err(anyhow!("{}", failed.join("\nerror: ")).into()) }
}

/// Makes one signed call to the cloud of a target. The call changes nothing.
async fn call(config: &Config, target: &Target) -> CommandResult {
    let client = match &target.settings {
        Ok(settings) => &settings.client,
        Err(reason) => return Err(anyhow!("{reason}").into()),
    };
    let endpoint = client.endpoint.clone();
    let client = Client::new(client.clone()).with_context(|| target.place()).map_err(Failure::Usage)?;
    // The call tests the credentials, so any product will do. Every configuration has a product,
    // because it has an enrollment.
    let is_own = |name: &str| config.target_of.get(name) == Some(&target.name);
    let own = config.enrollments.iter().find(|enrollment| is_own(&enrollment.name));
    let product = own.or(config.enrollments.first()).map_or("", |enrollment| enrollment.product_key.as_str());
    let says = match client.query_device_detail(product, UNUSED_NAME).await {
        Ok(_) => "the credentials are good".to_owned(),
        Err(error) if error.class == ErrorClass::NotFound => "the credentials are good".to_owned(),
        Err(error) => {
            let meaning = match error.class {
                ErrorClass::Operator => "it refuses the call",
                ErrorClass::Throttled => {
                    "the credentials are good, but other callers use up the account's rate limit"
                }
                ErrorClass::TimedOut | ErrorClass::TryAgain => "it cannot be reached at the moment",
                _ => "the call failed",
            };
            return Err(anyhow!("{endpoint}: {meaning} ({error}); docs/cloud.md explains each answer").into());
        }
    };
    let name = if config.names_targets { format!("target {}: ", target.name) } else { String::new() };
    Ok(print(|out| writeln!(out, "{name}{endpoint}: {says}"))?)
}
