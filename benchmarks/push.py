"""How fast 45 MB travel to a board, beside TVM's own `remote.upload`; and what does not travel at all.

    python benchmarks/push.py [--repeats N] [--size MB] [--json]

One run measures in turn: TVM's client uploading a file to TVM's own server (`python -m tvm.exec.rpc_server`); fleet's
push of the same file through an agent's TVM RPC listener; and fleet's push through the agent's own socket (CURVE).
Fleet's pushes end when the agent has checked the digest and synced the blob to its disk; TVM's server does neither.
Times are of the transfer alone, over open connections; ratios are of medians. Two kinds of file: random bytes, and a
piece of a real shared library, which compresses. Every repetition sends bytes that the board has not seen.

Then the same network is deployed twice, and once more with another last layer: bytes that the board lacked.
Nothing here is asserted: run it on a quiet machine.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from controller import sim, sources
from controller.events import ignore
from controller.fleet import DeployOptions, Fleet
from controller.home import Home
from controller.inventory import Device
from controller.prepare import Bundle
from controller.push import Traffic, push
from controller.session import Session
from targets.base import Requirements
from targets.blobs import BlobDir
from targets.bundle import FileEntry, Golden, Manifest, ModelInfo
from targets.keys import Keys

KEY = "upload"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7, help="times each way is taken, in turn")
    parser.add_argument("--size", type=float, default=45, help="megabytes of the file")
    parser.add_argument("--model", default="shapes-classifier", help="a zoo model kept as ONNX, for the second part")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of tables")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fleet-push-") as root:
        home = Home.find(Path(root))
        try:
            document = measure(home, asked)
        finally:
            sim.down(home)
    if asked.json:
        print(json.dumps(document, indent=1))


def measure(home: Home, asked: argparse.Namespace) -> dict[str, Any]:
    say: Callable[..., None] = (lambda *words: print(*words, file=sys.stderr)) if asked.json else print
    sim.up(home, 1, prefix="board")
    size = int(asked.size * 1_000_000)
    document: dict[str, Any] = {"size": size, "repeats": asked.repeats}
    with stock_server(home.state) as port:
        for kind, content in (("random", random_bytes), ("library", library_bytes)):
            document[kind] = asyncio.run(transfers(home, port, size, asked.repeats, content))
            table(kind, size, document[kind], say)
    document["deploys"] = asyncio.run(deploys(home, asked.model))
    say(f"\n{asked.model}: bytes that the board lacked, of those in the bundle")
    for name, report in document["deploys"].items():
        say(f"  {name:22} {report['lacked']:>10,} of {report['total']:>10,}  {report['share']:6.2%}")
    return document


# --- Transfers ----------------------------------------------------------------------------------


def random_bytes(size: int) -> bytes:
    return os.urandom(size)


def library_bytes(size: int) -> bytes:
    """A piece of TVM's compiler library, made one of a kind by its last bytes."""
    spec = find_spec("tvm")
    assert spec is not None and spec.submodule_search_locations
    with (Path(spec.submodule_search_locations[0]) / "lib" / "libtvm_compiler.so").open("rb") as library:
        return library.read(size - 16) + os.urandom(16)


async def transfers(home: Home, port: int, size: int, repeats: int, content: Callable[[int], bytes]) -> dict[str, Any]:
    """Seconds of each way, in turn, after one transfer of each that does not count."""
    from tvm import rpc

    remote = rpc.connect("127.0.0.1", port, key=KEY)
    board = sim.devices(home)[0]
    ways = {
        "rpc": Device(name="rpc", target=board.target, rpc=board.rpc),
        "socket": msgspec.structs.replace(board, rpc="", folder=""),
    }
    seconds: dict[str, list[float]] = {"upload": [], "rpc": [], "socket": []}
    wire: dict[str, int] = {}
    for turn in range(repeats + 1):
        for way in seconds:
            data = content(size)
            if way == "upload":
                file = home.state / "upload.bin"
                file.write_bytes(data)
                taken = await asyncio.to_thread(timed_upload, remote, file)
                wire[way] = size
            else:
                taken, wire[way] = await timed_push(home, ways[way], data)
            if turn:
                seconds[way].append(taken)
    return {way: {"seconds": seconds[way], "bytes_on_wire": wire[way]} for way in seconds}


def timed_upload(remote: Any, file: Path) -> float:
    started = time.perf_counter()
    remote.upload(str(file))
    return time.perf_counter() - started


