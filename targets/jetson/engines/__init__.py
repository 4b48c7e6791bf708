"""What runs a program on a board: one interface, one module for each engine. Runs in the board's Python, 3.8 or newer.

An engine first *builds* files in a folder, which the agent keeps, and then *loads* them; both say what they found, so
that nobody has to believe what was asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode

#: Operators that a network's time goes into, as a dispatcher calls them.
_PRODUCTS = frozenset({"convolution", "_convolution", "cudnn_convolution", "mkldnn_convolution", "mm", "addmm", "bmm"})
#: Module of each engine. `tvm` is none of them: its code is built on the host.
MODULES = {"eager": "eager", "torchscript": "torchscript", "inductor": "inductor", "torch-tensorrt": "trt"}


class Refused(Exception):
    """An answer that is an error: a stable code, and words."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Settings(NamedTuple):
    """How a program shall run: the options of its build, and where."""

    engine: str
    #: ``fp32``, ``fp16``, ``autocast`` or ``int8`` (Q/DQ nodes are in the program).
    precision: str
    #: Whether every batch from 1 to the program's runs.
    dynamic: bool
    workspace_mb: int
    tf32: bool
    #: A file of TensorRT's that may be shared by everything that is built for this GPU and these versions.
    timing_cache: str


class Work(NamedTuple):
    """What an engine is given."""

    settings: Settings
    device: Any
    #: Makes the module, on its device and in its type; costs reading all weights.
    module: Callable[[], Any]
    #: Inputs as the module takes them, on its device.
    examples: tuple[Any, ...]
    #: Which of them have an open first dimension, and its largest; empty unless the batch is dynamic.
    open_inputs: tuple[bool, ...]
    folder: str
    tell: Callable[[str], None]


def find(name: str) -> Any:
    """The module of an engine. Raises :class:`Refused`.

    It has ``available()``, why it is not there; ``halves()``, whether it wants a module in halves for ``fp16``;
    ``build(work)`` and ``load(work)``, of which both say what they found, as texts by the names of conditions.
    """
    if name not in MODULES:
        raise Refused("no-engine", f"there is no engine '{name}' on this board")
    return import_module(f"targets.jetson.engines.{MODULES[name]}")


def autocast_dtype(device: Any) -> Any:
    """What torch's autocast computes in: half precision, which processors have as bfloat16."""
    return torch.float16 if device.type == "cuda" else torch.bfloat16


class Autocast(torch.nn.Module):  # type: ignore[misc]
    """A module under torch's autocast; its results come out as float32 where they are floats."""

    def __init__(self, module: Any, device: Any) -> None:
        super().__init__()
        self.module = module
        self.kind = device.type
        self.dtype = autocast_dtype(device)

    def forward(self, *inputs: Any) -> Any:
        with torch.autocast(self.kind, self.dtype):
            results = self.module(*inputs)
        if isinstance(results, torch.Tensor):
            return results.float() if results.is_floating_point() else results
        return tuple(each.float() if each.is_floating_point() else each for each in results)


def wrapped(work: Work) -> Any:
    """The module for an engine of torch's own: under autocast if that was asked for."""
    module = work.module()
    return Autocast(module, work.device) if work.settings.precision == "autocast" else module


def exported(module: Any, work: Work) -> Any:
    """The module as an exported program of this torch, with the batch open if it is dynamic."""
    shapes = None
    if work.settings.dynamic:
        batch = torch.export.Dim("batch", min=1, max=max(each.shape[0] for each in work.examples))
        shapes = tuple({0: batch} if is_open else None for is_open in work.open_inputs)
    with torch.no_grad():
        # Of what `forward(*inputs)` takes, torch wants the shapes as one tuple.
        packed = (shapes,) if shapes is not None and isinstance(module, Autocast) else shapes
        return torch.export.export(module, work.examples, dynamic_shapes=packed)


def weight_dtypes(module: Any) -> str:
    """Types of the numbers that a module holds, with their shares: ``float16`` or ``float16 98%, float32 2%``."""
    counts: dict[str, int] = {}
    for tensor in (*module.parameters(), *module.buffers()):
        name = dtype_name(tensor.dtype)
        counts[name] = counts.get(name, 0) + tensor.numel()
    total = sum(counts.values())
    ranked = sorted(counts.items(), key=lambda item: -item[1])
    if len(ranked) < 2:
        return ranked[0][0] if ranked else ""
    return ", ".join(f"{name} {count * 100 / total:.3g}%" for name, count in ranked)


class _Products(TorchDispatchMode):  # type: ignore[misc]
    """Counts the types that convolutions and matrix products are computed in."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: dict[str, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.__name__.split(".")[0] in _PRODUCTS:
            name = dtype_name(args[-2 if func.__name__.startswith("addmm") else 0].dtype)
            self.counts[name] = self.counts.get(name, 0) + 1
        return result


def layer_dtypes(call: Callable[..., Any], inputs: tuple[Any, ...]) -> str:
    """In which types the convolutions and products of a call are computed: ``bfloat16 ×21, float32 ×1``."""
    with torch.no_grad(), _Products() as seen:
        call(*inputs)
    return counted(seen.counts)


def counted(counts: dict[str, int]) -> str:
    """``float16 ×53, float32 ×2``, most first."""
    return ", ".join(f"{name} ×{count}" for name, count in sorted(counts.items(), key=lambda item: -item[1]))


def dtype_name(dtype: Any) -> str:
    return str(dtype).replace("torch.", "")
