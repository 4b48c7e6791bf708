"""What a Jetson has built: kept whole, found again, bounded, and rid of what dead processes left."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from targets.base import FleetError
from targets.jetson import cache as kept
from targets.jetson.cache import EngineCache


@pytest.fixture
def cache(tmp_path: Path) -> EngineCache:
    return EngineCache(tmp_path / "engines", 1 << 20)


def _keep(cache: EngineCache, key: str, data: bytes = b"engine", age: float = 0.0) -> Path:
    with cache.staging() as folder:
        (folder / "module.ts").write_bytes(data)
        place = cache.keep(key, folder, {"weight_dtype": "float16"}, 12.5)
    assert not folder.exists()
    if age:
        past = place.stat().st_mtime - age
        os.utime(place, (past, past))
    return place


def test_what_was_built_is_found_with_what_was_said_of_it(cache: EngineCache) -> None:
    assert cache.find("one") is None
    place = _keep(cache, "one")
    found = cache.find("one")
    assert found is not None and found[0] == place
    assert found[1].found == {"weight_dtype": "float16"} and found[1].seconds == 12.5
    # Its files may be run: nobody else's business.
    assert cache.root.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("damage", ["cut", "changed", "gone", "record"])
def test_a_damaged_entry_is_removed(cache: EngineCache, damage: str) -> None:
    place = _keep(cache, "one")
    file = place / "module.ts"
    if damage == "cut":
        file.write_bytes(b"engin")
    elif damage == "changed":
        file.write_bytes(b"enginf")
    elif damage == "gone":
        file.unlink()
    else:
        (place / "made.json").write_text("{")
    assert cache.find("one") is None
    assert not place.exists()
    _keep(cache, "one")
    assert cache.find("one") is not None


def test_the_longest_unused_go_and_the_newest_stays(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path / "engines", 4000)
    _keep(cache, "old", bytes(1500), age=300)
    _keep(cache, "used", bytes(1500), age=200)
    assert cache.find("old") is not None  # now it is the one that was used last
    _keep(cache, "new", bytes(9000))
    assert cache.find("new") is not None and cache.find("old") is not None
    _keep(cache, "newer", bytes(2000))
    assert cache.find("newer") is not None and cache.find("used") is None


def test_who_builds_what_is_there_already_gets_that(cache: EngineCache) -> None:
    first = _keep(cache, "one", b"first")
    assert _keep(cache, "one", b"second") == first
    assert (first / "module.ts").read_bytes() == b"first"


def test_what_dead_processes_left_is_removed_and_what_the_living_use_is_not(tmp_path: Path) -> None:
    root = tmp_path / "engines"
    code = (
        "import sys, os; from pathlib import Path; from targets.jetson.cache import EngineCache\n"
        "with EngineCache(Path(sys.argv[1]), 1).staging() as folder:\n"
        "    (folder / 'half').write_bytes(b'x'); os._exit(9)"
    )
    subprocess.run([sys.executable, "-c", code, str(root)], check=False, timeout=60)
    (left,) = root.glob(".tmp-*")
    cache = EngineCache(root, 1 << 20)
    assert not left.exists()
    with cache.staging() as mine:
        EngineCache(root, 1 << 20)
        assert mine.is_dir()


def test_the_key_knows_all_parts() -> None:
    parts = {"program": ["a"], "settings": {"precision": "fp16"}, "gpu": "Orin"}
    assert kept.key(parts) == kept.key(dict(reversed(parts.items())))
    assert len({kept.key(parts), kept.key({**parts, "gpu": "Thor"}), kept.key({**parts, "program": ["b"]})}) == 3


def test_a_folder_that_cannot_be_is_an_error_with_words(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FleetError, match="what is built for this board"):
        EngineCache(tmp_path / "file" / "engines", 1)
