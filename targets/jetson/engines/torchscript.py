"""TorchScript: the module traced and frozen, run by torch's interpreter without Python."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from targets.jetson.engines import Work, layer_dtypes, weight_dtypes, wrapped

_FILE = "module.ts"


def available() -> str:
    """Why this engine is not there; empty when it is."""
    return ""


def halves() -> bool:
    return True


def build(work: Work) -> dict[str, str]:
    module = wrapped(work).eval()
    dtypes = weight_dtypes(module)
    work.tell("trace")
    with torch.no_grad():
        # A check runs the network twice more, and compares what autocast and atomics may round differently.
        traced = torch.jit.trace(module, work.examples, check_trace=False)
        frozen = torch.jit.freeze(traced.eval())
    torch.jit.save(frozen, str(Path(work.folder, _FILE)))
    return {"weight_dtype": dtypes, "layer_dtypes": layer_dtypes(frozen, work.examples)}


def load(work: Work) -> tuple[Any, dict[str, str]]:
    return torch.jit.load(str(Path(work.folder, _FILE)), map_location=work.device), {}
