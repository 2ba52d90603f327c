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
signed-out-already = Your session had ended before. Sign in to go on.
operators-only = Only operators can do this
operators-only-text = You are signed in as a viewer, who can see everything but change nothing. Changes need {$role} in the configuration.
database-failed = The database failed
database-failed-text = Nothing was changed. The database reported:
database-failed-advice = If this persists, check that the disk is not full, and that no other process holds the file.
console-off = No user can sign in yet
console-off-text = The console is off, because no user is configured yet. Health and metrics are at {$health} and {$metrics}.
console-off-hash = To turn it on, make the hash of a password:
console-off-config = Put it into {$file}, then reload certdist ({$command}, or SIGHUP).

## Devices

column-target = Target
column-enrollment = Enrollment
column-state = State
column-issued = First issued
column-order = Order
column-since = Since
column-by = By
column-not-yet = Last failure
column-to-admit = To admit
column-refused = Refused
column-job = Job
count = {$count}
cancel = Cancel
copy = Copy
copied = Copied
and-more = and {$count} more
under-one-percent = under 1 %
state-imported = imported
state-waiting = being registered
state-registered = registered
state-unissued = registered, not issued yet
state-issued = issued
state-activated = activated
state-refused = registration refused
state-disabled = disabled here
state-cloud-disabled = disabled at IoT Platform
state-cloud-deleted = deleted at IoT Platform
devices-search = Device
devices-search-button = Search
devices-search-hint = What is on the label: a serial number, a MAC address in any spelling, a device name, an IotId, or the beginning or the end of an ID.
devices-conditions = Conditions
devices-any-state = any
devices-from = First issued from (UTC)
devices-to = First issued until (UTC)
devices-apply = Apply
devices-all = Show all devices
devices-total = { $count ->
    [one] {$count} device, in order of ID
   *[other] {$count} devices, in order of ID
}
devices-more-than = More than {$count} devices, in order of ID.
devices-count = Count them all
devices-counted = · counted at {$time}
devices-previous = Previous
devices-next = Next
devices-none = Nothing found
devices-none-text = No device is like this. Was it imported? Is another condition in the way?
devices-partly = This is not all yet
devices-partly-text = The table is large. The search has looked at the devices as far as {$device}.
devices-go-on = Go on searching
devices-unreadable = The conditions cannot be read
devices-bad-state = There is no such state. Choose one of the list.
devices-bad-date = A day has the form 2026-11-28.
devices-bad-part = The address of the page is incomplete. Search again.
where-enrollment = enrollment {$value}
where-target = target {$value}
where-product = product {$value}
where-state = state: {$value}
where-refusal = refused: {$value}
where-from = first issued from {$value}
where-to = first issued until {$value}
where-begins = ID begins with {$value}
where-ends = ID ends with {$value}
where-name = device name {$value}
where-iotid = IotId {$value}

## A list of devices

list-title = Several devices
list-label = Device IDs, device names or IotIds
list-hint = One on each line, up to {$most}, as copied from a spreadsheet.
list-button = Find them
list-found = { $found ->
    [one] {$found} device
   *[other] {$found} devices
} from { $lines ->
    [one] {$lines} line
   *[other] {$lines} lines
}; {$shown} shown
list-missing = { $count ->
    [one] {$count} line names no device
   *[other] {$count} lines name no device
}
list-missing-text = They are left out. Check for typing errors, or import these devices.
list-time-up = There was no time to look for all of them under a device name or in another letter case. Send the list in parts.
list-other-case = { $count ->
    [one] {$count} line is taken in another letter case
   *[other] {$count} lines are taken in another letter case
}
list-empty = The list is empty
list-empty-text = Paste at least one line.
list-not-read = The list was not read
list-too-many = It has more than {$most} lines. Send it in parts, or use certdist device --file.

## Actions

action-disable = Disable
action-enable = Enable
action-reset = Reset
action-register = Register now
action-delete = Delete
action-disable-text = The device gets no certificate from its next request on (4.03). IoT Platform is not informed: a certificate that was issued still works there.
action-enable-text = The device may have its certificate again, under its enrollment's policy.
action-reset-text = Clears the first issue and any refusal, so that the device can fetch its certificate or be registered again.
action-register-text = Registers the devices at IoT Platform before they ask, one by one at the account's rate. Devices that have just powered on wait a few seconds at most. For a whole enrollment, certdist register is faster, because it makes batches.
action-delete-text = Removes the device from this table, with its key and its certificate here. The device at IoT Platform stays.
bulk-title = Act on all these devices
bulk-of-list = Act on the devices of the list
bulk-action = Action
bulk-preview-button = Preview
bulk-hint = Shows first how many devices it concerns, and changes nothing yet.
bulk-heading = { $count ->
    [one] {$action}: {$count} device
   *[other] {$action}: {$count} devices
}
bulk-confirm = { $count ->
    [one] {$action} {$count} device
   *[other] {$action} {$count} devices
}
bulk-confirm-title = Is this what you want?
bulk-whole-table = All devices of the table, without any condition.
bulk-nothing = No device is concerned.
bulk-unchanged = Devices that are as wanted already are left as they are. If more devices meet the conditions later, the job stops after this number.
bulk-removes-issues = { $count ->
    [one] The first issue of {$count} device is forgotten.
   *[other] The first issue of {$count} devices is forgotten.
}
bulk-removes-refusals = { $count ->
    [one] The refusal of {$count} device is forgotten.
   *[other] The refusals of {$count} devices are forgotten.
}
bulk-removes-certificates = { $count ->
    [one] The certificate of {$count} device is removed, because it was deleted at IoT Platform. Its next request registers it again under the same name.
   *[other] The certificates of {$count} devices are removed, because they were deleted at IoT Platform. Their next requests register them again under the same names.
}
bulk-removes-certificates-here = { $count ->
    [one] The certificate of {$count} device here is removed. It still works at IoT Platform.
   *[other] The certificates of {$count} devices here are removed. They still work at IoT Platform.
}
bulk-removes-more = The table is so large that it was not read to its end in time: these are the numbers at least.
bulk-sure = { $count ->
    [one] I want to delete {$count} device.
   *[other] I want to delete {$count} devices.
}
bulk-samples = { $count ->
    [one] The first of them
   *[other] The first {$count} of them
}
bulk-refused = Nothing was changed
bulk-bad-action = There is no such action. Choose one of the list.
bulk-not-confirmed = The action was not confirmed, or its preview is no longer known. Preview it, and confirm it there.
bulk-not-counted = The devices could not be counted in time. Choose closer conditions, or an enrollment.

