"""The store: pieces into blobs, blobs into bundles, bundles into slots, and the room that they take."""

import os
import threading
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zstandard
from made_bundles import blob, make_bundle, sha256

from agent import parts
from agent.protocol import BlobRef, ChunkStored, Codec, MissingBlob, PutChunk
from agent.space import measure
from agent.store import SlotRecord, Store
from targets import defaults
from targets.base import BundleError, FleetError, LoadedBundle
from targets.bundle import FileEntry, bundle_id, canonical
from targets.files import TEMPORARY
from targets.keys import Keys, Signature


def chunk(data: bytes, offset: int, length: int, codec: Codec = "raw", **changes: Any) -> tuple[PutChunk, bytes]:
    """The request and payload for a piece of a blob."""
    piece = data[offset : offset + length]
    request = PutChunk(token="", sha256=sha256(data), offset=offset, length=len(piece), total=len(data), codec=codec)
    payload = zstandard.compress(piece) if codec == "zstd" else piece
    return msgspec.structs.replace(request, **changes), payload


def push(store: Store, data: bytes, size: int = 1000, codec: Codec = "raw") -> ChunkStored:
    """Send what the store lacks of a blob, as a controller does; the last answer."""
    missing = store.missing([BlobRef(sha256=sha256(data), size=len(data))])
    offset = missing[0].offset if missing else len(data)
    answer = store.put_chunk(*chunk(data, offset, size, codec))
    while not answer.complete:
        answer = store.put_chunk(*chunk(data, answer.offset, size, codec))
    return answer


def stage(store: Store, seed: int = 0, **changes: Any) -> str:
    manifest, contents = make_bundle(seed, **changes)
    for data in contents.values():
        push(store, data)
    return store.stage(canonical(manifest))


def refused(code: str, call: Any, *args: Any) -> FleetError:
    with pytest.raises(FleetError) as caught:
        call(*args)
    assert caught.value.code == code, caught.value
    return caught.value


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


# --- Pieces -------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", ["raw", "zstd"])
def test_a_blob_comes_in_pieces(store: Store, codec: Codec) -> None:
    data = blob(1, 3000) + bytes(3000)
    ref = BlobRef(sha256=sha256(data), size=len(data))
    assert store.missing([ref, ref]) == [MissingBlob(sha256=ref.sha256, offset=0)]
    assert store.put_chunk(*chunk(data, 0, 2500, codec, id=7)) == ChunkStored(
        id=7, sha256=ref.sha256, offset=2500, complete=False
    )
    assert store.missing([ref]) == [MissingBlob(sha256=ref.sha256, offset=2500)]
    assert store.put_chunk(*chunk(data, 2500, 5000, codec)).complete
    assert store.missing([ref]) == []
    assert store.blobs.path(ref.sha256).read_bytes() == data
    assert list((store.root / "parts").iterdir()) == []


def test_a_push_goes_on_in_another_process(store: Store, tmp_path: Path) -> None:
    data = blob(1, 5000)
    store.put_chunk(*chunk(data, 0, 1234))
    store.close()
    again = Store(tmp_path / "store")
    assert again.missing([BlobRef(sha256=sha256(data), size=5000)])[0].offset == 1234
    assert again.put_chunk(*chunk(data, 1234, 5000)).complete
    assert again.blobs.path(sha256(data)).read_bytes() == data


def test_a_gap_is_refused_with_the_byte_to_go_on_from(store: Store) -> None:
    data = blob(1, 5000)
    assert "continues at byte 0, not at 100" in refused("bad-offset", store.put_chunk, *chunk(data, 100, 100)).message
    store.put_chunk(*chunk(data, 0, 1000))
    error = refused("bad-offset", store.put_chunk, *chunk(data, 1001, 100))
    assert "continues at byte 1000, not at 1001" in error.message
    assert "from byte 1000" in error.hint
    assert push(store, data).complete


def test_pieces_that_are_here_already_are_skipped(store: Store) -> None:
    data = blob(1, 5000)
    store.put_chunk(*chunk(data, 0, 3000))
    assert store.put_chunk(*chunk(data, 0, 1000)).offset == 3000
    assert store.put_chunk(*chunk(data, 2000, 2000)).offset == 4000
    assert store.put_chunk(*chunk(data, 0, 5000)).complete
    assert store.put_chunk(*chunk(data, 0, 1000)) == ChunkStored(sha256=sha256(data), offset=5000, complete=True)
    assert store.blobs.path(sha256(data)).read_bytes() == data


