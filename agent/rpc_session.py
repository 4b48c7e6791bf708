"""One TVM RPC session: a process of its own that serves one connection with TVM's runtime and then ends.

The listener (agent/rpc.py) hands over the connected socket and says the rest on standard input. Only the runtime
libraries and ``tvm_ffi`` are loaded, not the Python package ``tvm``: that starts in a fifth of a second and 60 MB where
``import tvm`` takes seconds and ten times the memory, and stock clients miss nothing.

Besides what every TVM RPC server has, a session has ``fleet.send(header, payload)`` and ``fleet.receive(seconds)``:
they pass messages of the fleet protocol on to the agent, to which this process is a client like any other, with a key
that is good for this session only. Both return the messages that have come from the agent (``targets.tvm_rpc``).
"""

from __future__ import annotations

import ctypes
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from targets.base import FleetError
from targets.defaults import MAX_MESSAGE
from targets.tvm_rpc import RECEIVE, SEND, pack_messages
from targets.zig import link_shared

if TYPE_CHECKING:
    import zmq

#: What one answer of `fleet.receive` carries at most, above the last message in it.
ANSWER_SIZE = 1 << 20
#: Messages on their way to the agent before the session stops reading from its client.
SEND_QUEUE = 16
SEND_TIMEOUT_MS = 30_000


class Order(msgspec.Struct, kw_only=True):
    """What the listener tells a session. The keys are CURVE keys in Z85."""

    fd: int
    #: Directory for what the client uploads; removed by the listener afterwards.
    workdir: str
    endpoint: str
    agent_public: str
    public: str
    secret: str
    #: Bytes of memory the session may allocate.
    memory: int
    parent: int

    def __repr__(self) -> str:
        return f"Order(fd={self.fd}, workdir={self.workdir!r})"


def inside(workdir: Path, name: str) -> str:
    """The path of ``name`` in ``workdir``. Raises :class:`FleetError` for one that leaves it, through links too."""
    root = workdir.resolve()
    path = (root / name).resolve()
    if path == root:
        # TVM's tuning runner removes '' when it cleans up; no system removes a directory by a path that ends in a dot.
        return f"{root}/."
    if root not in path.parents:
        raise FleetError(f"'{name}' is not a file name inside the session's directory", code="bad-path")
    return str(path)


class Relay:
    """The session's side of the fleet protocol; connects when it is first used."""

    def __init__(self, order: Order) -> None:
        self._order = order
        self._socket: zmq.Socket[bytes] | None = None

    def send(self, header: bytes, payload: bytes = b"") -> bytes:
        """Pass one message on. Returns what has come meanwhile."""
        import zmq

        socket = self._connected()
        try:
            socket.send_multipart([header, payload] if payload else [header], copy=False)
        except zmq.Again:
            raise FleetError("the agent takes no messages", code="connection-lost") from None
        return pack_messages(self._waiting(socket))

    def receive(self, seconds: float) -> bytes:
        """What has come from the agent, at the latest after ``seconds``.

        Returns at once, with nothing if need be, when the client has sent its next call: so a client may wait in
        here as long as it likes and still be heard.
        """
        import zmq

        socket = self._connected()
        poller = zmq.Poller()
        poller.register(socket, zmq.POLLIN)
        poller.register(self._order.fd, zmq.POLLIN)
        poller.poll(max(0, int(1000 * seconds)))
        return pack_messages(self._waiting(socket))

    def _connected(self) -> zmq.Socket[bytes]:
        if self._socket is None:
            import zmq

            socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.DEALER)
            socket.curve_serverkey = self._order.agent_public.encode()
            socket.curve_publickey = self._order.public.encode()
            socket.curve_secretkey = self._order.secret.encode()
            socket.linger = 0
            socket.sndhwm = SEND_QUEUE
            socket.sndtimeo = SEND_TIMEOUT_MS
            socket.maxmsgsize = 2 * MAX_MESSAGE
            socket.connect(self._order.endpoint)
            self._socket = socket
        return self._socket

    def _waiting(self, socket: zmq.Socket[bytes]) -> list[tuple[bytes, bytes]]:
        import zmq

        messages: list[tuple[bytes, bytes]] = []
        size = 0
        while size < ANSWER_SIZE:
            try:
                frames = socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                break
            header, payload = frames[0], frames[1] if len(frames) > 1 else b""
            messages.append((header, payload))
            size += len(header) + len(payload)
        return messages


