"""Variants of a network: what stands behind ``@`` in ``ssd300_vgg16@raw`` or ``maskrcnn_resnet50_fpn@480x640``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from targets.base import ModelError

_SIZE = re.compile(r"(\d{2,4})(?:x(\d{2,4}))?")


class Variant(NamedTuple):
    """A name taken apart: the network, the words behind it, and a size (height, width) if one was given."""

    base: str
    words: frozenset[str]
    size: tuple[int, int] | None


def parse(name: str, words: Mapping[str, str], *, sizes: tuple[int, int] | None = None) -> Variant:
    """Take ``NAME@WORD,SIZE`` apart. ``words`` are those that the network knows, with a line about each.

    ``sizes``: the smallest and the largest side it can be made for; None: it has one size.

    Raises :class:`ModelError` (``unknown-model``) for anything else, and says what there is.
    """
    base, _, rest = name.partition("@")
    found: set[str] = set()
    size: tuple[int, int] | None = None
    for part in rest.split(",") if rest else ():
        match = _SIZE.fullmatch(part)
        if part in words and part not in found:
            found.add(part)
            continue
        if match and sizes and size is None:
            height, width = int(match[1]), int(match[2] or match[1])
            if sizes[0] <= min(height, width) and max(height, width) <= sizes[1]:
                size = height, width
                continue
        known = [f"{base}@{word}: {line}" for word, line in words.items()]
        if sizes:
            known.append(f"{base}@HEIGHTxWIDTH: sides of {sizes[0]} to {sizes[1]} pixels")
        raise ModelError(
            f"'{part}' is no variant of {base}, or it is given twice", code="unknown-model", hint="; ".join(known)
        )
    return Variant(base, frozenset(found), size)
