//! Reads the database keys from a file, from the environment, or from the service's systemd
//! credentials.

use std::{env, fs, path::Path, path::PathBuf};

use anyhow::{Context, Result, bail, ensure};
use zeroize::Zeroizing;

use crate::seal::{DatabaseKey, Keyring};

const EXPECTED: &str = "expected \"file:PATH\", \"env:NAME\" or \"credential:NAME\"";

/// Reads the keyring of `database_key` and `database_key_previous`.
pub(super) fn read(first: Option<&str>, previous: &[String], folder: &Path) -> Result<Keyring> {
    ensure!(
        first.is_some() || previous.is_empty(),
        "database_key_previous without database_key: {EXPECTED} in database_key, which seals values from now \
         on"
    );
    let first = first.map(|source| key("database_key", source, folder));
    let previous = previous.iter().map(|source| key("database_key_previous", source, folder));
    let keys: Vec<DatabaseKey> = first.into_iter().chain(previous).collect::<Result<_>>()?;
    Ok(Keyring::new(keys))
}

fn key(setting: &str, source: &str, folder: &Path) -> Result<DatabaseKey> {
    let at = || format!("{setting} = \"{source}\"");
    let text = match source.split_once(':') {
        Some(("env", name)) => {
            env::var(name).with_context(|| format!("{}: the environment has no {name}", at()))?
        }
        Some(("file", path)) if !path.is_empty() => read_file(&folder.join(path)).with_context(at)?,
        Some(("credential", name)) => {
            ensure!(
                !name.is_empty() && !name.contains('/') && name != "..",
                "{}: expected the name of a credential, as in LoadCredential=NAME:PATH of the unit",
                at()
            );
            let credentials = env::var_os("CREDENTIALS_DIRECTORY").with_context(|| {
                format!(
                    "{}: the environment has no CREDENTIALS_DIRECTORY; expected to run under systemd, with \
                     LoadCredential={name}:PATH or LoadCredentialEncrypted={name}:PATH in the unit",
                    at()
                )
            })?;
            read_file(&PathBuf::from(credentials).join(name)).with_context(at)?
        }
        // The text may be the database key itself, so the error does not repeat it.
        _ => bail!("{setting}: {EXPECTED}"),
    };
    let text = Zeroizing::new(text);
    DatabaseKey::parse(&text).map_err(|reason| anyhow::anyhow!("{}: {reason}", at()))
}

fn read_file(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("{} cannot be read", path.display()))
}
