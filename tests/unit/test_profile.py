"""Profiles: what a watch sees, what the figures mean, what is advised, and how it is shown."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from agent.protocol import ProtocolError
from controller.cli.profile import tables
from controller.profile_picture import picture
from controller.reports import ProfileReport
from controller.roofline import analyse, roof
from targets.base import FleetError, OperatorProfile, OperatorTime
from targets.cpu.layers import LayerRow, LayerTable
from targets.cpu.profile import Watch, profile

#: GFLOP/s, GB/s: from 10 operations a byte on, multiply-adds bound.
PEAK, MEMORY = 200.0, 20.0


def operator(kernel: str, ms: float, *, gflops: float = 0.0, intensity: float = 50.0, **more: Any) -> OperatorTime:
    """An operator that took ``ms`` at so many GFLOP/s, with so many operations a byte."""
    flops = int(gflops * ms * 1e6)
    values: dict[str, Any] = {
        "operators": ("nn.conv2d", "add", "nn.relu"),
        "output": (1, 64, 56, 56),
        "choice": "direct",
        "bytes": int(flops / intensity) if flops else 1_000_000,
    }
    return OperatorTime(kernel=kernel, flops=flops, seconds=ms / 1e3, **{**values, **more})


def analysed(*operators: OperatorTime, between: float = 0.5, **more: Any) -> ProfileReport:
    total = sum(one.seconds for one in operators) + between / 1e3
    measured = OperatorProfile(
        operators=operators,
        between_seconds=between / 1e3,
        query_seconds=total,
        peak_flops=PEAK * 1e9,
        peak_bytes=MEMORY * 1e9,
        threads=2,
        queries=7,
    )
    report = ProfileReport(device="kitchen", target="x86", simulated=False, model="net", bundle="ab" * 32)
    return analyse(report, msgspec.structs.replace(measured, **more))


# --- What a watch sees ----------------------------------------------------------------------------


@dataclass
class Tensor:
    shape: tuple[int, ...]
    dtype: Any


@dataclass
class Bits:
    bits: int


def row(kernel: str, operators: list[str]) -> LayerRow:
    return LayerRow(kernel=kernel, operators=operators, output=[1, 8], flops=100, bytes=64, choice="chosen")


def table(*rows: LayerRow) -> LayerTable:
    return LayerTable(
        layers=list(rows),
        peak_flops=1000,
        peak_lanes=4,
        peak_jobs=2,
        stream_bytes=4000,
        stream_jobs=2,
        stream_numbers=8,
    )


def calls(watch: Watch, *names: str, arguments: tuple[Tensor, ...] = ()) -> None:
    """What the virtual machine tells its instrument of these calls, one after the other."""
    for name in names:
        watch(None, name, True, None, *arguments)
        watch(None, name, False, None, *arguments)


def profiled(watch: Watch, run: Any, rows: LayerTable, queries: int = 3) -> OperatorProfile:
    return profile(
        query=lambda: 0.5,
        watched=run,
        watch=watch,
        peak=lambda: 1e-6,
        stream=lambda: 2e-6,
        table=rows,
        threads=3,
        queries=queries,
    )


def test_calls_inside_another_are_its_time() -> None:
    watch = Watch()
    watch(None, "outer", True, None)
    calls(watch, "inner", "vm.builtin.alloc_tensor")
    watch(None, "outer", False, None)
    calls(watch, "vm.builtin.reshape", "last")
    assert [call.kernel for call in watch.take()] == ["inner", "last"]
    assert watch.take() == []


def test_each_call_gets_the_row_of_its_kernel_in_order() -> None:
    watch = Watch()
    arguments = (Tensor((4, 2), Bits(32)), Tensor((6,), Bits(8)))

    def run() -> None:
        calls(watch, "vm.builtin.alloc_storage", "conv_1", "softmax", "conv_2", "conv_1", arguments=arguments)

    found = profiled(watch, run, table(row("conv_1", ["first"]), row("conv_2", ["second"]), row("conv_1", ["third"])))
    assert [one.kernel for one in found.operators] == ["conv_1", "softmax", "conv_2", "conv_1"]
    assert [one.operators for one in found.operators] == [("first",), ("softmax",), ("second",), ("third",)]
    theirs = found.operators[1]
    assert (theirs.output, theirs.bytes, theirs.flops, theirs.choice) == ((6,), 4 * 2 * 4 + 6, 0, "")
    assert found.peak_flops == pytest.approx(1e9) and found.peak_bytes == pytest.approx(2e9)
    assert (found.query_seconds, found.threads, found.queries) == (0.5, 3, 3)
    assert 0 <= found.between_seconds < 0.5


def test_a_model_that_takes_another_way_each_time_has_no_profile() -> None:
    watch = Watch()
    numbers = iter(range(100))
    with pytest.raises(FleetError) as raised:
        profiled(watch, lambda: calls(watch, f"kernel_{next(numbers)}"), table())
    assert raised.value.code == "no-profile"


# --- What the figures mean ------------------------------------------------------------------------


def test_figures_of_an_operator() -> None:
    report = analysed(operator("conv2d_1", 2.0, gflops=100, intensity=50), operator("pool_1", 1.5))
    conv, pool = report.operators
    assert (conv.ms, conv.share, conv.gflops) == pytest.approx((2.0, 0.5, 100.0))
    assert (conv.peak_share, conv.gbytes_per_second, conv.bound) == (pytest.approx(0.5), pytest.approx(2.0), "compute")
    assert (pool.gflops, pool.peak_share, pool.bound) == (0.0, 0.0, "")
    assert pool.gbytes_per_second == pytest.approx(1e6 / 1.5e-3 / 1e9)
    assert (report.query_ms, report.between_ms, report.peak_gflops) == pytest.approx((4.0, 0.5, PEAK))
    assert roof(5, report) == pytest.approx(100) and roof(50, report) == PEAK


@given(
    st.lists(
        st.tuples(st.floats(0, 1e3), st.integers(0, 10**12), st.integers(0, 10**10)),
        max_size=6,
    )
)
def test_any_figures_make_a_whole_report(figures: list[tuple[float, int, int]]) -> None:
    operators = [operator(f"k{number}", 1.0, output=(1,), bytes=moved) for number, (_, _, moved) in enumerate(figures)]
    replaced = [
        msgspec.structs.replace(one, seconds=seconds, flops=flops)
        for one, (seconds, flops, _) in zip(operators, figures, strict=True)
    ]
    report = analysed(*replaced)
    assert sum(one.share for one in report.operators) <= 1 + 1e-9
    assert b"NaN" not in msgspec.json.encode(report)
    ElementTree.fromstring(picture(report))
    assert tables(report, 3)


@pytest.mark.parametrize(
    "wrong",
    [
        {"peak_flops": 0.0},
        {"peak_bytes": float("nan")},
        {"peak_flops": 1e-300},
        {"query_seconds": -1.0},
        {"between_seconds": float("inf")},
        {"operators": (operator("k", -1.0),)},
        {"operators": (operator("k", 1.0, bytes=-1),)},
    ],
)
def test_figures_that_cannot_be_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ProtocolError, match="kitchen"):
        analysed(operator("k", 1.0), **wrong)


# --- Advice -----------------------------------------------------------------------------------------


def test_the_kernel_with_most_to_win_is_named_over_all_its_calls() -> None:
    report = analysed(
        operator("slowest", 3.0, gflops=190),
        operator("again", 1.0, gflops=50),
        operator("again", 1.0, gflops=50),
        operator("worst", 1.2, gflops=10),
    )
    assert report.advice.startswith("Work on again (conv2d + add + relu, 1×64×56×56, 2 calls): 2.000 ms at 50 GFLOP/s")
    assert "25% of the peak" in report.advice and "1.500 ms less" in report.advice
    assert "go by" not in report.advice


def test_what_memory_bounds_is_not_to_be_multiplied_faster() -> None:
    report = analysed(
        operator("conv", 1.0, gflops=100),
        operator("dense", 5.0, gflops=5, intensity=0.5),
        operator("pool", 2.0),
    )
    assert [one.bound for one in report.operators] == ["compute", "memory", ""]
    work, _, rest = report.advice.partition(" less. ")
    assert work.startswith("Work on conv (")
    assert rest.startswith("7.000 ms go by in operators that multiply-adds do not bound, most of them in dense (")


def test_faster_than_direct_is_nothing_to_win() -> None:
    """Winograd's products are counted as those that it saves: it may be above the peak."""
    report = analysed(operator("winograd", 9.0, gflops=300), operator("direct", 1.0, gflops=150))
    assert report.operators[0].peak_share > 1
    assert report.advice.startswith("Work on direct (")


