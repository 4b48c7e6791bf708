"""Memory for tensors that stay as long as a model does: one piece, in large pages where the system has some.

Weights are read from beginning to end for every query. In pages of 4 KiB a processor looks up a thousand addresses for
every 4 MB of them, and its prefetcher stops at each.
"""

from __future__ import annotations

import contextlib
import math
import mmap
from collections.abc import Sequence
from typing import Any

#: What a large page is aligned to, on x86-64 and on ARM with pages of 4 KiB.
LARGE = 2 * 2**20
#: What TVM expects of a tensor's first byte; a cache line.
ALIGNMENT = 64


class Arena:
    """Room for tensors of a known size together; it is given back when the last of them goes."""

    def __init__(self, sizes: Sequence[int]) -> None:
        """``sizes`` are the tensors' bytes, in any order."""
        import numpy as np

        room = max(1, sum(map(_aligned, sizes)))
        # Of what lies before the first large page nothing is touched, so it takes no memory.
        memory = mmap.mmap(-1, room + LARGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        bytes_ = np.frombuffer(memory, np.uint8)
        start = -bytes_.ctypes.data % LARGE
        # The last large page would be more than there is to hold.
        if hasattr(mmap, "MADV_HUGEPAGE") and room >= LARGE:
            # A kernel that is built without large pages says so.
            with contextlib.suppress(OSError):
                memory.madvise(mmap.MADV_HUGEPAGE, start, room // LARGE * LARGE)
        self._free = bytes_[start : start + room]

    def tensor(self, shape: Sequence[int], dtype: str) -> Any:
        """A ``tvm.runtime.Tensor`` of zeros. Raises ValueError where no room was asked for it."""
        import numpy as np
        import tvm

        of = np.dtype(dtype)
        size = math.prod(shape) * of.itemsize
        if _aligned(size) > len(self._free):
            raise ValueError(f"no room for {dtype} {list(shape)}")
        taken, self._free = self._free[:size], self._free[_aligned(size) :]
        return tvm.runtime.from_dlpack(taken.view(of).reshape(shape))


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
