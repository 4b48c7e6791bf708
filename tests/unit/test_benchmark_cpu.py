"""The CPU benchmark's rows: which are made, what is worked out of the times, and what its tables say of them."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import cpu, cpu_report
from benchmarks.cpu_counts import Counts
from benchmarks.cpu_engines import EngineError, in_child
from benchmarks.cpu_models import WANTED, Case, Prepared, cases, make_inputs
from targets.base import SourceModel, TensorSpec


def test_all_wanted_figures_have_a_row() -> None:
    assert [(case.model, case.batch, case.dtype) for case in cases([], [], [])] == list(WANTED)
    assert all(case.wanted for case in cases([], [], []))


def test_rows_are_chosen_by_model_batch_and_dtype() -> None:
    assert [(case.batch, case.dtype) for case in cases(["resnet18"], [], [])] == [
        (1, "float32"),
        (8, "float32"),
        (1, "int8"),
    ]
    assert cases(["resnet18"], [1], ["int8"]) == [Case("resnet18", 1, "int8")]
    assert cases(["here/net.pt2"], [1, 4], []) == [
        Case("here/net.pt2", 1, "float32"),
        Case("here/net.pt2", 4, "float32"),
    ]
    assert (cases(["here/net.pt2"], [], [])[0].name, cases(["here/net.pt2"], [], [])[0].wanted) == ("net", None)


def test_every_process_makes_the_same_input() -> None:
    (one,), (other,) = (make_inputs([TensorSpec("x", (1, 3, 4, 4), "float32")]) for _ in range(2))
    assert one.dtype == np.float32 and np.array_equal(one, other)


class Answering:
    """In place of a process that has run a network."""

    def __init__(self, peak: int | None, outputs: list[Any]) -> None:
        self.facts = {"peak_bytes": peak}
        self.outputs = lambda: outputs


def prepared(counts: Counts | None) -> Prepared:
    source = SourceModel(name="net", format="pt2", path="", sha256="", origin="", inputs=(), outputs=())
    return Prepared(source, (), "net.onnx", "net.pt2", counts)


def row() -> dict[str, Any]:
    return {"notes": [], "peak_memory_ratio": None, "gflops": None, "ms": None, "max_relative_error": None}


def test_figures_are_of_the_medians() -> None:
    made = row()
    workers: Any = {
        "fleet": Answering(1500, [np.array([1.0, 2.01])]),
        "onnxruntime": Answering(None, [np.array([9.0, 9.0])]),
        "torch": Answering(None, [np.array([1.0, 2.0])]),
    }
    medians = {"fleet": 0.002, "onnxruntime": 0.004, "torch": 0.008}
    cpu.fill(made, medians, prepared(Counts(flop=10**9, weight_bytes=700, activation_bytes=300)), workers)
    assert (made["ms"], made["gflops"], made["peak_memory_ratio"]) == pytest.approx((2, 500, 1.5))
    assert (made["ratio_onnxruntime"], made["ratio_torch"]) == pytest.approx((0.5, 0.25))
    assert made["max_relative_error"] == pytest.approx(0.005)
    assert made["peers_ms"] == pytest.approx({"onnxruntime": 4, "torch": 8})


def test_without_this_project_only_peers_have_figures() -> None:
    made = row()
    cpu.fill(made, {"torch": 0.001}, prepared(None), {})
    assert made["ms"] is None and made["peers_ms"] == {"torch": 1}


def test_a_result_that_is_no_number_is_as_wrong_as_can_be() -> None:
    assert cpu.relative_error([np.array([np.nan])], [np.array([1.0])]) == float("inf")
    assert cpu.relative_error([np.array([-2.0])], [np.array([-4.0])]) == 0.5
    with pytest.raises(EngineError, match="shape"):
        cpu.relative_error([np.zeros((1, 2))], [np.zeros((2, 1))])


class Turning:
    """In place of a worker whose every query takes ``seconds``, and which breaks after some turns."""

    def __init__(self, name: str, seconds: float, log: list[str], turns: int = 99) -> None:
        self.name, self.seconds, self.log, self.turns = name, seconds, log, turns

    def run(self, queries: int, warm_up: int = 0) -> list[float]:
        self.log.append(self.name)
        self.turns -= 1
        if self.turns < 0:
            raise EngineError("broke")
        return [self.seconds] * queries

    def cpu_seconds(self) -> float:
        return 0.0


def test_engines_take_turns_and_a_broken_one_leaves() -> None:
    log: list[str] = []
    notes: list[str] = []
    workers: Any = {
        "fleet": Turning("fleet", 0.01, log),
        "torch": Turning("torch", 0.02, log),
        "onnxruntime": Turning("onnxruntime", 1.0, log, turns=2),
    }
    times, load = cpu.take_turns(workers, rounds=3, seconds=0.1, notes=notes)
    assert {name: len(found) for name, found in times.items()} == {"fleet": 30, "torch": 15}
    assert load is not None and notes == ["onnxruntime: broke"]
    assert [sorted(log[start : start + 3]) for start in (0, 3, 6)] == [sorted(workers)] * 3
    assert sorted(log[9:]) == ["fleet", "torch"]


def test_what_a_child_raises_or_dies_of_is_an_error_here(tmp_path: Path) -> None:
    assert in_child(divmod, (7, 2), tmp_path / "log") == (3, 1)
    with pytest.raises(EngineError, match="ZeroDivisionError"):
        in_child(divmod, (7, 0), tmp_path / "log")
    with pytest.raises(EngineError, match="without a word"):
        in_child(exit, (3,), tmp_path / "log")


def shown(document: dict[str, Any]) -> str:
    from rich.console import Console

    console = Console(width=cpu_report.WIDTH, record=True, file=io.StringIO())
    cpu_report.show(document, console)
    return console.export_text()


def test_wanted_stands_beside_measured_and_misses_are_marked() -> None:
    good = {
        **{"model": "resnet50", "batch": 1, "dtype": "float32", "ms": 20.0, "gflops": 400.0, "wanted": 0.8},
        **{"ratio_onnxruntime": 0.71, "ratio_torch": 0.4, "ratio_torch_compile": 0.5, "build_seconds": 61.0},
        **{"peak_memory_ratio": 1.1, "max_relative_error": 2e-4, "other_load": 0.0, "notes": []},
        "peers_ms": {"onnxruntime": 28.1},
    }
    bad = {**dict.fromkeys(good), "model": "net", "batch": 8, "dtype": "int8", "peers_ms": {}, "notes": ["[/x] no"]}
    arm = {
        **{"processor": "cortex-a9", "kernel": "GEMM", "fma": 8, "instructions": 20, "cycles": 9.0},
        **{"flop_per_cycle": 3.5, "utilisation": 0.8, "wanted": 0.85, "note": ""},
    }
    machine = {"processor": "P", "threads": 2, "cores": 2, "versions": {"torch": "2"}}
    text = shown({"rows": [good, bad], "arm": [arm], "machine": machine})
    assert "0.71 (0.80)" in text and "61! (60)" in text and "80%! (85%)" in text
    assert "net, batch 8, int8: [/x] no" in text
