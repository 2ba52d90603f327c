# Sentences of the console. A key has the same values in each language.

## Frame

nav-overview = Overview
nav-devices = Devices
nav-enrollments = Enrollments
nav-import = Import
nav-pages = Pages
nav-skip = Skip to the content
role-operator = operator
role-viewer = viewer
footer-server = As of {$now} · certdist {$version} on {$host}, started {$started} · {$database}
live-stale = The server does not answer. The numbers below are old.
live-ended = The session has ended. The numbers below are old.
go-to-overview = Go to the overview
page-not-found-title = No such page
page-not-found = There is no page at this address. {$link}
form-expired = This form has expired
form-expired-text = The form was not made for this session, so nothing was changed. Open the page again and repeat the action.
signed-out = You are signed out
signed-out-text = The session had ended before the form arrived, so nothing was changed. Sign in, and repeat the action.
operators-only = Only operators can do this
operators-only-text = You are signed in as a viewer, who can see everything but change nothing. Changes need {$role} in the configuration.
database-failed = The database failed
database-failed-text = Nothing was changed. The database reported:
database-failed-advice = If this persists, check that the disk is not full, and that no other process holds the file.
console-off = No user can sign in yet
console-off-text = The console is off, because no user is configured yet. Health and metrics are at {$health} and {$metrics}.
console-off-hash = To turn it on, make the hash of a password:
console-off-config = Put it into {$file}, then reload certdist ({$command}, or SIGHUP).

## Signing in

sign-in = Sign in
sign-out = Sign out
sign-in-name = Name
sign-in-password = Password
sign-in-hint = Users are configured in certdist.toml. Forgotten your password? Make a new hash with {$command}.
not-signed-in = You are not signed in
sign-in-form-expired = The form has expired, or cookies are turned off. Try again.
sign-in-wrong = Name or password is wrong.
sign-in-too-often = Too many attempts. Try again in {$seconds} s, or in a browser in which you have signed in before.

## Overview

overview-as-of = As of {$time}
all-is-well = All is well
nothing-to-do = Nothing to do. This was looked at:
looked-requests = Answers and handshakes of the last hour: none failed.
looked-cloud = Calls of IoT Platform: none fails; the last one worked at {$time}.
looked-cloud-idle = Calls of IoT Platform: none was needed since the start, so nothing is known about it.
looked-no-cloud = Calls of IoT Platform: none is configured, and no device needs one.
looked-table = The table: {$count} devices at {$time}; none is refused, deleted or without an enrollment.
looked-table-not-yet = The table: it is being counted.
looked-server = Writes to the database, the clock and the network of this server.
label-cause = Cause:
label-said = Message:
label-remedy = What to do:
show-concerned = Show what is concerned
fact-since = since {$time}
fact-last = last at {$time}
fact-devices = {$count ->
    [one] {$count} device
   *[other] {$count} devices
}
overview-requests = Requests
overview-results = Answers
overview-handshakes = Handshakes
range-hour = Hour
range-day = Day
range-week = Week
results-result = Result
results-count = Number
results-share = Share
kind-served = Served
kind-invalid = Not in the table, or not in the enrollment of its key
kind-not-yours = Asked for another device
kind-disabled = Disabled here
kind-issued = Issued already
kind-too-many = Too many requests
kind-malformed = Request not understood
kind-operator = Refused by IoT Platform
kind-later = Asked to come back later
kind-timed-out = No answer from IoT Platform in time
handshake-completed = Completed
handshake-wrong-key = Wrong key or unknown identity
handshake-silent = Client stopped answering
handshake-other = Other failures
tile-sessions = Sessions
tile-sessions-about = DTLS, open now
tile-registrations = Registrations
tile-registrations-about = {$count} of them waiting for a call
tile-batches = Batches
tile-batches-about = {$count} since the start
tile-answered = Answered within
tile-answered-about = 19 of 20 requests
tile-registered = Registered within
tile-registered-about = 19 of 20 registrations
tile-writes = Writes waiting
tile-writes-about = for the database
chart-served = served
chart-refused = refused here
chart-cloud = refused by IoT Platform
chart-later = asked to come back later
chart-words = {$served} served, {$refused} refused here, {$cloud} refused by IoT Platform, {$later} asked to come back later; at most {$most} in a bar
chart-a-minute = {$count} a minute (UTC)
chart-20-minutes = {$count} in 20 minutes (UTC)
chart-2-hours = {$count} in 2 hours (UTC)
chart-begins = The server started at {$time}; the chart begins there.
chart-values = Values
chart-from = From
chart-no-requests = There was no request.

## Failures

failing-devices = Devices that were not served
failing-by-reason = By reason
failing-by-enrollment = By enrollment of the key
failing-by-address = By address
failing-forgotten = So many devices were refused that the earliest are no longer listed.
group-counts = {$devices} devices, {$requests} requests
failures-count = {$count} in the last 24 hours, since the start at the earliest
failures-all = Show all
failures-none = None.
failures-latest = The latest {$count} are shown.
failures-download = Download the {$count} IDs that are not in the table
failures-download-hint = Anybody who has the key can send any ID. Compare the file with the list of the factory before you import it. {$import}
failures-foreign = In the table under enrollment {$own}, but has the key of {$key}
column-device = Device
column-reason = Reason
column-key-of = Key of
column-address = Address
column-last = Last
column-requests = Requests

