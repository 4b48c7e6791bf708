"""Whatever others leave in the store's ``incoming/``: what becomes a blob has that blob's digest, or nothing does."""

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, multiple, rule
from made_bundles import blob, sha256

from agent.protocol import BlobRef, ImportBlob, PutChunk
from agent.space import measure
from agent.store import Store
from targets import defaults
from targets.base import FleetError

MAX = 600


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = Store(tmp_path / "store")
    yield made
    made.close()


def take(store: Store, data: bytes, total: int | None = None) -> None:
    stored = store.import_blob(ImportBlob(token="", sha256=sha256(data), total=len(data) if total is None else total))
    assert (stored.offset, stored.complete) == (len(data), True)


def leave(store: Store, data: bytes, name: str = "") -> Path:
    """What a sender does: write a file under the blob's digest."""
    path = store.root / "incoming" / (name or sha256(data))
    if path.is_dir():
        path.rmdir()
    path.unlink(missing_ok=True)
    path.write_bytes(data)
    return path


def refused(store: Store, data: bytes, code: str) -> FleetError:
    with pytest.raises(FleetError) as caught:
        take(store, data)
    assert caught.value.code == code
    assert not store.blobs.has(sha256(data))
    assert store.usage()[0] == measure(store.root)
    return caught.value


@pytest.mark.parametrize("size", [0, 1, 5000, 3 << 20])
def test_a_file_that_is_there_becomes_the_blob_itself(store: Store, size: int) -> None:
    data = blob(size, size)
    inode = leave(store, data).stat().st_ino
    take(store, data)
    path = store.blobs.path(sha256(data))
    assert path.read_bytes() == data
    assert path.stat().st_ino == inode
    assert path.stat().st_mode & 0o777 == 0o444
    assert list((store.root / "incoming").iterdir()) == []
    assert store.usage()[0] == measure(store.root) == size


def test_what_was_taken_once_need_not_come_again(store: Store) -> None:
    data = blob(0, 5000)
    leave(store, data)
    take(store, data)
    leave(store, b"another thing", sha256(data))
    take(store, data)
    assert store.blobs.path(sha256(data)).read_bytes() == data
    assert list((store.root / "incoming").iterdir()) == []


def test_whoever_still_writes_to_a_file_does_not_change_the_blob(store: Store) -> None:
    """A sender that was cut off may still have its file open, and bytes of it on their way."""
    data = blob(0, 3 << 20)
    with leave(store, data).open("r+b") as late:
        take(store, data)
        late.write(b"late")
    path = store.blobs.path(sha256(data))
    assert path.read_bytes() == data
    assert store.usage()[0] == measure(store.root) == len(data)


def test_a_file_with_another_name_is_copied(store: Store, tmp_path: Path) -> None:
    data = blob(0, 5000)
    (tmp_path / "mine").write_bytes(data)
    os.link(tmp_path / "mine", store.root / "incoming" / sha256(data))
    take(store, data)
    (tmp_path / "mine").write_bytes(b"changed")
    assert store.blobs.path(sha256(data)).read_bytes() == data


def test_a_link_is_not_followed(store: Store, tmp_path: Path) -> None:
    data = blob(0, 5000)
    (tmp_path / "elsewhere").write_bytes(data)
    link = store.root / "incoming" / sha256(data)
    link.symlink_to(tmp_path / "elsewhere")
    refused(store, data, "not-incoming")
    assert (tmp_path / "elsewhere").read_bytes() == data
    assert not link.is_symlink()


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_what_is_no_file_is_removed(store: Store, make: object) -> None:
    data = blob(0, 5000)
    make(store.root / "incoming" / sha256(data))  # type: ignore[operator]
    assert store.missing([BlobRef(sha256=sha256(data), size=len(data))])[0].incoming == 0
    refused(store, data, "not-incoming")
    assert list((store.root / "incoming").iterdir()) == []


@pytest.mark.parametrize("name", ["../../outside", "/etc/passwd", "AB" * 32, "ab", ""])
def test_a_name_has_to_be_a_digest(store: Store, name: str) -> None:
    with pytest.raises(FleetError) as caught:
        store.import_blob(ImportBlob(token="", sha256=name, total=1))
    assert caught.value.code == "bad-digest"


@pytest.mark.parametrize("total", [-1, defaults.MAX_BLOB + 1])
def test_a_size_that_no_blob_has_is_refused(store: Store, total: int) -> None:
    with pytest.raises(FleetError):
        take(store, blob(0, 10), total)


def test_another_file_than_announced_is_refused_and_removed(store: Store) -> None:
    data = blob(0, 5000)
    leave(store, blob(1, 5000), sha256(data))
    assert "has another digest" in refused(store, data, "bad-digest").message
    leave(store, data + b"!", sha256(data))
    refused(store, data, "bad-size")
    refused(store, data, "not-incoming")


def test_what_is_not_all_there_stays_and_is_told(store: Store) -> None:
    data = blob(0, 5000)
    leave(store, data[:1234], sha256(data))
    assert "1234 of 5000" in refused(store, data, "incomplete").message
    store.close()
    again = Store(store.root)
    assert again.missing([BlobRef(sha256=sha256(data), size=5000)])[0].incoming == 1234
    assert again.missing([BlobRef(sha256=sha256(data), size=1000)])[0].incoming == 0
    assert list((store.root / "incoming").iterdir()) == []
    again.close()


def test_a_blob_that_came_in_pieces_before_is_whole_once(store: Store) -> None:
    data = blob(0, 5000)
    store.put_chunk(PutChunk(token="", sha256=sha256(data), offset=0, length=100, total=5000), data[:100])
    leave(store, data)
    take(store, data)
    assert store.usage()[0] == measure(store.root) == 5000


