"""What the helper of a Jetson can be asked, and what it answers. Runs in the board's Python, 3.8 or newer.

The frames are those of the helper of a PYNQ image, which must be one file and so holds them. Lists travel as JSON in
the bytes after a message's fields: what a program has is longer than a head may be.
"""

from __future__ import annotations

import re
from typing import Any

from targets.pynq.helper import ProtocolError, decode, encode

__all__ = ["PROTOCOL", "REPLIES", "REQUESTS", "ProtocolError", "decode", "encode"]

PROTOCOL = 1
#: Pictures of a large batch and what is found in them.
_MOST_BYTES = (2 << 30) - 1
_MOST_TEXT = 16 << 20


def _whole(low: int, high: int) -> Any:
    return lambda value: type(value) is int and low <= value <= high


def _text(pattern: str) -> Any:
    return lambda value: isinstance(value, str) and re.fullmatch(pattern, value, re.DOTALL) is not None


_PROSE = _text(r".{0,4000}")

REQUESTS: Any = {
    # What is there for an engine: imports it. The answer is JSON of texts.
    "hello": ({"protocol": _whole(0, 99), "engine": _text("[a-z-]{1,40}")}, 0),
    # JSON of `targets.jetson.helper.Order`; answered by JSON of what was made of it.
    "build": ({}, _MOST_TEXT),
    "load": ({}, _MOST_TEXT),
    # Inputs one after the other, in the program's order and its outer types; answered by the outputs.
    "infer": ({}, _MOST_BYTES),
    # On the inputs last given; answered by float64: seconds of the host for each query, then those of the GPU.
    # ``awake``: then wait for the next request with the processor busy.
    "measure": ({"queries": _whole(1, 1 << 24), "awake": _whole(0, 1)}, 0),
    # The same, waited for once at the end; answered by one float64.
    "together": ({"queries": _whole(1, 1 << 24), "awake": _whole(0, 1)}, 0),
    "close": ({}, 0),
}

REPLIES: Any = {
    "hello": ({}, _MOST_TEXT),
    "build": ({}, _MOST_TEXT),
    "load": ({}, _MOST_TEXT),
    "infer": ({}, _MOST_BYTES),
    "measure": ({}, _MOST_BYTES),
    "together": ({}, 8),
    "close": ({}, 0),
    "progress": ({"stage": _PROSE}, 0),
    "error": ({"code": _text("[a-z-]{1,40}"), "message": _PROSE}, 0),
}
