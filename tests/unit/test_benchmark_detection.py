"""The detection benchmark: what it says of results that are given to it."""

from __future__ import annotations

from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from benchmarks import detection_cases as cases
from benchmarks import detection_peers
from benchmarks.cpu_engines import EngineError
from benchmarks.detection import _arguments
from benchmarks.detection_report import show
from targets.base import Postprocess, Preprocess, TensorSpec
from targets.bundle import ModelInfo

SIDE, ROWS = 32, 3


class Answers:
    """An engine's process that answers what it was made with."""

    def __init__(self, answer: Any) -> None:
        self._answer = answer

    def ask(self, what: str, *_arguments: Any) -> Any:
        assert what in ("infer", "detect")
        return self._answer


def found(shift: float = 0.0) -> dict[str, Any]:
    boxes = np.array([[1, 2, 11, 12], [4, 4, 30, 20], [0, 0, 5, 5]], np.float32) + shift
    masks = np.zeros((ROWS, SIDE, SIDE), np.float32)
    masks[:, 4:12, 4:12] = 0.9
    scores, labels = np.array([0.9, 0.8, 0.7], np.float32), np.array([3, 1, 3])
    return {"boxes": boxes, "scores": scores, "labels": labels, "masks": masks}


@pytest.fixture
def parity(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    specs = [("boxes", (1, 5, 4)), ("scores", (1, 5)), ("labels", (1, 5)), ("count", (1,)), ("masks", (1, 5, 40, 40))]

    class Manifest:
        model = ModelInfo("net", "", "", (), Preprocess((SIDE, SIDE)), Postprocess("detections", coordinates="pixels"))
        inputs = (TensorSpec("images", (1, 3, SIDE, SIDE), "float32"),)
        outputs = tuple(TensorSpec(name, shape, "float32") for name, shape in specs)

    monkeypatch.setattr("targets.bundle.parse_manifest", lambda _data: Manifest)
    np.savez(tmp_path / "given-0.npz", images=np.zeros((1, 3, SIDE, SIDE), np.float32))

    def compare(ours: dict[str, Any], ties: bool = False) -> dict[str, Any]:
        outputs = [np.zeros(spec.shape, np.float32) for spec in Manifest.outputs]
        for output, name in zip(outputs, ("boxes", "scores", "labels"), strict=False):
            output[0, :ROWS] = ours[name]
        outputs[3][0] = ROWS
        outputs[4][0, :ROWS, :SIDE, :SIDE] = np.floor(ours["masks"] * 256).clip(0, 255)
        theirs = found()
        masks = theirs["masks"] >= 0.5
        theirs |= {"masks": masks, "ties": np.zeros_like(masks)}
        theirs["ties"][:, 4, 4] = ties
        built = cases.Built(None, "", b"", (), 0.0, 0)  # type: ignore[arg-type]
        return cases.parity(Answers(outputs), Answers(theirs), built, 1, str(tmp_path / "given-0.npz"))  # type: ignore[arg-type]

    return compare


def test_the_same_is_the_same(parity: Any) -> None:
    result = parity(found())
    assert (result["same"], result["detections"], result["mask_iou"], result["notes"]) == (1, ROWS, 1.0, [])


def test_a_difference_is_counted_and_named(parity: Any) -> None:
    result = parity(found(shift=0.1))
    assert result["same"] == 0 and "picture 0: class 3" in result["notes"][0]


def test_a_pixel_of_a_mask_counts_unless_it_is_a_tie(parity: Any) -> None:
    ours = found()
    ours["masks"][0, 4, 4] = 0.49
    assert parity(ours)["mask_iou"] == pytest.approx(63 / 64)
    assert parity(ours, ties=True)["mask_iou"] == 1.0


def test_pictures_are_the_same_every_time_and_differ() -> None:
    pictures = [np.asarray(cases.picture(index, (48, 64))) for index in range(6)]
    assert all(one.shape == (48, 64, 3) for one in pictures)
    assert len({one.tobytes() for one in pictures}) == 6
    assert all((one == np.asarray(cases.picture(i, (48, 64)))).all() for i, one in enumerate(pictures))


def test_the_report_marks_what_misses() -> None:
    row = {"model": "ssd300_vgg16", "peer": "torchvision", "wanted": 0.8, "pictures": 20, "same": 19, "mask_iou": None}
    row |= {"worst": 1e-5, "ms": 90.0, "peer_ms": 100.0, "ratio": 0.9, "post": 0.02, "build_seconds": 30.0}
    row |= {"build_gb": 2.0, "other_load": 0.1, "detections": 1200, "notes": ["picture 3: differs"]}
    nms = {"words": "sure", "candidates": 10, "kept": 5, "ms": 0.5, "torch_ms": 20.0}
    text = StringIO()
    document = {"rows": [row], "nms": [nms], "machine": {"processor": "P", "threads": 2, "cores": 2}}
    show(document, Console(file=text, width=200))
    said = text.getvalue()
    assert "19 of 20" in said and "0.90! (0.80)" in said and "0.50 (3.00)" in said and "picture 3: differs" in said


def test_originals_that_are_not_there_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(detection_peers, "PYTHON", tmp_path / "none")
    with pytest.raises(EngineError, match="make originals"):
        detection_peers.Originals(tmp_path)


def test_numbers_below_one_are_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["detection", "--pictures", "0"])
    with pytest.raises(SystemExit):
        _arguments()
    assert "1 or more" in capsys.readouterr().err
