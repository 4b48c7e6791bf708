"""What a runtime for boards is made of: headers that fit another processor, TVM's sources, archives, wheels."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.runtime import architectures
from controller.runtime.build import made_for_32_bits
from controller.runtime.cpython import Headers, fitted, this_python
from controller.runtime.extension import _unpacked
from controller.runtime.sources import Sources
from controller.runtime.wheel import Wheel
from targets.base import FleetError

# --- Python's headers ---------------------------------------------------------------------------

CONFIG = """\
#define HAVE_FORK 1
#define SIZEOF_INT 4
#define SIZEOF_LONG 8
#define SIZEOF_LONG_LONG 8
#define SIZEOF_LONG_DOUBLE 16
#define ALIGNOF_LONG 8
#define ALIGNOF_SIZE_T 8
#define SIZEOF_SIZE_T 8
#define SIZEOF_VOID_P 8
#define SIZEOF_PTHREAD_KEY_T 4
#define SIZEOF_OFF_T 8
"""


def test_sizes_are_those_of_a_machine_of_32_bits() -> None:
    """As Debian's own ``pyconfig.h`` of armhf has them; files are large everywhere."""
    text = fitted(CONFIG, architectures.find("armv7l"))
    found = dict(line.split()[1:] for line in text.splitlines())
    assert {name: int(value) for name, value in found.items()} == {
        "HAVE_FORK": 1,
        "SIZEOF_INT": 4,
        "SIZEOF_LONG": 4,
        "SIZEOF_LONG_LONG": 8,
        "SIZEOF_LONG_DOUBLE": 8,
        "ALIGNOF_LONG": 4,
        "ALIGNOF_SIZE_T": 4,
        "SIZEOF_SIZE_T": 4,
        "SIZEOF_VOID_P": 4,
        "SIZEOF_PTHREAD_KEY_T": 4,
        "SIZEOF_OFF_T": 8,
    }


def test_this_machines_own_headers_stay_as_they_are() -> None:
    text = Path(sysconfig.get_config_h_filename()).read_text()
    assert fitted(text, architectures.find("x86_64")) == text
    assert fitted(text, architectures.find("aarch64")) == text


def test_headers_are_copied_and_fit(tmp_path: Path) -> None:
    headers = Headers.find()
    assert headers.python == this_python() and headers.tag == "cp" + this_python().replace(".", "")
    folder = headers.fit(architectures.find("armv7l"), tmp_path / "python")
    assert (folder / "Python.h").is_file()
    assert "#define SIZEOF_VOID_P 4" in (folder / "pyconfig.h").read_text()


def test_headers_that_are_not_there_or_anothers(tmp_path: Path) -> None:
    with pytest.raises(FleetError, match="no headers of Python") as caught:
        Headers.find(folder=tmp_path)
    assert caught.value.code == "no-python-headers" and "--python-include" in caught.value.hint
    with pytest.raises(FleetError, match=r"the board has Python 3\.99"):
        Headers.find("3.99")


def test_an_unknown_machine_is_told_the_known_ones() -> None:
    with pytest.raises(FleetError) as caught:
        architectures.find("sparc")
    assert caught.value.code == "unknown-architecture" and "armv7l" in caught.value.hint


# --- TVM's sources ------------------------------------------------------------------------------


def test_the_installed_wheels_have_what_a_runtime_is_made_of() -> None:
    sources = Sources.find()
    names = {path.as_posix() for path in sources.runtime_sources}
    assert {"vm/vm.cc", "rpc/rpc_endpoint.cc", "memory/memory_manager.cc"} <= names
    assert {path.stem for path in sources.ffi_sources} >= {"object", "function", "error"}
    inside = dict(sources.python())
    assert {"tvm/runtime/vm.py", "tvm/rpc/server.py", "tvm_ffi/__init__.py", "tvm_ffi/registry.py"} <= set(inside)
    assert not any(name.startswith(("tvm/relax", "tvm/tirx", "tvm_ffi/testing")) for name in inside)
    assert all(path.is_file() for path in inside.values())
    assert [name for name, _ in sources.licences()]


