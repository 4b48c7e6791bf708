"""Torch as it is: every operator is called from Python."""

from __future__ import annotations

from typing import Any

from targets.jetson.engines import Work, layer_dtypes, weight_dtypes, wrapped


def available() -> str:
    """Why this engine is not there; empty when it is."""
    return ""


def halves() -> bool:
    return True


def build(work: Work) -> dict[str, str]:
    """Nothing has to be kept."""
    return {}


def load(work: Work) -> tuple[Any, dict[str, str]]:
    module = wrapped(work)
    return module, {"weight_dtype": weight_dtypes(module), "layer_dtypes": layer_dtypes(module, work.examples)}
