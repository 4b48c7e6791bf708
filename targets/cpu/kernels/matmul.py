"""Products of two activations, matrix by matrix: the same tiles in registers as with constant weights, nothing packed.

The second factor's rows are read as they lie. Where they are columns (attention's keys) each job first turns them, with
one gathered vector for each of its stores.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tvm import tirx
from tvm.tirx.script.builder import ir as T

from targets.cpu.kernels.dense import PARALLEL_FROM
from targets.cpu.kernels.images import argument, flat, kernel, ramp, registers, splat


@dataclass(frozen=True, slots=True)
class MatMul:
    """(batch, rows, inputs) by (batch, inputs, outputs), or (batch, outputs, inputs) when ``transposed``.

    ``a``, ``b`` and ``y`` are the tensors' own shapes, which may have other dimensions with the same numbers in them. A
    tile is so many rows and blocks of ``lanes`` columns; ``lanes`` is at most the outputs. A job has ``chunk`` rows.
    """

    batch: int
    rows: int
    inputs: int
    outputs: int
    a: tuple[int, ...]
    b: tuple[int, ...]
    y: tuple[int, ...]
    tile: tuple[int, int]
    chunk: int
    lanes: int
    transposed: bool = False


def matmul(spec: MatMul, name: str) -> Any:
    """Arguments: a, b, y."""
    (tile_rows, tile_blocks), lanes, chunk = spec.tile, spec.lanes, spec.chunk
    batch, rows, inputs, outputs = spec.batch, spec.rows, spec.inputs, spec.outputs
    chunks, row_tiles, groups = -(-rows // chunk), -(-chunk // tile_rows), -(-outputs // (tile_blocks * lanes))
    cells = [(r, g) for r in range(tile_rows) for g in range(tile_blocks)]
    whole = ramp(0, lanes)

    def column(block: Any) -> Any:
        """The first column of a block: the last one is moved back so that it ends with the row, or is there again."""
        return T.bind(tirx.min(block * lanes, outputs - lanes))

    def body() -> None:
        a, b, y = flat(*(argument(*each) for each in (("a", spec.a), ("b", spec.b), ("y", spec.y))))
        loop = T.parallel if batch * rows * inputs * outputs >= PARALLEL_FROM and batch * chunks > 1 else T.serial
        with loop(0, batch * chunks) as job:
            matrix = T.bind(job // chunks)
            first_row = T.bind(tirx.min(job % chunks * chunk, rows - chunk))
            factor, start = b, matrix * (inputs * outputs)
            if spec.transposed:
                factor, start = T.alloc_buffer((inputs * outputs,)), 0
                with T.serial(0, -(-outputs // lanes)) as block:
                    at = column(block)
                    with T.serial(0, inputs) as k:
                        turned = b[ramp((matrix * outputs + at) * inputs + k, lanes, inputs)]
                        T.buffer_store(factor, turned, [ramp(k * outputs + at, lanes)])
            with T.serial(0, groups) as group, T.serial(0, row_tiles) as index:
                columns = [column(group * tile_blocks + g) for g in range(tile_blocks)]
                row = T.bind(first_row + tirx.min(index * tile_rows, chunk - tile_rows))
                left = T.bind((matrix * rows + row) * inputs)
                sums = registers(len(cells), lanes)
                for cell in sums:
                    T.buffer_store(cell, splat(0.0, lanes), [whole])
                with T.serial(0, inputs) as k:
                    vectors = [T.bind(factor[ramp(start + k * outputs + at, lanes)]) for at in columns]
                    for r in range(tile_rows):
                        value = T.bind(a[left + r * inputs + k])
                        for g, vector in enumerate(vectors):
                            cell = sums[r * tile_blocks + g]
                            T.buffer_store(cell, cell[whole] + splat(value, lanes) * vector, [whole])
                for cell, (r, g) in zip(sums, cells, strict=True):
                    at = ramp((matrix * rows + row + r) * outputs + columns[g], lanes)
                    T.buffer_store(y, cell[whole], [at])

    return kernel(name, body)
