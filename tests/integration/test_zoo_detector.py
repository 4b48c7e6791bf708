"""The committed detector finds boxes on every target, in both forms, and integers cost it next to nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from build_fixtures import home_with_tools

from controller import zoo
from controller.build import BuildRequest, build
from controller.home import Home
from controller.zoo import card, draw, evaluate
from targets.base import Option

pytestmark = pytest.mark.slow

#: Neither what the network was trained on, nor what its card was measured with, nor what it is calibrated on.
UNSEEN = 1009
COUNT = 120


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    # The same for every test that links, and every worker: making it takes seconds.
    zig = tmp_path_factory.getbasetemp().parent / "fleet-test-zig"
    return home_with_tools(tmp_path_factory.mktemp("home"), zig)


@cache
def _truth() -> dict[str, Any]:
    return draw.coco_annotations(list(draw.scenes(UNSEEN, COUNT)), [f"{number}.png" for number in range(COUNT)])


@cache
def _in_float() -> float:
    """mAP of the committed file by ONNX Runtime."""
    found = card.read(card.FOLDER / "shapes-ssd.json")
    path = card.FOLDER / found.file
    return evaluate.mean_average_precision(path, found.preprocess, found.postprocess, UNSEEN, COUNT)


@pytest.mark.parametrize(
    ("name", "target", "options", "loses"),
    [
        ("shapes-ssd", "x86", {}, 0.0005),
        ("shapes-ssd@boxes", "x86", {"mcpu": "x86-64-v2", "batch": 2}, 0.0005),
        ("shapes-ssd", "x86", {"precision": "int8"}, 0.02),
        ("shapes-ssd@boxes", "x86", {"precision": "int8"}, 0.02),
        ("shapes-ssd", "vta-sim", {}, 0.02),
        ("shapes-ssd@boxes", "vta-sim", {}, 0.02),
    ],
)
def test_the_detector_keeps_its_map(
    name: str, target: str, options: dict[str, Option], loses: float, home: Home, tmp_path: Path
) -> None:
    source = zoo.source(name, "", home)
    (built,) = build([BuildRequest(source, target, options)], home=home)
    assert built.error is None, built.error
    (tmp_path / "manifest.json").write_bytes(built.manifest_bytes)
    script = Path(__file__).with_name("run_detector.py")
    arguments = [home.cache, tmp_path / "manifest.json", UNSEEN, COUNT, tmp_path / "results.json"]
    done = subprocess.run([sys.executable, script, *map(str, arguments)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    reached = evaluate.coco_map(_truth(), json.loads((tmp_path / "results.json").read_text()))
    assert _in_float() > 0.9
    assert reached >= _in_float() - loses


@pytest.mark.parametrize("target", ["arm64", "armv7", "pynq"])
def test_boards_that_are_not_here_get_it_in_both_forms(target: str, home: Home) -> None:
    for name, outputs in (
        ("shapes-ssd", ("locations", "logits")),
        ("shapes-ssd@boxes", ("boxes", "scores", "labels", "count")),
    ):
        (built,) = build([BuildRequest(zoo.source(name, "", home), target, {})], home=home)
        assert built.error is None, built.error
        assert built.manifest is not None
        assert tuple(spec.name for spec in built.manifest.outputs) == outputs
