#!/bin/sh
# Run pip quietly. When it fails, show its last lines and say in one line what stopped it.
# usage: pip.sh PYTHON ARGUMENT...  exit status: pip's own, or 3 when the index was not reached

python=$1
shift
log=$(mktemp) || exit 1
trap 'rm -f "$log"' EXIT
"$python" -m pip --disable-pip-version-check "$@" >"$log" 2>&1 && exit 0
status=$?
tail -n 40 "$log" >&2
if grep -qE 'connection broken by|Failed to establish a new connection|No matching distribution' "$log"
then
    echo "no network: pip cannot fetch packages, its index was not reached (or lacks one of them)" >&2
    exit 3
fi
echo "pip failed: its own words are above" >&2
exit $status