## Jobs

jobs-title = Jobs
jobs-since = The jobs since the server started at {$time}, and those of the last 24 hours whose end is not recorded.
jobs-none = No jobs
jobs-none-text = A job begins when you confirm an action on many devices.
jobs-busy = Other jobs are running
jobs-busy-text = Nothing was changed. Wait until one of them has ended, or stop one, and confirm again.
jobs-meanwhile = Another job has begun meanwhile
jobs-meanwhile-text = Nothing was changed. Since your preview, another operator has begun a job that may change the same devices. Look at it, and preview your action again.
jobs-other = Show the other job
jobs-running = A job is running
jobs-running-text = It may change the same devices at the same time.
job-running = Running
job-running-text = The job goes on if you close this page.
job-complete = Done
job-complete-text = All devices are done.
job-complete-with-failures = Done, with failures
job-failures-text = Fix the causes below first.
job-more = Done, and there are more now
job-more-text = As many devices are done as were confirmed. More devices meet the conditions now: preview the action again.
job-stopped = Stopped
job-stopped-text = {$who} has stopped it. What was done stays done.
job-shutting-down = Ended by the server
job-shutting-down-text = The server shut down. What was done stays done.
job-broken = Failed
job-broken-text = The database failed: {$error}. What was done stays done.
job-unrecorded = How far it came is not known
job-unrecorded-text = The audit log has when the job began, but not its end. Its server was stopped or failed in the middle of it, or the job runs on another server. Each change that it made is in the audit log.
job-again = For the rest, preview the action again and confirm it: devices that are done are left as they are.
job-again-reset = Do not simply repeat the reset: a device that was reset and has fetched its certificate since would be reset again. Preview it again, with conditions that leave such devices out.
job-from-log = From the audit log, because this server has started at {$time} or has had many jobs since.
job-unknown = No such job
job-unknown-text = No job has this number, or it is so long ago that the audit log no longer has it.
job-not-found = This server does not know the job
job-not-found-text = The audit log is so large that it could not be searched in time: certdist audit export shows whether the job has ended. Preview the action again before you repeat it.
job-stop = Stop
job-stop-text = Ends the job after a few more devices. What was done stays done.
job-done = Done
job-done-of = {$done} of {$all}
job-changed = Changed
job-unchanged = As wanted already
job-absent = Not in the table
job-failed = Failed
job-disabled = Left out, because disabled here
job-refused = Left out, because refused by IoT Platform; reset them first
job-by = By
job-began = Began
job-ended = Ended
job-expected = Expected end
job-audit = Each change is in the audit log, with the operator's name.
job-reasons = Failures
job-reason = {$count}: {$reason}, the first is {$device}
job-no-answer = IoT Platform did not answer in time; a later request or job tries again

## A device

device-row = In the table
device-actions = Actions
device-viewer = You are signed in as a viewer. Only operators can change devices.
done-disable = It is disabled.
done-enable = It is enabled.
done-reset = It is reset.
done-order = The order is placed. It is carried out at IoT Platform, and stays in the table until then.
done-cancel = The order is cancelled.
orders-title = Orders for IoT Platform
orders-device = At IoT Platform
orders-text = Changes at IoT Platform that are not carried out yet, the oldest first. They are carried out by a server whose configuration permits it.
orders-none = None.
orders-first = First page
orders-all-targets = all
orders-not-permitted = To disable, enable, rotate or delete this device at IoT Platform, too, set manage = true for its target, and attach the second policy (docs/operations.md, Devices at IoT Platform).
order-disable = Disable everywhere
order-disable-text = The device gets no certificate from now on, and is disabled at IoT Platform, where it can no longer sign in.
order-enable = Enable everywhere
order-enable-text = The device is enabled at IoT Platform, and then here.
order-delete = Delete everywhere
order-delete-text = The device is disabled here at once, deleted at IoT Platform, and then removed from this table. Its certificate never works again.
order-rotate = Rotate the secret
order-rotate-text = The device is deleted at IoT Platform, and registered anew under the same name. Its secret stops working at once, and its next request gets the new one. Its shadow and tags there are lost. Firmware must ask again when it can no longer sign in.
order-move = Move to another target
order-move-text = The device is registered at another target, and its next request gets the certificate of that target.
order-move-to = Move to target {$target}
order-former-disable = Disable the former device at {$target}, after a move
order-former-delete = Delete the former device at {$target}, after a move
order-kept = The order is kept in the table until it is carried out, even if this server stops meanwhile.
order-waits = {$order}: ordered at {$time} by {$by}, not carried out yet.
order-failed = Last failure: {$reason}
order-cancel = Cancel the order
order-cancel-text = Ends the order without carrying it out. A device that it has disabled here stays disabled, and calls that were made are not taken back.
waiting-title = Devices that wait to be admitted
waiting-text = These devices have a key of their enrollment and are not in the table. Under a shared key, anyone who has the key can invent IDs: admit only devices that you know. certdist device admit admits many.
waiting-none = None.
waiting-more = {$count} devices wait; certdist device waiting lists all of them.
waiting-admit = Admit
waiting-dismiss = Dismiss
done-admit = It is in the table now, and gets its certificate with its next request.
done-admit-known = It was in the table already.
done-admit-taken = It was not admitted: another device has its name. Import it with another deviceName.
done-admit-later = It was not admitted: an import or an undo is running that has this device, or another one with its name. Admit it when that has ended.
done-dismiss = It is dismissed. If it asks again, it waits again.
confirm-title = {$action} {$device}?
removes-issue = The first issue of {$time} is forgotten.
removes-refusal = The refusal is forgotten: {$reason}
removes-certificate = The certificate is removed, because the device was deleted at IoT Platform. The next request registers the device again under the same name.
removes-certificate-here = The certificate here is removed. It still works at IoT Platform.
removes-row = The row and the key are removed. Requests of the device are answered with 4.04.
removes-nothing = There is nothing to clear.
keeps-certificate = The certificate stays as it is.
changed-meanwhile = Nothing was changed: the device is no longer as you have seen it
changed-meanwhile-text = Another operator, or the device itself, has changed it since. It is shown as it is now. Decide again.
fact-product = Product key
fact-name = Device name
fact-reissue = May fetch its certificate
fact-iotid = IotId
fact-certificate = Certificate
fact-certificate-yes = yes; the console does not show its secret
fact-certificate-no = not yet
fact-key-current = Key that is being replaced (psk)
fact-key-next = Second key (pskNext)
fact-key-used = last used at {$time}
fact-key-unused = not used since {$since}
fact-registered = Registered
fact-activated = Activated
fact-claim = Registration
fact-claim-held = in progress since {$time}
fact-claim-left = begun at {$time} and not finished
fact-refusal = Refused
fact-refusal-others = All devices with this reason
refusal-name-taken = the name exists at IoT Platform and was not registered by this server
fact-seen = Last answered
reissue-always = any number of times
reissue-once = once
reissue-window = for {$span} after the first time
absent-title = Not in the table
absent = No such device
absent-text = No device with the ID {$device} is in the table. Requests with this ID are answered with 4.04.
absent-asked = It asked at {$time}, with a key of enrollment {$enrollment}.
absent-import = Import
absent-search = Search for another

