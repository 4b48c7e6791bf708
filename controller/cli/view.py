"""Chooses how progress is shown on standard error: the live view on a terminal, else plain lines."""

from __future__ import annotations

import sys
from collections.abc import Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from controller.cli import terminal

if TYPE_CHECKING:
    from controller.fleet import Fleet
    from controller.inventory import Device
    from controller.tui.lines import PlainLines
    from controller.tui.live import LiveView

T = TypeVar("T")


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


def run_viewed(title: str, fleet: Fleet, selection: Sequence[Device], work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run ``work`` on the selected devices and show how it goes."""
    from controller.cli.running import run

    with view(title, selection) as listener:
        fleet.listener = listener
        if not terminal.is_live(sys.stderr):
            return run(work())
        from controller.cli.watching import alongside

        # Only for eyes that see it: asking for readings is load on the boards, small as it is.
        return run(alongside(fleet, selection, work()))
