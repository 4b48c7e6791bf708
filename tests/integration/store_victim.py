"""A process that does what an agent does to its store and journal, says what it has done, and is killed meanwhile.

As a program: ``store_victim.py live ROOT`` works until it is killed; ``store_victim.py every FOLDER`` works through one
generation again and again, killed just before each system call in turn, and checks after each death.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "unit"))

from made_bundles import make_bundle, sha256
from test_journal import result

from agent.journal import Journal
from agent.protocol import BlobRef, PutChunk
from agent.space import measure
from agent.store import SlotRecord, Store
from targets.bundle import bundle_id, canonical
from targets.files import TEMPORARY

Say = Callable[[str], None]

#: System calls that change something on a disk.
CHANGES = {"open", "write", "pwrite", "fsync", "rename", "replace", "unlink", "remove", "mkdir", "rmdir", "link",
           "symlink", "chmod", "fchmod", "ftruncate", "utime"}  # fmt: skip


def live(root: Path, say: Say, *, size: int, chunk: int, generations: int) -> None:
    """Push, stage, activate and journal one bundle after the other, going on where an earlier life ended."""
    store, journal = Store(root / "store"), Journal(root / "journal")
    say("ready")
    slot = store.slots().get("default")
    first = int(slot.activated_at) + 1 if slot else 1
    for generation in range(first, first + generations):
        manifest, contents = make_bundle(1000 * generation, library_size=size)
        sizes = {entry.sha256: entry.size for entry in manifest.files}
        for missing in store.missing([BlobRef(sha256=digest, size=size) for digest, size in sizes.items()]):
            digest, offset, data = missing.sha256, missing.offset, contents[missing.sha256]
            say(f"from {digest} {offset}")
            while offset < len(data):
                piece = data[offset : offset + chunk]
                request = PutChunk(token="", sha256=digest, offset=offset, length=len(piece), total=len(data))
                offset = store.put_chunk(request, piece).offset
                say(f"held {digest} {offset}")
        identity = store.stage(canonical(manifest))
        say(f"staged {identity}")
        previous = slot.bundle if slot else ""
        slot = SlotRecord(bundle=identity, model="net", activated_at=float(generation), previous=previous)
        store.save_slots({"default": slot})
        say(f"slots {generation}")
        journal.add(result(f"run-{generation}"))
        say(f"added run-{generation}")
        journal.ack([f"run-{generation - 2}"])
        say(f"acked run-{generation - 2}")
        store.collect(set(), grace=0)
        say("collected")


@dataclass
class Witness:
    """What the victims have said, over all their lives, and what must therefore be true of what they left."""

    root: Path
    held: dict[str, int] = field(default_factory=dict)
    staged: str = ""
    generation: int = 0
    runs: set[str] = field(default_factory=set)
    acked: set[str] = field(default_factory=set)

    def listen(self, line: str) -> None:
        match line.split():
            case ["from", digest, offset]:
                assert int(offset) >= self.held.get(digest, 0), f"bytes of {digest} were lost"
            case ["held", digest, offset]:
                self.held[digest] = int(offset)
            case ["staged", identity]:
                self.staged = identity
            case ["slots", generation]:
                assert int(generation) == self.generation + 1
                self.generation = int(generation)
            case ["added", run]:
                self.runs.add(run)
            case ["acked", run]:
                self.acked.add(run)

    def check(self) -> None:
        """The victim is dead: look at what it left, as the next process will."""
        store, journal = Store(self.root / "store"), Journal(self.root / "journal")
        assert not list(self.root.rglob(f"{TEMPORARY}*"))
        for digest in store.blobs:
            assert sha256(store.blobs.path(digest).read_bytes()) == digest
        for identity in store.bundles():
            bundle = store.bundle(identity)
            for entry in bundle.manifest.files:
                assert sha256(bundle.path(entry.path).read_bytes()) == entry.sha256
        assert store.usage()[0] == measure(store.root)
        if self.staged:
            assert self.staged in store.bundles()
        slots = store.slots()
        generation = int(slots["default"].activated_at) if slots else 0
        assert generation - self.generation in (0, 1), "the slots are neither the old nor the new ones"
        self.generation = generation
        if slots:
            # The bundle is there whole, and the one that can be gone back to, too.
            size = next(e.size for e in store.bundle(slots["default"].bundle).manifest.files if e.role == "library")
            assert slots["default"].bundle == bundle_id(make_bundle(1000 * generation, library_size=size)[0])
            if slots["default"].previous:
                store.bundle(slots["default"].previous)
        runs = [r.run for r in journal.pending(1000)]
        assert sorted(set(runs)) == sorted(runs)
        assert set(runs) <= self.runs | {f"run-{generation}"}
        assert self.runs - self.acked - set(runs) <= {f"run-{generation - 2}"}, "results were lost"
        assert not self.acked & set(runs)
        # It may have died between the deed and the word.
        self.acked |= self.runs - set(runs)
        self.runs |= set(runs)
        assert not list(journal.root.glob("*.damaged"))
        store.close()


def every(folder: Path) -> None:
    """Die before each system call of a generation in turn; prints how many there were."""
    base = folder / "base"
    witness = Witness(base)
    settings: dict[str, Any] = {"size": 3000, "chunk": 1000}
    live(base, witness.listen, generations=2, **settings)
    witness.check()
    calls = 0
    while True:
        root = folder / "life"
        shutil.copytree(base, root, symlinks=True)
        witness = Witness(root, staged=witness.staged, generation=2, runs={"run-1", "run-2"}, acked={"run--1", "run-0"})
        died, lines = _life_with_death(root, calls, settings)
        for line in lines:
            witness.listen(line)
        witness.check()
        if not died:
            break
        if calls % 4 == 0:
            # The next life does what was left to do.
            live(root, witness.listen, generations=1, **settings)
            witness.check()
            assert witness.generation in (3, 4)
        witness.staged = bundle_id(make_bundle(2000, library_size=settings["size"])[0])
        shutil.rmtree(root)
        calls += 1
    print(calls)


def _life_with_death(root: Path, calls: int, settings: dict[str, Any]) -> tuple[bool, list[str]]:
    """Fork a process that lives for one generation and is killed before it changes something for the nth time."""
    reader, writer = os.pipe()
    process = os.fork()
    if process == 0:
        left = calls

        def profile(frame: FrameType, event: str, call: Any) -> None:
            nonlocal left
            if event == "c_call" and call.__module__ == "posix" and call.__name__ in CHANGES:
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                left -= 1

        def say(line: str) -> None:
            sys.setprofile(None)
            os.write(writer, f"{line}\n".encode())
            sys.setprofile(profile)

        try:
            sys.setprofile(profile)
            live(root, say, generations=1, **settings)
            sys.setprofile(None)
        except BaseException as error:
            sys.setprofile(None)
            os.write(2, f"the victim failed by itself: {error!r}\n".encode())
            os._exit(1)
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        lines = pipe.read().splitlines()
    status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    assert status in (0, -signal.SIGKILL), f"the victim ended with {status}"
    return status != 0, lines


if __name__ == "__main__":
    if sys.argv[1] == "every":
        every(Path(sys.argv[2]))
    else:
        live(Path(sys.argv[2]), lambda line: print(line, flush=True), size=4 << 20, chunk=64 << 10, generations=10_000)
