"""What the Jetson benchmark makes of a comparison."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.jetson import ASKED, verdict
from controller.reports import EngineComparison, EngineReport


def one(engine: str, precision: str, speed_up: float | None, dtype: str, **other: Any) -> EngineReport:
    run = other.pop("run", f"{engine}-{precision}")
    return EngineReport(engine=engine, precision=precision, run=run, speed_up=speed_up, weight_dtype=dtype, **other)


def comparison(*engines: EngineReport) -> EngineComparison:
    return EngineComparison(
        device="board",
        target="jetson",
        simulated=True,
        model="net",
        batch=128,
        protocol="notebook",
        engines=list(engines),
    )


def test_what_was_asked_is_what_was_published() -> None:
    assert pytest.approx(3.62, abs=0.005) == ASKED


def test_the_best_is_one_that_really_computes_in_halves_and_is_right() -> None:
    found = verdict(
        comparison(
            one("eager", "fp32", 1.0, "float32", baseline=True),
            # Asked for halves, and did not get them.
            one("torchscript", "fp16", 9.0, "float32"),
            # Quick, and wrong.
            one("eager", "fp16", None, "float16", reason="golden check: off"),
            one("inductor", "fp16", 4.0, "float16"),
            one("torch-tensorrt", "fp16", None, "", run="", reason="TensorRT is not installed"),
        ),
        on_gpu=True,
    )
    assert (found["best"], found["speed_up"], found["good"]) == ("inductor fp16", 4.0, True)
    assert found["absent"] == {"torch-tensorrt fp16": "TensorRT is not installed"}
    assert found["wrong"] == {"eager fp16": "golden check: off"}


def test_too_slow_is_not_good_and_a_processor_is_asked_for_nothing() -> None:
    rows = comparison(one("eager", "fp32", 1.0, "float32"), one("inductor", "fp16", 3.0, "float16"))
    assert not verdict(rows, on_gpu=True)["good"]
    assert verdict(rows, on_gpu=False)["asked"] is None
    assert verdict(comparison(one("eager", "fp32", 1.0, "float32")), on_gpu=True)["best"] == ""
