-- From version 7 of schema.sql to version 8.

-- Imports that write in many transactions.
ALTER TABLE import_before ADD COLUMN formerIdentity TEXT;
ALTER TABLE import_before ADD COLUMN formerPsk TEXT;
CREATE INDEX import_former_key ON import_before (importId) WHERE formerPsk IS NOT NULL;
CREATE TABLE import_unfinished (
    importId     INTEGER PRIMARY KEY,
    at           INTEGER NOT NULL,
    who          TEXT NOT NULL,
    file         TEXT NOT NULL
) STRICT;

-- Sealing that holds up other writers only while it rewrites the file.
ALTER TABLE database_key ADD COLUMN writes INTEGER NOT NULL DEFAULT 0;

-- Numbers of devices by enrollment and product, and by reason of a refusal.
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

-- Counts of the devices that are there.
INSERT INTO device_count SELECT enrollment, productKey,
        1, (d.deviceSecret IS NOT NULL), (d.deviceSecret IS NOT NULL AND d.firstIssued IS NULL),
        (d.firstIssued IS NOT NULL), (d.activateTime IS NOT NULL), (d.refusal IS NOT NULL),
        (d.state = 'disabled'),
        (d.deviceSecret IS NULL AND d.refusal IS NULL AND d.state = 'enabled'),
        (d.cloudState IS 'disabled'), (d.cloudState IS 'deleted'),
        (d.deviceSecret IS NOT NULL AND d.deviceSecret NOT GLOB 'sealed *')
    FROM device_table d WHERE true
    ON CONFLICT DO UPDATE SET
        devices = devices + excluded.devices, registered = registered + excluded.registered,
        unissued = unissued + excluded.unissued, issued = issued + excluded.issued,
        activated = activated + excluded.activated, refused = refused + excluded.refused,
        disabled = disabled + excluded.disabled,
        unregistered = unregistered + excluded.unregistered,
        cloudDisabled = cloudDisabled + excluded.cloudDisabled,
        cloudDeleted = cloudDeleted + excluded.cloudDeleted, clear = clear + excluded.clear;
INSERT INTO refusal_count SELECT enrollment, refusal, 1 FROM device_table WHERE refusal IS NOT NULL
    ON CONFLICT DO UPDATE SET devices = devices + 1;

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

-- Devices that have not signed in yet: IoT Platform is asked about these often.
CREATE INDEX device_unactivated ON device_table (firstIssued, deviceId)
    WHERE firstIssued IS NOT NULL AND activateTime IS NULL AND cloudState IS NOT 'deleted';

-- Repeated requests have a table of their own. Entries about earlier ones stay in the log.
CREATE TABLE audit_repeat (
    number       INTEGER PRIMARY KEY,
    event        TEXT NOT NULL,
    deviceId     TEXT NOT NULL,
    enrollment   TEXT,
    who          TEXT,
    detail       TEXT,
    count        INTEGER NOT NULL,
    first        INTEGER NOT NULL,
    last         INTEGER NOT NULL,
    address      TEXT,
    firstAddress TEXT
) STRICT;
CREATE TABLE audit_repeat_device (
    lastNumber   INTEGER PRIMARY KEY,
    firstNumber  INTEGER NOT NULL,
    devices      BLOB NOT NULL
) STRICT;
CREATE TABLE audit_refused (
    device       INTEGER NOT NULL,
    reason       INTEGER NOT NULL,
    seq          INTEGER NOT NULL,
    PRIMARY KEY (device, reason)
) STRICT, WITHOUT ROWID;
DROP VIEW audit_log;
CREATE VIEW audit_log AS SELECT
    firstSeq + key AS seq,
    value ->> 'at' AS at,
    value ->> 'event' AS event,
    value ->> 'deviceId' AS deviceId,
    value ->> 'enrollment' AS enrollment,
    value ->> 'who' AS who,
    value ->> 'address' AS address,
    value ->> 'detail' AS detail,
    1 AS count
FROM audit_block, json_each(entries)
UNION ALL
SELECT NULL, last, event, deviceId, enrollment, who, address, detail, count FROM audit_repeat;
