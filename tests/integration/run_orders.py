"""Runs a ``.fleet`` file on simulated accelerators that behave as differently as they may, and prints what it finds.

With the hardware's semantics and the original simulator's, in the program's order and in random ones: the largest
difference from the golden outputs of each run, as JSON by name.

python run_orders.py FILE FOLDER SEEDS
"""

import json
import sys
from pathlib import Path

import numpy as np
from run_simulated import Loaded

from targets.cpu.pool import import_runtime
from targets.vta import boards, checker
from targets.vta.device import VTARunner
from targets.vta.files import read_programs
from targets.vta.sim_driver import SimDriver


def main() -> None:
    bundle = Loaded(Path(sys.argv[1]), Path(sys.argv[2]))
    golden = bundle.manifest.golden
    programs = read_programs(bundle)
    import_runtime(0)
    inputs = [bundle.array(name) for name in golden.inputs[0]]
    expected = [bundle.array(name) for name in golden.outputs[0]]
    kinds = [(semantics, "program", 0) for semantics in ("hw", "fsim")]
    kinds += [("hw", "random", seed) for seed in range(int(sys.argv[3]))]
    errors, counters = {}, []
    for semantics, order, seed in kinds:
        driver = SimDriver(programs[0].config, semantics=semantics, order=order, seed=seed)
        runner = VTARunner(bundle, programs, driver, boards.find("sim"))
        outputs = runner.infer(inputs)
        name = f"{semantics} {order} {seed}"
        errors[name] = max(float(np.abs(a - b).max()) for a, b in zip(outputs, expected, strict=True))
        counters.append({key: value for key, value in runner.counters().items() if key != "accelerator_ms"})
        runner.close()
    findings = [finding.message for program in programs for finding in checker.check(program)]
    same = all(counted == counters[0] for counted in counters)
    print(json.dumps({"errors": errors, "counters": counters[0], "same": same, "findings": findings}))


if __name__ == "__main__":
    main()
