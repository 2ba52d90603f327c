-- From version 6 of schema.sql to version 7: adds indexes by which the console finds devices.

CREATE INDEX device_enrollment ON device_table (enrollment);
CREATE INDEX device_end ON device_table (upper(substr(deviceId, -4)));
CREATE INDEX device_refused ON device_table (deviceId, enrollment, refusal) WHERE refusal IS NOT NULL;
CREATE INDEX device_disabled ON device_table (deviceId) WHERE state = 'disabled';
CREATE INDEX device_cloud_state ON device_table (deviceId, cloudState) WHERE cloudState IS NOT NULL;
