"""The build cache under damage and under several users at once."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from controller.cache import BuildCache, cache_key
from targets.base import Requirements, TensorSpec
from targets.bundle import FileEntry, Golden, Manifest, ModelInfo, canonical

VECTOR = TensorSpec("x", (4,), "uint8")


def stored(cache: BuildCache, key: str, library: bytes = b"code") -> Manifest:
    """A small build in the cache."""

    def entry(path: str, role: str, data: bytes, tensor: TensorSpec | None = None) -> FileEntry:
        return FileEntry(path, len(data), cache.blobs.add_bytes(data), role, tensor)  # type: ignore[arg-type]

    manifest = Manifest(
        model=ModelInfo("m", "0" * 64, "file:m.onnx"),
        target="x86",
        toolchain={},
        options={},
        inputs=(VECTOR,),
        outputs=(VECTOR,),
        entry="model.so",
        parameters=(),
        engine="time_evaluator",
        requirements=Requirements(),
        golden=Golden((("in",),), (("out",),), 0.0, 0.0, "nothing 1"),
        files=(
            entry("model.so", "library", library),
            entry("in", "golden-input", b"1234", VECTOR),
            entry("out", "golden-output", b"5678", VECTOR),
        ),
    )
    cache.store(key, canonical(manifest))
    return manifest


def test_keys_depend_on_content_not_on_order() -> None:
    assert cache_key({"a": 1, "b": [2, 3]}) == cache_key({"b": [2, 3], "a": 1})
    assert len({cache_key(part) for part in ({"a": 1}, {"a": "1"}, {"a": [1]}, {"b": 1})}) == 4


def test_what_is_stored_is_found(tmp_path: Path) -> None:
    cache = BuildCache(tmp_path)
    key = cache_key("k")
    assert cache.load(key) is None
    manifest = stored(cache, key)
    found = BuildCache(tmp_path).load(key)
    assert found is not None and found == (manifest, canonical(manifest))


@pytest.mark.parametrize("at", [0, 10, 70, 200, -1])
def test_a_damaged_entry_is_removed(at: int, tmp_path: Path) -> None:
    cache = BuildCache(tmp_path)
    key = cache_key("k")
    stored(cache, key)
    path = tmp_path / "builds" / key
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)
    assert cache.load(key) is None and not path.exists()
    path.write_bytes(b"")
    assert cache.load(key) is None and not path.exists()


def test_a_damaged_blob_is_removed_and_others_stay(tmp_path: Path) -> None:
    cache = BuildCache(tmp_path)
    key = cache_key("k")
    manifest = stored(cache, key)
    library, given, _ = manifest.files
    blob = cache.blobs.path(library.sha256)
    blob.unlink()
    blob.write_bytes(b"edoc")
    assert cache.load(key) is None
    assert not blob.exists() and cache.blobs.has(given.sha256)
    stored(cache, key)
    assert cache.load(key) is not None


def test_a_lock_is_for_one_at_a_time(tmp_path: Path) -> None:
    cache = BuildCache(tmp_path)
    inside, waited, order = threading.Event(), threading.Event(), []

    def first() -> None:
        with cache.lock("k", lambda: None):
            inside.set()
            assert waited.wait(10)
            order.append("first")

    thread = threading.Thread(target=first)
    thread.start()
    assert inside.wait(10)
    with cache.lock("other", lambda: pytest.fail("another key is not locked")):
        pass
    with cache.lock("k", waited.set):
        order.append("second")
    thread.join()
    assert order == ["first", "second"]


def test_a_wait_can_be_given_up(tmp_path: Path) -> None:
    class GaveUp(Exception):
        pass

    def give_up() -> None:
        raise GaveUp

    cache = BuildCache(tmp_path)
    start = time.monotonic()
    with cache.lock("k", lambda: None), pytest.raises(GaveUp), cache.lock("k", give_up):
        pass
    assert time.monotonic() - start < 5
