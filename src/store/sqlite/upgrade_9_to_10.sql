-- From version 9 of schema.sql to version 10.

-- Second keys of individual devices.
ALTER TABLE device_key ADD COLUMN pskNext TEXT;
ALTER TABLE device_key ADD COLUMN nextSince INTEGER;
ALTER TABLE device_key ADD COLUMN pskUsed INTEGER;
ALTER TABLE device_key ADD COLUMN pskNextUsed INTEGER CHECK (pskNext IS NOT NULL
    OR (nextSince IS NULL AND pskUsed IS NULL AND pskNextUsed IS NULL));
CREATE INDEX key_next ON device_key (deviceId) WHERE pskNext IS NOT NULL;
ALTER TABLE import_before ADD COLUMN addedNext INTEGER NOT NULL DEFAULT 0;
ALTER TABLE import_before ADD COLUMN formerNext TEXT;
ALTER TABLE import_before ADD COLUMN formerSince INTEGER;
ALTER TABLE import_before ADD COLUMN formerUsed INTEGER;
ALTER TABLE import_before ADD COLUMN formerNextUsed INTEGER;