def test_no_operators_no_advice() -> None:
    assert analysed().advice == ""


# --- How it is shown --------------------------------------------------------------------------------


def shown(report: ProfileReport, top: int = 10, width: int = 200) -> str:
    out = Console(file=io.StringIO(), width=width)
    for part in tables(report, top):
        out.print(part)
    text = out.file.getvalue()  # type: ignore[attr-defined]
    assert isinstance(text, str)
    return text


def test_a_table_has_the_slowest_first_and_adds_up() -> None:
    report = analysed(
        operator("quick", 1.0, gflops=150), operator("slow", 7.0, gflops=50), operator("pool", 1.5), between=0.5
    )
    text = shown(report, top=2)
    lines = [line for line in text.splitlines() if line.strip()]
    assert "net on kitchen" in lines[0] and "measured peak 200 GFLOP/s" in lines[1]
    first = next(line for line in lines if "slow: direct" in line)
    assert first.split()[0] == "2" and "7.000" in first and "70.0%" in first and "25%" in first
    assert lines.index(first) < next(n for n, line in enumerate(lines) if "pool: direct" in line)
    assert "1 others" in text and "between operators" in text
    assert next(line for line in lines if line.strip().startswith("together")).split()[1:3] == ["10.00", "100.0%"]
    assert "Others took" not in text


