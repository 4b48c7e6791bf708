"""`fleet run` on folders of frames and on a detector with masks: what is told, what is drawn, what is refused."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from cli_fixtures import Cli, boards
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from torchvision.models.detection.roi_heads import paste_masks_in_image

from controller.zoo import draw
from targets.pictures.found import Mask
from targets.pictures.masks import decode

MOST = 4


@pytest.fixture(scope="module")
def cli(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cli]:
    """One board with a trained detector that takes three pictures at once, and one of known answers in another slot."""
    for cli in boards(tmp_path_factory.mktemp("pictures") / "home", 1):
        _halves(cli.cwd / "halves.onnx")
        rules = {
            "file": str(cli.cwd / "halves.onnx"),
            "preprocess": {"size": [60, 60], "resize": "fit", "filter": "bilinear", "canvas": [64, 64]},
            "postprocess": {"kind": "detections", "coordinates": "pixels", "iou_threshold": 0.9},
            "labels": ["left", "upper", "whole"],
        }
        (cli.cwd / "fleet.yaml").write_text(json.dumps({"models": {"halves": rules}}))
        for model, options in (("shapes-ssd", ("--option", "batch=3")), ("halves", ("--slot", "other"))):
            (deployed,) = cli.good("deploy", model, "--all", *options)["results"]
            assert deployed["status"] == "active", deployed["reason"]
        yield cli


@pytest.fixture(scope="module")
def frames(cli: Cli) -> Path:
    """Eleven frames of as many sizes and formats as there are, and one that is broken."""
    folder = cli.cwd / "frames"
    folder.mkdir()
    for number, scene in enumerate(draw.scenes(5, 11), 1):
        Image.fromarray(scene.picture).resize((200 + number, 300)).save(
            folder / f"f{number}.{'jpg' if number % 2 else 'png'}"
        )
    (folder / "f5.jpg").write_bytes((folder / "f5.jpg").read_bytes()[:700])
    return folder


def _halves(path: Path) -> None:
    """A detector that finds the left half, the upper half and the whole of a picture, from the size that it is told."""
    shares = np.array([[0, 0, 0.5, 1], [0, 0, 1, 0.5], [0, 0, 1, 1], [0, 0, 0, 0]], np.float32)[None]
    known = {
        "shares": shares,
        "twice": np.array([1, 0, 1, 0]),
        "corners": np.array([1, 1, 4]),
        "fixed_scores": np.array([[0.9, 0.6, 0.2, 0]], np.float32),
        "fixed_labels": np.array([[0, 1, 2, 0]]),
        "fixed_count": np.array([3], np.int32),
        "fixed_masks": _masks(),
        "nothing": np.zeros((1, 1), np.float32),
    }
    nodes = [
        # Height and width → x0, y0, x1, y1.
        helper.make_node("Gather", ["sizes", "twice"], ["edges"], axis=1),
        helper.make_node("Reshape", ["edges", "corners"], ["limits"]),
        helper.make_node("Mul", ["limits", "shares"], ["boxes"]),
        # Of each input something must come, or it would not be one.
        helper.make_node("ReduceMean", ["images"], ["mean"], axes=[1, 2, 3], keepdims=0),
        helper.make_node("Mul", ["mean", "nothing"], ["zero"]),
        helper.make_node("Add", ["zero", "fixed_scores"], ["scores"]),
        helper.make_node("Cast", ["zero"], ["zero_label"], to=TensorProto.INT64),
        helper.make_node("Add", ["zero_label", "fixed_labels"], ["labels"]),
        helper.make_node("Cast", ["mean_zero"], ["zero_count"], to=TensorProto.INT32),
        helper.make_node("Add", ["zero_count", "fixed_count"], ["count"]),
        helper.make_node("Reshape", ["zero", "ones"], ["zero_mask"]),
        helper.make_node("Add", ["zero_mask", "fixed_masks"], ["masks"]),
    ]
    known |= {"ones": np.array([1, 1, 1, 1]), "one": np.array([1])}
    nodes.insert(5, helper.make_node("Reshape", ["zero", "one"], ["mean_zero"]))
    graph = helper.make_graph(
        nodes,
        "halves",
        [
            helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, 64, 64]),
            helper.make_tensor_value_info("sizes", TensorProto.FLOAT, [1, 2]),
        ],
        [
            helper.make_tensor_value_info("boxes", TensorProto.FLOAT, [1, MOST, 4]),
            helper.make_tensor_value_info("scores", TensorProto.FLOAT, [1, MOST]),
            helper.make_tensor_value_info("labels", TensorProto.INT64, [1, MOST]),
            helper.make_tensor_value_info("count", TensorProto.INT32, [1]),
            helper.make_tensor_value_info("masks", TensorProto.FLOAT, [1, MOST, 28, 28]),
        ],
        [numpy_helper.from_array(value, name) for name, value in known.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, path)


def _masks() -> np.ndarray:
    """The third is of the upper half of its box."""
    masks = np.zeros((1, MOST, 28, 28), np.float32)
    masks[:, :3] = 1
    masks[:, 2, 14:] = 0
    return masks


def test_every_frame_of_a_folder_is_answered_in_order_and_drawn(cli: Cli, frames: Path) -> None:
    called = cli("run", "shapes-ssd", frames, "-o", "drawn", "--json")
    assert called.code == 1, "one frame is broken"
    results = called.document["results"]
    names = [Path(answer["image"]).name for answer in results]
    assert names == [f"f{number}.{'jpg' if number % 2 else 'png'}" for number in range(1, 12)]
    assert "of 11 pictures" in called.err, "progress"
    for number, answer in enumerate(results, 1):
        if number == 5:
            assert "damaged" in answer["error"] and not answer["output"]
            continue
        assert not answer["error"] and answer["seconds"] > 0
        assert all(0 <= x0 < x1 <= 200 + number and 0 <= y0 < y1 <= 300 for x0, y0, x1, y1 in _corners(answer))
        with Image.open(cli.cwd / answer["output"]) as drawn:
            assert drawn.size == (200 + number, 300)
    assert sorted(path.name for path in (cli.cwd / "drawn").iterdir()) == sorted(set(names) - {"f5.jpg"})
    # A picture's answer does not depend on the batch that it is in.
    (alone,) = cli.good("run", "shapes-ssd", frames / "f8.png")["results"]
    assert alone["boxes"]
    for box, other in zip(alone["boxes"], results[7]["boxes"], strict=True):
        assert box["label"] == other["label"]
        np.testing.assert_allclose(box["xyxy"], other["xyxy"], atol=0.01)
    lines = cli("run", "shapes-ssd", frames)
    assert lines.code == 1 and sum(line.startswith(str(frames)) for line in lines.out.splitlines()) == 11


def _corners(answer: dict[str, Any]) -> list[list[float]]:
    return [box["xyxy"] for box in answer["boxes"]]


@pytest.mark.parametrize("size", [(300, 200), (31, 500)])
def test_boxes_and_masks_are_in_the_original_pictures_pixels(cli: Cli, size: tuple[int, int]) -> None:
    width, height = size
    path = cli.cwd / f"{width}.png"
    Image.new("RGB", size, (40, 90, 200)).save(path)
    command = ("run", "halves", path, "--slot", "other")
    (answer,) = cli.good(*command, "--threshold", "0.1", "-o", "halves.png")["results"]
    left, upper, whole = answer["boxes"]
    assert [box["label"] for box in answer["boxes"]] == ["left", "upper", "whole"]
    np.testing.assert_allclose(left["xyxy"], (0, 0, width / 2, height), rtol=1e-6)
    np.testing.assert_allclose(upper["xyxy"], (0, 0, width, height / 2), rtol=1e-6)
    np.testing.assert_allclose(whole["xyxy"], (0, 0, width, height), rtol=1e-6)
    covered = [decode(Mask(**box["mask"])) for box in answer["boxes"]]
    assert all(mask.shape == (height, width) for mask in covered)
    boxes = torch.tensor([box["xyxy"] for box in answer["boxes"]])
    theirs = paste_masks_in_image(torch.from_numpy(_masks()[0, :3, None]), boxes, (height, width))[:, 0].numpy()
    assert np.array_equal(np.stack(covered), theirs > 0.5)
    with Image.open(cli.cwd / "halves.png") as drawn:
        assert drawn.size == size and np.ptp(np.asarray(drawn), axis=(0, 1)).min() > 60
    (fewer,) = cli.good(*command)["results"]
    assert [box["label"] for box in fewer["boxes"]] == ["left", "upper"] and fewer["left_out"] == 1
    (one,) = cli.good(*command, "--top", "1")["results"]
    assert [box["label"] for box in one["boxes"]] == ["left"] and one["left_out"] == 2
    text = cli(*command)
    assert "mask pixels" in text.out and "1 more score less" in text.out


def test_names_of_files_may_have_any_characters(cli: Cli) -> None:
    names = ["-o.png", "a b'\";$(x).png", "é\n\x1b[31m.png", os.fsdecode(b"\xff.png")]
    folder = cli.cwd / "odd"
    folder.mkdir()
    for name in names:
        Image.new("RGB", (20, 20)).save(folder / name)
    results = cli.good("run", "shapes-ssd", folder, "-o", "odd drawn")["results"]
    assert len(results) == len(names) and not any(answer["error"] for answer in results)
    assert {path.name for path in (cli.cwd / "odd drawn").iterdir()} == set(names)
    text = cli("run", "shapes-ssd", folder)
    assert text.code == 0 and "\x1b" not in text.out and len(text.out.splitlines()) >= len(names)


def test_what_cannot_be_is_refused_before_a_board_is_asked(cli: Cli, frames: Path) -> None:
    before = {path: path.read_bytes() for path in frames.iterdir()}
    (cli.cwd / "empty").mkdir()
    for arguments, code, words in (
        ((frames, "-o", frames), "usage", "written over"),
        ((frames / "f1.jpg", "-o", frames / "f1.jpg"), "usage", "written over"),
        ((frames / "f1.jpg", "-o", "out.xyz"), "usage", "suffix"),
        ((frames / "f5.jpg",), "bad-picture", "damaged"),
        ((cli.cwd / "empty",), "bad-picture", "no pictures"),
    ):
        called = cli("run", "shapes-ssd", *arguments, "--json")
        assert (called.code, called.error["code"]) == (2, code)
        assert words in called.error["message"]
    assert {path: path.read_bytes() for path in frames.iterdir()} == before
