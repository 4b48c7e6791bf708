"""A network that was exported before is found without importing what exported it, and only if it is still the same."""

import sys
from pathlib import Path

import msgspec
import pytest

from controller import zoo
from controller.home import Home
from controller.zoo import remembered
from targets.base import FleetError, SourceModel


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home.find(tmp_path)


def test_the_second_time_needs_no_torch(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    first = zoo.source("shapes-classifier", "random:3", home)
    assert first.format == "pt2"
    monkeypatch.setitem(sys.modules, "torch", None)
    assert zoo.source("shapes-classifier", "random:3", home) == first
    # Other weights are another thing.
    with pytest.raises(FleetError) as caught:
        zoo.source("shapes-classifier", "random:4", home)
    assert caught.value.code == "torch-missing"
    # So is a file that is not what was exported.
    path = Path(first.path)
    path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(FleetError, match="PyTorch"):
        zoo.source("shapes-classifier", "random:3", home)


def made(home: Home, **changes: object) -> SourceModel:
    path = home.cache / "net.pt2"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"a network")
    digest = "6f9ad0fa6b9e8b7fdd8b1e4ab5bd4b9b4c8bb4a5b0b3c6d1b06b3f9b9dcb5e7a"
    source = SourceModel("net", "pt2", str(path), digest, "zoo:net weights=x", (), (), labels=("a", "b"))
    return msgspec.structs.replace(source, **changes)


def test_weights_of_a_file_are_its_contents(home: Home, tmp_path: Path) -> None:
    from targets.files import hash_file

    weights = tmp_path / "w.pth"
    weights.write_bytes(b"one")
    source = made(home)
    source = msgspec.structs.replace(source, sha256=hash_file(Path(source.path)))
    remembered.keep(str(weights), source, home)
    assert remembered.find("net", str(weights), home) == source
    weights.write_bytes(b"two")
    assert remembered.find("net", str(weights), home) is None
    weights.write_bytes(b"one")
    assert remembered.find("net", str(weights), home) == source
    assert remembered.find("other", str(weights), home) is None


@pytest.mark.parametrize("data", [b"", b"{}", b"\xff", b"[1]"])
def test_a_damaged_memory_is_none(home: Home, data: bytes) -> None:
    source = made(home)
    remembered.keep("x", source, home)
    # Its digest is not the file's.
    assert remembered.find("net", "x", home) is None
    (memory,) = (home.cache / "zoo").glob("net-*.json")
    memory.write_bytes(data)
    assert remembered.find("net", "x", home) is None
    Path(source.path).unlink()
    assert remembered.find("net", "x", home) is None
