#!/bin/sh
# Run pip quietly. When it fails, say what stopped it.
# usage: pip.sh PYTHON ARGUMENT...  exit status: pip's own, or 3 when the index was not reached

python=$1
shift
log=$(mktemp) || exit 1
trap 'rm -f "$log"' EXIT
"$python" -m pip --disable-pip-version-check "$@" >"$log" 2>&1 && exit 0
status=$?
# pip repeats this for each attempt, and then says that there is no such package.
broken=$(grep -m 1 -o 'after connection broken by.*' "$log" | cut -c 1-300)
if [ -n "$broken" ]; then
    echo "no network: pip did not reach its package index ($broken)" >&2
    exit 3
fi
tail -n 40 "$log" >&2
echo "pip failed: its own words are above" >&2
exit $status
