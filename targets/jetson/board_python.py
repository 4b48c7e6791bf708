"""The board's own Python, which has torch: how it is found, started, asked and bounded."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import psutil

from targets import helper_process
from targets.base import FleetError
from targets.jetson import words

HELPER = Path(__file__).with_name("helper.py")
#: Names the Python of the board that has torch and torch_tensorrt.
PYTHON = "FLEET_JETSON_PYTHON"
#: Resident MiB that the helper and its compilers may take; 0 or nothing: `_SHARE` of the board's memory.
MEMORY = "FLEET_JETSON_MEMORY_MB"
#: Seconds that building an engine may take.
BUILD_SECONDS = "FLEET_JETSON_BUILD_SECONDS"

#: Where else it may be: this Python first (an environment that sees the system's packages), then the places of
#: containers and of JetPack.
CANDIDATES = (sys.executable, "/opt/venv/bin/python3", "/usr/bin/python3")
_BUILD_SECONDS = 3600.0
#: Importing torch from an SD card takes its time; less than an agent waits for a first sign of life.
_HELLO_SECONDS = 50.0
LOAD_SECONDS = 600.0
_CALL_SECONDS = 3600.0
_CLOSE_SECONDS = 5.0
#: How often somebody is told of a stage that goes on.
_TELL_EVERY = 2.0
_LOOKUP_SECONDS = 20.0
#: Helpers that one load may start, one after the other: to ask, to build, to build again, to run.
_STARTS = 4
_SHARE = 0.85
#: The GPU of a Jetson takes its memory from the same chips, and no process is charged for it: so much must stay free
#: of all, or the kernel ends something of its own choice.
_LEAST_FREE = 192 << 20
#: What of this process's environment is also right for the board's Python.
_PASSED_ON = (
    *("PATH", "LANG", "LC_ALL", "HOME", "LD_LIBRARY_PATH", "CXX", "OMP_NUM_THREADS"),
    *("CUDA_HOME", "CUDA_PATH", "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER", "NVIDIA_VISIBLE_DEVICES"),
)
_HINTS = {
    "no-python": f"name the Python of the board that has torch in {PYTHON}",
    "no-helper": f"name the Python of the board that has torch in {PYTHON}",
    "no-memory": "build it with a smaller batch or workspace_mb, or end what else takes memory on the board",
    "helper-memory": f"a smaller batch or workspace_mb needs less; {MEMORY} sets the limit",
    "nothing-compiled": "engine inductor or torchscript may run it; `fleet bench --engine all` compares them",
    "engine-failed": "the board's log (`fleet logs`) has the rest of what the engine said",
    "helper-ended": "the board's log (`fleet logs`) has its last words; a smaller batch needs less memory",
    "bad-precision": "choose another one with --option precision=",
    "too-old": "install a newer torch on the board, or choose another engine",
    "no-modelopt": "pip install nvidia-modelopt in the board's Python, or choose another precision",
    "no-operators": "install torchvision beside torch on the board",
}

Stage = Callable[[str], None]


class BoardError(FleetError):
    """The board's Python, its torch or an engine cannot do what was asked."""

    code = "board-error"


