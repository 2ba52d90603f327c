//! Imports that are written in slices, and the recovery from those that were cut off. While an import is
//! unfinished, readers see the table without the devices that it has added. If it fails or its process is
//! killed, its changes are taken back in short transactions: by the process itself, by the next import or
//! undo, or by any server. Before each slice, the importing process checks the import's mark, which
//! shows whether another process is taking the changes back.

use std::{sync::Arc, time::Duration};

use super::{
    Postgres, audit, counts,
    engine::{Blocking, Transactions},
    failure::Failure,
    import::take_turn,
    session::{Session, column, number, values},
};
use crate::store::{
    Actor, Clock, StoreError, UnixSeconds,
    audit::{AuditEntry, AuditEvent},
    undo::ImportId,
};

/// Interval at which a server looks for an import that was cut off.
const EVERY: Duration = Duration::from_secs(2);

/// Maximum number of rows that one transaction changes, and that one statement reads to find the devices
/// of an import.
const ROWS: i64 = 500;
const SEARCHED: i64 = 10_000;

/// Begins the transaction that holds the turn of imports. Its time limits suit an operator who waits,
/// and end the transaction of a machine that has disappeared.
const BEGIN: &str = "BEGIN; SET LOCAL lock_timeout = '60s'; SET LOCAL statement_timeout = '65s'; \
                     SET LOCAL idle_in_transaction_session_timeout = '600s'";

/// The turn of imports and undos: while a process has it, no other process begins an import or takes
/// one back. It ends with its connection, however the process ends.
pub(super) struct Turn(Blocking);

impl Turn {
    /// Waits for the turn. Then takes back an import that was cut off. Blocks.
    pub(super) fn take(store: &Postgres) -> Result<Self, StoreError> {
        let turn = Self(store.engine.blocking()?);
        turn.0.run(async |session| {
            session.run(BEGIN).await?;
            take_turn(session).await
        })?;
        take_back_now(store)?;
        Ok(turn)
    }

    /// Fails if the turn is lost. Called often, because the server ends a turn that seems idle.
    pub(super) fn keep(&self) -> Result<(), StoreError> {
        self.0.run(async |session| session.run("SELECT 1").await)
    }
}

/// Notes that an import begins to write in slices. Its devices are hidden from now on.
pub(super) async fn begin(
    session: &Session,
    id: ImportId,
    at: UnixSeconds,
    who: &str,
    file: &str,
) -> Result<(), Failure> {
    const SQL: &str = "INSERT INTO import_unfinished (id, importId, at, who, file) VALUES (0, $1, $2, $3, $4) \
                       ON CONFLICT (id) DO UPDATE SET at = import_unfinished.at \
                       WHERE import_unfinished.importId = excluded.importId";
    match session.execute(SQL, values![i64::from(id.0), at, who, file]).await? {
        0 => Err(taken(id)),
        _ => Ok(()),
    }
}

/// Begins a slice, in the caller's transaction. Returns false if it was written already, and only the
/// answer was lost.
pub(super) async fn begin_slice(session: &Session, id: ImportId, slice: i64) -> Result<bool, Failure> {
    // The lock makes a process that takes the import back wait for the end of the slice.
    const MARK: &str = "SELECT 1 FROM import_unfinished WHERE importId = $1 AND NOT isTakenBack FOR SHARE";
    const SLICE: &str = "INSERT INTO import_slice (importId, slice) VALUES ($1, $2) ON CONFLICT DO NOTHING";
    let number = i64::from(id.0);
    if !session.exists(MARK, values![number]).await? {
        return Err(taken(id));
    }
    Ok(session.execute(SLICE, values![number, slice]).await? > 0)
}

/// Removes the mark of an import, in the caller's transaction: its devices appear with the commit.
/// Returns false if it had ended already, and only the answer was lost.
pub(super) async fn end(session: &Session, id: ImportId) -> Result<bool, Failure> {
    const END: &str = "DELETE FROM import_unfinished WHERE importId = $1 AND NOT isTakenBack";
    const HAS_NUMBER: &str = "SELECT 1 FROM import_number WHERE importId = $1";
    let number = i64::from(id.0);
    if session.execute(END, values![number]).await? > 0 {
        return Ok(true);
    }
    // An import that was taken back has no number any more.
    match session.exists(HAS_NUMBER, values![number]).await?
        && !session.exists("SELECT 1 FROM import_unfinished", &[]).await?
    {
        true => Ok(false),
        false => Err(taken(id)),
    }
}

/// Returns the failure of an import that another process has taken back.
fn taken(id: ImportId) -> Failure {
    let reason = format!("import {id} was taken back by another process; import the file again");
    StoreError::Busy(reason).into()
}

/// Mark of an import that was cut off.
struct Mark {
    id: i64,
    file: String,
}

