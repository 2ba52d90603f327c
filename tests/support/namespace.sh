# For a script that sources this, with its own arguments: namespaces of its own for
# mounts, network and processes, which end with it. The first argument is certdist's
# binary, which is $binary then; needs root. Whatever cannot be done is a failure.
set -euo pipefail

say() { echo "== $*"; }
fail() { echo "FAILED: $*" >&2; exit 1; }
trap 'echo "FAILED at line $LINENO: $BASH_COMMAND" >&2' ERR

if [ "${1-}" != --inside ]; then
    [ "$(id -u)" -eq 0 ] || fail "it takes root to make namespaces"
    exec unshare --mount --net --pid --fork --kill-child --mount-proc "$0" --inside "$(realpath "$1")"
fi
binary=$2
ip link set lo up
mount --make-rprivate /

# Starts a command in the background, as $started, with its log in $logs/NAME.log ($work unless set), and
# waits until it says on what it listens, which is $heard then: start NAME COMMAND...
start() {
    local name=$1
    shift
    rm -f "$work/$name.out"
    mkfifo "$work/$name.out"
    "$@" > "$work/$name.out" 2>> "${logs:-$work}/$name.log" &
    started=$!
    exec 5< "$work/$name.out"
    read -r -t 20 -u 5 heard || fail "$name does not listen: $(cat "${logs:-$work}/$name.log")"
    case $heard in "listening on "*) ;; *) fail "$name said $heard" ;; esac
}