def test_the_quota_holds_for_what_others_write(tmp_path: Path) -> None:
    data = blob(0, 5000)
    store = Store(tmp_path / "store", quota=8000)
    leave(store, data)
    assert store.usage() == (5000, 3000)
    take(store, data)
    more = blob(1, 4000)
    leave(store, more)
    assert store.usage()[1] == 0
    refused(store, more, "disk-full")
    with pytest.raises(FleetError, match="no room"):
        store.put_chunk(PutChunk(token="", sha256=sha256(b"x"), offset=0, length=1, total=1), b"x")
    store.incoming.discard(sha256(more))
    assert store.usage() == (5000, 3000)
    store.close()


def test_the_disk_s_reserve_is_given_back(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who writes without us may take what is to stay free: then it is not taken in."""
    data = blob(0, 5000)
    leave(store, data)
    disk = os.statvfs(store.root)
    monkeypatch.setattr("agent.space.DISK_RESERVE", disk.f_bavail * disk.f_frsize * 2)
    refused(store, data, "disk-full")
    monkeypatch.undo()
    take(store, data)


def test_rubbish_is_collected_and_what_is_fresh_is_not(store: Store) -> None:
    incoming = store.root / "incoming"
    leave(store, blob(0, 100))
    old, future, link = leave(store, b"old", "some.name"), leave(store, b"later", "later"), incoming / "link"
    link.symlink_to("/etc/passwd")
    (incoming / "folder").mkdir()
    (incoming / "folder" / "file").write_bytes(b"deep")
    past = time.time() - 10_000
    os.utime(old, (past, past))
    os.utime(link, (past, past), follow_symlinks=False)
    os.utime(incoming / "folder", (past, past))
    os.utime(future, (time.time() + 200_000,) * 2)
    assert store.collect(set()) == len(b"old" + b"later" + b"deep")
    assert [path.name for path in incoming.iterdir()] == [sha256(blob(0, 100))]
    assert store.usage()[0] == measure(store.root) == 100


def test_a_link_in_the_folder_s_place_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "store" / "incoming").symlink_to(tmp_path / "elsewhere")
    store = Store(tmp_path / "store")
    leave(store, blob(0, 10))
    assert list((tmp_path / "elsewhere").iterdir()) == []
    take(store, blob(0, 10))
    store.close()


class Arrivals(RuleBasedStateMachine):
    """Blobs come as files and in pieces, beside rubbish, through restarts."""

    blobs = Bundle("blobs")

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.mkdtemp()
        self.store = Store(Path(self.folder) / "store")
        self.whole: set[bytes] = set()
        self.writers: list[object] = []

    def teardown(self) -> None:
        self.store.close()
        shutil.rmtree(self.folder)

    @initialize(target=blobs, sizes=st.lists(st.integers(0, MAX), min_size=1, max_size=3, unique=True))
    def choose(self, sizes: list[int]) -> object:
        return multiple(*(blob(size, size) for size in sizes))

    @rule(data=blobs, content=st.one_of(st.none(), st.binary(max_size=MAX)), upto=st.integers(0, MAX))
    def write(self, data: bytes, content: bytes | None, upto: int) -> None:
        """The right bytes, all or some of them, or any."""
        leave(self.store, (data if content is None else content)[:upto], sha256(data))

    @rule(data=blobs, kind=st.sampled_from(["link", "fifo", "folder", "hard"]))
    def leave_something(self, data: bytes, kind: str) -> None:
        path, other = self.store.root / "incoming" / sha256(data), Path(self.folder) / "other"
        other.write_bytes(data)
        with contextlib.suppress(FileExistsError):
            if kind == "link":
                path.symlink_to(other)
            elif kind == "hard":
                os.link(other, path)
                other.unlink()
            else:
                (os.mkfifo if kind == "fifo" else os.mkdir)(path)

    @rule(data=blobs, offset=st.integers(0, MAX), length=st.integers(0, MAX))
    def put(self, data: bytes, offset: int, length: int) -> None:
        piece = data[offset : offset + length]
        request = PutChunk(
            token="", sha256=sha256(data), offset=min(offset, len(data)), length=len(piece), total=len(data)
        )
        with contextlib.suppress(FleetError):
            if self.store.put_chunk(request, piece).complete:
                self.whole.add(data)

    @rule(data=blobs, writing=st.booleans())
    def take(self, data: bytes, writing: bool) -> None:
        path = self.store.root / "incoming" / sha256(data)
        right = data in self.whole or (path.is_file() and not path.is_symlink() and path.read_bytes() == data)
        with contextlib.ExitStack() as stack:
            if writing and path.is_file() and not path.is_symlink():
                stack.enter_context(path.open("r+b"))
            try:
                take(self.store, data)
            except FleetError as error:
                assert not right
                assert error.code in ("not-incoming", "incomplete", "bad-size", "bad-digest")
            else:
                assert right
                self.whole.add(data)

    @rule(data=blobs)
    def ask(self, data: bytes) -> None:
        missing = self.store.missing([BlobRef(sha256=sha256(data), size=len(data))])
        assert all(0 <= one.incoming <= len(data) for one in missing)
        if not missing:
            self.whole.add(data)

    @rule()
    def restart(self) -> None:
        self.store.close()
        self.store = Store(Path(self.folder) / "store")

    @invariant()
    def is_whole(self) -> None:
        assert set(self.store.blobs) == {sha256(data) for data in self.whole}
        for data in self.whole:
            assert self.store.blobs.path(sha256(data)).read_bytes() == data
        assert self.store.usage()[0] == measure(self.store.root)


TestArrivals = Arrivals.TestCase
TestArrivals.settings = settings(deadline=None, max_examples=60, stateful_step_count=25)