impl Mark {
    /// Reads the mark. From then on, the import writes nothing more.
    async fn take(session: &Session) -> Result<Option<Self>, Failure> {
        const SQL: &str = "UPDATE import_unfinished SET isTakenBack = true RETURNING importId, file";
        if !session.exists("SELECT 1 FROM import_unfinished", &[]).await? {
            return Ok(None);
        }
        let Some(row) = session.row(SQL, &[]).await? else { return Ok(None) };
        Ok(Some(Self { id: column(&row, 0)?, file: column(&row, 1)? }))
    }
}

/// Takes back the changes of an import that was cut off, and removes what is no longer needed of ended
/// ones. Blocks.
pub(super) fn take_back_now(store: &Postgres) -> Result<(), StoreError> {
    let clock = Arc::clone(&store.clock);
    let outcome = store.engine.task_now(async move |transactions| take_back(&transactions, &clock).await);
    store.chainer.wake(&store.engine);
    outcome
}

/// Takes back the changes of an import that was cut off, in short transactions. Several processes may do
/// so at the same time. Stops between two transactions if the engine stops; another process continues.
async fn take_back(transactions: &Transactions, clock: &Clock) -> Result<(), StoreError> {
    while let Some(mark) = transactions.run(&Mark::take).await? {
        // The added devices go first, because they may have the names and identities that the changed
        // devices had before. For the same reason, all new keys go before the first former key comes back.
        if !remove_added(transactions, mark.id).await?
            || !remove_keys(transactions, mark.id).await?
            || !restore_changed(transactions, mark.id).await?
        {
            return Ok(());
        }
        let now = clock.now();
        transactions.run(&async |session: &Session| note_taken_back(session, &mark, now).await).await?;
    }
    clean(transactions).await
}

/// Removes the devices that the import has added. They are not counted yet.
async fn remove_added(transactions: &Transactions, id: i64) -> Result<bool, StoreError> {
    const SEARCH: &str = "SELECT deviceId, addedBy IS NOT DISTINCT FROM $1 FROM device_table WHERE deviceId > $2 \
                          ORDER BY deviceId LIMIT $3";
    const REMOVE: &str = "DELETE FROM device_table WHERE addedBy = $1 AND deviceId = ANY ($2)";
    let mut after = String::new();
    loop {
        let read = async |session: &Session| session.rows(SEARCH, values![id, after, SEARCHED]).await;
        let rows = transactions.read(&read).await?;
        let mut added: Vec<String> = Vec::new();
        for row in &rows {
            if column(row, 1).map_err(|failure| transactions.failed(failure))? {
                added.push(column(row, 0).map_err(|failure| transactions.failed(failure))?);
            }
        }
        for some in added.chunks(ROWS as usize) {
            let some = some.to_vec();
            transactions
                .run(&async |session: &Session| session.execute(REMOVE, values![id, some]).await)
                .await?;
            if transactions.is_ending() {
                return Ok(false);
            }
        }
        match rows.last() {
            Some(last) => after = column(last, 0).map_err(|failure| transactions.failed(failure))?,
            None => return Ok(true),
        }
    }
}

/// Locks devices that the import has changed, in order of their IDs, and returns those that have not
/// changed since and are not being registered.
async fn lock_untouched(session: &Session, id: i64, devices: &[String]) -> Result<Vec<String>, Failure> {
    const SQL: &str = "SELECT d.deviceId, d.importId IS NOT DISTINCT FROM $1 AND NOT EXISTS \
                       (SELECT 1 FROM registration_claim c WHERE c.deviceId = d.deviceId) \
                       FROM device_table d WHERE d.deviceId = ANY ($2) ORDER BY d.deviceId FOR UPDATE";
    let rows = session.rows(SQL, values![id, devices.to_vec()]).await?;
    let mut untouched = Vec::new();
    for row in &rows {
        if column(row, 1)? {
            untouched.push(column(row, 0)?);
        }
    }
    Ok(untouched)
}

/// Removes the keys that the import has given to devices.
async fn remove_keys(transactions: &Transactions, id: i64) -> Result<bool, StoreError> {
    const CHANGED: &str = "SELECT deviceId FROM import_before WHERE importId = $1 AND deviceId > $2 \
                           AND keyChange IS NOT NULL ORDER BY deviceId LIMIT $3";
    const REMOVE: &str = "DELETE FROM device_key WHERE deviceId = ANY ($1)";
    let mut after = String::new();
    loop {
        let last = transactions
            .run(&async |session: &Session| {
                let rows = session.rows(CHANGED, values![id, after, ROWS]).await?;
                let devices: Vec<String> = rows.iter().map(|row| column(row, 0)).collect::<Result<_, _>>()?;
                let untouched = lock_untouched(session, id, &devices).await?;
                session.execute(REMOVE, values![untouched]).await?;
                Ok(devices.into_iter().next_back())
            })
            .await?;
        match last {
            Some(last) => after = last,
            None => return Ok(true),
        }
        if transactions.is_ending() {
            return Ok(false);
        }
    }
}

