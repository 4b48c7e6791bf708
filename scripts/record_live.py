"""Records docs/live.svg: one picture of the live view, taken in the middle of a real bench on four simulated boards.

python scripts/record_live.py [FILE]
"""

from __future__ import annotations

import asyncio
import io
import re
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import SVG_EXPORT_THEME

from agent.protocol import BenchSpec
from controller import sim
from controller.cli.watching import alongside
from controller.events import Event
from controller.fleet import BenchOptions, Fleet
from controller.home import Home
from controller.tui.render import Look, render
from controller.tui.state import ViewState

MODEL = "shapes-classifier"
LOOK = Look(width=134, height=18)
#: The picture is taken when this board is measured and so far along: then the ones before it have their figures.
BOARD, SHARE = "sim-4", 0.7


class Recorder:
    """A listener that draws the view once, when the moment has come."""

    def __init__(self) -> None:
        self.state = ViewState("fleet bench")
        self.svg = ""
        self._started = time.time()

    def __call__(self, event: Event) -> None:
        self.state.apply(event, time.time())
        task = self.state.rows[BOARD].task
        if not self.svg and task is not None and task.stage == "measure" and task.share >= SHARE:
            self.svg = self._draw()

    def _draw(self) -> str:
        console = Console(width=LOOK.width, record=True, file=io.StringIO(), force_terminal=True)
        console.print(render(self.state, LOOK, elapsed=time.time() - self._started))
        svg = console.export_svg(title="fleet bench --all", theme=SVG_EXPORT_THEME, unique_id="live")
        # A picture in a README loads nothing from elsewhere: the reader's own monospaced font does.
        return re.sub(r"@font-face \{.*?\}\s*|<!--.*?-->\s*", "", svg, flags=re.DOTALL)


async def bench(fleet: Fleet, recorder: Recorder) -> None:
    boards = fleet.select(everything=True)
    for board in boards:
        recorder.state.add_device(board.name, board.target, simulated=board.simulated)
    await fleet.deploy(MODEL, boards)
    fleet.listener = recorder
    options = BenchOptions(spec=BenchSpec(min_duration=4.0))
    await alongside(fleet, boards, fleet.bench(MODEL, boards, options))


def main() -> None:
    target = Path(sys.argv[1] if len(sys.argv) > 1 else "docs/live.svg")
    with tempfile.TemporaryDirectory(prefix="fleet-record-") as folder:
        home = Home.find(Path(folder))
        recorder = Recorder()
        try:
            sim.up(home, 4)
            asyncio.run(bench(Fleet(home=home), recorder))
        finally:
            sim.down(home)
    if not recorder.svg:
        sys.exit("the bench ended before its picture was taken")
    target.write_text(recorder.svg)
    print(f"wrote {target}")


if __name__ == "__main__":
    main()
