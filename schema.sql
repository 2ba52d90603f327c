-- certdist's database, version 10.
--
-- `certdist serve` and `certdist import` create it automatically. To create it by hand:
--     sqlite3 certdist.db < schema.sql
-- It holds secrets (deviceSecret, psk, pskNext), which are sealed if the configuration has a
-- database_key: keep the file readable for certdist's own account only. To inspect it,
-- even beside a running server:
--     sqlite3 -readonly certdist.db
-- To change it, use `certdist import` and `certdist device`.
-- Times are seconds since 1970-01-01T00:00:00Z. Rows never expire.

-- Mark the file as certdist's ("cert"), and set the version of its schema.
PRAGMA application_id = 0x63657274;
PRAGMA user_version = 10;

-- One row for each device that may ask for a certificate. The first seven columns are
-- those of the Tablestore table of the same name.
CREATE TABLE device_table (
    -- Serial number, or MAC address as 12 upper-case hex digits.
    deviceId     TEXT NOT NULL PRIMARY KEY,
    -- Time of the registration at IoT Platform; NULL: not known.
    registerTime INTEGER,
    -- Time of the first sign-in at IoT Platform; NULL: not known.
    activateTime INTEGER,
    -- Product in which the device is, or will be, registered.
    productKey   TEXT NOT NULL,
    -- Device name. If deviceSecret is NULL, the device will be registered under this
    -- name. NULL: the name is derived from deviceId.
    deviceName   TEXT,
    -- Secret of the certificate; NULL: the device has no certificate.
    deviceSecret TEXT,
    -- The cloud's own identifier of the device.
    IotId        TEXT,

    -- Name of an [[enrollment]] of certdist.toml.
    enrollment   TEXT NOT NULL,
    -- `disabled`: the operator has disabled the device.
    state        TEXT NOT NULL DEFAULT 'enabled' CHECK (state IN ('enabled', 'disabled')),
    -- Time at which the certificate was first issued; NULL: never.
    firstIssued  INTEGER,
    -- Reason why IoT Platform refused this device. `certdist device reset`, or an
    -- import that changes the row, clears it; then registration is tried again.
    refusal      TEXT,
    -- Abnormal state of the device at IoT Platform, as of the last query; NULL: none
    -- known.
    cloudState   TEXT CHECK (cloudState IN ('disabled', 'deleted')),
    -- Random number of the request whose answer was the first to carry the certificate. If the
    -- database's answer is lost and the request repeats its write, the number identifies it. The
    -- CHECK is about the whole row: no device has both a certificate and a refusal.
    issueId      INTEGER CHECK (refusal IS NULL OR deviceSecret IS NULL),
    -- The import that added the row or was the last to change it. With a minus sign: the row has
    -- changed since. NULL: the import cannot be undone.
    importId     INTEGER,
    -- The [[target]] at which the device is registered, or, while it has no certificate, will be.
    -- NULL: `default` if the device has a certificate, and otherwise that of its enrollment when it
    -- is registered.
    target       TEXT,

    CHECK (deviceSecret IS NULL OR deviceName IS NOT NULL)
) STRICT, WITHOUT ROWID;

-- Two rows with the same name in one product, or with the same IotId, would share one
-- device at IoT Platform. certdist adds no such row.
CREATE INDEX device_name ON device_table (productKey, coalesce(deviceName, deviceId));
CREATE INDEX device_iot_id ON device_table (IotId) WHERE IotId IS NOT NULL;

-- Rows with a MAC address in an unusual spelling, such as 001a-2b3c-4d5e, by that address. Earlier
-- versions stored it as a serial number. Usually there are none.
CREATE INDEX device_spelled ON device_table (
    upper(replace(replace(replace(replace(replace(replace(deviceId, ':', ''), '-', ''), '.', ''), '_', ''), '0x', ''), '0X', ''))
) WHERE deviceId NOT GLOB '[0-9A-F][0-9A-F][0-9A-F][0-9A-F][0-9A-F][0-9A-F][0-9A-F][0-9A-F][0-9A-F][0-9A-F][0-9A-F][0-9A-F]'
    AND deviceId NOT GLOB '*[^0-9A-Fa-fxX:._-]*'
    AND length(replace(replace(replace(replace(replace(replace(deviceId, ':', ''), '-', ''), '.', ''), '_', ''), '0x', ''), '0X', '')) = 12;

-- Devices of an enrollment, and devices by the last 4 characters of their ID: an operator reads
-- these from a label.
CREATE INDEX device_enrollment ON device_table (enrollment);
CREATE INDEX device_end ON device_table (upper(substr(deviceId, -4)));

