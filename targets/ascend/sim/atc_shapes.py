"""``--input_shape`` and the dynamic profiles of atc: what they say, and the rules between them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from targets.ascend.sim.atc_messages import AtcError

MAX_PROFILES = 100
MIN_PROFILES = 2
#: Axes larger than this are refused: they would only overflow later.
MAX_AXIS = (1 << 31) - 1
Kind = Literal["static", "batch", "image", "dims", "shape"]
_PROFILE_FLAGS: dict[str, Kind] = {
    "dynamic_batch_size": "batch",
    "dynamic_image_size": "image",
    "dynamic_dims": "dims",
}


@dataclass(frozen=True)
class Shapes:
    """``shapes``: what was said of each input, -1 for an axis left open; ``gears``: the profiles' numbers."""

    kind: Kind
    shapes: Mapping[str, tuple[int, ...]]
    gears: tuple[tuple[int, ...], ...] = ()


def read(flags: Mapping[str, str]) -> Shapes:
    """Check and read the shape flags, in the order in which atc does.

    Raises:
        AtcError: E10002, E10004, E10009, E10011, E10014, E10018 to E10020, E10031, E10035 to E10037, E10039, E10040.
    """
    profiles = [name for name in _PROFILE_FLAGS if flags[name]]
    text = flags["input_shape"]
    if profiles and "~" in text:
        raise AtcError("E10040")
    if len(profiles) + bool(flags["input_shape_range"]) > 1:
        raise AtcError("E10009")
    if profiles and not text:
        raise AtcError("E10004", "input_shape")
    if flags["input_shape_range"]:
        text = re.sub(r"[\[\]]", "", flags["input_shape_range"])
    shapes = _shapes(text)
    is_open = any(axis < 0 for shape in shapes.values() for axis in shape)
    if not profiles:
        return Shapes("shape" if is_open else "static", shapes)
    kind = _PROFILE_FLAGS[profiles[0]]
    _open_axes(kind, shapes, is_open)
    return Shapes(kind, shapes, _gears(flags, profiles[0], kind, shapes))


def _shapes(text: str) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for part in filter(None, text.split(";")):
        # A name may hold colons: the shape stands behind the last.
        name, colon, numbers = part.rpartition(":")
        if not colon or not name:
            raise AtcError("E10002", text, f'the shape of "{part}" has no name before it')
        if name in shapes:
            raise AtcError("E10002", text, f'the input "{name}" is named twice')
        shapes[name.strip()] = tuple(_axis(text, number.strip()) for number in numbers.split(",") if numbers.strip())
    if text and not shapes:
        raise AtcError("E10002", text, "it names no input")
    return shapes


def _axis(text: str, number: str) -> int:
    if re.fullmatch(r"[0-9]{1,10}~(-1|[0-9]{1,10})", number):
        return -1
    if not re.fullmatch(r"-?[0-9]{1,10}", number):
        raise AtcError("E10002", text, f'"{number}" is not a number')
    axis = int(number)
    if axis != -1 and not 0 < axis <= MAX_AXIS:
        raise AtcError("E10011", text, number)
    return axis


def _open_axes(kind: Kind, shapes: Mapping[str, tuple[int, ...]], is_open: bool) -> None:
    if kind == "batch":
        for shape in shapes.values():
            if any(axis < 0 for axis in shape[1:]):
                raise AtcError("E10018", -1, list(shape))
        if not is_open:
            raise AtcError("E10031")
    if kind == "image":
        for shape in shapes.values():
            if any(axis < 0 for axis in shape) and (len(shape) != 4 or shape[0] < 0):
                raise AtcError("E10019")
    if not is_open:
        raise AtcError("E10019" if kind == "image" else "E10040")


def _gears(
    flags: Mapping[str, str], flag: str, kind: Kind, shapes: Mapping[str, tuple[int, ...]]
) -> tuple[tuple[int, ...], ...]:
    text = flags[flag].strip()
    parts = text.split("," if kind == "batch" else ";")
    gears: list[tuple[int, ...]] = []
    for part in filter(None, (part.strip() for part in parts)):
        numbers = part.split(",")
        if not all(re.fullmatch(r"\s*[0-9]{1,9}\s*", number) and int(number) for number in numbers):
            raise AtcError("E10020", text) if kind == "image" else AtcError("E10014", text, flag)
        gears.append(tuple(int(number) for number in numbers))
    if kind == "image" and any(len(gear) != 2 for gear in gears):
        raise AtcError("E10020", text)
    if kind == "dims":
        count = sum(axis < 0 for shape in shapes.values() for axis in shape)
        for gear in gears:
            if len(gear) != count:
                raise AtcError("E10037", len(gear), count)
        if flags["input_format"] not in ("ND", ""):
            raise AtcError("E10001", flags["input_format"], "--input_format", "--dynamic_dims wants it to be ND.")
    if len(gears) < MIN_PROFILES:
        raise AtcError("E10035", len(gears))
    if len(gears) > MAX_PROFILES:
        raise AtcError("E10036", len(gears))
    if len(set(gears)) != len(gears):
        raise AtcError("E10039")
    return tuple(gears)


def concrete(kind: Kind, shape: tuple[int, ...], gear: tuple[int, ...], place: str = "NCHW") -> tuple[int, ...]:
    """One input's shape under one profile. For ``dims``, ``gear`` holds the numbers of this input alone."""
    if kind == "batch":
        return tuple(gear[0] if axis < 0 else axis for axis in shape)
    if kind == "image" and len(shape) == 4 and any(axis < 0 for axis in shape):
        named = {"H": gear[0], "W": gear[1]}
        return tuple(named.get(letter, axis) if axis < 0 else axis for letter, axis in zip(place, shape, strict=True))
    numbers = iter(gear)
    return tuple(next(numbers) if axis < 0 else axis for axis in shape)
