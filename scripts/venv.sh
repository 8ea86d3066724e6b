#!/bin/sh
# Make VENV a virtual environment of PYTHON, unless it is one already.
# usage: venv.sh PYTHON VENV
#
# VENV/.python says which interpreter made it, and where: after a change of interpreter, or in a
# checkout that was copied, the environment is made anew. The file's date is the stamp for make.

set -eu
here=$(dirname "$0")
python=$1
venv=$2

sh "$here/preflight.sh" "$python"
identity=$("$python" -c 'import os, sys; print(sys.version, sys.base_prefix, os.path.abspath(sys.argv[1]))' "$venv")
if [ -f "$venv/.python" ] && [ "$(cat "$venv/.python")" = "$identity" ]; then
    exit 0
fi
if [ -e "$venv" ] && [ ! -f "$venv/pyvenv.cfg" ]; then
    echo "$venv is in the way: it is not a virtual environment" >&2
    exit 1
fi
echo "making $venv"
rm -rf "$venv"
"$python" -m venv "$venv"
printf '%s\n' "$identity" >"$venv/.python"
