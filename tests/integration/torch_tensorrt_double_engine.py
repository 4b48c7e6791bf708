"""What the double of torch_tensorrt does: `torch_tensorrt_double.install` puts it into the package as ``_engine``.

A program is cut into blocks as the real one cuts it; each block runs operator by operator in torch on the processor, in
the type in which TensorRT would compute: with weak typing in halves where ``enabled_precisions`` allows them, with
strong typing in the program's own types, or those of its autocast.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import fx
from torch.export import ExportedProgram
from torch.fx.passes.infra.partitioner import CapabilityBasedPartitioner
from torch.fx.passes.operator_support import OperatorSupportBase

_FACTS = json.loads(Path(__file__).with_name("facts.json").read_text())
_SIMPLE = {kind.__name__: kind for kind in (bool, int, float, str, list, tuple, set, frozenset, dict, type(None))}
#: Operators that no engine takes: the sizes of their results depend on data.
_UNSUPPORTED = ("aten.nonzero", "aten.masked_select", "aten._unique")
#: What has its own numbers of bits, or is nothing but a product.
_PRODUCTS = ("aten.convolution", "aten.conv", "aten.mm", "aten.addmm", "aten.bmm", "aten.baddbmm", "aten.linear")
_LOW = (torch.float16, torch.bfloat16)
#: Types as TensorRT calls them in what it says of its layers.
_NAMES = {torch.float16: "Half", torch.bfloat16: "BFloat16", torch.float32: "Float", torch.int8: "Int8"}


class Default:
    """A default of the real function that is no plain value."""

    def __init__(self, source: str) -> None:
        self.source = source


def checked(function: str, given: dict[str, Any]) -> dict[str, Any]:
    """What a function was given, without what is its default. Raises TypeError for another type than annotated."""
    for name, value in given.items():
        allowed = _FACTS["types"][function].get(name)
        if allowed is not None and not isinstance(value, Default) and not _fits(value, allowed):
            raise TypeError(f"{function}: {name} must be {allowed}, not {value!r}")
    return {name: value for name, value in given.items() if not isinstance(value, Default)}


def _fits(value: Any, allowed: list[Any]) -> bool:
    for each in allowed:
        if isinstance(each, dict):
            if value == each["value"]:
                return True
        elif type(value) is _SIMPLE[each] or (each == "float" and type(value) is int):
            return True
    return False


class Input:
    """What ``torch_tensorrt.Input`` takes: a shape, or the least, the best and the largest one."""

    def __init__(self, *shape: Any, **given: Any) -> None:
        unknown = sorted(set(given) - set(_FACTS["input"]))
        if unknown:
            raise TypeError(f"Input has no {', '.join(unknown)}")
        if shape:
            (given["shape"],) = shape
        ranges = [name for name in ("min_shape", "opt_shape", "max_shape") if name in given]
        if ("shape" in given) == bool(ranges) or len(ranges) not in (0, 3):
            raise ValueError("Input takes either shape, or all of min_shape, opt_shape and max_shape")
        self.least = tuple(given.get("min_shape", given.get("shape")))
        self.largest = tuple(given.get("max_shape", given.get("shape")))
        best = tuple(given.get("opt_shape", given.get("shape")))
        if not all(low <= mid <= high for low, mid, high in zip(self.least, best, self.largest, strict=True)):
            raise ValueError(f"no shape lies between {self.least} and {self.largest}")
        self.dtype = given.get("dtype", torch.float32)

    @classmethod
    def of(cls, given: Any) -> Input:
        return given if isinstance(given, cls) else cls(shape=tuple(given.shape), dtype=given.dtype)

    @property
    def dynamic(self) -> bool:
        return self.least != self.largest


# --- Engines ------------------------------------------------------------------------------------


class Engine(torch.nn.Module):
    """A block as TensorRT would run it."""

    def __init__(self, block: fx.GraphModule, policy: Callable[[Any], torch.dtype | None]) -> None:
        super().__init__()
        # No module of its own: the real one's engine is none.
        self.hidden = (block, policy)

    def __getattr__(self, name: str) -> Any:
        if name in _FACTS["methods"][type(self).__name__]:
            raise NotImplementedError(f"the double has no {name}")
        return super().__getattr__(name)

    def forward(self, *inputs: Any) -> Any:
        return _Typed(self).run(*inputs)

    def get_layer_info(self) -> str:
        block, policy = self.hidden
        layers = []
        for node in block.graph.nodes:
            value = node.meta["val"] if node.op == "call_function" else None
            value = value[0] if isinstance(value, tuple | list) else value
            if isinstance(value, torch.Tensor):
                dtype = policy(node.target) if value.is_floating_point() else None
                name = _NAMES.get(dtype or value.dtype, "")
                layers.append({"Name": node.name, "Outputs": [{"Name": node.name, "Format/Datatype": name}]})
        return json.dumps({"Layers": layers})


class _Typed(fx.Interpreter):
    """Runs a block in the types that the engine's policy says; what goes in and out keeps the types of the program."""

    def __init__(self, engine: Engine) -> None:
        block, self.policy = engine.hidden
        super().__init__(block)

    def run_node(self, node: fx.Node) -> Any:
        if node.op == "output":
            wanted = fx.node.map_arg(node.args[0], lambda each: each.meta["val"])
            return _retyped(super().run_node(node), wanted)
        if node.op != "call_function":
            return super().run_node(node)
        dtype = self.policy(node.target)
        args, kwargs = self.fetch_args_kwargs_from_env(node)
        if dtype is None:
            return node.target(*args, **kwargs)
        args, kwargs = _cast((args, kwargs), dtype)
        return _cast(node.target(*args, **kwargs), dtype)


