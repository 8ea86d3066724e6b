#!/bin/sh
# The branch that a repository's pages are made of: get it, and send back what was changed in it.
# usage: . pages.sh; pages_open REPOSITORY BRANCH; change files below $tree; pages_close MESSAGE
#
# The branch is made if there is none. GITHUB_TOKEN, if set, is what the repository is written
# with; it is handed to git by its credential helper and never stands in a command line.

tree=$(mktemp -d)
trap 'rm -rf "$tree"' EXIT

pages() {
    git -C "$tree" -c credential.helper= \
        -c credential.helper='!f() { echo username=x-access-token; echo "password=${GITHUB_TOKEN:-}"; }; f' \
        -c user.name=pages -c user.email=pages@localhost "$@"
}

pages_open() {
    pages_repository=$1
    pages_branch=$2
    pages init --quiet --initial-branch="$pages_branch"
    if [ -n "$(pages ls-remote "$pages_repository" "refs/heads/$pages_branch")" ]; then
        pages fetch --quiet --depth=1 "$pages_repository" "refs/heads/$pages_branch"
        pages reset --quiet --hard FETCH_HEAD
    fi
    # They are plain pages: nothing is to be built from them.
    : >"$tree/.nojekyll"
}

pages_close() {
    pages add --all
    if pages diff --cached --quiet; then
        echo "$pages_branch has this already"
        return
    fi
    pages commit --quiet --message "$1"
    pages push --quiet "$pages_repository" "HEAD:refs/heads/$pages_branch"
    echo "published to $pages_branch"
}
