#!/bin/sh
# Make TARGET with each interpreter of these versions that this machine has, and say which.
# usage: each-python.sh MAKE VENV TARGET VERSION...
# exit status: 0, or 1 when one failed or there was none

set -u
here=$(dirname "$0")
make=$1
venv=$2
target=$3
shift 3
tried=
failed=
for version in "$@"; do
    if ! python=$(sh "$here/find-python.sh" "$version"); then
        echo "== $version: not on this machine"
        continue
    fi
    echo "== $version: $python"
    if "$make" --no-print-directory "$target" PYTHON="$python" VENV="$venv-$version"; then
        tried="$tried $version"
    else
        failed="$failed $version"
    fi
done
echo "$target: fine with${tried:- none}${failed:+, failed with$failed}"
[ -n "$tried" ] && [ -z "$failed" ]
