"""What a tuning has measured so far, a line each: it is there whatever ends the program, and read when it goes on."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import msgspec

from controller.tuning_plan import Measured
from targets.files import disk_errors, make_directory

#: Bytes of a file; a race takes some hundred.
MAX_BYTES = 64 * 1024 * 1024


class _Line(msgspec.Struct, frozen=True):
    #: Digest of the compiler that made the kernels (`targets.tuning.Tuner.compiler`).
    compiler: str
    measured: Measured


class TuningSession:
    """The races of one device, for one processor's kernels."""

    def __init__(self, path: Path, compiler: str) -> None:
        self.path, self._compiler = path, compiler

    def known(self) -> list[Measured]:
        """What this compiler's kernels did before. A line that was cut when the power went is left out."""
        return list(self._read())

    def add(self, measured: Measured) -> None:
        """Remember one more. Raises FleetError ``disk-full`` and its like."""
        with disk_errors(str(self.path)):
            make_directory(self.path.parent)
            with self.path.open("ab") as file:
                # What was cut must not swallow what comes after it.
                start = b"\n" if file.tell() and not self._ends_a_line() else b""
                file.write(start + msgspec.json.encode(_Line(self._compiler, measured)) + b"\n")

    def forget(self) -> None:
        """Begin anew."""
        self.path.unlink(missing_ok=True)

    def _read(self) -> Iterator[Measured]:
        if not self.path.exists() or self.path.stat().st_size > MAX_BYTES:
            return
        for data in self.path.read_bytes().splitlines():
            with contextlib.suppress(msgspec.MsgspecError):
                line = msgspec.json.decode(data, type=_Line)
                if line.compiler == self._compiler:
                    yield line.measured

    def _ends_a_line(self) -> bool:
        with self.path.open("rb") as file:
            file.seek(-1, 2)
            return file.read() == b"\n"
