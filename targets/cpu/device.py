"""The device half of the CPU targets: TVM's virtual machine in the worker process."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from targets.base import BundleError, FleetError, LoadedBundle, OperatorProfile, Requirements
from targets.bundle import nbytes
from targets.cpu.arena import Arena
from targets.cpu.layers import LAYERS, PEAK, STREAM, read_layers
from targets.cpu.machine import cpu_features, machine
from targets.cpu.pool import pinned_processors, start_pool
from targets.installed import installed

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from targets.base import Array


class CPUDevice:
    """A :class:`targets.base.DeviceHalf`."""

    def unmet(self, requirements: Requirements) -> str:
        if requirements.machine and requirements.machine != machine():
            return f"the bundle is for {requirements.machine}, this machine is {machine()}"
        lacking = sorted(set(requirements.cpu_features) - cpu_features()) if requirements.cpu_features else []
        if lacking:
            return f"this processor lacks {', '.join(lacking)}"
        for name, wanted in requirements.runtime.items():
            have = installed(name)
            if not have:
                return f"{name} {wanted} is not installed"
            if have != wanted:
                return f"the bundle needs {name} {wanted}, here is {have}"
        return ""

    def load(self, bundle: LoadedBundle, threads: int) -> CPURunner:
        start_pool(threads)
        return CPURunner(bundle)

    def telemetry(self) -> dict[str, float]:
        return {}


class CPURunner:
    """A :class:`targets.base.Runner` and :class:`targets.base.Profiling` on TVM's virtual machine.

    ``time_evaluator`` is TVM's own clock.
    """

    engine = "time_evaluator"

    def __init__(self, bundle: LoadedBundle) -> None:
        import tvm

        manifest = bundle.manifest
        self._bundle = bundle
        self._inputs = manifest.inputs
        self._outputs = manifest.outputs
        self._cpu = tvm.cpu(0)
        #: Where the virtual machine runs.
        self._place = self._device()
        self._empty = tvm.runtime.empty
        try:
            self._library = load_library(bundle.path(manifest.entry))
            self._vm = self._machine()
        except (RuntimeError, AttributeError, OSError, ValueError) as error:
            raise BundleError(f"the library cannot be loaded: {str(error).strip().splitlines()[0]}") from error
        files = {file.path: file for file in manifest.files}
        self._weights = self._read_all([(bundle.path(name), files[name].tensor) for name in manifest.parameters])
        self._buffers = [self._empty(spec.shape, spec.dtype, self._place) for spec in self._inputs]
        # Inputs are written into these buffers in place: binding the arguments once keeps it out of every query.
        self._vm.set_input("main", *self._buffers, *self._weights)
        self._evaluator: dict[int, Any] = {}

    def infer(self, inputs: Sequence[Array]) -> list[Array]:
        if len(inputs) != len(self._buffers):
            raise ValueError(f"the model takes {len(self._buffers)} inputs, {len(inputs)} were given")
        for buffer, array, spec in zip(self._buffers, inputs, self._inputs, strict=True):
            if tuple(array.shape) != spec.shape or array.dtype.name != spec.dtype:
                raise ValueError(
                    f"input '{spec.name}' is {spec.dtype} {list(spec.shape)}, not {array.dtype} {list(array.shape)}"
                )
            buffer.copyfrom(array)
        self._vm.invoke_stateful("main")
        result = self._vm.get_outputs("main")
        tensors = result if isinstance(result, tuple | list) else (result,)
        return [tensor.numpy() for tensor in tensors]

    def measure(self, queries: int) -> npt.NDArray[np.float64]:
        import numpy as np

        # `repeat` gives one time per query. TVM runs one query more, before the first, and drops it.
        evaluator = self._vm.time_evaluator("invoke_stateful", self._place, number=1, repeat=queries)
        return np.asarray(evaluator("main").results, dtype=np.float64)

    def profile(self, queries: int) -> OperatorProfile:
        import tvm_ffi
        from tvm.runtime import num_threads

        from targets.cpu.profile import Watch, profile

        manifest = self._bundle.manifest
        if all(file.path != LAYERS for file in manifest.files):
            raise FleetError(
                f"target '{manifest.target}' has no profile of '{manifest.model.name}': its bundle has no {LAYERS}, "
                "which says what its kernels are",
                code="no-profile",
                hint="`fleet bench` measures it as a whole",
            )
        table = read_layers(self._bundle.path(LAYERS))
        # A virtual machine can be given an instrument and never be rid of it again.
        watched, watch = self._machine(), Watch()
        watched.set_input("main", *self._buffers, *self._weights)
        watched.set_instrument(tvm_ffi.convert(watch))
        return profile(
            query=lambda: float(self.measure(1)[0]),
            watched=lambda: watched.invoke_stateful("main"),
            watch=watch,
            peak=self._timed(PEAK, (2, table.peak_lanes), (table.peak_jobs, table.peak_lanes)),
            stream=self._timed(STREAM, *[(table.stream_jobs, table.stream_numbers)] * 2),
            table=table,
            threads=num_threads(),
            queries=queries,
        )

    def conditions(self) -> dict[str, str]:
        from tvm.runtime import num_threads

        pinned = ",".join(map(str, pinned_processors()))
        return {
            "apache-tvm": installed("apache-tvm"),
            "threads": str(num_threads()),
            **({"pinned": pinned} if pinned else {}),
        }

    def close(self) -> None:
        del self._vm, self._weights, self._buffers, self._library

    def _machine(self) -> Any:
        from tvm.runtime.vm import VirtualMachine

        return VirtualMachine(self._library, self._place)

    def _device(self) -> Any:
        import tvm

        return tvm.cpu(0)

    def _timed(self, name: str, *shapes: tuple[int, int]) -> Callable[[], float]:
        """What times one call of a function of the library with numbers of these shapes, in seconds."""
        import numpy as np

        try:
            function = self._library.get_function(name, query_imports=True)
        except AttributeError:
            raise BundleError(f"the library has no function '{name}'") from None
        arguments = [self._empty(shape, "float32", self._cpu) for shape in shapes]
        for argument, shape in zip(arguments, shapes, strict=True):
            argument.copyfrom(np.full(shape, 0.5, np.float32))

        def once() -> float:
            begin = time.perf_counter()
            function(*arguments)
            return time.perf_counter() - begin

        return once

    def _read_all(self, weights: Sequence[tuple[Path, Any]]) -> list[Any]:
        """Files of these tensors, where the virtual machine finds them."""
        arena = Arena([nbytes(spec) for _, spec in weights])
        return [self._read(path, spec, arena.tensor) for path, spec in weights]

    def _read(self, path: Path, spec: Any, new: Callable[[Sequence[int], str], Any]) -> Any:
        """The tensor in a file, on this machine; ``new`` makes one of a shape and type that NumPy has."""
        import numpy as np

        dtype = _dtype(spec.dtype)
        if dtype.kind not in "fiub":
            tensor = self._empty(spec.shape, spec.dtype, self._cpu)
            tensor.copyfrom(np.fromfile(path, dtype).reshape(spec.shape))
            return tensor
        tensor = new(spec.shape, spec.dtype)
        # Straight into the tensor: what passes through the heap on its way stays there. By its address, because
        # NumPy before 2.1 (Debian's) lets nobody write to what it gets by DLPack.
        seen = np.from_dlpack(tensor)
        with path.open("rb", buffering=0) as file:
            file.readinto((ctypes.c_char * seen.nbytes).from_address(seen.ctypes.data))
        return tensor


def load_library(path: Path) -> Any:
    """Load a TVM library whatever its file is called (blobs have no suffix)."""
    import tvm_ffi

    load = tvm_ffi.get_global_func("ffi.Module.load_from_file.so")
    return load(str(path.resolve()), "")


def _dtype(name: str) -> Any:
    import numpy as np

    if name.startswith(("bfloat", "float8", "float4", "int4", "uint4")):
        import ml_dtypes

        return np.dtype(getattr(ml_dtypes, name))
    return np.dtype(name)
