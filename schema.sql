-- certdist's database, version 4.
--
-- `certdist serve` and `certdist import` create it by themselves; by hand:
--     sqlite3 certdist.db < schema.sql
-- It holds secrets (deviceSecret, psk), which are sealed when the configuration has
-- a database_key: keep the file readable for certdist's own account only. Look into
-- it, beside a running server, with
--     sqlite3 -readonly certdist.db
-- and change it with `certdist import` and `certdist device`.
-- Times are seconds since 1970-01-01T00:00:00Z. Rows never expire.

-- Marks the file as certdist's ("cert"), and tells which schema it has.
PRAGMA application_id = 0x63657274;
PRAGMA user_version = 4;

-- One row for each device that may come. The first seven columns are those of
-- the Tablestore table of the same name.
CREATE TABLE device_table (
    -- Serial number, or MAC address as 12 upper-case hex digits.
    deviceId     TEXT NOT NULL PRIMARY KEY,
    -- When it was registered at IoT Platform; NULL: not by this server.
    registerTime INTEGER,
    -- When it first signed in at IoT Platform; NULL: not known.
    activateTime INTEGER,
    -- The product in which it is, or will be, registered.
    productKey   TEXT NOT NULL,
    -- The device name. Without deviceSecret: the name to register it under;
    -- NULL: the one that follows from deviceId.
    deviceName   TEXT,
    -- The certificate is there if, and only if, this is.
    deviceSecret TEXT,
    -- The cloud's own identifier of the device.
    IotId        TEXT,

    -- Name of an [[enrollment]] of certdist.toml.
    enrollment   TEXT NOT NULL,
    -- `disabled`: the operator said no.
    state        TEXT NOT NULL DEFAULT 'enabled' CHECK (state IN ('enabled', 'disabled')),
    -- When the device first received its certificate.
    firstIssued  INTEGER,
    -- Why IoT Platform refused this very device. `certdist device reset` or an
    -- import that changes the row clears it, and registration is tried again.
    refusal      TEXT,
    -- What was last seen of the device at IoT Platform, if not all is well there.
    cloudState   TEXT CHECK (cloudState IN ('disabled', 'deleted')),

    CHECK (deviceSecret IS NULL OR deviceName IS NOT NULL)
) STRICT, WITHOUT ROWID;

-- Keys of devices of `individual` enrollments: one device, one key.
CREATE TABLE device_key (
    -- What the device presents in its handshake, 1 to 128 bytes.
    pskIdentity  TEXT NOT NULL PRIMARY KEY,
    deviceId     TEXT NOT NULL UNIQUE REFERENCES device_table (deviceId) ON DELETE CASCADE,
    -- 16 to 64 bytes, as lower-case hex.
    psk          TEXT NOT NULL
) STRICT, WITHOUT ROWID;

-- Batches that were about to be asked for, of up to 10,000 devices each.
CREATE TABLE registration_batch (
    batchId      INTEGER PRIMARY KEY,
    productKey   TEXT NOT NULL,
    -- The cloud's name of the batch; NULL: its devices were not asked for yet.
    applyId      INTEGER,
    openedAt     INTEGER NOT NULL
) STRICT;

-- What was about to be asked of IoT Platform. A row is here from before the
-- call until its answer is stored, so one that is older than a few minutes was
-- left by a crash and is taken up at the next start.
CREATE TABLE registration_journal (
    deviceId     TEXT NOT NULL PRIMARY KEY REFERENCES device_table (deviceId) ON DELETE CASCADE,
    productKey   TEXT NOT NULL,
    deviceName   TEXT NOT NULL,
    openedAt     INTEGER NOT NULL,
    -- The batch that it is a part of.
    batchId      INTEGER
) STRICT, WITHOUT ROWID;

-- Under which keys values may be sealed. All of them must be configured.
CREATE TABLE database_key (
    -- First 4 bytes of a hash of the key, as lower-case hex. `clear`: values may be
    -- here that are not sealed, or have left traces.
    keyId        TEXT NOT NULL PRIMARY KEY,
    -- When the first value was written under it.
    firstUsed    INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- What happened, in blocks of entries one after another; read it with `certdist audit`.
-- Nothing here is ever changed, and `certdist audit verify` shows whether that is so.
CREATE TABLE audit_block (
    -- The number of its last entry, and of its first: without gaps.
    lastSeq      INTEGER PRIMARY KEY,
    firstSeq     INTEGER NOT NULL,
    -- An array of JSON, an object for each entry, one to a line.
    entries      TEXT NOT NULL,
    -- SHA-256 of the hash before it, of firstSeq as 8 bytes, and of entries.
    hash         BLOB NOT NULL
) STRICT;

-- The same, entry by entry.
CREATE VIEW audit_log AS SELECT
    firstSeq + key AS seq,
    value ->> 'at' AS at,
    value ->> 'event' AS event,
    value ->> 'deviceId' AS deviceId,
    value ->> 'enrollment' AS enrollment,
    -- PSK identity, or who operates.
    value ->> 'who' AS who,
    value ->> 'address' AS address,
    value ->> 'detail' AS detail
FROM audit_block, json_each(entries);

-- Which parts of the log are about a device. A part is some thousand entries; of the
-- device of each, `devices` has a hash of 4 bytes (FNV-1a), in their order. The newest
-- entries are in no part yet.
CREATE TABLE audit_device (
    lastSeq      INTEGER PRIMARY KEY,
    firstSeq     INTEGER NOT NULL,
    devices      BLOB NOT NULL
) STRICT;

-- Where the chain of hashes begins, after what was pruned, and where it ends.
CREATE TABLE audit_chain (
    id           INTEGER PRIMARY KEY CHECK (id = 0),
    anchorSeq    INTEGER NOT NULL,
    anchorHash   BLOB NOT NULL,
    headSeq      INTEGER NOT NULL,
    headHash     BLOB NOT NULL
) STRICT;
INSERT INTO audit_chain VALUES (0, 0, zeroblob(32), 0, zeroblob(32));
