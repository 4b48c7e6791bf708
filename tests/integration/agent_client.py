"""Real agent processes and a plain client of their protocol, for tests: no carrier and no controller in between."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np
import psutil
import zmq

from agent import protocol as p
from agent.config import AgentInfo, Home, read_info
from targets.base import FleetError, Requirements, TensorSpec
from targets.bundle import FileEntry, Golden, Manifest, ModelInfo, bundle_id, canonical
from targets.defaults import CHUNK_WINDOW
from targets.keys import Signature

NUMPY_TARGET = Path(__file__).parent / "numpy_target"
REPOSITORY = Path(__file__).parents[2]
M = TypeVar("M", bound=p.Message)


def wait_for(condition: Callable[[], Any], what: str, seconds: float = 20.0) -> Any:
    """Poll until ``condition()`` is true; its value. Fails with ``what`` after ``seconds``."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(0.01)
    return value


def is_dead(pid: int) -> bool:
    """Whether a process has ended, waited for or not."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


class Refused(Exception):
    """The agent answered with a `Failure`."""

    def __init__(self, failure: p.Failure) -> None:
        super().__init__(f"{failure.code}: {failure.message}")
        self.code, self.message, self.hint = failure.code, failure.message, failure.hint


# --- Bundles ------------------------------------------------------------------------------------


@dataclass
class Bundle:
    manifest: bytes
    id: str
    blobs: dict[str, bytes]
    weight: Any

    @property
    def refs(self) -> list[p.BlobRef]:
        return [p.BlobRef(sha256=sha256, size=len(data)) for sha256, data in self.blobs.items()]


def make_bundle(
    name: str = "product",
    *,
    seed: int = 0,
    target: str = "numpy",
    requirements: Requirements | None = None,
    golden_sets: int = 2,
    extra: bytes = b"",
    entry_path: str = "program.json",
    golden_offset: float = 0.0,
    **program: Any,
) -> Bundle:
    """A bundle for the NumPy target. ``program`` is what `numpy_target.NumpyRunner` understands."""
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal((8, 4)).astype("float32")
    blobs: dict[str, bytes] = {}
    files: list[FileEntry] = []

    def add(path: str, role: Any, data: bytes, tensor: TensorSpec | None = None) -> str:
        sha256 = hashlib.sha256(data).hexdigest()
        blobs[sha256] = data
        files.append(FileEntry(path, len(data), sha256, role, tensor))
        return path

    x = TensorSpec("x", (2, 8), "float32")
    y = TensorSpec("y", (2, 4), "float32")
    add(entry_path, "library", json.dumps(program, sort_keys=True).encode())
    add("weight.bin", "weight", weight.tobytes(), TensorSpec("weight", (8, 4), "float32"))
    if extra:
        add("extra.bin", "extra", extra)
    inputs, outputs = [], []
    for i in range(golden_sets):
        given = rng.standard_normal((2, 8)).astype("float32")
        wanted = (given @ weight + np.float32(golden_offset)).astype("float32")
        inputs.append((add(f"golden/{i}.x", "golden-input", given.tobytes(), x),))
        outputs.append((add(f"golden/{i}.y", "golden-output", wanted.tobytes(), y),))
    manifest = Manifest(
        model=ModelInfo(name, "0" * 64, f"test:{name}"),
        target=target,
        toolchain={"numpy": np.__version__},
        options={},
        inputs=(x,),
        outputs=(y,),
        entry=entry_path,
        parameters=("weight.bin",),
        engine="host_clock",
        requirements=requirements or Requirements(),
        golden=Golden(tuple(inputs), tuple(outputs), 1e-3, 1e-3, "numpy"),
        files=tuple(files),
    )
    data = canonical(manifest)
    return Bundle(data, bundle_id(data), blobs, weight)


# --- A client -----------------------------------------------------------------------------------


class Client:
    """One session: requests are answered in the order in which `receive` sees them, events are collected."""

    def __init__(
        self,
        port: int,
        server_public: bytes,
        public: bytes,
        secret: bytes,
        *,
        context: zmq.Context[Any] | None = None,
        receive_limit: int = 0,
    ) -> None:
        """``receive_limit`` is how many messages it takes in without being read; 0 for no limit."""
        self._context = context or zmq.Context()
        self.socket = self._context.socket(zmq.DEALER)
        self.socket.linger = 0
        self.socket.rcvhwm = receive_limit
        self.socket.curve_serverkey = server_public
        self.socket.curve_publickey, self.socket.curve_secretkey = public, secret
        self.socket.connect(f"tcp://127.0.0.1:{port}")
        self._next = 0
        self.events: list[p.Message] = []
        self._replies: dict[int, tuple[p.Message, bytes]] = {}
        self.lease = ""

    def close(self) -> None:
        self.socket.close(linger=0)
        self._context.destroy(linger=0)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def send(self, request: p.Message, payload: bytes = b"") -> int:
        """Send without waiting; the request's id."""
        self._next += 1
        request.id = self._next
        self.send_raw(p.encode(request), payload)
        return request.id

    def send_raw(self, *frames: bytes) -> None:
        self.socket.send_multipart([frame for i, frame in enumerate(frames) if i == 0 or frame])

    def receive(self, seconds: float = 20.0) -> tuple[p.Message, bytes] | None:
        """The next message, None when none comes in time."""
        if not self.socket.poll(int(seconds * 1000)):
            return None
        frames = self.socket.recv_multipart()
        return p.decode_reply(frames[0]), frames[1] if len(frames) > 1 else b""

    def reply(self, number: int, seconds: float = 30.0) -> tuple[p.Message, bytes]:
        """The reply to a request; raises `Refused` for a `Failure`."""
        deadline = time.monotonic() + seconds
        while number not in self._replies:
            got = self.receive(max(0.0, deadline - time.monotonic()))
            assert got is not None, f"no reply within {seconds:g} s"
            if isinstance(got[0], p.Event):
                self.events.append(got[0])
            else:
                self._replies[got[0].id] = got
        message, payload = self._replies.pop(number)
        if isinstance(message, p.Failure):
            raise Refused(message)
        return message, payload

    def ask(self, request: p.Message, answer: type[M], payload: bytes = b"", seconds: float = 30.0) -> M:
        message, self.payload = self.reply(self.send(request, payload), seconds)
        assert isinstance(message, answer), message
        return message

    # --- What most tests need ---

    def hello(self) -> p.Welcome:
        return self.ask(p.Hello(client="test"), p.Welcome)

    def status(self) -> p.Status:
        return self.ask(p.GetStatus(), p.Status)

    def acquire(self, holder: str = "test", wait: float = 0.0) -> str:
        self.lease = self.ask(p.AcquireLease(holder=holder, wait=wait), p.Lease).token
        return self.lease

    def push(self, bundle: Bundle, chunk: int = 1 << 20, signature: Signature | None = None) -> int:
        """Send what is missing and stage it; the number of bytes sent."""
        sent = 0
        for missing in self.ask(p.QueryBlobs(blobs=bundle.refs), p.MissingBlobs).missing:
            data = bundle.blobs[missing.sha256]
            numbers = []
            for offset in range(missing.offset, len(data), chunk):
                piece = data[offset : offset + chunk]
                put = p.PutChunk(
                    token=self.lease, sha256=missing.sha256, offset=offset, length=len(piece), total=len(data)
                )
                numbers.append(self.send(put, piece))
                sent += len(piece)
                if len(numbers) >= CHUNK_WINDOW:
                    self.reply(numbers.pop(0))
            for number in numbers:
                self.reply(number)
        stage = p.StageBundle(token=self.lease)
        if signature is not None:
            stage.key_id, stage.signature = signature.key_id, signature.signature
        assert self.ask(stage, p.BundleStaged, bundle.manifest).bundle == bundle.id
        return sent

    def activate(self, bundle: Bundle, seconds: float = 60.0, **options: Any) -> p.Activated:
        return self.ask(p.Activate(token=self.lease, bundle=bundle.id, **options), p.Activated, seconds=seconds)

    def deploy(self, bundle: Bundle, **options: Any) -> p.Activated:
        self.push(bundle)
        return self.activate(bundle, **options)

    def infer(self, x: Any, **options: Any) -> Any:
        spec = TensorSpec("x", x.shape, x.dtype.name)
        answer = self.ask(p.Infer(inputs=[spec], **options), p.Inferred, x.tobytes())
        (output,) = answer.outputs
        return np.frombuffer(self.payload, output.dtype).reshape(output.shape)


