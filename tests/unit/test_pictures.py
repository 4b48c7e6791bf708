"""Pictures: what is opened and what is refused, preparing against torchvision, detections against a plain reference."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from controller import pictures
from controller.reports import Box, TopLabel
from targets.base import FleetError, Postprocess, Preprocess


def _gradient(width: int = 40, height: int = 30) -> Image.Image:
    y, x = np.mgrid[0:height, 0:width]
    pixels = np.stack([x * 255 // width, y * 255 // height, (x + y) * 255 // (width + height)], -1)
    return Image.fromarray(pixels.astype(np.uint8))


# --- Opening ------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK", "YCbCr", "LA", "RGBA", "I;16"])
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    image = _gradient()
    if mode == "I;16":
        stored = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
        assert stored.mode == "I;16"
    else:
        stored = image.convert(mode)
    path = tmp_path / ("picture.tif" if mode in ("CMYK", "YCbCr") else "picture.png")
    stored.save(path)
    loaded = pictures.load(path)
    assert (loaded.mode, loaded.size) == ("RGB", (40, 30))
    if mode not in ("1", "P", "YCbCr"):
        wanted = image.convert("L").convert("RGB") if mode in ("L", "LA", "I;16") else image
        assert np.abs(np.asarray(loaded).astype(int) - np.asarray(wanted)).max() <= 1


def test_transparency_lies_over_white(tmp_path: Path) -> None:
    image = Image.new("RGBA", (4, 4), (200, 0, 0, 0))
    image.putpixel((1, 1), (200, 0, 0, 255))
    image.save(tmp_path / "alpha.png")
    loaded = pictures.load(tmp_path / "alpha.png")
    assert loaded.getpixel((0, 0)) == (255, 255, 255)
    assert loaded.getpixel((1, 1)) == (200, 0, 0)

    palette = Image.new("P", (2, 2), 0)
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putpixel((1, 1), 1)
    palette.save(tmp_path / "palette.png", transparency=0)
    loaded = pictures.load(tmp_path / "palette.png")
    assert (loaded.getpixel((0, 0)), loaded.getpixel((1, 1))) == ((255, 255, 255), (40, 50, 60))


def test_exif_rotation_is_applied(tmp_path: Path) -> None:
    image = _gradient()
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it rotated by 90 degrees clockwise
    image.save(tmp_path / "turned.png", exif=exif)
    loaded = pictures.load(tmp_path / "turned.png")
    assert np.array_equal(np.asarray(loaded), np.asarray(image.rotate(-90, expand=True)))


def test_an_animation_gives_its_first_frame(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "two.gif", save_all=True, append_images=frames[1:])
    assert pictures.load(tmp_path / "two.gif").getpixel((0, 0)) == (255, 0, 0)


def _png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def _bad_files(folder: Path) -> dict[str, tuple[Path, str]]:
    good = folder / "good.jpg"
    _gradient(200, 200).save(good)
    (folder / "text.png").write_text("this is no picture")
    (folder / "empty.png").touch()
    (folder / "cut.jpg").write_bytes(good.read_bytes()[:900])
    (folder / "bomb.png").write_bytes(_png_header(60_000, 60_000))
    (folder / "large.png").write_bytes(_png_header(9_000, 9_000))
    (folder / "nothing.png").write_bytes(_png_header(10, 10))
    (folder / "program.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n")
    Image.fromarray(np.ones((4, 4), np.float32)).save(folder / "floats.tif")
    Image.fromarray(np.full((4, 4), 1 << 20, np.int32)).save(folder / "deep.tif")
    said = {
        "text.png": "not a picture",
        "empty.png": "empty",
        "cut.jpg": "damaged",
        "bomb.png": "million pixels",
        "large.png": "million pixels",
        "nothing.png": "damaged",
        "program.eps": "not a picture",
        "floats.tif": "floating-point",
        "deep.tif": "16 bits",
        "absent.png": "no such file",
        ".": "folder",
    }
    return {name: (folder / name, words) for name, words in said.items()}


def test_a_bad_picture_is_refused_by_name_with_the_reason(tmp_path: Path) -> None:
    for path, words in _bad_files(tmp_path).values():
        with pytest.raises(FleetError) as caught:
            pictures.load(path)
        assert caught.value.code == "bad-picture"
        assert str(path) in caught.value.message
        assert words in caught.value.message, caught.value.message


@given(
    st.binary(max_size=200),
    st.sampled_from([b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"GIF89a", b"BM", b"II*\0", b"P6"]),
)
def test_damaged_bytes_never_escape_as_another_error(
    tmp_path_factory: pytest.TempPathFactory, tail: bytes, magic: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzzed"
    path.write_bytes(magic + tail)
    try:
        assert pictures.load(path).mode == "RGB"
    except FleetError as error:
        assert error.code == "bad-picture"


# --- Preparing ----------------------------------------------------------------------------------

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.mark.parametrize("size", [(500, 375), (375, 500), (300, 300), (100, 80), (224, 900)])
def test_crop_is_torchvisions_evaluation_transform(size: tuple[int, int]) -> None:
    from torchvision import transforms

    image = _gradient(*size)
    theirs = transforms.Compose(
        [transforms.Resize(256), transforms.CenterCrop(224), transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    )(image)
    ours = pictures.prepare(image, Preprocess(size=(224, 224), resize="crop", mean=MEAN, std=STD))
    assert ours.shape == (1, 3, 224, 224) and ours.dtype == np.float32 and ours.flags.c_contiguous
    np.testing.assert_allclose(ours[0], theirs.numpy(), atol=1e-5)


def test_stretch_is_torchvisions_resize_to_both_sides() -> None:
    from torchvision import transforms

    image = _gradient(91, 47)
    theirs = transforms.Compose([transforms.Resize((30, 50)), transforms.ToTensor()])(image)
    ours = pictures.prepare(image, Preprocess(size=(30, 50)))
    np.testing.assert_allclose(ours[0], theirs.numpy(), atol=1e-6)


def test_colours_and_layouts() -> None:
    image = _gradient(8, 6)
    plain = pictures.prepare(image, Preprocess(size=(6, 8)))
    assert np.array_equal(plain[:, ::-1], pictures.prepare(image, Preprocess(size=(6, 8), colour="BGR")))
    last = pictures.prepare(image, Preprocess(size=(6, 8), layout="NHWC"))
    assert last.shape == (1, 6, 8, 3) and last.flags.c_contiguous
    assert np.array_equal(plain.transpose(0, 2, 3, 1), last)
    grey = pictures.prepare(image, Preprocess(size=(6, 8), colour="L", mean=(0.5,), std=(0.5,)))
    assert grey.shape == (1, 1, 6, 8)
    np.testing.assert_allclose(grey[0, 0], np.asarray(image.convert("L")) / 255 * 2 - 1, atol=1e-6)


def test_a_crop_that_is_not_square_takes_the_middle() -> None:
    image = Image.new("RGB", (100, 100), "black")
    image.paste((255, 255, 255), (40, 40, 60, 60))
    values = pictures.prepare(image, Preprocess(size=(20, 60), resize="crop", crop_ratio=1.0))
    assert values.shape == (1, 3, 20, 60)
    columns = np.flatnonzero(values[0, 0, 10] > 0.5)
    assert (columns[0], columns[-1]) == (24, 35)


# --- Reading outputs ----------------------------------------------------------------------------


def test_top_labels_are_probabilities_best_first() -> None:
    logits = np.array([[0.0, 2.0, 1.0, 2.0]], np.float32)
    found = pictures.interpret([logits], Postprocess(kind="classify"), ("a", "b", "c", "d"), (1, 1), top=3)
    assert all(isinstance(one, TopLabel) for one in found)
    assert [one.label for one in found] == ["b", "d", "c"]
    wanted = np.exp(logits[0]) / np.exp(logits[0]).sum()
    np.testing.assert_allclose([one.score for one in found], wanted[[1, 3, 2]], rtol=1e-6)
    asis = pictures.interpret([logits], Postprocess(kind="classify", softmaxed=True), (), (1, 1), top=9)
    assert asis[0] == TopLabel(label="1", index=1, score=2.0)
    assert len(asis) == 4


@pytest.mark.parametrize(
    ("outputs", "kind"),
    [
        ([np.array([[np.nan, 1.0]])], "classify"),
        ([np.zeros((2, 3))], "classify"),
        ([], "classify"),
        ([np.zeros((1, 2, 4))], "ssd"),
        ([np.zeros((1, 3, 4)), np.zeros((1, 3, 2))], "ssd"),
    ],
)
def test_outputs_that_do_not_fit_are_refused(outputs: list[np.ndarray], kind: str) -> None:
    post = Postprocess(kind=kind, anchors=((0.5, 0.5, 1, 1), (0.5, 0.5, 0.5, 0.5)))  # type: ignore[arg-type]
    with pytest.raises(FleetError) as caught:
        pictures.interpret(outputs, post, ("a",), (10, 10))
    assert caught.value.code == "bad-output"


def test_boxes_are_decoded_into_the_pictures_pixels() -> None:
    post = Postprocess(kind="ssd", anchors=((0.5, 0.5, 0.2, 0.4), (0.1, 0.1, 0.1, 0.1)))
    # The first is moved right by a tenth of its width and made twice as high; the second is background.
    locations = np.array([[[1.0, 0.0, 0.0, np.log(2) / 0.2], [0, 0, 0, 0]]])
    logits = np.array([[[0.0, 0.0, 9.0], [9.0, 0.0, 0.0]]])
    (box,) = pictures.interpret([locations, logits], post, ("a", "b"), (200, 100))
    assert isinstance(box, Box) and box.label == "b" and box.score > 0.99
    np.testing.assert_allclose(box.xyxy, (0.42 * 200, 0.1 * 100, 0.62 * 200, 0.9 * 100), rtol=1e-9)


def test_absurd_offsets_stay_in_the_picture() -> None:
    post = Postprocess(kind="ssd", anchors=((0.5, 0.5, 0.2, 0.4),))
    (box,) = pictures.interpret([np.full((1, 1, 4), 1e30), np.array([[[0.0, 9.0]]])], post, ("a",), (50, 50))
    assert isinstance(box, Box) and np.isfinite(box.xyxy).all() and max(box.xyxy) <= 50


def test_a_threshold_given_outranks_the_models() -> None:
    post = Postprocess(kind="ssd", anchors=((0.5, 0.5, 0.2, 0.2), (0.2, 0.2, 0.1, 0.1)), score_threshold=0.9)
    outputs = [np.zeros((1, 2, 4)), np.array([[[0.0, 4.0], [0.0, 1.0]]])]
    assert len(pictures.interpret(outputs, post, ("a",), (9, 9))) == 1
    assert len(pictures.interpret(outputs, post, ("a",), (9, 9), threshold=0.5)) == 2
    assert pictures.interpret(outputs, post, ("a",), (9, 9), threshold=1.0) == []


boxes_strategy = st.lists(
    st.tuples(*(st.integers(0, 12) for _ in range(4)), st.integers(0, 2)),
    max_size=25,
).map(
    lambda rows: (
        np.array([(x, y, x + w, y + h) for x, y, w, h, _ in rows], np.float64).reshape(-1, 4),
        np.array([label for *_, label in rows], np.int64),
    )
)


def _plain_iou(a: np.ndarray, b: np.ndarray) -> float:
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height
    return width * height / union if union > 0 else 0.0


@given(boxes_strategy, st.floats(0.05, 0.95))
def test_nms_is_the_textbooks(drawn: tuple[np.ndarray, np.ndarray], threshold: float) -> None:
    boxes, labels = drawn
    kept: list[int] = []
    for index in range(len(boxes)):
        if all(labels[k] != labels[index] or _plain_iou(boxes[k], boxes[index]) <= threshold for k in kept):
            kept.append(index)
    assert pictures.nms(boxes, labels, threshold) == kept


@given(boxes_strategy, st.floats(0.05, 0.95))
def test_nms_of_what_it_kept_changes_nothing(drawn: tuple[np.ndarray, np.ndarray], threshold: float) -> None:
    boxes, labels = drawn
    kept = pictures.nms(boxes, labels, threshold)
    assert pictures.nms(boxes[kept], labels[kept], threshold) == list(range(len(kept)))
    assert kept[:1] == ([0] if len(boxes) else [])


def test_nms_agrees_with_torchvision() -> None:
    import torch
    from torchvision.ops import batched_nms

    random = np.random.RandomState(3)
    corner = random.uniform(0, 80, (300, 2))
    boxes = np.concatenate([corner, corner + random.uniform(1, 40, (300, 2))], 1)
    labels = random.randint(0, 4, 300)
    scores = np.linspace(1, 0, 300)
    theirs = batched_nms(torch.from_numpy(boxes), torch.from_numpy(scores), torch.from_numpy(labels), 0.45)
    assert pictures.nms(boxes, labels, 0.45) == theirs.tolist()


# --- Drawing ------------------------------------------------------------------------------------


@pytest.mark.parametrize("ground", ["black", "white", "#e6194b", "#808080"])
@pytest.mark.parametrize("size", [(64, 64), (640, 480)])
def test_boxes_show_on_any_background(ground: str, size: tuple[int, int]) -> None:
    image = Image.new("RGB", size, ground)
    width, height = size
    box = Box(label="star", score=0.93, xyxy=(width * 0.3, height * 0.5, width * 0.7, height * 0.9))
    before = np.asarray(image).copy()
    drawn = np.asarray(pictures.draw(image, [box]))
    assert np.array_equal(np.asarray(image), before), "the picture given is left alone"
    changed = (drawn != before).any(-1)
    # Every side of the box can be seen, and above it the label.
    assert (
        changed[:, round(width * 0.3) - 2 : round(width * 0.3) + 3][round(height * 0.6) : round(height * 0.8)]
        .any(1)
        .all()
    )
    assert (
        changed[round(height * 0.9) - 3 : round(height * 0.9) + 3, round(width * 0.4) : round(width * 0.6)].any(0).all()
    )
    label = drawn[: round(height * 0.5) - 1]
    assert np.ptp(label.astype(int).sum(-1)) > 250, "text and its ground differ"


def test_boxes_at_and_beyond_the_edge_are_drawn() -> None:
    image = Image.new("RGB", (50, 40))
    boxes = [
        Box(label="a very long label indeed", score=1.0, xyxy=(-5.0, -5.0, 60.0, 50.0)),
        Box(label="", score=0.0, xyxy=(50.0, 40.0, 50.0, 40.0)),
        Box(label="inside out", score=0.5, xyxy=(30.0, 30.0, 10.0, 10.0)),
    ]
    assert pictures.draw(image, boxes).size == (50, 40)


def test_saving_says_what_is_wrong(tmp_path: Path) -> None:
    image = _gradient()
    pictures.save(image, tmp_path / "new" / "out.png")
    assert np.array_equal(np.asarray(pictures.load(tmp_path / "new" / "out.png")), np.asarray(image))
    (tmp_path / "file").touch()
    for path, words in ((tmp_path / "out.xyz", "suffix"), (tmp_path / "file" / "out.png", "cannot be written")):
        with pytest.raises(FleetError, match=words) as caught:
            pictures.save(image, path)
        assert caught.value.code == "bad-picture"
