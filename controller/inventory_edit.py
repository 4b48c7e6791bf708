"""Adding devices to ``fleet.yaml`` and removing them, by whole lines: everything else stays as a person wrote it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import msgspec
from ruamel.yaml import YAML
from ruamel.yaml.nodes import MappingNode, Node, SequenceNode

from controller.inventory import Device, InventoryError, suggest
from controller.inventory_file import check, template, text, write
from controller.inventory_reach import KEYS, written
from targets.base import FleetError

# Text that YAML reads as itself without quotes.
_PLAIN = re.compile(r"(?!(?:true|false|null)$)[A-Za-z][A-Za-z0-9._/-]*(?::(?://)?[A-Za-z0-9._/-]+)*", re.IGNORECASE)
_FIELDS = ("name", "target", *KEYS, "labels", "host", "threads", "options")


def add(path: Path, device: Device) -> None:
    """Add a device. A file that is not there yet is made. Raises InventoryError for what would not be valid."""
    before = text(path) if path.exists() else template()
    devices = check(path, before).devices
    lines = before.rstrip("\n").split("\n")
    found = _devices(before)
    if found is None:
        lines += ["devices:", *_entry(device, "  ")]
    else:
        key_line, sequence = found
        if sequence is None:
            # `devices:` or `devices: []`: what follows on that line but a comment goes.
            head, hash_, comment = lines[key_line].partition("#")
            lines[key_line] = head.split(":")[0] + ":" + (f"  #{comment}" if hash_ else "")
            lines[key_line + 1 : key_line + 1] = _entry(device, "  ")
        else:
            first = sequence.value[0].start_mark.line
            indent = lines[first][: len(lines[first]) - len(lines[first].lstrip())]
            end = _last_line(sequence.value[-1]) + 1
            lines[end:end] = _entry(device, indent)
    _replace(path, lines, [d.name for d in devices] + [device.name])


def remove(path: Path, name: str) -> None:
    """Remove a device with the lines of its entry. Raises FleetError ``unknown-device``."""
    before = text(path)
    known = [device.name for device in check(path, before).devices]
    if name not in known:
        raise FleetError(f"{path} has no device '{name}'", code="unknown-device", hint=suggest(name, known))
    found = _devices(before)
    assert found is not None and found[1] is not None, "a file with devices has a list of them"
    entry = found[1].value[known.index(name)]
    lines = before.rstrip("\n").split("\n")
    del lines[entry.start_mark.line : _last_line(entry) + 1]
    _replace(path, lines, [other for other in known if other != name])


def _devices(content: str) -> tuple[int, SequenceNode | None] | None:
    """The line of the key ``devices`` and its list, None if that is empty; None if there is no such key."""
    root = YAML(typ="rt").compose(content)
    for key, value in root.value if isinstance(root, MappingNode) else ():
        if key.value == "devices":
            return key.start_mark.line, value if isinstance(value, SequenceNode) and value.value else None
    return None


def _last_line(node: Node) -> int:
    """The last line that holds something of ``node`` (a block's own end lies behind the comments after it)."""
    if isinstance(node, MappingNode) and not node.flow_style:
        return max((_last_line(part) for pair in node.value for part in pair), default=node.start_mark.line)
    if isinstance(node, SequenceNode) and not node.flow_style:
        return max((_last_line(part) for part in node.value), default=node.start_mark.line)
    return int(node.end_mark.line)


def _entry(device: Device, indent: str) -> list[str]:
    """A device in YAML. JSON's strings and mappings are YAML's, and need no thought about quoting."""
    values = written(msgspec.to_builtins(device))
    lines = []
    for field in _FIELDS:
        if value := values[field]:
            plain = isinstance(value, int) or (isinstance(value, str) and _PLAIN.fullmatch(value))
            lines.append(f"{field}: {value if plain else json.dumps(value, ensure_ascii=False)}")
    return [f"{indent}- {lines[0]}", *(f"{indent}  {line}" for line in lines[1:])]


def _replace(path: Path, lines: list[str], expected: list[str]) -> None:
    content = "\n".join(lines) + "\n"
    found = [device.name for device in check(path, content).devices]
    if found != expected:
        # Lists written in one line, anchors and the like.
        raise InventoryError(
            f"{path} is written in a way that cannot be edited safely",
            hint="write each device on lines of its own, or edit the file by hand",
        )
    write(path, content)
