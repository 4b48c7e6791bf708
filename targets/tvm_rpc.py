"""TVM's RPC as it is on the wire, as far as the listener on a device and the controller's carrier need it.

Three small protocols, all little-endian, as TVM 0.27 speaks them (``src/runtime/rpc/rpc_endpoint.cc``,
``src/runtime/rpc/minrpc/rpc_reference.h``, ``python/tvm/rpc/{server,tracker}.py``):

- **handshake**: magic, length-prefixed key such as ``client:board -timeout=10``; the server answers a code and its key;
- **session**: packets of a 64-bit size, a 32-bit code and a sequence of tagged values, each call answered in order;
- **tracker**: magic both ways, then length-prefixed JSON, one reply a request.

Nothing here imports TVM: naming a device or talking to one costs no compiler.
"""

from __future__ import annotations

import asyncio
import json
import struct
from collections.abc import Coroutine, Iterable
from enum import IntEnum
from typing import Any, Final, TypeVar

from targets.base import FleetError
from targets.defaults import CONNECT_TIMEOUT
from targets.waiting import within

MAGIC: Final = 0xFF271
SUCCESS: Final = MAGIC
MISMATCH: Final = MAGIC + 2
TRACKER_MAGIC: Final = 0x2F271
#: The session protocol's version; a server refuses another one.
VERSION: Final = b"0.8.0"

MAX_KEY: Final = 1024
MAX_TRACKER_MESSAGE: Final = 1 << 20
#: What the carrier accepts as one answer of a device.
MAX_PACKET: Final = 64 << 20

#: Options that fleet's own carrier puts behind the key; other servers ignore what they do not know.
OPTION_SHARED: Final = "-shared"
OPTION_PROBE: Final = "-probe"

#: Names of the functions through which a session forwards protocol messages to its agent.
SEND: Final = "fleet.send"
RECEIVE: Final = "fleet.receive"

_T = TypeVar("_T")
_INT = struct.Struct("<i")
_SIZES = struct.Struct("<II")


class WireError(FleetError):
    """The other side does not speak TVM RPC as it should."""

    code = "tvm-rpc"


class RemoteError(FleetError):
    """A call raised on the device; the message is the device's."""

    code = "remote-error"


# --- Handshake ----------------------------------------------------------------------------------


def hello(key: str) -> bytes:
    """What a client sends first; ``key`` may be followed by options."""
    text = f"client:{key}".encode()
    return struct.pack("<ii", MAGIC, len(text)) + text


def greeting(key: str) -> bytes:
    """What a server answers a client that it takes."""
    text = f"server:{key}".encode()
    return struct.pack("<ii", SUCCESS, len(text)) + text


def refusal(code: int) -> bytes:
    return _INT.pack(code)


def unpack_int(data: bytes) -> int:
    value: int = _INT.unpack(data)[0]
    return value


# --- Session ------------------------------------------------------------------------------------


class Code(IntEnum):
    SHUTDOWN = 1
    INIT_SERVER = 2
    CALL = 3
    RETURN = 4
    EXCEPTION = 5
    GET_FUNCTION = 9


class Kind(IntEnum):
    """Tags of the values in a packet (``TVMFFITypeIndex``)."""

    NONE = 0
    INT = 1
    BOOL = 2
    FLOAT = 3
    POINTER = 4
    RAW_STR = 8
    BYTE_ARRAY = 9
    SMALL_STR = 11
    SMALL_BYTES = 12
    STR = 65
    BYTES = 66


Value = None | int | bool | float | str | bytes

_SCALARS: Final = {Kind.INT: "<q", Kind.BOOL: "<q", Kind.FLOAT: "<d", Kind.POINTER: "<Q"}
_TEXTS: Final = (Kind.RAW_STR, Kind.SMALL_STR, Kind.STR)
_BYTES: Final = (Kind.BYTE_ARRAY, Kind.SMALL_BYTES, Kind.BYTES)


def _arguments(values: Iterable[Value]) -> list[bytes]:
    parts: list[bytes] = [b""]
    count = 0
    for value in values:
        count += 1
        if isinstance(value, bytes):
            parts += (struct.pack("<iQ", Kind.BYTE_ARRAY, len(value)), value)
        elif isinstance(value, str):
            text = value.encode()
            parts += (struct.pack("<iQ", Kind.RAW_STR, len(text)), text)
        elif isinstance(value, bool):
            parts.append(struct.pack("<iq", Kind.BOOL, value))
        elif isinstance(value, int):
            parts.append(struct.pack("<iq", Kind.INT, value))
        elif isinstance(value, float):
            parts.append(struct.pack("<id", Kind.FLOAT, value))
        else:
            parts.append(_INT.pack(Kind.NONE))
    parts[0] = _INT.pack(count)
    return parts


def _packet(code: Code, parts: list[bytes]) -> list[bytes]:
    return [struct.pack("<Qi", 4 + sum(map(len, parts)), code), *parts]


def init_session() -> list[bytes]:
    """Buffers of the packet that opens a session on the device itself."""
    return _packet(Code.INIT_SERVER, [struct.pack("<Q", len(VERSION)), VERSION, *_arguments(())])


def get_function(name: str) -> list[bytes]:
    """Buffers of the packet that asks for the handle of a function; the answer is a pointer, 0 when there is none."""
    return _packet(Code.GET_FUNCTION, _arguments((name,)))