-- The few devices that need an operator, in order of their IDs.
CREATE INDEX device_refused ON device_table (deviceId, enrollment, refusal) WHERE refusal IS NOT NULL;
CREATE INDEX device_disabled ON device_table (deviceId) WHERE state = 'disabled';
CREATE INDEX device_cloud_state ON device_table (deviceId, cloudState) WHERE cloudState IS NOT NULL;

-- Devices whose row names a target. A server with one target has none.
CREATE INDEX device_target ON device_table (target) WHERE target IS NOT NULL;

-- Numbers of devices by enrollment and product. The triggers below keep them, whoever changes
-- device_table, so that no one has to count the rows. `certdist database check` compares them with
-- the rows, and `certdist database recount` corrects them. Only REPLACE goes unnoticed, unless
-- `PRAGMA recursive_triggers` is on. An import counts its rows itself, with the triggers off.
CREATE TABLE device_count (
    enrollment    TEXT NOT NULL,
    productKey    TEXT NOT NULL,
    -- All devices.
    devices       INTEGER NOT NULL,
    -- Devices with a certificate.
    registered    INTEGER NOT NULL,
    -- Devices with a certificate that was never issued.
    unissued      INTEGER NOT NULL,
    -- Devices whose certificate was issued.
    issued        INTEGER NOT NULL,
    -- Devices that have signed in at IoT Platform.
    activated     INTEGER NOT NULL,
    -- Devices that IoT Platform refuses.
    refused       INTEGER NOT NULL,
    -- Devices that the operator has disabled.
    disabled      INTEGER NOT NULL,
    -- Devices that may be registered but have no certificate yet.
    unregistered  INTEGER NOT NULL,
    -- Devices that are disabled at IoT Platform, and deleted there.
    cloudDisabled INTEGER NOT NULL,
    cloudDeleted  INTEGER NOT NULL,
    -- Devices whose certificate is not sealed.
    clear         INTEGER NOT NULL,
    PRIMARY KEY (enrollment, productKey)
) STRICT, WITHOUT ROWID;

-- Numbers of devices that IoT Platform refuses, by enrollment and reason.
CREATE TABLE refusal_count (
    enrollment    TEXT NOT NULL,
    refusal       TEXT NOT NULL,
    devices       INTEGER NOT NULL,
    PRIMARY KEY (enrollment, refusal)
) STRICT, WITHOUT ROWID;

-- Number of times that `certdist database recount` has corrected the counts. Of two processes that
-- correct the same difference, only one does so.
CREATE TABLE count_correction (
    id            INTEGER PRIMARY KEY CHECK (id = 0),
    times         INTEGER NOT NULL
) STRICT;
INSERT INTO count_correction VALUES (0, 0);

CREATE TRIGGER device_count_insert AFTER INSERT ON device_table BEGIN
    INSERT INTO device_count VALUES (NEW.enrollment, NEW.productKey,
        1, (NEW.deviceSecret IS NOT NULL),
        (NEW.deviceSecret IS NOT NULL AND NEW.firstIssued IS NULL), (NEW.firstIssued IS NOT NULL),
        (NEW.activateTime IS NOT NULL), (NEW.refusal IS NOT NULL), (NEW.state = 'disabled'),
        (NEW.deviceSecret IS NULL AND NEW.refusal IS NULL AND NEW.state = 'enabled'),
        (NEW.cloudState IS 'disabled'), (NEW.cloudState IS 'deleted'),
        (NEW.deviceSecret IS NOT NULL AND NEW.deviceSecret NOT GLOB 'sealed *'))
    ON CONFLICT DO UPDATE SET
        devices = devices + excluded.devices, registered = registered + excluded.registered,
        unissued = unissued + excluded.unissued, issued = issued + excluded.issued,
        activated = activated + excluded.activated, refused = refused + excluded.refused,
        disabled = disabled + excluded.disabled,
        unregistered = unregistered + excluded.unregistered,
        cloudDisabled = cloudDisabled + excluded.cloudDisabled,
        cloudDeleted = cloudDeleted + excluded.cloudDeleted, clear = clear + excluded.clear;
END;
CREATE TRIGGER device_count_delete AFTER DELETE ON device_table BEGIN
    UPDATE device_count SET
        devices = devices - 1, registered = registered - (OLD.deviceSecret IS NOT NULL),
        unissued = unissued - (OLD.deviceSecret IS NOT NULL AND OLD.firstIssued IS NULL),
        issued = issued - (OLD.firstIssued IS NOT NULL),
        activated = activated - (OLD.activateTime IS NOT NULL),
        refused = refused - (OLD.refusal IS NOT NULL),
        disabled = disabled - (OLD.state = 'disabled'),
        unregistered = unregistered
            - (OLD.deviceSecret IS NULL AND OLD.refusal IS NULL AND OLD.state = 'enabled'),
        cloudDisabled = cloudDisabled - (OLD.cloudState IS 'disabled'),
        cloudDeleted = cloudDeleted - (OLD.cloudState IS 'deleted'),
        clear = clear - (OLD.deviceSecret IS NOT NULL AND OLD.deviceSecret NOT GLOB 'sealed *')
    WHERE enrollment = OLD.enrollment AND productKey = OLD.productKey;
    DELETE FROM device_count WHERE enrollment = OLD.enrollment AND productKey = OLD.productKey
        AND (devices, registered, unissued, issued, activated, refused,
            disabled, unregistered, cloudDisabled, cloudDeleted, clear)
                = (0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);