def test_empty_blobs(store: Store) -> None:
    assert store.missing([BlobRef(sha256=sha256(b""), size=0)]) == []
    assert store.blobs.path(sha256(b"")).read_bytes() == b""
    assert store.put_chunk(*chunk(b"", 0, 0)).complete
    # Something else cannot be empty.
    assert store.missing([BlobRef(sha256="ab" * 32, size=0)])[0].offset == 0
    assert list((store.root / "parts").iterdir()) == []


def test_a_piece_that_is_not_what_it_says(store: Store) -> None:
    data = blob(1, 1000)
    for changes in (
        {"offset": -1},
        {"length": -1},
        {"length": 1001},
        {"total": 999},
        {"total": defaults.MAX_BLOB + 1},
        {"length": 999},
        {"offset": 2**62, "total": 2**62 + 5000},
        {"length": defaults.MAX_MESSAGE + 1, "total": defaults.MAX_BLOB},
    ):
        request, payload = chunk(data, 0, 1000)
        refused("bad-chunk", store.put_chunk, msgspec.structs.replace(request, **changes), payload)
    for digest in ("", "../../../etc/passwd", "AB" * 32, "ab" * 32 + "/"):
        refused("bad-digest", store.put_chunk, *chunk(data, 0, 1000, sha256=digest))
    assert push(store, data).complete
    refused("bad-size", store.put_chunk, *chunk(data, 0, 1000, total=2000))
    refused("bad-size", store.missing, [BlobRef(sha256=sha256(data), size=2000)])


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"no frame",
        zstandard.compress(blob(1, 999)),
        zstandard.compress(bytes(100_000_000)),
        zstandard.ZstdCompressor(write_content_size=False).compress(bytes(100_000_000)),
        zstandard.ZstdCompressor(write_content_size=False).compress(blob(1, 999)),
        zstandard.compress(blob(1, 1000)) + b"more",
        zstandard.compress(blob(1, 1000))[:-1],
    ],
)
def test_a_compressed_piece_that_is_not_what_it_says(store: Store, payload: bytes) -> None:
    request, _ = chunk(blob(1, 1000), 0, 1000, "zstd")
    refused("bad-chunk", store.put_chunk, request, payload)
    assert list((store.root / "parts").iterdir()) == []


def test_a_frame_without_its_size_is_taken(store: Store) -> None:
    request, _ = chunk(blob(1, 1000), 0, 1000, "zstd")
    payload = zstandard.ZstdCompressor(write_content_size=False).compress(blob(1, 1000))
    assert store.put_chunk(request, memoryview(payload)).complete


def test_a_blob_with_another_digest_is_thrown_away(store: Store) -> None:
    data = blob(1, 1000)
    store.put_chunk(*chunk(data, 0, 500))
    request, _ = chunk(data, 500, 500)
    refused("bad-digest", store.put_chunk, request, bytes(500))
    assert store.missing([BlobRef(sha256=sha256(data), size=1000)])[0].offset == 0
    assert store.usage()[0] == 0
    assert push(store, data).complete


def test_a_sender_that_was_wrong_about_the_size_does_no_harm(store: Store) -> None:
    data = blob(1, 1000)
    store.put_chunk(*chunk(data + bytes(2000), 0, 1500, sha256=sha256(data)))
    assert store.missing([BlobRef(sha256=sha256(data), size=1000)])[0].offset == 0
    assert push(store, data).complete
    assert store.usage()[0] == 1000


def test_what_came_whole_but_was_not_made_a_blob_is_finished(store: Store) -> None:
    data = blob(1, 1000)
    (store.root / "parts" / sha256(data)).write_bytes(data)
    (store.root / "parts" / ("ab" * 32)).write_bytes(data)
    again = Store(store.root)
    refs = [BlobRef(sha256=sha256(data), size=1000), BlobRef(sha256="ab" * 32, size=1000)]
    assert again.missing(refs) == [MissingBlob(sha256="ab" * 32, offset=0)]
    assert again.blobs.path(sha256(data)).read_bytes() == data
    assert again.usage()[0] == 1000 == measure(again.root)


def test_many_blobs_at_once_do_not_keep_many_files_open(store: Store) -> None:
    contents = [blob(i, 100) for i in range(3 * parts._OPEN)]
    for data in contents:
        store.put_chunk(*chunk(data, 0, 50))
    open_files = sum(os.path.realpath(f"/proc/self/fd/{fd}").startswith(str(store.root)) for fd in _descriptors())
    assert open_files == parts._OPEN
    for data in contents:
        assert store.put_chunk(*chunk(data, 50, 50)).complete
    assert store.usage()[0] == measure(store.root) == len(contents) * 100


