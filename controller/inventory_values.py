"""What stands in an inventory's YAML, one value after the other: of the right kind, or a mistake with its line."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

from ruamel.yaml.comments import CommentedMap, CommentedSeq

_ENDPOINT = re.compile(r"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]):([0-9]{1,5})")


class Values:
    """Reads values of one file, collecting every mistake with its line."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.errors: list[tuple[int, str]] = []

    def wrong(self, line: int, text: str) -> None:
        self.errors.append((line, text))

    def mapping(self, node: Any, line: int, where: str, allowed: Collection[str]) -> CommentedMap:
        """``node`` if it is a mapping, else an empty one. With ``allowed``, no other keys may be in it."""
        if node is None:
            return CommentedMap()
        if not isinstance(node, CommentedMap):
            self.wrong(line, f"{where} must be a mapping" + (f" of {', '.join(allowed)}" if allowed else ""))
            return CommentedMap()
        for key in node:
            if allowed and key not in allowed:
                self.wrong(line_of(node, key), f"{where}: unknown key '{key}'; allowed: {', '.join(allowed)}")
        return node

    def sequence(self, node: CommentedMap, key: str) -> list[tuple[Any, int]]:
        value = node.get(key)
        if value is None:
            return []
        if not isinstance(value, CommentedSeq):
            self.wrong(line_of(node, key), f"{key} must be a list, each entry after a '-'")
            return []
        return [(item, value.lc.item(index)[0] + 1) for index, item in enumerate(value)]

    def string(self, node: CommentedMap, key: str, where: str, required: int = 0) -> str:
        value = node.get(key)
        if value is None or value == "":
            if required:
                self.wrong(required, f"{where}: {key} is missing")
            return ""
        if not isinstance(value, str):
            self.wrong(line_of(node, key), f'{where}: {key} must be text; put it in quotes: "{value}"')
            return ""
        return str(value)

    def integer(self, node: CommentedMap, key: str, where: str) -> int:
        value = node.get(key, 0)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= 1024:
            self.wrong(line_of(node, key), f"{where}: {key} must be a whole number from 0 to 1024, not '{value}'")
            return 0
        return int(value)

    def endpoint(self, node: CommentedMap, key: str, where: str) -> str:
        value = self.string(node, key, where)
        if value and not is_endpoint(value):
            self.wrong(line_of(node, key), f"{where}: {key} must be HOST:PORT, not '{value}'")
        return value

    def labels(self, node: CommentedMap, key: str, where: str) -> dict[str, str]:
        value = self.mapping(node.get(key), line_of(node, key), f"{where}: {key}", ())
        for name, text in value.items():
            if not isinstance(text, (str, int)) or isinstance(text, bool):
                self.wrong(line_of(value, name), f"{where}: label '{name}' must be text or a whole number")
        return {str(name): str(text) for name, text in value.items()}


def is_endpoint(text: str) -> bool:
    found = _ENDPOINT.fullmatch(text)
    return found is not None and 1 <= int(found[1]) <= 65535


def line_of(node: CommentedMap, key: Any, default: int = 1) -> int:
    """The line, from 1, of a key; the mapping's own for a key that is not there."""
    try:
        return int(node.lc.key(key)[0]) + 1
    except (KeyError, TypeError, AttributeError):
        return int(node.lc.line) + 1 if getattr(node.lc, "line", None) is not None else default


def plain(node: Any) -> Any:
    """The document's own classes as Python's."""
    if isinstance(node, dict):
        return {str(key): plain(value) for key, value in node.items()}
    if isinstance(node, list):
        return [plain(value) for value in node]
    for kind in (bool, int, float, str):
        if isinstance(node, kind):
            return kind(node)
    return node