END;
CREATE TRIGGER device_count_move AFTER UPDATE OF enrollment, productKey ON device_table
WHEN NEW.enrollment <> OLD.enrollment OR NEW.productKey <> OLD.productKey BEGIN
    UPDATE device_count SET
        devices = devices - 1, registered = registered - (OLD.deviceSecret IS NOT NULL),
        unissued = unissued - (OLD.deviceSecret IS NOT NULL AND OLD.firstIssued IS NULL),
        issued = issued - (OLD.firstIssued IS NOT NULL),
        activated = activated - (OLD.activateTime IS NOT NULL),
        refused = refused - (OLD.refusal IS NOT NULL),
        disabled = disabled - (OLD.state = 'disabled'),
        unregistered = unregistered
            - (OLD.deviceSecret IS NULL AND OLD.refusal IS NULL AND OLD.state = 'enabled'),
        cloudDisabled = cloudDisabled - (OLD.cloudState IS 'disabled'),
        cloudDeleted = cloudDeleted - (OLD.cloudState IS 'deleted'),
        clear = clear - (OLD.deviceSecret IS NOT NULL AND OLD.deviceSecret NOT GLOB 'sealed *')
    WHERE enrollment = OLD.enrollment AND productKey = OLD.productKey;
    DELETE FROM device_count WHERE enrollment = OLD.enrollment AND productKey = OLD.productKey
        AND (devices, registered, unissued, issued, activated, refused,
            disabled, unregistered, cloudDisabled, cloudDeleted, clear)
                = (0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);
    INSERT INTO device_count VALUES (NEW.enrollment, NEW.productKey,
        1, (NEW.deviceSecret IS NOT NULL),
        (NEW.deviceSecret IS NOT NULL AND NEW.firstIssued IS NULL), (NEW.firstIssued IS NOT NULL),
        (NEW.activateTime IS NOT NULL), (NEW.refusal IS NOT NULL), (NEW.state = 'disabled'),
        (NEW.deviceSecret IS NULL AND NEW.refusal IS NULL AND NEW.state = 'enabled'),
        (NEW.cloudState IS 'disabled'), (NEW.cloudState IS 'deleted'),
        (NEW.deviceSecret IS NOT NULL AND NEW.deviceSecret NOT GLOB 'sealed *'))
    ON CONFLICT DO UPDATE SET
        devices = devices + excluded.devices, registered = registered + excluded.registered,
        unissued = unissued + excluded.unissued, issued = issued + excluded.issued,
        activated = activated + excluded.activated, refused = refused + excluded.refused,
        disabled = disabled + excluded.disabled,
        unregistered = unregistered + excluded.unregistered,
        cloudDisabled = cloudDisabled + excluded.cloudDisabled,
        cloudDeleted = cloudDeleted + excluded.cloudDeleted, clear = clear + excluded.clear;
