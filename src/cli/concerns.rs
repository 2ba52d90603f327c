//! Concerns about a valid configuration: the server starts in spite of them. `check-config` prints
//! the concerns; the server logs them when it starts and after each reload.

use std::{collections::HashSet, fs, os::unix::fs::PermissionsExt, path::Path, time::Duration};

use crate::{
    company,
    config::Config,
    device_view::time,
    guards::{Phase, is_wrong_clock},
    presence,
    store::{self, Condition, UnixSeconds, server::Facts, unix_now},
    target,
};

/// Bits of a file's mode that let other users read or change the file.
const OTHERS: u32 = 0o006;

/// Bit of a file's mode that lets the group change the file.
const GROUP_WRITES: u32 = 0o020;

/// Longest `drain` with which a stop fits into a service manager's usual time-out of 30 s.
const USUAL_DRAIN: Duration = Duration::from_secs(10);

/// Maximum number of enrollments that are named because they are not configured.
const NAMED: usize = 10;

/// Returns the concerns about a configuration that was read from the file at `path`.
pub(super) fn of_configuration(config: &Config, path: &Path) -> Vec<String> {
    let mut concerns = Vec::new();
    if config.database_keys.first().is_none() {
        concerns
            .push("secrets in the database are not sealed; set database_key in the configuration".to_owned());
    }
    let own = config.has_inline_secrets.then_some(path);
    let files = config.secret_files.iter().map(|file| &**file).chain(own);
    for file in files {
        let (mode, file) = (mode_of(file), file.display());
        if mode & OTHERS != 0 {
            concerns.push(format!("{file} has a secret, and every user can read it: chmod o= {file}"));
        } else if mode & GROUP_WRITES != 0 {
            concerns.push(format!("{file} has a secret, and its group can change it: chmod g-w {file}"));
        }
    }
    for target in &config.targets {
        if let (true, Err(reason)) = (config.names_targets, &target.settings) {
            concerns.push(format!(
                "no device is registered at target \"{}\", because its credentials are missing: {reason}; then \
                 restart certdist",
                target.name
            ));
        }
    }
    let drain = config.limits.drain;
    if drain > USUAL_DRAIN {
        concerns.push(format!(
            "a stop takes up to {} s (drain = {}): systemd is asked for that time, but a service manager such as \
             Kubernetes must be given it (terminationGracePeriodSeconds)",
            drain.as_secs() + super::serve::AFTER_DRAIN.as_secs(),
            drain.as_secs()
        ));
    }
    concerns.extend(of_guards(config, unix_now()));
    concerns
}

/// Returns the concerns about enrollments that give no first certificates at the time `now`, and
/// about a wrong clock if enrollments depend on it.
fn of_guards(config: &Config, now: UnixSeconds) -> Vec<String> {
    let timed = config.enrollments.iter().filter(|enrollment| enrollment.guards.are_timed());
    let said = |at: UnixSeconds| time(Some(at)).unwrap_or_default();
    let mut concerns = Vec::new();
    for enrollment in timed {
        let (name, guards) = (enrollment.name.escape_debug(), enrollment.guards);
        let is_wrong = is_wrong_clock(now);
        if is_wrong && concerns.is_empty() {
            concerns.push(format!(
                "this machine's clock says {}, and opens and closes follow it until IoT Platform's clock is known; \
                 set the clock (NTP)",
                said(now)
            ));
        }
        match guards.phase(now) {
            Phase::Open => {}
            Phase::NotOpen { opens, .. } if guards.opens_far_ahead(now) && !is_wrong => concerns.push(format!(
                "enrollment \"{name}\" opens only at {}, in more than a year: check opens, and this machine's clock",
                said(opens)
            )),
            Phase::NotOpen { opens, .. } => concerns.push(format!(
                "enrollment \"{name}\" opens at {}: until then, its devices without a certificate are asked to retry \
                 later",
                said(opens)
            )),
            Phase::Closed(closed) => concerns.push(format!(
                "enrollment \"{name}\" closed at {}: its devices that have had no certificate are refused",
                said(closed)
            )),
        }
    }
    let further = concerns.split_off(concerns.len().min(NAMED));
    if !further.is_empty() {
        concerns.push(format!("{} further enrollments are closed or not open yet", further.len()));
    }
    concerns
}

/// Returns the mode of a file, or 0 if the file cannot be examined.
fn mode_of(file: &Path) -> u32 {
    fs::metadata(file).map_or(0, |metadata| metadata.permissions().mode())
}

