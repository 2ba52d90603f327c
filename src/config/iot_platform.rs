//! `[iot_platform]`: the settings of the calls to IoT Platform, and the source of their
//! credentials.

use std::{
    env,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};

use super::{
    IotPlatformSettings, Secrets,
    document::{Problems, Table},
    file,
};
use crate::{
    device::Secret,
    iot_platform::{
        QPS, SWEEP_PAUSE,
        client::{ClientConfig, Credentials, SignatureVersion, Source, Timeouts},
        credentials::{self, CredentialsFile, Role},
        http,
    },
};

const KEY_ID: &str = "ALIBABA_CLOUD_ACCESS_KEY_ID";
const KEY_SECRET: &str = "ALIBABA_CLOUD_ACCESS_KEY_SECRET";
const TOKEN: &str = "ALIBABA_CLOUD_SECURITY_TOKEN";
const ROLE: &str = "ALIBABA_CLOUD_ECS_METADATA";
const TOKEN_REQUIRED: &str = "ALIBABA_CLOUD_IMDSV1_DISABLED";

/// Checks the section. Its relative paths start from `folder`. Returns `None` if there is an error.
/// Missing credentials are not an error if the command does not need them (`secrets`) or if other
/// targets can do without them (`may_lack`). The reason why they are missing is then returned in
/// place of the settings.
pub(super) fn read(
    mut table: Table<file::IotPlatformSection>,
    (folder, secrets): (&Path, Secrets),
    may_lack: bool,
    problems: &mut Problems,
) -> Option<Result<IotPlatformSettings, String>> {
    let timeouts = read_timeouts(&table.values);
    let timeouts = table.checked(problems, &["connect_timeout", "first_byte_timeout", "timeout"], timeouts);
    let credentials = match read_credentials(&table.values, folder) {
        Err(error) if secrets == Secrets::IfThere || may_lack => Some(Err(format!("{error:#}"))),
        credentials => {
            let keys = ["credentials", "metadata_endpoint", "metadata_token"];
            table.checked(problems, &keys, credentials).map(Ok)
        }
    };
    let ca_file = table.values.ca_file.as_ref().map(|path| folder.join(path));
    if let Some(path) = &ca_file {
        let roots = http::read_roots(path).map_err(anyhow::Error::new);
        table.checked(problems, &["ca_file"], roots);
    }
    let section = table.values;
    let signature = match section.signature {
        file::Signature::V1 => SignatureVersion::V1,
        file::Signature::V3 => SignatureVersion::V3,
    };
    let (timeouts, credentials) = (
        timeouts?,
        match credentials? {
            Ok(credentials) => credentials,
            Err(reason) => return Some(Err(reason)),
        },
    );
    let client = ClientConfig {
        instance_id: section.instance_id,
        signature,
        timeouts,
        ca_file,
        ..ClientConfig::new(section.endpoint, section.region, credentials)
    };
    let sweep = match section.sweep {
        None => Some(SWEEP_PAUSE),
        Some(file::Sweep::Seconds(seconds)) => Some(Duration::from_secs(seconds)),
        Some(file::Sweep::Off(file::Off::Off)) => None,
    };
    let (qps, batches) = (section.qps.unwrap_or(QPS), section.batches.unwrap_or(true));
    let manages = section.manage.unwrap_or(false);
    Some(Ok(IotPlatformSettings { client, qps, batches, sweep, manages }))
}

/// Returns the path of the credentials file. Returns `None` if the credentials are not in a file.
pub(super) fn secret_file(section: &file::IotPlatformSection, folder: &Path) -> Option<PathBuf> {
    match &section.credentials {
        file::Credentials::File(Some(path)) => Some(folder.join(path)),
        file::Credentials::File(None) => credentials::usual_path(),
        file::Credentials::Env | file::Credentials::EcsRole(_) => None,
    }
}

fn read_timeouts(section: &file::IotPlatformSection) -> Result<Timeouts> {
    let defaults = Timeouts::default();
    let seconds = |value: Option<file::Seconds>| value.map(|file::Seconds(value)| value);
    let whole = seconds(section.timeout).unwrap_or(defaults.whole);
    // The default of a timeout is never longer than the timeout that includes it. An operator can
    // therefore set one timeout without the others.
    let first_byte = seconds(section.first_byte_timeout).unwrap_or(defaults.first_byte.min(whole));
    let connect = seconds(section.connect_timeout).unwrap_or(defaults.connect.min(first_byte));
    ensure!(
        connect <= first_byte && first_byte <= whole,
        "connect_timeout = {}, first_byte_timeout = {}, timeout = {}: expected none to be longer than the next, \
         which includes it",
        connect.as_secs_f64(),
        first_byte.as_secs_f64(),
        whole.as_secs_f64()
    );
    Ok(Timeouts { connect, first_byte, whole })
}

fn read_credentials(section: &file::IotPlatformSection, folder: &Path) -> Result<Source> {
    let role = |name: Option<String>| Role {
        name,
        metadata_endpoint: section
            .metadata_endpoint
            .clone()
            .map_or_else(|| credentials::DEFAULT_METADATA_ENDPOINT.into(), |file::MetadataEndpoint(url)| url),
        token_required: section.metadata_token == file::Extended::Required
            || variable(TOKEN_REQUIRED).is_some_and(|value| value.eq_ignore_ascii_case("true")),
    };
    match &section.credentials {
        file::Credentials::Env => from_environment(),
        file::Credentials::EcsRole(name) => Ok(Source::Role(role(name.clone().or_else(|| variable(ROLE))))),
        file::Credentials::File(path) => {
            let path = match path {
                Some(path) => Some(folder.join(path)),
                None => credentials::usual_path(),
            };
            let Some(path) = path else {
                bail!(
                    "credentials = \"file\": the environment has neither \
                     ALIBABA_CLOUD_CREDENTIALS_FILE nor HOME; expected \"file:PATH\""
                );
            };
            let profile = credentials::usual_profile();
            let source = Source::File(CredentialsFile { path, profile, role: role(variable(ROLE)) });
            source.check().map_err(|what| anyhow::anyhow!("{what}"))?;
            Ok(source)
        }
    }
}

fn from_environment() -> Result<Source> {
    let needed = |name: &str| {
        variable(name).with_context(|| {
            format!(
                "the environment has no {name}; set it, or credentials = \
                 \"file:PATH\" or \"ecs-role\""
            )
        })
    };
    Ok(Source::Given(Credentials {
        access_key_id: needed(KEY_ID)?,
        access_key_secret: Secret::new(needed(KEY_SECRET)?),
        security_token: variable(TOKEN).map(Secret::new),
    }))
}

fn variable(name: &str) -> Option<String> {
    env::var(name).ok().filter(|value| !value.is_empty())
}
