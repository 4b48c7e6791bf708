"""Text that others wrote, made fit for a terminal."""

from __future__ import annotations


def printable(text: str) -> str:
    """``text`` on one line, without what could steer a terminal: control characters, escapes."""
    if text.isprintable():
        return text
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
