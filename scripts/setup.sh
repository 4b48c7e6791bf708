#!/bin/sh
# Makes .venv with the locked set `demo` or `full`; does nothing when that set is already there.
set -eu
cd "$(dirname "$0")/.."
set_name=$1
python=${2:-python3}
case $set_name in
    demo) lock=requirements/demo.lock ;;
    full) lock=requirements/dev.lock ;;
    *) echo "usage: scripts/setup.sh demo|full [PYTHON]" >&2; exit 2 ;;
esac

digest() { cat "$1" pyproject.toml scripts/setup.sh | sha256sum; }
installed() { [ "$(cat ".venv/.installed-$1" 2>/dev/null)" = "$(digest "$2")" ]; }
# The full set contains the demo's at the same versions.
if installed full requirements/dev.lock || installed "$set_name" "$lock"; then exit 0; fi

if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
    echo "fleet needs Python 3.10 or newer as '$python'; name another with: make PYTHON=python3.12 ..." >&2
    exit 1
fi
if [ ! -x .venv/bin/pip ]; then
    "$python" -m venv .venv || {
        echo "could not make .venv; on Debian and Ubuntu: apt install python3-venv" >&2
        exit 1
    }
fi
echo "Installing the $set_name set into .venv (once; a few minutes) ..." >&2
pip() { .venv/bin/pip --disable-pip-version-check --quiet "$@"; }
# Byte code is made on first use: precompiling all of it would cost 70 MB for modules nobody imports.
pip install --no-compile -r "$lock"
log=$(mktemp)
# setuptools warns at length about editable installs: shown only when one fails.
pip install --no-compile --no-deps --editable . >"$log" 2>&1 || { cat "$log" >&2; exit 1; }
rm -f "$log"
.venv/bin/python -c 'import agent, controller, targets'
# zig carries the headers of every system it can build for; fleet links for Linux only (110 MB less).
zig=$(.venv/bin/python -c 'import pathlib, ziglang; print(pathlib.Path(ziglang.__file__).parent)')
for unused in any-windows-any any-macos-any 'wasm*'; do rm -rf "$zig"/lib/libc/include/$unused; done
rm -rf "$zig/lib/libc/mingw" "$zig/lib/libc/wasi" "$zig/lib/libc/darwin"
digest "$lock" >".venv/.installed-$set_name"
