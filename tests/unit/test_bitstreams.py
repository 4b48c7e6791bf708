"""The .bit container, the manifest, and what may be programmed into which board."""

import hashlib
import struct
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_bitstream import PREAMBLE, bit, listed, payload

from bitstreams import bitfile, manifest
from targets.base import FleetError
from targets.vta import boards, config

PYNQ, ZCU104, DE10 = boards.find("pynq"), boards.find("zcu104"), boards.find("de10nano")
IDENTITY = config.DEFAULT.identity


def refused(do: Callable[[], object]) -> FleetError:
    with pytest.raises(FleetError) as caught:
        do()
    assert caught.value.message and caught.value.hint
    return caught.value


def test_a_header_says_what_it_is() -> None:
    data = bit()
    found = bitfile.parse(data)
    assert (found.design.split(";")[0], found.part, found.built) == (
        "vta_wrapper",
        "7z020clg484",
        "2026/01/02 03:04:05",
    )
    assert data[found.payload_offset :] == payload()
    assert found.payload_length == len(payload())
    assert data[found.sync_offset :].startswith(bytes.fromhex("aa995566"))
    # The revision of the silicon, the highest four bits, is not part of the device's name.
    assert found.idcode == PYNQ.idcode == 0x3727093
    assert found.sha256 == hashlib.sha256(data).hexdigest()
    assert not found.partial
    assert bitfile.parse(bit(design="x;PARTIAL=TRUE")).partial


