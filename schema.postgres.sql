-- certdist's tables in a PostgreSQL database, version 1.
--
-- `certdist serve` and `certdist import` create them automatically, in the first schema of the user's
-- search_path. To create them by hand, as the user that certdist signs in with:
--     psql --single-transaction --file schema.postgres.sql DATABASE
-- They hold secrets (deviceSecret, psk, pskNext), which are sealed if the configuration has a database_key.
-- To change the tables, use `certdist import` and `certdist device`.
-- Times are seconds since 1970-01-01T00:00:00Z. Rows never expire. Each statement is one that
-- PostgreSQL, CockroachDB, YugabyteDB and PolarDB understand. The columns of schema.sql, which
-- describes the same tables in SQLite, are explained there.

-- Marks the tables as certdist's. Creating it first makes other servers wait that start now.
CREATE TABLE certdist_schema (
    id           int8 PRIMARY KEY CHECK (id = 0),
    version      int8 NOT NULL
);
INSERT INTO certdist_schema VALUES (0, 1);

-- Number of the last transaction of each connection. If the answer to a commit is lost, the number tells
-- whether the transaction was committed.
CREATE TABLE write_note (
    id           int8 PRIMARY KEY,
    number       int8 NOT NULL,
    at           int8 NOT NULL
);

-- One row for each device that may ask for a certificate.
CREATE TABLE device_table (
    deviceId     text COLLATE "C" NOT NULL PRIMARY KEY,
    registerTime int8,
    activateTime int8,
    productKey   text COLLATE "C" NOT NULL,
    deviceName   text COLLATE "C",
    deviceSecret text COLLATE "C",
    IotId        text COLLATE "C",

    enrollment   text COLLATE "C" NOT NULL,
    state        text COLLATE "C" NOT NULL DEFAULT 'enabled' CHECK (state IN ('enabled', 'disabled')),
    firstIssued  int8,
    refusal      text COLLATE "C",
    cloudState   text COLLATE "C" CHECK (cloudState IN ('disabled', 'deleted')),
    issueId      int8,
    importId     int8,
    target       text COLLATE "C",
    -- The import that added the row, if it was written in slices.
    addedBy      int8,

    -- The device's name at IoT Platform: deviceName, or the name that is derived from deviceId.
    name         text COLLATE "C" NOT NULL,
    -- The MAC address, if deviceId is an unusual spelling of one; NULL for nearly every device.
    spelledMac   text COLLATE "C",

    CHECK (refusal IS NULL OR deviceSecret IS NULL),
    CHECK (deviceSecret IS NULL OR deviceName IS NOT NULL)
);

-- The import that is being written in slices, or was cut off: at most one. The devices that it has added
-- are hidden until it ends. If it was cut off, certdist takes its changes back.
CREATE TABLE import_unfinished (
    id           int8 PRIMARY KEY CHECK (id = 0),
    importId     int8 NOT NULL,
    at           int8 NOT NULL,
    who          text NOT NULL,
    file         text NOT NULL,
    -- Set if its changes are being taken back: it writes no more.
    isTakenBack  bool NOT NULL DEFAULT false,
    -- Number of changed devices whose former names belong to other devices now.
    kept         int8 NOT NULL DEFAULT 0
);

-- Slices that the unfinished import has written, so that none is written twice.
CREATE TABLE import_slice (
    importId     int8 NOT NULL,
    slice        int8 NOT NULL,
    PRIMARY KEY (importId, slice)
);

-- The devices that readers see.
CREATE VIEW device_shown AS SELECT * FROM device_table d
    WHERE d.addedBy IS NULL OR d.addedBy <> (SELECT coalesce(max(u.importId), 0) FROM import_unfinished u);

-- Numbers of devices by enrollment, product and the beginning of the reason of a refusal (empty: not
-- refused). A hidden device is not counted. `certdist database check` compares the numbers with the
-- rows, and `certdist database recount` corrects them.
CREATE TABLE device_count (
    enrollment    text COLLATE "C" NOT NULL,
    productKey    text COLLATE "C" NOT NULL,
    refusal       text COLLATE "C" NOT NULL,
    devices       int8 NOT NULL,
    registered    int8 NOT NULL,
    unissued      int8 NOT NULL,
    issued        int8 NOT NULL,
    activated     int8 NOT NULL,
    disabled      int8 NOT NULL,
    unregistered  int8 NOT NULL,
    cloudDisabled int8 NOT NULL,
    cloudDeleted  int8 NOT NULL,
    clear         int8 NOT NULL,
    PRIMARY KEY (enrollment, productKey, refusal)
);

