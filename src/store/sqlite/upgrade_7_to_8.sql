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