def test_the_header_of_objects_is_padded_once(tmp_path: Path) -> None:
    header = tmp_path / "tvm_ffi_python_object.h"
    header.write_bytes((Sources.find().extension.parent / header.name).read_bytes())
    made_for_32_bits(header)
    assert header.read_text().count("char padding[2 * (8 - sizeof(void*))];") == 1
    header.write_text("struct Other {};\n")
    with pytest.raises(FleetError, match="not one that this knows"):
        made_for_32_bits(header)


# --- Archives -----------------------------------------------------------------------------------


def archive(path: Path, *members: tuple[tarfile.TarInfo, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for member, data in members:
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def plain(name: str, data: bytes = b"x") -> tuple[tarfile.TarInfo, bytes]:
    return tarfile.TarInfo(name), data


def special(name: str, kind: bytes, target: str = "") -> tuple[tarfile.TarInfo, bytes]:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member, b""


def test_a_source_distribution_is_unpacked(tmp_path: Path) -> None:
    path = archive(tmp_path / "a.tar.gz", plain("a-1/PKG-INFO", b"Name: a\n"), plain("a-1/src/a.c"))
    root = _unpacked(path, tmp_path / "out")
    assert root == tmp_path / "out" / "a-1" and (root / "src" / "a.c").read_bytes() == b"x"


@pytest.mark.parametrize(
    ("member", "words"),
    [
        (plain("../evil"), "no plain file"),
        (plain("a-1/../../evil"), "no plain file"),
        (plain("/tmp/evil-of-fleet"), "no plain file"),
        (special("a-1/link", tarfile.SYMTYPE, "/etc/passwd"), "no plain file"),
        (special("a-1/link", tarfile.LNKTYPE, "../../x"), "no plain file"),
        (special("a-1/device", tarfile.CHRTYPE), "no plain file"),
        (plain("b-1/PKG-INFO"), "no source distribution"),
    ],
)
def test_hostile_archives_are_refused(tmp_path: Path, member: tuple[tarfile.TarInfo, bytes], words: str) -> None:
    path = archive(tmp_path / "a.tar.gz", plain("a-1/PKG-INFO"), member)
    with pytest.raises(FleetError, match=words) as caught:
        _unpacked(path, tmp_path / "out")
    assert caught.value.code == "download-failed"
    assert not (tmp_path / "evil").exists() and not Path("/tmp/evil-of-fleet").exists()


def test_an_archive_that_unpacks_to_too_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("controller.runtime.extension._MOST", 10)
    with pytest.raises(FleetError, match="larger than any"):
        _unpacked(archive(tmp_path / "a.tar.gz", plain("a-1/PKG-INFO", bytes(11))), tmp_path / "out")


# --- Wheels -------------------------------------------------------------------------------------

names = st.from_regex(r"[a-z]{1,8}(/[a-z]{1,8}){0,2}\.(py|so|txt)", fullmatch=True)


@given(files=st.dictionaries(names, st.binary(max_size=200), max_size=6))
def test_a_wheel_says_what_is_in_it(tmp_path_factory: pytest.TempPathFactory, files: dict[str, bytes]) -> None:
    out = tmp_path_factory.mktemp("wheel")
    wheel = Wheel("fleet-thing", "1.2", "cp311-cp311-manylinux_2_28_armv7l", "a thing", ["numpy"], "==3.11.*")
    path = wheel.write(out, sorted(files.items()), [("LICENSE", b"free")])
    assert path.name == "fleet_thing-1.2-cp311-cp311-manylinux_2_28_armv7l.whl"
    again = wheel.write(out / "again", sorted(files.items()), [("LICENSE", b"free")])
    assert path.read_bytes() == again.read_bytes()
    with zipfile.ZipFile(path) as made:
        assert made.testzip() is None
        recorded = {
            row[0]: row[1] for row in csv.reader(made.read("fleet_thing-1.2.dist-info/RECORD").decode().splitlines())
        }
        assert set(recorded) == set(made.namelist()) > set(files)
        for name, digest in recorded.items():
            if digest:
                algorithm, _, value = digest.partition("=")
                assert algorithm == "sha256"
                own = base64.urlsafe_b64encode(hashlib.sha256(made.read(name)).digest()).rstrip(b"=").decode()
                assert own == value
        metadata = made.read("fleet_thing-1.2.dist-info/METADATA").decode()
    assert "Name: fleet-thing\nVersion: 1.2\n" in metadata and "Requires-Dist: numpy" in metadata
