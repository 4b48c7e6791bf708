"""The zoo's copies of GluonCV's and MXNet's networks compute what the originals do, of the same weight files.

The originals run in an environment of their own, which ``make originals`` makes.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pytest
import torch

from controller import zoo
from controller.home import Home
from controller.zoo import draw, gluon, gluon_ssd, leaves
from targets import pt2_model
from targets.base import SourceModel
from targets.detection.compare import Cuts, compare

ROOT = Path(__file__).resolve().parents[2]
PYTHON = ROOT / ".originals" / "bin" / "python"
pytestmark = [
    pytest.mark.originals,
    pytest.mark.skipif(not PYTHON.exists(), reason="MXNet and GluonCV are not there: make originals"),
    pytest.mark.timeout(1200),
]

RTOL = 1e-4
PICTURES, BATCH = int(os.environ.get("PARITY_PICTURES", "20")), 4
MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
CUTS = Cuts(score=0.01, overlap=0.45, most=100)

Floats = npt.NDArray[np.float32]


class Original:
    """The process that has the originals; requests and answers as scripts/originals_gluon.py says."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._process = subprocess.Popen(
            [str(PYTHON), str(ROOT / "scripts" / "originals_gluon.py")],
            env={**os.environ, "OMP_NUM_THREADS": "2"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def ask(self, **request: Any) -> dict[str, Any]:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        assert "error" not in answer, answer
        return answer

    def run(self, images: Floats) -> dict[str, Floats]:
        inputs, outputs = self._folder / "inputs.npz", self._folder / "outputs.npz"
        np.savez(inputs, images=images)
        self.ask(do="run", inputs=str(inputs), outputs=str(outputs))
        with np.load(outputs) as found:
            return dict(found)

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Original]:
    process = Original(tmp_path_factory.mktemp("original"))
    yield process
    process.close()


class Found(NamedTuple):
    boxes: npt.NDArray[Any]
    scores: npt.NDArray[Any]
    labels: npt.NDArray[Any]
    masks: None = None


@cache
def _images(side: int, count: int) -> Floats:
    """Leaves, scenes and noise by turns, (count, 3, side, side), as a network takes them."""
    made = []
    for index in range(count):
        if index % 3 == 0:
            picture = leaves.picture(5, index, side)
        elif index % 3 == 1:
            picture = draw.scene(5, index, size=side, count=12).picture
        else:
            picture = np.random.RandomState(index).randint(0, 256, (side, side, 3), np.uint8)
        made.append(((picture / 255 - MEAN) / STD).transpose(2, 0, 1).astype(np.float32))
    return np.stack(made)


def _run(source: SourceModel, images: Floats) -> list[npt.NDArray[Any]]:
    with torch.no_grad():
        outputs = pt2_model.read(Path(source.path)).load().module()(torch.from_numpy(images))
    return [each.numpy() for each in (outputs if isinstance(outputs, (list, tuple)) else [outputs])]


@pytest.mark.parametrize("name", [*sorted(gluon.NETWORKS), "mobilenet1.0"])
def test_classifiers(name: str, original: Original, tmp_path: Path) -> None:
    paths = tmp_path / "net.params", tmp_path / "counted.params"
    original.ask(do="make", network=name, seed=3, params=str(paths[0]), counted=str(paths[1]))
    images = _images(224, 6)
    wanted = original.run(images)["logits"]
    assert wanted.std() > 1
    for path in paths:
        source = zoo.source(name, str(path), Home.find(tmp_path / "home"))
        (found,) = _run(source, images)
        assert np.abs(found - wanted).max() <= RTOL * np.abs(wanted).max()


@pytest.mark.parametrize("name", sorted(gluon_ssd.NETWORKS))
def test_detectors(name: str, original: Original, tmp_path: Path, record_property: Any) -> None:
    path = tmp_path / "net.params"
    classes = original.ask(do="make", network=name, seed=0, params=str(path))["classes"]
    home = Home.find(tmp_path / "home")
    source, raw = (zoo.source(one, str(path), home) for one in (name, f"{name}@raw"))
    assert source.preprocess and source.postprocess and source.postprocess.coordinates == "pixels"
    assert [label.replace(" ", "") for label in source.labels] == [label.replace(" ", "") for label in classes]
    matched = exact = excused = 0
    of_each_class: set[int] = set()
    for start in range(0, PICTURES, BATCH):
        images = _images(source.preprocess.size[0], PICTURES)[start : start + BATCH]
        wanted = original.run(images)
        if start == 0:
            for mine, theirs in zip(_run(raw, images), ("offsets", "class_logits"), strict=True):
                assert np.abs(mine - wanted[theirs]).max() <= RTOL * np.abs(wanted[theirs]).max()
        boxes, scores, labels, count = _run(source, images)
        for picture in range(len(images)):
            rows = int(count[picture])
            there = wanted["ids"][picture, :, 0] >= 0
            found = Found(boxes[picture, :rows], scores[picture, :rows], labels[picture, :rows])
            theirs = Found(
                *(wanted[key][picture][there] for key in ("boxes", "scores")), wanted["ids"][picture, there, 0]
            )
            theirs = theirs._replace(scores=theirs.scores[:, 0])
            compared = compare(found, theirs, RTOL, 1e-5, CUTS)
            assert compared.same, str(compared)
            matched, excused = matched + compared.matched, excused + compared.excused
            of_each_class |= set(found.labels.tolist())
            if rows == there.sum() and (found.labels == theirs.labels).all():
                # The same in the same order, number by number.
                close = np.abs(found.boxes - theirs.boxes).max() <= RTOL * source.preprocess.size[0]
                exact += bool(close and (np.abs(found.scores - theirs.scores) <= RTOL * theirs.scores).all())
    record_property("detections", {"matched": matched, "excused": excused, "pictures in the same order": exact})
    print(f"{name}: {matched} matched, {excused} on a threshold, {exact} of {PICTURES} pictures in the same order")
    assert matched > 80 * PICTURES and len(of_each_class) >= 3
    # Where two overlap by exactly the threshold, or two scores are equal, either is right: that is rare.
    assert excused <= matched // 50 and exact >= 0.7 * PICTURES