def _cast(values: Any, dtype: torch.dtype) -> Any:
    def cast(value: Any) -> Any:
        floats = isinstance(value, torch.Tensor) and value.is_floating_point()
        return value.to(dtype) if floats else value

    return torch.utils._pytree.tree_map(cast, values)


def _retyped(values: Any, wanted: Any) -> Any:
    def retype(value: Any, like: Any) -> Any:
        return value.to(like.dtype) if isinstance(value, torch.Tensor) else value

    return torch.utils._pytree.tree_map(retype, values, wanted)


# --- Compiling ----------------------------------------------------------------------------------


def compile(given: dict[str, Any]) -> fx.GraphModule:
    """``torch_tensorrt.dynamo.compile``."""
    program = given["exported_program"]
    if not isinstance(program, ExportedProgram):
        raise AssertionError(f"Input graph should be an ExportedProgram but got type {type(program)}")
    one, other = given["inputs"], given["arg_inputs"]
    if not one and not other and not given["kwarg_inputs"]:
        raise AssertionError("'arg_inputs', 'kwarg_inputs' and 'inputs' should not all be None.")
    if one and other:
        raise AssertionError("'arg_inputs' and 'inputs' should not be used at the same time.")
    inputs = [Input.of(each) for each in (one or other)]
    policy = _policy(given)
    _check_inputs(program, inputs)
    _touch(given)
    program = program.run_decompositions()
    graph = program.module()
    compiled = _partitioned(graph, policy, given)
    # What saving needs to know.
    compiled.double_inputs = inputs
    return compiled


def _policy(given: dict[str, Any]) -> Callable[[Any], torch.dtype | None]:
    """The type in which an operator computes; None: in the program's."""
    enabled = given.get("enabled_precisions", {torch.float32})
    if given.get("use_explicit_typing", False) and set(enabled) != {torch.float32}:
        raise AssertionError("enabled_precisions should not be used when use_explicit_typing=True")
    if not _FACTS["strong"] and not given.get("use_explicit_typing", True):
        # TensorRT takes what is fastest; of these the smallest floats.
        low = next((dtype for dtype in _LOW if dtype in enabled), None)
        if not set(enabled) <= {torch.float32, torch.int8, *_LOW}:
            raise AssertionError(f"Attempted to enable kernel precisions that are not supported (got: {enabled})")
        return lambda _target: low
    if given.get("enable_autocast", False):
        low = given["autocast_low_precision_type"]
        if low not in _LOW:
            raise ValueError(f"autocast_low_precision_type must be torch.float16 or torch.bfloat16, not {low}")
        return lambda target: low if str(target).startswith(_PRODUCTS) else torch.float32
    return lambda _target: None


def _check_inputs(program: ExportedProgram, inputs: list[Input]) -> None:
    names = set(program.graph_signature.user_inputs)
    nodes = [node for node in program.graph.nodes if node.op == "placeholder" and node.name in names]
    if len(nodes) != len(inputs):
        raise ValueError(f"the program takes {len(nodes)} inputs, {len(inputs)} are described")
    for node, described in zip(nodes, inputs, strict=True):
        value = node.meta["val"]
        if value.dtype != described.dtype:
            raise ValueError(f"{node.name} is {value.dtype}, described as {described.dtype}")
        for size, low, high in zip(value.shape, described.least, described.largest, strict=True):
            if isinstance(size, int):
                if not low == size == high:
                    raise ValueError(f"{node.name} is {tuple(value.shape)}, described as {described.least}")
                continue
            limits = program.range_constraints[size.node.expr]
            # An open batch of 1 and more is 0 and more in the constraints of some versions.
            if high > limits.upper or (low, high) == (low, low) or low < min(1, int(limits.lower)):
                raise ValueError(
                    f"{node.name} goes from {limits.lower} to {limits.upper}, described as {low} to {high}"
                )


