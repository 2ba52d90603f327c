-- From version 5 of schema.sql to version 6: adds what is needed to undo an import, and an index of
-- MAC addresses that are spelled as serial numbers.

ALTER TABLE device_table ADD COLUMN importId INTEGER;

CREATE INDEX device_spelled ON device_table (
    upper(replace(replace(replace(replace(replace(replace(deviceId, ':', ''), '-', ''), '.', ''), '_', ''), '0x', ''), '0X', ''))
) WHERE deviceId NOT GLOB '[0-9A-F][0-9A-F][0-9A-F][0-9A-F][0-9A-F][0-9A-F][0-9A-F][0-9A-F][0-9A-F][0-9A-F][0-9A-F][0-9A-F]'
    AND deviceId NOT GLOB '*[^0-9A-Fa-fxX:._-]*'
    AND length(replace(replace(replace(replace(replace(replace(deviceId, ':', ''), '-', ''), '.', ''), '_', ''), '0x', ''), '0X', '')) = 12;

CREATE TABLE import (
    number       INTEGER PRIMARY KEY AUTOINCREMENT,
    importId     INTEGER NOT NULL UNIQUE,
    at           INTEGER NOT NULL,
    who          TEXT NOT NULL,
    file         TEXT NOT NULL,
    added        INTEGER NOT NULL,
    changed      INTEGER NOT NULL,
    undone       INTEGER
) STRICT;

CREATE TABLE import_before (
    importId     INTEGER NOT NULL,
    deviceId     TEXT NOT NULL,
    former       INTEGER,
    enrollment   TEXT NOT NULL,
    productKey   TEXT NOT NULL,
    deviceName   TEXT,
    IotId        TEXT,
    refusal      TEXT,
    hadSecret    INTEGER NOT NULL,
    keyChange    TEXT CHECK (keyChange IN ('added', 'lost')),
    PRIMARY KEY (importId, deviceId)
) STRICT, WITHOUT ROWID;
