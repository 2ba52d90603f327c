-- From version 1 of schema.sql to version 2: adds batches of registrations, and the
-- state of a device at IoT Platform.

ALTER TABLE device_table ADD COLUMN cloudState TEXT CHECK (cloudState IN ('disabled', 'deleted'));
ALTER TABLE registration_journal ADD COLUMN batchId INTEGER;
CREATE TABLE registration_batch (
    batchId      INTEGER PRIMARY KEY,
    productKey   TEXT NOT NULL,
    applyId      INTEGER,
    openedAt     INTEGER NOT NULL
) STRICT;
