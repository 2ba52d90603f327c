//! `certdist check-config`: what `serve` would find, without serving: the file, the
//! variables, the keys, the database, and if asked the cloud.

use anyhow::{Context, anyhow};

use super::{ConfigArgs, Failure, Outcome, print};
use crate::{
    config::{Config, IotPlatform},
    iot_platform::{ErrorClass, IotPlatform as _, client::Client},
    store::{self, Condition},
};

/// Asked for at the cloud: a legal name that nobody would give a device.
const NOBODY: &str = "@certdist-check-config";

/// Checks the configuration, the keys and credentials that it refers to, and the database
#[derive(clap::Args)]
#[command(after_help = "\
Example
  certdist check-config --config /etc/certdist/certdist.toml --online

Exit code 0 if the server would start, 2 with all that is wrong in the configuration,
1 if the database or the cloud refuses. Nothing is made and nothing is changed: --online
asks IoT Platform for a device that does not exist.")]
pub(super) struct Args {
    /// Call IoT Platform once, to see that the credentials are good
    #[arg(long)]
    online: bool,
    #[command(flatten)]
    config: ConfigArgs,
}

pub(super) async fn run(args: Args) -> Outcome {
    let config = args.config.read()?;
    let path = args.config.path();
    let path = path.display();
    let enrollments = match config.enrollments.len() {
        1 => "1 enrollment".to_owned(),
        count => format!("{count} enrollments"),
    };
    let listen: Vec<String> = config.listen.iter().map(ToString::to_string).collect();
    print(|out| writeln!(out, "{path}: {enrollments}, listen {}", listen.join(", ")))?;
    let database = store::examine(&config.database);
    if let Ok(condition) = &database {
        let says = match condition {
            Condition::Missing => "not there yet: `certdist serve` and `certdist import` make it".into(),
            Condition::Current => "good".into(),
            Condition::Older(version) => {
                format!("of version {version}: `certdist serve` and `certdist import` bring it up to date")
            }
        };
        print(|out| writeln!(out, "{}: {says}", config.database))?;
    }
    // Both are told, whatever becomes of one.
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

/// One harmless signed call.
async fn online(config: &Config) -> Outcome {
    let Some(IotPlatform { client, .. }) = &config.iot_platform else {
        return Err(Failure::Usage(anyhow!("--online: the configuration has no [iot_platform] to call")));
    };
    let endpoint = client.endpoint.clone();
    let client = Client::new(client.clone()).context("[iot_platform]").map_err(Failure::Usage)?;
    // There is at least one.
    let products = config.enrollments.iter().map(|enrollment| enrollment.product_key.as_str());
    let product = products.into_iter().next().unwrap_or_default();
    let says = match client.query_device_detail(product, NOBODY).await {
        Ok(_) => "the credentials are good".to_owned(),
        Err(error) if error.class == ErrorClass::NotFound => "the credentials are good".to_owned(),
        Err(error) => {
            let meaning = match error.class {
                ErrorClass::Operator => "it refuses the call",
                ErrorClass::Throttled => {
                    "the credentials are good, but somebody uses all of the account's calls"
                }
                ErrorClass::TimedOut | ErrorClass::TryAgain => "it cannot be reached just now",
                _ => "the call failed",
            };
            return Err(anyhow!(
                "{endpoint}: {meaning} ({error}); docs/cloud.md tells what each answer asks of you"
            )
            .into());
        }
    };
    Ok(print(|out| writeln!(out, "{endpoint}: {says}"))?)
}