/// Gives the changed devices their former values, in the reverse of the order in which the import has
/// changed them, so that a name that has passed from one device to another is free again when it is
/// given back.
async fn restore_changed(transactions: &Transactions, id: i64) -> Result<bool, StoreError> {
    // Another process that does the same waits for this lock, and then finds no such rows.
    const CHANGED: &str = "SELECT deviceId FROM import_before WHERE importId = $1 ORDER BY number DESC LIMIT $2 \
                           FOR UPDATE";
    const KEPT: &str = "UPDATE import_unfinished SET kept = kept + $2 WHERE importId = $1";
    loop {
        let restored = transactions
            .run(&async |session: &Session| {
                let rows = session.rows(CHANGED, values![id, ROWS / 5]).await?;
                let devices: Vec<String> = rows.iter().map(|row| column(row, 0)).collect::<Result<_, _>>()?;
                let untouched = lock_untouched(session, id, &devices).await?;
                let all: Vec<&str> = devices.iter().map(String::as_str).collect();
                counts::take(session, &all).await?;
                let mut kept = 0_i64;
                for device in &devices {
                    let is_untouched = untouched.binary_search(device).is_ok();
                    kept += i64::from(!restore(session, id, device, is_untouched).await?);
                }
                counts::give(session, &all).await?;
                if kept > 0 {
                    session.execute(KEPT, values![id, kept]).await?;
                }
                Ok(devices.len())
            })
            .await?;
        if restored == 0 {
            return Ok(true);
        }
        if transactions.is_ending() {
            return Ok(false);
        }
    }
}

/// Restores a device, unless it has changed since or another device has its former name or `IotId` now;
/// then it keeps its values, but has its former keys. Returns false if its former name or `IotId` is
/// taken.
async fn restore(session: &Session, id: i64, device: &str, is_untouched: bool) -> Result<bool, Failure> {
    const IS_TAKEN: &str = "SELECT 1 FROM import_before b JOIN device_table h ON h.deviceId <> b.deviceId \
                            AND h.name = b.name AND h.productKey = b.productKey \
                            WHERE b.importId = $1 AND b.deviceId = $2 \
                            UNION ALL SELECT 1 FROM import_before b JOIN device_table h ON h.deviceId <> b.deviceId \
                            AND h.IotId = b.IotId WHERE b.importId = $1 AND b.deviceId = $2";
    const RESTORE: &str = "UPDATE device_table d SET importId = b.former, enrollment = b.enrollment, \
                           productKey = b.productKey, deviceName = b.deviceName, IotId = b.IotId, \
                           refusal = b.refusal, target = b.target, name = b.name, \
                           deviceSecret = CASE WHEN b.hadSecret THEN d.deviceSecret END \
                           FROM import_before b WHERE b.importId = $1 AND b.deviceId = $2 AND d.deviceId = $2";
    // Replaces the number of the import in the row. Otherwise, the row would seem to come from that
    // import.
    const LEAVE: &str = "UPDATE device_table SET importId = (SELECT -abs(b.former) FROM import_before b \
                         WHERE b.importId = $1 AND b.deviceId = $2) WHERE deviceId = $2 AND importId = $1";
    const DROP_NEXT: &str = "UPDATE device_key k SET pskNext = NULL, nextSince = NULL, pskUsed = NULL, \
                             pskNextUsed = NULL FROM import_before b WHERE b.importId = $1 AND b.deviceId = $2 \
                             AND b.addedNext AND k.deviceId = $2";
    const KEYS: &str = "INSERT INTO device_key (pskIdentity, deviceId, psk, pskNext, nextSince, pskUsed, pskNextUsed) \
                        SELECT formerIdentity, deviceId, formerPsk, formerNext, formerSince, formerUsed, formerNextUsed \
                        FROM import_before WHERE importId = $1 AND deviceId = $2 AND formerPsk IS NOT NULL \
                        AND EXISTS (SELECT 1 FROM device_table d WHERE d.deviceId = $2) ON CONFLICT DO NOTHING";
    const FORGET: &str = "DELETE FROM import_before WHERE importId = $1 AND deviceId = $2";
    let of = values![id, device];
    let is_taken = is_untouched && session.exists(IS_TAKEN, of).await?;
    if is_untouched && !is_taken {
        session.execute(RESTORE, of).await?;
        session.execute(DROP_NEXT, of).await?;
    } else {
        session.execute(LEAVE, of).await?;
    }
    session.execute(KEYS, of).await?;
    session.execute(FORGET, of).await?;
    Ok(!is_taken)
}