def protect(order: Order) -> None:
    """Bound what this process can do to the device: it dies with the agent, and is the first to go without memory."""
    libc = ctypes.CDLL(None, use_errno=True)
    pr_set_pdeathsig = 1
    if libc.prctl(pr_set_pdeathsig, signal.SIGKILL, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")
    if os.getppid() != order.parent:
        sys.exit("the agent is gone")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # Private writable memory: heap and anonymous mappings, but not the libraries' address space.
    resource.setrlimit(resource.RLIMIT_DATA, (order.memory, order.memory))
    with suppress(OSError):  # a kernel without it
        Path("/proc/self/oom_score_adj").write_text("1000")


def load_runtime() -> Any:
    """`tvm_ffi` with TVM's runtime libraries loaded."""
    from importlib.util import find_spec

    # tvm_ffi imports torch when there is one: seconds and half a gigabyte that a session has no use for.
    sys.modules["torch"] = None  # type: ignore[assignment]
    try:
        import tvm_ffi
    finally:
        del sys.modules["torch"]
    spec = find_spec("tvm")
    if spec is None or not spec.submodule_search_locations:
        raise ImportError("apache-tvm is not installed")
    libraries = Path(spec.submodule_search_locations[0]) / "lib"
    ctypes.CDLL(str(libraries / "libtvm_runtime.so"), ctypes.RTLD_GLOBAL)
    extra = libraries / "libtvm_runtime_extra.so"  # what runners of tuning jobs call, such as random_fill_for_measure
    if extra.exists():
        ctypes.CDLL(str(extra), ctypes.RTLD_GLOBAL)
    return tvm_ffi


def load_module(ffi: Any, path: str) -> Any:
    """Load a library; objects and archives are linked on the device first, as TVM's own server does."""
    if path.endswith((".o", ".tar")):
        path = link(path)
    return ffi.load_module(path)


def link(path: str) -> str:
    """Link an object, or an archive of objects, for this device. Returns the library's path.

    Raises :class:`FleetError` with the linker's words.
    """
    objects = [Path(path)]
    if path.endswith(".tar"):
        unpacked = Path(tempfile.mkdtemp(dir=Path(path).parent))
        _command("tar", "-xf", path, "-C", str(unpacked))
        objects = sorted(unpacked.iterdir())
    library = Path(f"{path}.so")
    compiler = shutil.which(os.environ.get("CXX", "c++")) or shutil.which("cc")
    if compiler is None:
        link_shared(library, objects, f"{os.uname().machine}-linux-gnu")
    else:
        _command(compiler, "-shared", "-fPIC", "-o", str(library), *map(str, objects))
    return str(library)


def _command(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise FleetError(f"{Path(command[0]).name} failed: {done.stderr.strip()[-2000:]}", code="link-failed")


def register(ffi: Any, workdir: Path, relay: Relay) -> None:
    """What a client finds here, besides the runtime's own functions."""

    def download_linked_module(name: str) -> bytes:
        path = inside(workdir, name)
        return Path(link(path) if path.endswith((".o", ".tar")) else path).read_bytes()

    def listdir(name: str) -> str:
        directory = Path(inside(workdir, name)) if name not in ("", ".") else workdir
        return ",".join(sorted(entry.name for entry in directory.iterdir()))

    functions = {
        "tvm.rpc.server.workpath": lambda name: inside(workdir, name),
        "tvm.rpc.server.load_module": lambda name: load_module(ffi, inside(workdir, name)),
        "tvm.rpc.server.download_linked_module": download_linked_module,
        "tvm.rpc.server.listdir": listdir,
        SEND: relay.send,
        RECEIVE: relay.receive,
    }
    for name, function in functions.items():
        ffi.register_global_func(name, function, override=True)


def main() -> None:
    order = msgspec.json.decode(sys.stdin.buffer.read(), type=Order)
    protect(order)
    with suppress(ValueError):
        sys.path.remove(order.workdir)  # put there by `-m`; the client writes into it
    started = time.monotonic()
    ffi = load_runtime()
    workdir = Path(order.workdir)
    register(ffi, workdir, Relay(order))
    print(f"ready after {time.monotonic() - started:.2f} s", flush=True)
    os.set_blocking(order.fd, True)
    ffi.get_global_func("rpc.ServerLoop")(order.fd)
    # TVM's threads and the client's libraries have nothing to save: end without running their destructors.
    os._exit(0)


if __name__ == "__main__":
    main()
