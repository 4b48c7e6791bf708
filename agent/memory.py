"""What the C library keeps of the agent's memory, where it can be told (glibc): a small board needs the rest."""

from __future__ import annotations

import contextlib
import ctypes

#: From malloc.h.
_M_ARENA_MAX = -8
#: glibc makes up to eight heaps a core, one per thread; each keeps what its thread once needed.
_ARENAS = 1


def share_heaps() -> None:
    """Let all threads share one heap. To be called before there are threads; they allocate little and wait less."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, _ARENAS)


def trim() -> None:
    """Give what a large run took back to the system."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)
