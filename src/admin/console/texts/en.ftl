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
