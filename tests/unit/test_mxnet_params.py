"""MXNet's weight files: what is written is read, and nothing else is."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as nps

from controller.zoo import mxnet_params, weights
from controller.zoo.mxnet_params import V1, V2, V3, ParamsError

Array = mxnet_params.Array
NUMBERS = {np.dtype(name): number for number, name in mxnet_params.DTYPES.items()}


def array_bytes(array: Array, version: int = V2) -> bytes:
    """One array as MXNet's versions write it."""
    parts = [struct.pack("<I", version)]
    if version != V1:
        parts.append(struct.pack("<i", 0))
    parts.append(struct.pack(f"<i{array.ndim}q", array.ndim, *array.shape))
    # On a CPU, of which there is one.
    parts.append(struct.pack("<iii", 1, 0, NUMBERS[array.dtype]))
    return b"".join((*parts, np.ascontiguousarray(array).tobytes()))


def file_bytes(arrays: dict[str, Array], versions: list[int] | None = None) -> bytes:
    names = [name.encode() for name in arrays]
    every = zip(arrays.values(), versions or [V2] * len(arrays), strict=True)
    return b"".join(
        (
            struct.pack("<QQQ", 0x112, 0, len(arrays)),
            *(array_bytes(array, version) for array, version in every),
            struct.pack("<Q", len(names)),
            *(struct.pack("<Q", len(name)) + name for name in names),
        )
    )


def _read(data: bytes, folder: Path) -> dict[str, Array]:
    path = folder / "x.params"
    path.write_bytes(data)
    return mxnet_params.read(path)


_DTYPES = st.sampled_from(sorted(NUMBERS, key=str))
_ARRAYS = _DTYPES.flatmap(lambda dtype: nps.arrays(dtype, nps.array_shapes(min_dims=1, max_dims=5, max_side=4)))
_NAMES = st.text(st.characters(codec="utf-8"), min_size=1, max_size=30).filter(
    lambda name: name[:4] not in ("arg:", "aux:")
)
SAME_FOLDER = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)


@SAME_FOLDER
@given(st.dictionaries(_NAMES, _ARRAYS, max_size=5), st.data())
def test_what_is_written_is_read(tmp_path: Path, arrays: dict[str, Array], data: st.DataObject) -> None:
    versions = data.draw(st.lists(st.sampled_from([V1, V2, V3]), min_size=len(arrays), max_size=len(arrays)))
    found = _read(file_bytes(arrays, versions), tmp_path)
    assert list(found) == list(arrays)
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)


@SAME_FOLDER
@given(st.dictionaries(_NAMES, _ARRAYS, min_size=1, max_size=3), st.data())
def test_a_file_cut_short_or_changed_is_refused_or_read_within_its_size(
    tmp_path: Path, arrays: dict[str, Array], data: st.DataObject
) -> None:
    whole = file_bytes(arrays)
    with pytest.raises(ParamsError):
        _read(whole[: data.draw(st.integers(0, len(whole) - 1))], tmp_path)
    with pytest.raises(ParamsError):
        _read(whole + b"\0", tmp_path)
    changed = bytearray(whole)
    changed[data.draw(st.integers(0, len(whole) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        found = _read(bytes(changed), tmp_path)
    except ParamsError:
        return
    assert sum(array.nbytes for array in found.values()) <= len(whole)


def test_names_are_without_what_module_writes_before_them(tmp_path: Path) -> None:
    value: Array = np.ones(1, np.float32)
    assert list(_read(file_bytes({"arg:a_weight": value, "aux:b_mean": value}), tmp_path)) == ["a_weight", "b_mean"]
    with pytest.raises(ParamsError, match="two arrays have the name 'a'"):
        _read(file_bytes({"arg:a": value, "aux:a": value}), tmp_path)


def test_a_scalar_is_one_only_where_mxnet_means_it(tmp_path: Path) -> None:
    """Before version 3, no dimensions meant no array."""
    scalar: Array = np.array(3, np.float32)
    assert _read(file_bytes({"a": scalar}, [V3]), tmp_path)["a"] == 3
    with pytest.raises(ParamsError, match="0 dimensions"):
        _read(file_bytes({"a": scalar}, [V2]), tmp_path)


_HEAD = struct.pack("<QQQ", 0x112, 0, 1)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (struct.pack("<QQQ", 0x113, 0, 0), "does not start"),
        (struct.pack("<QQQ", 0x112, 0, 1 << 60), "too short for the 1152921504606846976 arrays"),
        (_HEAD + struct.pack("<Ii", 4, 1), "no version"),
        (_HEAD + struct.pack("<Iiii", V2, 1, 0, 0), "sparsely"),
        (_HEAD + struct.pack("<Iii", V2, 0, 1 << 20), "1048576 dimensions"),
        (_HEAD + struct.pack("<Iii", V2, 0, -1), "-1 dimensions"),
        (_HEAD + struct.pack("<Iiiq", V2, 0, 1, -4), "shape"),
        (_HEAD + struct.pack("<Iiiqiii", V2, 0, 1, 1, 1, 0, 12), "type 12"),
        # Announces an exabyte: nothing is allocated for it.
        (_HEAD + struct.pack("<Iiiqqiii", V2, 0, 2, 1 << 29, 1 << 29, 1, 0, 0), "too early"),
        (file_bytes({"a": np.ones(1, np.float32)})[:-1] + b"\xff", "no text"),
        (file_bytes({"a": np.ones(1, np.float32)})[:-9] + struct.pack("<Q", 1 << 40), "name of"),
    ],
)
def test_what_is_no_such_file_is_refused(data: bytes, words: str, tmp_path: Path) -> None:
    with pytest.raises(ParamsError) as caught:
        _read(data + bytes(16) if "name of" in words else data, tmp_path)
    assert words in str(caught.value)


def test_weights_are_read_by_what_a_file_is_not_by_its_name(tmp_path: Path) -> None:
    path = tmp_path / "net.pth"
    path.write_bytes(file_bytes({"a.weight": np.arange(6, dtype=np.float16).reshape(2, 3)}))
    state: dict[str, Any] = weights.load_state(path)
    assert state["a.weight"].dtype == torch.float16 and state["a.weight"].tolist() == [[0, 1, 2], [3, 4, 5]]
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(weights.WeightsError, match="damaged"):
        weights.load_state(path)
