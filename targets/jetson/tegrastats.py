"""What ``tegrastats`` prints: one line a sample, whose fields differ by release, board and privilege.

The line is taken apart token by token, and every field may be missing: JetPack 4 has no time and no units on its
rails, JetPack 7 has limits behind its temperatures, Thor has no load of its GPU. What is not understood is passed over.
"""

from __future__ import annotations

import ctypes
import re
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from targets.sensors import plausible, slug

#: Longer lines are cut: those of a Thor with all its engines have about 1,200 characters.
MAX_LINE = 8192
_NUMBER = r"-?\d{1,9}(?:\.\d{1,6})?"
_DATE = re.compile(r"\d\d-\d\d-\d{4}")
_OF = re.compile(r"(\d{1,9})/(\d{1,9})([kM])B")
_BLOCKS = re.compile(r"(\d{1,9})x(\d{1,9})([kM])B\)?")
_CORE = re.compile(r"(\d{1,3})%(?:@(\d{1,5}))?")
_ENGINE = re.compile(r"(?:(\d{1,3})%)?@?(?:(\d{1,5})|\[([\d,]{1,80})\])?")
_TEMPERATURE = re.compile(rf"([A-Za-z][A-Za-z0-9_.-]{{0,40}})@({_NUMBER})C(?:/({_NUMBER})C)?")
_RAIL = re.compile(r"(-?\d{1,7})(?:mW)?/(-?\d{1,7})(?:mW)?")
_NAME = re.compile(r"[A-Z][A-Za-z0-9_]{0,40}")
#: Fields of which the next word tells, but which are not engines.
_NOT_ENGINES = frozenset({"RAM", "SWAP", "IRAM", "CPU", "MTS"})


@dataclass(frozen=True, slots=True)
class Core:
    """One CPU core; both are None of one that is offline."""

    percent: float | None = None
    mhz: float | None = None


@dataclass(frozen=True, slots=True)
class Engine:
    """GPU, EMC, a video engine: load in per cent and clock in MHz where they are told; not ``on`` where it says off."""

    on: bool = True
    percent: float | None = None
    #: Of a GPU of several clusters the highest.
    mhz: float | None = None


@dataclass(frozen=True, slots=True)
class Sample:
    """One line. Memory in bytes, temperatures in °C, power in W, all by the names that the line has."""

    #: As printed: ``11-03-2026 09:10:11``; empty before JetPack 5.
    stamp: str = ""
    memory_used: float | None = None
    memory_total: float | None = None
    #: Size of the largest free block times how many there are of it.
    largest_free: float | None = None
    swap_used: float | None = None
    swap_total: float | None = None
    cores: tuple[Core, ...] = ()
    engines: Mapping[str, Engine] = field(default_factory=dict)
    temperatures: Mapping[str, float] = field(default_factory=dict)
    #: Power now and its mean since ``tegrastats`` started.
    rails: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    def readings(self) -> dict[str, float]:
        """By the names of `agent.telemetry` and `targets.jetson.sysfs`."""
        found: dict[str, float] = {}
        for engine, name in (("GR3D_FREQ", "gpu"), ("EMC_FREQ", "emc")):
            state = self.engines.get(engine)
            if state is not None and state.percent is not None:
                found[f"{name}_percent"] = state.percent
            if state is not None and state.mhz is not None:
                found[f"{name}_mhz"] = state.mhz
        found.update({f"temperature_{slug(name)}_c": value for name, value in self.temperatures.items()})
        found.update({f"power_{slug(name)}_w": now for name, (now, _) in self.rails.items()})
        return found


def parse(line: str) -> Sample:
    """One line, whatever is in it. Never raises."""
    words = line[:MAX_LINE].split()
    memory: dict[str, float] = {}
    cores: tuple[Core, ...] = ()
    engines: dict[str, Engine] = {}
    temperatures: dict[str, float] = {}
    rails: dict[str, tuple[float, float]] = {}
    stamp = ""
    for place, word in enumerate(words):
        following = words[place + 1] if place + 1 < len(words) else ""
        if place == 0 and _DATE.fullmatch(word):
            stamp = f"{word} {following}" if re.fullmatch(r"\d\d:\d\d:\d\d", following) else word
        elif word in ("RAM", "SWAP") and (found := _OF.fullmatch(following)):
            memory[f"{word}.used"], memory[f"{word}.total"] = (_bytes(found[n], found[3]) for n in (1, 2))
        elif word == "(lfb" and place >= 2 and words[place - 2] == "RAM" and (found := _BLOCKS.fullmatch(following)):
            memory["free"] = int(found[1]) * _bytes(found[2], found[3])
        elif word == "CPU" and following.startswith("["):
            cores = tuple(map(_core, following.strip("[]").split(",")))
        elif (found := _TEMPERATURE.fullmatch(word)) and plausible(float(found[2])) is not None:
            temperatures.setdefault(found[1], float(found[2]))
        elif _NAME.fullmatch(word) and word not in _NOT_ENGINES:
            if found := _RAIL.fullmatch(following):
                rails.setdefault(word, (int(found[1]) / 1e3, int(found[2]) / 1e3))
            elif (engine := _engine(following)) is not None:
                engines.setdefault(word, engine)
    return Sample(
        stamp=stamp,
        memory_used=memory.get("RAM.used"),
        memory_total=memory.get("RAM.total"),
        largest_free=memory.get("free"),
        swap_used=memory.get("SWAP.used"),
        swap_total=memory.get("SWAP.total"),
        cores=cores,
        engines=engines,
        temperatures=temperatures,
        rails=rails,
    )


