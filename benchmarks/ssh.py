"""How fast 45 MB travel to a board over SSH, beside `scp` of the same file; and to sixteen boards at once.

    python -m benchmarks.ssh [--repeats N] [--size MB] [--boards N] [--json]

Each board is an agent on this machine with an OpenSSH server of its own on loopback. Measured in turn, each time with
bytes that the board has not seen: `scp` of a file (OpenSSH's client, with its defaults); fleet's push of the same bytes
as one blob and as sixty, from nothing: login, the agent found, the lease, the transfer, and the agent's answer that
it has checked the digest and synced the blob to its disk, of which scp does neither. The transfer alone, over an open
session, is told beside. Then the same bundle once more, of which no byte may travel. Then the bundle to all boards at
once, beside one board's time as many times, by a process of its own whose largest resident memory is told.
Nothing here is asserted: run it on a quiet machine.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import multiprocessing
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from controller import sim, sim_ssh
from controller.events import ignore
from controller.home import Home
from controller.inventory import Device
from controller.prepare import Bundle
from controller.push import Traffic, push
from controller.session import Session
from targets.base import Requirements
from targets.blobs import BlobDir
from targets.bundle import FileEntry, Golden, Manifest, ModelInfo
from targets.keys import Keys

#: A network of this many tensors: about what a ResNet-18 has.
BLOBS = 60


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7, help="times each way is taken, in turn")
    parser.add_argument("--many-repeats", type=int, default=3, help="times all boards are pushed to at once")
    parser.add_argument("--size", type=float, default=45, help="megabytes of the file")
    parser.add_argument("--boards", type=int, default=16, help="boards that are pushed to at once")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of tables")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fleet-ssh-") as root:
        home = Home.find(Path(root))
        try:
            with boards(home, asked.boards) as devices:
                document = measure(home, devices, asked)
        finally:
            sim.down(home)
    if asked.json:
        print(json.dumps(document, indent=1))
    else:
        tell(document)


@contextlib.contextmanager
def boards(home: Home, count: int) -> Iterator[list[Device]]:
    """Boards behind SSH servers. Whatever their target is, nothing of it runs here."""
    sim.up(home, count, prefix="board")
    servers = []
    try:
        devices = []
        for board in sim.devices(home):
            folder = Path(board.folder) / "ssh"
            servers.append(sim_ssh.start(folder))
            fields = sim_ssh.fields(folder, servers[-1])
            devices.append(Device(name=board.name, target=board.target, agent_home=board.folder, link="ssh", **fields))
        yield devices
    finally:
        for server in servers:
            sim_ssh.end(server)


def measure(home: Home, devices: Sequence[Device], asked: argparse.Namespace) -> dict[str, Any]:
    size, board = int(asked.size * 1_000_000), devices[0]
    ways: dict[str, Callable[[], dict[str, float]]] = {
        "scp": lambda: timed_scp(home, board, size),
        "one blob": lambda: asyncio.run(timed_push(home, board, random_bundle(home, [size]))),
        f"{BLOBS} blobs": lambda: asyncio.run(timed_push(home, board, random_bundle(home, [size // BLOBS] * BLOBS))),
    }
    taken: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
    for turn in range(asked.repeats + 1):
        for way, act in ways.items():
            # A push waits for the disk: it shall not wait for what the others left to write.
            os.sync()
            seconds = act()
            # The first of each does not count.
            if turn:
                taken[way].append(seconds)
    document: dict[str, Any] = {"size": size, "repeats": asked.repeats}
    document["ways"] = {way: summary(times) for way, times in taken.items()}
    for way in document["ways"].values():
        for figures in way.values():
            figures["times_scp"] = figures["median"] / document["ways"]["scp"]["seconds"]["median"]
    document["identical"] = asyncio.run(identical(home, board, size))
    document["many"] = many(home, devices, size, document["ways"]["one blob"]["seconds"]["median"], asked.many_repeats)
    return document


def summary(times: Sequence[dict[str, float]]) -> dict[str, dict[str, Any]]:
    columns = {what: [time[what] for time in times] for what in times[0]}
    return {what: {"median": statistics.median(values), "all": values} for what, values in columns.items()}


def timed_scp(home: Home, board: Device, size: int) -> dict[str, float]:
    """Seconds from the start of the command to its end."""
    source, target = home.state / "source.bin", home.state / "copied.bin"
    source.write_bytes(os.urandom(size))
    target.unlink(missing_ok=True)
    user, _, port = board.ssh.rpartition(":")
    command = ["scp", "-q", "-F", "none", "-P", port, "-i", board.ssh_identity]
    command += ["-o", f"UserKnownHostsFile={board.ssh_known_hosts}", str(source), f"{user}:{target}"]
    os.sync()
    started = time.perf_counter()
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
    taken = time.perf_counter() - started
    if target.stat().st_size != size:
        raise SystemExit("scp did not copy the file")
    return {"seconds": taken}


async def timed_push(home: Home, board: Device, bundle: Bundle) -> dict[str, float]:
    """Seconds from nothing until the board has the bundle, and of those the seconds of the transfer."""
    traffic = Traffic()
    started = time.perf_counter()
    async with opened(home, board) as session:
        connected = time.perf_counter()
        await push(session, bundle, traffic, ignore)
        ended = time.perf_counter()
    if session.carrier != "ssh" or traffic.sent != traffic.total:
        raise SystemExit(f"not what was to be measured: {session.carrier}, {traffic.sent} of {traffic.total} bytes")
    forget(bundle)
    return {"seconds": ended - started, "transfer": ended - connected}


async def identical(home: Home, board: Device, size: int) -> dict[str, float]:
    """Push a bundle twice; bytes and seconds of the second time."""
    bundle, first, second = random_bundle(home, [size // BLOBS] * BLOBS), Traffic(), Traffic()
    async with opened(home, board) as session:
        await push(session, bundle, first, ignore)
        started = time.perf_counter()
        await push(session, bundle, second, ignore)
        taken = time.perf_counter() - started
    forget(bundle)
    return {"sent": second.sent, "on_wire": second.on_wire, "skipped": second.skipped, "seconds": taken}


def many(home: Home, devices: Sequence[Device], size: int, one: float, repeats: int) -> dict[str, Any]:
    """Seconds of a push to all boards at once, from nothing, and the most memory of the process that does it."""
    seconds, memory = [], 0
    for _ in range(repeats):
        bundle = random_bundle(home, [size])
        os.sync()
        # A fresh process: what was measured before has left nothing in it.
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as apart:
            taken, most = apart.submit(push_to_all, home, list(devices), bundle).result()
        seconds.append(taken)
        memory = max(memory, most)
        forget(bundle)
    median = statistics.median(seconds)
    return {
        "boards": len(devices),
        "seconds": {"median": median, "all": seconds},
        "times_one": median / (one * len(devices)),
        "controller_bytes": memory,
    }


def push_to_all(home: Home, devices: Sequence[Device], bundle: Bundle) -> tuple[float, int]:
    async def all_at_once() -> float:
        started = time.perf_counter()
        await asyncio.gather(*(timed(device) for device in devices))
        return time.perf_counter() - started

    async def timed(device: Device) -> None:
        async with opened(home, device) as session:
            await push(session, bundle, Traffic(), ignore)

    taken = asyncio.run(all_at_once())
    return taken, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def opened(home: Home, device: Device) -> Session:
    return Session(device, Keys(home.keys), holder="benchmark", lease=True, lease_wait=30, listener=ignore)


def bundle_of(root: Path, *contents: bytes) -> Bundle:
    """A bundle of these files, as far as a push looks into it; its blobs below ``root``."""
    blobs = BlobDir(root / "blobs")
    files = tuple(
        FileEntry(path=f"{n}.bin", size=len(data), sha256=blobs.add_bytes(data), role="extra")
        for n, data in enumerate(contents)
    )
    manifest = Manifest(
        model=ModelInfo(name="benchmark", source_sha256="0" * 64, origin="benchmark"),
        target="x86",
        toolchain={},
        options={},
        inputs=(),
        outputs=(),
        entry="0.bin",
        parameters=(),
        engine="",
        requirements=Requirements(),
        golden=Golden(inputs=(), outputs=(), rtol=0, atol=0, reference=""),
        files=files,
    )
    return Bundle(id="", manifest=manifest, manifest_bytes=b"", blobs=blobs, signature=None)


def random_bundle(home: Home, sizes: Sequence[int]) -> Bundle:
    return bundle_of(home.cache, *(os.urandom(size) for size in sizes))


def forget(bundle: Bundle) -> None:
    shutil.rmtree(bundle.blobs.root)


def tell(document: dict[str, Any]) -> None:
    size = document["size"]
    print(f"{size / 1e6:g} MB over SSH on loopback: median of {document['repeats']}, seconds")
    names = {"seconds": "from nothing", "transfer": "transfer alone"}
    for way, figures in document["ways"].items():
        for what, figure in figures.items():
            name = way if way == "scp" else f"fleet, {way}, {names[what]}"
            low, high = min(figure["all"]), max(figure["all"])
            print(
                f"  {name:34} {figure['median']:6.3f}  ({low:.3f} to {high:.3f})"
                f"  {size / figure['median'] / 1e6:5.0f} MB/s  {figure['times_scp']:5.2f} × scp's time"
            )
    same = document["identical"]
    print(f"the same bundle again: {same['sent']} blob bytes, {same['skipped']:,} skipped, {same['seconds']:.3f} s")
    many = document["many"]
    print(
        f"{many['boards']} boards at once: {many['seconds']['median']:.2f} s,"
        f" {many['times_one']:.2f} × {many['boards']} times one board's;"
        f" the controller's memory at most {many['controller_bytes'] / 1e6:.0f} MB"
    )


if __name__ == "__main__":
    sys.exit(main())
