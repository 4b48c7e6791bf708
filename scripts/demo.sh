#!/bin/sh
# The demo: four simulated boards on this machine, from model to live figures. Everything it makes is below .demo/.
set -eu
cd "$(dirname "$0")/.."
FLEET_HOME="$PWD/.demo"
export FLEET_HOME
PATH="$PWD/.venv/bin:$PATH"
export PATH
mkdir -p "$FLEET_HOME"
say() { printf '\n\033[1m$ %s\033[0m\n' "$*"; }
step() { say "$@"; "$@"; }

trap 'status=$?; fleet sim down || true; exit $status' EXIT
step fleet sim up --count 4
step fleet deploy shapes-classifier --all
step fleet bench --all
python -m controller.zoo.draw picture --shape star --seed 7 -o "$FLEET_HOME/star.png"
step fleet run shapes-classifier "$FLEET_HOME/star.png" --device sim-1
step fleet deploy shapes-ssd --device sim-2
python -m controller.zoo.draw scene --seed 1 --count 4 -o "$FLEET_HOME/scene.png"
step fleet run shapes-ssd "$FLEET_HOME/scene.png" --device sim-2 -o "$FLEET_HOME/scene-boxes.png"
fleet results export --format csv -o "$FLEET_HOME/results.csv" --force
printf '\nResults: %s (database), %s (table), %s (picture with boxes)\n' \
    "$FLEET_HOME" "$FLEET_HOME/results.csv" "$FLEET_HOME/scene-boxes.png"
