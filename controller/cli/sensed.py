"""What boards' sensors said during runs, as a table: power, energy, the GPU's clock, heat, the power mode."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import RenderableType

    from controller.reports import RunReport

Conditions = Mapping[str, float | str]

#: Conditions of which one has to be there for the table to say something that the others do not.
_WORTH = ("during.power_w", "during.gpu_mhz", "power_mode")


def sensor_tables(reports: Sequence[RunReport]) -> list[RenderableType]:
    """Runs on boards that tell of their power, their GPU's clock or their power mode; nothing when there are none."""
    from controller.cli.tables import Cell, board, short, table

    told = [report for report in reports if any(name in report.conditions for name in _WORTH)]
    if not told:
        return []
    columns = ["run", "device", "power W", "mJ/item", "gpu MHz", "°C", "heat", "mode", "clocks"]
    rows: list[list[Cell]] = [
        [
            short(report.id),
            board(report.device, report.simulated),
            _figure(report.conditions, "during.power_w", "{:.2f}"),
            _figure(report.conditions, "energy_per_item_j", "{:.1f}", 1e3),
            _range(report.conditions, "during.gpu_mhz"),
            _figure(report.conditions, "during.temperature_c_max", "{:.0f}"),
            _words(report.conditions, "thermal"),
            _words(report.conditions, "power_mode"),
            _words(report.conditions, "clocks"),
        ]
        for report in told
    ]
    return ["", table(columns, rows, right=columns[2:6])]


def _figure(found: Conditions, name: str, form: str, times: float = 1.0) -> str:
    value = found.get(name)
    return form.format(value * times) if isinstance(value, (int, float)) else "—"


def _range(found: Conditions, name: str) -> str:
    """``1020``, or ``612–1020`` where it moved."""
    low, high = (_figure(found, f"{name}_{end}", "{:.0f}") for end in ("min", "max"))
    return low if low == high else f"{low}–{high}"


def _words(found: Conditions, name: str) -> str:
    return str(found.get(name) or "—")
