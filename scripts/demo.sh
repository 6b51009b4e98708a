#!/bin/sh
# The main job of hostd on this machine: starts a daemon of its own, runs examples/sweep.py, shows
# where the time went, stops the daemon and takes away what it made. Images stay in .demo/data, so
# that the next run is quick; `make clean` removes them.
#
#   sh scripts/demo.sh           the demo (usually: make demo)
#   sh scripts/demo.sh --sweep   only take away what an interrupted demo left
set -eu

READY_WAIT_S=60
STOP_WAIT_S=30

cd "$(dirname "$0")/.."
top=$(pwd)
demo=$top/.demo
bin=$top/.venv/bin

# The run directory has the sockets, whose names may not be long: it lies in /tmp.
run_dir_of() { printf '/tmp/hostd-demo-%s\n' "$(printf '%s' "$top" | cksum | cut -d' ' -f1)"; }

say() { printf '\n== %s\n' "$*"; }
die() {
    printf 'error: %s\n' "$1" >&2
    [ $# -lt 2 ] || printf 'hint: %s\n' "$2" >&2
    exit 1
}

start_daemon() {
    mkdir -p "$demo/data" "$run_dir"
    "$bin/hostd" agent --data-dir "$demo/data" --run-dir "$run_dir" --api-listen "" \
        >"$demo/agent.log" 2>&1 &
    daemon=$!
    waited=0
    until "$bin/hostctl" -q status >/dev/null 2>&1; do
        if ! kill -0 "$daemon" 2>/dev/null || [ "$waited" -ge $((READY_WAIT_S * 5)) ]; then
            tail -n 30 "$demo/agent.log" >&2
            die "the daemon did not start" "$bin/hostd doctor"
        fi
        sleep 0.2
        waited=$((waited + 1))
    done
}

stop_daemon() {
    [ -n "$daemon" ] || return 0
    kill -TERM "$daemon" 2>/dev/null || true
    waited=0
    while kill -0 "$daemon" 2>/dev/null && [ "$waited" -lt $((STOP_WAIT_S * 5)) ]; do
        sleep 0.2
        waited=$((waited + 1))
    done
    kill -KILL "$daemon" 2>/dev/null || true
    wait "$daemon" 2>/dev/null || true
    daemon=
}

# After a clean stop only the directory is left; after a kill there may be more.
sweep() { sh install.sh --quiet --sweep "$run_dir"; }

finish() {
    status=$?
    trap - EXIT INT TERM HUP PIPE
    stop_daemon
    sweep
    exit "$status"
}

main() {
    daemon=
    run_dir=$(run_dir_of)
    if [ "${1-}" = --sweep ]; then
        sweep
        return 0
    fi
    [ -x "$bin/hostctl" ] || die "there is no environment yet" "make setup"
    [ "$(id -u)" = 0 ] || die "the demo needs root: it mounts file systems and starts containers"
    # Settings of the caller must not leak into a daemon that is the demo's own.
    for variable in $(env | sed -n 's/^\(HOSTD_[A-Z_]*\)=.*/\1/p'); do unset "$variable"; done
    HOSTD_SOCKET=$run_dir/hostd.sock
    export HOSTD_SOCKET
    trap finish EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM
    trap 'exit 129' HUP
    trap 'exit 141' PIPE

    say "a daemon of the demo's own: hostd agent (log: .demo/agent.log)"
    start_daemon
    "$bin/hostctl" status

    say "hostctl run examples/sweep.py"
    "$bin/hostctl" run examples/sweep.py

    say "where the time went: hostctl explain"
    call=$("$bin/hostctl" calls list -o id --limit 1)
    "$bin/hostctl" explain "$call"

    say "stopping the daemon; the image stays in .demo/data, so the next demo is quick"
}

main "$@"
