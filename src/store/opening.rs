//! Opens and examines the store at a URL, the value of `database` in the configuration. This is the
//! one module that knows which kind of store a URL stands for.

use std::{path::Path, sync::Arc};

use super::{
    Actor, Bulk, SharedName, StoreError, Table, copy,
    postgres::Postgres,
    sealed::{self, Sealed, StoredSecrets},
    sqlite::Sqlite,
};
use crate::seal::Keyring;

/// Condition of a store before it is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Condition {
    /// The file does not exist, or the database has no tables; [`open`] creates them.
    Missing,
    /// The store has the current version.
    Current,
    /// The store has this older version; [`open`] migrates it.
    Older(usize),
}

/// Place of a store, as its URL gives it.
enum Place<'u> {
    /// In this file of SQLite.
    File(&'u Path),
    /// In the PostgreSQL database at this URL.
    Server(&'u str),
}

/// Reads `url`, the value of `database` in the configuration. The error does not show the URL, which
/// may contain a password.
fn place_of(url: &str) -> Result<Place<'_>, StoreError> {
    match url.split_once(':') {
        Some(("sqlite", path)) if !path.is_empty() => Ok(Place::File(path.as_ref())),
        Some(("postgres" | "postgresql", rest)) if rest.starts_with("//") => Ok(Place::Server(url)),
        _ => {
            Err(StoreError::Failed("database: expected sqlite:PATH or postgres://USER@HOST/DATABASE".into()))
        }
    }
}

/// Returns the file of the store at `url`. Fails if the store is not a file.
pub fn file_of(url: &str) -> Result<&Path, StoreError> {
    match place_of(url)? {
        Place::File(path) => Ok(path),
        Place::Server(_) => Err(StoreError::Failed(format!(
            "{}: the database is not a file; use the tools of the database, such as pg_dump and pg_restore",
            shown(url)
        ))),
    }
}

/// Returns the store at `url` as an operator sees it: with an absolute path, and without a password.
pub fn shown(url: &str) -> String {
    match place_of(url) {
        Ok(Place::File(path)) => {
            let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
            format!("sqlite:{}", path.display())
        }
        Ok(Place::Server(url)) => Postgres::shown(url).unwrap_or_else(|_| "the database".into()),
        Err(_) => "the database".into(),
    }
}

/// Examines the store at `url` without changing or creating anything.
pub fn examine(url: &str) -> Result<Condition, StoreError> {
    match place_of(url)? {
        Place::File(path) => Sqlite::examine(path),
        Place::Server(url) => Postgres::examine(url),
    }
}

/// Returns up to `limit` names that several devices of one product share in the store at `url`.
/// Changes nothing, and reads the whole table.
pub fn shared_names(url: &str, limit: usize) -> Result<Vec<SharedName>, StoreError> {
    match place_of(url)? {
        Place::File(path) => Sqlite::shared_names(path, limit),
        // An index keeps such names out.
        Place::Server(_) => Ok(Vec::new()),
    }
}

/// Checks that these database keys open every secret in the store at `url`, which must have the
/// current version. Changes nothing.
pub fn check_keys(url: &str, keys: &Keyring) -> Result<(), StoreError> {
    let in_use = match place_of(url)? {
        Place::File(path) => Sqlite::keys_in_use_of(path)?,
        Place::Server(url) => look_at(url)?.keys_in_use()?,
    };
    sealed::check(keys, &in_use).map_err(|error| StoreError::Failed(format!("{}: {error}", shown(url))))
}

/// Counts the unsealed secrets in the store at `url`, which must have the current version, as
/// [`sealed::StoredSecrets::count_clear`] does. Changes nothing.
pub fn clear_secrets(url: &str) -> Result<u64, StoreError> {
    match place_of(url)? {
        Place::File(path) => Sqlite::clear_secrets(path),
        Place::Server(url) => look_at(url)?.count_clear(),
    }
}

/// Returns the number of devices of each enrollment in the store at `url`, which must have the
/// current version. Changes nothing.
pub fn devices_by_enrollment(url: &str) -> Result<Vec<(String, u64)>, StoreError> {
    match place_of(url)? {
        Place::File(path) => Sqlite::devices_by_enrollment(path),
        Place::Server(url) => {
            let totals = look_at(url)?.totals()?;
            Ok(totals.into_iter().map(|totals| (totals.enrollment, totals.devices)).collect())
        }
    }
}

/// Returns the names of the targets that rows of the store at `url` have. The store must have the
/// current version. Changes nothing.
pub fn targets(url: &str) -> Result<Vec<String>, StoreError> {
    match place_of(url)? {
        Place::File(path) => Sqlite::targets_of(path),
        Place::Server(url) => look_at(url)?.targets(),
    }
}

/// Returns whether a device in the store at `url` is registered and has no target in its row, so that
/// it belongs to the default one. Looks only at a few thousand devices, so that it answers at once. The
/// store must have the current version. Changes nothing.
pub fn has_devices_without_target(url: &str) -> Result<bool, StoreError> {
    match place_of(url)? {
        Place::File(path) => Sqlite::has_devices_without_target(path),
        Place::Server(url) => look_at(url)?.has_devices_without_target(),
    }
}

/// Checks that a store, or another file with content, is at `url`. The error is a message for the
/// operator.
pub fn is_there(url: &str) -> Result<(), StoreError> {
    match place_of(url)? {
        Place::File(path) => Sqlite::is_there(path),
        Place::Server(url) => look_at(url).map(drop),
    }
}