/// Notes that all changes of an import are taken back, and removes its mark and its number.
async fn note_taken_back(session: &Session, mark: &Mark, now: UnixSeconds) -> Result<(), Failure> {
    const END: &str = "DELETE FROM import_unfinished WHERE importId = $1 RETURNING kept";
    const FORGET: &str = "DELETE FROM import_number WHERE importId = $1";
    let Some(row) = session.row(END, values![mark.id]).await? else { return Ok(()) };
    session.execute(FORGET, values![mark.id]).await?;
    let kept = number(&row, 0)?;
    let import = ImportId(u32::try_from(mark.id).map_err(Failure::unexpected)?);
    let mut detail = format!("import {import} of {} was cut off; its changes were taken back", mark.file);
    if kept > 0 {
        detail.push_str(&format!(
            ", except those of {kept} devices whose former names now belong to other devices"
        ));
    }
    tracing::warn!(%import, file = mark.file, left = kept, "an import was cut off; its changes were taken back");
    let entry = Actor::system_user().entry(AuditEvent::Undone, now);
    audit::append(session, &AuditEntry { detail: Some(detail), ..entry }).await
}

/// Removes former keys and slices of imports that have ended, and the former values of rows whose import
/// has no record any more.
async fn clean(transactions: &Transactions) -> Result<(), StoreError> {
    const WIPE: &str = "UPDATE import_before SET formerIdentity = NULL, formerPsk = NULL, formerNext = NULL, \
                        formerSince = NULL, formerUsed = NULL, formerNextUsed = NULL \
                        WHERE (importId, deviceId) IN (SELECT importId, deviceId FROM import_before \
                        WHERE formerPsk IS NOT NULL AND importId NOT IN (SELECT importId FROM import_unfinished) \
                        LIMIT $1)";
    const SLICES: &str =
        "DELETE FROM import_slice WHERE importId NOT IN (SELECT importId FROM import_unfinished)";
    // The numbers of imports with former values, without reading all of these.
    const NEXT: &str = "SELECT min(importId) FROM import_before WHERE importId > $1";
    const IS_KNOWN: &str = "SELECT 1 FROM import WHERE importId = $1 \
                            UNION ALL SELECT 1 FROM import_unfinished WHERE importId = $1";
    const FORGET: &str = "DELETE FROM import_before WHERE importId = $1 AND deviceId IN \
                          (SELECT deviceId FROM import_before WHERE importId = $1 ORDER BY deviceId LIMIT $2)";
    transactions.run(&async |session: &Session| session.execute(SLICES, &[]).await).await?;
    while transactions.run(&async |session: &Session| session.execute(WIPE, values![ROWS]).await).await? > 0 {
        if transactions.is_ending() {
            return Ok(());
        }
    }
    let mut id = 0_i64;
    loop {
        let next: Option<i64> = transactions
            .read(&async |session: &Session| {
                let next: Option<i64> = column(&session.one(NEXT, values![id]).await?, 0)?;
                Ok(next)
            })
            .await?;
        let Some(next) = next else { return Ok(()) };
        id = next;
        let forget = async |session: &Session| match session.exists(IS_KNOWN, values![id]).await? {
            true => Ok(0),
            false => session.execute(FORGET, values![id, ROWS]).await,
        };
        while transactions.run(&forget).await? > 0 {
            if transactions.is_ending() {
                return Ok(());
            }
        }
    }
}

/// Looks for imports that were cut off, for as long as a process has the database open.
pub(super) async fn recover(transactions: Transactions, clock: Arc<Clock>) {
    loop {
        transactions.pause(EVERY).await;
        if transactions.is_ending() {
            return;
        }
        if let Err(error) = recover_once(&transactions, &clock).await {
            tracing::debug!(%error, "could not look for an import that was cut off");
        }
    }
}

/// Takes back an import that was cut off, unless an import or an undo is running.
async fn recover_once(transactions: &Transactions, clock: &Clock) -> Result<(), StoreError> {
    const IS_ANY: &str = "SELECT 1 FROM import_unfinished UNION ALL SELECT 1 FROM import_slice LIMIT 1";
    const TURN: &str = "SELECT id FROM import_turn WHERE id = 0 FOR UPDATE SKIP LOCKED";
    if !transactions.read(&async |session: &Session| session.exists(IS_ANY, &[]).await).await? {
        return Ok(());
    }
    let turn = transactions.hold().await?;
    let is_ours = async {
        turn.run(BEGIN).await?;
        turn.exists(TURN, &[]).await
    };
    match is_ours.await.map_err(|failure| transactions.failed(failure))? {
        // The turn ends with its connection.
        true => take_back(transactions, clock).await,
        false => Ok(()),
    }
}