/// Returns the concerns about the devices in the table. Returns no concerns if the database fails,
/// because that failure is reported elsewhere.
pub(super) fn of_table(config: &Config) -> Vec<String> {
    if !matches!(store::examine(&config.database), Ok(Condition::Current)) {
        return Vec::new();
    }
    let configured: HashSet<&str> =
        config.enrollments.iter().map(|enrollment| enrollment.name.as_str()).collect();
    let mut unknown = store::devices_by_enrollment(&config.database).unwrap_or_default();
    unknown.retain(|(enrollment, _)| !configured.contains(enrollment.as_str()));
    let further = unknown.split_off(unknown.len().min(NAMED));
    let mut concerns: Vec<String> = unknown
        .into_iter()
        .map(|(enrollment, devices)| {
            format!(
                "{devices} devices are in enrollment \"{}\", which is not configured, so they get no certificate; add \
                 the [[enrollment]], or import them into another one",
                enrollment.escape_debug()
            )
        })
        .collect();
    if !further.is_empty() {
        let devices: u64 = further.iter().map(|(_, devices)| devices).sum();
        concerns.push(format!(
            "{devices} devices are in {} further enrollments that are not configured; `certdist enrollment list` \
             lists them last",
            further.len()
        ));
    }
    concerns.extend(of_targets(config));
    concerns.extend(of_default_target(config));
    concerns.extend(of_clear_secrets(config));
    concerns
}

/// Returns the differences between the servers of the table, and the differences between their
/// configurations and this one. Returns no concerns if the database fails, because that failure is
/// reported elsewhere.
pub(super) async fn of_servers(config: &Config) -> Vec<String> {
    if !matches!(store::examine(&config.database), Ok(Condition::Current)) {
        return Vec::new();
    }
    let Ok(store) = store::look(&config.database, config.database_keys.clone()) else { return Vec::new() };
    let servers = store.servers().await.unwrap_or_default();
    let mut concerns: Vec<String> =
        company::differences(&servers).iter().take(NAMED).map(ToString::to_string).collect();
    // The server of this configuration may already be running, with an earlier version of the
    // configuration.
    let (own, facts) = (presence::name(config, &config.listen), presence::facts(config));
    let others = servers
        .iter()
        .filter(|view| !view.is_gone() && view.server.command == company::SERVE && view.server.name != own);
    for view in others.take(NAMED) {
        let Facts { enrollments, keys, database_key } = &view.server.facts;
        let what = match () {
            () if *enrollments != facts.enrollments => "other enrollments",
            () if *keys != facts.keys => "other keys for the same enrollments",
            () if *database_key != facts.database_key => "another database key for new secrets",
            () => continue,
        };
        concerns.push(format!(
            "the server {} of this table has {what} than this configuration; servers of one table need the same",
            view.server.name.escape_debug()
        ));
    }
    concerns
}

/// Returns the concern about devices whose target is not configured.
fn of_targets(config: &Config) -> Option<String> {
    let mut unknown = store::targets(&config.database).unwrap_or_default();
    unknown.retain(|name| config.targets.iter().all(|target| target.name != *name));
    let shown: Vec<String> =
        unknown.iter().take(NAMED).map(|name| format!("\"{}\"", name.escape_debug())).collect();
    if shown.is_empty() {
        return None;
    }
    Some(format!(
        "devices in the table belong to targets that are not configured ({}): those with a certificate get it, but \
         others are not registered, and none is looked up; add each [[target]]",
        shown.join(", ")
    ))
}

/// Returns the concern about registered devices without a target in their rows, if the target to which
/// they belong is not configured.
fn of_default_target(config: &Config) -> Option<String> {
    let has_default = config.targets.iter().any(|target| target.name == target::DEFAULT);
    if has_default || config.targets.is_empty() {
        return None;
    }
    let is_there = store::has_devices_without_target(&config.database).unwrap_or(false);
    is_there.then(|| {
        format!(
            "devices in the table were registered without a [[target]], so they belong to the target \"{0}\", which is \
             not configured: they get their certificates, but are neither looked up nor changed at IoT Platform; keep \
             [iot_platform] for them, or give the name \"{0}\" to its [[target]]",
            target::DEFAULT
        )
    })
}

/// Returns the concerns about secrets in clear text: that every user can read the file, and that a
/// database key is configured but some secrets are not sealed. If no database key is configured,
/// [`of_configuration`] reports that instead.
fn of_clear_secrets(config: &Config) -> Vec<String> {
    let Ok(clear @ 1..) = store::clear_secrets(&config.database) else { return Vec::new() };
    let mut concerns = Vec::new();
    if config.database_keys.first().is_some() {
        concerns
            .push(format!("{clear} secrets in the database are in clear text; run `certdist database seal`"));
    }
    if let Ok(file) = store::file_of(&config.database)
        && mode_of(file) & OTHERS != 0
    {
        let file = file.display();
        concerns.push(format!(
            "{file} has {clear} secrets in clear text, and every user can read it: chmod o= {file}*"
        ));
    }
    concerns
}
