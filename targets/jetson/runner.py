"""One loaded program of torch in the board's Python, as the agent sees it."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from targets.jetson.board_python import BoardError, BoardPython

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from targets.base import Array
    from targets.bundle import Manifest


class TorchRunner:
    """A :class:`targets.base.Runner`, and `Counting`, `HostTimed` and `Awake` of that module.

    Latencies are of the host's clock, from a call until the GPU is done, inputs and results staying on the GPU. The
    counter ``gpu_ms`` is the median of the same queries by CUDA's own events; without a GPU there is none.
    """

    def __init__(
        self,
        manifest: Manifest,
        helper: BoardPython,
        conditions: dict[str, str],
        closed: Callable[[], None],
        sensed: Callable[[], dict[str, str]],
    ) -> None:
        self.awake = False
        self.engine = manifest.requirements.accelerator
        self._inputs = manifest.inputs
        self._outputs = manifest.outputs
        self._helper = helper
        self._conditions = conditions
        self._sensed = sensed
        self._closed = closed
        self._gpu_ms = 0.0

    def infer(self, inputs: Sequence[Array]) -> list[Array]:
        import numpy as np

        if len(inputs) != len(self._inputs):
            raise ValueError(f"the model takes {len(self._inputs)} inputs, {len(inputs)} were given")
        for array, spec in zip(inputs, self._inputs, strict=True):
            if tuple(array.shape) != spec.shape or array.dtype.name != spec.dtype:
                raise ValueError(
                    f"input '{spec.name}' is {spec.dtype} {list(spec.shape)}, not {array.dtype} {list(array.shape)}"
                )
        answer = self._helper.infer([np.ascontiguousarray(array).tobytes() for array in inputs])
        results, at = [], 0
        for spec in self._outputs:
            dtype = _dtype(spec.dtype)
            count = math.prod(spec.shape)
            if at + count * dtype.itemsize > len(answer):
                raise BoardError("the board's Python gave fewer results than the model has", code="bad-results")
            results.append(np.frombuffer(answer, dtype, count, at).reshape(spec.shape))
            at += count * dtype.itemsize
        if at != len(answer):
            raise BoardError("the board's Python gave more results than the model has", code="bad-results")
        return results

    def measure(self, queries: int) -> npt.NDArray[np.float64]:
        import numpy as np

        taken = np.frombuffer(self._helper.measure(queries, awake=self.awake), np.float64)
        if len(taken) not in (queries, 2 * queries):
            raise BoardError(f"the board's Python gave {len(taken)} times for {queries} queries", code="bad-samples")
        if len(taken) > queries:
            self._gpu_ms = float(np.median(taken[queries:])) * 1e3
        latencies: npt.NDArray[np.float64] = taken[:queries].copy()
        return latencies

    def measure_on_host(self, queries: int) -> npt.NDArray[np.float64]:
        return self.measure(queries)

    def run_together(self, queries: int) -> float:
        (seconds,) = struct.unpack("<d", self._helper.together(queries, awake=self.awake))
        return float(seconds)

    def counters(self) -> dict[str, int | float]:
        return {"gpu_ms": self._gpu_ms} if self._gpu_ms else {}

    def conditions(self) -> dict[str, str]:
        return {**self._sensed(), **self._conditions}

    def close(self) -> None:
        self._helper.end()
        self._closed()


def _dtype(name: str) -> np.dtype[Any]:
    import numpy as np

    try:
        return np.dtype(name)
    except TypeError:
        import ml_dtypes

        extended: np.dtype[Any] = np.dtype(getattr(ml_dtypes, name))
        return extended