def call(handle: int, *arguments: Value) -> list[bytes]:
    """Buffers of the packet that calls a function by its handle."""
    return _packet(Code.CALL, [struct.pack("<Q", handle), *_arguments(arguments)])


def shutdown() -> bytes:
    return b"".join(_packet(Code.SHUTDOWN, []))


def exception(message: str) -> bytes:
    """The packet that makes the client's call in progress raise ``message``."""
    return b"".join(_packet(Code.EXCEPTION, _arguments((message,))))


def parse_answer(packet: bytes) -> list[Value]:
    """Values of an answer. Raises :class:`RemoteError` for an exception, :class:`WireError` for what is no answer."""
    try:
        code, count = struct.unpack_from("<ii", packet)
        values: list[Value] = []
        at = 8
        for _ in range(count):
            (kind,) = _INT.unpack_from(packet, at)
            at += 4
            if kind in _SCALARS:
                (scalar,) = struct.unpack_from(_SCALARS[kind], packet, at)
                values.append(bool(scalar) if kind == Kind.BOOL else scalar)
                at += 8
            elif kind in _TEXTS or kind in _BYTES:
                (length,) = struct.unpack_from("<Q", packet, at)
                at += 8
                data = packet[at : at + length]
                if len(data) != length:
                    raise WireError("an answer ends in the middle of a value")
                values.append(data.decode(errors="replace") if kind in _TEXTS else data)
                at += length
            elif kind == Kind.NONE:
                values.append(None)
            else:
                raise WireError(f"an answer has a value of kind {kind}, which this carrier never asks for")
    except struct.error:
        raise WireError("an answer ends in the middle of a value") from None
    if code == Code.EXCEPTION:
        raise RemoteError(str(values[0]) if values else "the device gives no reason")
    if code != Code.RETURN:
        raise WireError(f"packet {code} is not an answer")
    return values


def parse_result(packet: bytes) -> Value:
    """What a called function returned: its answer is the kind of the value, then the value."""
    values = parse_answer(packet)
    if len(values) < 2:
        raise WireError("the answer to a call has no value")
    return values[1]


# --- Messages of the fleet protocol inside a session --------------------------------------------


def pack_messages(messages: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Messages (header, payload) as one byte string."""
    return b"".join(part for head, body in messages for part in (_SIZES.pack(len(head), len(body)), head, body))


def unpack_messages(data: bytes) -> list[tuple[bytes, bytes]]:
    """The reverse of :func:`pack_messages`. Raises :class:`WireError` when ``data`` is cut or has a surplus."""
    messages = []
    at = 0
    while at < len(data):
        if at + _SIZES.size > len(data):
            raise WireError("a message is cut")
        head, body = _SIZES.unpack_from(data, at)
        at += _SIZES.size
        if at + head + body > len(data):
            raise WireError("a message is cut")
        messages.append((data[at : at + head], data[at + head : at + head + body]))
        at += head + body
    return messages


# --- Tracker ------------------------------------------------------------------------------------


class TrackerCode(IntEnum):
    FAIL = -1
    SUCCESS = 0
    PUT = 3
    REQUEST = 4
    UPDATE_INFO = 5
    SUMMARY = 6
    PENDING_KEYS = 7


class TrackerConnection:
    """A connection to a TVM tracker.

    Every method raises ``OSError`` when the tracker cannot be reached, is too slow or goes away, and
    :class:`WireError` when what answers is no tracker; the connection is of no use afterwards.
    """

    def __init__(self, host: str, port: int) -> None:
        self.host = host
        self.port = port
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"

    async def open(self, timeout: float = CONNECT_TIMEOUT) -> None:
        await self._bounded(self._open(), timeout)

    async def call(self, request: list[Any], timeout: float = CONNECT_TIMEOUT) -> Any:
        """Send one request and wait for its reply."""
        return await self._bounded(self._call(request), timeout)

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._reader = self._writer = None

    async def _open(self) -> None:
        self._reader, self._writer = await asyncio.open_connection(self.host, self.port)
        self._writer.write(_INT.pack(TRACKER_MAGIC))
        if unpack_int(await self._reader.readexactly(4)) != TRACKER_MAGIC:
            raise WireError(f"{self} is not a TVM tracker")

    async def _call(self, request: list[Any]) -> Any:
        if self._reader is None or self._writer is None:
            raise ConnectionError("not connected")
        data = json.dumps(request).encode()
        self._writer.write(_INT.pack(len(data)) + data)
        await self._writer.drain()
        size = unpack_int(await self._reader.readexactly(4))
        if not 0 < size <= MAX_TRACKER_MESSAGE:
            raise WireError(f"the tracker at {self} announces a reply of {size} bytes")
        try:
            return json.loads(await self._reader.readexactly(size))
        except (ValueError, RecursionError):
            raise WireError(f"the tracker at {self} answers no JSON") from None

    async def _bounded(self, work: Coroutine[Any, Any, _T], timeout: float) -> _T:
        try:
            return await within(timeout, work)
        except asyncio.IncompleteReadError:
            raise ConnectionError(f"{self} closed the connection") from None
        except asyncio.TimeoutError:
            raise TimeoutError(f"{self} does not answer within {timeout:g} s") from None