def _descriptors() -> list[str]:
    return [path.name for path in Path("/proc/self/fd").iterdir()]


def test_two_senders_of_one_blob(store: Store) -> None:
    """Both send all of it, each at its own pace and in pieces of its own size; neither is refused."""
    data = blob(1, 400_000)
    errors: list[BaseException] = []

    def send(size: int, codec: Codec) -> None:
        try:
            for offset in range(0, len(data), size):
                store.put_chunk(*chunk(data, offset, size, codec))
        except BaseException as error:
            errors.append(error)

    paces: list[tuple[int, Codec]] = [(1000, "raw"), (1700, "zstd"), (1000, "raw"), (9999, "raw")]
    threads = [threading.Thread(target=send, args=pace) for pace in paces]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert store.blobs.path(sha256(data)).read_bytes() == data
    assert store.usage()[0] == measure(store.root) == len(data)


def test_more_blobs_than_a_bundle_may_have(store: Store) -> None:
    with pytest.raises(BundleError):
        store.missing([BlobRef(sha256="ab" * 32, size=1)] * (defaults.MAX_FILES + 1))
    with pytest.raises(BundleError):
        store.missing([BlobRef(sha256="ab" * 32, size=-1)])


# --- Bundles ------------------------------------------------------------------------------------


def test_a_bundle_is_staged_and_found(store: Store, tmp_path: Path) -> None:
    manifest, contents = make_bundle()
    identity = stage(store)
    assert identity == bundle_id(manifest)
    for bundle in (store.bundle(identity), Store(tmp_path / "store").bundle(identity)):
        loaded: LoadedBundle = bundle
        assert loaded.manifest == manifest
        for entry in manifest.files:
            assert loaded.path(entry.path).read_bytes() == contents[entry.sha256]
            assert loaded.path(entry.path).suffix == Path(entry.path).suffix
        assert bundle.manifest_bytes == canonical(manifest)
        refused("no-such-file", loaded.path, "../manifest.json")
    assert store.bundles() == [identity]
    assert stage(store) == identity
    assert store.bundles() == [identity]
    assert store.usage()[0] == measure(store.root)


def test_a_bundle_without_all_its_blobs(store: Store) -> None:
    manifest, contents = make_bundle()
    first, *rest = contents.values()
    for data in rest:
        push(store, data)
    store.put_chunk(*chunk(first, 0, 10))
    assert "1 blobs" in refused("missing-blobs", store.stage, canonical(manifest)).message
    assert store.bundles() == []
    push(store, first)
    assert store.stage(canonical(manifest)) == bundle_id(manifest)


def test_a_manifest_that_lies_about_a_size(store: Store) -> None:
    manifest, contents = make_bundle()
    for data in contents.values():
        push(store, data)
    first, *rest = manifest.files
    lie = msgspec.structs.replace(first, size=first.size + 1)
    refused("bad-size", store.stage, canonical(msgspec.structs.replace(manifest, files=(lie, *rest))))
    assert store.bundles() == []


def test_a_bundle_that_is_not_here(store: Store) -> None:
    refused("no-such-bundle", store.bundle, "ab" * 32)
    refused("bad-digest", store.bundle, "../../x")
    with pytest.raises(BundleError):
        store.stage(b"{}")


def test_only_trusted_bundles_are_staged(store: Store, tmp_path: Path) -> None:
    keys, stranger = Keys(tmp_path / "a"), Keys(tmp_path / "b")
    trusted: dict[str, str] = {}
    store.trusted = trusted
    manifest, contents = make_bundle()
    for data in contents.values():
        push(store, data)
    data, identity = canonical(manifest), bundle_id(manifest)
    trusted[keys.key_id] = keys.signing_public
    refused("unsigned", store.stage, data)
    refused("untrusted-key", store.stage, data, stranger.sign(identity))
    refused("bad-signature", store.stage, data, keys.sign("ab" * 32))
    refused("bad-signature", store.stage, data, Signature(keys.key_id, stranger.sign(identity).signature))
    assert store.bundles() == []
    assert store.stage(data, keys.sign(identity)) == identity
    # Also when it is already there.
    refused("unsigned", store.stage, data)