END;
CREATE TRIGGER device_count_update
AFTER UPDATE OF deviceSecret, firstIssued, activateTime, refusal, state, cloudState ON device_table
WHEN NEW.enrollment = OLD.enrollment AND NEW.productKey = OLD.productKey AND (
    (NEW.deviceSecret IS NULL) <> (OLD.deviceSecret IS NULL)
    OR (NEW.firstIssued IS NULL) <> (OLD.firstIssued IS NULL)
    OR (NEW.activateTime IS NULL) <> (OLD.activateTime IS NULL)
    OR (NEW.refusal IS NULL) <> (OLD.refusal IS NULL)
    OR NEW.state <> OLD.state
    OR NEW.cloudState IS NOT OLD.cloudState
    OR (NEW.deviceSecret GLOB 'sealed *') IS NOT (OLD.deviceSecret GLOB 'sealed *')) BEGIN
    UPDATE device_count SET
        registered = registered + (NEW.deviceSecret IS NOT NULL) - (OLD.deviceSecret IS NOT NULL),
        unissued = unissued + (NEW.deviceSecret IS NOT NULL AND NEW.firstIssued IS NULL)
            - (OLD.deviceSecret IS NOT NULL AND OLD.firstIssued IS NULL),
        issued = issued + (NEW.firstIssued IS NOT NULL) - (OLD.firstIssued IS NOT NULL),
        activated = activated + (NEW.activateTime IS NOT NULL) - (OLD.activateTime IS NOT NULL),
        refused = refused + (NEW.refusal IS NOT NULL) - (OLD.refusal IS NOT NULL),
        disabled = disabled + (NEW.state = 'disabled') - (OLD.state = 'disabled'),
        unregistered = unregistered
            + (NEW.deviceSecret IS NULL AND NEW.refusal IS NULL AND NEW.state = 'enabled')
            - (OLD.deviceSecret IS NULL AND OLD.refusal IS NULL AND OLD.state = 'enabled'),
        cloudDisabled = cloudDisabled + (NEW.cloudState IS 'disabled')
            - (OLD.cloudState IS 'disabled'),
        cloudDeleted = cloudDeleted + (NEW.cloudState IS 'deleted') - (OLD.cloudState IS 'deleted'),
        clear = clear + (NEW.deviceSecret IS NOT NULL AND NEW.deviceSecret NOT GLOB 'sealed *')
            - (OLD.deviceSecret IS NOT NULL AND OLD.deviceSecret NOT GLOB 'sealed *')
    WHERE enrollment = NEW.enrollment AND productKey = NEW.productKey;
END;
CREATE TRIGGER refusal_count_insert AFTER INSERT ON device_table WHEN NEW.refusal IS NOT NULL BEGIN
    INSERT INTO refusal_count VALUES (NEW.enrollment, NEW.refusal, 1)
    ON CONFLICT DO UPDATE SET devices = devices + 1;
END;
CREATE TRIGGER refusal_count_delete AFTER DELETE ON device_table WHEN OLD.refusal IS NOT NULL BEGIN
    UPDATE refusal_count SET devices = devices - 1
    WHERE enrollment = OLD.enrollment AND refusal = OLD.refusal;
    DELETE FROM refusal_count WHERE enrollment = OLD.enrollment
        AND refusal = OLD.refusal AND devices = 0;
END;
CREATE TRIGGER refusal_count_before AFTER UPDATE OF refusal, enrollment ON device_table
WHEN OLD.refusal IS NOT NULL
    AND (NEW.refusal IS NOT OLD.refusal OR NEW.enrollment <> OLD.enrollment) BEGIN
    UPDATE refusal_count SET devices = devices - 1
    WHERE enrollment = OLD.enrollment AND refusal = OLD.refusal;
    DELETE FROM refusal_count WHERE enrollment = OLD.enrollment
        AND refusal = OLD.refusal AND devices = 0;
END;
CREATE TRIGGER refusal_count_after AFTER UPDATE OF refusal, enrollment ON device_table
WHEN NEW.refusal IS NOT NULL
    AND (NEW.refusal IS NOT OLD.refusal OR NEW.enrollment <> OLD.enrollment) BEGIN
    INSERT INTO refusal_count VALUES (NEW.enrollment, NEW.refusal, 1)
    ON CONFLICT DO UPDATE SET devices = devices + 1;
END;

-- Devices that have their certificate and have not signed in yet, as far as is known, in order of
-- their first issue. IoT Platform is asked about these often (docs/cloud.md). An import adds no
-- entry, because it issues no certificate.
CREATE INDEX device_unactivated ON device_table (firstIssued, deviceId)
    WHERE firstIssued IS NOT NULL AND activateTime IS NULL AND cloudState IS NOT 'deleted';

-- Keys of devices in `individual` enrollments.
CREATE TABLE device_key (
    -- PSK identity that the device presents in its handshake, 1 to 128 bytes.
    pskIdentity  TEXT NOT NULL PRIMARY KEY,
    deviceId     TEXT NOT NULL UNIQUE REFERENCES device_table (deviceId) ON DELETE CASCADE,
    -- Key of 16 to 64 bytes: as lower-case hex, or sealed.
    psk          TEXT NOT NULL,
    -- Second key, which the device may have as well while psk is being replaced; NULL: none.
    pskNext      TEXT,
    -- Time since which the device has had its second key. All times here are NULL without one.
    nextSince    INTEGER,
    -- Times of the last handshakes with psk and with pskNext since then, within a minute or so;
    -- NULL: none.
    pskUsed      INTEGER,
    pskNextUsed  INTEGER CHECK (pskNext IS NOT NULL
        OR (nextSince IS NULL AND pskUsed IS NULL AND pskNextUsed IS NULL))
) STRICT, WITHOUT ROWID;

-- Devices that have a second key. Usually there are none.
CREATE INDEX key_next ON device_key (deviceId) WHERE pskNext IS NOT NULL;

