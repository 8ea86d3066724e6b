#!/bin/sh
# Make TARGET with each interpreter of these versions that this machine has, and say which.
# usage: each-python.sh MAKE VENV TARGET VERSION...
# exit status: 0, or 1 when one failed or there was none
#
# An interpreter is found on PATH as pythonVERSION, below pyenv's folder, or as FASTPOOL_PYTHONS
# names it: further paths, separated by colons.

set -u
make=$1
venv=$2
target=$3
shift 3
tried=
failed=
for version in "$@"; do
    found=
    for python in $(command -v "python$version") \
        "${PYENV_ROOT:-$HOME/.pyenv}/versions/$version".*/bin/"python$version" \
        $(echo "${FASTPOOL_PYTHONS:-}" | tr : ' ') "/opt/python-freethreaded/bin/python$version"; do
        # pyenv's shims are there for versions that are not chosen, too. A free-threaded Python
        # also answers to its name without the t.
        said=$("$python" -c 'import sys, sysconfig; print("%d.%d%s" % (*sys.version_info[:2], sysconfig.get_config_var("abiflags") or ""))' 2>/dev/null)
        [ "$said" = "$version" ] && found=$python && break
    done
    if [ -z "$found" ]; then
        echo "== $version: not on this machine"
        continue
    fi
    echo "== $version: $found"
    if "$make" --no-print-directory "$target" PYTHON="$found" VENV="$venv-$version"; then
        tried="$tried $version"
    else
        failed="$failed $version"
    fi
done
echo "$target: fine with${tried:- none}${failed:+, failed with$failed}"
[ -n "$tried" ] && [ -z "$failed" ]
