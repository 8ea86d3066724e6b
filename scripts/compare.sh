#!/bin/sh
# Measure a commit and this tree in turns, and compare them.
# usage: compare.sh MAKE PYTHON VENV COMMIT PAIRS
# exit status: 0, 1 when this tree is too slow, or that of what failed
#
# Both are measured by this tree's bench/, and each is built in an environment of its own. What was
# measured stays in VENV-compare: base-N.json, head-N.json, compare.md, compare.json, head.html.

set -eu
make=$1
python=$2
venv=$3
commit=$4
pairs=$5
here=$PWD
out=$venv-compare

sha=$(git rev-parse --verify --quiet "$commit^{commit}") || {
    echo "there is no commit $commit here: git fetch, or say BASE=..." >&2
    exit 2
}
rm -rf "$out/tree" "$out"/*.json "$out"/*.md "$out"/*.html
mkdir -p "$out"
out=$(cd "$out" && pwd)
git clone --quiet --shared --no-checkout . "$out/tree"
git -C "$out/tree" checkout --quiet --detach "$sha"
# One ruler for both.
rm -rf "$out/tree/bench"
cp -R bench "$out/tree/bench"

measure_base() {
    # An older commit may lack what a newer benchmark measures: the others count.
    "$make" -C "$out/tree" -f "$here/Makefile" PYTHON="$python" VENV="$out/venv" bench-quick \
        >"$out/base-$1.log" 2>&1 || {
        tail -n 20 "$out/base-$1.log"
        echo "measured what $commit has of it"
    }
    mv "$out/venv/bench-quick.json" "$out/base-$1.json"
}

measure_head() {
    "$make" PYTHON="$python" VENV="$venv" bench-quick >"$out/head-$1.log" 2>&1 || {
        tail -n 40 "$out/head-$1.log" >&2
        exit 2
    }
    mv "$venv/bench-quick.json" "$out/head-$1.json"
}

# Each second pair the other way round: a machine that slows down steadily hits both alike.
n=0
while [ "$n" -lt "$pairs" ]; do
    n=$((n + 1))
    echo "pair $n of $pairs"
    if [ $((n % 2)) = 1 ]; then
        measure_base "$n"
        measure_head "$n"
    else
        measure_head "$n"
        measure_base "$n"
    fi
done

compare() {
    "$venv/bin/python" -m bench.compare "$@" \
        --base "$out"/base-[0-9]*.json --head "$out"/head-[0-9]*.json
}
status=0
compare --markdown >"$out/compare.md" || status=$?
compare --json >"$out/compare.json" || status=$?
"$venv/bin/python" -m bench.report "$out"/head-[0-9]*.json -o "$out/head.html"
cat "$out/compare.md"
[ -z "${GITHUB_STEP_SUMMARY:-}" ] || cat "$out/compare.md" >>"$GITHUB_STEP_SUMMARY"
exit "$status"
