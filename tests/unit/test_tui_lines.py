"""Progress as plain lines."""

import io
import os
import time

from controller.events import DeviceChanged, Event, Message, Progress, SampleBatch
from controller.tui.lines import BURST, BURST_WINDOW, FIGURES_INTERVAL, PlainLines
from controller.tui.state import ViewState


class Scene:
    """Plain lines on a clock that the test moves."""

    def __init__(self) -> None:
        self.now = 1_000_000.0
        self.out = io.StringIO()
        self.lines = PlainLines(ViewState("test"), self.out, clock=lambda: self.now)

    def at(self, seconds: float, *events: Event) -> None:
        self.now = 1_000_000.0 + seconds
        for event in events:
            self.lines(event)

    @property
    def written(self) -> list[str]:
        return [line.split(" ", 1)[1] for line in self.out.getvalue().splitlines()]


def test_each_change_is_one_line_with_its_time() -> None:
    scene = Scene()
    scene.at(0, DeviceChanged("a", "benching"), DeviceChanged("a", "benching"))
    scene.at(1, Message("a", "worker died", "error"))
    assert scene.written == ["a benching", "a error: worker died"]
    assert scene.out.getvalue().startswith(time.strftime("%H:%M:%S ", time.localtime(1_000_000)))


def test_running_figures_come_now_and_then() -> None:
    scene = Scene()
    for step in range(100):
        scene.at(step / 10, SampleBatch("a", "net", "ab", [2.0] * 5, step / 100))
    assert scene.written[0] == "a measure 0%, 5 queries, p50 2.000 ms, p99 2.000 ms"
    assert len(scene.written) == 1 + int(9.9 / FIGURES_INTERVAL)


def test_a_long_push_says_how_far_it_is() -> None:
    scene = Scene()
    for step in range(11):
        scene.at(step, Progress("a", "push", step / 10, bytes_done=step * 10**6, bytes_total=10**7))
    assert scene.written == ["a push", "a push 50%, 5.0 MB of 10.0 MB", "a push done"]


def test_a_flood_is_cut_and_counted_but_errors_come_through() -> None:
    scene = Scene()
    for number in range(100):
        scene.at(number / 100, Message("a", f"line {number}"))
    scene.at(1.5, Message("b", "another device"), Message("a", "bad", "error"))
    scene.at(BURST_WINDOW + 1, Message("a", "calm again"))
    assert scene.written == [
        *(f"a line {number}" for number in range(BURST)),
        "b another device",
        f"a error: bad ({100 - BURST} lines left out)",
        "a calm again",
    ]


def test_what_was_left_out_at_the_end_is_said() -> None:
    scene = Scene()
    with scene.lines:
        for number in range(BURST + 3):
            scene.at(0, Message("a", f"line {number}"))
    assert scene.written[-1] == "a (3 lines left out)"


def test_a_reader_that_goes_away_is_no_failure() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as stream:
        lines = PlainLines(ViewState("test"), stream)
        lines(Message("a", "one"))
        lines(Message("a", "two"))
        assert [entry.text for entry in lines.state.log] == ["one", "two"]
        # What the file object still holds has nowhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), writer)