## Concerns

database-unreadable = The database cannot be read
database-unreadable-cause = The disk or the database file of this server.
database-unreadable-remedy = Check that the disk is not full and that the file is in place. The message says what failed.
database-writes = {$times} writes to the database failed
database-writes-cause = The disk of this server is full or slow, or another program holds the database. The devices concerned were asked to come back later.
database-writes-remedy = Free disk space, and end whatever holds the database. The log has the reason of each failure.
cloud-silent = IoT Platform cannot be reached
cloud-silent-cause = The network between this server and IoT Platform, or IoT Platform itself; not the devices. Calls that fail: {$names} ({$times} in a row).
cloud-silent-remedy = Check network, DNS, firewall and proxy of this server. Leave the devices alone: those with a certificate are served, and the others try again by themselves.
cloud-account = IoT Platform refuses calls
cloud-account-cause = The access key or the account that this server uses; not the devices. Refused calls: {$names}.
cloud-account-remedy = Mend what the message says, in the console of Alibaba Cloud or in the configuration here. The devices then try again by themselves.
cloud-product = IoT Platform refuses the product {$names}
cloud-product-cause = The product does not exist in this instance, or it has as many devices as it may have; devices of other products are not concerned.
cloud-product-remedy = Compare product_key and instance_id of the configuration with the console of IoT Platform.
cloud-throttles = IoT Platform throttles this account
cloud-throttles-cause = The account makes more calls than IoT Platform permits: {$names}. Another program may use the same account.
cloud-throttles-remedy = Nothing, if it passes; certdist slows down by itself. If it persists, lower qps, or find out what else uses the account.
cloud-fails = Calls of IoT Platform fail
cloud-fails-cause = IoT Platform answers with an error: {$names} ({$times} in a row).
cloud-fails-remedy = Look up the code in docs/cloud.md. If IoT Platform has a fault, wait; the devices try again by themselves.
devices-refused = {$devices ->
    [one] IoT Platform refuses {$devices} device
   *[other] IoT Platform refuses {$devices} devices
}
devices-refused-cause = These devices themselves: for example, their name is taken by another device. The most frequent message is below.
devices-refused-remedy = Mend the cause at IoT Platform, then reset the devices here: their next request registers them.
wrong-enrollment = {$devices ->
    [one] {$devices} device has the key of another enrollment
   *[other] {$devices} devices have the key of another enrollment
}
wrong-enrollment-cause = The import and the firmware do not fit together. In the table → key: {$names}.
wrong-enrollment-remedy = If the table is wrong, import the devices into the enrollment whose key they have. If the firmware is wrong, flash the right one.
unconfigured = {$devices ->
    [one] {$devices} device is in an enrollment that is not configured
   *[other] {$devices} devices are in an enrollment that is not configured
}
unconfigured-cause = The configuration of this server has no enrollment {$names}, so these devices cannot sign in.
unconfigured-remedy = Add the enrollment to certdist.toml and reload, or import the devices into another one.
deleted-at-cloud = {$devices ->
    [one] {$devices} device was deleted at IoT Platform
   *[other] {$devices} devices were deleted at IoT Platform
}
deleted-at-cloud-cause = Somebody deleted them in the console of IoT Platform or by its API. Their certificates no longer work.
deleted-at-cloud-remedy = If they are still in use, reset them here: their next request registers them again under the same name.
draining = The server is shutting down
draining-cause = An operator or the system has stopped it. It accepts no new registrations, and finishes those in progress.
draining-remedy = Nothing, if that is on purpose. Otherwise look into the log of the service manager.
unknown-devices = {$devices ->
    [one] {$devices} device that is not in the table asks for a certificate
   *[other] {$devices} devices that are not in the table ask for a certificate
}
unknown-devices-cause = Their list was not imported, or their IDs differ from the list, or a stranger has the key of {$names} and tries IDs.
unknown-devices-remedy = Compare the IDs with the list of the factory, and import those that belong to you.
wrong-key = {$times} handshakes failed because of a wrong key
wrong-key-cause = Devices have another key than the table or the configuration, or an unknown identity; or a stranger tries keys.
wrong-key-remedy = The log names identity and address of each. Compare the key in the firmware with the enrollment, and import individual keys again.
guessing = Somebody tries device IDs
guessing-cause = A client with a shared key asks for one ID after another that it may not have. It is slowed down, and others are served.
guessing-remedy = See the addresses below. If it is no test of yours, change the shared key, and block the address.
not-yours = {$devices ->
    [one] {$devices} device was asked for with the key of another
   *[other] {$devices} devices were asked for with the key of another
}
not-yours-cause = A firmware sends the ID of another device, or somebody tries to get the certificates of others. Nothing was handed out.
not-yours-remedy = Compare the identity and the ID that the firmware sends: for this kind of key, both must be the same device.
issued-already = {$devices ->
    [one] {$devices} device asks again for its certificate, and may not have it
   *[other] {$devices} devices ask again for their certificates, and may not have them
}
issued-already-cause = The device has fetched it before, and the reissue policy of its enrollment permits no other; perhaps it did not store it.
issued-already-remedy = If you trust the device, reset it here: it can then fetch its certificate again.
malformed = {$times} requests were not understood
malformed-cause = The firmware sends a wrong path, method, format or device ID.
malformed-remedy = The answer tells the firmware what is wrong (docs/device.md). The log shows the requests.
silent-clients = {$times} handshakes ended because the device fell silent
silent-clients-cause = Packets are lost between the devices and this server, or the devices were switched off.
silent-clients-remedy = If there are many: check radio, NAT and firewall. A firewall must let UDP pass in both directions.
other-handshakes = {$times} handshakes failed for other reasons
other-handshakes-cause = For example, the firmware offers no cipher suite of this server, or there were too many unfinished handshakes of one network.
other-handshakes-remedy = The log and certdist_handshake_failures_total show the reasons. docs/device.md lists the cipher suites.
clock = The clock of this server is wrong by {$times} s
clock-cause = The clock differs from that of IoT Platform. certdist corrects its own times, but logs and other programs have the wrong time.
clock-remedy = Turn on time synchronization (NTP) on this machine.
no-cloud = {$devices ->
    [one] {$devices} device has no certificate, and no IoT Platform is configured
   *[other] {$devices} devices have no certificate, and no IoT Platform is configured
}
no-cloud-cause = The configuration has no [iot_platform], so devices without a certificate in the table are answered with 5.02.
no-cloud-remedy = Configure [iot_platform], or import the certificates.
unsealed = {$times} secrets in the database are in clear text
unsealed-cause = No database_key was configured when they were stored. Whoever gets the file or a backup can read them.
unsealed-remedy = Configure database_key, then run certdist database seal (docs/operations.md).
too-many = {$devices ->
    [one] {$devices} device sends too many requests
   *[other] {$devices} devices send too many requests
}
too-many-cause = {$times} requests exceeded a rate limit and were answered with 4.29.
too-many-remedy = A device that asks in a loop has a fault in its firmware. If many devices of one address come at once, raise the limit.
queue = {$devices ->
    [one] {$devices} device waits for its registration
   *[other] {$devices} devices wait for their registration
}
queue-cause = More devices came at once than IoT Platform registers in that time; no call fails.
queue-remedy = Nothing. Each device comes back by itself and gets its certificate.
unsent = {$times} datagrams could not be sent
unsent-cause = The network or its buffers on this server are too small or too slow. Devices repeat their requests.
unsent-remedy = If it persists, raise net.core.wmem_max, or add network capacity.
disabled-ask = {$devices ->
    [one] {$devices} disabled device asks for its certificate
   *[other] {$devices} disabled devices ask for their certificates
}
disabled-ask-cause = An operator has disabled them here.
disabled-ask-remedy = Nothing, if that is on purpose. Otherwise enable them.
disabled-at-cloud = {$devices ->
    [one] {$devices} device is disabled at IoT Platform
   *[other] {$devices} devices are disabled at IoT Platform
}
disabled-at-cloud-cause = Somebody disabled them there. They have their certificate, but cannot sign in with it.
disabled-at-cloud-remedy = Nothing, if that is on purpose. Otherwise enable them at IoT Platform.

