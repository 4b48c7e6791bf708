"""Pictures in, answers out: open and check a picture, make a model's input of it, read its outputs, draw boxes.

A picture is somebody's file: formats that run other programs are not opened, and sizes are checked before decoding.
"""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageColor, ImageDraw, ImageFont, ImageOps, UnidentifiedImageError

from controller.reports import Box, TopLabel
from targets.base import FleetError, Postprocess, Preprocess

if TYPE_CHECKING:
    from targets.base import Array

Floats = npt.NDArray[np.float64]

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
#: More than any camera on an edge board takes; at three bytes a pixel this is 192 MB of memory.
MAX_PIXELS = 64_000_000
MAX_FILE = 256 << 20
#: Detections that are looked at before overlapping ones are removed; bounds the work on a noisy output.
_MAX_CANDIDATES = 1000
#: exp() of more would make a box over 60 times the size of its default box.
_MAX_LOG_SIZE = float(np.log(1000 / 16))
#: Colours that differ in hue and brightness, so that neighbours are told apart.
_PALETTE = (
    "#e6194b",
    "#3cb44b",
    "#ffe119",
    "#4363d8",
    "#f58231",
    "#911eb4",
    "#42d4f4",
    "#f032e6",
    "#bfef45",
    "#ffffff",
)


def _bad(path: Path | str, what: str, hint: str = "") -> FleetError:
    return FleetError(f"{path}: {what}", code="bad-picture", hint=hint)


def load(path: Path | str) -> Image.Image:
    """Open a picture as upright 8-bit RGB: EXIF rotation applied, transparency laid over white, first frame only.

    Raises :class:`FleetError` with code ``bad-picture`` that says what is wrong with it.
    """
    path = Path(path)
    if path.is_dir():
        raise _bad(path, "this is a folder, not a picture")
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        raise _bad(path, "there is no such file") from None
    except OSError as error:
        raise _bad(path, f"cannot be read: {error.strerror}") from None
    if not size:
        raise _bad(path, "the file is empty")
    if size > MAX_FILE:
        raise _bad(path, f"the file is {size >> 20} MB, more than the {MAX_FILE >> 20} MB that are opened")
    try:
        with warnings.catch_warnings():
            # Pillow warns of sizes, where our limit is tighter, and of faults that it reads past.
            warnings.simplefilter("ignore")
            with Image.open(path, formats=FORMATS) as image:
                width, height = image.size
                if width * height > MAX_PIXELS:
                    raise Image.DecompressionBombError
                image.load()
                return _to_rgb(ImageOps.exif_transpose(image), path)
    except UnidentifiedImageError:
        raise _bad(path, "not a picture in a format that is read", f"formats: {', '.join(FORMATS)}") from None
    except Image.DecompressionBombError:
        raise _bad(
            path,
            f"the picture has more than the {MAX_PIXELS // 1_000_000} million pixels that are decoded",
            "scale it down",
        ) from None
    except PermissionError:
        raise _bad(path, "cannot be read: permission denied") from None
    # Damaged files make Pillow's decoders raise whatever they stumble over.
    except (
        OSError,
        ValueError,
        SyntaxError,
        EOFError,
        IndexError,
        TypeError,
        KeyError,
        zlib.error,
        MemoryError,
    ) as error:
        raise _bad(path, f"the picture is damaged: {error}") from None


