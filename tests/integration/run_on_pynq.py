"""Runs a ``.fleet`` file with the device half of real boards, as a worker does, and prints what it finds (JSON).

python run_on_pynq.py FILE FOLDER BITSTREAM

The bundle is for this machine's processor, so it has no bitstream of its own; the accelerator is the one behind
FLEET_PYNQ_PYTHON.
"""

import json
import os
import sys
from pathlib import Path

import numpy as np
from run_simulated import Loaded

from targets.pynq.driver import open_board
from targets.vta import boards
from targets.vta.device import VTADevice


def main() -> None:
    bundle = Loaded(Path(sys.argv[1]), Path(sys.argv[2]))
    os.geteuid = lambda: 0  # no sudo on the way to the helper
    device = VTADevice(boards.find("pynq"), lambda config, board, _: open_board(config, board, Path(sys.argv[3])))
    runner = device.load(bundle, 0)
    golden = bundle.manifest.golden
    errors = []
    for given, expected in zip(golden.inputs, golden.outputs, strict=True):
        outputs = runner.infer([bundle.array(name) for name in given])
        errors += [float(np.abs(a - bundle.array(b)).max()) for a, b in zip(outputs, expected, strict=True)]
    found = {"errors": errors, "counters": runner.counters(), "conditions": runner.conditions()}
    runner.close()
    print(json.dumps(found))


if __name__ == "__main__":
    main()
