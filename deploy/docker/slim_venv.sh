#!/bin/sh
# slim_venv.sh VENV: takes out of a virtual environment what only tests and compilers read, and compiles the rest.
set -eu
venv=$1
find "$venv/lib" -type d -name tests -prune -exec rm -rf {} +
find "$venv/lib" -type d \( -name testing -o -name include -o -name f2py \) -path '*/numpy/*' -prune -exec rm -rf {} +
find "$venv/lib" -type f -name conftest.py -delete
find "$venv" -type f \( -name '*.pyi' -o -name '*.pyx' -o -name '*.px[di]' -o -name '*.[ach]' \) -delete
find "$venv" -type f -name '*.so*' -exec strip --strip-all {} +  # what is linked at run time stays
"$venv/bin/python" -m compileall -j 0 -q --invalidation-mode unchecked-hash "$venv/lib"
