-- From version 2 of schema.sql to version 3: adds the list of sealing keys, and the
-- audit log.

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
INSERT INTO audit_chain VALUES (0, 0, zeroblob(32), 0, zeroblob(32), 0);

-- The values written so far are not sealed.
INSERT INTO database_key VALUES ('clear', unixepoch());