-- Changes of these numbers that are not added to them yet. A write adds rows here, in the transaction of
-- the change, and so waits for no other one. A moment later, a server moves them to device_count.
CREATE TABLE count_change (
    number        int8 GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    enrollment    text COLLATE "C" NOT NULL,
    productKey    text COLLATE "C" NOT NULL,
    refusal       text COLLATE "C" NOT NULL,
    devices       int8 NOT NULL,
    registered    int8 NOT NULL,
    unissued      int8 NOT NULL,
    issued        int8 NOT NULL,
    activated     int8 NOT NULL,
    disabled      int8 NOT NULL,
    unregistered  int8 NOT NULL,
    cloudDisabled int8 NOT NULL,
    cloudDeleted  int8 NOT NULL,
    clear         int8 NOT NULL
);

-- Number of times that the numbers were corrected. Of two processes that correct the same difference,
-- only one does so.
CREATE TABLE count_correction (
    id            int8 PRIMARY KEY CHECK (id = 0),
    times         int8 NOT NULL
);
INSERT INTO count_correction VALUES (0, 0);

-- Two rows with the same name in one product, or with the same IotId, would share one device at
-- IoT Platform.
CREATE UNIQUE INDEX device_name ON device_table (name, productKey);
CREATE UNIQUE INDEX device_iot_id ON device_table (IotId) WHERE IotId IS NOT NULL;
CREATE INDEX device_spelled ON device_table (spelledMac) WHERE spelledMac IS NOT NULL;

-- Devices of an enrollment, and devices by the last 4 characters of their ID.
CREATE INDEX device_enrollment ON device_table (enrollment, deviceId);
CREATE INDEX device_end ON device_table (upper(right(deviceId, 4)), deviceId);

-- The few devices that need an operator, in order of their IDs.
CREATE INDEX device_refused ON device_table (deviceId) WHERE refusal IS NOT NULL;
CREATE INDEX device_disabled ON device_table (deviceId) WHERE state = 'disabled';
CREATE INDEX device_cloud_state ON device_table (deviceId) WHERE cloudState IS NOT NULL;
CREATE INDEX device_target ON device_table (target, deviceId) WHERE target IS NOT NULL;

-- Issued devices whose first sign-in is not known yet, for the sweep.
CREATE INDEX device_unactivated ON device_table (firstIssued, deviceId)
    WHERE firstIssued IS NOT NULL AND activateTime IS NULL;

-- Pre-shared keys of individual devices.
CREATE TABLE device_key (
    pskIdentity  text COLLATE "C" NOT NULL PRIMARY KEY,
    deviceId     text COLLATE "C" NOT NULL UNIQUE REFERENCES device_table (deviceId) ON DELETE CASCADE,
    psk          text COLLATE "C" NOT NULL,
    pskNext      text COLLATE "C",
    nextSince    int8,
    pskUsed      int8,
    pskNextUsed  int8,
    CHECK (pskNext IS NOT NULL OR (nextSince IS NULL AND pskUsed IS NULL AND pskNextUsed IS NULL))
);

-- Devices that have a second key. Usually there are none.
CREATE INDEX key_next ON device_key (deviceId) WHERE pskNext IS NOT NULL;

-- An import or an undo locks this row until it ends, so that only one of them runs at a time, and so that
-- other processes know that it was not cut off. `times` counts both.
CREATE TABLE import_turn (
    id           int8 PRIMARY KEY CHECK (id = 0),
    times        int8 NOT NULL
);
INSERT INTO import_turn VALUES (0, 0);

-- Imports that can be undone: those of the last 30 days, at most a thousand.
CREATE TABLE import (
    number       int8 PRIMARY KEY,
    importId     int8 NOT NULL UNIQUE,
    at           int8 NOT NULL,
    who          text NOT NULL,
    file         text NOT NULL,
    added        int8 NOT NULL,
    changed      int8 NOT NULL,
    undone       int8
);

-- Numbers of all imports, so that no number is given twice.
CREATE TABLE import_number (
    importId     int8 PRIMARY KEY
);

-- Rows as they were before an import changed them, as long as the import can be undone.
CREATE TABLE import_before (
    importId     int8 NOT NULL,
    deviceId     text COLLATE "C" NOT NULL,
    -- Order in which the import changed the rows. An undo restores them in the reverse order, because
    -- a row may have taken a name that a row before it gave up.
    number       int8 NOT NULL,
    former       int8,
    enrollment   text COLLATE "C" NOT NULL,
    productKey   text COLLATE "C" NOT NULL,
    deviceName   text COLLATE "C",
    IotId        text COLLATE "C",
    refusal      text COLLATE "C",
    hadSecret    bool NOT NULL,
    keyChange    text CHECK (keyChange IN ('added', 'lost')),
    addedNext    bool NOT NULL,
    target       text COLLATE "C",
    name         text COLLATE "C" NOT NULL,
    -- The lost keys and their times, until an import in slices has ended.
    formerIdentity text COLLATE "C",
    formerPsk    text COLLATE "C",
    formerNext   text COLLATE "C",
    formerSince  int8,
    formerUsed   int8,
    formerNextUsed int8,
    PRIMARY KEY (importId, deviceId)
);
CREATE INDEX import_order ON import_before (importId, number);
CREATE INDEX import_former_key ON import_before (importId) WHERE formerPsk IS NOT NULL;
CREATE INDEX import_device ON import_before (deviceId);

