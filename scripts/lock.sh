#!/bin/sh
# Locks every dependency, for every supported Python, into requirements/*.lock. Run after a change of pyproject.toml.
set -eu
cd "$(dirname "$0")/.."
lock() {
    out=$1
    shift
    .venv/bin/uv pip compile --quiet --universal --python-version 3.10 --generate-hashes --emit-build-options \
        --custom-compile-command "make lock" --output-file "requirements/$out.lock" "$@" pyproject.toml
}
lock dev --extra controller --extra tvm --extra torch --extra stats --extra postgresql --extra dask --extra vta --extra jetson --extra runtime --extra ansible --extra dev
# The demo's set is a subset of the full one, at the same versions: one environment serves both.
lock demo --constraint requirements/dev.lock --extra controller --extra tvm
# For the one Python and the one machine that MXNet's last release is for.
.venv/bin/uv pip compile --quiet --python-version 3.11 --python-platform x86_64-manylinux_2_28 --generate-hashes \
    --custom-compile-command "make lock" --output-file requirements/originals.lock requirements/originals.in
