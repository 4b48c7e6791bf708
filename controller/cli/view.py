"""Chooses how progress is shown on standard error: the live view on a terminal, else plain lines."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from controller.cli import terminal

if TYPE_CHECKING:
    from controller.inventory import Device
    from controller.tui.lines import PlainLines
    from controller.tui.live import LiveView


def view(title: str, devices: Sequence[Device] = (), *, full_screen: bool = False) -> LiveView | PlainLines:
    """A context manager that is a listener."""
    from controller.tui.state import ViewState

    state = ViewState(title)
    for device in devices:
        state.add_device(device.name, device.target, simulated=device.simulated)
    if terminal.is_live(sys.stderr):
        from controller.tui.live import LiveView

        return LiveView(state, terminal.console(sys.stderr), full_screen=full_screen)
    from controller.tui.lines import PlainLines

    return PlainLines(state, sys.stderr)