class BoardPython(helper_process.HelperProcess):
    """A running helper. ``scratch`` is where it may put what it needs for the moment."""

    def __init__(self, python: str, scratch: Path) -> None:
        self._limit = _limit()
        self._why = ""
        self._stage, self._stage_since, self._told = "", 0.0, 0.0
        self._progress: Stage | None = None
        environment = {
            "TMPDIR": str(scratch),
            "TORCHINDUCTOR_CACHE_DIR": str(scratch / "inductor"),
            "TRITON_CACHE_DIR": str(scratch / "triton"),
            "PYTHONUNBUFFERED": "1",
        }
        super().__init__([python, str(HELPER)], environment, wire=words, passed_on=_PASSED_ON)
        self._watched = psutil.Process(self.pid)

    def failure(self, message: str, code: str) -> BoardError:
        if self._why:
            message, code, self._why = self._why, "helper-memory", ""
        return BoardError(message, code=code, hint=_HINTS.get(code, ""))

    def look(self) -> str:
        now = time.monotonic()
        if self._progress is not None and now - self._told >= _TELL_EVERY:
            # A compiler says nothing for minutes; that it is at work is known here.
            self._told = now
            self._progress(f"{self._stage}, {now - self._stage_since:.0f} s")
        taken = 0
        with contextlib.suppress(psutil.Error):
            for process in (self._watched, *self._watched.children(recursive=True)):
                with contextlib.suppress(psutil.Error):
                    taken += process.memory_info().rss
        free = psutil.virtual_memory().available
        if taken > self._limit:
            self._why = (
                f"the board's Python was ended: it took {taken >> 20} MiB of memory, the limit is {self._limit >> 20}"
            )
        elif free < _LEAST_FREE:
            self._why = f"the board's Python was ended: only {free >> 20} MiB of the board's memory were left"
        return self._why

    def kill(self) -> None:
        """End it, and the compilers that it started."""
        started: list[psutil.Process] = []
        with contextlib.suppress(psutil.Error):
            started = self._watched.children(recursive=True)
        super().kill()
        for process in started:
            with contextlib.suppress(psutil.Error):
                process.kill()

    def hello(self, engine: str) -> dict[str, str]:
        """Versions, GPU, and ``lacking``: why the engine is not there. Raises :class:`BoardError`."""
        fields = {"protocol": words.PROTOCOL, "engine": engine}
        return self._texts(self.ask("hello", fields, timeout=_HELLO_SECONDS)[1])

    def build(self, order: Mapping[str, Any], progress: Stage) -> dict[str, str]:
        return self._order("build", order, build_seconds(), progress)

    def load(self, order: Mapping[str, Any], progress: Stage) -> dict[str, str]:
        return self._order("load", order, LOAD_SECONDS, progress)

    def infer(self, inputs: Sequence[bytes | memoryview]) -> bytes:
        return self.ask("infer", {}, b"".join(inputs), timeout=_CALL_SECONDS)[1]

    def measure(self, queries: int, *, awake: bool = False) -> bytes:
        return self.ask("measure", {"queries": queries, "awake": int(awake)}, timeout=_CALL_SECONDS)[1]

    def together(self, queries: int, *, awake: bool = False) -> bytes:
        return self.ask("together", {"queries": queries, "awake": int(awake)}, timeout=_CALL_SECONDS)[1]

    def end(self) -> None:
        self.close(_CLOSE_SECONDS)

    def _order(self, name: str, order: Mapping[str, Any], seconds: float, progress: Stage) -> dict[str, str]:
        def enter(stage: str) -> None:
            self._stage, self._stage_since = stage, time.monotonic()
            self._told = self._stage_since
            progress(stage)

        enter(name)
        self._progress = progress
        try:
            answer = self.ask(
                name,
                {},
                msgspec.json.encode(order),
                timeout=seconds,
                on_progress=lambda fields: enter(str(fields["stage"])[:100]),
            )
        finally:
            self._progress = None
        return self._texts(answer[1])

    def _texts(self, data: bytes) -> dict[str, str]:
        try:
            return msgspec.json.decode(data, type=dict[str, str])
        except (msgspec.MsgspecError, UnicodeDecodeError):
            raise self._end("its answer is no JSON of texts") from None


def find(simulated: bool) -> str:
    """Path of the Python with torch on this board; a simulated board is this machine and has this Python.

    Raises :class:`BoardError` (``no-python``) that says where there is none.
    """
    if named := os.environ.get(PYTHON, ""):
        path = shutil.which(named)
        if path is None:
            raise BoardError(f"{PYTHON} names {named}, which cannot be run", code="no-python", hint=_HINTS["no-python"])
        candidates = [path]
    else:
        candidates = [sys.executable] if simulated else list(dict.fromkeys(CANDIDATES))
    for path in candidates:
        if _has_torch(path):
            return path
    raise BoardError(
        f"no Python of this board has torch: {', '.join(candidates)}", code="no-python", hint=_HINTS["no-python"]
    )


def build_seconds() -> float:
    return _number(BUILD_SECONDS) or _BUILD_SECONDS


def load_deadline() -> float:
    """The longest that all of a load can take, each part being within its own."""
    return build_seconds() + 2 * LOAD_SECONDS + _STARTS * (_HELLO_SECONDS + _LOOKUP_SECONDS + 2 * _CLOSE_SECONDS)


def _has_torch(python: str) -> bool:
    """Whether torch is installed there; importing it is the helper's business."""
    code = "import importlib.util, sys; sys.exit(importlib.util.find_spec('torch') is None)"
    try:
        asked = subprocess.run([python, "-c", code], timeout=_LOOKUP_SECONDS, cwd="/", capture_output=True, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return asked.returncode == 0


def _limit() -> int:
    return int(_number(MEMORY)) << 20 or int(psutil.virtual_memory().total * _SHARE)


def _number(variable: str) -> float:
    """A positive number of the environment; 0 when it is not set. Raises :class:`BoardError` for anything else."""
    text = os.environ.get(variable, "")
    try:
        number = float(text or 0)
    except ValueError:
        number = -1.0
    if not 0 <= number < 1e9:
        raise BoardError(f"{variable} is '{text[:40]}', which is no positive number", code="bad-setting")
    return number
