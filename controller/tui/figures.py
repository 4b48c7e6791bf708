"""Figures as people read them: three or four significant digits, the unit's usual prefix."""

from __future__ import annotations

from collections.abc import Sequence


def milliseconds(value: float) -> str:
    """A latency in milliseconds, without the unit: ``0.412``, ``12.34``, ``1234``."""
    if value < 10:
        return f"{value:.3f}"
    return f"{value:.2f}" if value < 100 else f"{value:.1f}" if value < 1000 else f"{value:.0f}"


def rate(value: float) -> str:
    """Per second, without the unit: ``0.52``, ``12.3``, ``980``, ``12.3k``."""
    if value >= 1e6:
        return f"{value / 1e6:.1f}M"
    if value >= 1e4:
        return f"{value / 1e3:.1f}k"
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def size(value: float) -> str:
    """Bytes with decimal prefixes: ``0 B``, ``512 B``, ``45.2 MB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def duration(seconds: float) -> str:
    """``0.3 s``, ``12.1 s``, ``2:05``, ``1:02:05``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


_BLOCKS = "▁▂▃▄▅▆▇█"
_ASCII_BLOCKS = "_.-~=+*#"
#: A sparkline's full height is at least this share of its values, so that noise does not look like an event.
_SMALLEST_SPAN = 0.1


def sparkline(values: Sequence[float], width: int, *, ascii_only: bool = False) -> str:
    """The last ``width`` values as bars from their minimum to their maximum."""
    shown = list(values)[-width:]
    if not shown:
        return ""
    blocks = _ASCII_BLOCKS if ascii_only else _BLOCKS
    low = min(shown)
    span = max(max(shown) - low, _SMALLEST_SPAN * abs(low)) or 1.0
    return "".join(blocks[min(len(blocks) - 1, int((value - low) / span * len(blocks)))] for value in shown)


def bar(share: float, width: int, *, ascii_only: bool = False) -> tuple[str, str]:
    """A progress bar as its done and its open part."""
    done = round(max(0.0, min(1.0, share)) * width)
    full, rest = ("#", ".") if ascii_only else ("━", "─")
    return full * done, rest * (width - done)