-- Uses of the keys of each enrollment that has two.
CREATE TABLE key_use (
    enrollment   text COLLATE "C" NOT NULL,
    keyId        text COLLATE "C" NOT NULL,
    since        int8 NOT NULL,
    handshakes   int8 NOT NULL,
    lastUsed     int8,
    PRIMARY KEY (enrollment, keyId)
);

-- Devices that wait until an operator admits them.
CREATE TABLE device_waiting (
    deviceId     text COLLATE "C" NOT NULL,
    enrollment   text COLLATE "C" NOT NULL,
    first        int8 NOT NULL,
    last         int8 NOT NULL,
    count        int8 NOT NULL,
    address      text COLLATE "C" NOT NULL,
    PRIMARY KEY (deviceId, enrollment)
);
CREATE INDEX waiting_address ON device_waiting (enrollment, address);

-- A write that depends on the number of an enrollment's devices, or of devices that wait in it, locks
-- the enrollment's row here, so that two servers do not take the last place both.
CREATE TABLE enrollment_turn (
    enrollment   text COLLATE "C" NOT NULL PRIMARY KEY,
    -- Number of devices in device_waiting.
    waiting      int8 NOT NULL DEFAULT 0
);

-- Processes that claim registrations.
CREATE TABLE registration_owner (
    ownerId      int8 PRIMARY KEY,
    name         text NOT NULL,
    beats        int8 NOT NULL,
    lastBeat     int8 NOT NULL
);

-- Batches of devices that are about to be registered.
CREATE TABLE registration_batch (
    batchId      int8 PRIMARY KEY,
    productKey   text NOT NULL,
    -- The cloud's number, whose 64 bits are read as a number with a sign.
    applyId      int8,
    openedAt     int8 NOT NULL,
    owner        int8,
    target       text NOT NULL
);

-- The registration journal. `asked` has the values that schema.sql explains.
CREATE TABLE registration_claim (
    deviceId     text COLLATE "C" NOT NULL PRIMARY KEY REFERENCES device_table (deviceId) ON DELETE CASCADE,
    productKey   text NOT NULL,
    deviceName   text NOT NULL,
    openedAt     int8 NOT NULL,
    cloudOffset  int8,
    batchId      int8,
    owner        int8,
    asked        int8 NOT NULL,
    enrollment   text COLLATE "C" NOT NULL,
    target       text NOT NULL
);
CREATE INDEX claim_enrollment ON registration_claim (enrollment);
CREATE INDEX claim_owner ON registration_claim (owner);
CREATE INDEX claim_batch ON registration_claim (batchId) WHERE batchId IS NOT NULL;

-- Devices whose certificate was rotated and that have no new one yet. Each keeps its place.
CREATE TABLE kept_place (
    deviceId     text COLLATE "C" NOT NULL PRIMARY KEY REFERENCES device_table (deviceId) ON DELETE CASCADE,
    enrollment   text COLLATE "C" NOT NULL
);
CREATE INDEX kept_enrollment ON kept_place (enrollment);

-- Orders of operators that are not carried out yet.
CREATE TABLE cloud_order (
    number       int8 GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    deviceId     text COLLATE "C" NOT NULL UNIQUE REFERENCES device_table (deviceId) ON DELETE CASCADE,
    work         text NOT NULL,
    productKey   text NOT NULL,
    deviceName   text NOT NULL,
    IotId        text,
    orderedAt    int8 NOT NULL,
    who          text NOT NULL,
    address      text,
    failure      text,
    target       text NOT NULL,
    isConfirmed  bool NOT NULL DEFAULT false,
    fromTarget   text,
    toTarget     text,
    toProduct    text,
    former       text CHECK (former IN ('keep', 'disable', 'delete')),
    askedAt      int8,
    cloudOffset  int8,
    isStored     bool NOT NULL DEFAULT false,
    CHECK ((fromTarget IS NOT NULL) = (work = 'move')),
    CHECK ((toTarget IS NOT NULL) = (work = 'move')),
    CHECK ((toProduct IS NOT NULL) = (work = 'move')),
    CHECK ((former IS NOT NULL) = (work = 'move'))
);
CREATE INDEX order_target ON cloud_order (target, number);

