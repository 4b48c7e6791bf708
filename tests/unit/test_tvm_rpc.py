"""TVM RPC's wire format: what is packed comes back, and what is cut or foreign is refused."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.rpc import Greeting
from targets import tvm_rpc
from targets.tvm_rpc import Code, RemoteError, WireError, pack_messages, parse_answer, parse_result, unpack_messages

messages = st.lists(st.tuples(st.binary(max_size=50), st.binary(max_size=200)))
values = st.lists(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False)
    | st.text(max_size=30)
    | st.binary(max_size=30)
)


def answer(items: list[tvm_rpc.Value], code: Code = Code.RETURN) -> bytes:
    """An answer's body, without its size."""
    call = b"".join(tvm_rpc.call(0, *items))
    return struct.pack("<i", code) + call[20:]


@given(messages)
def test_messages_come_back(given_messages: list[tuple[bytes, bytes]]) -> None:
    assert unpack_messages(pack_messages(given_messages)) == given_messages


@given(messages.filter(bool), st.data())
def test_cut_messages_are_refused(given_messages: list[tuple[bytes, bytes]], data: st.DataObject) -> None:
    ends = {len(pack_messages(given_messages[:count])): count for count in range(len(given_messages) + 1)}
    packed = pack_messages(given_messages)
    cut = data.draw(st.integers(0, len(packed)))
    if cut in ends:
        assert unpack_messages(packed[:cut]) == given_messages[: ends[cut]]
    else:
        with pytest.raises(WireError):
            unpack_messages(packed[:cut])


@given(values)
def test_values_come_back(given_values: list[tvm_rpc.Value]) -> None:
    assert parse_answer(answer(given_values)) == given_values


@given(st.binary(max_size=300))
def test_foreign_answers_are_refused_in_words(packet: bytes) -> None:
    for parse in (parse_answer, parse_result):
        try:
            parse(packet)
        except (WireError, RemoteError) as error:
            assert error.message


@given(values.filter(bool), st.data())
def test_cut_answers_are_refused(given_values: list[tvm_rpc.Value], data: st.DataObject) -> None:
    whole = answer(given_values)
    with pytest.raises(WireError):
        parse_answer(whole[: data.draw(st.integers(0, len(whole) - 1))])


def test_an_exception_is_raised_with_its_words() -> None:
    with pytest.raises(RemoteError, match="no such thing"):
        parse_answer(tvm_rpc.exception("no such thing")[8:])


def test_packets_say_their_size() -> None:
    for packet in (tvm_rpc.init_session(), tvm_rpc.get_function("f"), tvm_rpc.call(1, b"x", "y", 2, 0.5, None, True)):
        data = b"".join(packet)
        assert struct.unpack_from("<Q", data)[0] == len(data) - 8


def test_a_greeting_is_read_with_its_options() -> None:
    assert Greeting.parse("client:a:0.25 -timeout=1.5 -shared -unknown=3") == Greeting("a:0.25", 1.5, shared=True)
    assert Greeting.parse("client:a -probe") == Greeting("a", probe=True)


@given(st.text(max_size=60) | st.text(max_size=30).map("client:k -timeout={}".format))
def test_any_other_greeting_is_refused(text: str) -> None:
    try:
        client = Greeting.parse(text)
    except ValueError:
        return
    assert text.split()[0] == f"client:{client.key}" and 0 <= client.timeout < 1e9
