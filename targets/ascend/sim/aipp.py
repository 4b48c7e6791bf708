"""AIPP: the pre-processing that an Ascend chip does before a network, from ATC's configuration file.

Source of fields and rules: hicann/ge, docs/zh/user_guides/atc_tools/AIPP.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from targets.ascend.sim.atc_messages import AtcError
from targets.ascend.sim.om import Aipp

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MAX_FILE = 1 << 20
#: Fields that come once per channel or per element of the colour matrix, and their place in the vector.
_INDEXED = re.compile(r"(mean_chn|min_chn|var_reci_chn|input_bias|output_bias)_([0-3])|matrix_r([0-2])c([0-2])")
_CHANNELS = {"YUV420SP_U8": 3, "XRGB8888_U8": 4, "RGB888_U8": 3, "YUV400_U8": 1}
_TOKEN = re.compile(r"\s+|#[^\n]*|(?P<word>[A-Za-z_][A-Za-z0-9_]*|-?[0-9.]+(?:[eE][-+]?[0-9]+)?|[{}:]|\"[^\"\n]*\")")


def parse(text: str) -> tuple[Aipp, ...]:
    """The ``aipp_op`` blocks of a configuration.

    Raises:
        AtcError: E10052, with what is wrong.
    """
    words = list(_words(text))
    blocks = []
    while words:
        if words[:2] != ["aipp_op", "{"]:
            raise _bad(f"'aipp_op {{' is expected, not '{words[0]}'")
        end = words.index("}") if "}" in words else 0
        if not end:
            raise _bad("a block is not closed")
        blocks.append(_block(words[2:end]))
        del words[: end + 1]
    if not blocks:
        raise _bad("there is no aipp_op in it")
    if len({block.related_input_rank for block in blocks}) != len(blocks):
        raise _bad("two aipp_op have the same related_input_rank")
    return tuple(blocks)


def _words(text: str) -> Iterator[str]:
    place = 0
    while place < len(text):
        match = _TOKEN.match(text, place)
        if not match:
            raise _bad(f"'{text[place]}' cannot stand there")
        place = match.end()
        if match["word"]:
            yield match["word"].strip('"')


def _block(words: list[str]) -> Aipp:
    fields: dict[str, Any] = {}
    vectors: dict[str, list[float]] = {}
    if len(words) % 3 or any(colon != ":" for colon in words[1::3]):
        raise _bad("a field is not 'name: value'")
    for name, value in zip(words[::3], words[2::3], strict=True):
        if name == "aipp_mode":
            if value == "dynamic":
                raise _bad("the simulator has no dynamic AIPP")
            if value != "static":
                raise _bad("aipp_mode is neither static nor dynamic")
            continue
        indexed = _INDEXED.fullmatch(name)
        if indexed:
            _put(vectors, indexed, value)
        elif name not in Aipp.__struct_fields__:
            raise _bad(f"there is no field '{name}'")
        else:
            fields[name] = {"true": True, "false": False}.get(value, value)
    try:
        block = msgspec.convert({**fields, **vectors}, Aipp, strict=False)
    except msgspec.MsgspecError as error:
        raise _bad(str(error)) from None
    _check(block)
    return block


def _put(vectors: dict[str, list[float]], indexed: re.Match[str], value: str) -> None:
    base, channel, row, column = indexed.groups()
    name, place = (base, int(channel)) if base else ("matrix", 3 * int(row) + int(column))
    usual = getattr(Aipp(), name)
    if place >= len(usual):
        raise _bad(f"there is no field '{indexed.group()}'")
    try:
        number = float(value)
    except ValueError:
        raise _bad(f"{indexed.group()} is '{value}'") from None
    if not abs(number) < 1e9:
        raise _bad(f"{indexed.group()} is '{value}'")
    whole = isinstance(usual[0], int)
    if whole and number != int(number):
        raise _bad(f"{indexed.group()} is not a whole number")
    vectors.setdefault(name, list(usual))[place] = int(number) if whole else number


def _check(block: Aipp) -> None:
    if block.related_input_rank < 0:
        raise _bad("related_input_rank is negative")
    sizes = (("src_image_size_w", 2), ("src_image_size_h", 1))
    for name, least in sizes:
        size = getattr(block, name)
        if size and not least <= size <= 4096:
            raise _bad(f"{name} is {size}, not {least} to 4096")
    for side in ("left", "right", "top", "bottom"):
        if not 0 <= getattr(block, f"{side}_padding_size") <= 32:
            raise _bad(f"{side}_padding_size is not 0 to 32")
    if min(block.load_start_pos_w, block.load_start_pos_h, block.crop_size_w, block.crop_size_h) < 0:
        raise _bad("a crop is negative")
    if block.input_format == "YUV420SP_U8" and (block.src_image_size_w % 2 or block.src_image_size_h % 2):
        raise _bad("src_image_size of YUV420SP_U8 is odd")


def _bad(why: str) -> AtcError:
    return AtcError("E10052", why)


def input_shape(block: Aipp, network: tuple[int, ...], place: str) -> tuple[int, ...]:
    """The shape of the pictures (N, H, W, channels; N, H·3/2, W, 1 for YUV420SP) that become ``network``.

    Raises:
        AtcError: E10052: the network's input is no picture, or crop and padding do not lead to its size.
    """
    if len(network) != 4:
        raise _bad(f"input {block.related_input_rank} of the network has {len(network)} axes, not 4")
    axes = dict(zip(place, network, strict=True))
    height, width = axes["H"], axes["W"]
    if block.padding:
        height -= (block.top_padding_size + block.bottom_padding_size) if height > 0 else 0
        width -= (block.left_padding_size + block.right_padding_size) if width > 0 else 0
    rows, columns = (
        (block.src_image_size_h or height, block.src_image_size_w or width) if block.crop else (height, width)
    )
    if block.crop:
        cut = (block.crop_size_h or height, block.crop_size_w or width)
        if cut != (height, width):
            raise _bad(f"the crop gives {cut[0]}x{cut[1]}, the network takes {height}x{width}")
        if block.load_start_pos_h + cut[0] > rows or block.load_start_pos_w + cut[1] > columns:
            raise _bad("the crop leaves the picture")
    elif (block.src_image_size_h or height, block.src_image_size_w or width) != (height, width):
        raise _bad(
            f"src_image_size is {block.src_image_size_h}x{block.src_image_size_w}, the network takes {height}x{width}"
        )
    expected = 3 if block.input_format in ("YUV420SP_U8", "XRGB8888_U8") else _CHANNELS[block.input_format]
    if axes["C"] != expected:
        raise _bad(f"{block.input_format} gives {expected} channels, the network takes {axes['C']}")
    if block.input_format == "YUV420SP_U8":
        return (axes["N"], rows * 3 // 2 if rows > 0 else rows, columns, 1)
    return (axes["N"], rows, columns, _CHANNELS[block.input_format])


def apply(block: Aipp, pictures: NDArray[np.uint8], network: tuple[int, ...], place: str) -> NDArray[np.float32]:
    """Pictures of :func:`input_shape` as the network takes them: swap, crop, colours, mean and factor, padding."""
    import numpy as np

    values: NDArray[Any] = _yuv444(pictures) if block.input_format == "YUV420SP_U8" else pictures
    if block.input_format == "XRGB8888_U8":
        # The unused byte goes: it is the first, or the last once the axes are swapped.
        values = values[..., :3] if block.ax_swap_switch else values[..., 1:]
    if block.rbuv_swap_switch and values.shape[-1] == 3:
        values = values[..., [0, 2, 1]] if block.input_format == "YUV420SP_U8" else values[..., ::-1]
    axes = dict(zip(place, network, strict=True))
    if block.crop:
        height = block.crop_size_h or axes["H"]
        width = block.crop_size_w or axes["W"]
        top, left = block.load_start_pos_h, block.load_start_pos_w
        values = values[:, top : top + height, left : left + width]
    if block.csc_switch and values.shape[-1] == 3:
        matrix = np.asarray(block.matrix, np.int32).reshape(3, 3)
        turned = (values.astype(np.int32) - np.asarray(block.input_bias, np.int32)) @ matrix.T
        values = np.clip((turned >> 8) + np.asarray(block.output_bias, np.int32), 0, 255)
    count = values.shape[-1]
    mean = np.asarray(block.mean_chn[:count], np.float32)
    low = np.asarray(block.min_chn[:count], np.float32)
    factor = np.asarray(block.var_reci_chn[:count], np.float32)
    result = (values.astype(np.float32) - mean - low) * factor
    if block.padding:
        result = np.pad(
            result,
            (
                (0, 0),
                (block.top_padding_size, block.bottom_padding_size),
                (block.left_padding_size, block.right_padding_size),
                (0, 0),
            ),
        )
    return np.ascontiguousarray(result.transpose(["NHWC".index(letter) for letter in place]))


def _yuv444(pictures: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """NV12 (luma, then pairs of chroma at half size) with the chroma repeated for each pixel."""
    import numpy as np

    count, rows, width, _ = pictures.shape
    height = rows * 2 // 3
    luma = pictures[:, :height, :, 0]
    chroma = pictures[:, height:].reshape(count, height // 2, width // 2, 2)
    return np.concatenate([luma[..., None], chroma.repeat(2, axis=1).repeat(2, axis=2)], axis=-1)


def check_flags(blocks: tuple[Aipp, ...], flags: Mapping[str, str]) -> None:
    """What goes with AIPP and what does not.

    Raises:
        AtcError: E10001.
    """
    if flags["dynamic_dims"]:
        raise AtcError("E10001", flags["insert_op_conf"], "--insert_op_conf", "It cannot be used with --dynamic_dims.")
    if flags["input_format"] not in ("", "NCHW", "NHWC"):
        raise AtcError("E10001", flags["input_format"], "--input_format", "AIPP wants it to be NCHW or NHWC.")
    moving = any(block.src_image_size_h or block.src_image_size_w or block.crop or block.padding for block in blocks)
    if flags["dynamic_image_size"] and moving:
        reason = "With --dynamic_image_size, AIPP can have neither src_image_size nor crop nor padding."
        raise AtcError("E10001", flags["insert_op_conf"], "--insert_op_conf", reason)
