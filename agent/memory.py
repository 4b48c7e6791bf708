"""What the C library keeps of the agent's memory, where it can be told (glibc): a small board needs the rest."""

from __future__ import annotations

import contextlib
import ctypes

# From malloc.h.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -2, -3, -8


def prepare() -> None:
    """To be called before there are threads.

    All threads share one heap: glibc makes up to eight a core, and each keeps what its thread once needed. And memory
    is not given back between two chunks of a push: mapping and clearing it anew costs as much as the rest of their way.
    """
    settings = {
        _M_ARENA_MAX: 1,
        # The largest that glibc takes.
        _M_MMAP_THRESHOLD: 32 << 20,
        _M_TOP_PAD: 16 << 20,
        _M_TRIM_THRESHOLD: 256 << 20,
    }
    with contextlib.suppress(AttributeError, OSError):
        library = ctypes.CDLL(None)
        for name, value in settings.items():
            library.mallopt(name, value)


def trim() -> None:
    """Give what a push or a run took back to the system."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)
