#!/bin/bash
# The machine on which tests/alone/newcomer.rs follows docs/getting-started.md: its own build of
# the package lies in build/, as `make deb` leaves it, and IoT Platform is the simulator.
# Runs what comes in on standard input, as root. From a terminal, it is a machine to try
# certdist on, which keeps nothing:
#
#     tests/newcomer.sh target/debug/certdist
. "$(dirname "$0")/support/machine.sh"

# Where apt's own user may read.
checkout=/usr/local/src/certdist
mkdir -p "$root$checkout/build"
build_package "$checkout/build" >/dev/null 2>&1
start_simulator
say "the machine is ready"
inside bash -c "cd $checkout && exec bash"
