-- From version 8 of schema.sql to version 9.

-- Targets: the cloud at which a device is registered. Registered devices without a target belong to
-- the target `default`, so no row is rewritten.
ALTER TABLE device_table ADD COLUMN target TEXT;
CREATE INDEX device_target ON device_table (target) WHERE target IS NOT NULL;
ALTER TABLE import_before ADD COLUMN target TEXT;
ALTER TABLE registration_batch ADD COLUMN target TEXT NOT NULL DEFAULT 'default';
ALTER TABLE registration_claim ADD COLUMN target TEXT NOT NULL DEFAULT 'default';

-- Numbers of imports, which are not given twice.
CREATE TABLE import_number (
    importId     INTEGER PRIMARY KEY
) STRICT;
INSERT INTO import_number
    SELECT abs(importId) FROM device_table WHERE importId IS NOT NULL
    UNION SELECT importId FROM import
    UNION SELECT importId FROM import_unfinished
    UNION SELECT importId FROM import_before
    UNION SELECT abs(former) FROM import_before WHERE former IS NOT NULL;

-- Imports that are undone in many transactions.
ALTER TABLE import_before ADD COLUMN late INTEGER;
CREATE INDEX import_late ON import_before (importId, late) WHERE late IS NOT NULL;
ALTER TABLE import_unfinished ADD COLUMN kind TEXT NOT NULL DEFAULT 'import' CHECK (kind IN ('import', 'undo'));
ALTER TABLE import_unfinished ADD COLUMN address TEXT;
ALTER TABLE import_unfinished ADD COLUMN removed INTEGER NOT NULL DEFAULT 0;
ALTER TABLE import_unfinished ADD COLUMN certificates INTEGER NOT NULL DEFAULT 0;
ALTER TABLE import_unfinished ADD COLUMN restored INTEGER NOT NULL DEFAULT 0;
ALTER TABLE import_unfinished ADD COLUMN taken INTEGER NOT NULL DEFAULT 0;

-- Uses of the keys of each enrollment that has two.
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

-- Devices that wait to be admitted (unlisted = "hold").
CREATE TABLE device_waiting (
    deviceId     TEXT NOT NULL,
    enrollment   TEXT NOT NULL,
    first        INTEGER NOT NULL,
    last         INTEGER NOT NULL,
    count        INTEGER NOT NULL,
    address      TEXT NOT NULL,
    PRIMARY KEY (deviceId, enrollment)
) STRICT, WITHOUT ROWID;
CREATE INDEX waiting_address ON device_waiting (enrollment, address);
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

-- The enrollment of each claim, by which places are counted (max_devices).
ALTER TABLE registration_claim ADD COLUMN enrollment TEXT;
UPDATE registration_claim SET enrollment =
    (SELECT enrollment FROM device_table d WHERE d.deviceId = registration_claim.deviceId);
CREATE INDEX claim_enrollment ON registration_claim (enrollment);

-- Orders for IoT Platform.
CREATE TABLE cloud_order (
    number       INTEGER PRIMARY KEY AUTOINCREMENT,
    deviceId     TEXT NOT NULL UNIQUE REFERENCES device_table (deviceId) ON DELETE CASCADE,
    work         TEXT NOT NULL CHECK (work IN ('disable', 'enable', 'delete', 'rotate')),
    productKey   TEXT NOT NULL,
    deviceName   TEXT NOT NULL,
    IotId        TEXT,
    orderedAt    INTEGER NOT NULL,
    who          TEXT NOT NULL,
    address      TEXT,
    failure      TEXT,
    target       TEXT NOT NULL,
    isConfirmed  INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE INDEX order_target ON cloud_order (target, number);
