"""What ``vta sim`` tells: the JSON document, and the tables for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from targets.pictures.found import TopLabel

if TYPE_CHECKING:
    from rich.console import RenderableType

    from controller.cli.tables import Cell

#: What TVM's documentation says its simulator counts for ResNet-18 v1 (tutorial ``deploy_classification``, TVM 0.9 to
#: 0.13), in the default configuration, batch 1.
PUBLISHED: Mapping[tuple[str, str], Mapping[str, int]] = {
    ("resnet18_v1", "1x16_i8w8a32_15_15_18_17"): {
        "inp_load_nbytes": 5_549_568,
        "wgt_load_nbytes": 12_763_136,
        "acc_load_nbytes": 6_051_840,
        "uop_load_nbytes": 22_864,
        "out_store_nbytes": 2_433_536,
        "gemm_counter": 6_623_232,
        "alu_counter": 699_328,
    }
}


class LayerFigures(msgspec.Struct, kw_only=True):
    """What one layer costs. ``cycles`` are the time from its first instruction to its last, as the model sees it."""

    name: str
    operator: str
    counters: dict[str, int]
    bytes_moved: int
    cycles: int


class ModuleFigures(msgspec.Struct, kw_only=True):
    """What a module does, as the model sees it: cycles of work, their share, and cycles that it waits, by what for."""

    name: str
    busy: int
    utilisation: float
    waiting: dict[str, int]


class OutputFigures(msgspec.Struct, kw_only=True):
    """An output of a program that ran by itself: int8 NCHW, by its digest."""

    name: str
    shape: tuple[int, ...]
    sha256: str


class SimReport(msgspec.Struct, kw_only=True):
    """One simulated run. ``seconds`` is the simulator's own time, ``cycles`` the model's for ``board``."""

    program: str
    counters: dict[str, int]
    bytes_moved: int
    cycles: int
    #: What arithmetic and memory would take alone.
    gemm_cycles: int
    dma_cycles: int
    predicted_ms: float
    seconds: float
    gemm_per_second: float
    layers: list[LayerFigures]
    modules: list[ModuleFigures]
    top: list[TopLabel] = []
    outputs: list[OutputFigures] = []
    simulated: bool = True
    board: str
    config: str
    semantics: str
    order: str
    seed: int
    instructions: int
    #: What it computed on.
    input: str
    #: Where a model and its weights come from; empty for a program.
    origin: str = ""
    bundle: str = ""
    notes: list[str] = []
    #: TVM's counters for the same network, where they were published.
    published: dict[str, int] = {}
    #: Whether memory is afterwards what the folder says; null if it says nothing.
    as_expected: bool | None = None
    difference: str = ""
    timeline: str = ""


def parts(report: SimReport) -> list[RenderableType]:
    """The report for people."""
    from controller.tui.figures import milliseconds, rate, size

    said: list[RenderableType] = [
        f"{report.program}  {report.config}  {report.instructions} instructions, simulated ({report.semantics}, "
        f"{report.order} order{f' {report.seed}' if report.order == 'random' else ''})",
        *([f"model: {report.origin}"] if report.origin else []),
        f"input: {report.input}",
        "",
    ]
    if len(report.layers) > 1:
        said += [_layers(report), ""]
    said += [_counters(report), ""]
    said += [_modules(report), ""]
    said.append(
        f"moved {size(report.bytes_moved)}, {report.cycles:,} cycles (GEMM {report.gemm_cycles:,}, memory "
        f"{report.dma_cycles:,}), {milliseconds(report.predicted_ms)} ms predicted on {report.board}"
    )
    said.append(f"simulated in {report.seconds:.3f} s: {rate(report.gemm_per_second)} block operations a second")
    if report.timeline:
        said.append(f"timeline: {report.timeline}")
    if report.outputs:
        said += ["", _outputs(report)]
    if report.top:
        said += ["", _top(report)]
    if report.as_expected is not None:
        said.append(
            "the result is as expected" if report.as_expected else f"the result is NOT as expected: {report.difference}"
        )
    said += [f"note: {note}" for note in report.notes]
    return said


def _layers(report: SimReport) -> RenderableType:
    from controller.cli.tables import table
    from targets.vta.counters import NAMES

    columns = ["layer", "operator", *(_short(name) for name in NAMES), "cycles"]
    rows: list[list[Cell]] = [
        [layer.name, layer.operator, *(f"{layer.counters[name]:,}" for name in NAMES), f"{layer.cycles:,}"]
        for layer in report.layers
    ]
    return table(columns, rows, right=columns[2:])


def _short(name: str) -> str:
    """The same word without what all of them end in."""
    return name.removesuffix("_nbytes").removesuffix("_counter")


def _counters(report: SimReport) -> RenderableType:
    from controller.cli.tables import table

    columns = ["counter", "value", *(["TVM's", "ratio"] if report.published else [])]
    rows: list[list[Cell]] = [
        [name, f"{value:,}", *_compared(value, report.published.get(name))] for name, value in report.counters.items()
    ]
    if report.published:
        published = sum(value for name, value in report.published.items() if name.endswith("_nbytes"))
        rows.append(["bytes moved", f"{report.bytes_moved:,}", *_compared(report.bytes_moved, published)])
    return table(columns, rows, right=("value", "TVM's", "ratio"))


def _compared(value: int, published: int | None) -> list[str]:
    return [] if published is None else [f"{published:,}", f"{value / published:.3f}"]


def _modules(report: SimReport) -> RenderableType:
    from controller.cli.tables import table

    rows: list[list[Cell]] = [
        [
            module.name,
            f"{module.utilisation:.0%}",
            ", ".join(f"{what} {cycles / max(report.cycles, 1):.0%}" for what, cycles in module.waiting.items()),
        ]
        for module in report.modules
    ]
    return table(["module", "busy", "waits for"], rows, right=("busy",))


def _top(report: SimReport) -> RenderableType:
    from controller.cli.tables import table

    rows: list[list[Cell]] = [[str(top.index), top.label, f"{top.score:.4f}"] for top in report.top]
    return table(["class", "label", "score"], rows, right=("class", "score"))


def _outputs(report: SimReport) -> RenderableType:
    from controller.cli.tables import table

    rows: list[list[Cell]] = [[o.name, "×".join(map(str, o.shape)), o.sha256] for o in report.outputs]
    return table(["output", "shape", "sha256"], rows)


def document(report: SimReport) -> dict[str, Any]:
    found: dict[str, Any] = msgspec.to_builtins(report)
    return found
