"""The host's end of a program: ``torch.export`` to a ``.pt2``, and the ``.pt2`` taken apart into a graph and weights.

What travels is what `torch.export.save` wrote, but in pieces: the graph as the JSON that it is in the archive, without
anything that only torch's own loader would look at, and each weight as raw bytes in a file of its own. So a retrained
last layer costs its own bytes, no torch of a board has to know the host's archives, and nothing is unpickled.
`targets.jetson.rebuild` makes a module of it again.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from targets import pt2_model
from targets.base import BuiltFile, FleetError, ModelError, SourceModel, TensorSpec
from targets.bundle import ITEM_SIZES

PROGRAM = "program.json"
#: Of what `write` makes; raised when a helper of before could not read it.
FORMAT = 1


@dataclass(frozen=True, slots=True)
class Exported:
    """A checked ``torch.export.ExportedProgram`` and what it takes and gives, every shape a number."""

    program: Any
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    #: Largest number in what it gives for noise: of what size its errors are.
    largest: float

    @property
    def detects(self) -> bool:
        """Whether it uses the operators of :mod:`targets.detection`."""
        return any(str(node.target).startswith("fleet.") for node in self.program.graph.nodes)


def export(model: SourceModel, batch: int, dynamic: bool) -> Exported:
    """``model`` as a program for ``batch`` (0: the file's own, or 1), or for every batch up to it.

    Raises:
        ModelError: cannot be read, has operators that are not known, or is not made for that batch.
    """
    import torch

    if model.format == "onnx":
        from targets.jetson.onnx_import import module

        network = module(model)
    else:
        network = pt2_model.read(Path(model.path)).load().module()
    given = tuple(_example(spec, _batch(model, spec, batch)) for spec in model.inputs)
    shapes = None
    if dynamic:
        if batch < 2:
            raise FleetError(
                "a dynamic batch needs its largest", code="bad-option", hint="for example --option batch=8"
            )
        size = torch.export.Dim("batch", min=1, max=batch)
        # Detectors pass constants beside pictures: only what the file leaves open is open here.
        shapes = tuple({0: size} if spec.shape and spec.shape[0] < 1 else None for spec in model.inputs)
    try:
        with torch.no_grad():
            program = torch.export.export(network, given, dynamic_shapes=shapes)
            results = torch.utils._pytree.tree_leaves(program.module()(*given))
    except Exception as error:
        # torch raises what it likes; all of it is about this model and this batch.
        raise ModelError(
            f"{model.name} cannot be exported for batch {batch or 1}: {_first_line(error)}",
            hint="export it with an open batch, or leave out the option 'batch'",
        ) from error
    floats = [float(each.abs().max()) for each in results if each.is_floating_point() and each.numel()]
    return Exported(program, _fixed(model.inputs, given), _fixed(model.outputs, results), max(floats, default=0.0))


def write(program: Any, folder: Path) -> tuple[BuiltFile, list[BuiltFile]]:
    """The program's file and those of its weights, in the order that the program names them.

    Raises:
        ModelError: it holds something that is not plain data, or a weight of no size.
    """
    buffer = io.BytesIO()
    import torch

    torch.export.save(program, buffer)
    path = folder / "model.pt2"
    path.write_bytes(buffer.getvalue())
    # The checks of any stranger's archive: what is written here names nothing that must not be called.
    pt2_model.read(path)
    with zipfile.ZipFile(path) as archive:
        member = next(name for name in archive.namelist() if "/models/" in name and name.endswith(".json"))
        module = json.loads(archive.read(member))["graph_module"]
    path.unlink()
    graph, tensors = module["graph"], {**program.state_dict, **program.constants}
    used = _used(graph)
    inputs: list[str] = []
    weights: list[dict[str, Any]] = []
    files: list[BuiltFile] = []
    for spec in module["signature"]["input_specs"]:
        kind, content = next(iter(spec.items()))
        if kind == "user_input":
            inputs.append(content["arg"]["as_tensor"]["name"])
        elif content["arg"]["name"] in used:
            name = content["arg"]["name"]
            file = _weight(tensors[_target(content)], _target(content), folder / "weights" / str(len(files)))
            assert file.tensor is not None
            weights.append({"name": name, "dtype": file.tensor.dtype, "shape": list(file.tensor.shape)})
            files.append(file)
    text = {
        "format": FORMAT,
        "inputs": inputs,
        "weights": weights,
        "nodes": [{key: node[key] for key in ("target", "inputs", "outputs")} for node in graph["nodes"]],
        "outputs": [spec["user_output"]["arg"]["as_tensor"]["name"] for spec in module["signature"]["output_specs"]],
    }
    written = folder / PROGRAM
    written.write_text(json.dumps(text, sort_keys=True, separators=(",", ":")))
    return BuiltFile(name=PROGRAM, path=str(written), role="library"), files


def _used(graph: dict[str, Any]) -> set[str]:
    """Names of tensors that some node takes, or that are a result."""
    found: set[str] = set()
    pending: list[Any] = [[node["inputs"] for node in graph["nodes"]], graph["outputs"]]
    while pending:
        value = pending.pop()
        if isinstance(value, dict):
            if isinstance(value.get("name"), str):
                found.add(value["name"])
            pending += value.values()
        elif isinstance(value, list):
            pending += value
    return found


def _target(content: dict[str, Any]) -> str:
    """The name of a parameter, buffer or constant in the state of its program."""
    return str(next(value for key, value in content.items() if key.endswith("_name")))


def _weight(tensor: Any, name: str, path: Path) -> BuiltFile:
    import torch

    plain = tensor.detach().cpu().contiguous()
    dtype = str(plain.dtype).removeprefix("torch.")
    if dtype not in ITEM_SIZES or not plain.numel():
        raise ModelError(f"the weight '{name}' is {dtype} {list(plain.shape)}, which no file can hold")
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(plain.reshape(-1).view(torch.uint8).numpy().tobytes())
    spec = TensorSpec(name, tuple(plain.shape), dtype)
    return BuiltFile(name=f"weights/{path.name}", path=str(path), role="weight", tensor=spec)


def _batch(model: SourceModel, spec: TensorSpec, batch: int) -> int:
    """The first dimension of an input. Raises ModelError for another one than the file fixes."""
    first = spec.shape[0] if spec.shape else 0
    if any(size < 1 for size in spec.shape[1:]):
        raise ModelError(
            f"{model.name}: input '{spec.name}' has an open dimension besides the batch",
            hint="export the model with fixed shapes",
        )
    if model.format == "pt2" and first > 0 and batch not in (0, first):
        raise ModelError(
            f"{model.name} is exported for batch {first} and cannot be built for {batch}",
            hint="export it with an open batch: dynamic_shapes={'x': {0: torch.export.Dim('batch')}}",
        )
    return batch or max(first, 1)


def _example(spec: TensorSpec, batch: int) -> Any:
    """Noise in floats, 0 in whole numbers."""
    import torch

    shape, dtype = (batch, *spec.shape[1:]) if spec.shape else (), getattr(torch, spec.dtype)
    if not dtype.is_floating_point:
        return torch.zeros(shape, dtype=dtype)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)


def _fixed(specs: Sequence[TensorSpec], tensors: Sequence[Any]) -> tuple[TensorSpec, ...]:
    if len(specs) != len(tensors):
        raise ModelError(f"the program gives {len(tensors)} results, its file says {len(specs)}")
    return tuple(
        TensorSpec(spec.name, tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."), spec.layout)
        for spec, tensor in zip(specs, tensors, strict=True)
    )


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:400] if lines else type(error).__name__
