"""The CPU benchmark on a network of a few layers: every engine runs it, and the document says what it must."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

torch = pytest.importorskip("torch")
pytest.importorskip("onnxruntime")
pytest.importorskip("tvm")

ROOT = Path(__file__).resolve().parents[2]


def test_every_engine_runs_a_small_network(tmp_path: Path) -> None:
    from torch import nn

    network = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(16 * 256, 10)).eval()
    program = torch.export.export(
        network, (torch.zeros(2, 3, 16, 16),), dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=64)},)
    )
    path = tmp_path / "small.pt2"
    torch.export.save(program, str(path))
    done = subprocess.run(
        [
            *(sys.executable, "-m", "benchmarks.cpu", "--model", str(path), "--batch", "2"),
            *("--threads", "1", "--quick", "--no-arm", "--json"),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr + done.stdout
    (row,) = json.loads(done.stdout)["rows"]
    peers = {"onnxruntime", "torch", "torch_compile"}
    broken = {note.partition(":")[0] for note in row["notes"]} & peers
    # Inductor needs a C++ compiler; where there is none its row says so.
    assert broken <= {"torch_compile"}
    assert {*row["peers_ms"]} == peers - broken
    for peer in peers - broken:
        assert row[f"ratio_{peer}"] == pytest.approx(row["ms"] / row["peers_ms"][peer])
    assert (row["model"], row["batch"], row["dtype"], row["wanted"]) == ("small", 2, "float32", None)
    assert row["gflops"] == pytest.approx(2 * 2 * (16 * 256 * 27 + 4096 * 10) / row["ms"] / 1e6)
    assert row["max_relative_error"] < 1e-4
    assert row["build_seconds"] > 0
    # The peak holds at least the weights; a process has some of its own besides, which a small network does not hide.
    assert row["peak_memory_ratio"] > 1
