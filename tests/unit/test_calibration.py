"""What a network is calibrated on: chosen by an option, read with care, said in words."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
from PIL import Image

from controller import calibration
from targets.base import FleetError, Preprocess, SourceModel, TensorSpec

SPEC = TensorSpec("image", (2, 3, 8, 8), "float32")
MODEL = SourceModel(
    name="net",
    format="onnx",
    path="net.onnx",
    sha256="0" * 64,
    origin="file:net.onnx",
    inputs=(SPEC,),
    outputs=(),
    preprocess=Preprocess(size=(8, 8)),
)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for index in range(3):
        Image.new("RGB", (20, 10), (index * 80, 10, 200)).save(folder / f"{index}.png")
    (folder / "notes.txt").write_text("not a picture")
    return folder


def test_a_folder_of_pictures(pictures: Path) -> None:
    chosen = calibration.choose(MODEL, str(pictures))
    assert chosen.kind == "pictures" and chosen.words.startswith("3 pictures, sha256 ")
    assert str(pictures) not in chosen.words
    batches = [array for (array,) in calibration.inputs(chosen, MODEL, [SPEC])]
    assert [batch.shape for batch in batches] == [(2, 3, 8, 8)] * 2
    assert batches[0].dtype == np.float32
    # The last batch is filled up with the first picture.
    assert np.array_equal(batches[1][1], batches[0][0])
    assert batches[1][0][0, 0, 0] == pytest.approx(160 / 255)
    (pictures / "1.png").unlink()
    assert calibration.choose(MODEL, str(pictures)).words != chosen.words


def test_files_travel_to_another_machine(pictures: Path, tmp_path: Path) -> None:
    chosen = calibration.choose(MODEL, str(pictures))
    files = calibration.files_of(chosen)
    assert sorted(files) == ["0.png", "1.png", "2.png"]
    there = calibration.with_files(chosen, files, tmp_path / "there")
    assert there is not None and there.source == str(tmp_path / "there")
    here, moved = (list(calibration.inputs(one, MODEL, [SPEC])) for one in (chosen, there))
    assert all(np.array_equal(a[0], b[0]) for a, b in zip(here, moved, strict=True))
    random = calibration.choose(MODEL, "")
    assert calibration.files_of(random) == {} and calibration.with_files(random, {}, tmp_path / "none") == random


def test_arrays_by_name_or_in_order(tmp_path: Path) -> None:
    values = np.random.default_rng(0).standard_normal((4, 3, 8, 8)).astype(np.float32)
    for name in ("image", "x"):
        path = tmp_path / f"{name}.npz"
        np.savez(path, **{name: values})
        chosen = calibration.choose(MODEL, str(path))
        assert chosen.kind == "arrays" and chosen.words.startswith(f"{name}.npz, sha256 ")
        found = np.concatenate([array for (array,) in calibration.inputs(chosen, MODEL, [SPEC])])
        assert np.array_equal(found, values)


def test_random_inputs_are_the_same_everywhere_and_not_the_golden_ones() -> None:
    from controller.golden import SETS, sample

    chosen = calibration.choose(MODEL, "")
    assert chosen.kind == "random" and "random" in chosen.words
    first, second = (list(calibration.inputs(chosen, MODEL, [SPEC])) for _ in range(2))
    assert len(first) == calibration.COUNT
    assert all(np.array_equal(a[0], b[0]) for a, b in zip(first, second, strict=True))
    golden = [sample(SPEC, index, MODEL.preprocess) for index in range(SETS)]
    assert not any(np.array_equal(one, given[0]) for one in golden for given in first)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("x.npz", {"image": np.zeros((2, 3, 9, 8), np.float32)}, "shape"),
        ("x.npz", {"image": np.zeros((2, 3, 8, 8))}, "float64"),
        ("x.npz", {"image": np.zeros((0, 3, 8, 8), np.float32)}, "shape"),
        ("x.npz", {"image": np.full((1, 3, 8, 8), np.nan, np.float32)}, "finite"),
        ("x.npz", {"a": np.zeros(1), "b": np.zeros(1)}, "2 arrays for 1 inputs"),
        ("x.npz", {"image": np.array([None, None])}, "cannot be read"),
        ("x.npz", b"PK\3\4 cut", "cannot be read"),
        ("x.npz", b"", "cannot be read"),
    ],
)
def test_arrays_that_do_not_fit(tmp_path: Path, name: str, content: object, said: str) -> None:
    path = tmp_path / name
    if isinstance(content, dict):
        np.savez(path, **content)
    else:
        assert isinstance(content, bytes)
        path.write_bytes(content)
    with pytest.raises(FleetError, match=said) as caught:
        list(calibration.inputs(calibration.choose(MODEL, str(path)), MODEL, [SPEC]))
    assert caught.value.code == "bad-calibration"


def test_folders_that_do_not_fit(pictures: Path, tmp_path: Path) -> None:
    for option, said in ((str(tmp_path / "none"), "neither"), (str(pictures / "notes.txt"), "neither")):
        with pytest.raises(FleetError, match=said) as caught:
            calibration.choose(MODEL, option)
        assert caught.value.code == "bad-calibration"
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(FleetError, match="no pictures"):
        calibration.choose(MODEL, str(empty))
    (pictures / "0.png").write_bytes(b"GIF89a")
    with pytest.raises(FleetError) as caught:
        list(calibration.inputs(calibration.choose(MODEL, str(pictures)), MODEL, [SPEC]))
    assert caught.value.code == "bad-picture"
    silent = msgspec.structs.replace(MODEL, preprocess=None)
    with pytest.raises(FleetError, match="how it takes pictures"):
        list(calibration.inputs(calibration.choose(silent, str(pictures)), silent, [SPEC]))