async def timed_push(home: Home, device: Device, data: bytes) -> tuple[float, int]:
    blobs = BlobDir(home.cache / "blobs")
    sha256 = blobs.add_bytes(data)
    bundle = one_file(sha256, len(data), blobs)
    traffic = Traffic()
    async with Session(device, Keys(home.keys), holder="benchmark", lease=True, listener=ignore) as session:
        # A push waits for the disk, an upload does not: it shall not wait for what the others left to write.
        await asyncio.to_thread(os.sync)
        started = time.perf_counter()
        await push(session, bundle, traffic, ignore)
        taken = time.perf_counter() - started
    assert traffic.sent == len(data), "the board had it already"
    blobs.path(sha256).unlink()
    return taken, traffic.on_wire


def one_file(sha256: str, size: int, blobs: BlobDir) -> Bundle:
    """A bundle as far as a push looks into it."""
    manifest = Manifest(
        model=ModelInfo(name="benchmark", source_sha256=sha256, origin="benchmark"),
        target="x86",
        toolchain={},
        options={},
        inputs=(),
        outputs=(),
        entry="model.so",
        parameters=(),
        engine="",
        requirements=Requirements(),
        golden=Golden(inputs=(), outputs=(), rtol=0, atol=0, reference=""),
        files=(FileEntry(path="model.so", size=size, sha256=sha256, role="library"),),
    )
    return Bundle(id="", manifest=manifest, manifest_bytes=b"", blobs=blobs, signature=None)


@contextlib.contextmanager
def stock_server(folder: Path) -> Iterator[int]:
    """TVM's own RPC server on a free loopback port."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "tvm.exec.rpc_server", "--host", "127.0.0.1", "--key", KEY]
    command += ["--port", str(port), "--port-end", str(port + 1)]
    log = folder / "stock.log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)
    try:
        deadline = time.monotonic() + 120
        while "bind to" not in log.read_text(errors="replace"):
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"TVM's server does not start:\n{log.read_text(errors='replace')}")
            time.sleep(0.1)
        yield port
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def table(kind: str, size: int, ways: dict[str, Any], say: Callable[..., None]) -> None:
    names = {"upload": "TVM's remote.upload", "rpc": "fleet over TVM RPC", "socket": "fleet over its own socket"}
    base = statistics.median(ways["upload"]["seconds"])
    say(f"\n{size / 1e6:g} MB, {kind}: median of {len(ways['upload']['seconds'])}, seconds")
    for way, name in names.items():
        times = ways[way]["seconds"]
        median = ways[way]["median"] = statistics.median(times)
        ways[way]["times_upload"] = median / base
        say(
            f"  {name:26} {median:6.3f}  ({min(times):.3f} to {max(times):.3f})  {size / median / 1e6:6.0f} MB/s"
            f"  {median / base:5.2f} × upload's time  {ways[way]['bytes_on_wire'] / 1e6:6.1f} MB on the wire"
        )


# --- What does not travel -----------------------------------------------------------------------


async def deploys(home: Home, model: str) -> dict[str, Any]:
    """Deploy a network, the same again under another name, and with a last layer of other weights."""
    import onnx

    source = sources.resolve(model, home=home)
    if source.format != "onnx":
        raise SystemExit(f"{model} is not kept as ONNX; choose another --model")
    network = onnx.load(source.path)
    folder = home.state / "models"
    fleet = Fleet(home=home)
    documents = {}
    for name in ("first", "identical", "retrained last layer"):
        if name.startswith("retrained"):
            retrain(network)
        path = folder / name / "network.onnx"
        path.parent.mkdir(parents=True)
        onnx.save(network, str(path))
        (report,) = await fleet.deploy(str(path), fleet.select(devices=["board-1"]), DeployOptions())
        if report.status not in ("active", "unchanged"):
            raise SystemExit(f"{name}: {report.status}: {report.reason}")
        total = report.bytes_sent + report.bytes_skipped
        documents[name] = {
            "lacked": report.bytes_sent,
            "total": total,
            "share": report.bytes_sent / total,
            "bytes_on_wire": report.bytes_on_wire,
        }
    return documents


def retrain(network: Any) -> None:
    """Move the weights and the bias of the last layer that has any, as a training step would."""
    from onnx import numpy_helper

    initializers = {tensor.name: tensor for tensor in network.graph.initializer}
    for node in reversed(network.graph.node):
        if node.op_type in ("Gemm", "MatMul", "Conv"):
            random = np.random.default_rng(0)
            for tensor in (initializers[name] for name in node.input if name in initializers):
                value = numpy_helper.to_array(tensor)
                step = 0.01 * np.abs(value).mean() * random.standard_normal(value.shape)
                tensor.CopyFrom(numpy_helper.from_array((value + step).astype(value.dtype), tensor.name))
            return
    raise SystemExit("the network has no layer with weights")


if __name__ == "__main__":
    main()