## Remedies for codes of IoT Platform

remedy-key-unknown = There is no such access key. Correct the ID in the credentials of this server: often a space, or a key of another site.
remedy-key-inactive = The access key is disabled. Enable it in the RAM console, or configure another one.
remedy-key-secret = The secret does not belong to the access key. Enter both again; if they are right, a proxy changes the requests.
remedy-token = The security token has expired or does not belong to the key. Renew the credentials.
remedy-permission = The access key lacks a permission. Attach the policy of docs/cloud.md to its RAM user.
remedy-account = The account cannot use IoT Platform. Activate it, and check account and region.
remedy-bill = The account has an overdue bill. Pay it.
remedy-instance = There is no such instance in that region. Correct instance_id and region in certdist.toml.
remedy-product = There is no such product in the instance. Correct product_key of the enrollment, or instance_id, in certdist.toml; then reload.
remedy-quota = The quota of devices is used up. Raise it at IoT Platform, or delete devices there.
remedy-certificate = TLS: the certificate of IoT Platform is refused. Check ca_file, the clock, and endpoint.
remedy-credentials = This server has no access key. The message says why.
remedy-network = Check network, DNS, firewall and proxy of this server towards IoT Platform. Leave the devices alone: those with a certificate are served, and the others try again by themselves.
remedy-not-an-answer = Something else answers in the place of IoT Platform. Check for the login page of a proxy, and for a wrong endpoint.