-- Imports that can be undone: those of the last 30 days, at most a thousand.
CREATE TABLE import (
    -- Order of the imports.
    number       INTEGER PRIMARY KEY AUTOINCREMENT,
    -- A random number of 32 bits.
    importId     INTEGER NOT NULL UNIQUE,
    at           INTEGER NOT NULL,
    -- The operator, and the name of the file.
    who          TEXT NOT NULL,
    file         TEXT NOT NULL,
    -- Number of devices that were added, and that were changed.
    added        INTEGER NOT NULL,
    changed      INTEGER NOT NULL,
    -- Time at which the import was undone.
    undone       INTEGER
) STRICT;

-- Numbers of all imports, so that no number is given twice: rows keep the number of their import for
-- good.
CREATE TABLE import_number (
    importId     INTEGER PRIMARY KEY
) STRICT;

-- Rows as they were before an import changed them, as long as the import can be undone.
CREATE TABLE import_before (
    importId     INTEGER NOT NULL,
    deviceId     TEXT NOT NULL,
    -- The row's importId before.
    former       INTEGER,
    enrollment   TEXT NOT NULL,
    productKey   TEXT NOT NULL,
    deviceName   TEXT,
    IotId        TEXT,
    refusal      TEXT,
    -- 1: the row had a deviceSecret.
    hadSecret    INTEGER NOT NULL,
    -- `added`: the device had no key before; `lost`: it had one that it does not have now.
    keyChange    TEXT CHECK (keyChange IN ('added', 'lost')),
    -- The lost key, until the import has ended.
    formerIdentity TEXT,
    formerPsk    TEXT,
    -- Order of the rows that were not changed in order of their device IDs. Each of them may have
    -- taken a name that a row before it gave up, so they are changed back in reverse order.
    late         INTEGER,
    target       TEXT,
    -- 1: the device had no second key before.
    addedNext    INTEGER NOT NULL DEFAULT 0,
    -- The second key that the lost key had beside it, and its times, until the import has ended.
    formerNext   TEXT,
    formerSince  INTEGER,
    formerUsed   INTEGER,
    formerNextUsed INTEGER,
    PRIMARY KEY (importId, deviceId)
) STRICT, WITHOUT ROWID;
CREATE INDEX import_former_key ON import_before (importId) WHERE formerPsk IS NOT NULL;
CREATE INDEX import_late ON import_before (importId, late) WHERE late IS NOT NULL;

-- The import that writes in many transactions, or that is being undone in many transactions: at most
-- one. The devices that it has added have its importId and are hidden until the import ends, or until
-- they are removed. If the import was cut off, certdist takes its changes back; if the undo was cut
-- off, certdist completes it.
CREATE TABLE import_unfinished (
    importId     INTEGER PRIMARY KEY,
    -- Time of the import, or of the undo.
    at           INTEGER NOT NULL,
    -- The operator, and the name of the file.
    who          TEXT NOT NULL,
    file         TEXT NOT NULL,
    -- `import`: the import writes. `undo`: it is being undone.
    kind         TEXT NOT NULL DEFAULT 'import' CHECK (kind IN ('import', 'undo')),
    -- Address of the operator.
    address      TEXT,
    -- Numbers of devices so far: removed ones, those of them that had a certificate, restored ones,
    -- and those whose former names belong to other devices now.
    removed      INTEGER NOT NULL DEFAULT 0,
    certificates INTEGER NOT NULL DEFAULT 0,
    restored     INTEGER NOT NULL DEFAULT 0,
    taken        INTEGER NOT NULL DEFAULT 0
) STRICT;

-- Uses of the keys of each enrollment that has two: a key is no longer needed once no device uses it
-- any more. Servers add to it once a minute.
CREATE TABLE key_use (
    enrollment   TEXT NOT NULL,
    -- First 8 bytes of a hash of the enrollment's name and the key, as lower-case hex.
    keyId        TEXT NOT NULL,
    -- Time since which the key has been counted.
    since        INTEGER NOT NULL,
    -- Number of completed handshakes since then.
    handshakes   INTEGER NOT NULL,
    -- Time of the last handshake; NULL: none since then.
    lastUsed     INTEGER,
    PRIMARY KEY (enrollment, keyId)
) STRICT, WITHOUT ROWID;

-- Devices that are not in device_table and wait until an operator admits them, because they have
-- proven a key of an enrollment with unlisted = "hold". `certdist device waiting` lists them. A
-- device that has not asked for 30 days is removed.
CREATE TABLE device_waiting (
    deviceId     TEXT NOT NULL,
    enrollment   TEXT NOT NULL,
    -- Time of the first and the last request, and the number of requests.
    first        INTEGER NOT NULL,
    last         INTEGER NOT NULL,
    count        INTEGER NOT NULL,
    -- Network address of the first request.
    address      TEXT NOT NULL,
    PRIMARY KEY (deviceId, enrollment)
) STRICT, WITHOUT ROWID;
CREATE INDEX waiting_address ON device_waiting (enrollment, address);

