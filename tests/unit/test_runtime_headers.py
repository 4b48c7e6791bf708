"""The headers that TVM's wheels leave out, written anew, against what Python computes."""

from __future__ import annotations

import base64
import ctypes
import shutil
import struct
import subprocess
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import controller.runtime
from controller.runtime.sources import Sources

HEADERS = Path(controller.runtime.__file__).parent / "headers"
HARNESS = Path(__file__).parent / "runtime_headers.cc"


@pytest.fixture(scope="module")
def lib(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    import tvm_ffi.libinfo

    out = tmp_path_factory.mktemp("headers") / "headers.so"
    sources = Sources.find()
    folders = [HEADERS / "include", HEADERS / "src", *sources.includes]
    ffi = tvm_ffi.libinfo.find_libtvm_ffi()
    arguments = ["-shared", "-fPIC", "-O1", "-std=c++17", "-w", "-o", str(out), str(HARNESS)]
    arguments += [word for folder in folders for word in ("-I", str(folder))]
    arguments += [ffi, f"-Wl,-rpath,{Path(ffi).parent}"]
    compiler = shutil.which("c++")
    if compiler is None:
        pytest.skip("there is no C++ compiler (c++); Zig's would first compile its whole library")
    subprocess.run([compiler, *arguments], check=True, timeout=280)
    found = ctypes.CDLL(str(out))
    found.half_of_float.argtypes, found.half_of_float.restype = [ctypes.c_float], ctypes.c_uint16
    found.half_of_double.argtypes, found.half_of_double.restype = [ctypes.c_double], ctypes.c_uint16
    found.float_of_half.argtypes, found.float_of_half.restype = [ctypes.c_uint16], ctypes.c_float
    found.base64.argtypes = [ctypes.c_char_p, ctypes.c_size_t, ctypes.c_char_p, ctypes.c_char_p]
    found.base64.restype = ctypes.c_size_t
    found.ring_new.restype = ctypes.c_void_p
    found.ring_free.argtypes = [ctypes.c_void_p]
    found.ring_size.argtypes, found.ring_size.restype = [ctypes.c_void_p], ctypes.c_size_t
    for name in ("ring_write", "ring_read"):
        getattr(found, name).argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t]
    for name in ("ring_send", "ring_receive"):
        getattr(found, name).argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_size_t]
        getattr(found, name).restype = ctypes.c_size_t
    found.arena_holds.argtypes, found.arena_holds.restype = [ctypes.c_void_p, ctypes.c_size_t], ctypes.c_bool
    found.read_names.argtypes = [ctypes.c_char_p, ctypes.c_size_t, ctypes.c_char_p]
    found.read_names.restype = ctypes.c_int64
    found.is_number.argtypes, found.is_number.restype = [ctypes.c_char_p], ctypes.c_bool
    found.starts_with.argtypes, found.starts_with.restype = [ctypes.c_char_p, ctypes.c_char_p], ctypes.c_bool
    yield found


def test_every_half_as_a_float(lib: Any) -> None:
    halves = np.arange(1 << 16, dtype=np.uint16)
    expected = halves.view(np.float16).astype(np.float32)
    found = np.array([lib.float_of_half(int(half)) for half in halves], np.float32)
    np.testing.assert_array_equal(found, expected)


@settings(max_examples=400, deadline=None)
@given(
    value=st.one_of(
        st.floats(width=32), st.floats(-70000.0, 70000.0, width=32), st.floats(-(2.0**-13), 2.0**-13, width=32)
    )
)
def test_floats_as_halves(lib: Any, value: float) -> None:
    with np.errstate(over="ignore"):
        expected = np.float32(value).astype(np.float16)
    for found in (lib.half_of_float(value), lib.half_of_double(value)):
        half = np.uint16(found).view(np.float16)
        assert np.isnan(half) if np.isnan(value) else half.view(np.uint16) == expected.view(np.uint16)


@settings(deadline=None)
@given(data=st.binary(max_size=200))
def test_base64(lib: Any, data: bytes) -> None:
    text, back = ctypes.create_string_buffer(300), ctypes.create_string_buffer(len(data) + 2)
    assert lib.base64(data, len(data), text, back) == len(data)
    assert text.value == base64.b64encode(data) and back.raw[: len(data)] == data


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_the_ring_is_a_queue(lib: Any, data: st.DataObject) -> None:
    """Any mixture of its four ways in and out, through growth and wrapping round."""
    ring, model, fresh = lib.ring_new(), deque[int](), 0
    try:
        for _ in range(data.draw(st.integers(1, 30))):
            size = data.draw(st.integers(0, 6000))
            most = data.draw(st.integers(0, 5000))
            kind = data.draw(st.sampled_from(["write", "receive", "read", "send"]))
            if kind in ("write", "receive"):
                block = bytes((fresh + i) % 251 for i in range(size))
                took = size
                if kind == "write":
                    lib.ring_write(ring, block, size)
                else:
                    took = lib.ring_receive(ring, block, size, most)
                    assert took <= min(size, most)
                model.extend(block[:took])
                fresh += took
            else:
                size = min(size, len(model))
                out = ctypes.create_string_buffer(size + 1)
                took = size
                if kind == "read":
                    lib.ring_read(ring, out, size)
                else:
                    took = lib.ring_send(ring, out, size, most)
                    assert took <= min(size, most)
                assert out.raw[:took] == bytes(model.popleft() for _ in range(took))
            assert lib.ring_size(ring) == len(model)
    finally:
        lib.ring_free(ring)


@settings(deadline=None)
@given(sizes=st.lists(st.integers(0, 5000), max_size=40))
def test_pieces_of_an_arena(lib: Any, sizes: list[int]) -> None:
    array = (ctypes.c_uint32 * max(1, len(sizes)))(*sizes)
    assert lib.arena_holds(ctypes.byref(array), len(sizes))


@settings(deadline=None)
@given(
    names=st.lists(st.text(st.characters(codec="ascii", exclude_characters="\n\0"), max_size=20), max_size=20),
    cut=st.integers(0, 50),
)
def test_names_in_a_stream(lib: Any, names: list[str], cut: int) -> None:
    """The format of TVM's executables; one that ends too soon is not read."""
    data = struct.pack("<Q", len(names)) + b"".join(struct.pack("<Q", len(name)) + name.encode() for name in names)
    out = ctypes.create_string_buffer(1000)
    assert lib.read_names(data, len(data), out) == len(names)
    assert out.value.decode() == "".join(name + "\n" for name in names)
    if cut:
        assert lib.read_names(data[:-cut], max(0, len(data) - cut), out) == -1


def test_a_stream_that_lies_about_its_length(lib: Any) -> None:
    """Nobody is given the memory that a file of sixteen bytes asks for."""
    data = struct.pack("<QQ", 1, 1 << 60)
    assert lib.read_names(data, len(data), ctypes.create_string_buffer(8)) == -1


def test_words(lib: Any) -> None:
    assert lib.is_number(b"012") and not lib.is_number(b"") and not lib.is_number(b"1a")
    assert lib.starts_with(b"RPC: no", b"RPC: ") and not lib.starts_with(b"an RPC: ", b"RPC: ")
