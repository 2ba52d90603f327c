-- schema.sql of version 3, with an audit log of three entries after one that was
-- pruned. The hashes were computed outside certdist, by the rule of version 3.
PRAGMA application_id = 0x63657274;
PRAGMA user_version = 3;
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
CREATE TABLE audit_log (
    seq          INTEGER PRIMARY KEY,
    at           INTEGER NOT NULL,
    event        TEXT NOT NULL,
    deviceId     TEXT,
    enrollment   TEXT,
    who          TEXT,
    address      TEXT,
    detail       TEXT,
    hash         BLOB NOT NULL
) STRICT;
CREATE TABLE audit_device (
    deviceId     TEXT NOT NULL,
    seq          INTEGER NOT NULL,
    PRIMARY KEY (deviceId, seq)
) STRICT, WITHOUT ROWID;
CREATE TABLE audit_chain (
    id           INTEGER PRIMARY KEY CHECK (id = 0),
    anchorSeq    INTEGER NOT NULL,
    anchorHash   BLOB NOT NULL,
    headSeq      INTEGER NOT NULL,
    headHash     BLOB NOT NULL,
    indexedSeq   INTEGER NOT NULL
) STRICT;

INSERT INTO audit_log VALUES
    (2, 5, 'issued', 'SN-1', 'lamps', 'one', '192.0.2.1', 'a1/"n"',
     x'63850a5856373c7d1ebb3baed509b14a9d4563b533273d772fee745be3b18ccf');
INSERT INTO audit_log VALUES
    (3, 6, 'refused', 'SN-1', 'lamps', 'one', '192.0.2.1', 'the device is disabled',
     x'57fded12a020b2589e6eaddb1613ad4407d117afc4a0a471f39ecd170579e2b1');
INSERT INTO audit_log VALUES
    (4, 7, 'pruned', NULL, NULL, NULL, NULL, '1 entries, up to 1, hash 738e5824fc3498bc96e1cb4b77744160f35366a57229495e0584b5a5ef70b3e5',
     x'8b715d448eb7c70384184c577210bc21595c4a7d26a5bbdc5c38f3c0bea54ff8');
INSERT INTO audit_chain VALUES (0, 1,
    x'738e5824fc3498bc96e1cb4b77744160f35366a57229495e0584b5a5ef70b3e5', 4,
    x'8b715d448eb7c70384184c577210bc21595c4a7d26a5bbdc5c38f3c0bea54ff8', 0);
