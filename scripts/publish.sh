#!/bin/sh
# Add a benchmark run to the history on a branch of a repository, and write the page about both.
# usage: publish.sh PYTHON RESULT.json REPOSITORY BRANCH
#
# The branch holds history.json and index.html, and is made if there is none. GITHUB_TOKEN, if set,
# is what the repository is written with; it is handed to git by its credential helper and never
# stands in a command line.

set -eu
python=$1
result=$2
repository=$3
branch=$4
tree=$(mktemp -d)
trap 'rm -rf "$tree"' EXIT

publish() {
    git -C "$tree" -c credential.helper= \
        -c credential.helper='!f() { echo username=x-access-token; echo "password=${GITHUB_TOKEN:-}"; }; f' \
        -c user.name=benchmarks -c user.email=benchmarks@localhost "$@"
}

publish init --quiet --initial-branch="$branch"
if [ -n "$(publish ls-remote "$repository" "refs/heads/$branch")" ]; then
    publish fetch --quiet --depth=1 "$repository" "refs/heads/$branch"
    publish reset --quiet --hard FETCH_HEAD
fi
"$python" -m bench.report "$result" --history "$tree/history.json" -o "$tree/index.html"
# It is a plain page: nothing is to be built from it.
: >"$tree/.nojekyll"
publish add --all
if publish diff --cached --quiet; then
    echo "the history has this run already"
    exit 0
fi
publish commit --quiet --message "Benchmarks of $(date -u +%Y-%m-%d)"
publish push --quiet "$repository" "HEAD:refs/heads/$branch"
echo "published to $branch"
