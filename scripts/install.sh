#!/bin/sh
# Install into VENV the wheel that make built there, the packages of one extra, and a psycopg
# that works.
# usage: install.sh VENV EXTRA        PSYCOPG is the driver's version, where not the newest
#
# psycopg reaches libpq in one of three ways. Its binary package brings libpq along, but has no
# free-threaded build; "c" is compiled against the system's libpq; pure Python only loads it.

set -eu
here=$(dirname "$0")
venv=$1
extra=$2
python=$venv/bin/python
wheel=$(echo "$venv"/wheel/*.whl)

free_threaded=$("$python" -c 'import sysconfig; print(sysconfig.get_config_var("Py_GIL_DISABLED") or 0)')
if [ "$free_threaded" = 0 ]; then
    drivers="binary c"
else
    drivers="c"
fi
command -v pg_config >/dev/null 2>&1 || drivers=${drivers%c}

# A release that has a wheel is preferred to a newer one that would have to be compiled.
install() {
    sh "$here/pip.sh" "$python" install --prefer-binary "$wheel[$1]" ${PSYCOPG:+"psycopg==$PSYCOPG"}
}

echo "installing fastpool[$extra] into $venv"
sh "$here/pip.sh" "$python" install --no-deps --force-reinstall "$wheel"
for driver in $drivers none; do
    wanted=$extra
    [ "$driver" = none ] || wanted=$extra,$driver
    status=0
    install "$wanted" || status=$?
    [ "$status" = 0 ] && break
    [ "$status" = 3 ] && exit 3
    [ "$driver" = none ] && exit "$status"
    echo "psycopg[$driver] did not install: trying without it" >&2
done
# `python -m` in the checkout finds its fastpool/ first: let it find the compiled modules there,
# unless they are of a kind that no ordinary interpreter loads.
if [ -z "${FASTPOOL_SANITIZE:-}" ]; then
    site=$("$python" -c 'import sysconfig; print(sysconfig.get_path("platlib"))')
    cp "$site"/fastpool/*.so fastpool/
fi
if ! "$python" -c 'import psycopg' 2>/dev/null; then
    echo "psycopg finds no libpq: apt-get install libpq5 (with libpq-dev it is compiled, and faster)" >&2
    exit 1
fi
