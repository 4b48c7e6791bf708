"""Runs as files for other programs and for people: CSV, JSON lines, JSON, and a Markdown table."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, Literal, TextIO, get_args

import msgspec

from targets.base import FleetError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from controller.results import StoredRun

    Samples = Callable[[str], tuple[npt.NDArray[np.float64], npt.NDArray[np.int32]]]

Format = Literal["csv", "jsonl", "json", "md"]
FORMATS: tuple[Format, ...] = get_args(Format)

_LATENCIES = ("mean", "std", "min", "p50", "p90", "p99", "max")
_COLUMNS = (
    *("id", "started", "device", "target", "simulated", "model", "bundle", "engine", "batch", "verdict", "reason"),
    *(f"{name}_ms" for name in _LATENCIES),
    *("ci50_low_ms", "ci50_high_ms", "throughput", "samples", "commit", "origin", "interleaved_with", "agent_version"),
    "protocol",
)
_SAMPLE_COLUMNS = ("id", "device", "model", "bundle", "index", "block", "latency_ms")


def export(runs: Iterable[StoredRun], form: Format, out: TextIO, *, samples: Samples | None = None) -> None:
    """Write ``runs`` to ``out``.

    ``samples`` (`Results.samples`) adds every latency: a key ``latencies_ms`` and ``blocks`` in JSON; in CSV the rows
    are then samples instead of runs. A Markdown table has no room for them: :class:`FleetError` (``bad-export``).
    """
    if form == "csv":
        _csv(runs, out, samples)
    elif form == "jsonl":
        for run in runs:
            out.write(_json(_document(run, samples)) + "\n")
    elif form == "json":
        out.write('{"schema":1,"runs":[')
        for index, run in enumerate(runs):
            out.write((",\n" if index else "\n") + _json(_document(run, samples)))
        out.write("\n]}\n")
    elif form == "md":
        if samples is not None:
            raise FleetError(
                "a Markdown table has no room for samples", code="bad-export", hint="use csv, jsonl or json"
            )
        _markdown(runs, out)
    else:
        raise FleetError(f"'{form}' is not a format", code="bad-export", hint=f"formats: {', '.join(FORMATS)}")


def started(run: StoredRun) -> str:
    """When the run started, ISO 8601 in UTC."""
    return datetime.fromtimestamp(run.started_at, timezone.utc).isoformat(timespec="seconds")


def _json(document: dict[str, Any]) -> str:
    return msgspec.json.encode(document).decode()


def _document(run: StoredRun, samples: Samples | None) -> dict[str, Any]:
    document: dict[str, Any] = msgspec.to_builtins(run)
    if samples is not None:
        latencies, blocks = samples(run.id)
        document |= {"latencies_ms": latencies.tolist(), "blocks": blocks.tolist()}
    return document


def _csv(runs: Iterable[StoredRun], out: TextIO, samples: Samples | None) -> None:
    writer = csv.writer(out, lineterminator="\n")
    if samples is None:
        names: list[str] = []
        rows = []
        for run in runs:
            rows.append((run, run.conditions))
            names += [name for name in run.conditions if name not in names]
        # What a board cannot tell stays empty.
        writer.writerow([*_COLUMNS, *map(_cell, names)])
        for run, conditions in rows:
            writer.writerow([*_row(run), *(_cell(conditions.get(name, "")) for name in names)])
        return
    writer.writerow(_SAMPLE_COLUMNS)
    for run in runs:
        latencies, blocks = samples(run.id)
        identity = [_cell(value) for value in (run.id, run.device, run.model, run.bundle)]
        block_of = (block for block, length in enumerate(blocks.tolist()) for _ in range(length))
        for index, (block, latency) in enumerate(zip(block_of, latencies.tolist(), strict=True)):
            writer.writerow([*identity, index, block, repr(latency)])


def _row(run: StoredRun) -> list[object]:
    stats = run.latency_ms
    assert stats is not None  # only runs that were measured are stored
    return [
        *(_cell(value) for value in (run.id, started(run), run.device, run.target, str(run.simulated).lower())),
        *(_cell(value) for value in (run.model, run.bundle, run.engine, run.batch, run.verdict, run.reason)),
        *(getattr(stats, name) for name in _LATENCIES),
        *stats.ci50,
        run.throughput,
        run.samples,
        *(_cell(value) for value in (run.commit, run.origin, run.interleaved_with, run.agent_version)),
        run.protocol,
    ]


def _cell(value: object) -> object:
    """Text from a device must not become a formula in a spreadsheet: OWASP's advice on CSV injection."""
    if isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r")):
        return f"'{value}"
    return value


def _markdown(runs: Iterable[StoredRun], out: TextIO) -> None:
    out.write("| run | started | device | model | p50 ms (95 % interval) | p90 ms | p99 ms | items/s | verdict |\n")
    out.write("| --- | --- | --- | --- | ---: | ---: | ---: | ---: | --- |\n")
    for run in runs:
        stats = run.latency_ms
        assert stats is not None  # only runs that were measured are stored
        simulated = " (simulated)" if run.simulated else ""
        cells = [
            run.id[:8],
            started(run),
            run.device + simulated,
            run.model if run.batch == 1 else f"{run.model} × {run.batch}",
            f"{stats.p50:.4g} ({stats.ci50[0]:.4g} to {stats.ci50[1]:.4g})",
            f"{stats.p90:.4g}",
            f"{stats.p99:.4g}",
            f"{run.throughput:.4g}",
            run.verdict + (f": {run.reason}" if run.reason else "") + _protocol(run),
        ]
        out.write(f"| {' | '.join(_escape(cell) for cell in cells)} |\n")


def _protocol(run: StoredRun) -> str:
    return "" if run.protocol == "fleet" else f" (protocol {run.protocol})"


def _escape(cell: str) -> str:
    """One table cell: no line breaks, and nothing that Markdown or HTML would read as more than text."""
    text = " ".join(cell.split()).replace("&", "&amp;").replace("<", "&lt;")
    return "".join(f"\\{char}" if char in "\\|`*_[]" else char for char in text)
