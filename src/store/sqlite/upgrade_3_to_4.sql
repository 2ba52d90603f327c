-- From version 3 of schema.sql to version 4: stores the audit log in blocks. After this
-- script, store::sqlite::audit::into_blocks moves the entries.

ALTER TABLE audit_log RENAME TO audit_log_3;
ALTER TABLE audit_chain DROP COLUMN indexedSeq;
DROP TABLE audit_device;

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
