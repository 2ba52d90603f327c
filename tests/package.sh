#!/bin/bash
# Builds the Debian package, and does with it what an operator does: installs it,
# configures, starts the service, provisions devices with libcoap's client, upgrades
# while devices come, removes and purges. Everything but systemd itself is the real
# thing: see support/machine.sh, and support/systemctl for what is not covered.
#
#     tests/package.sh target/debug/certdist
. "$(dirname "$0")/support/machine.sh"

# --- the packages --------------------------------------------------------------------
say "building two versions"
old=$(build_package /tmp 1.0.0)
new=$(build_package /tmp 1.0.1)
old=${old#"$root"}
new=${new#"$root"}
inside dpkg-deb --info "$old" | grep -E '^ (Version|Depends):'

say "installing"
inside dpkg --install "$old"
expect_mode() {
    local found
    found=$(inside stat -c '%a %U %G' "$1")
    [ "$found" = "$2" ] || fail "$1 is $found, expected $2"
}
expect_mode /etc/certdist '750 root certdist'
expect_mode /etc/certdist/certdist.toml '640 root certdist'
expect_mode /var/lib/certdist '750 certdist certdist'
inside dpkg --verify certdist
# Again, as dpkg does after an interruption.
inside /var/lib/dpkg/info/certdist.postinst configure 1.0.0
inside man -w certdist certdist.toml certdist-import >/dev/null
inside bash -n /usr/share/bash-completion/completions/certdist

# --- what an operator does -----------------------------------------------------------
say "configuring"
inside certdist key new --output /etc/certdist/lamp-2026.key
printf 'sixteen-bytes-ok' | od -An -tx1 | tr -d ' \n' > "$root/etc/certdist/plug-batch-7.key"
inside sh -c 'chgrp certdist /etc/certdist/*.key && chmod 640 /etc/certdist/*.key'
printf 'ALIBABA_CLOUD_ACCESS_KEY_ID=simulator\nALIBABA_CLOUD_ACCESS_KEY_SECRET=simulator-secret\n' \
    > "$root/etc/certdist/environment"
chmod 600 "$root/etc/certdist/environment"
sed -i 's|https://iot.cn-shanghai.aliyuncs.com"|http://127.0.0.1:8086"|; s|^#\[admin\]|[admin]|; s|^#listen = "127.0.0.1:9684"|listen = "127.0.0.1:9684"|' \
    "$root/etc/certdist/certdist.toml"
start_simulator

# The line of the unit, as systemd would take it.
unit() { sed -n "s/^$1=//p" "$root/usr/lib/systemd/system/certdist.service"; }
[ "$(unit User) $(unit StateDirectory)" = "certdist certdist" ]
environment=$(unit EnvironmentFile)

# As the unit's user, with its environment.
as_service() {
    inside env - PATH=/usr/bin:/bin bash -c '
        set -a; . "$1"; set +a; shift
        exec setpriv --reuid certdist --regid certdist --init-groups --no-new-privs \
            --bounding-set=-all --inh-caps=-all "$@"' as-service "${environment#-}" "$@"
}

{ echo deviceId; seq -f 'PLUG%04g' 1 400; } > "$root/tmp/batch.csv"
# As root, before the service has run for the first time: the database is the service's.
(set -a; . "$root${environment#-}"; set +a; inside certdist import /tmp/batch.csv --enrollment plug-batch-7)
expect_mode /var/lib/certdist/certdist.db '600 certdist certdist'
as_service certdist check-config --online

# --- the service ---------------------------------------------------------------------
# How often it has told its manager so.
told() { grep -cx "$1" "$root/run/certdist.told" || true; }
service_id() { cat "$root/run/certdist.pid"; }

say "starting the service"
inside systemctl enable --now certdist
deadline=$((SECONDS + 30))
until [ "$(told WATCHDOG=1)" -ge 2 ]; do [ $SECONDS -lt $deadline ] || fail "its watchdog hears nothing"; done
if inside setpriv --reuid certdist --regid certdist --clear-groups test -w /etc/certdist/certdist.toml; then
    fail "the service may write its configuration"
fi
[ "$(stat -c %u "$root/proc/$(service_id)")" = "$(inside id -u certdist)" ] || fail "the service is another user's"
curl -fsS http://127.0.0.1:9684/healthz | grep -qx ok

ask() {
    inside coap-client-gnutls -m get -B "${2-30}" -u plug-batch-7 -k sixteen-bytes-ok -A 50 \
        "coaps://127.0.0.1/cert?sn=$1" 2>/dev/null
}
say "provisioning a device"
first=$(ask PLUG0001)
echo "$first" | python3 -c 'import json, sys; assert json.load(sys.stdin)["deviceName"] == "PLUG0001"'
inside systemctl reload certdist
[ "$(ask PLUG0001)" = "$first" ] || fail "another certificate after a reload"

# --- upgrade while devices come ------------------------------------------------------
say "upgrading under live traffic"
# Whoever comes while the port is closed comes again, as a device does.
mkfifo "$work/asked"
(
    for number in $(seq -f '%04g' 2 400); do
        [ -e "$work/enough" ] && break
        # A device whose server goes away in the midst of it gives up, and comes again.
        deadline=$((SECONDS + 40))
        until ask "PLUG$number" 5 | grep -q "\"deviceName\":\"PLUG$number\""; do
            echo "PLUG$number" >> "$work/again"
            if [ $SECONDS -gt $deadline ]; then
                echo "PLUG$number" >> "$work/unserved"
                break
            fi
        done
        echo "PLUG$number"
    done
    echo done
) > "$work/asked" &
exec 4< "$work/asked"
asked() {
    local line
    for _ in $(seq "$1"); do read -r -t 60 -u 4 line || fail "no traffic within 60 s"; done
}
asked 20
before=$(service_id)
inside dpkg --install "$new"
[ "$(service_id)" != "$before" ] || fail "the upgrade left the old binary running"
asked 20
touch "$work/enough"
while read -r -t 60 -u 4 line && [ "$line" != done ]; do :; done
echo "$(sort -u "$work/again" 2>/dev/null | wc -l) devices had to come again"
[ ! -e "$work/unserved" ] || fail "devices were not served: $(cat "$work/unserved")"
[ "$(inside dpkg-query -W -f '${Version}' certdist)" = 1.0.1 ]
[ "$(ask PLUG0001)" = "$first" ] || fail "another certificate after the upgrade"
grep -q '^endpoint = "http://127.0.0.1:8086"$' "$root/etc/certdist/certdist.toml" || fail "the configuration is lost"
as_service certdist device list --registered --json --prefix PLUG --limit 3 | grep -q PLUG0001

# --- removal -------------------------------------------------------------------------
say "removing"
inside dpkg --remove certdist
[ "$(told STOPPING=1) $(told 'ended 0')" = "1 1" ] || fail "the service was not stopped with its package"
[ ! -e "$root/usr/bin/certdist" ] && [ -s "$root/var/lib/certdist/certdist.db" ]
[ -s "$root/etc/certdist/certdist.toml" ]
say "installing again"
inside dpkg --install "$new"
as_service certdist device show PLUG0001 | grep -q '^certificate   yes'
say "purging"
inside dpkg --purge certdist
[ -s "$root/var/lib/certdist/certdist.db" ] && [ -s "$root/etc/certdist/lamp-2026.key" ]
[ ! -e "$root/etc/certdist/certdist.toml" ]
inside getent passwd certdist >/dev/null || fail "the data has no owner any more"
inside dpkg --install "$new"
inside env CERTDIST_PURGE_DATA=yes dpkg --purge certdist
[ ! -e "$root/var/lib/certdist" ] && [ ! -e "$root/etc/certdist" ]
inside getent passwd certdist >/dev/null && fail "the user certdist is left"
say "all is well"
