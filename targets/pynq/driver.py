"""A real accelerator: VTA in the FPGA of a PYNQ board.

``pynq`` pins old versions of NumPy and others, so it never shares the agent's environment: a helper process
(:mod:`targets.pynq.helper`) runs it in the Python of the board's image, as root, and this driver asks it over a pipe.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from bitstreams import bitfile
from bitstreams.manifest import KnownBitstream
from targets.pynq import helper
from targets.pynq.helper_process import HelperProcess, command
from targets.vta import counters, isa
from targets.vta.boards import Board
from targets.vta.config import INSN_BYTES, VtaConfig
from targets.vta.driver import DriverError, RunStatistics

#: Seconds. Importing pynq takes most of ten on the smallest board; programming about two.
_OPENING, _PROGRAMMING, _ORDINARY = 90.0, 90.0, 30.0
#: What one message carries; more than enough to keep a pipe busy.
_CHUNK = 4 << 20


class PynqDriver:
    """Implements :class:`targets.vta.driver.VtaDriver` on a board of PYNQ.

    ``bitstream`` is a ``.bit`` file (its path, or its bytes) for ``board`` and ``config``; it is checked before
    anything is programmed, and programmed only when it is not what runs already. ``sha256`` vouches for a file that is
    in no manifest. ``start`` is the command that starts the helper, with its environment in ``environment``; left out
    they are found. ``predict``: run the cycle model for each program, before its first run; seconds on a small board.

    Raises :class:`FleetError`: what :func:`bitstreams.bitfile.check` refuses; :class:`DriverError`: what the helper
    does, among them ``busy``, ``not-root``, ``no-pynq``, ``program-failed``, ``wrong-clock``.
    """

    simulated = False

    def __init__(
        self,
        config: VtaConfig,
        board: Board,
        bitstream: Path | bytes,
        *,
        sha256: str = "",
        manifest: Sequence[KnownBitstream] | None = None,
        start: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        predict: bool = False,
    ) -> None:
        if board.name not in helper.BOARDS:
            raise DriverError(
                f"there is no PYNQ for a {board.name}",
                code="unknown-board",
                hint=f"PYNQ boards are: {', '.join(helper.BOARDS)}",
            )
        checked = bitfile.check(bitstream, board=board, identity=config.identity, sha256=sha256, manifest=manifest)
        self.config = config
        self._board = board
        self._predict = predict
        self._bitstream = checked.data
        self._allocated: dict[int, int] = {}
        self._last = RunStatistics(counters.Counters(), 0.0)
        #: What a run of the instructions at (address, count) counts, as long as nobody writes there.
        self._counted: dict[tuple[int, int], RunStatistics] = {}
        self._helper = HelperProcess(start or command(), environment or {})
        try:
            opened, _ = self._helper.ask(
                "open",
                {
                    "protocol": helper.PROTOCOL,
                    "board": board.name,
                    "sha256": checked.sha256,
                    "coherent": board.coherent,
                },
                timeout=_OPENING,
            )
            #: Whether the FPGA was programmed by this driver, rather than found with the bitstream in it.
            self.programmed = not opened["running"]
            self._clock_mhz: float = opened["clock_mhz"]
            self._versions = {name: str(opened[name]) for name in ("pynq", "dialect", "python")}
            if self.programmed:
                self._program()
        except BaseException:
            self._helper.close(_ORDINARY)
            raise

    def conditions(self) -> dict[str, str]:
        """What a measurement depends on: versions of the board's image, and clocks as they were read back."""
        return {
            "pynq": self._versions["pynq"],
            "pynq_dialect": self._versions["dialect"],
            "pynq_python": self._versions["python"],
            "fclk0_mhz": f"{self._clock_mhz:g}",
            "vta_mhz": f"{self._board.clock_mhz:g}",
        }

    def allocate(self, size: int) -> int:
        try:
            address = self._allocate(size)
        except DriverError as error:
            if error.code != "no-overlay" or self._allocated:
                raise
            # The fabric has the design, but pynq has forgotten so: it gives memory only to whoever programs.
            self._program()
            self.programmed = True
            address = self._allocate(size)
        self._allocated[address] = size
        return address

    def _allocate(self, size: int) -> int:
        if size < 1:
            raise ValueError("at least one byte")
        found, _ = self._helper.ask("allocate", {"size": size}, timeout=_ORDINARY)
        address: int = found["address"]
        if address % helper.PAGE or any(
            address < start + length and start < address + size for start, length in self._allocated.items()
        ):
            raise DriverError(f"the board gave memory at {address:#x}, which is not free", code="vta-address")
        return address

    def free(self, address: int) -> None:
        if self._allocated.pop(address, None) is None:
            raise DriverError(f"nothing is allocated at {address:#x}", code="vta-address")
        self._counted.clear()
        self._helper.ask("free", {"address": address}, timeout=_ORDINARY)

    def write(self, address: int, data: bytes | memoryview) -> None:
        view = memoryview(data).cast("B")
        self._check(address, len(view))
        for insn_address, count in [*self._counted]:
            if address < insn_address + count * INSN_BYTES and insn_address < address + len(view):
                del self._counted[insn_address, count]
        for at in range(0, len(view), _CHUNK):
            self._helper.ask("write", {"address": address + at}, view[at : at + _CHUNK], timeout=_ORDINARY)

    def read(self, address: int, size: int) -> bytes:
        self._check(address, size)
        parts = []
        for at in range(0, size, _CHUNK):
            wanted = min(_CHUNK, size - at)
            _, data = self._helper.ask("read", {"address": address + at, "size": wanted}, timeout=_ORDINARY)
            if len(data) != wanted:
                raise DriverError(f"the board gave {len(data)} bytes instead of {wanted}", code="helper-error")
            parts.append(data)
        return b"".join(parts)

    def run(self, insn_address: int, insn_count: int, timeout: float) -> None:
        self._check(insn_address, insn_count * INSN_BYTES)
        known = self._counted.get((insn_address, insn_count))
        if known is None:
            known = self._counted[insn_address, insn_count] = self._count(insn_address, insn_count)
        milliseconds = min(max(1, round(timeout * 1000)), 3_600_000)
        fields = {"address": insn_address, "count": insn_count, "timeout_ms": milliseconds}
        # The helper's own limits come first; this one is for a helper that hangs. It may have to program again.
        limit = 3 * milliseconds / 1000 + _PROGRAMMING
        found, _ = self._helper.ask("run", fields, timeout=limit)
        self._last = msgspec.structs.replace(known, seconds=found["seconds"])

    def statistics(self) -> RunStatistics:
        """Of the last run that ended well; all 0 before the first.

        Counters as the instructions in the board's memory say; seconds as the helper saw them, from start to done.
        """
        return self._last

    def _count(self, address: int, count: int) -> RunStatistics:
        table = isa.decode(self.read(address, count * INSN_BYTES), self.config)
        counted = counters.count(table, self.config)
        if not self._predict:
            return RunStatistics(counted, 0.0)
        from targets.vta import cycles

        report = cycles.model(table, self.config, self._board)
        return RunStatistics(counted, 0.0, report.cycles, report.predicted_ms)

    def close(self) -> None:
        self._allocated.clear()
        self._helper.close(_ORDINARY)

    def _program(self) -> None:
        found, _ = self._helper.ask("program", {}, self._bitstream, timeout=_PROGRAMMING)
        self._clock_mhz = found["clock_mhz"]

    def _check(self, address: int, size: int) -> None:
        if not any(start <= address and address + size <= start + length for start, length in self._allocated.items()):
            raise DriverError(f"{size} bytes at {address:#x} are not allocated", code="vta-address")


def open_board(config: VtaConfig, board: Board, bitstream: Path | None) -> PynqDriver:
    """The accelerator of this board, with the bitstream of a bundle.

    The bundle's signature vouches for the file: whoever built it checked it, or named its digest. Raises
    :class:`DriverError` (``no-bitstream``) for a bundle that has none.
    """
    if bitstream is None:
        raise DriverError(
            f"the bundle has no bitstream for {board.name}, {config.identity}",
            code="no-bitstream",
            hint="`vta bitstream fetch` gets the published one for a new build; `--option bitstream=FILE` takes yours",
        )
    data = bitfile.read(bitstream)
    return PynqDriver(config, board, data, sha256=hashlib.sha256(data).hexdigest(), predict=True)
