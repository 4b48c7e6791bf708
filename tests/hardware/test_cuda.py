"""Networks on the GPU of this machine, over agents: built for a processor, then for the GPU; same picture, same answer.

Every deployment proves itself: its results are held against the framework's on golden inputs before it is active.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pytest
from cli_fixtures import Cli

from controller import zoo
from targets.cuda.device import here
from targets.cuda.gpu import find
from targets.detection.compare import Cuts, compare

pytestmark = pytest.mark.hardware

#: Networks and their weights.
CLASSIFIERS = {"shapes-classifier": "", "resnet18": "random:0"}
DETECTORS = {"shapes-ssd@boxes": "", "ssd_512_resnet50_v1_voc": "random:0", "maskrcnn_resnet50_fpn@300": "random:0"}
#: By how much scores may differ between a processor and the GPU, and boxes in pixels.
TOLERANCE = 1e-3
#: Boxes that score less are left out; random weights score all alike, and low.
THRESHOLD = "0.02"


class Found(NamedTuple):
    """A :class:`targets.detection.compare.Rows`."""

    boxes: npt.NDArray[Any]
    scores: npt.NDArray[Any]
    labels: npt.NDArray[Any]
    masks: None = None


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cli]:
    """Two agents on this machine: sim-1 runs on its processor, sim-2 on its GPU."""
    if lacking := here():
        pytest.skip(lacking)
    cli = Cli(tmp_path_factory.mktemp("fleet") / "home")
    cli.home.mkdir()
    for count, target in ((1, "x86"), (1, "cuda")):
        started = cli("sim", "up", "--count", str(count), "--target", target, "--json")
        assert started.code == 0, started.err
    yield cli
    cli("sim", "down", "--json")


@pytest.fixture
def picture(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path]:
    name: str = request.param
    path = tmp_path / "picture.png"
    (drawn,) = zoo.samples(name.partition("@")[0], 1, seed=7)
    drawn.save(path)
    return name, path


def _answers(fleet: Cli, name: str, weights: str, path: Path) -> list[dict[str, Any]]:
    """What processor and GPU say of one picture."""
    found = []
    for device, options in (("sim-1", ()), ("sim-2", ("--option", f"arch=sm_{find().capability}"))):
        chosen = ("--weights", weights) if weights else ()
        deployed = fleet("deploy", name, *chosen, *options, "--device", device, "--json", deadline=900)
        assert deployed.code == 0, deployed.out + deployed.err
        answered = fleet("run", name, path, "--threshold", THRESHOLD, "--device", device, "--json")
        assert answered.code == 0, answered.out + answered.err
        (answer,) = answered.document["results"]
        assert not answer["error"] and answer["device"] == device
        found.append(answer)
    return found


@pytest.mark.parametrize("picture", list(CLASSIFIERS), indirect=True)
def test_same_picture_same_classes(fleet: Cli, picture: tuple[str, Path]) -> None:
    name, path = picture
    one, other = _answers(fleet, name, CLASSIFIERS[name], path)
    assert [top["label"] for top in one["top"]] == [top["label"] for top in other["top"]]
    for ours, theirs in zip(one["top"], other["top"], strict=True):
        assert ours["score"] == pytest.approx(theirs["score"], abs=TOLERANCE)


@pytest.mark.parametrize("picture", list(DETECTORS), indirect=True)
def test_same_picture_same_boxes(fleet: Cli, picture: tuple[str, Path]) -> None:
    name, path = picture
    one, other = (_found(answer) for answer in _answers(fleet, name, DETECTORS[name], path))
    comparison = compare(other, one, TOLERANCE, TOLERANCE, Cuts(score=float(THRESHOLD)))
    assert comparison.same, str(comparison)
    assert comparison.matched, "nothing was found that could differ"


def _found(answer: dict[str, Any]) -> Found:
    boxes = answer["boxes"]
    return Found(
        np.array([box["xyxy"] for box in boxes], np.float32).reshape(-1, 4),
        np.array([box["score"] for box in boxes], np.float32),
        np.array([_number(box["label"]) for box in boxes], np.int64),
    )


def _number(label: str) -> int:
    """The same number for the same label, in both answers."""
    return int.from_bytes(label.encode()[:7], "big")
