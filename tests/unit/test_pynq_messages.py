"""What goes over the pipe between driver and helper, and what the helper may and may not need."""

import ast
import io
import json
import struct
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from targets.pynq import helper, helper_process
from targets.vta import boards
from targets.vta.config import PAGE
from targets.vta.driver import DriverError

SOURCE = Path(helper.__file__).read_text()
ADDRESSES = st.integers(0, (1 << 40) - 1)
DIGESTS = st.text("0123456789abcdef", min_size=64, max_size=64)
FIELDS: dict[str, dict[str, st.SearchStrategy[Any]]] = {
    "open": {
        "protocol": st.integers(0, 99),
        "board": st.sampled_from(sorted(helper.BOARDS)),
        "sha256": DIGESTS,
        "coherent": st.booleans(),
    },
    "program": {},
    "allocate": {"size": st.integers(1, 1 << 30)},
    "free": {"address": ADDRESSES},
    "write": {"address": ADDRESSES},
    "read": {"address": ADDRESSES, "size": st.integers(1, helper.MAX_PAYLOAD)},
    "run": {
        "address": ADDRESSES,
        "count": st.integers(1, 1 << 21),
        "timeout_ms": st.integers(1, 3_600_000),
    },
    "close": {},
}
REQUESTS = st.sampled_from(sorted(FIELDS)).flatmap(
    lambda name: st.tuples(
        st.just(name),
        st.fixed_dictionaries(FIELDS[name]),
        st.binary(max_size=100) if helper.REQUESTS[name][1] else st.just(b""),
    )
)


def message(name: str, fields: dict[str, Any], payload: bytes) -> bytes:
    return helper.encode(name, fields, payload, helper.REQUESTS) + payload


def raw(head: bytes, payload: bytes = b"", magic: bytes = b"VTA\x01") -> bytes:
    return struct.pack("<4sII", magic, len(head), len(payload)) + head + payload


def read(data: bytes) -> tuple[str, dict[str, Any], bytes]:
    return helper.decode(io.BytesIO(data).read, helper.REQUESTS)


@given(st.lists(REQUESTS, max_size=4))
def test_what_is_sent_arrives(sent: list[tuple[str, dict[str, Any], bytes]]) -> None:
    stream = io.BytesIO(b"".join(message(*one) for one in sent))
    assert [helper.decode(stream.read, helper.REQUESTS) for _ in sent] == sent
    with pytest.raises(EOFError):
        helper.decode(stream.read, helper.REQUESTS)


@given(REQUESTS, st.data())
def test_a_message_that_is_cut_short_is_none(sent: tuple[str, dict[str, Any], bytes], data: st.DataObject) -> None:
    whole = message(*sent)
    cut = data.draw(st.integers(1, len(whole) - 1))
    with pytest.raises(helper.ProtocolError):
        read(whole[:cut])


@given(st.binary(max_size=300))
def test_noise_is_no_message(noise: bytes) -> None:
    with pytest.raises((helper.ProtocolError, EOFError)):
        read(noise)
    with pytest.raises(helper.ProtocolError):
        read(raw(noise))


@given(
    REQUESTS.filter(lambda sent: bool(sent[1])),
    st.data(),
    st.one_of(
        st.none(), st.just(-1), st.just(1 << 70), st.floats(), st.just("../x"), st.lists(st.integers()), st.just({})
    ),
)
def test_a_field_of_another_kind_is_refused(
    sent: tuple[str, dict[str, Any], bytes], data: st.DataObject, wrong: Any
) -> None:
    name, fields, payload = sent
    field = data.draw(st.sampled_from(sorted(fields)))
    with pytest.raises(helper.ProtocolError, match=f"'{name}' has no valid {field}"):
        message(name, {**fields, field: wrong}, payload)
    head = json.dumps({**fields, field: wrong, "name": name}).encode()
    with pytest.raises(helper.ProtocolError):
        read(raw(head, payload))


