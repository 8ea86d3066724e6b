#!/bin/sh
# Add a benchmark run to the history on a branch of a repository, and write the page about both.
# usage: publish.sh PYTHON RESULT.json REPOSITORY BRANCH
#
# On the branch, history.json and index.html are its own.

set -eu
python=$1
result=$2
. "$(dirname "$0")/pages.sh"

pages_open "$3" "$4"
"$python" -m bench.report "$result" --history "$tree/history.json" -o "$tree/index.html"
pages_close "Benchmarks of $(date -u +%Y-%m-%d)"