-- Number of these devices by enrollment, kept by the triggers below.
CREATE TABLE waiting_count (
    enrollment   TEXT NOT NULL PRIMARY KEY,
    devices      INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TRIGGER waiting_count_insert AFTER INSERT ON device_waiting BEGIN
    INSERT INTO waiting_count VALUES (NEW.enrollment, 1)
    ON CONFLICT DO UPDATE SET devices = devices + 1;
END;
CREATE TRIGGER waiting_count_delete AFTER DELETE ON device_waiting BEGIN
    UPDATE waiting_count SET devices = devices - 1 WHERE enrollment = OLD.enrollment;
    DELETE FROM waiting_count WHERE enrollment = OLD.enrollment AND devices = 0;
END;

-- Processes that claim registrations. Each process updates its row every few seconds. If a row
-- stays unchanged for longer, another process removes it, and the claims of its owner are then
-- abandoned.
CREATE TABLE registration_owner (
    -- A random number, chosen at each start of a process.
    ownerId      INTEGER PRIMARY KEY,
    -- Command and process ID of the process.
    name         TEXT NOT NULL,
    -- Number of updates, and the time of the last one by the owner's clock.
    beats        INTEGER NOT NULL,
    lastBeat     INTEGER NOT NULL
) STRICT;

-- Batches of up to 10,000 devices each that are about to be registered.
CREATE TABLE registration_batch (
    -- A random number.
    batchId      INTEGER PRIMARY KEY,
    productKey   TEXT NOT NULL,
    -- The cloud's number of the batch; NULL: its devices were not requested yet.
    applyId      INTEGER,
    openedAt     INTEGER NOT NULL,
    -- The process that runs the batch. If NULL, or without a row in registration_owner: the batch
    -- is abandoned.
    owner        INTEGER,
    -- The [[target]] at which its devices are registered.
    target       TEXT NOT NULL DEFAULT 'default'
) STRICT;

-- Devices that a process is registering or has begun to register: the registration journal.
-- A row exists from before the call of IoT Platform until the call's result is stored.
CREATE TABLE registration_claim (
    deviceId     TEXT NOT NULL PRIMARY KEY REFERENCES device_table (deviceId) ON DELETE CASCADE,
    productKey   TEXT NOT NULL,
    deviceName   TEXT NOT NULL,
    -- Time since which this name has been in the journal, by the clock of the process that wrote
    -- it.
    openedAt     INTEGER NOT NULL,
    -- Seconds to add to openedAt to get IoT Platform's time; NULL: not known.
    cloudOffset  INTEGER,
    -- The batch to which the claim belongs; NULL: none.
    batchId      INTEGER,
    -- The process that registers the device. If NULL, or without a row in registration_owner: the
    -- claim is abandoned, and any process may continue.
    owner        INTEGER,
    -- 0: IoT Platform was not asked to create the device. It may have been asked:
    -- 1: by the owner; 2: by an owner before it; 3: only in the batch.
    asked        INTEGER NOT NULL DEFAULT 1,
    -- Enrollment of the device when it was claimed. The claim takes one of its places (max_devices).
    enrollment   TEXT,
    -- The [[target]] at which the device is registered, whatever the configuration says meanwhile.
    target       TEXT NOT NULL DEFAULT 'default'
) STRICT, WITHOUT ROWID;
CREATE INDEX claim_enrollment ON registration_claim (enrollment);

-- Devices whose certificate was rotated and that have no new one yet. Each keeps its place in its
-- enrollment (max_devices), also while its registration is refused and it is not in the journal.
CREATE TABLE kept_place (
    deviceId     TEXT NOT NULL PRIMARY KEY REFERENCES device_table (deviceId) ON DELETE CASCADE,
    enrollment   TEXT NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX kept_enrollment ON kept_place (enrollment);

-- Orders of operators that are not carried out yet: changes to devices at IoT Platform. A row exists
-- from before the first call of IoT Platform until the call's result is stored.
CREATE TABLE cloud_order (
    number       INTEGER PRIMARY KEY AUTOINCREMENT,
    deviceId     TEXT NOT NULL UNIQUE REFERENCES device_table (deviceId) ON DELETE CASCADE,
    work         TEXT NOT NULL CHECK (work IN ('disable', 'enable', 'delete', 'rotate', 'move')),
    -- The device when the order was placed. IotId, if it is not NULL, is what the calls name.
    productKey   TEXT NOT NULL,
    deviceName   TEXT NOT NULL,
    IotId        TEXT,
    orderedAt    INTEGER NOT NULL,
    -- The operator, and the network address of a user of the console.
    who          TEXT NOT NULL,
    address      TEXT,
    -- Reason why it could not be carried out yet; NULL: it was not tried, or not refused.
    failure      TEXT,
    -- The [[target]] at which the next call is made.
    target       TEXT NOT NULL,
    -- 1: IoT Platform has confirmed that IotId is that of this device.
    isConfirmed  INTEGER NOT NULL DEFAULT 0,
    -- Of a move: the former target, the new one, and the product there. Otherwise NULL.
    fromTarget   TEXT CHECK ((fromTarget IS NOT NULL) = (work = 'move')),
    toTarget     TEXT CHECK ((toTarget IS NOT NULL) = (work = 'move')),
    toProduct    TEXT CHECK ((toProduct IS NOT NULL) = (work = 'move')),
    -- What happens to the device at the former target in the end.
    former       TEXT CHECK (former IN ('keep', 'disable', 'delete')),
    -- Time of the first call that may have registered the device at the new target, by the clock of
    -- the process that made it, and the seconds to add to get IoT Platform's time. NULL: not called;
    -- not known.
    askedAt      INTEGER,
    cloudOffset  INTEGER,
    -- 1: the certificate of the new target is in device_table.
    isStored     INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE INDEX order_target ON cloud_order (target, number);

-- Time at which the next call of each action may leave. All processes share it, because IoT
-- Platform limits how often an account may call each action.
CREATE TABLE call_pace (
    -- The account, as a hash, and the action.
    pace         TEXT NOT NULL PRIMARY KEY,
    -- Time of the next call, in microseconds since 1970.
    nextMicros   INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- Work that only one process at a time does, such as the sweep over all devices.
CREATE TABLE lease (
    name         TEXT NOT NULL PRIMARY KEY,
    -- The process that does the work. If NULL, or without a row in registration_owner: no process
    -- does it.
    owner        INTEGER,
    -- Point that the work has reached, from which the next process continues. That of the sweep is a
    -- JSON object with the passes over new, late and all devices. The sweep of another target than
    -- `default` has the target in its name.
    cursor       TEXT NOT NULL
) STRICT, WITHOUT ROWID;

-- Processes that use the table: each `serve`, and each `register` while it runs. A process beats in
-- its row about every 10 s, and removes the row when it ends. A row without a beat for a day is removed.
CREATE TABLE server_table (
    -- Random number of the process.
    serverId     INTEGER PRIMARY KEY,
    -- server_name of the configuration, or else the name of the machine and the port.
    name         TEXT NOT NULL,
    -- `serve` or `register`.
    command      TEXT NOT NULL,
    -- Version of certdist, and of the schema that it reads and writes.
    version      TEXT NOT NULL,
    schemaVersion INTEGER NOT NULL,
    host         TEXT NOT NULL,
    process      INTEGER NOT NULL,
    -- Addresses on which it listens for devices, separated by commas.
    listen       TEXT NOT NULL,
    -- Its numbers in registration_owner, separated by commas.
    owners       TEXT NOT NULL,
    -- Hash of the names, kinds, products and targets of its enrollments, hash of the IDs of their keys,
    -- and ID of the database key that seals its new secrets (NULL: it seals none).
    enrollments  TEXT NOT NULL,
    keyHash      TEXT NOT NULL,
    sealKey      TEXT,
    -- Requests answered per minute before the last beat, and registrations that wait or are in progress.
    perMinute    INTEGER NOT NULL,
    registrations INTEGER NOT NULL,
    -- Times of the first and the last beat, by the clock of the database.
    startedAt    INTEGER NOT NULL,
    lastBeat     INTEGER NOT NULL,
    -- Milliseconds by which its clock was ahead of the database's at the last beat.
    clockAhead   INTEGER NOT NULL
) STRICT;

-- Small things that the console keeps between requests, for all servers: sessions, previews, uploaded
-- files, and the key of its forms. Each kind has a maximum number and a maximum age.
CREATE TABLE console_item (
    kind         TEXT NOT NULL,
    -- SHA-256 of the token by which the item is found.
    itemId       BLOB NOT NULL,
    -- A file is encrypted under a key that is only in the form that confirms it.
    value        BLOB NOT NULL,
    -- Times of the beginning and of the last use, in milliseconds since 1970, by the clock of the database.
    beganAt      INTEGER NOT NULL,
    usedAt       INTEGER NOT NULL,
    PRIMARY KEY (kind, itemId)
) STRICT;

-- Keys under which values may be sealed. All of them must be configured.
CREATE TABLE database_key (
    -- First 4 bytes of a hash of the key, as lower-case hex. `clear`: the database may
    -- contain unsealed values, or traces of them.
    keyId        TEXT NOT NULL PRIMARY KEY,
    -- Time at which the first value was written under this key.
    firstUsed    INTEGER NOT NULL,
    -- Number of writes since, by which a process notices that another one has written.
    writes       INTEGER NOT NULL DEFAULT 0
) STRICT, WITHOUT ROWID;

-- The audit log, in consecutive blocks of entries; read it with `certdist audit`. The oldest blocks
-- may be pruned. `certdist audit verify` checks that the remaining blocks are unchanged. Repeated
-- requests are in audit_repeat instead.
CREATE TABLE audit_block (
    -- Numbers of the block's last and first entry. Entries are numbered without gaps.
    lastSeq      INTEGER PRIMARY KEY,
    firstSeq     INTEGER NOT NULL,
    -- JSON array with one object for each entry, one object per line.
    entries      TEXT NOT NULL,
    -- SHA-256 of the previous block's hash, of firstSeq as 8 bytes, and of entries.
    hash         BLOB NOT NULL
) STRICT;

-- Requests that change nothing: a device fetches its certificate again, or is refused again. One row
-- stands for the equal requests of a device on one day (UTC). A device may have several such rows,
-- for example after a restart; their counts add up. No hash covers these rows, because they change
-- with each request. The oldest rows may be pruned.
CREATE TABLE audit_repeat (
    -- Order in which the rows were added, without gaps.
    number       INTEGER PRIMARY KEY,
    -- `reissued` or `refused`.
    event        TEXT NOT NULL,
    deviceId     TEXT NOT NULL,
    enrollment   TEXT,
    who          TEXT,
    detail       TEXT,
    -- Number of requests, and the times of the first and the last one.
    count        INTEGER NOT NULL,
    first        INTEGER NOT NULL,
    last         INTEGER NOT NULL,
    -- Address of the last request, and of the first one; NULL: both are the same.
    address      TEXT,
    firstAddress TEXT
) STRICT;

-- Index from devices to parts of audit_repeat, like audit_device.
CREATE TABLE audit_repeat_device (
    lastNumber   INTEGER PRIMARY KEY,
    firstNumber  INTEGER NOT NULL,
    devices      BLOB NOT NULL
) STRICT;

-- Refusals of devices of the table that are in the log: a device that is refused again for the
-- same reason is in audit_repeat.
CREATE TABLE audit_refused (
    -- First 8 bytes of the SHA-256 of deviceId, and of the reason.
    device       INTEGER NOT NULL,
    reason       INTEGER NOT NULL,
    -- Number of the entry. If it was pruned, the next refusal is in the log again.
    seq          INTEGER NOT NULL,
    PRIMARY KEY (device, reason)
) STRICT, WITHOUT ROWID;

-- The audit log with one row for each entry and for each row of audit_repeat.
CREATE VIEW audit_log AS SELECT
    -- Number of the entry in the log; NULL: a row of audit_repeat.
    firstSeq + key AS seq,
    -- Time of the entry, or of the last request.
    value ->> 'at' AS at,
    value ->> 'event' AS event,
    value ->> 'deviceId' AS deviceId,
    value ->> 'enrollment' AS enrollment,
    -- PSK identity of a device, or name of an operator.
    value ->> 'who' AS who,
    value ->> 'address' AS address,
    value ->> 'detail' AS detail,
    1 AS count
FROM audit_block, json_each(entries)
UNION ALL
SELECT NULL, last, event, deviceId, enrollment, who, address, detail, count FROM audit_repeat;

-- Index from devices to parts of the log. A part covers about a thousand entries. Its
-- `devices` contains a hash of 4 bytes (FNV-1a) for each device in these entries,
-- sorted. The newest entries belong to no part yet.
CREATE TABLE audit_device (
    lastSeq      INTEGER PRIMARY KEY,
    firstSeq     INTEGER NOT NULL,
    devices      BLOB NOT NULL
) STRICT;

-- How far each file of audit entries beside the database has been moved into the log. A process
-- appends entries to its file at once, and they are moved soon after.
CREATE TABLE audit_outbox (
    -- Name of the file.
    name         TEXT NOT NULL PRIMARY KEY,
    -- Number of bytes that were moved.
    moved        INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- Beginning and end of the chain of hashes: the anchor is the last pruned entry (0:
-- none), the head is the last entry.
CREATE TABLE audit_chain (
    id           INTEGER PRIMARY KEY CHECK (id = 0),
    anchorSeq    INTEGER NOT NULL,
    anchorHash   BLOB NOT NULL,
    headSeq      INTEGER NOT NULL,
    headHash     BLOB NOT NULL
) STRICT;
INSERT INTO audit_chain VALUES (0, 0, zeroblob(32), 0, zeroblob(32));
