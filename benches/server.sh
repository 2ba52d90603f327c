# For a bench that sources this from the top of the repository: certdist's server on a
# table whose devices all have a certificate, and a load of them. $certdist is the binary;
# all that is made lies in $folder, and ends with the bench.
MASTER=000102030405060708090a0b0c0d0e0f
PORT=${PORT:-15684}

folder=$(mktemp -d)
server=
cleanup() {
    if [ -n "$server" ]; then kill "$server" 2>/dev/null || true; fi
    rm -rf "$folder"
}
trap cleanup EXIT

# A configuration and a table of so many devices.
table() { # name, rows
    cat >"$folder/$1.toml" <<TOML
listen   = "127.0.0.1:$PORT"
database = "sqlite:$1.db"
[[enrollment]]
name        = "lamp"
product_key = "a1lamp"
kind        = "derived"
key         = "hex:$MASTER"
TOML
    awk -v rows="$2" 'BEGIN {
        print "deviceId,deviceName,deviceSecret"
        for (i = 1; i <= rows; i++) printf "SN%08d,SN%08d,%032x\n", i, i, i
    }' >"$folder/$1.csv"
    "$certdist" import "$folder/$1.csv" --config "$folder/$1.toml"
    rm "$folder/$1.csv"
}

# Starts the server on a table; its process ID is in $server.
start() { # name
    exec 3< <(exec "$certdist" serve --config "$folder/$1.toml" 2>"$folder/log")
    server=$!
    read -r -u 3 _ || { cat "$folder/log" >&2; exit 1; }
}

stop() {
    kill "$server"
    while kill -0 "$server" 2>/dev/null; do sleep 0.05; done
    server=
}

# Words before the load's command: where it is to run.
pinned=()
load() { "${pinned[@]}" build/coapsload -p "$PORT" -u cert -K "$MASTER" -P "$server" "$@"; }