## Advice on a device

advice-not-configured = Its enrollment is not configured
advice-not-configured-text = Its enrollment {$enrollment} is not in the configuration, so the device cannot sign in. Add that enrollment to the configuration, or import the device into another.
advice-disabled = Disabled here
advice-disabled-text = An operator has disabled this device: it gets no certificate, and its requests are answered with 4.03.
advice-disabled-issued = The certificate that it has fetched still works at IoT Platform. To stop the device, disable it there, too.
advice-cloud-deleted = Deleted at IoT Platform
advice-cloud-deleted-text = This device was deleted at IoT Platform, so its certificate no longer works. If the device is still in use, reset it here: its next request registers it again under the same name.
advice-cloud-disabled = Disabled at IoT Platform
advice-cloud-disabled-text = This device was disabled at IoT Platform: it cannot sign in there with its certificate. Enable it at IoT Platform.
advice-other-key = It asks with the key of another enrollment
advice-other-key-text = At {$time} the device asked with the key of enrollment {$other}, but the table has it under {$own}, so it was refused. Read its label. If the table is wrong, import the device into {$other}: it moves there, and gets its product. If the firmware is wrong, flash that of {$own}.
absent-yours = If the ID is on the list of the factory, import it.
absent-not-yours = If it is not, do not import it: nothing was handed out. Somebody may have the key of {$enrollment}; a new key has to be flashed into each device of that enrollment, so first make sure.
advice-refused = Refused by IoT Platform
advice-refused-text = IoT Platform refuses this device: {$reason}. Fix the cause at IoT Platform, then reset the device here: its next request registers it.
advice-name-taken = Its name is taken at IoT Platform
advice-name-taken-text = The name {$name} exists already at IoT Platform, and this server did not register it. Compare there whether it is this very device. If it is, set existing = "adopt" for its enrollment, or delete the device there; if not, give one of them another deviceName. Then reset the device here.
advice-iot-id-taken = Its IotId is that of another device
advice-iot-id-taken-text = Another device in the table has the IotId of this device: {$reason}. Then reset the device here.
advice-issued = Has its certificate, and gets no other
advice-asks-again = Asks again, and is refused
advice-asks-again-text = At {$time} the device asked for its certificate again and was refused with 4.03.
advice-not-open = Its enrollment is not open yet
advice-not-open-text = It gets its first certificate from {$time} on. Until then, each request is asked to come back later.
advice-closed = Its enrollment is closed
advice-closed-text = It has had no certificate yet, and its enrollment closed at {$time}. If it may still have one, set a later closes in the configuration, and reload.
advice-full = Its enrollment is full
advice-full-text = {$number} devices of its enrollment have a certificate, and max_devices permits no more. If it may have one, set a larger max_devices in the configuration, and reload.
advice-filling = Its enrollment is almost full
advice-filling-text = Registrations in progress take the last places of its enrollment. If one of them fails, this device gets the place with its next request.
advice-once = Its enrollment's policy permits one issue only.
advice-window-over = The time in which it might fetch its certificate again ended at {$time}.
advice-window-open = It may fetch its certificate again until {$time}.
advice-issued-text = If the device has lost its certificate, reset it.
advice-no-target = Not registered: its target is not configured
advice-no-target-text = This device has no certificate yet, and the configuration of this server has no target {$target}. Add the [[target]] to certdist.toml and restart the server. If the device is registered nowhere, you can also import another target for it.
advice-stopped = Not registered: IoT Platform refuses calls
advice-stopped-text = This device has no certificate yet, because IoT Platform refuses the calls of this server at the moment: {$reason}. This is no fault of the device. {$overview} says what to do; the device then tries again by itself.
advice-registering = Being registered
advice-registering-text = It is being registered at IoT Platform since {$time}. If this goes on, {$overview} says why.
advice-left = Its registration is not finished
advice-left-text = Its registration began at {$time} and was interrupted. A server continues it, at the latest with the device's next request.
advice-last-refused = Its last request was refused
advice-last-refused-text = At {$time} the device asked and was refused: {$reason}. If you have fixed the cause since, its next request is answered.
advice-came = Has come before
advice-came-text = The device last had an answer at {$time}, and has not fetched its certificate since. Its next request is answered.
advice-later = Is asked to try again later
advice-later-text = At {$time} the device asked, and the answer was: {$answer}. It tries again by itself. If this goes on, the overview says why.
advice-not-come = Has not come yet
advice-new-text = This device is in the table, and no request of it is known. Its first request registers it at IoT Platform. If it should have come: is it powered on, can it reach this server, and does it have the right key? {$handshakes}
advice-ready-text = Its certificate is ready, and no request of the device is known. If it should have come: is it powered on, can it reach this server, and does it have the right key? {$handshakes}
advice-well = All is well
advice-well-text = This device has fetched its certificate and has signed in at IoT Platform. There is nothing to do.
advice-has-it = Has its certificate
advice-has-it-text = This device has fetched its certificate. It has not been seen signing in at IoT Platform yet. If it does not appear there: can it reach IoT Platform, and has it stored its certificate?