@pytest.mark.parametrize(
    ("head", "payload", "why"),
    [
        ({"name": "reboot"}, b"", "no message 'reboot'"),
        ({"name": "free"}, b"", "other fields"),
        ({"name": "free", "address": 1, "more": 2}, b"", "other fields"),
        ({"name": "free", "address": True}, b"", "no valid address"),
        ({"name": "free", "address": 4096.0}, b"", "no valid address"),
        ({"name": "free", "address": 4096}, b"x", "1 bytes, and 0 are the most"),
        ({"name": ["free"]}, b"", "not a message"),
        ([], b"", "not a message"),
        ({"name": "open", "protocol": 1, "board": "pynq\n", "sha256": "0" * 64, "coherent": True}, b"", "valid board"),
    ],
)
def test_requests_outside_of_the_list_are_refused(head: Any, payload: bytes, why: str) -> None:
    with pytest.raises(helper.ProtocolError, match=why):
        read(raw(json.dumps(head).encode(), payload))


def test_lengths_are_believed_only_within_limits() -> None:
    for sizes in ((1 << 20, 0), (2, helper.MAX_PAYLOAD + 1)):
        with pytest.raises(helper.ProtocolError, match="not a message"):
            read(struct.pack("<4sII", b"VTA\x01", *sizes) + b"{}")
    with pytest.raises(helper.ProtocolError):
        read(raw(b"[" * 16000))


def test_the_helper_is_one_file_for_python_3_6() -> None:
    tree = ast.parse(SOURCE, feature_version=(3, 6))
    imported = {name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
    imported |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert imported <= sys.stdlib_module_names
    assert "__future__" not in imported


def test_the_helper_knows_the_boards_as_everybody_does() -> None:
    assert helper.PAGE == PAGE
    for name, (device, idcode, first, limit) in helper.BOARDS.items():
        board = boards.find(name)
        assert (device, idcode, limit) == (board.device, board.idcode or 0, board.address_limit)
        assert board.registers == tuple(first + 0x1000 * index for index in range(4))


def bit_file(part: str = "7z020clg484", idcode: int = 0x23727093, words: int = 16) -> bytes:
    payload = b"\xff" * 32 + bytes.fromhex("aa995566 20000000 30018001") + struct.pack(">I", idcode) + bytes(4 * words)
    fields = b""
    for key, text in zip(
        "abcd", ("vta_wrapper;UserID=0XFFFFFFFF;Version=2018.3", part, "2020/06/30", "18:11:16"), strict=True
    ):
        value = text.encode() + b"\0"
        fields += key.encode() + struct.pack(">H", len(value)) + value
    return bytes.fromhex("00090ff00ff00ff00ff0000001") + fields + b"e" + struct.pack(">I", len(payload)) + payload


def test_a_bitstream_for_the_board_is_accepted() -> None:
    helper.check_bitstream(bit_file(), "7z020", 0x3727093)
    helper.check_bitstream(bit_file("xc7z020clg400"), "7z020", 0x3727093)
    helper.check_bitstream(bit_file("xczu3eg-sbva484", 0x1234), "zu3eg", 0)


@pytest.mark.parametrize(("part", "idcode"), [("7z010clg400", 0x3727093), ("zu7ev", 0x3727093), ("7z020", 0x3722093)])
def test_a_bitstream_for_another_part_is_not(part: str, idcode: int) -> None:
    with pytest.raises(helper.Refused) as refused:
        helper.check_bitstream(bit_file(part, idcode), "7z020", 0x3727093)
    assert refused.value.code == "wrong-part"


@given(st.one_of(st.integers(0, len(bit_file()) - 1).map(lambda cut: bit_file()[:cut]), st.binary(max_size=200)))
def test_what_is_no_whole_bitstream_is_not(data: bytes) -> None:
    with pytest.raises(helper.Refused) as refused:
        helper.check_bitstream(data, "7z020", 0x3727093)
    assert refused.value.code == "bad-bitstream"


def test_the_helper_starts_in_the_images_python_and_as_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FLEET_PYNQ_HELPER", raising=False)
    script = str(helper_process.HELPER)
    assert helper_process.command(sys.executable, sudo=False) == [sys.executable, script]
    assert helper_process.command(sys.executable, sudo=True) == ["sudo", "-n", sys.executable, script]
    monkeypatch.setenv("FLEET_PYNQ_PYTHON", sys.executable)
    monkeypatch.setenv("FLEET_PYNQ_HELPER", "/usr/local/lib/fleet/helper.py")
    assert helper_process.command(sudo=False) == [sys.executable, "/usr/local/lib/fleet/helper.py"]
    monkeypatch.setenv("FLEET_PYNQ_PYTHON", str(tmp_path / "python"))
    with pytest.raises(DriverError, match="no Python at") as caught:
        helper_process.command()
    assert caught.value.code == "no-pynq"