def test_a_bundle_that_was_damaged_is_refused_and_staged_anew(store: Store) -> None:
    identity = stage(store)
    (store.root / "bundles" / identity / "manifest.json").write_bytes(b"{}")
    refused("damaged", store.bundle, identity)
    assert stage(store) == identity
    assert store.bundle(identity).id == identity
    (store.root / "bundles" / identity / "files" / "lib" / "model.so").unlink()
    refused("damaged", store.bundle, identity)
    assert stage(store) == identity
    path = store.bundle(identity).path("lib/model.so").resolve()
    path.chmod(0o600)
    path.write_bytes(b"cut")
    refused("damaged", store.bundle, identity)
    # The controller asks what is missing, and sends that.
    assert stage(store) == identity
    assert store.bundle(identity).path("lib/model.so").stat().st_size == 5000
    assert store.usage()[0] == measure(store.root)


def test_a_blob_that_rotted_is_found_when_its_bundle_is_staged(store: Store) -> None:
    identity = stage(store)
    path = store.bundle(identity).path("lib/model.so").resolve()
    path.chmod(0o600)
    path.write_bytes(bytes(5000))
    again = Store(store.root)
    error = refused("missing-blobs", again.stage, canonical(make_bundle()[0]))
    assert "'lib/model.so'" in error.message
    assert stage(again) == identity
    assert sha256(path.read_bytes()) == path.name
    assert again.usage()[0] == measure(store.root)


def test_a_bundle_with_the_same_blob_under_many_names(store: Store) -> None:
    manifest, contents = make_bundle()
    data = blob(9, 10)
    more = tuple(FileEntry(f"a/{i}/b/{i}.txt", 10, sha256(data), "extra") for i in range(50))
    for content in (*contents.values(), data):
        push(store, content)
    identity = store.stage(canonical(msgspec.structs.replace(manifest, files=(*manifest.files, *more))))
    assert all(store.bundle(identity).path(entry.path).read_bytes() == data for entry in more)
    assert store.collect(set(), grace=0) == store.usage()[0] + 5000 + 72 + 10 + len(
        canonical(msgspec.structs.replace(manifest, files=(*manifest.files, *more)))
    )


# --- Slots --------------------------------------------------------------------------------------


def test_slots_are_kept(store: Store, tmp_path: Path) -> None:
    assert store.slots() == {}
    slots = {
        "default": SlotRecord(bundle="ab" * 32, model="net", activated_at=1.5, previous="cd" * 32, previous_model="x"),
        "other": SlotRecord(bundle="ef" * 32),
    }
    store.save_slots(slots)
    assert store.slots() == Store(tmp_path / "store").slots() == slots
    store.save_slots({})
    assert store.slots() == {}
    assert store.usage()[0] == measure(store.root)


@pytest.mark.parametrize("contents", [b"", b"{", b'{"default":{}}', b'{"default":{"bundle":1}}', b"\xff", b"[]"])
def test_damaged_slots_are_an_error_and_nothing_is_collected(store: Store, contents: bytes) -> None:
    stage(store)
    (store.root / "slots.json").write_bytes(contents)
    refused("store-damaged", store.slots)
    refused("store-damaged", lambda: store.collect(set(), grace=0))
    assert len(store.bundles()) == 1


# --- Room ---------------------------------------------------------------------------------------


def test_garbage_goes_and_what_is_needed_stays(store: Store) -> None:
    active, previous, kept, gone = (stage(store, seed) for seed in (0, 100, 200, 300))
    shared = make_bundle(0)[1]
    loose = blob(77, 100)
    push(store, loose)
    store.put_chunk(*chunk(blob(78, 100), 0, 50))
    store.save_slots({"default": SlotRecord(bundle=active, previous=previous)})
    assert store.collect({kept}) == 0
    before = store.usage()[0]
    freed = store.collect({kept}, grace=0)
    assert freed == before - store.usage()[0] > 5000 + 150
    assert store.usage()[0] == measure(store.root)
    assert set(store.bundles()) == {active, previous, kept}
    for identity in store.bundles():
        assert store.bundle(identity).id == identity
    assert set(shared) <= set(store.blobs)
    assert not store.blobs.has(sha256(loose))
    assert list((store.root / "parts").iterdir()) == []
    refused("no-such-bundle", store.bundle, gone)
    # A cut push begins anew.
    assert push(store, blob(78, 100)).complete


