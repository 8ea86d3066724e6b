#!/bin/sh
# Put a site into the folder docs/ on a branch of a repository, in place of the one that is there.
# usage: publish-docs.sh SITE REPOSITORY BRANCH

set -eu
site=$1
. "$(dirname "$0")/pages.sh"

pages_open "$2" "$3"
rm -rf "$tree/docs"
cp -R "$site" "$tree/docs"
rm -rf "$tree/docs/.doctrees" "$tree/docs/.buildinfo"
pages_close "The manual of $(date -u +%Y-%m-%d)"
