#!/bin/sh
# Makes .originals: GluonCV and MXNet, which the zoo's networks are checked against. Does nothing when it is there.
set -eu
cd "$(dirname "$0")/.."
lock=requirements/originals.lock
python=${1:-python3.11}

digest() { cat "$lock" scripts/originals.sh | sha256sum; }
if [ "$(cat .originals/.installed 2>/dev/null)" = "$(digest)" ]; then exit 0; fi
if ! "$python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null; then
    echo "MXNet 1.9.1 needs Python 3.11 as '$python'; name another with: make PYTHON311=/path/to/python3.11 originals" >&2
    exit 1
fi
if [ "$(uname -sm)" != "Linux x86_64" ]; then
    echo "MXNet 1.9.1 is published for Linux on x86-64 only" >&2
    exit 1
fi
echo "Installing MXNet and GluonCV into .originals (once; 0.8 GB) ..." >&2
rm -rf .originals
"$python" -m venv .originals
.originals/bin/pip --disable-pip-version-check --quiet install --no-compile -r "$lock"
.originals/bin/python -W ignore -c 'import gluoncv' 2>/dev/null
digest >.originals/.installed
