"""Waiting without rest: between the blocks of a measurement the processor that computes must not go to sleep.

A core that rests for half a millisecond is slower for the next 0.1 to 0.4 s (measured: ResNet-18 in torch on a core of
a Xeon, 55 ms instead of 42): its clock has sunk, on boards by the governor and on servers by the core itself. Whoever
writes a loop by hand has no such pauses, so neither has a bench.

Also runs in the board's own Python, 3.8 or newer.
"""

from __future__ import annotations

import os
import select
import time

#: Seconds: a sensor that is read between two blocks takes less.
LONGEST = 0.25


def wait_awake(descriptor: int, seconds: float = LONGEST) -> bool:
    """Whether there is something to read, which is waited for with the processor busy, for at most so long.

    Returns at once where this process has one processor: what is waited for needs that, too.
    """
    waiting = select.poll()
    waiting.register(descriptor, select.POLLIN)
    end = time.monotonic() + (seconds if len(os.sched_getaffinity(0)) > 1 else 0.0)
    while not waiting.poll(0):
        if time.monotonic() >= end:
            return False
    return True
