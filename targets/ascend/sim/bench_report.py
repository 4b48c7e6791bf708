"""The summary of a measurement: lines for people, one JSON file for programs."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from targets.ascend.sim.bench_model import Times

logger = logging.getLogger("ais_bench")
_KEYS = ("min", "max", "mean", "median", "percentile(99%)")


def statistics(times: Sequence[float]) -> dict[str, float | int]:
    """The figures of a list of milliseconds; zeros for an empty one."""
    if not times:
        return {**dict.fromkeys(_KEYS, 0.0), "count": 0}
    values = [min(times), max(times), *(float(f) for f in (np.mean(times), np.median(times), np.percentile(times, 99)))]
    return {**dict(zip(_KEYS, values, strict=True)), "count": len(times)}


def throughput(batch: float, mean: float) -> float:
    """Samples per second for a batch that takes ``mean`` milliseconds."""
    return 1000 * batch / mean if mean else 0.0


def _line(what: str, figures: dict[str, float | int]) -> str:
    return f"{what} (ms): " + ", ".join(f"{key} = {figures[key]}" for key in _KEYS)


def show(times: Times, batch: float, *, copies: bool) -> float:
    """Print the summary; the throughput."""
    compute = statistics(times.compute)
    rate = throughput(batch, compute["mean"])
    logger.info("-" * 17 + "Performance Summary" + "-" * 18)
    if copies:
        logger.info(_line("H2D_latency", statistics(times.h2d)))
    logger.info(_line("NPU_compute_time", compute))
    if copies:
        logger.info(_line("D2H_latency", statistics(times.d2h)))
    logger.info(f"throughput 1000*batchsize.mean({batch})/NPU_compute_time.mean({compute['mean']}): {rate}")
    logger.info("-" * 54)
    return rate


def write(path: Path, files: dict[str, Any], arguments: list[str], times: Times, rate: float) -> None:
    """The JSON summary, one line, its keys in the real tool's order."""
    summary = {
        "filesinfo": files,
        "args": arguments,
        "NPU_compute_time": statistics(times.compute),
        "H2D_latency": statistics(times.h2d),
        "D2H_latency": statistics(times.d2h),
        "npu_compute_time_list": times.compute,
        "throughput": rate,
        "pid": os.getpid(),
    }
    path.write_text(json.dumps(summary))
    path.chmod(0o640)
