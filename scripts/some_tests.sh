#!/bin/sh
# Runs pytest; a selection that is empty so far (status 5) counts as passed.
set -eu
status=0
"$@" || status=$?
[ "$status" = 5 ] || exit "$status"
echo "no tests of this kind yet"
