#!/bin/bash
# The incidents of docs/operations.md, made to happen, with the commands that the page
# tells: a flood, a cloud that is down, a full disk, a key that has leaked. In a mount
# and network namespace of its own, so as root.
#
#     tests/incidents.sh target/debug/certdist
. "$(dirname "$0")/support/namespace.sh"

certdist() { "$binary" "$@"; }
work=$(mktemp -d /tmp/certdist-incidents.XXXXXX)
# Not on the disk that gets full: what the log says of that has to get into it.
logs=$(mktemp -d /tmp/certdist-incidents-logs.XXXXXX)
# So small that it is soon full.
mount -t tmpfs -o size=4m none "$work"
trap 'cd /; umount -l "$work" && rmdir "$work"; rm -r "$logs"' EXIT
cd "$work"

export ALIBABA_CLOUD_ACCESS_KEY_ID=simulator ALIBABA_CLOUD_ACCESS_KEY_SECRET=simulator-secret
cat > certdist.toml <<'TOML'
listen = "127.0.0.1:5684"
database = "sqlite:certdist.db"
[admin]
listen = "127.0.0.1:9684"
[iot_platform]
endpoint = "http://127.0.0.1:8086"
region = "cn-shanghai"
[limits]
patience = 2
[[enrollment]]
name = "plug-batch-7"
product_key = "a1BwAGVxyz2"
kind = "shared"
identity = "plug-batch-7"
key = "file:plug-batch-7.key"
TOML
printf plug-batch-7-key | od -An -tx1 | tr -d ' \n' > plug-batch-7.key
{ echo deviceId; seq -f 'PLUG%04g' 1 1000; } > batch.csv

key=plug-batch-7-key
ask() {
    coap-client-gnutls -m get -B 15 -u plug-batch-7 -k "$key" -A 50 "coaps://127.0.0.1/cert?sn=$1" 2>&1 | tail -n 1
}
served() { case $(ask "$1") in *"\"deviceName\":\"$1\""*) true ;; *) false ;; esac; }
refused() { case $(ask "$2") in "$1"*) true ;; *) false ;; esac; }
not() { ! "$@"; }
metric() { curl -fsS http://127.0.0.1:9684/metrics | sed -n "s/^$1 //p"; }
until_true() {
    local deadline=$((SECONDS + 60))
    until "$@"; do [ $SECONDS -lt $deadline ] || fail "not within 60 s: $*"; done
}

certdist import batch.csv
start simulator "$binary" simulator --state cloud.json
simulator=$started
start service "$binary" serve
service=$started
served PLUG0001

say "a flood"
before=$(metric certdist_hello_verify_requests_total)
python3 - <<'PYTHON'
import os, socket
hello = bytes.fromhex("fefd") + os.urandom(32) + bytes.fromhex("0000" "0004c0a800ff" "0100")
message = b"\x01" + len(hello).to_bytes(3, "big") + bytes(5) + len(hello).to_bytes(3, "big") + hello
record = b"\x16\xfe\xfd" + bytes(8) + len(message).to_bytes(2, "big") + message
for host in range(1, 200):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.bind((f"127.9.0.{host}", 0))
        for _ in range(100):
            sender.sendto(record, ("127.0.0.1", 5684))
PYTHON
served PLUG0002 || fail "a device is not served beside a flood"
after=$(metric certdist_hello_verify_requests_total)
[ $((after - before)) -gt 5000 ] || fail "the flood does not show: $before, then $after"
[ "$(metric certdist_handshakes)" -le 1 ] || fail "the flood is remembered"

say "an attack from an address"
python3 - <<'PYTHON'
import os, socket
# Handshakes on P-256 that are left unfinished: some 0.3 ms each of a second's burst.
def hello(random, cookie):
    body = b"\xfe\xfd" + random + b"\0" + bytes([len(cookie)]) + cookie
    body += bytes.fromhex("0002d003" "0100" "000e" "000a000400020017" "000b00020100")
    sequence = bytes([0, bool(cookie)])
    message = b"\x01" + len(body).to_bytes(3, "big") + sequence + bytes(3) + len(body).to_bytes(3, "big") + body
    return b"\x16\xfe\xfd" + bytes(7) + bytes([bool(cookie)]) + len(message).to_bytes(2, "big") + message
for port in range(100):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as attacker:
        attacker.bind(("127.0.0.2", 0))
        attacker.connect(("127.0.0.1", 5684))
        attacker.settimeout(1)
        for _ in range(200):
            random = os.urandom(32)
            attacker.send(hello(random, b""))
            while True:
                answer = attacker.recv(2048)
                if answer[13] == 3:
                    break
            attacker.send(hello(random, answer[28:]))
PYTHON
[ "$(metric 'certdist_dtls_dropped_total{reason="over_budget"}')" -gt 100 ] || fail "the attack does not show"
grep -q 'too many handshakes of a network failed.*network=127.0.0.2' "$logs/service.log" ||
    fail "no line names the network"
served PLUG0003 || fail "a device elsewhere is not served"

say "the cloud is down"
kill -TERM "$simulator"
wait "$simulator" || true
refused 5.0 PLUG0010 || fail "a device that needs the cloud: $(ask PLUG0010)"
served PLUG0001 || fail "a device that needs no cloud is not served"
if certdist check-config --online 2> said; then fail "check-config --online is content"; fi
grep -q 'cannot be reached' said || fail "$(cat said)"
start simulator "$binary" simulator --state cloud.json
simulator=$started
certdist check-config --online | grep -q 'the credentials are good'
until_true served PLUG0010

say "the disk is full"
dd if=/dev/zero of=fill bs=1k 2>/dev/null || true
served PLUG0001 || fail "a device that needs no write is not served"
refused 5.03 PLUG0020 || fail "a device that needs a write: $(ask PLUG0020)"
grep -q 'database or disk is full' "$logs/service.log" || fail "the log says nothing of a full disk"
rm fill
until_true served PLUG0020
[ "$(curl -fsS http://127.0.0.1:8086/stats | python3 -c 'import json, sys; print(json.load(sys.stdin)["devices"])')" = \
    "$(certdist stats --json | python3 -c 'import json, sys; print(json.load(sys.stdin)["total"]["registered"])')" ] ||
    fail "IoT Platform has other devices than the table"

say "a key has leaked"
# 1. another key, which devices with new firmware have; the old one is refused at once
certdist key new --output new.key
mv new.key plug-batch-7.key
kill -HUP "$service"
until_true not served PLUG0001
# 2. who has got a certificate: all that were issued
certdist device list --enrollment plug-batch-7 --registered --json > issued
[ "$(wc -l < issued)" -ge 4 ] || fail "$(cat issued)"
grep -q '"firstIssued":"20' issued
# 3. until each is cleared
python3 -c 'import json, sys; [print(json.loads(line)["deviceId"]) for line in sys.stdin]' < issued > ids
while read -r id; do certdist device disable "$id" > disabled; done < ids
certdist enrollment show plug-batch-7 | grep -q "^disabled *$(wc -l < ids)\$"
# the key that the firmware has in this test, so that it can be asked
printf another-16-bytes | od -An -tx1 | tr -d ' \n' > plug-batch-7.key
key=another-16-bytes
kill -HUP "$service"
until_true refused 4.03 PLUG0001
certdist device enable PLUG0001
served PLUG0001 || fail "an enabled device is not served"

kill -TERM "$service"
wait "$service" || fail "the service ended with $?"
say "all is well"
