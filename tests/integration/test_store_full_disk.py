"""A disk that is really full: the system refuses to write, and nothing that was there is lost."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import store_victim  # noqa: F401  (finds the makers of bundles)
from made_bundles import blob, make_bundle, sha256
from test_journal import result

from agent.journal import Journal
from agent.protocol import BlobRef, PutChunk
from agent.space import measure
from agent.store import SlotRecord, Store
from targets.archive import read_archive, write_archive
from targets.base import FleetError
from targets.blobs import BlobDir
from targets.bundle import canonical
from targets.files import TEMPORARY

# In a process of its own, since the limit holds for all that it does: no file may grow beyond 100,000 bytes.
_LIMITED = """
import resource, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
import store_victim
from made_bundles import blob
from test_store_full_disk import put, full
from agent.store import Store

store = Store(Path(sys.argv[1]))
data = blob(1, 250_000)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
put(store, data, 0, 60_000)
full(lambda: put(store, data, 60_000, 190_000))
full(lambda: put(store, data, 60_000, 190_000))
assert store.usage()[0] == 60_000, store.usage()
assert put(store, data, 60_000, 40_000) == 100_000
"""


def put(store: Store, data: bytes, offset: int, length: int) -> int:
    piece = data[offset : offset + length]
    request = PutChunk(token="", sha256=sha256(data), offset=offset, length=len(piece), total=len(data))
    return store.put_chunk(request, piece).offset


def full(call: object) -> FleetError:
    assert callable(call)
    with pytest.raises(FleetError) as caught:
        call()
    assert caught.value.code == "disk-full", caught.value
    assert caught.value.hint
    return caught.value


def test_a_write_that_the_system_cuts_short(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", _LIMITED, tmp_path / "store", Path(__file__).parent], check=True, timeout=60)
    data = blob(1, 250_000)
    store = Store(tmp_path / "store")
    assert store.missing([BlobRef(sha256=sha256(data), size=len(data))])[0].offset == 100_000
    assert put(store, data, 100_000, 150_000) == len(data)
    assert store.blobs.path(sha256(data)).read_bytes() == data


@pytest.fixture
def small_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A disk of 1 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m,nr_inodes=2000", "tmpfs", os.fspath(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False, capture_output=True).returncode != 0:
        pytest.skip("a small disk can only be mounted by root")
    # The reserve is larger than this disk; without it the store meets the real end of the disk.
    monkeypatch.setattr("agent.space.DISK_RESERVE", 0)
    try:
        yield disk
    finally:
        # Lazily: a test that failed may have left files open.
        subprocess.run(["umount", "--lazy", os.fspath(disk)], check=True)


def fill(disk: Path, leave: int) -> Path:
    """Take the disk's room but for about ``leave`` bytes, as some other program may at any time."""
    path = disk / "other"
    free = os.statvfs(disk).f_bavail * 4096
    path.write_bytes(bytes(max(free - leave, 0)))
    return path


def test_no_room_left_on_the_disk(small_disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, journal = Store(small_disk / "store"), Journal(small_disk / "journal")
    manifest, contents = make_bundle()
    for data in contents.values():
        put(store, data, 0, len(data))
    identity = store.stage(canonical(manifest))
    slots = {"default": SlotRecord(bundle=identity)}
    store.save_slots(slots)
    journal.add(result("run-1"))
    loose = blob(5, 100_000)
    put(store, loose, 0, 50_000)

    other = fill(small_disk, 20_000)
    # It is seen beforehand …
    full(lambda: put(store, loose, 50_000, 50_000))
    # … and when the disk fills up between looking and writing.
    monkeypatch.setattr("agent.space.Space.require", lambda *_: None)
    full(lambda: put(store, loose, 50_000, 50_000))
    other.unlink()
    fill(small_disk, 0)
    full(lambda: store.save_slots({**slots, "other": SlotRecord(bundle=identity, model="x" * 4000)}))
    full(lambda: journal.add(result("run-2", samples=5000)))
    full(lambda: store.stage(canonical(make_bundle(target="arm64")[0])))
    full(lambda: put(store, blob(6, 100), 0, 100))

    for again in (store, Store(small_disk / "store")):
        assert again.slots() == slots
        assert again.bundles() == [identity]
        assert sha256(again.bundle(identity).path("lib/model.so").read_bytes()) == manifest.files[0].sha256
        assert again.missing([BlobRef(sha256=sha256(loose), size=100_000)])[0].offset == 50_000
        assert again.usage()[0] == measure(again.root)
    assert [r.run for r in Journal(small_disk / "journal").pending(9)] == ["run-1"]
    assert not list(small_disk.rglob(f"{TEMPORARY}*"))

    # With room again, all goes on.
    (small_disk / "other").unlink()
    assert put(store, loose, 50_000, 50_000) == 100_000
    journal.add(result("run-2", samples=5000))
    store.save_slots({})
    assert store.stage(canonical(make_bundle(target="arm64")[0])) in store.bundles()


def test_no_room_for_an_archive(small_disk: Path, tmp_path: Path) -> None:
    manifest, contents = make_bundle(library_size=300_000)
    blobs = BlobDir(tmp_path / "blobs")
    for data in contents.values():
        blobs.add_bytes(data)
    write_archive(tmp_path / "net.fleet", canonical(manifest), None, blobs)
    (small_disk / "net.fleet").write_bytes(b"before")
    there = BlobDir(small_disk / "blobs")
    fill(small_disk, 200_000)
    full(lambda: write_archive(small_disk / "net.fleet", canonical(manifest), None, blobs))
    full(lambda: read_archive(tmp_path / "net.fleet", there))
    full(lambda: there.add_bytes(blob(1, 400_000)))
    full(lambda: there.add_file(blobs.path(manifest.files[0].sha256)))
    assert (small_disk / "net.fleet").read_bytes() == b"before"
    assert list(there) == []
    assert not list(small_disk.rglob(f"{TEMPORARY}*"))
