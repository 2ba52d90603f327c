-- From version 4 of schema.sql to version 5: adds claims that several processes respect, and
-- indexes of values that must be unique.

-- An earlier version could mark a device as refused that another process had registered.
UPDATE device_table SET refusal = NULL WHERE refusal IS NOT NULL AND deviceSecret IS NOT NULL;
ALTER TABLE device_table ADD COLUMN issueId INTEGER CHECK (refusal IS NULL OR deviceSecret IS NULL);
CREATE INDEX device_name ON device_table (productKey, coalesce(deviceName, deviceId));
CREATE INDEX device_iot_id ON device_table (IotId) WHERE IotId IS NOT NULL;

CREATE TABLE registration_owner (
    ownerId      INTEGER PRIMARY KEY,
    name         TEXT NOT NULL,
    beats        INTEGER NOT NULL,
    lastBeat     INTEGER NOT NULL
) STRICT;

-- The table gets a new name, so that a server of an earlier version that still runs cannot continue
-- to register devices.
ALTER TABLE registration_journal RENAME TO registration_claim;
ALTER TABLE registration_claim RENAME COLUMN batchId TO batchId4;
ALTER TABLE registration_claim ADD COLUMN cloudOffset INTEGER;
ALTER TABLE registration_claim ADD COLUMN batchId INTEGER;
ALTER TABLE registration_claim ADD COLUMN owner INTEGER;
UPDATE registration_claim SET batchId = batchId4;
ALTER TABLE registration_claim DROP COLUMN batchId4;
ALTER TABLE registration_claim ADD COLUMN asked INTEGER NOT NULL DEFAULT 1;
UPDATE registration_claim SET asked = 0
    WHERE batchId IN (SELECT batchId FROM registration_batch WHERE applyId IS NULL);
ALTER TABLE registration_batch ADD COLUMN owner INTEGER;

CREATE TABLE call_pace (
    pace         TEXT NOT NULL PRIMARY KEY,
    nextMicros   INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE audit_outbox (
    name         TEXT NOT NULL PRIMARY KEY,
    moved        INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE lease (
    name         TEXT NOT NULL PRIMARY KEY,
    owner        INTEGER,
    cursor       TEXT NOT NULL
) STRICT, WITHOUT ROWID;
