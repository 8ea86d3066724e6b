#!/bin/sh
# Print the path of an interpreter of VERSION, such as 3.12 or 3.13t, if this machine has one.
# usage: find-python.sh VERSION        exit status: 0, or 1 without one
#
# Looks at FASTPOOL_PYTHONS (paths separated by colons), PATH, pyenv's versions and /opt.

version=$1
for python in $(echo "${FASTPOOL_PYTHONS:-}" | tr : ' ') $(command -v "python$version") \
    "${PYENV_ROOT:-$HOME/.pyenv}/versions/$version".*/bin/"python$version" \
    /opt/*/bin/"python$version"; do
    # pyenv's shims are there for versions that are not chosen, too.
    said=$("$python" -c 'import sys, sysconfig; print("%d.%d%s" % (*sys.version_info[:2], sysconfig.get_config_var("abiflags") or ""))' 2>/dev/null)
    [ "$said" = "$version" ] && echo "$python" && exit 0
done
exit 1