def _bytes(count: str, unit: str) -> float:
    return int(count) * (1024.0 if unit == "k" else 1024.0**2)


def _core(word: str) -> Core:
    found = _CORE.fullmatch(word)
    return Core(float(found[1]), float(found[2]) if found[2] else None) if found else Core()


def _engine(word: str) -> Engine | None:
    """``off``, ``31%``, ``31%@803``, ``@1600``, ``44%@[1295,1295]``, ``150``; None for what is none of them."""
    if word == "off":
        return Engine(on=False)
    found = _ENGINE.fullmatch(word)
    if found is None or not word or not (found[1] or found[2] or found[3]):
        return None
    clocks = [float(clock) for clock in (found[2] or found[3] or "").split(",") if clock and len(clock) <= 5]
    return Engine(percent=float(found[1]) if found[1] else None, mhz=max(clocks, default=None))


class Tegrastats:
    """The running tool: started when its latest line is asked for, ended when nobody asks for a while.

    It never ends by itself, and would outlive an agent that is killed. So a thread of this process starts it and reads
    it to its end: the kernel ends it together with that thread.
    """

    def __init__(
        self,
        command: Sequence[str] | None = None,
        *,
        interval_ms: int = 1000,
        idle: float = 60.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``command`` is the tool and its first arguments; by default what is on the PATH. ``idle`` in seconds."""
        tool = list(command) if command is not None else [path] if (path := shutil.which("tegrastats")) else []
        # On a pipe the C library keeps lines until a block of them is full.
        buffered = [stdbuf, "-oL"] if (stdbuf := shutil.which("stdbuf")) else []
        self._command = [*buffered, *tool, "--interval", str(interval_ms)] if tool else []
        self._stale = 5e-3 * interval_ms
        self._idle, self._clock = idle, clock
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._process: subprocess.Popen[str] | None = None
        self._asked = self._seen = float("-inf")
        self._closed = False
        self._sample: Sample | None = None

    @property
    def there(self) -> bool:
        """Whether this board has the tool."""
        return bool(self._command)

    @property
    def pid(self) -> int | None:
        """Of the running tool."""
        process = self._process
        return process.pid if process is not None else None

    def latest(self) -> Sample | None:
        """The last line, None before the first one or when it is old. Does not wait."""
        if not self._command:
            return None
        with self._lock:
            self._asked = self._clock()
            if not self._closed and (self._thread is None or not self._thread.is_alive()):
                self._thread = threading.Thread(target=self._read, name="tegrastats", daemon=True)
                self._thread.start()
            return self._sample if self._asked - self._seen <= self._stale else None

    def close(self) -> None:
        """End the tool. It is not started again."""
        with self._lock:
            self._closed = True
            process, thread = self._process, self._thread
        if process is not None:
            process.kill()
        if thread is not None:
            thread.join(timeout=5.0)

    def _read(self) -> None:
        libc = ctypes.CDLL(None, use_errno=True)

        def end_with_parent() -> None:
            libc.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG

        try:
            process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                errors="replace",
                bufsize=1,
                preexec_fn=end_with_parent,
            )
        except OSError:
            self._command = []  # it was there a moment ago: not worth another try
            return
        with process:
            with self._lock:
                self._process = process
                if self._closed:
                    process.kill()
            assert process.stdout is not None
            while line := process.stdout.readline(MAX_LINE):
                sample, now = parse(line), self._clock()
                with self._lock:
                    self._sample, self._seen = sample, now
                    idle = now - self._asked > self._idle
                if idle:
                    break
            process.kill()
        with self._lock:
            self._process = None