@pytest.mark.parametrize("width", [80, 100, 200])
def test_figures_are_never_cut(width: int) -> None:
    report = analysed(operator("conv2d_with_a_long_name", 12.34, gflops=111, choice="a long story " * 9))
    line = next(line for line in shown(report, width=width).splitlines() if "12.34" in line and "111" in line)
    assert "56%" in line and "2.2" in line


def test_a_disturbed_profile_says_so() -> None:
    report = analysed(operator("k", 1.0, gflops=10))
    report.other_load = 0.6
    assert "Others took 60%" in shown(report)


def test_a_failure_is_one_line() -> None:
    report = ProfileReport(device="kitchen", target="pynq", simulated=True, model="net", error="no \x1b[31mprofile")
    assert shown(report).strip() == "net on kitchen (simulated): no [31mprofile"


def test_a_picture_has_every_operator_in_the_networks_order() -> None:
    report = analysed(
        operator("a", 1.0, gflops=190),
        operator("b", 3.0, gflops=20, operators=("nn.max<pool2d>", "\x1b[31m&")),
        operator("c", 2.0, gflops=9, intensity=0.5),
        operator("d", 0.0),
    )
    root = ElementTree.fromstring(picture(report))
    space = "{http://www.w3.org/2000/svg}"
    words = [text.text or "" for text in root.iter(f"{space}text")]
    assert any("net on kitchen" in text for text in words) and "peak 200 GFLOP/s" in words
    groups = root.findall(f"{space}g")
    assert len(groups) == 4
    titles = [group.findtext(f"{space}title") or "" for group in groups]
    assert [title.partition(":")[0] for title in titles] == ["a", "b", "c", "d"]
    assert all(title.isprintable() for title in titles)
    widths = [float(group.find(f"{space}rect").attrib["width"]) for group in groups]  # type: ignore[union-attr]
    assert widths[1] == max(widths) and widths[0] == pytest.approx(widths[1] / 3, abs=0.1)
    colours = {group.find(f"{space}rect").attrib["fill"] for group in groups}  # type: ignore[union-attr]
    assert len(colours) == 4
    assert len(root.findall(f"{space}circle")) == 3
    assert "prefers-color-scheme: dark" in (root.findtext(f"{space}style") or "")