## History of a device

history-title = History
history-by = by {$who}
history-identity = identity {$who}
history-invalid = not in the table, or in another enrollment than its key
history-from = from {$address}
history-times = {$count} times since {$time}
history-more = Only the newest {$most} entries are shown; certdist audit export --device has all.
history-imports = Imports are remembered for 30 days, the last thousand at most. Older ones are only in the audit log, without their devices.
event-issued = issued
event-reissued = issued again
event-refused = refused
event-registered = registered
event-disabled = disabled
event-enabled = enabled
event-reset = reset
event-deleted = deleted
event-ordered = ordered
event-rotated = rotated
event-moved = moved
event-cancelled = cancelled
event-rekeyed = key replaced
event-imported = imported
event-admitted = admitted
event-undone = import undone
event-sealed = secrets sealed
event-restored = restored from a backup
event-copied = copied from another database
event-began = job began
event-ended = job ended
event-pruned = log pruned
event-dropped = entries dropped

## Enrollments

enrollments-counted = How far the devices of each enrollment are. Counted at {$time}. Each number leads to its devices.
enrollments-none = No enrollments
enrollments-none-text = Add an enrollment to the configuration, and import devices into it.
enrollments-none-found = No enrollment has this text in its name.
enrollments-search = Enrollment whose name contains
enrollments-about = {$kind} · product {$product} · issued {$reissue}
enrollments-opens = First certificates from {$time} on.
enrollments-closes = No first certificates from {$time} on.
enrollments-places = {$count} of at most {$max} devices have a certificate.
enrollments-holds = A device that is not in the table waits to be admitted.
enrollments-admits = A device that is not in the table is added when it asks.
key-individual = individual keys
key-derived = derived keys
key-shared = shared key
enrollments-not-configured = Not configured
enrollments-not-configured-text = Its devices have no key to sign in with. Add this enrollment to the configuration.
enrollments-imported = imported
enrollments-registered = Registered
enrollments-registered-text = at IoT Platform, with a certificate here
enrollments-issued = Issued
enrollments-issued-text = have fetched their certificate
enrollments-activated = Activated
enrollments-activated-text = have signed in at IoT Platform
enrollments-waiting = { $number ->
    [one] {$count} waits for its registration.
   *[other] {$count} wait for their registration.
}
enrollments-rate-later = Their rate is not known yet.
enrollments-no-rate = None was registered in the last {$seconds} s.
enrollments-rate = {$rate} a minute are registered.
enrollments-rate-end = At this rate, those that wait are registered at {$time}.
enrollments-rate-job = A job registers further devices; its page shows its expected end. {$jobs}
enrollments-refused = {$count} refused by IoT Platform, for these reasons:
enrollments-more-reasons = { $count ->
    [one] and {$count} more reason
   *[other] and {$count} more reasons
}
enrollments-disabled = {$count} disabled here.
targets-title = Targets
targets-text = A device counts at the target of its enrollment, also if its own row names another one. The name of a target leads to the devices whose rows say that they are there.
targets-blocked = What keeps devices from being registered at {$target}:
targets-not-configured = It is not configured. Add the [[target]] and restart certdist.
targets-no-cloud = It cannot be called: {$reason}
targets-refuses = IoT Platform refuses calls: {$reason}
targets-refuses-product = IoT Platform refuses product {$product}: {$reason}
obstacles = What keeps the devices without a certificate from getting one:
obstacle-not-open = The enrollment opens at {$time}.
obstacle-closed = The enrollment closed at {$time}.
obstacle-full = {$max} devices have a certificate, and max_devices permits no more.
obstacle-taken = {$registered} devices have a certificate and {$claimed} are being registered or were rotated. max_devices permits no more than {$max}.
obstacle-no-target = Its target {$target} is not configured. Add the [[target]] and restart certdist.
obstacle-no-cloud = Its target {$target} cannot be called: {$reason}
obstacle-stopped = IoT Platform refuses registrations: {$reason}
enrollments-to-admit = {$count} wait to be admitted.
enrollments-key-current = The former key (key)
enrollments-key-next = The new key (key_next)
enrollments-key-used = {$key} was last used at {$time}. { $count ->
    [one] One handshake
   *[other] {$count} handshakes
} since {$since}.
enrollments-key-unused = {$key} has not been used since {$since}.
enrollments-key-unknown = {$key}: no server has reported its use yet.
enrollments-rolling = { $count ->
    [one] One device has
   *[other] {$count} devices have
} two keys, because a key is being replaced:
enrollments-rolling-current = {$count} used the former key (psk) last
enrollments-rolling-next = {$count} used the second key (pskNext) last
enrollments-rolling-neither = {$count} used neither since the second key was given
enrollments-rolling-more = There are more devices than could be counted now; certdist enrollment show counts longer.

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
no-device-came = No device has asked in the last hour
no-device-came-text = No fault is known. If devices should be asking now: are they powered on, and can they reach this server? This was looked at:
too-early = Too early to tell
too-early-text = The server started at {$time}, and no fault has shown since. Power a device on, and look again after {$until}. If the numbers under Requests are still 0 by then, the device does not reach this server: check the network of the device. This was looked at:
concerns-count = {$count} things to look at, the worst first.
too-early-counting = No fault is known yet, but the table is still being counted. This was looked at:
looked-requests = Requests and handshakes since {$time}: {$served} served, none failed.
looked-requests-mended = Requests since {$time}: {$served} served; {$unserved} were not, but their devices no longer have the problem.
looked-requests-none = Requests since {$time}: there was none.
looked-cloud = Calls to IoT Platform: none fails; the last one worked at {$time}.
looked-cloud-idle = Calls to IoT Platform: none was needed since the start, so nothing is known about it.
looked-no-cloud = Calls to IoT Platform: none is configured, and no device needs one.
looked-table = The table: {$count} devices at {$time}; none is refused, deleted or without an enrollment.
looked-table-not-yet = The table: it is being counted.
looked-server = Writes to the database, the clock and the network of this server: no fault.
label-cause = Cause:
label-said = Message:
label-remedy = What to do:
show-concerned = Show the affected devices
show-handshakes = Show identities and addresses
fact-since = since {$time}
fact-since-or-earlier = since {$time}; before that, nothing is recorded
fact-at = at {$time}
fact-last = last at {$time}
fact-over = none since {$time}
fact-counted = counted at {$time}
course-over = It has not happened again since then.
course-untested = No such call has been made since then, so the cause may be gone already. The next device that registers shows it.
list-comma = {", "}
enrollment-pair = the table lists them under {$own}, but they ask with the key of {$key}
fact-at-target = at target {$target}
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
kind-closed = Enrollment closed or full
kind-too-many = Too many requests
kind-malformed = Request not understood
kind-operator = Registration refused
kind-later = Asked to come back later
kind-not-open = Enrollment not open yet
kind-held = Waiting to be admitted
kind-timed-out = No certificate from IoT Platform in time
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
tile-answered-about = 95 % of the requests
tile-registered = Registered within
tile-registered-about = 95 % of the finished registrations
tile-writes = Writes waiting
tile-writes-about = for the database
chart-served = served
chart-refused = refused here
chart-cloud = registration refused
chart-later = asked to come back later
chart-words = {$served} served, {$refused} refused here, {$cloud} whose registration was refused, {$later} asked to come back later; at most {$most} in a bar
chart-a-minute = Top of the scale: {$count} a minute; times in UTC
chart-20-minutes = Top of the scale: {$count} in 20 minutes; times in UTC
chart-2-hours = Top of the scale: {$count} in 2 hours; times in UTC
kind-unknown = Not in the table
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
failing-partly = Not all of these devices were compared with the table: they are too many, or the table cannot be read.
failures-since = since {$time}
failures-only = only: {$reason}
failures-waiting = not served because of IoT Platform or the database, and not since
failures-enrollment = key of another enrollment
group-counts = { $devices ->
    [one] {$devices} device
   *[other] {$devices} devices
}, { $requests ->
    [one] {$requests} request
   *[other] {$requests} requests
}
failures-all = Show all devices
handshakes-all = Show all handshakes
failures-none = None.
at-least = At least
failures-latest = The latest {$count} are shown.
failures-download = Download the {$count} IDs that are not in the table
failures-download-hint = Before you import them, compare them with the list of the factory: anybody who has the key can send any ID. Do not import an ID that is not on the list. {$import}
failures-foreign = In the table under enrollment {$own}, but has the key of {$key}
column-device = Device
column-reason = Reason
column-key-of = Key of
column-address = Address
column-last = Last
column-requests = Requests
failures-imported-since = Imported since
failures-served-since = Served since
failures-mended-since = No longer the case
handshakes-failed = Handshakes that failed
handshakes-counts = { $clients ->
    [one] {$clients} client
   *[other] {$clients} clients
}, { $handshakes ->
    [one] {$handshakes} handshake
   *[other] {$handshakes} handshakes
}
handshakes-hint = The identity is only claimed: anybody can claim any identity before the key is proven.
handshakes-forgotten = So many handshakes failed that the earliest are no longer listed.
column-identity = Identity
column-handshakes = Handshakes