# --- An agent -----------------------------------------------------------------------------------


@dataclass
class Agent:
    """An agent process in a home of its own."""

    home: Home
    options: tuple[str, ...] = ()
    process: subprocess.Popen[bytes] | None = None
    keys: tuple[bytes, bytes] = field(default_factory=zmq.curve_keypair)
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def info(self) -> AgentInfo:
        return read_info(self.home)

    @property
    def log(self) -> str:
        return self.home.log.read_text() if self.home.log.exists() else "(no log)"

    def start(self, *options: str) -> Agent:
        """Start it and wait until it can be reached."""
        self.home.create()
        (self.home.authorized / "test.pub").write_bytes(self.keys[0])
        environment = {**os.environ, **self.environment}
        paths = [str(NUMPY_TARGET), str(REPOSITORY), environment.get("PYTHONPATH", "")]
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
        command = [sys.executable, "-m", "agent.main", "run", "--home", str(self.home.root), "--name", "board"]
        command += ["--target", "numpy", "--rpc-port", "off", *self.options, *options]
        self.home.info.unlink(missing_ok=True)
        self.process = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        wait_for(self._up, "the agent is up")
        return self

    def _up(self) -> bool:
        assert self.process is not None and self.process.stderr is not None
        if self.process.poll() is not None:
            raise AssertionError(f"the agent ended: {self.process.stderr.read().decode()}\n{self.log}")
        try:
            return self.info.pid == self.process.pid
        except FleetError:
            return False

    def kill(self) -> None:
        """SIGKILL, as a power cut would."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(10)
        if self.process.stderr is not None:
            self.process.stderr.close()

    def stop(self) -> int:
        """End it in good order; its exit status."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        try:
            status = self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.kill()
            raise
        if self.process.stderr is not None:
            self.process.stderr.close()
        return status

    def client(self, keys: tuple[bytes, bytes] | None = None, receive_limit: int = 0) -> Client:
        """A client that has said nothing yet."""
        public, secret = keys or self.keys
        return Client(self.info.port, self.info.public.encode(), public, secret, receive_limit=receive_limit)

    @contextlib.contextmanager
    def session(self, lease: bool = False) -> Iterator[Client]:
        """A client that has said hello, and holds the lease if it is to."""
        with self.client() as client:
            client.hello()
            if lease:
                client.acquire()
            yield client

    def workers(self) -> list[int]:
        """Process ids of its worker processes."""
        assert self.process is not None
        try:
            children = psutil.Process(self.process.pid).children(recursive=True)
            return [child.pid for child in children if "agent.worker" in " ".join(child.cmdline())]
        except psutil.NoSuchProcess:
            return []


@contextlib.contextmanager
def running_agent(root: Path, *options: str, environment: dict[str, str] | None = None) -> Iterator[Agent]:
    """An agent that runs until the block ends; its log is printed when the block fails."""
    agent = Agent(Home(root / "board"), options, environment=environment or {})
    try:
        yield agent.start()
    except BaseException:
        print(agent.log)
        raise
    finally:
        if agent.process is not None and agent.process.poll() is None:
            agent.kill()


results_of = msgspec.msgpack.Decoder(list[p.RunResult]).decode
