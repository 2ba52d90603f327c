-- From version 9 of schema.sql to version 10.

-- Second keys of individual devices.
ALTER TABLE device_key ADD COLUMN pskNext TEXT;
ALTER TABLE device_key ADD COLUMN nextSince INTEGER;
ALTER TABLE device_key ADD COLUMN pskUsed INTEGER;
ALTER TABLE device_key ADD COLUMN pskNextUsed INTEGER CHECK (pskNext IS NOT NULL
    OR (nextSince IS NULL AND pskUsed IS NULL AND pskNextUsed IS NULL));
CREATE INDEX key_next ON device_key (deviceId) WHERE pskNext IS NOT NULL;
ALTER TABLE import_before ADD COLUMN addedNext INTEGER NOT NULL DEFAULT 0;
ALTER TABLE import_before ADD COLUMN formerNext TEXT;
ALTER TABLE import_before ADD COLUMN formerSince INTEGER;
ALTER TABLE import_before ADD COLUMN formerUsed INTEGER;
ALTER TABLE import_before ADD COLUMN formerNextUsed INTEGER;

-- Moves to another target.
CREATE TABLE kept_place (
    deviceId     TEXT NOT NULL PRIMARY KEY REFERENCES device_table (deviceId) ON DELETE CASCADE,
    enrollment   TEXT NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX kept_enrollment ON kept_place (enrollment);
ALTER TABLE cloud_order RENAME TO cloud_order_9;
DROP INDEX order_target;
CREATE TABLE cloud_order (
    number       INTEGER PRIMARY KEY AUTOINCREMENT,
    deviceId     TEXT NOT NULL UNIQUE REFERENCES device_table (deviceId) ON DELETE CASCADE,
    work         TEXT NOT NULL CHECK (work IN ('disable', 'enable', 'delete', 'rotate', 'move')),
    productKey   TEXT NOT NULL,
    deviceName   TEXT NOT NULL,
    IotId        TEXT,
    orderedAt    INTEGER NOT NULL,
    who          TEXT NOT NULL,
    address      TEXT,
    failure      TEXT,
    target       TEXT NOT NULL,
    isConfirmed  INTEGER NOT NULL DEFAULT 0,
    fromTarget   TEXT CHECK ((fromTarget IS NOT NULL) = (work = 'move')),
    toTarget     TEXT CHECK ((toTarget IS NOT NULL) = (work = 'move')),
    toProduct    TEXT CHECK ((toProduct IS NOT NULL) = (work = 'move')),
    former       TEXT CHECK (former IN ('keep', 'disable', 'delete')),
    askedAt      INTEGER,
    cloudOffset  INTEGER,
    isStored     INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE INDEX order_target ON cloud_order (target, number);
INSERT INTO cloud_order (number, deviceId, work, productKey, deviceName, IotId, orderedAt, who, address, failure,
    target, isConfirmed)
    SELECT number, deviceId, work, productKey, deviceName, IotId, orderedAt, who, address, failure, target, isConfirmed
    FROM cloud_order_9;
-- A number is never given twice, also if no order is left.
INSERT INTO sqlite_sequence (name, seq)
    SELECT 'cloud_order', seq FROM sqlite_sequence WHERE name = 'cloud_order_9'
    AND NOT EXISTS (SELECT 1 FROM sqlite_sequence WHERE name = 'cloud_order');
UPDATE sqlite_sequence SET seq = (SELECT seq FROM sqlite_sequence WHERE name = 'cloud_order_9')
    WHERE name = 'cloud_order';
DROP TABLE cloud_order_9;

-- Servers of the table.
CREATE TABLE server_table (
    serverId     INTEGER PRIMARY KEY,
    name         TEXT NOT NULL,
    command      TEXT NOT NULL,
    version      TEXT NOT NULL,
    schemaVersion INTEGER NOT NULL,
    host         TEXT NOT NULL,
    process      INTEGER NOT NULL,
    listen       TEXT NOT NULL,
    owners       TEXT NOT NULL,
    enrollments  TEXT NOT NULL,
    keyHash      TEXT NOT NULL,
    sealKey      TEXT,
    perMinute    INTEGER NOT NULL,
    registrations INTEGER NOT NULL,
    startedAt    INTEGER NOT NULL,
    lastBeat     INTEGER NOT NULL,
    clockAhead   INTEGER NOT NULL
) STRICT;

-- Items of the console.
CREATE TABLE console_item (
    kind         TEXT NOT NULL,
    itemId       BLOB NOT NULL,
    value        BLOB NOT NULL,
    beganAt      INTEGER NOT NULL,
    usedAt       INTEGER NOT NULL,
    PRIMARY KEY (kind, itemId)
) STRICT;
