"""Runs a deployment module's library and its programs as a device does: TVM's runtime library, a simulated VTA.

python run_vta_library.py FOLDER: reads model.so, weights.npz, program-N.vta and input.npy; writes output.npy, and
prints which libraries of TVM are loaded (JSON).
"""

import json
import sys
from pathlib import Path

import numpy as np

from targets.cpu.device import load_library
from targets.cpu.pool import import_runtime
from targets.vta.device import RUN
from targets.vta.executable import Executable
from targets.vta.program import load
from targets.vta.sim_driver import SimDriver


def main() -> None:
    folder = Path(sys.argv[1])
    import_runtime(1)
    import tvm
    import tvm_ffi
    from tvm.runtime.vm import VirtualMachine

    programs = [load(path) for path in sorted(folder.glob("program-*.vta"))]
    driver = SimDriver(programs[0].config)
    executables = [Executable(program, driver) for program in programs]

    def run(number: int, *tensors: tvm.runtime.Tensor) -> None:
        count = len(programs[number].inputs)
        arrays = [np.from_dlpack(tensor) for tensor in tensors]
        for array, result in zip(arrays[count:], executables[number].run(arrays[:count], 60.0), strict=True):
            array[...] = result.reshape(array.shape)

    tvm_ffi.register_global_func(RUN, run)
    machine = VirtualMachine(load_library(folder / "model.so"), tvm.cpu(0))
    weights = [tvm.runtime.tensor(array) for array in np.load(folder / "weights.npz").values()]
    result = machine["main"](tvm.runtime.tensor(np.load(folder / "input.npy")), *weights)
    np.save(folder / "output.npy", result.numpy())
    mapped = {Path(line.split()[-1]).name for line in Path("/proc/self/maps").read_text().splitlines()}
    loaded = sorted(name for name in mapped if name.startswith(("libtvm", "libtorch")))
    print(json.dumps({"loaded": loaded, "gemm": driver.statistics().counters.gemm_counter}))


if __name__ == "__main__":
    main()
