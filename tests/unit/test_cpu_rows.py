"""Functions of rows: what lies between begin_rows and end_rows is computed where a picture has so many rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import tvm
import tvm_ffi
from torch import Tensor, nn
from tvm import relax

from targets.base import SourceModel
from targets.cpu import compile as cpu_compile
from targets.cpu import passes, rows
from targets.cpu.machine import MACHINES, machine
from targets.detection import calls, operators  # noqa: F401
from targets.pt2_model import read
from targets.relax_import import to_relax

ROWS = 40


class Head(nn.Module):
    """A convolution and a dense layer for each row, one with what all rows share."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 16, 3, padding=1)
        self.dense = nn.Linear(16 * 6 * 6, 10)
        self.shared = nn.Linear(10, 10)

    def forward(self, patches: Tensor, common: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
        """(N, ROWS, 8, 6, 6), (N, 10), (N,) → (N, ROWS, 10) twice."""
        common = common.mean(0, keepdim=True)
        flat = patches.reshape(-1, 8, 6, 6)
        (flat,) = torch.ops.fleet.begin_rows([flat], counts)
        x = torch.relu(self.conv(flat)).flatten(1)
        first = self.dense(x)
        second = torch.relu(first + self.shared(common))
        first, second = torch.ops.fleet.end_rows([first, second], counts)
        return first.reshape(-1, ROWS, 10), second.reshape(-1, ROWS, 10)


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Head, tvm.IRModule]:
    """The network, and its Relax module for two pictures."""
    torch.manual_seed(0)
    head = Head().eval()
    path = tmp_path_factory.mktemp("rows") / "head.pt2"
    batch = torch.export.Dim("batch", min=1, max=8)
    inputs = torch.zeros(2, ROWS, 8, 6, 6), torch.zeros(2, 10), torch.zeros(2, dtype=torch.int32)
    torch.export.save(torch.export.export(head, inputs, dynamic_shapes=({0: batch},) * 3), path)
    archive = read(path)
    model = SourceModel("head", "pt2", str(path), "", "", archive.inputs, archive.outputs)
    module, _, outputs = to_relax(model, 2)
    assert [spec.shape for spec in outputs] == [(2, ROWS, 10)] * 2
    return head, passes.simplify()(module)


@pytest.fixture(scope="module")
def run(imported: tuple[Head, tvm.IRModule], tmp_path_factory: pytest.TempPathFactory):
    processor = MACHINES[machine()].processor("host")
    compiled = cpu_compile.compile_module(imported[1], MACHINES[machine()], processor)
    path = str(tmp_path_factory.mktemp("library") / "head.so")
    compiled.executable.export_library(path)
    vm = relax.VirtualMachine(tvm.runtime.load_module(path), tvm.cpu())

    def call(*inputs: Tensor) -> tuple[list[np.ndarray], int]:
        """The results, and how many calls of kernels of rows there were."""
        seen: list[str] = []

        def watch(_function: object, name: str, before: bool, _result: object, *_arguments: object) -> int:
            if before and name.startswith("rows_0_dense"):
                seen.append(name)
            return 0

        vm.set_instrument(tvm_ffi.convert(watch))
        vm.set_input("main", *[tvm.runtime.tensor(each.numpy()) for each in inputs], *[w for _, w in compiled.weights])
        vm.invoke_stateful("main")
        return [each.numpy() for each in vm.get_outputs("main")], len(seen)

    return call


@pytest.mark.parametrize("counts", [(0, 0), (ROWS, ROWS), (1, 0), (7, 23), (ROWS, 1)])
def test_rows_are_those_of_torch(imported, run, monkeypatch, counts: tuple[int, int]) -> None:
    torch.manual_seed(sum(counts))
    inputs = torch.randn(2, ROWS, 8, 6, 6), torch.randn(2, 10), torch.tensor(counts, dtype=torch.int32)
    with torch.no_grad():
        wanted = imported[0](*inputs)
    found, _ = run(*inputs)
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one, other.numpy(), rtol=1e-4, atol=1e-5)
    assert all((found[0][picture, count:] == 0).all() for picture, count in enumerate(counts))


def test_nothing_is_computed_of_rows_that_are_nothing(imported, monkeypatch, tmp_path) -> None:
    # Four rows of the largest result, so that a picture has ten chunks.
    monkeypatch.setattr(rows, "CHUNK_BYTES", 4 * 16 * 36 * 4)
    outlined = rows.outline(imported[1])
    (function,) = [each for each in outlined.functions.values() if rows.GUARDED in (each.attrs or {})]
    assert int(function.params[1].ty.shape[0]) == 4
    main = outlined["main"]
    values = [binding.value for block in main.body.blocks for binding in block.bindings]
    assert not any(calls.name_of(value) for value in values)
    called = [value for value in values if isinstance(getattr(value, "op", None), tvm.ir.GlobalVar)]
    assert len(called) == 2 * ROWS // 4


def test_what_is_not_computed_row_by_row_is_refused(tmp_path) -> None:
    class Mixing(nn.Module):
        def forward(self, x: Tensor, counts: Tensor) -> Tensor:
            (x,) = torch.ops.fleet.begin_rows([x], counts)
            (x,) = torch.ops.fleet.end_rows([x @ torch.ones(4, 4) + x.sum(0)], counts)
            return x

    path = tmp_path / "mixing.pt2"
    inputs = torch.zeros(ROWS, 4), torch.zeros(1, dtype=torch.int32)
    torch.export.save(torch.export.export(Mixing(), inputs), path)
    archive = read(path)
    model = SourceModel("mixing", "pt2", str(path), "", "", archive.inputs, archive.outputs)
    module, _, _ = to_relax(model)
    with pytest.raises(ValueError, match="row by row"):
        rows.outline(passes.simplify()(module))