def _touch(given: dict[str, Any]) -> None:
    """The real one reads and writes this file; its folder must be there or be made."""
    path = given.get("timing_cache_path")
    if path is not None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_bytes(b"timing cache of the double\n")


class _Support(OperatorSupportBase):
    def __init__(self, executed: Any) -> None:
        self.executed = {str(each) for each in executed or ()}

    def is_node_supported(self, _submodules: Any, node: fx.Node) -> bool:
        if node.op != "call_function":
            return False
        if getattr(node.target, "__name__", "") == "getitem":
            return self.is_node_supported(_submodules, node.args[0])  # type: ignore[arg-type]
        name = str(node.target)
        if name in self.executed or name.startswith(_UNSUPPORTED):
            return False
        return name.startswith(("aten.", "quantized_decomposed.", "<built-in function", "math."))


def _partitioned(graph: fx.GraphModule, policy: Any, given: dict[str, Any]) -> fx.GraphModule:
    from torch_tensorrt.dynamo.runtime import TorchTensorRTModule

    support = _Support(given["torch_executed_ops"])
    operators = [node for node in graph.graph.nodes if _is_operator(node)]
    left = [node for node in operators if not support.is_node_supported({}, node)]
    partitioner = CapabilityBasedPartitioner(graph, support, allows_single_node_partition=True)
    least = given["min_block_size"]
    blocks = [
        block for block in partitioner.propose_partitions() if len([n for n in block.nodes if _is_operator(n)]) >= least
    ]
    taken = sum(len([node for node in block.nodes if _is_operator(node)]) for block in blocks)
    if len(operators) - len(left) < least:
        warnings.warn(f"{len(operators) - len(left)} supported operations, min_block_size is {least}", stacklevel=2)
        return graph
    if given["require_full_compilation"] and taken < len(operators):
        raise AssertionError("require_full_compilation=True, however the model is not fully supported")
    fused = partitioner.fuse_partitions(blocks)
    for number, node in enumerate([node for node in fused.graph.nodes if node.op == "call_module"]):
        if not str(node.target).startswith("fused_"):
            continue
        name = f"_run_on_acc_{number}"
        fused.add_submodule(name, TorchTensorRTModule(fused.get_submodule(node.target), policy))
        fused.delete_submodule(node.target)
        node.target = name
    fused.recompile()
    return fused


def _is_operator(node: fx.Node) -> bool:
    return node.op == "call_function" and getattr(node.target, "__name__", "") != "getitem"


# --- Files --------------------------------------------------------------------------------------


def save(given: dict[str, Any]) -> None:
    """``torch_tensorrt.save``: engines become what they compute, since torch's files know no double of an engine."""
    module = given["module"]
    if given["output_format"] != "exported_program":
        raise NotImplementedError(f"the double saves no {given['output_format']}")
    if not isinstance(module, fx.GraphModule) or not hasattr(module, "double_inputs"):
        raise ValueError("Not possible to save a module that was not compiled")
    if given["retrace"] and not given["arg_inputs"]:
        raise ValueError("retrace=True needs arg_inputs")
    inputs: list[Input] = module.double_inputs
    examples = tuple(torch.zeros(each.largest, dtype=each.dtype) for each in inputs)
    largest = max((each.largest[0] for each in inputs if each.dynamic), default=0)
    shapes = None
    if largest:
        batch = torch.export.Dim("batch", min=1, max=largest)
        shapes = tuple({0: batch} if each.dynamic else None for each in inputs)
    program = torch.export.export(_Whole(module), examples, dynamic_shapes=(shapes,) if shapes else None)
    torch.export.save(program, given["file_path"], pickle_protocol=given["pickle_protocol"])


class _Whole(torch.nn.Module):
    def __init__(self, module: Any) -> None:
        super().__init__()
        self.module = module

    def forward(self, *inputs: Any) -> Any:
        return self.module(*inputs)


def load(given: dict[str, Any]) -> ExportedProgram:
    """``torch_tensorrt.load``."""
    # Operators of integers, which stand in an engine's place.
    import torch.ao.quantization.fx._decomposed

    try:
        return torch.export.load(given["file_path"])
    except Exception as error:
        raise ValueError(f"The file {given['file_path']} doesn't correspond to a valid ExportedProgram") from error