def test_an_idcode_may_be_absent_but_not_in_frames() -> None:
    late = payload(None) + bytes(8192) + bytes.fromhex("30018001") + struct.pack(">I", 0x1234)
    assert bitfile.parse(bit(data=late)).idcode is None
    unaligned = payload(None) + b"\0" + bytes.fromhex("30018001") + struct.pack(">I", 0x1234) + b"\0\0\0"
    assert bitfile.parse(bit(data=unaligned)).idcode is None


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "empty"),
        (b"\n <!DOCTYPE html><html>404</html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "LFS"),
        (b"MZ", "does not start as one"),
        (PREAMBLE, "cut short"),
        (bit()[:40], "cut short"),
        (bit()[:-4], "cut short"),
        (bit() + b"\0", "too long"),
        (bit(data=b""), "no whole number of words"),
        (bit(data=payload() + b"\0\0"), "no whole number of words"),
        (bit(data=bytes(512)), "no sync word"),
        (bit(data=payload(sync=49) + b"\0\0\0"), "no sync word"),
        (bit(data=payload(sync=8192)), "no sync word"),
        (bit().replace(b"7z020", b"\xff\x00\x01\x02\x03"), "no text"),
        (bit().replace(b"c\x00\x0b2026", b"x\x00\x0b2026"), "field 'c' is missing"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_no_bit_file_says_why(data: bytes, why: str) -> None:
    error = refused(lambda: bitfile.parse(data, "some.bit"))
    assert error.code == "bad-bitstream"
    assert why in error.message
    assert "some.bit" in error.message


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_no_damage_to_a_header_escapes_as_anything_but_a_refusal(draw: st.DataObject) -> None:
    data = bytearray(bit())
    for _ in range(draw.draw(st.integers(1, 4))):
        data[draw.draw(st.integers(0, 110))] = draw.draw(st.integers(0, 255))
    cut = draw.draw(st.integers(0, len(data)))
    for damaged in (bytes(data), bytes(data[:cut])):
        try:
            found = bitfile.parse(damaged)
        except FleetError as error:
            assert error.code == "bad-bitstream"
        else:
            assert found.payload_offset + found.payload_length == len(damaged)
            assert found.design.isprintable() and found.part.isprintable()


def test_a_listed_file_for_this_board_and_configuration_may_be_programmed(tmp_path: Path) -> None:
    data = bit()
    path = tmp_path / "x.bit"
    path.write_bytes(data)
    known = listed(data)
    checked = bitfile.check(path, board=PYNQ, identity=IDENTITY, sha256=known.sha256, manifest=[known])
    assert checked.known == known
    assert checked.data == data
    assert checked.sha256 == known.sha256
    assert checked.header is not None and checked.header.part == "7z020clg484"


@pytest.mark.parametrize(
    ("part", "idcode", "says"),
    [
        ("7z010clg400", 0x13722093, "7z010clg400"),
        ("zu7evffvc1156", None, "zu7evffvc1156"),
        # The name fits, the data do not.
        ("7z020clg400", 0x13722093, "0x03722093"),
        ("7z0205clg400", 0x23727093, "7z0205clg400"),
    ],
)
def test_another_part_is_refused(part: str, idcode: int | None, says: str) -> None:
    data = bit(part, data=payload(idcode))
    error = refused(lambda: bitfile.check(data, board=PYNQ, manifest=[listed(data)]))
    assert error.code == "wrong-part"
    assert says in error.message
    assert "7z020" in error.message


@pytest.mark.parametrize("part", ["7z020clg400", "7z020clg484", "xc7z020clg400", "7z020"])
def test_a_package_is_not_a_part(part: str) -> None:
    data = bit(part)
    assert bitfile.check(data, board=PYNQ, manifest=[listed(data)]).known is not None


def test_other_configurations_and_layouts_are_refused() -> None:
    data = bit()
    for known in (listed(data, hw_ver="0.0.1"), listed(data, configuration="4x8_i8w8a32_15_16_16_18")):
        error = refused(lambda known=known: bitfile.check(data, identity=IDENTITY, manifest=[known]))
        assert error.code == "wrong-configuration"
        assert known.identity in error.message and IDENTITY in error.message


def test_a_file_that_nothing_is_known_of_needs_its_digest() -> None:
    data = bit()
    assert refused(lambda: bitfile.check(data, board=PYNQ)).code == "unknown-bitstream"
    digest = hashlib.sha256(data).hexdigest()
    assert bitfile.check(data, board=PYNQ, identity=IDENTITY, sha256=digest).known is None
    error = refused(lambda: bitfile.check(data, sha256="0" * 64))
    assert error.code == "wrong-digest"
    assert digest in error.message


def test_an_altered_file_is_told_from_an_unknown_one() -> None:
    data = bit()
    altered = data[:-1] + b"\x01"
    error = refused(lambda: bitfile.check(altered, manifest=[listed(data)]))
    assert error.code == "wrong-digest"
    assert "altered" in error.message


def test_half_a_design_is_not_programmed() -> None:
    data = bit(design="vta;PARTIAL=TRUE")
    assert refused(lambda: bitfile.check(data, board=PYNQ, manifest=[listed(data)])).code == "bad-bitstream"


def test_a_format_without_header_goes_by_its_digest() -> None:
    data = b"not a .bit at all"
    known = listed(data, format="rbf", board="de10nano", device="5CSEBA6U23I7")
    assert bitfile.check(data, board=DE10, manifest=[known]).header is None
    assert refused(lambda: bitfile.check(data, board=PYNQ, manifest=[known])).code == "wrong-part"
    assert refused(lambda: bitfile.check(data + b"x", board=DE10, manifest=[known])).code == "bad-bitstream"


def test_a_board_without_such_a_device_takes_none() -> None:
    data = bit()
    error = refused(lambda: bitfile.check(data, board=boards.find("sim"), manifest=[listed(data)]))
    assert error.code == "wrong-part"
    assert "sim takes no .bit file" in error.message


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    assert refusal_code(tmp_path / "none.bit") == "no-such-file"
    large = tmp_path / "large.bit"
    with large.open("wb") as file:
        file.truncate(manifest.MAX_BITSTREAM + 1)
    assert refusal_code(large) == "bad-bitstream"


def refusal_code(path: Path) -> str:
    with pytest.raises(FleetError) as caught:
        bitfile.check(path)
    return caught.value.code


def test_the_published_manifest() -> None:
    known = manifest.known()
    assert len({one.name for one in known}) == len(known) == 8
    assert len({one.url for one in known}) == len(known)
    for one in known:
        assert one.url.endswith(f"/bitstreams/{one.name}.{one.format}")
        assert one.sha256 or one.git_blob
        # What a program can be built for is a configuration of ours; the others are listed to be recognised.
        if one.hw_ver in config.HW_VERSIONS:
            assert config.load(one.identity).identity == one.identity
            board = boards.find(one.board)
            assert one.format == "rbf" or board.device == one.device
    newest = manifest.find("pynq/0.0.2", known)
    assert (newest.identity, newest.sha256[:16]) == (IDENTITY, "0b24cdf9001d3495")
    assert manifest.find("pynq/0.0.1/1x16", known).sha256[:16] == "c8808d2f4877a7ab"
    assert manifest.find("pynq/0.0.1/4x8", known).sha256[:16] == "5a5cedeaa40d287f"
    assert manifest.find("0b24cdf9001d", known) == newest


def test_names_that_fit_none_or_several() -> None:
    known = manifest.known()
    assert refused(lambda: manifest.find("kv260", known)).code == "unknown-bitstream"
    error = refused(lambda: manifest.find("pynq/0.0.1", known))
    assert error.code == "ambiguous-bitstream"
    assert "pynq/0.0.1/4x8_i8w8a32_15_16_16_18" in error.hint


def test_contents_are_known_by_git_s_name_too() -> None:
    # `printf hello | git hash-object --stdin`
    assert manifest.git_blob(b"hello") == "b6fc4c620b67d95f953a5c1c1230aaab5db5a1b0"
    known = listed(b"", sha256="", git_blob=manifest.git_blob(b"hello"))
    assert known.is_of(b"hello")
    assert not known.is_of(b"hello!")
    assert known.digest == "git:b6fc4c620b67d95f953a5c1c1230aaab5db5a1b0"


def entry(**changes: object) -> dict[str, object]:
    found: dict[str, object] = msgspec.to_builtins(listed(b"x"))
    return {**found, **changes}


@pytest.mark.parametrize(
    ("document", "why"),
    [
        ({}, "array"),
        ([entry(sha256="ab")], "matching regex"),
        ([entry(git_blob="0" * 40 + "\n")], "matching regex"),
        ([entry(sha256="")], "no digest"),
        ([entry(url="file:///etc/passwd")], "matching regex"),
        ([entry(board="../../x")], "matching regex"),
        ([entry(size=1 << 40)], "size"),
        ([entry(format="exe")], "format"),
        ([entry(other=1)], "other"),
        ([entry(), entry(board="other")], "twice"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_manifest_of_one_s_own_is_checked(tmp_path: Path, document: object, why: str) -> None:
    path = tmp_path / "own.json"
    path.write_bytes(msgspec.json.encode(document))
    error = refused(lambda: manifest.load(path))
    assert error.code == "bad-manifest"
    assert why in error.message
    path.write_bytes(msgspec.json.encode([entry()]))
    assert manifest.load(path) == (listed(b"x"),)


def test_a_manifest_that_is_none(tmp_path: Path) -> None:
    path = tmp_path / "own.json"
    with pytest.raises(FleetError, match="cannot be read"):
        manifest.load(path)
    path.write_bytes(b" " * (manifest.MAX_MANIFEST + 1))
    assert refused(lambda: manifest.load(path)).code == "bad-manifest"
    path.write_bytes(b"\xff{")
    assert refused(lambda: manifest.load(path)).code == "bad-manifest"


@pytest.mark.parametrize("name", [*boards.BOARDS, "pynq-4x8"])
def test_the_boards_configurations(name: str) -> None:
    path = Path(manifest.__file__).with_name("configurations") / f"{name}.json"
    found = config.parse(path.read_bytes(), name)
    assert found.name in config.PUBLISHED
    assert found.target == name.partition("-")[0]
    if name in boards.BOARDS:
        assert (found.name, found.hw_ver) == (config.DEFAULT.name, boards.find(name).hw_ver)
