-- Version 4 of schema.sql, with rows in every state.

PRAGMA application_id = 0x63657274;
PRAGMA user_version = 4;

CREATE TABLE device_table (
    deviceId     TEXT NOT NULL PRIMARY KEY,
    registerTime INTEGER,
    activateTime INTEGER,
    productKey   TEXT NOT NULL,
    deviceName   TEXT,
    deviceSecret TEXT,
    IotId        TEXT,

    enrollment   TEXT NOT NULL,
    state        TEXT NOT NULL DEFAULT 'enabled' CHECK (state IN ('enabled', 'disabled')),
    firstIssued  INTEGER,
    refusal      TEXT,
    cloudState   TEXT CHECK (cloudState IN ('disabled', 'deleted')),

    CHECK (deviceSecret IS NULL OR deviceName IS NOT NULL)
) STRICT, WITHOUT ROWID;

CREATE TABLE device_key (
    pskIdentity  TEXT NOT NULL PRIMARY KEY,
    deviceId     TEXT NOT NULL UNIQUE REFERENCES device_table (deviceId) ON DELETE CASCADE,
    psk          TEXT NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE registration_batch (
    batchId      INTEGER PRIMARY KEY,
    productKey   TEXT NOT NULL,
    applyId      INTEGER,
    openedAt     INTEGER NOT NULL
) STRICT;

CREATE TABLE registration_journal (
    deviceId     TEXT NOT NULL PRIMARY KEY REFERENCES device_table (deviceId) ON DELETE CASCADE,
    productKey   TEXT NOT NULL,
    deviceName   TEXT NOT NULL,
    openedAt     INTEGER NOT NULL,
    batchId      INTEGER
) STRICT, WITHOUT ROWID;

CREATE TABLE database_key (
    keyId        TEXT NOT NULL PRIMARY KEY,
    firstUsed    INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE audit_block (
    lastSeq      INTEGER PRIMARY KEY,
    firstSeq     INTEGER NOT NULL,
    entries      TEXT NOT NULL,
    hash         BLOB NOT NULL
) STRICT;

CREATE VIEW audit_log AS SELECT
    firstSeq + key AS seq,
    value ->> 'at' AS at,
    value ->> 'event' AS event,
    value ->> 'deviceId' AS deviceId,
    value ->> 'enrollment' AS enrollment,
    value ->> 'who' AS who,
    value ->> 'address' AS address,
    value ->> 'detail' AS detail
FROM audit_block, json_each(entries);

CREATE TABLE audit_device (
    lastSeq      INTEGER PRIMARY KEY,
    firstSeq     INTEGER NOT NULL,
    devices      BLOB NOT NULL
) STRICT;

CREATE TABLE audit_chain (
    id           INTEGER PRIMARY KEY CHECK (id = 0),
    anchorSeq    INTEGER NOT NULL,
    anchorHash   BLOB NOT NULL,
    headSeq      INTEGER NOT NULL,
    headHash     BLOB NOT NULL
) STRICT;
INSERT INTO audit_chain VALUES (0, 0, zeroblob(32), 0, zeroblob(32));

INSERT INTO device_table (deviceId, productKey, deviceName, deviceSecret, enrollment, refusal) VALUES
    ('BOTH-1', 'a1', 'BOTH-1', 's3cret', 'lamp', 'NameIsTaken: it exists'),
    ('REFUSED-1', 'a1', NULL, NULL, 'lamp', 'odd'),
    ('OPEN-1', 'a1', NULL, NULL, 'lamp', NULL),
    ('OPEN-2', 'a1', NULL, NULL, 'lamp', NULL),
    ('TWIN-1', 'a1', 'twin', NULL, 'lamp', NULL),
    ('TWIN-2', 'a1', 'twin', NULL, 'lamp', NULL);
INSERT INTO registration_batch VALUES (7, 'a1', 1295006, 999);
INSERT INTO registration_journal (deviceId, productKey, deviceName, openedAt, batchId) VALUES
    ('OPEN-1', 'a1', 'OPEN-1', 1000, NULL),
    ('OPEN-2', 'a1', 'OPEN-2', 1001, 7);
