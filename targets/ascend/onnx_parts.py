"""An ONNX file in parts, and whole again: on the host its weights become blobs of their own, on the board it is made.

Nothing is lost and nothing is added: the file on the board is one protocol buffer without external data, which every
release of ATC reads. Its board needs no ONNX package for that, only the encoding of fields
(https://protobuf.dev/programming-guides/encoding), of which a message has few: ``ModelProto.graph`` is field 7,
``GraphProto.initializer`` 5, and a ``TensorProto`` has dims 1, data_type 2, name 8 and raw_data 9.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

from targets.ascend.plan import Tensor
from targets.base import ModelError
from targets.files import disk_errors

#: Bytes below which a tensor stays in the graph: shapes, axes and other small constants.
SMALL = 1024
#: No protocol buffer is larger.
MAX_FILE = (2 << 30) - 1
_GRAPH, _INITIALIZER, _DIMS, _TYPE, _NAME, _RAW = 7, 5, 1, 2, 8, 9
_VARINT, _BYTES = 0, 2


class Parts(NamedTuple):
    """A model without its graph, the graph without its large tensors, and these with their bytes."""

    head: bytes
    graph: bytes
    tensors: tuple[tuple[Any, bytes], ...]


def split(model: Any) -> Parts:
    """The parts of an ``onnx.ModelProto``, which is left as it is. Raises :class:`ModelError` for one above 2 GiB."""
    import onnx

    head, graph = onnx.ModelProto(), onnx.GraphProto()
    head.CopyFrom(model)
    head.ClearField("graph")
    graph.CopyFrom(model.graph)
    del graph.initializer[:]
    large = []
    for tensor in model.graph.initializer:
        data = onnx.numpy_helper.to_array(tensor).tobytes()
        if len(data) < SMALL:
            graph.initializer.append(tensor)
        else:
            large.append((tensor, data))
    parts = Parts(head.SerializeToString(deterministic=True), graph.SerializeToString(deterministic=True), tuple(large))
    if sum(len(data) for _, data in large) + len(parts.graph) + len(parts.head) > MAX_FILE - (1 << 20):
        raise ModelError("the network is larger than an ONNX file can be (2 GiB)", hint="use a smaller one")
    return parts


def join(head: bytes, graph: bytes, tensors: Sequence[Tensor], path: Callable[[str], Path], target: Path) -> None:
    """Write the whole ONNX file. ``path`` says where a file of the bundle lies.

    Raises :class:`targets.base.FleetError`: ``disk-full``, ``disk-error``.
    """
    sizes = [path(tensor.file).stat().st_size for tensor in tensors]
    heads = [_tensor_head(tensor, size) for tensor, size in zip(tensors, sizes, strict=True)]
    whole = [_field(_INITIALIZER, len(start) + size) for start, size in zip(heads, sizes, strict=True)]
    length = len(graph) + sum(map(len, whole)) + sum(map(len, heads)) + sum(sizes)
    with disk_errors("the network's ONNX file"), target.open("wb") as file:
        file.write(head + _field(_GRAPH, length) + graph)
        for tensor, before, start in zip(tensors, whole, heads, strict=True):
            file.write(before + start)
            _copy(path(tensor.file), file)


def _tensor_head(tensor: Tensor, size: int) -> bytes:
    """A tensor's message up to its raw data, of which the length is the last thing."""
    name = tensor.name.encode()
    dims = b"".join(_varint(_DIMS << 3 | _VARINT) + _varint(extent) for extent in tensor.dims)
    kind = _varint(_TYPE << 3 | _VARINT) + _varint(tensor.type)
    return dims + kind + _field(_NAME, len(name)) + name + _field(_RAW, size)


def _field(number: int, length: int) -> bytes:
    return _varint(number << 3 | _BYTES) + _varint(length)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _copy(source: Path, sink: IO[bytes]) -> None:
    with source.open("rb") as file:
        shutil.copyfileobj(file, sink, 1 << 20)
