"""The CPU benchmark's tables: what was measured beside what is wanted."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.cpu_models import WANTED_BUILD, WANTED_ERROR, WANTED_MEMORY

#: What the widest table takes.
WIDTH = 150


def show(document: dict[str, Any], console: Console | None = None) -> None:
    """Print the benchmark's document. What is wanted stands in brackets."""
    console = console or wide_console()
    machine = document["machine"]
    versions = ", ".join(f"{name} {number}" for name, number in machine["versions"].items())
    title = f"{machine['processor']}, {machine['threads']} of {machine['cores']} processors; {versions}"
    if document["rows"]:
        console.print(hosts(document["rows"], title))
    for row in document["rows"]:
        for note in row["notes"]:
            console.print(f"{row['model']}, batch {row['batch']}, {row['dtype']}: {note}", markup=False, soft_wrap=True)
    if document["arm"]:
        console.print(arms(document["arm"]))


def wide_console() -> Console:
    """For tables that are worth nothing cut: a narrow terminal wraps them, a file gets them whole."""
    console = Console()
    return console if console.width >= WIDTH else Console(width=WIDTH)


def hosts(rows: list[dict[str, Any]], title: str) -> Table:
    table = Table(title=title, caption="ratios are of median latencies; wanted in brackets")
    for name in ("model", "batch", "dtype"):
        table.add_column(name, no_wrap=True)
    for name in ("ms", "GFLOP/s", "ORT ms", "of ORT", "of torch", "of compile", "build s", "memory", "error", "others"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        build = WANTED_BUILD.get(row["model"]) if row["batch"] == 1 else None
        table.add_row(
            row["model"],
            str(row["batch"]),
            row["dtype"],
            number(row["ms"], ".2f"),
            number(row["gflops"], ".0f"),
            number(row["peers_ms"].get("onnxruntime"), ".2f"),
            beside(row["ratio_onnxruntime"], row["wanted"], ".2f"),
            number(row["ratio_torch"], ".2f"),
            number(row["ratio_torch_compile"], ".2f"),
            beside(row["build_seconds"], build, ".0f"),
            beside(row["peak_memory_ratio"], WANTED_MEMORY, ".2f"),
            # Between two int8 networks a difference is a matter of rounding, which no bound is set on.
            beside(row["max_relative_error"], WANTED_ERROR if row["dtype"] == "float32" else None, ".0e"),
            number(row["other_load"], ".2f"),
        )
    return table


def arms(rows: list[dict[str, Any]]) -> Table:
    table = Table(title="Inner loops on ARM, by LLVM's scheduling models: share of the FMA unit's peak")
    for name in ("processor", "kernel"):
        table.add_column(name, no_wrap=True)
    for name in ("FMAs", "instructions", "cycles", "FLOP/cycle", "utilisation"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("")
    for row in rows:
        table.add_row(
            row["processor"],
            row["kernel"],
            number(row["fma"], "d"),
            number(row["instructions"], "d"),
            number(row["cycles"], ".1f"),
            number(row["flop_per_cycle"], ".2f"),
            beside(row["utilisation"], row["wanted"], ".0%", at_least=True),
            row["note"],
        )
    return table


def number(value: float | None, form: str) -> str:
    """As ``form`` says, or a dash for what is not known."""
    return "-" if value is None else format(value, form)


def beside(value: float | None, wanted: float | None, form: str, *, at_least: bool = False) -> str:
    """``0.71 (0.80)``, red and with a mark where it does not hold."""
    if value is None or wanted is None:
        return number(value, form)
    holds = value >= wanted if at_least else value <= wanted
    colour, mark = ("green", "") if holds else ("red", "!")
    return f"[{colour}]{value:{form}}{mark} ({wanted:{form}})[/{colour}]"
