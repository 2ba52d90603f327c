# A machine on which certdist was never installed, for the script that sources this: a
# view of this system that is thrown away (an overlay, mounted at $root, in namespaces of
# its own). dpkg and apt on it are the real ones; for systemd stands support/systemctl.
# Takes the script's own arguments, of which the first is the binary to package.
. "$(dirname "${BASH_SOURCE[0]}")/namespace.sh"

here=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d /tmp/certdist-machine.XXXXXX)
mount -t tmpfs none "$work"
mkdir "$work/upper" "$work/overlay" "$work/root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$work/upper,workdir=$work/overlay" "$work/root"
root=$work/root
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
mount -t tmpfs none "$root/run"
mount -t tmpfs -o mode=1777 none "$root/tmp"
# The processes of this namespace end with it, and so do its mounts.
trap 'cd /; umount -l "$work" && rmdir "$work"' EXIT

# By this, maintainer scripts know that systemd runs.
mkdir -p "$root/run/systemd/system"
install -m 0755 "$here/tests/support/systemctl" "$root/usr/bin/systemctl"
export DEBIAN_FRONTEND=noninteractive DEB_COMPRESSION=none
inside() { chroot "$root" "$@"; }
inside getent passwd certdist >/dev/null && fail "this system has a user certdist already"

# Once, as a binary with everything for a debugger takes long.
strip -o "$work/certdist" "$binary"

# Builds the package into a folder of the machine: build_package FOLDER [VERSION]
build_package() { "$here/packaging/build-deb" "$work/certdist" "$root$1" ${2+"$2"}; }

# IoT Platform, where the installed configuration does not look for it.
start_simulator() {
    start simulator "$work/certdist" simulator
    [ "$heard" = "listening on http://127.0.0.1:8086" ] || fail "the simulator said $heard"
}
