"""The outer loop of a kernel: jobs for several threads, or one thread where waking the others would cost more."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from tvm.tirx.script.builder import ir as T

from targets.cpu.layout import ImageType

#: Bytes that one thread loads and stores in about ten microseconds.
SERIAL_BELOW = 256 * 1024
#: Rows of a picture from which on threads divide them.
ROWS = 14
#: With so many jobs, two to four threads have shares that differ by little.
JOBS = 32


def by_rows(y: ImageType) -> bool:
    """Whether threads divide a picture's rows; where they do not, they divide its channels.

    All kernels keep to it, so that a thread finds in its own cache what it wrote in the layer before. Small pictures
    have many channels, and weights that each thread should read a part of.
    """
    return y.shape[2] >= ROWS


def split_job(job: Any, y: ImageType, blocks: int, strips: int) -> tuple[Any, Any, Any]:
    """Picture, block of channels and strip of rows of a job, in the order in which threads divide ``y``."""
    if by_rows(y):
        return job // (strips * blocks), job % blocks, job // blocks % strips
    return job // strips % y.shape[0], job // (y.shape[0] * strips), job % strips


def jobs(count: int, touched: int) -> Any:
    """A loop over ``count`` equal jobs that together load and store so many bytes."""
    return T.parallel(0, count) if count > 1 and touched >= SERIAL_BELOW else T.serial(0, count)


def rows_per_job(y: ImageType, height: int, blocks: int) -> int:
    """How many of ``height`` rows one job takes: as many as divide them and leave :data:`JOBS` jobs, or one.

    The result ``y`` has so many blocks of channels. Where threads divide its rows there are two jobs of them at least.
    """
    others, most = y.shape[0] * blocks, height // 2 if by_rows(y) else height
    fitting = (rows for rows in range(most, 0, -1) if height % rows == 0 and others * (height // rows) >= JOBS)
    return next(fitting, 1)


def size_bytes(image: ImageType) -> int:
    """What a picture takes in memory."""
    return math.prod(image.physical) * np.dtype(image.dtype).itemsize
