#!/usr/bin/env python3
"""The part of the driver that runs as root, in the Python of the board's image, beside its ``pynq`` package.

One file, so that it can be copied to where only root may write; and Python 3.6, which the oldest image has. It reads
requests from its standard input and answers on its standard output; :data:`REQUESTS` is all that can be asked. It ends
when its input does.

A message is a frame (magic, lengths), a flat JSON object and raw bytes; the driver uses the same functions for its end.

Source of what ``pynq`` does: Xilinx/PYNQ at v2.5, v2.6.0, v2.7.0, v3.0.1 and v3.1. Source of the registers and of the
sequence: ``src/pynq`` of apache/tvm-vta d4a15f6.
"""

import contextlib
import fcntl
import glob
import hashlib
import importlib
import json
import os
import platform
import re
import signal
import struct
import sys
import time
from typing import Any, Callable, Dict, Iterator, List, Tuple

PROTOCOL = 1

# --- Messages -----------------------------------------------------------------------------------

_FRAME = struct.Struct("<4sII")
_MAGIC = b"VTA\x01"
_MAX_HEAD = 16 << 10
MAX_PAYLOAD = 64 << 20

Check = Callable[[Any], bool]
#: Fields of a message, and the most bytes that may come with it.
Form = Tuple[Dict[str, Check], int]


class ProtocolError(Exception):
    """What came is no message, or none that is expected."""


def _whole(low: int, high: int) -> Check:
    return lambda value: type(value) is int and low <= value <= high  # a bool is an int to isinstance


def _text(pattern: str) -> Check:
    return lambda value: isinstance(value, str) and re.match("(?:" + pattern + r")\Z", value, re.DOTALL) is not None


def _flag(value: Any) -> bool:
    return type(value) is bool


