-- schema.sql of version 1, reduced to what an upgrade uses, with one device whose
-- registration was in progress.

PRAGMA application_id = 0x63657274;
PRAGMA user_version = 1;
CREATE TABLE device_table (
    deviceId TEXT NOT NULL PRIMARY KEY, registerTime INTEGER, activateTime INTEGER,
    productKey TEXT NOT NULL, deviceName TEXT, deviceSecret TEXT, IotId TEXT,
    enrollment TEXT NOT NULL,
    state TEXT NOT NULL DEFAULT 'enabled' CHECK (state IN ('enabled', 'disabled')),
    firstIssued INTEGER, refusal TEXT,
    CHECK (deviceSecret IS NULL OR deviceName IS NOT NULL)
) STRICT, WITHOUT ROWID;
CREATE TABLE device_key (
    pskIdentity TEXT NOT NULL PRIMARY KEY,
    deviceId TEXT NOT NULL UNIQUE REFERENCES device_table (deviceId) ON DELETE CASCADE,
    psk TEXT NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE registration_journal (
    deviceId TEXT NOT NULL PRIMARY KEY REFERENCES device_table (deviceId) ON DELETE CASCADE,
    productKey TEXT NOT NULL, deviceName TEXT NOT NULL, openedAt INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
INSERT INTO device_table (deviceId, productKey, enrollment) VALUES ('SN-1', 'a1', 'lamp');
INSERT INTO registration_journal VALUES ('SN-1', 'a1', 'SN-1', 5);