-- Time at which the next call of each action may leave, in microseconds since 1970, by the clock of
-- the database.
CREATE TABLE call_pace (
    pace         text COLLATE "C" NOT NULL PRIMARY KEY,
    nextMicros   int8
);

-- Work that only one process at a time does.
CREATE TABLE lease (
    name         text COLLATE "C" NOT NULL PRIMARY KEY,
    owner        int8,
    cursor       text NOT NULL
);

-- Processes that use the table: each `serve`, and each `register` while it runs. A process beats in
-- its row about every 10 s, and removes the row when it ends. A row without a beat for a day is removed.
CREATE TABLE server_table (
    serverId     int8 PRIMARY KEY,
    name         text COLLATE "C" NOT NULL,
    command      text NOT NULL,
    version      text NOT NULL,
    schemaVersion int8 NOT NULL,
    host         text NOT NULL,
    process      int8 NOT NULL,
    listen       text NOT NULL,
    owners       text NOT NULL,
    enrollments  text NOT NULL,
    keyHash      text NOT NULL,
    sealKey      text,
    perMinute    int8 NOT NULL,
    registrations int8 NOT NULL,
    startedAt    int8 NOT NULL,
    lastBeat     int8 NOT NULL,
    clockAhead   int8 NOT NULL
);

-- Small things that the console keeps between requests, for all servers: sessions, previews, uploaded
-- files, and the key of its forms. Each kind has a maximum number and a maximum age.
CREATE TABLE console_item (
    kind         text COLLATE "C" NOT NULL,
    itemId       bytea NOT NULL,
    value        bytea NOT NULL,
    beganAt      int8 NOT NULL,
    usedAt       int8 NOT NULL,
    PRIMARY KEY (kind, itemId)
);

-- Keys under which values may be sealed; `clear`: the database may contain unsealed values.
CREATE TABLE database_key (
    keyId        text COLLATE "C" NOT NULL PRIMARY KEY,
    firstUsed    int8 NOT NULL
);

-- Entries that are not in the audit log yet. A write adds its entry here, and does not wait for the
-- end of the chain, which all servers share. A moment later, a server moves the entries to the log.
CREATE TABLE audit_pending (
    number       int8 GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    deviceId     text COLLATE "C",
    at           int8 NOT NULL,
    event        text COLLATE "C" NOT NULL,
    line         text NOT NULL
);
CREATE INDEX pending_device ON audit_pending (deviceId);

-- The audit log; read it with `certdist audit`. `line` is the entry as JSON.
CREATE TABLE audit_entry (
    seq          int8 PRIMARY KEY,
    deviceId     text COLLATE "C",
    at           int8 NOT NULL,
    event        text COLLATE "C" NOT NULL,
    line         text NOT NULL,
    -- SHA-256 of the previous entry's hash, of seq as 8 bytes, and of line.
    hash         bytea NOT NULL
);
CREATE INDEX audit_device ON audit_entry (deviceId, seq) WHERE deviceId IS NOT NULL;

-- Beginning and end of the chain of hashes, as in schema.sql.
CREATE TABLE audit_chain (
    id           int8 PRIMARY KEY CHECK (id = 0),
    anchorSeq    int8 NOT NULL,
    anchorHash   bytea NOT NULL,
    headSeq      int8 NOT NULL,
    headHash     bytea NOT NULL
);
INSERT INTO audit_chain VALUES (0, 0, decode(repeat('00', 32), 'hex'), 0, decode(repeat('00', 32), 'hex'));

-- Requests that change nothing: one row for the equal requests of a device on one day (UTC).
CREATE TABLE audit_repeat (
    deviceId     text COLLATE "C" NOT NULL,
    day          int8 NOT NULL,
    -- SHA-256 of event, enrollment, who and detail.
    kind         bytea NOT NULL,
    -- Order in which the rows were added.
    number       int8 GENERATED ALWAYS AS IDENTITY,
    event        text COLLATE "C" NOT NULL,
    enrollment   text,
    who          text,
    detail       text,
    count        int8 NOT NULL,
    first        int8 NOT NULL,
    last         int8 NOT NULL,
    address      text,
    firstAddress text,
    PRIMARY KEY (deviceId, day, kind)
);
CREATE UNIQUE INDEX repeat_number ON audit_repeat (number);

-- Refusals that are in the log: a device that is refused again for the same reason is in audit_repeat.
CREATE TABLE audit_refused (
    deviceId     text COLLATE "C" NOT NULL,
    reason       text COLLATE "C" NOT NULL,
    -- Number of the entry. If it was pruned, the next refusal is in the log again.
    seq          int8 NOT NULL,
    PRIMARY KEY (deviceId, reason)
);