def _to_rgb(image: Image.Image, path: Path) -> Image.Image:
    if image.mode == "F":
        raise _bad(path, "pictures of floating-point values have no agreed brightness", "save it with 8 or 16 bits")
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise _bad(path, "grey values beyond 16 bits have no agreed brightness", "save it with 8 or 16 bits")
        image = Image.fromarray(((values + 128) // 257).astype(np.uint8))
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return image.convert("RGB")


def prepare(image: Image.Image, preprocess: Preprocess) -> npt.NDArray[np.float32]:
    """The model's first input, float32, (1, channels, height, width) or (1, height, width, channels)."""
    height, width = preprocess.size
    image = image.convert("L" if preprocess.colour == "L" else "RGB")
    if preprocess.resize == "stretch":
        image = _resized(image, width, height)
    else:
        image = _centre_crop(image, width, height, preprocess.crop_ratio)
    values = np.asarray(image, dtype=np.float32)
    if values.ndim == 2:
        values = values[..., None]
    if preprocess.colour == "BGR":
        values = values[..., ::-1]
    values = (values / np.float32(255) - np.array(preprocess.mean, np.float32)) / np.array(preprocess.std, np.float32)
    if preprocess.layout == "NCHW":
        values = values.transpose(2, 0, 1)
    return np.ascontiguousarray(values[None], dtype=np.float32)


def _resized(image: Image.Image, width: int, height: int) -> Image.Image:
    # Bilinear with a support that grows when shrinking, which is what torchvision trains with.
    return image if image.size == (width, height) else image.resize((width, height), Image.Resampling.BILINEAR)


def _centre_crop(image: Image.Image, width: int, height: int, ratio: float) -> Image.Image:
    """As torchvision's Resize (long side rounded down) and CenterCrop, and the same for sizes that are not square."""
    need_width, need_height = round(width / ratio), round(height / ratio)
    if need_width * image.height >= need_height * image.width:
        image = _resized(image, need_width, max(height, need_width * image.height // image.width))
    else:
        image = _resized(image, max(width, need_height * image.width // image.height), need_height)
    left, top = round((image.width - width) / 2), round((image.height - height) / 2)
    return image.crop((left, top, left + width, top + height))


def interpret(
    outputs: Sequence[Array],
    postprocess: Postprocess,
    labels: Sequence[str],
    image_size: tuple[int, int],
    top: int = 5,
    threshold: float | None = None,
) -> list[TopLabel] | list[Box]:
    """Read one picture's outputs: the ``top`` labels, or the boxes that score at least ``threshold``, best first.

    ``image_size`` is (width, height) of the original picture. Class logits of ``ssd`` have the background in column
    0; boxes are relative to the whole picture, so detectors take it stretched. Errors have code ``bad-output``.
    """
    arrays = [np.asarray(array, dtype=np.float64) for array in outputs]
    if not all(np.isfinite(array).all() for array in arrays):
        raise FleetError("the outputs hold values that are no finite numbers", code="bad-output")
    if postprocess.kind == "classify":
        return _top_labels(arrays, postprocess, labels, top)
    return _boxes(arrays, postprocess, labels, image_size, threshold)


def softmax(logits: Floats) -> Floats:
    """Probabilities along the last axis."""
    raised = np.exp(logits - logits.max(axis=-1, keepdims=True))
    probabilities: Floats = raised / raised.sum(axis=-1, keepdims=True)
    return probabilities


def _wrong_outputs(arrays: Sequence[Floats], wanted: str) -> FleetError:
    shapes = ", ".join(str(array.shape) for array in arrays)
    return FleetError(f"the outputs have shapes {shapes}, wanted {wanted}", code="bad-output")


def _name(labels: Sequence[str], index: int) -> str:
    return labels[index] if index < len(labels) else str(index)


def _top_labels(arrays: Sequence[Floats], postprocess: Postprocess, labels: Sequence[str], top: int) -> list[TopLabel]:
    if not arrays or arrays[0].size == 0 or arrays[0].size != arrays[0].shape[-1]:
        raise _wrong_outputs(arrays, "(1, classes)")
    scores = arrays[0].reshape(-1)
    if not postprocess.softmaxed:
        scores = softmax(scores)
    best = np.argsort(-scores, kind="stable")[: max(top, 0)]
    return [TopLabel(label=_name(labels, int(i)), index=int(i), score=float(scores[i])) for i in best]


def _boxes(
    arrays: Sequence[Floats],
    postprocess: Postprocess,
    labels: Sequence[str],
    image_size: tuple[int, int],
    threshold: float | None,
) -> list[Box]:
    anchors = np.array(postprocess.anchors, dtype=np.float64).reshape(-1, 4)
    count = len(anchors)
    if len(arrays) < 2 or arrays[0].shape != (1, count, 4) or arrays[1].shape[:2] != (1, count) or arrays[1].ndim != 3:
        raise _wrong_outputs(arrays, f"(1, {count}, 4), (1, {count}, classes + 1)")
    scores = (arrays[1] if postprocess.softmaxed else softmax(arrays[1]))[0, :, 1:]
    decoded = decode(arrays[0][0], anchors, postprocess.variances)
    least = postprocess.score_threshold if threshold is None else threshold
    box, label = np.nonzero(scores >= least)
    order = np.argsort(-scores[box, label], kind="stable")[:_MAX_CANDIDATES]
    box, label = box[order], label[order]
    keep = nms(decoded[box], label, postprocess.iou_threshold)[: postprocess.max_boxes]
    scale = np.array(image_size * 2, dtype=np.float64)
    return [
        Box(
            label=_name(labels, int(label[i])),
            score=float(scores[box[i], label[i]]),
            xyxy=_four(np.clip(decoded[box[i]], 0, 1) * scale),
        )
        for i in keep
    ]


def _four(values: Floats) -> tuple[float, float, float, float]:
    x0, y0, x1, y1 = values.tolist()
    return x0, y0, x1, y1


def decode(locations: Floats, anchors: Floats, variances: Sequence[float]) -> Floats:
    """Offsets (n, 4) from default boxes (n, 4: centre-x, centre-y, width, height) → corners x0, y0, x1, y1 in 0..1."""
    offsets = locations * np.asarray(variances)
    centre = anchors[:, :2] + offsets[:, :2] * anchors[:, 2:]
    half = anchors[:, 2:] * np.exp(np.minimum(offsets[:, 2:], _MAX_LOG_SIZE)) / 2
    return np.concatenate([centre - half, centre + half], axis=1)


def overlaps(boxes: Floats) -> Floats:
    """IoU of every pair of boxes (n, 4: x0, y0, x1, y1): (n, n). Boxes without an area overlap nothing."""
    low = np.maximum(boxes[:, None, :2], boxes[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
    shared = np.prod(np.clip(high - low, 0, None), axis=-1)
    area = np.prod(np.clip(boxes[:, 2:] - boxes[:, :2], 0, None), axis=-1)
    union = area[:, None] + area[None, :] - shared
    iou: Floats = np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
    return iou


def nms(boxes: Floats, labels: npt.NDArray[np.integer], iou_threshold: float) -> list[int]:
    """Indices of the boxes that stay, in order: best first, less those that a better one of their class overlaps."""
    rivals = (overlaps(boxes) > iou_threshold) & (labels[:, None] == labels[None, :])
    gone = np.zeros(len(boxes), dtype=bool)
    for index in range(len(boxes)):
        if not gone[index]:
            gone[index + 1 :] |= rivals[index, index + 1 :]
    return [int(index) for index in np.flatnonzero(~gone)]


def draw(image: Image.Image, boxes: Sequence[Box]) -> Image.Image:
    """A copy of the picture with boxes and their labels, readable on any background: a dark rim around every line."""
    image = image.convert("RGB")
    pen = ImageDraw.Draw(image)
    short = min(image.size)
    width = max(1, round(short / 250))
    font = ImageFont.load_default(size=max(10, round(short / 32)))
    # The best last, so that it lies on top.
    for box in sorted(boxes, key=lambda one: one.score):
        x0, y0, x1, y1 = (round(v) for v in box.xyxy)
        if x1 < x0 or y1 < y0:
            continue
        colour = _PALETTE[zlib.crc32(box.label.encode()) % len(_PALETTE)]
        pen.rectangle((x0 - 1, y0 - 1, x1 + 1, y1 + 1), outline="black", width=width + 2)
        pen.rectangle((x0, y0, x1, y1), outline=colour, width=width)
        _label(pen, image.size, (x0, y0), f"{box.label} {box.score:.0%}", colour, font)
    return image


def _label(
    pen: ImageDraw.ImageDraw,
    size: tuple[int, int],
    corner: tuple[int, int],
    text: str,
    colour: str,
    font: ImageFont.ImageFont | ImageFont.FreeTypeFont,
) -> None:
    left, top, right, bottom = pen.textbbox((0, 0), text, font=font)
    wide, high = round(right - left) + 4, round(bottom - top) + 4
    x = max(0, min(corner[0], size[0] - wide))
    # Above the box where there is room, else inside it.
    y = corner[1] - high if corner[1] >= high else max(0, min(corner[1], size[1] - high))
    red, green, blue = ImageColor.getrgb(colour)[:3]
    ink = "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 128 else "white"
    pen.rectangle((x, y, x + wide, y + high), fill=colour, outline="black")
    pen.text((x + 2 - left, y + 2 - top), text, fill=ink, font=font)


def save(image: Image.Image, path: Path | str) -> None:
    """Write a picture in the format its suffix names. Raises :class:`FleetError` (``bad-picture``) when it cannot."""
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)
    except ValueError:
        raise _bad(path, "no picture format has this suffix", "use .png or .jpg") from None
    except OSError as error:
        raise _bad(path, f"cannot be written: {error.strerror or error}") from None