def _number(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value < 1e12


_ADDRESS = _whole(0, (1 << 40) - 1)
_SIZE = _whole(1, MAX_PAYLOAD)
_PROSE = _text(".{0,4000}")

REQUESTS = {
    "open": (
        {
            "protocol": _whole(0, 99),
            "board": _text("[a-z0-9]{1,20}"),
            "sha256": _text("[0-9a-f]{64}"),
            # Whether the design's port goes through the processor's caches.
            "coherent": _flag,
        },
        0,
    ),
    "program": ({}, MAX_PAYLOAD),
    "allocate": ({"size": _whole(1, 1 << 30)}, 0),
    "free": ({"address": _ADDRESS}, 0),
    "write": ({"address": _ADDRESS}, MAX_PAYLOAD),
    "read": ({"address": _ADDRESS, "size": _SIZE}, 0),
    "run": ({"address": _ADDRESS, "count": _whole(1, 1 << 21), "timeout_ms": _whole(1, 3600000)}, 0),
    "close": ({}, 0),
}  # type: Dict[str, Form]

REPLIES = {
    "open": (
        {
            # What was found: whether the wanted bitstream runs, on which system.
            "running": _flag,
            "dialect": _text("xlnk|xrt|xrt4"),
            "pynq": _PROSE,
            "python": _PROSE,
            "clock_mhz": _number,
        },
        0,
    ),
    "program": ({"clock_mhz": _number}, 0),
    "allocate": ({"address": _ADDRESS}, 0),
    "free": ({}, 0),
    "write": ({}, 0),
    "read": ({}, MAX_PAYLOAD),
    "run": ({"seconds": _number}, 0),
    "close": ({}, 0),
    "error": ({"code": _text("[a-z-]{1,40}"), "message": _PROSE}, 0),
}  # type: Dict[str, Form]


def encode(name: str, fields: Dict[str, Any], payload: Any, forms: Dict[str, Form]) -> bytes:
    """The beginning of a message; the ``payload`` goes after it. Raises :class:`ProtocolError`."""
    _expect(name, fields, len(payload), forms)
    head = json.dumps(dict(fields, name=name)).encode()
    return _FRAME.pack(_MAGIC, len(head), len(payload)) + head


def decode(read: Callable[[int], bytes], forms: Dict[str, Form]) -> Tuple[str, Dict[str, Any], bytes]:
    """The next message: name, fields, bytes. ``read(n)`` gives n bytes, fewer only at the end of the stream.

    Raises :class:`ProtocolError`; EOFError at an end between messages.
    """
    frame = read(_FRAME.size)
    if not frame:
        raise EOFError
    if len(frame) < _FRAME.size:
        raise ProtocolError("the stream ends within a message")
    magic, head_size, payload_size = _FRAME.unpack(frame)
    if magic != _MAGIC or head_size > _MAX_HEAD or payload_size > max(most for _, most in forms.values()):
        raise ProtocolError("this is not a message")
    text = read(head_size)
    if len(text) < head_size:
        raise ProtocolError("the stream ends within a message")
    try:
        fields = json.loads(text.decode())
    except (ValueError, RecursionError):
        fields = None
    name = fields.pop("name", None) if isinstance(fields, dict) else None
    if not isinstance(name, str):
        raise ProtocolError("this is not a message")
    _expect(name, fields, payload_size, forms)
    payload = read(payload_size)
    if len(payload) < payload_size:
        raise ProtocolError("the stream ends within a message")
    return name, fields, payload


def _expect(name: str, fields: Dict[str, Any], size: int, forms: Dict[str, Form]) -> None:
    if name not in forms:
        raise ProtocolError("there is no message '%.40s'" % name)
    form, most = forms[name]
    if set(fields) != set(form):
        raise ProtocolError("'%s' has other fields than it should" % name)
    for field, check in form.items():
        if not check(fields[field]):
            raise ProtocolError("'%s' has no valid %s" % (name, field))
    if size > most:
        raise ProtocolError("'%s' has %d bytes, and %d are the most" % (name, size, most))


# --- What it knows ------------------------------------------------------------------------------

#: Of each board: device, IDCODE (0: not known), first of the four register windows, the memory that the port reaches.
#: Written here again, because whoever asks is not to be trusted with physical addresses.
BOARDS = {
    "pynq": ("7z020", 0x3727093, 0x43C00000, 1 << 30),
    "ultra96": ("zu3eg", 0, 0xA0000000, 1 << 31),
    "zcu104": ("zu7ev", 0, 0xA0000000, 1 << 31),
}
#: The board's name in its device tree, where that is known to belong to one of them.
_TREE_NAMES = {"pynqz1": "pynq", "pynqz2": "pynq", "ultra96": "ultra96", "ultra96v2": "ultra96", "zcu104": "zcu104"}
#: What the designs expect of the processor; a PLL in the fabric makes the accelerator's clock of it.
FCLK_MHZ = 100.0
PAGE = 4096
_WINDOW = 0x1000
#: Bits of a control register (ap_ctrl_hs).
_START, _IDLE, _RESTART = 0x01, 0x04, 0x80
_CONTROL = 0x00
_FETCH_COUNT, _FETCH_ADDRESS = 0x10, 0x18
_COMPUTE_DONE = 0x18
#: Base addresses, by window (1 load, 2 compute, 3 store): all 0, addresses in a program are whole.
_BASES = ((1, 0x10), (1, 0x18), (2, 0x20), (2, 0x28), (3, 0x10))
#: Seconds that a request may take; then the kernel ends this process. A run has its own limit, and these on top.
_LIMIT = 90


class Refused(Exception):
    """An answer that is an error: a stable code, and words."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Helper:
    """The accelerator of the board below ``root`` (``/``, or a copy of the files that matter)."""

    def __init__(self, root: str) -> None:
        self._root = root.rstrip("/")
        self._pynq = None  # type: Any
        self._board = BOARDS["pynq"]
        self._wanted = ""
        self._coherent = True
        self._unclean = False
        self._ready = False
        self._windows = []  # type: List[Any]
        self._buffers = {}  # type: Dict[int, Any]
        self._idle_program = 0
        self._opened = False
        self._lock = -1

    def answer(self, name: str, fields: Dict[str, Any], payload: bytes) -> Tuple[Dict[str, Any], bytes]:
        if name == "open":
            return self.open(**fields), b""
        if not self._opened:
            raise Refused("bad-request", "the first request must be 'open'")
        if name == "program":
            return self.program(payload), b""
        if name == "close":
            self.close()
            return {}, b""
        if not self._ready:
            raise Refused("not-programmed", "the accelerator's bitstream is not running")
        if name == "allocate":
            return {"address": self.allocate(fields["size"])}, b""
        if name == "free":
            self.free(fields["address"])
        elif name == "write":
            self.write(fields["address"], payload)
        elif name == "read":
            return {}, self.read(fields["address"], fields["size"])
        elif name == "run":
            return {"seconds": self.run(fields["address"], fields["count"], fields["timeout_ms"] / 1e3)}, b""
        return {}, b""

    # --- Opening and programming ------------------------------------------------------------

    def open(self, protocol: int, board: str, sha256: str, coherent: bool) -> Dict[str, Any]:
        if protocol != PROTOCOL:
            raise Refused("wrong-protocol", "the helper speaks protocol %d, the agent %d" % (PROTOCOL, protocol))
        if self._lock >= 0:
            raise Refused("bad-request", "it is open already")
        if board not in BOARDS:
            raise Refused("unknown-board", "the helper knows no board '%s'" % board)
        tree = self._text("/proc/device-tree/chosen/pynq_board").strip("\0\n ")
        if _TREE_NAMES.get(re.sub("[^a-z0-9]", "", tree.lower()), board) != board:
            raise Refused("wrong-board", "this is a %s, not a %s" % (tree, board))
        if not os.access(self._root + "/dev/mem", os.R_OK | os.W_OK):
            raise Refused("not-root", "the helper cannot reach /dev/mem")
        self._board, self._wanted, self._coherent = BOARDS[board], sha256, coherent
        self._take_lock()
        record = self._record()
        # Another process that ended without closing may have left the accelerator running into its memory.
        self._unclean = bool(record) and record["open"]
        self._import_pynq()
        clock = float(self._pynq.Clocks.fclk0_mhz)
        self._ready = (
            bool(record)
            and not self._unclean
            and record["sha256"] == sha256
            and record["stamp"] == self._stamp()
            and self._state() == "operating"
            and _near(clock)
        )
        self._write_record(self._ready)
        self._opened = True
        return {
            "running": self._ready,
            "dialect": self._dialect(),
            "pynq": str(getattr(self._pynq, "__version__", "?")),
            "python": platform.python_version(),
            "clock_mhz": clock,
        }

    def program(self, payload: bytes) -> Dict[str, Any]:
        """Put the bitstream into the fabric, at the right clock; the fabric is then as after power-up."""
        if hashlib.sha256(payload).hexdigest() != self._wanted:
            raise Refused("wrong-digest", "the bitstream is not the one that was announced")
        check_bitstream(payload, self._board[0], self._board[1])
        if self._buffers:
            raise Refused("in-use", "memory is allocated")
        if self._unclean and hasattr(self._pynq, "Xlnk"):
            # The kernel keeps what the dead process held. What others hold serves designs that now go.
            self._pynq.Xlnk().xlnk_reset()
        # pynq looks at the file again whenever a process of its starts: it stays until the next one is in place.
        os.makedirs(self._folder(), mode=0o700, exist_ok=True)
        with open(self._bit_file() + ".new", "wb") as file:
            file.write(payload)
        os.replace(self._bit_file() + ".new", self._bit_file())
        self._load()
        for other in set(glob.glob(self._folder() + "/*.bit")) - {self._bit_file()}:
            os.unlink(other)
        self._unclean = False
        return {"clock_mhz": float(self._pynq.Clocks.fclk0_mhz)}

    def _load(self) -> None:
        """Program the file that lies in the folder. Raises :class:`Refused`: pynq and the manager are then cleared."""
        self._ready = False
        self._windows = []
        self._write_record(False)
        self._pynq.Clocks.fclk0_mhz = FCLK_MHZ  # before: a PLL of the design locks to it when it starts
        trouble = ""
        try:
            os.chdir(self._folder())  # pynq writes files beside itself
            self._pynq.Bitstream(self._bit_file()).download()
        except Exception as error:
            trouble = "%s: %s" % (type(error).__name__, error)
        finally:
            with contextlib.suppress(OSError):
                os.unlink(self._root + "/lib/firmware/" + os.path.basename(self._bit_file())[:-4] + ".bin")
        state = self._state()
        if trouble or state != "operating":
            # pynq writes down success before it tries.
            for path in self._pynq_files("global_pl_state_*.json") + self._pynq_files("_current_metadata.pkl"):
                os.unlink(path)
            said = self._kernel_messages()
            raise Refused(
                "program-failed",
                "the FPGA was not programmed: %s" % "; ".join(filter(None, (trouble, "its state is " + state, said))),
            )
        clock = float(self._pynq.Clocks.fclk0_mhz)
        if not _near(clock):
            raise Refused("wrong-clock", "the fabric's clock is %.3f MHz, and %.0f are needed" % (clock, FCLK_MHZ))
        self._ready = True
        self._write_record(True)

    # --- Memory -----------------------------------------------------------------------------

    def allocate(self, size: int) -> int:
        try:
            # Cacheable: a port through the caches sees them, for another they are flushed. numpy's bytes, flat.
            buffer = self._pynq.allocate((size,), "u1", cacheable=1)
        except Exception as error:
            if "not downloaded" in str(error):
                self._ready = False
                raise Refused("no-overlay", "pynq has lost what it knew of the bitstream: %s" % error) from None
            raise Refused("no-memory", "%d bytes cannot be allocated: %s (%s)" % (size, error, self._pool())) from None
        address = int(buffer.physical_address)
        if address <= 0 or address % PAGE or address + size > self._board[3]:
            buffer.freebuffer()
            raise Refused("no-memory", "memory at 0x%x cannot be used by the accelerator" % address)
        self._buffers[address] = buffer
        buffer[:] = 0
        self._sync("flush", buffer, 0, size)
        return address

    def free(self, address: int) -> None:
        if address not in self._buffers or address == self._idle_program:
            raise Refused("vta-address", "nothing is allocated at 0x%x" % address)
        self._buffers.pop(address).freebuffer()

    def write(self, address: int, payload: bytes) -> None:
        buffer, offset = self._find(address, len(payload))
        view = memoryview(buffer)
        view[offset : offset + len(payload)] = payload
        self._sync("flush", buffer, offset, len(payload))

    def read(self, address: int, size: int) -> bytes:
        buffer, offset = self._find(address, size)
        self._sync("invalidate", buffer, offset, size)
        return bytes(memoryview(buffer)[offset : offset + size])

    def _find(self, address: int, size: int) -> Tuple[Any, int]:
        for start, buffer in self._buffers.items():
            if start <= address and address + size <= start + buffer.nbytes:
                return buffer, address - start
        raise Refused("vta-address", "%d bytes at 0x%x are not allocated" % (size, address))

    def _sync(self, what: str, buffer: Any, offset: int, size: int) -> None:
        """Flush or invalidate, where the port does not go through the caches.

        Where it does, invalidating would throw away what the accelerator wrote into them. Nothing stays unflushed
        after a write, so it does no harm that pynq 3.1 and later act on the whole buffer. Slices of older ones do not
        know their device.
        """
        if not self._coherent and size:
            virtual = buffer.__array_interface__["data"][0]
            getattr(buffer.device, what)(buffer.bo, offset, virtual + offset, size)

    # --- Running ----------------------------------------------------------------------------

    def run(self, address: int, count: int, timeout: float) -> float:
        """Seconds from start to FINISH. After a time-out the fabric is programmed again, which ends what runs."""
        self._find(address, count * 16)
        if not self._idle_program:
            # 16 bytes of 0: a LOAD of no micro-ops, in either instruction layout.
            self._idle_program = self.allocate(PAGE)
        if not self._windows:
            first = self._board[2]
            self._windows = [self._pynq.MMIO(first + index * _WINDOW, _WINDOW) for index in range(4)]
        fetch, _, compute, _ = self._windows
        if not fetch.read(_CONTROL) & _IDLE:
            raise self._stuck("the accelerator is at work before it was started")
        if compute.read(_COMPUTE_DONE):
            # The last run's `done` stays until the next instruction executes: with one that does nothing it goes now,
            # and `done` has one meaning only.
            self._launch(self._idle_program, 1)
            if not _wait(lambda: not compute.read(_COMPUTE_DONE) and fetch.read(_CONTROL) & _IDLE, timeout):
                raise self._stuck("the accelerator does not take instructions")
        begin = time.perf_counter()
        self._launch(address, count)
        finished = _wait(lambda: compute.read(_COMPUTE_DONE) == 1, timeout)
        seconds = time.perf_counter() - begin
        if not finished or not _wait(lambda: fetch.read(_CONTROL) & _IDLE, timeout):
            raise self._stuck("not finished after %.3g s" % seconds)
        for window in self._windows[1:]:
            window.write(_CONTROL, 0)  # no restart: nothing runs that was not started
        return seconds

    def _launch(self, address: int, count: int) -> None:
        fetch = self._windows[0]
        fetch.write(_FETCH_COUNT, count)
        fetch.write(_FETCH_ADDRESS, address)
        for index, offset in _BASES:
            self._windows[index].write(offset, 0)
        fetch.write(_CONTROL, _START)
        for window in self._windows[1:]:
            window.write(_CONTROL, _START | _RESTART)

    def _stuck(self, what: str) -> Refused:
        """Say what the registers say, and end what runs: it must not write into memory that others get."""
        controls = ["%s 0x%02x" % (name, window.read(_CONTROL)) for name, window in zip(_MODULES, self._windows)]
        done = self._windows[2].read(_COMPUTE_DONE)
        message = "%s (control registers: %s; done: %d)" % (what, ", ".join(controls), done)
        try:
            self._load()
        except Refused as error:
            message += "; programming it again failed as well: %s" % error
        return Refused("vta-timeout", message)

    # --- Ends -------------------------------------------------------------------------------

    def close(self) -> None:
        """Give back all memory. What was not stopped stays marked, so that the next one programs the FPGA first."""
        self._windows = []
        while self._buffers:
            _, buffer = self._buffers.popitem()
            buffer.freebuffer()
        self._idle_program = 0
        if self._opened and (self._ready or not self._unclean):
            self._write_record(self._ready, still_open=False)
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1
        self._opened = self._ready = False

    # --- The system -------------------------------------------------------------------------

    def _take_lock(self) -> None:
        os.makedirs(self._root + "/run/fleet-vta", mode=0o700, exist_ok=True)
        lock = os.open(self._root + "/run/fleet-vta/lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = os.read(lock, 20).decode("ascii", "replace")
            os.close(lock)
            raise Refused("busy", "the accelerator is in use by process %s" % (holder or "?")) from None
        os.ftruncate(lock, 0)
        os.write(lock, b"%d" % os.getpid())
        self._lock = lock

    def _import_pynq(self) -> None:
        if glob.glob(self._root + "/usr/lib/libxrt_core.so*"):
            os.environ.setdefault("XILINX_XRT", "/usr")  # as /etc/profile.d says; pynq finds no device without it
        try:
            self._pynq = importlib.import_module("pynq")
        except Exception as error:
            raise Refused("no-pynq", "pynq cannot be imported: %s: %s" % (type(error).__name__, error)) from None

    def _dialect(self) -> str:
        if hasattr(self._pynq, "Xlnk"):
            return "xlnk"
        return "xrt" if str(self._pynq.__version__).split(".")[0] in ("2", "3") else "xrt4"

    def _record(self) -> Dict[str, Any]:
        """What this helper wrote down since the last boot; empty if nothing (valid)."""
        try:
            record = json.loads(self._text("/run/fleet-vta/state.json"))
        except ValueError:
            return {}
        fields = {"sha256": str, "open": bool, "boot": str, "stamp": str}
        if not isinstance(record, dict) or {name: type(value) for name, value in record.items()} != fields:
            return {}
        return record if record["boot"] == self._boot() else {}

    def _write_record(self, programmed: bool, still_open: bool = True) -> None:
        record = {
            "sha256": self._wanted if programmed else "",
            "open": still_open,
            "boot": self._boot(),
            "stamp": self._stamp() if programmed else "",
        }
        path = self._root + "/run/fleet-vta/state.json"
        with open(path + ".new", "w") as file:
            json.dump(record, file)
        os.replace(path + ".new", path)

    def _stamp(self) -> str:
        """Changes when anybody else programs the FPGA: through pynq, or by its manager's file in sysfs."""
        try:
            seen = os.stat(self._root + "/sys/class/fpga_manager/fpga0/firmware").st_mtime_ns
        except OSError:
            seen = 0
        states = [self._read(path) for path in sorted(self._pynq_files("global_pl_state_*.json"))]
        if str(self._pynq.__version__).startswith("2."):
            states = [str((self._pynq.PL.bitfile_name, self._pynq.PL.timestamp))]
        return "%d %s" % (seen, hashlib.sha256("".join(states).encode()).hexdigest())

    def _pynq_files(self, pattern: str) -> List[str]:
        return glob.glob(os.path.join(glob.escape(os.path.dirname(self._pynq.__file__)), "pl_server", pattern))

    def _folder(self) -> str:
        return self._root + "/var/lib/fleet-vta"

    def _bit_file(self) -> str:
        return "%s/%s.bit" % (self._folder(), self._wanted)

    def _state(self) -> str:
        return self._text("/sys/class/fpga_manager/fpga0/state").strip() or "unknown"

    def _boot(self) -> str:
        return self._text("/proc/sys/kernel/random/boot_id").strip()

    def _pool(self) -> str:
        lines = [" ".join(line.split()) for line in self._text("/proc/meminfo").splitlines() if line.startswith("Cma")]
        return ", ".join(lines) or "no pool of contiguous memory"

    def _kernel_messages(self) -> str:
        """The kernel's last words about the FPGA."""
        said = []  # type: List[str]
        try:
            log = os.open(self._root + "/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK)
        except OSError:
            return ""
        with contextlib.suppress(OSError):  # no more of them
            for record in iter(lambda: os.read(log, 8192), b""):
                said += [line for line in record.decode("utf-8", "replace").splitlines() if "fpga" in line]
        os.close(log)
        return "; ".join(line.split(";", 1)[-1][:200] for line in said[-2:])

    def _text(self, path: str) -> str:
        try:
            return self._read(self._root + path)
        except OSError:
            return ""

    @staticmethod
    def _read(path: str) -> str:
        with open(path, errors="replace") as file:
            return file.read(1 << 16)


_MODULES = ("fetch", "load", "compute", "store")


def check_bitstream(data: bytes, device: str, idcode: int) -> None:
    """Raises :class:`Refused` for what is no whole ``.bit`` file for ``device``: the kernel would not notice."""
    parts = []
    at = 13
    try:
        for key in b"abcd":
            (length,) = struct.unpack_from(">H", data, at + 1)
            if data[at] != key:
                raise IndexError
            parts.append(data[at + 3 : at + 3 + length].rstrip(b"\0").decode("ascii", "replace"))
            at += 3 + length
        (length,) = struct.unpack_from(">I", data, at + 1)
        whole = data[at] == ord("e") and len(data) == at + 5 + length and length % 4 == 0
    except (IndexError, struct.error):
        whole = False
    sync = data.find(b"\xaa\x99\x55\x66", at, at + 4096)
    if not whole or sync < 0:
        raise Refused("bad-bitstream", "this is no .bit file, or not a whole one")
    part = parts[1].lower()
    if not (part[2:] if part.startswith("xc") else part).startswith(device):
        raise Refused("wrong-part", "the bitstream is for part %.40s, the board has a %s" % (parts[1], device))
    found = data.find(b"\x30\x01\x80\x01", sync, sync + 4096)
    if idcode and found >= 0 and int.from_bytes(data[found + 4 : found + 8], "big") & 0xFFFFFFF != idcode:
        raise Refused("wrong-part", "the bitstream is for another device than the board's %s" % device)


def _near(clock: float) -> bool:
    return abs(clock - FCLK_MHZ) < FCLK_MHZ / 100


def _wait(condition: Callable[[], Any], timeout: float) -> bool:
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            return bool(condition())  # this process may have been away for longer than the accelerator
        time.sleep(0.00005)
    return True


@contextlib.contextmanager
def _limited(seconds: float) -> Iterator[None]:
    """The kernel ends this process when it takes longer, even within a library's call."""
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def serve(helper: Helper, source: Any, sink: Any) -> None:
    """Answer requests until there are no more, or one is no request."""
    while True:
        try:
            name, fields, payload = decode(source.read, REQUESTS)
        except EOFError:
            return
        except ProtocolError as error:
            _send(sink, "error", {"code": "bad-request", "message": str(error)}, b"")
            return
        data = b""
        with _limited(_LIMIT + 3 * fields.get("timeout_ms", 0) / 1e3):
            try:
                reply, data = helper.answer(name, fields, payload)
            except Refused as refused:
                name, reply = "error", {"code": refused.code, "message": str(refused)[:4000]}
            except Exception as unforeseen:
                message = "%s: %s" % (type(unforeseen).__name__, unforeseen)
                name, reply = "error", {"code": "helper-error", "message": message[:4000]}
        _send(sink, name, reply, data)
        if name == "close":
            return


def _send(sink: Any, name: str, fields: Dict[str, Any], payload: bytes) -> None:
    sink.write(encode(name, fields, payload, REPLIES))
    sink.write(payload)
    sink.flush()


def main(arguments: List[str]) -> None:
    root = arguments[1] if arguments[:1] == ["--root"] and len(arguments) == 2 else "/"
    # Whatever a library prints goes to the error stream, and none reads what is meant for this one.
    source = os.fdopen(os.dup(0), "rb")
    sink = os.fdopen(os.dup(1), "wb")
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(2, 1)
    sys.path.pop(0)  # this file's folder is none of pynq's business
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupt is for the one who asks; it ends this one by its input
    os.umask(0o077)
    helper = Helper(root)
    try:
        serve(helper, source, sink)
    except BrokenPipeError:
        pass  # whoever asked is gone
    finally:
        helper.close()


if __name__ == "__main__":
    main(sys.argv[1:])
