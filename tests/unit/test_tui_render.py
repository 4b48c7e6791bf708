"""The live view's picture at fixed widths."""

import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from controller.events import DeviceChanged, Message, Progress, Reading, SampleBatch
from controller.tui import figures
from controller.tui.render import Look, render
from controller.tui.state import ViewState

BUNDLE = "0123456789ab" + "0" * 52


def scene(boards: int = 4) -> ViewState:
    """Boards of which the third is measured and the last one gone."""
    state = ViewState("fleet bench")
    for number in range(1, boards + 1):
        state.add_device(f"sim-{number}", "x86", simulated=True)
        state.apply(DeviceChanged(f"sim-{number}", "idle", BUNDLE, "shapes-classifier"), 0.0)
    state.apply(DeviceChanged("sim-3", "benching", BUNDLE, "shapes-classifier"), 1.0)
    for step in range(1, 9):
        state.apply(SampleBatch("sim-3", "shapes-classifier", BUNDLE, [1.5 + step / 100] * 10, step / 16), 2.0)
    state.apply(
        Reading("sim-3", {"cpu_percent": 51.6, "memory_bytes": 123.4e6, "temperature_c": 48.2, "power_w": 3.25}), 2.0
    )
    state.apply(DeviceChanged(f"sim-{boards}", "offline"), 3.0)
    state.apply(Progress("", "build", 0.5, "resnet18 for arm64: compile"), 3.0)
    return state


def drawn(state: ViewState, width: int, height: int, *, ascii_only: bool = False, first: int = 0) -> list[str]:
    out = io.StringIO()
    console = Console(file=out, width=width, height=height, color_system=None, force_terminal=False)
    console.print(render(state, Look(width, height, ascii_only), elapsed=12.3, first=first))
    return out.getvalue().splitlines()


def line_of(lines: list[str], start: str) -> str:
    return next(line for line in lines if line.startswith(start))


def test_a_wide_picture_shows_everything() -> None:
    lines = drawn(scene(), 160, 30)
    assert lines[0].startswith("fleet bench  4 boards (simulated)  1 busy  12.3 s")
    assert "resnet18 for arm64" in lines[1]
    assert "50% compile" in lines[1]
    head = "device target state progress release p50 ms p99 ms q/s latency cpu memory temp power"
    assert " ".join(lines[2].split()) == head
    row = line_of(lines, "sim-3")
    for part in ("x86 sim", "benching", "measure", "shapes-classifier 01234567", "1.540", "1.580", "52%", "123 MB"):
        assert part in row
    for part in ("48°C", "3.2W", "▁▁▂▂▃▃▄▄", "━━"):
        assert part in row
    assert "—" in line_of(lines, "sim-1")
    assert "offline" in line_of(lines, "sim-4")
    assert "sim-4 offline" in lines[-2]


def test_a_gpu_s_clock_is_shown_where_a_board_has_one() -> None:
    state = scene()
    state.apply(Reading("sim-3", {"gpu_mhz": 1020.75, "power_w": 9.12}), 2.0)
    lines = drawn(state, 160, 30)
    assert " ".join(lines[2].split()).endswith("temp gpu power")
    assert line_of(lines, "sim-3").rstrip().endswith("1021MHz   9.1W")
    assert "MHz" not in line_of(lines, "sim-1")
    assert " gpu " not in drawn(scene(), 160, 30)[2]
    assert lines[-1].endswith("build resnet18 for arm64")


def test_a_narrow_picture_keeps_what_matters_most() -> None:
    lines = drawn(scene(), 60, 30)
    assert line_of(lines, "device").split() == ["device", "state", "progress", "p50", "ms", "p99", "ms"]
    assert "1.540" in line_of(lines, "sim-3")
    assert max(map(len, lines)) <= 60


def test_what_does_not_fit_is_counted_and_the_busy_come_first() -> None:
    lines = drawn(scene(40), 80, 12)
    assert len(lines) <= 12
    shown = [line.split()[0] for line in lines if line.startswith("sim-")]
    assert shown[0] == "sim-3"
    assert f"+{40 - len(shown)} more" in lines


def test_scrolling_shows_the_others_in_order() -> None:
    lines = drawn(scene(40), 80, 12, first=20)
    shown = [line.split()[0] for line in lines if line.startswith("sim-")]
    assert shown[0] == "sim-21"
    lines = drawn(scene(40), 80, 12, first=39)
    assert [line.split()[0] for line in lines if line.startswith("sim-")][-1] == "sim-40"


def test_a_terminal_without_unicode_gets_ascii() -> None:
    text = "\n".join(drawn(scene(), 160, 30, ascii_only=True))
    assert text.isascii()
    assert "48C" in text


def test_log_text_is_one_line_without_control_characters_or_markup() -> None:
    state = ViewState("t")
    state.apply(Message("sim-1", "[red]two\nlines\x1b[2J\r\x07end"), 0.0)
    last = drawn(state, 80, 20)[-1]
    assert "[red]two lines" in last
    assert last.endswith("end")
    assert "\x1b" not in last
    assert "\x07" not in last


@settings(max_examples=60, deadline=None)
@given(
    boards=st.integers(1, 50), width=st.integers(20, 200), height=st.integers(1, 60), ascii_only=st.booleans(),
    first=st.integers(0, 60),
)  # fmt: skip
def test_any_size_is_respected(boards: int, width: int, height: int, ascii_only: bool, first: int) -> None:
    lines = drawn(scene(boards), width, height, ascii_only=ascii_only, first=first)
    # Below five lines there is no room for a title, a head, one device and the rest.
    assert len(lines) <= max(height, 5)
    assert max(map(len, lines)) <= width


@pytest.mark.parametrize(
    ("value", "text"), [(0.4123, "0.412"), (9.9994, "9.999"), (12.345, "12.35"), (123.45, "123.5"), (1234.5, "1234")]
)
def test_milliseconds(value: float, text: str) -> None:
    assert figures.milliseconds(value) == text


def test_sizes_rates_durations() -> None:
    assert [figures.size(value) for value in (0, 512, 45.2e6, 1.5e9, 2e15)] == [
        "0 B", "512 B", "45.2 MB", "1.5 GB", "2000.0 TB",
    ]  # fmt: skip
    assert [figures.rate(value) for value in (0.5, 12.34, 980.2, 12345, 2.5e6)] == [
        "0.50", "12.3", "980", "12.3k", "2.5M",
    ]  # fmt: skip
    assert [figures.duration(value) for value in (0.31, 125, 3725)] == ["0.3 s", "2:05", "1:02:05"]


def test_a_sparkline_spans_its_values_but_not_noise() -> None:
    assert figures.sparkline([1.0, 2.0, 3.0], 8) == "▁▅█"
    assert set(figures.sparkline([1.0, 1.001, 1.0], 8)) == {"▁"}
    assert figures.sparkline([], 8) == ""
    assert len(figures.sparkline(list(range(100)), 8)) == 8


@given(st.floats(0, 1), st.integers(0, 60))
def test_a_bar_has_its_width(share: float, width: int) -> None:
    done, rest = figures.bar(share, width)
    assert len(done) + len(rest) == width