def test_what_was_asked_for_lately_is_not_garbage(store: Store) -> None:
    old = time.time() - 7200
    identity = stage(store)
    loose, part = blob(77, 100), blob(78, 100)
    push(store, loose)
    store.put_chunk(*chunk(part, 0, 50))
    paths = [*store.root.glob("blobs/*/*"), *store.root.glob("bundles/*"), *store.root.glob("parts/*")]
    for path in paths:
        os.utime(path, (old, old))
    store.missing([BlobRef(sha256=sha256(loose), size=100)])
    stage(store)
    store.put_chunk(*chunk(part, 50, 10))
    assert store.collect(set()) == 0
    for path in paths:
        os.utime(path, (old, old))
    assert store.collect(set()) > 0
    assert store.bundles() == []
    assert list(store.blobs) == []
    assert store.usage()[0] == 0
    refused("no-such-bundle", store.bundle, identity)


def test_what_has_left_the_slots_is_garbage_at_once(store: Store) -> None:
    ids = []
    for seed in (0, 100, 200, 300):
        ids.append(stage(store, seed))
        previous = ids[-2] if len(ids) > 1 else ""
        store.save_slots({"default": SlotRecord(bundle=ids[-1], previous=previous)})
    staged = stage(store, 400)
    # A push of the second one has just begun: what it was told is here must not go.
    again = make_bundle(100)[0].files[0]
    assert store.missing([BlobRef(sha256=again.sha256, size=again.size)]) == []
    assert store.collect(set()) > 5000
    assert set(store.bundles()) == {ids[2], ids[3], staged}
    assert set(store.blobs) == {again.sha256} | {d for seed in (200, 300, 400) for d in make_bundle(seed)[1]}
    assert store.usage()[0] == measure(store.root)
    assert stage(store, 100) == ids[1]
    assert store.collect(set()) == 0


def test_blobs_of_a_damaged_bundle_that_is_kept_stay(store: Store) -> None:
    identity = stage(store)
    store.save_slots({"default": SlotRecord(bundle=identity)})
    (store.root / "bundles" / identity / "manifest.json").write_bytes(b"{}")
    store.collect(set(), grace=0)
    assert len(list(store.blobs)) == 4
    assert stage(store) == identity


def test_a_store_with_a_quota_is_like_a_small_disk(tmp_path: Path) -> None:
    store = Store(tmp_path / "store", quota=20_000)
    identity = stage(store)
    store.save_slots({"default": SlotRecord(bundle=identity)})
    used, free = store.usage()
    assert used == measure(store.root)
    assert free == 20_000 - used
    big = blob(5, free + 1)
    # It is told before the first byte is taken, not after the last that fits.
    assert "no room" in refused("disk-full", store.put_chunk, *chunk(big, 0, 100)).message
    assert store.usage() == (used, free)
    fits = blob(6, free)
    assert push(store, fits).complete
    assert store.usage() == (20_000, 0)
    manifest, contents = make_bundle(50, library_size=1)
    refused("disk-full", store.put_chunk, *chunk(next(iter(contents.values())), 0, 1))
    assert store.bundle(identity).id == identity
    # What must never fail to be written has room still.
    store.save_slots({"default": SlotRecord(bundle=identity, previous="ab" * 32)})
    assert store.collect(set(), grace=0) == free
    for data in contents.values():
        push(store, data)
    assert store.stage(canonical(manifest)) in store.bundles()
    assert Store(tmp_path / "store", quota=20_000).usage() == store.usage()


def test_what_is_here_is_staged_though_the_store_is_full(tmp_path: Path) -> None:
    identity = stage(Store(tmp_path / "store"))
    full = Store(tmp_path / "store", quota=1)
    assert full.stage(canonical(make_bundle()[0])) == identity
    refused("disk-full", full.put_chunk, *chunk(blob(9, 10), 0, 10))


def test_the_last_bytes_of_a_disk_are_not_taken(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = os.statvfs(store.root)
    monkeypatch.setattr("agent.space.DISK_RESERVE", disk.f_blocks * disk.f_frsize)
    assert store.usage() == (0, 0)
    refused("disk-full", store.put_chunk, *chunk(b"x", 0, 1))
    store.save_slots({"default": SlotRecord(bundle="ab" * 32)})


def test_what_an_ended_process_left_is_removed(store: Store) -> None:
    identity = stage(store)
    (store.root / "bundles" / f"{TEMPORARY}x" / "files").mkdir(parents=True)
    (store.root / "bundles" / f"{TEMPORARY}x" / "files" / "link").symlink_to("/etc/passwd")
    for folder in ("", "bundles", "blobs"):
        (store.root / folder / f"{TEMPORARY}y").write_bytes(b"left")
    again = Store(store.root)
    assert not list(store.root.rglob(f"{TEMPORARY}*"))
    assert Path("/etc/passwd").exists()
    assert again.bundles() == [identity]
    assert again.usage()[0] == measure(store.root)
