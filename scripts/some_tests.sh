#!/bin/sh
# Runs pytest, unless the selection is empty so far (collecting ends with status 5).
set -eu
status=0
"$@" --collect-only >/dev/null 2>&1 || status=$?
if [ "$status" = 5 ]; then
    echo "no tests of this kind yet"
    exit 0
fi
exec "$@"
