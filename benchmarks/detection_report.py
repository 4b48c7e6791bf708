"""The detection benchmark's tables: what was measured beside what is wanted."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.cpu_report import beside, number, wide_console
from benchmarks.detection_cases import CASES, WANTED_BUILD_GB, WANTED_IOU, WANTED_NMS_MS, WANTED_POST


def show(document: dict[str, Any], console: Console | None = None) -> None:
    """Print the benchmark's document. What is wanted stands in brackets."""
    console = console or wide_console()
    host = document["machine"]
    table = Table(title=f"{host['processor']}, {host['threads']} of {host['cores']} processors")
    for name in ("model", "beside"):
        table.add_column(name, no_wrap=True)
    columns = ("same", "found", "worst", "mask IoU", "ms", "peer ms", "ratio", "post", "build s", "build GB", "others")
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    for row in document["rows"]:
        (case,) = [case for case in CASES if case.model == row["model"]]
        table.add_row(
            row["model"],
            row["peer"],
            "" if row["same"] is None else f"{row['same']} of {row['pictures']}",
            number(row["detections"], "d"),
            number(row["worst"], ".0e"),
            beside(row["mask_iou"], WANTED_IOU, ".4f", at_least=True),
            number(row["ms"], ".1f"),
            number(row["peer_ms"], ".1f"),
            beside(row["ratio"], row["wanted"], ".2f"),
            beside(row["post"], WANTED_POST, ".3f"),
            beside(row["build_seconds"], case.wanted_build, ".0f"),
            beside(row["build_gb"], WANTED_BUILD_GB, ".1f"),
            number(row["other_load"], ".2f"),
        )
    console.print(table)
    for row in document["rows"]:
        for note in row["notes"]:
            console.print(f"{row['model']}: {note}", markup=False, soft_wrap=True)
    if document["nms"]:
        table = Table(title="Non-maximum suppression of 8,732 boxes × 81 classes on one core")
        for name in ("", "candidates", "kept", "ms", "torchvision ms"):
            table.add_column(name, justify="right" if name else "left")
        for row in document["nms"]:
            milliseconds = beside(row["ms"], WANTED_NMS_MS, ".2f")
            table.add_row(
                row["words"], str(row["candidates"]), str(row["kept"]), milliseconds, number(row["torch_ms"], ".2f")
            )
        console.print(table)