/// Removes the store at `url` if nothing was written to it after its creation. Fails if another
/// process has the store open. Returns whether the store was removed.
pub fn remove_unused(url: &str) -> Result<bool, StoreError> {
    match place_of(url)? {
        Place::File(path) => Sqlite::remove_unused(path),
        // Empty tables are no harm, and another server may be about to use them.
        Place::Server(_) => Ok(false),
    }
}

/// Opens the database at a URL to read it as it is stored.
fn look_at(url: &str) -> Result<Postgres, StoreError> {
    Postgres::look(url, |_| Ok(()))
}

/// Opens the store at `url` for reading only. Creates and changes nothing. Fails if the store does
/// not exist, has another version, or has secrets that these database keys do not open.
pub fn look(url: &str, keys: Keyring) -> Result<Arc<dyn Table>, StoreError> {
    match place_of(url)? {
        Place::File(path) => {
            let store = Sqlite::look(path, |in_use| sealed::check(&keys, in_use))?;
            Ok(Arc::new(Sealed::new(store, keys)))
        }
        Place::Server(url) => {
            let store = Postgres::look(url, |in_use| sealed::check(&keys, in_use))?;
            Ok(Arc::new(Sealed::new(store, keys)))
        }
    }
}

/// Opens the store at `url` only to preview an import. Creates and changes nothing. If the store
/// does not exist but can be created, the import is previewed for an empty store.
pub fn preview(url: &str, keys: Keyring) -> Result<Arc<dyn Table>, StoreError> {
    match place_of(url)? {
        Place::File(path) => {
            let store = Sqlite::preview(path, |in_use| sealed::check(&keys, in_use))?;
            Ok(Arc::new(Sealed::new(store, keys)))
        }
        Place::Server(url) => {
            let store = Postgres::preview(url, |in_use| sealed::check(&keys, in_use))?;
            Ok(Arc::new(Sealed::new(store, keys)))
        }
    }
}

/// Opens the store at `url`, whose secrets are, or will be, sealed under these database keys.
/// Creates the store if it does not exist. Fails if the database keys do not open every secret in
/// the store. In that case, a store of an older version is not migrated.
pub fn open(url: &str, keys: Keyring) -> Result<Arc<dyn Table>, StoreError> {
    match place_of(url)? {
        Place::File(path) => {
            let store = Sqlite::open_if(path, |in_use| sealed::check(&keys, in_use))?;
            Ok(Arc::new(opened(store, keys)))
        }
        Place::Server(url) => {
            let store = Postgres::open_if(url, |in_use| sealed::check(&keys, in_use))?;
            Ok(Arc::new(opened(store, keys)))
        }
    }
}

/// Options of [`copy_between`].
pub struct Copying<'a> {
    /// URL of the store that is copied.
    pub from: &'a str,
    /// URL of the store that receives the copy.
    pub to: &'a str,
    /// Database keys, if there are any. They must open all secrets of `from`, and the first one seals
    /// those of `to`.
    pub keys: Option<&'a Keyring>,
    /// The operator.
    pub by: &'a Actor,
    /// Set if connections to a database on a server do not count as processes that use it.
    pub anyway: bool,
}

/// Copies the store at one URL to the store at another one. Fails before anything is written if the
/// stores are the same, if `from` is in use or its secrets cannot be opened, or if `to` has content other
/// than a part of the same copy.
pub fn copy_between(how: &Copying<'_>, progress: copy::Progress<'_>) -> Result<copy::Report, StoreError> {
    let (from, to) = (place_of(how.from)?, place_of(how.to)?);
    let same = || {
        let from = shown(how.from);
        StoreError::Unusable(format!("{from}: this database would be copied to itself; name another one"))
    };
    match (&from, &to) {
        (Place::File(from), Place::File(to)) if Sqlite::is_same_file(from, to) || from == to => {
            return Err(same());
        }
        (Place::Server(from), Place::Server(to)) if from == to => return Err(same()),
        (Place::File(path), Place::Server(_)) => {
            // In PostgreSQL, a unique index forbids two devices of one product to have the same name.
            if let Some(shared) = Sqlite::shared_names(path, 1)?.first() {
                return Err(StoreError::Unusable(format!(
                    "{}: {} devices of product {} have the name {}, the first of them {}; give each a deviceName of its \
                     own first",
                    shown(how.from),
                    shared.devices,
                    shared.product_key,
                    shared.device_name,
                    shared.device
                )));
            }
        }
        _ => {}
    }
    let none = Keyring::default();
    let keys = how.keys.unwrap_or(&none);
    let accepts = |in_use: &[String]| sealed::check(keys, in_use);
    let source: Box<dyn copy::Source> = match from {
        Place::File(path) => Box::new(Sqlite::copy_source(path, accepts)?),
        Place::Server(url) => Box::new(Postgres::copy_source(url, accepts, how.anyway)?),
    };
    let target: Box<dyn copy::Target> = match to {
        Place::File(path) => Box::new(Sqlite::copy_target(path)?),
        Place::Server(url) => Box::new(Postgres::copy_target(url)?),
    };
    copy::run(&*source, &*target, keys, how.by, progress)
}

fn opened<S: StoredSecrets>(store: S, keys: Keyring) -> Sealed<S> {
    let sealed = Sealed::new(store, keys);
    sealed.show_key();
    sealed
}
