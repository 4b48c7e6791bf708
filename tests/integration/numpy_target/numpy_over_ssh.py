"""Boards like those of `numpy_target` that are reached over SSH and stand on a tool of their own."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from numpy_target import NumpyDevice, NumpyTarget

from targets.base import Link, Option


class ToolDevice(NumpyDevice):
    """Says what its tool is, if it has one."""

    def telemetry(self) -> dict[str, float]:
        tool = Path(os.environ.get("NUMPY_TOOL", "/nowhere"))
        return {"tool": float(tool.read_text())} if tool.exists() else {}


class OverSshTarget(NumpyTarget):
    name = "numpy-ssh"
    link: ClassVar[Link] = "ssh"
    only_simulated = False

    def device(self) -> ToolDevice:
        return ToolDevice()

    def simulated_device(self) -> ToolDevice:
        return ToolDevice()

    def simulated_options(self, options: Mapping[str, Option]) -> dict[str, Option]:
        return dict(options)

    def prepare(self, folder: Path) -> dict[str, str]:
        tool = folder / "tool of its own"
        tool.write_text("42")
        return {"NUMPY_TOOL": str(tool)}
