-- certdist's database, version 4.
--
-- `certdist serve` and `certdist import` create it automatically. To create it by hand:
--     sqlite3 certdist.db < schema.sql
-- It holds secrets (deviceSecret, psk), which are sealed if the configuration has a
-- database_key: keep the file readable for certdist's own account only. To inspect it,
-- even beside a running server:
--     sqlite3 -readonly certdist.db
-- To change it, use `certdist import` and `certdist device`.
-- Times are seconds since 1970-01-01T00:00:00Z. Rows never expire.

-- Mark the file as certdist's ("cert"), and set the version of its schema.
PRAGMA application_id = 0x63657274;
PRAGMA user_version = 4;

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

    CHECK (deviceSecret IS NULL OR deviceName IS NOT NULL)
) STRICT, WITHOUT ROWID;

-- Keys of devices in `individual` enrollments. A device has at most one key.
CREATE TABLE device_key (
    -- PSK identity that the device presents in its handshake, 1 to 128 bytes.
    pskIdentity  TEXT NOT NULL PRIMARY KEY,
    deviceId     TEXT NOT NULL UNIQUE REFERENCES device_table (deviceId) ON DELETE CASCADE,
    -- Key of 16 to 64 bytes: as lower-case hex, or sealed.
    psk          TEXT NOT NULL
) STRICT, WITHOUT ROWID;

-- Batches that were about to be requested from IoT Platform, of up to 10,000 devices
-- each.
CREATE TABLE registration_batch (
    batchId      INTEGER PRIMARY KEY,
    productKey   TEXT NOT NULL,
    -- The cloud's ApplyId of the batch; NULL: the cloud was not yet asked to create the
    -- devices.
    applyId      INTEGER,
    openedAt     INTEGER NOT NULL
) STRICT;

-- Registrations that were about to be requested from IoT Platform. A row is written
-- before the call, and removed when the answer is stored. So a row older than a few
-- minutes was left by a crash; the next start resumes its registration.
CREATE TABLE registration_journal (
    deviceId     TEXT NOT NULL PRIMARY KEY REFERENCES device_table (deviceId) ON DELETE CASCADE,
    productKey   TEXT NOT NULL,
    deviceName   TEXT NOT NULL,
    openedAt     INTEGER NOT NULL,
    -- Batch to which the registration belongs; NULL: none.
    batchId      INTEGER
) STRICT, WITHOUT ROWID;

-- Keys under which values may be sealed. All of them must be configured.
CREATE TABLE database_key (
    -- First 4 bytes of a hash of the key, as lower-case hex. `clear`: the database may
    -- contain unsealed values, or traces of them.
    keyId        TEXT NOT NULL PRIMARY KEY,
    -- Time at which the first value was written under this key.
    firstUsed    INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- The audit log, in consecutive blocks of entries; read it with `certdist audit`. The
-- oldest blocks may be pruned. `certdist audit verify` checks that the others are
-- unchanged.
CREATE TABLE audit_block (
    -- Numbers of the block's last and first entry. Entries are numbered without gaps.
    lastSeq      INTEGER PRIMARY KEY,
    firstSeq     INTEGER NOT NULL,
    -- JSON array with one object for each entry, one object per line.
    entries      TEXT NOT NULL,
    -- SHA-256 of the previous block's hash, of firstSeq as 8 bytes, and of entries.
    hash         BLOB NOT NULL
) STRICT;

-- The audit log with one row for each entry.
CREATE VIEW audit_log AS SELECT
    firstSeq + key AS seq,
    value ->> 'at' AS at,
    value ->> 'event' AS event,
    value ->> 'deviceId' AS deviceId,
    value ->> 'enrollment' AS enrollment,
    -- PSK identity of a device, or name of an operator.
    value ->> 'who' AS who,
    value ->> 'address' AS address,
    value ->> 'detail' AS detail
FROM audit_block, json_each(entries);

-- Index from devices to parts of the log. A part covers about a thousand entries. Its
-- `devices` contains a hash of 4 bytes (FNV-1a) for each device in these entries,
-- sorted. The newest entries belong to no part yet.
CREATE TABLE audit_device (
    lastSeq      INTEGER PRIMARY KEY,
    firstSeq     INTEGER NOT NULL,
    devices      BLOB NOT NULL
) STRICT;

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
