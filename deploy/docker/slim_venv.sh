#!/bin/sh
# slim_venv.sh VENV: takes out of a virtual environment what only tests and compilers read, and compiles the rest.
set -eu
venv=$1
find "$venv" -type d \( -name tests -o -name testing -o -name include \) -path '*/numpy/*' -prune -exec rm -rf {} +
find "$venv" -type d -path '*/numpy/f2py' -prune -exec rm -rf {} +
find "$venv" -type f -name '*.a' -delete
find "$venv" -type f -name '*.so*' -exec strip --strip-debug {} +
"$venv/bin/python" -m compileall -q --invalidation-mode unchecked-hash "$venv/lib"
