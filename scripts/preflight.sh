#!/bin/sh
# Say what this machine lacks to build fastpool: one line a problem, with the Debian package.
# usage: preflight.sh PYTHON        exit status: 0 nothing is missing, 1 something is
#
# Owns: the checks that need no network. Refuses: installing anything.

python=$1
problems=0

problem() { # what is missing, Debian packages that bring it
    [ "$problems" = 0 ] && echo "fastpool cannot be built here:" >&2
    problems=1
    echo "  - $1: apt-get install $2" >&2
}

if ! command -v "$python" >/dev/null 2>&1; then
    problem "no Python ($python)" "python3 python3-venv python3-dev"
    exit 1
fi

# Facts come one a line, for paths may hold spaces.
facts=$("$python" - <<'EOF'
import platform, sys, sysconfig
print("%d.%d" % sys.version_info[:2])
print("yes" if sys.version_info >= (3, 10) and platform.python_implementation() == "CPython" else "no")
try:
    import ensurepip, venv
    print("yes")
except ImportError:
    print("no")
print((sysconfig.get_config_var("CC") or "cc").split()[0])
print(sysconfig.get_path("include"))
EOF
) || { problem "$python does not run" "python3 python3-venv python3-dev"; exit 1; }

{ read -r version; read -r supported; read -r has_venv; read -r compiler; read -r include; } <<EOF
$facts
EOF
compiler=${CC:-$compiler}
case $python in
    *python3) package=python3 ;;
    *) package=python$version ;;
esac

if [ "$supported" = no ]; then
    problem "$python is not CPython 3.10 or later, but $version" "python3 python3-venv python3-dev"
fi
if [ "$has_venv" = no ]; then
    problem "no venv module in $python" "$package-venv"
fi
# On Windows setuptools finds the compiler itself, and the headers are always there.
[ "${OS:-}" = Windows_NT ] && exit $problems
if ! command -v ${compiler%% *} >/dev/null 2>&1; then
    problem "no C compiler ($compiler)" "gcc libc6-dev"
else
    scratch=$(mktemp -d) || exit 1
    trap 'rm -rf "$scratch"' EXIT
    printf '#include <stdlib.h>\nint main(void) { return EXIT_SUCCESS; }\n' >"$scratch/probe.c"
    if ! $compiler -o "$scratch/probe" "$scratch/probe.c" >/dev/null 2>&1; then
        problem "$compiler cannot build a C program" "gcc libc6-dev"
    fi
fi
if [ ! -f "$include/Python.h" ]; then
    problem "no Python headers ($include/Python.h)" "$package-dev"
fi
exit $problems