## Concerns

database-unreadable = The database cannot be read
database-unreadable-cause = The disk or the database file of this server.
database-unreadable-remedy = Check that the disk is not full and that the file is in place. The message says what failed.
database-writes = { $times ->
    [one] {$times} write to the database failed
   *[other] {$times} writes to the database failed
}
database-writes-cause = The disk of this server is full or slow, or another program holds the database. The devices concerned were asked to come back later.
database-writes-remedy = Free disk space, and end whatever holds the database. The log has the reason of each failure.
cloud-silent = IoT Platform cannot be reached
cloud-silent-cause = The network between this server and {$cloud}, or IoT Platform itself; not the devices. {$times} calls in a row failed ({$names}).
cloud-slow = IoT Platform has not answered a call for {$times} s
cloud-slow-cause = The network between this server and {$cloud}, or IoT Platform itself; not the devices.
cloud-slow-remedy = Wait a minute: the answer may still come. If it does not, check network, DNS, firewall and proxy of this server. Leave the devices alone: they ask again by themselves.
cloud-silent-remedy = Tell the administrator of this server to check its network, DNS, firewall and proxy. If they are in order, see the status page of Alibaba Cloud (status.alibabacloud.com), and wait. Leave the devices alone: those with a certificate are served, and the others try again by themselves.
cloud-account = IoT Platform refuses the calls of this server
cloud-account-cause = The account or the access key that this server uses; not the devices. Refused calls: {$names}.
cloud-account-remedy = Mend what the message says, in the console of Alibaba Cloud or in the configuration here. The devices then try again by themselves.
cloud-product = IoT Platform refuses the product {$names}
cloud-product-cause = The product does not exist in this instance, or it has as many devices as it may have; devices of other products are not concerned.
cloud-product-remedy = Compare product_key and instance_id of the configuration with the console of IoT Platform.
cloud-throttles = IoT Platform throttles this account
cloud-throttles-cause = The account makes more calls than IoT Platform permits: {$names}. Another program may use the same account.
cloud-throttles-remedy = Nothing, if it passes; certdist slows down by itself. If it persists, lower qps, or find out what else uses the account.
cloud-fails = Calls to IoT Platform fail
cloud-fails-cause = IoT Platform answers with an error. Failed calls in a row: {$times} ({$names}).
cloud-fails-remedy = Look up the code in docs/cloud.md. If IoT Platform has a fault, wait; the devices try again by themselves.
devices-refused = { $devices ->
    [one] {$devices} device cannot be registered
   *[other] {$devices} devices cannot be registered
}
devices-refused-cause = These devices themselves: for example, their name is taken by another device. The most frequent reason is below.
devices-refused-remedy = Mend the cause at IoT Platform, then reset the devices here: their next request registers them.
wrong-enrollment = {$devices ->
    [one] {$devices} device has the key of another enrollment
   *[other] {$devices} devices have the key of another enrollment
}
wrong-enrollment-cause = Either the list that was imported is wrong, or the devices have the wrong firmware, or somebody who has that key uses their IDs: {$names}.
wrong-enrollment-remedy = Read the label of a device. It says {$key}: the list is wrong; import the devices into the enrollment {$key}. It says {$own}: the firmware is wrong; flash that of {$own}, and import nothing. There is no such device on the site: somebody else has the key; tell the administrator of this server.
wrong-enrollment-remedy-several = Read the label of a device. If it agrees with the key, the list is wrong: import the devices into the enrollment of that key. If it agrees with the table, the firmware is wrong: flash the right one, and import nothing. If there is no such device on the site, somebody else has the key: tell the administrator of this server.
unconfigured = {$devices ->
    [one] {$devices} device is in an enrollment that is not configured
   *[other] {$devices} devices are in an enrollment that is not configured
}
unconfigured-cause = The configuration of this server has no enrollment {$names}, so these devices cannot sign in.
unconfigured-remedy = Add the enrollment to certdist.toml and reload, or import the devices into another one.
target-unconfigured = A target of devices is not configured
target-unconfigured-cause = The configuration of this server has no target {$names}. Devices that belong to it and have a certificate get it; others are not registered, and none is looked up at IoT Platform.
target-unconfigured-remedy = Add the [[target]] to certdist.toml and restart the server, or import another target for devices that are registered nowhere.
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
unknown-devices-remedy = Compare the IDs with the list of the factory, and import only those that are on it. None of them got a certificate. If an ID is not on the list, tell the administrator of this server, because somebody else may have the key.
wrong-key = { $times ->
    [one] {$times} connection failed: wrong key or unknown identity
   *[other] {$times} connections failed: wrong key or unknown identity
}
wrong-key-cause = A device has a key that this server does not expect, or gives a name (identity) that this server does not know; or a stranger tries keys.
wrong-key-remedy = Open the link, and find the device by its identity and address. Flash it with the current firmware, and try again. If it fails again, tell the administrator of this server its identity: the key that is configured or imported here is another one. If there is no such device on the site, tell the administrator that a stranger may be trying keys.
advice-handshake = Its handshake failed
advice-handshake-text = At {$time} a client with this ID as its identity tried to connect from {$address}: {$reason}. If it was this device, give it the firmware or the key of enrollment {$enrollment} again. If it was not, somebody tries keys with this ID.
guessing = Somebody tries device IDs
guessing-cause = A client with a shared key asks for one ID after another that it may not have. Its requests are limited, and others are served.
guessing-remedy = The link below shows the IDs and addresses. If it is no test of yours, change the shared key, and block the address.
not-yours = { $devices ->
    [0] Devices were asked for with the key of another
    [one] {$devices} device was asked for with the key of another
   *[other] {$devices} devices were asked for with the key of another
}
not-yours-cause = A firmware sends the ID of another device, or somebody tries to get the certificates of others. Nothing was handed out.
not-yours-remedy = Compare the identity and the ID that the firmware sends: for this kind of key, both must be the same device.
issued-already = { $devices ->
    [0] Devices ask again for their certificates, and may not have them
    [one] {$devices} device asks again for its certificate, and may not have it
   *[other] {$devices} devices ask again for their certificates, and may not have them
}
issued-already-cause = The device has fetched it before, and the reissue policy of its enrollment permits no other; perhaps it did not store it.
issued-already-remedy = If you trust the device, reset it here: it can then fetch its certificate again.
held-ask = { $devices ->
    [0] Devices that are not in the table wait to be admitted
    [one] {$devices} device that is not in the table waits to be admitted
   *[other] {$devices} devices that are not in the table wait to be admitted
}
held-ask-cause = Its enrollment holds devices that have the right key and are not in the table (unlisted = "hold").
held-ask-remedy = If they are yours, admit them: certdist device waiting lists them, certdist device admit adds them to the table.
closed-ask = { $devices ->
    [0] Devices ask an enrollment that is closed or full
    [one] {$devices} device asks an enrollment that is closed or full
   *[other] {$devices} devices ask an enrollment that is closed or full
}
closed-ask-cause = The device has had no certificate yet, and the enrollment gives none to further devices: closes has passed, or max_devices is reached.
closed-ask-remedy = If the device may have one, set a later closes or a larger max_devices in the configuration, and reload.
not-open-ask = { $devices ->
    [0] Devices ask an enrollment that is not open yet
    [one] {$devices} device asks an enrollment that is not open yet
   *[other] {$devices} devices ask an enrollment that is not open yet
}
not-open-ask-cause = The device has had no certificate yet, and its enrollment opens later (opens in the configuration). It is asked to come back, once an hour at least.
not-open-ask-remedy = If it may have its certificate now, set an earlier opens in the configuration, and reload.
malformed = { $times ->
    [one] {$times} request was not understood
   *[other] {$times} requests were not understood
}
malformed-cause = The firmware sends a wrong path, method, format or device ID.
malformed-remedy = The answer tells the firmware what is wrong (docs/device.md). The log shows the requests.
silent-clients = { $times ->
    [one] {$times} handshake ended because the device fell silent
   *[other] {$times} handshakes ended because the device fell silent
}
silent-clients-cause = Packets are lost between the devices and this server, or the devices were switched off.
silent-clients-remedy = If there are many: check radio, NAT and firewall. A firewall must let UDP pass in both directions.
other-handshakes = { $times ->
    [one] {$times} handshake failed for another reason
   *[other] {$times} handshakes failed for other reasons
}
other-handshakes-cause = For example, the firmware offers no cipher suite of this server, or there were too many unfinished handshakes of one network.
other-handshakes-remedy = The log and certdist_handshake_failures_total show the reasons. docs/device.md lists the cipher suites.
clock = The clock of this server is wrong by {$times} s
clock-cause = The clock of this machine differs from that of IoT Platform. Times on these pages and in the logs are wrong by as much. Calls are signed with the right time.
clock-remedy = Turn on time synchronization (NTP) on this machine.
no-cloud = {$devices ->
    [one] {$devices} device has no certificate, and no IoT Platform is configured
   *[other] {$devices} devices have no certificate, and no IoT Platform is configured
}
no-cloud-cause = The configuration has no [iot_platform], so devices without a certificate in the table are answered with 5.02.
no-cloud-remedy = Configure [iot_platform], or import the certificates.
servers-differ = The servers of this table differ: {$names}
servers-differ-cause = Several servers share this table, and their names, configurations, clocks or versions do not agree as they should.
servers-differ-remedy = Do as the sentence above says. The command certdist servers lists the servers (docs/operations.md).
unsealed = { $times ->
    [one] {$times} secret in the database is in clear text
   *[other] {$times} secrets in the database are in clear text
}
unsealed-cause = No database_key was configured when they were stored. Whoever gets the file or a backup can read them.
unsealed-remedy = Configure database_key, then run certdist database seal (docs/operations.md).
too-many = { $devices ->
    [0] Too many requests
    [one] {$devices} device sends too many requests
   *[other] {$devices} devices send too many requests
}
too-many-cause = { $times ->
    [one] {$times} request exceeded a rate limit and was answered with 4.29.
   *[other] {$times} requests exceeded a rate limit and were answered with 4.29.
}
too-many-remedy = A device that asks in a loop has a fault in its firmware. If many devices of one address come at once, raise the limit.
queue = {$devices ->
    [one] {$devices} device waits for its registration
   *[other] {$devices} devices wait for their registration
}
queue-cause = More devices came at once than IoT Platform registers in that time.
queue-remedy = Nothing, as long as the number falls. Each device comes back by itself and gets its certificate.
not-back = { $devices ->
    [0] Devices that could not be served have not asked again
    [one] {$devices} device that could not be served has not asked again
   *[other] {$devices} devices that could not be served have not asked again
}
not-back-cause = They were asked to come back later, or were refused because of a fault that has not shown again since. They may be switched off, or their firmware does not ask again. The last message, if there is one, is below.
not-back-remedy = Power one of them on again, and look at its page here.
unsent = { $times ->
    [one] {$times} datagram could not be sent
   *[other] {$times} datagrams could not be sent
}
unsent-cause = The network or its buffers on this server are too small or too slow. Devices repeat their requests.
unsent-remedy = If it persists, raise net.core.wmem_max, or add network capacity.
disabled-ask = { $devices ->
    [0] Disabled devices ask for their certificates
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
title-key = IoT Platform refuses the access key of this server
title-credentials = This server has no access key
title-permission = The access key of this server lacks a permission
title-bill = The account at IoT Platform has an overdue bill
title-quota = IoT Platform takes no more devices of the product {$names}
cause-key = This server uses an access key that IoT Platform does not accept; the devices are not at fault. No device can be registered until it is corrected; those with a certificate are served. Refused calls: {$names}.
cause-credentials = This server cannot read its credentials, so it cannot call IoT Platform.
cause-permission = The RAM user of the access key may not make these calls: {$names}.
cause-product = The instance of IoT Platform that this server uses has no product {$names}. The devices are not at fault, and devices of other products are not affected.
cause-quota = The product or the instance has as many devices as it may have. Devices that are registered already are served.
-credentials-place = In certdist.toml, the line credentials under [iot_platform] says where the access key is stored. certdist reads a changed file by itself; after a change of environment variables, run systemctl restart certdist. The devices then try again by themselves.

## Remedies for codes of IoT Platform

remedy-key-unknown = There is no such access key. Correct its ID: often a space too many, or the key of another site. { -credentials-place }
remedy-key-inactive = The access key is disabled. Enable it in the RAM console, or use another one. { -credentials-place }
remedy-key-secret = Tell the administrator of this server: access key ID and access key secret do not match, and both have to be entered again. { -credentials-place } If both are right, a proxy between this server and IoT Platform may alter the requests: have it checked.
remedy-token = The security token has expired or does not belong to the key. Renew the credentials. { -credentials-place }
remedy-permission = The access key lacks a permission. Attach the policy of docs/cloud.md to its RAM user.
remedy-account = The account cannot use IoT Platform. Activate it, and check account and region.
remedy-bill = The account has an overdue bill. Pay it.
remedy-instance = There is no such instance in that region. Correct instance_id and region in certdist.toml, then run systemctl restart certdist.
remedy-product = Tell the administrator of this server. The administrator looks for {$names} in the console of IoT Platform. It is there: instance_id in certdist.toml is wrong; correct it, and run systemctl restart certdist. The product is there under another product key: product_key of the enrollment is wrong; correct it, run systemctl reload certdist, and import the devices again with a column productKey, because a device keeps the product with which it was imported. It is not there at all: create it, and go on as for another product key. The devices then try again by themselves.
remedy-quota = The quota of devices is used up. Raise it at IoT Platform, or delete devices there.
remedy-certificate = TLS: the certificate of IoT Platform is refused. Check ca_file, the clock, and endpoint.
remedy-credentials = The message says why the access key cannot be read. { -credentials-place }
remedy-network = Tell the administrator of this server to check its network, DNS, firewall and proxy towards IoT Platform. If they are in order, see the status page of Alibaba Cloud (status.alibabacloud.com), and wait. Leave the devices alone: those with a certificate are served, and the others try again by themselves.
remedy-not-an-answer = Something else answers in the place of IoT Platform. Check for the login page of a proxy, and for a wrong endpoint.

## Import

import-file = Table file
import-file-hint = CSV or JSON lines, up to 16 MiB; import larger files with {$command}. The first line is a header, in which only {$required} is required: {$columns}
import-enrollment = Enrollment of lines without one
import-each-its-own = each line has its own
import-unknown-enrollment = The configuration has no enrollment {$enrollment}. Choose one of the list.
import-preview = Preview
import-preview-hint = Shows what would change, and changes nothing yet.
import-operators-only = Only operators can import
import-busy = Other files are being sent and imported. Try again when they are finished.
import-gone = The file is no longer here: it was already imported, or the confirmation came too late. Send it again.
import-errors-gone = The list of bad lines is no longer here. Send the file again.
import-too-large = The file is too large
import-too-large-text = The file is larger than 16 MiB. Import it with {$command}, which works beside a running server.
import-it = Import it
import-progress = Progress of the enrollments
import-done-no-number = The file was imported. This import cannot be undone.
imported = Imported
imported-text = {$file}: {$added ->
    [one] {$added} device
   *[other] {$added} devices
} added, {$changed} changed, at {$time}.
nothing-imported = Nothing was imported
nothing-changed-yet = Nothing has changed yet
preview-counts = {$file}: {$added ->
    [one] {$added} device
   *[other] {$added} devices
} would be added, {$changed} changed, {$unchanged} unchanged.
preview-pair = { $count ->
    [one] {$count} row for enrollment {$enrollment}, product {$product}
   *[other] {$count} rows for enrollment {$enrollment}, product {$product}
}
preview-other-pairs = { $count ->
    [one] {$count} row for other enrollments and products
   *[other] {$count} rows for other enrollments and products
}
preview-ends = Stored as: first {$first}, last {$last}
preview-odd = Look at this before you import:
preview-nothing-new = The table already has all of it.
bad-lines = Bad lines
bad-lines-count = {$file} has {$count ->
    [one] 1 bad line
   *[other] {$count} bad lines
}. Fix them and send the file again.
bad-lines-download = { $count ->
    [one] Download the bad line
   *[other] Download all {$count} bad lines
}
bad-lines-line = Line
bad-lines-column = Column
bad-lines-reason = What is wrong, and what is expected
bad-lines-more = And {$count} more like line {$line}.
bad-line = The line as a whole
bad-device-id = The device ID
bad-enrollment = The enrollment
bad-product = The product
bad-name = The device name
bad-secret = The device secret
bad-iotid = The IotId
bad-key = The pre-shared key or its identity
bad-value = The value
imports-title = Imports of the last 30 days
imports-file = File
imports-time = Time
imports-who = By
imports-added = Added
imports-changed = Changed
imports-undo = Undo
imports-undone = undone at {$time}
imports-more = Older imports are shown by {$command}.
undo-title = Undo an import
undo-it = Undo it
undo-the-rest = Undo the rest
undo-done = The import was undone
undo-removed = { $count ->
    [one] {$count} device that it added would be removed
   *[other] {$count} devices that it added would be removed
}
undo-certificates = {$count} of them with the certificate that the import brought
undo-restored = { $count ->
    [one] {$count} device that it changed would get its former values back
   *[other] {$count} devices that it changed would get their former values back
}
undo-left = { $count ->
    [one] {$count} device stays as it is
   *[other] {$count} devices stay as they are
}
undo-changed-title = Some devices have changed since
undo-changed = Of {$all ->
    [one] {$all} device
   *[other] {$all} devices
}, {$count ->
    [one] {$count} has
   *[other] {$count} have
} changed since: registered, issued, disabled, enabled, deleted, changed by another import, being registered, or using the second key (pskNext) that the import brought. These stay as they are. The rest can be undone.
undo-left-in-table = { $count ->
    [one] {$count} device of the import is still in the table, as it is now:
   *[other] {$count} devices of the import are still in the table, as they are now:
}
undo-preview-rest = Preview undoing the rest
undo-again = It was undone already.
undo-keys = { $count ->
    [one] It replaced or removed the key of {$count} device, and former keys are not kept. Import its former file again instead.
   *[other] It replaced or removed the keys of {$count} devices, and former keys are not kept. Import their former file again instead.
}
undo-conflict = Device {$device} cannot be restored: {$reason}. Give one of the two devices another name first.
undo-refused = This import cannot be undone
undo-unknown = No such import
undo-unknown-text = No import of the last 30 days has this number.
back = Back
viewer-signed-in = You are signed in as a viewer.
