#!/bin/sh
# Run psycopg's own tests of its pool on fastpool, in psycopg_pool's place.
# usage: upstream.sh VENV TAG DSN
#
# In CI only. Those tests are LGPL, and whoever works on fastpool does not read them: they are
# fetched here, run, and thrown away. What is left out stands in tests/upstream-left-out.txt.

set -eu
venv=$1
tag=$2
dsn=$3
if [ "${CI:-}" != true ]; then
    echo "psycopg's tests of its pool are run in CI only: see CONTRIBUTING.md" >&2
    exit 1
fi
here=$(cd "$(dirname "$0")" && pwd)
python=$(cd "$venv" && pwd)/bin/python
source=$(mktemp -d)
trap 'rm -rf "$source"' EXIT

git clone --quiet --depth 1 --branch "$tag" https://github.com/psycopg/psycopg "$source"
sh "$here/pip.sh" "$python" install "psycopg[test]"
# One --deselect for each line: the name up to the first blank, the reason behind it.
left_out=$(sed -n 's/^\([^# ][^ ]*\) .*/--deselect=\1/p' "$here/../tests/upstream-left-out.txt")
cd "$source"
# Short tracebacks: the log shows what failed, and not those tests.
PSYCOPG_TEST_DSN=$dsn "$python" -m fastpool run -m pytest tests/pool --tb=line -q $left_out
