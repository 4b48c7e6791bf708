"""Torch-TensorRT: the only module that calls torch_tensorrt, with what `targets.jetson.dialects` lists and no more.

torch_tensorrt swallows names that it does not know, so each is looked up in the function's signature before the call. A
network of which it compiles nothing is an error here, not a slow success.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import json
import re
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from targets.jetson import dialects
from targets.jetson.engines import Refused, Work, counted, exported, weight_dtypes

_FILE = "engines.ep"
#: Layers of a block that is worth an engine of its own.
_MIN_BLOCK = 3
#: Of eight bits with a sign, symmetric.
_HIGH = 127
#: Words for types in what TensorRT says of its layers.
_TYPES = (
    ("bfloat16", re.compile(r"\b(?:BF16|BFloat16)\b", re.IGNORECASE)),
    ("float16", re.compile(r"\b(?:FP16|Half)\b", re.IGNORECASE)),
    ("int8", re.compile(r"\bInt8\b", re.IGNORECASE)),
    ("float32", re.compile(r"\b(?:FP32|Float)\b", re.IGNORECASE)),
)


def available() -> str:
    """Why this engine is not there; empty when it is. Importing torch_tensorrt raises anything, also without a GPU."""
    try:
        dialects.choose(_library().__version__)
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        return f"torch_tensorrt cannot be used: {lines[0][:400] if lines else type(error).__name__}"
    return ""


def versions() -> dict[str, str]:
    return {"torch_tensorrt": _library().__version__, "tensorrt": import_module("tensorrt").__version__}


def keywords(dialect: dialects.Dialect, work: Work) -> dict[str, Any]:
    """What ``torch_tensorrt.dynamo.compile`` is told of these settings."""
    library, settings = _library(), work.settings
    told: dict[str, Any] = {
        "arg_inputs": tuple(_input(library, dialect, work, index) for index in range(len(work.examples))),
        "device": work.device,
        "disable_tf32": not settings.tf32,
        "min_block_size": _MIN_BLOCK,
        "workspace_size": settings.workspace_mb << 20,
        "truncate_double": True,
        "timing_cache_path": settings.timing_cache,
        "require_full_compilation": False,
        # The agent's own cache knows the weights, the GPU and all versions; theirs knows none of these.
        "cache_built_engines": False,
        "reuse_cached_engines": False,
        "hardware_compatible": False,
        "version_compatible": False,
    }
    if settings.precision not in dialect.precisions:
        raise Refused(
            "bad-precision",
            f"torch_tensorrt {library.__version__} ({dialect.name}) has no precision '{settings.precision}'; "
            f"it has {', '.join(dialect.precisions)}",
        )
    if not dialect.strong:
        enabled = {"fp32": (), "fp16": (torch.float16,), "int8": (torch.int8,)}[settings.precision]
        told["enabled_precisions"] = {torch.float32, *enabled}
        told["use_explicit_typing"] = False
    elif settings.precision == "autocast":
        told["enable_autocast"] = True
        told["autocast_low_precision_type"] = torch.float16
    return told


def halves() -> bool:
    """TensorRT computes in the types that a strongly typed program has; of a weakly typed one it chooses them."""
    return dialects.choose(_library().__version__).strong


def build(work: Work) -> dict[str, str]:
    library = _library()
    dialect = dialects.choose(library.__version__)
    module = work.module().eval()
    if work.settings.precision == "int8":
        module = with_quantise_operators(module)
    compile_program = _checked(library.dynamo.compile, dialect.callables["dynamo.compile"], "dynamo.compile")
    told = keywords(dialect, work)
    work.tell("export")
    program = exported(module, work)
    work.tell("build engines")
    compiled = compile_program(program, **told)
    found = examine(compiled, library, dialect)
    if found["engines"] == "0":
        raise Refused(
            "nothing-compiled",
            f"TensorRT took nothing of this network: {found['fallback'] or 'its blocks are too small'}",
        )
    work.tell("save")
    save = _checked(library.save, dialect.callables["save"], "save")
    # The engines are put into the graph as they are: tracing anew needs the memory of a second network.
    path = str(Path(work.folder, _FILE))
    save(compiled, path, output_format="exported_program", retrace=False)
    return {**found, "weight_dtype": weight_dtypes(module), "typing": dialect.name}


def with_quantise_operators(module: Any) -> Any:
    """The module with the operator that torch_tensorrt knows in place of each pair of Q and DQ nodes."""
    try:
        import_module(dialects.QUANTISE_PACKAGE)
        quantise = _named(torch.ops, dialects.QUANTISE).default
    except Exception as error:
        raise Refused(
            "no-modelopt",
            f"int8 on TensorRT needs nvidia-modelopt beside torch_tensorrt: {type(error).__name__}: {error}",
        ) from None
    for node in list(module.graph.nodes):
        if node.op != "call_function" or not str(node.target).startswith("quantized_decomposed.dequantize"):
            continue
        value, scale = node.args[0].args[:2]
        if isinstance(scale, torch.fx.Node):
            # One for each output channel, which is the weight's first dimension.
            scales = getattr(module, scale.target)
            weight = getattr(module, value.target)
            largest = (scales.float() * _HIGH).reshape(-1, *[1] * (weight.dim() - 1))
        else:
            largest = torch.tensor(scale * _HIGH, device=next(module.buffers()).device)
        name = f"largest_{node.name}"
        module.register_buffer(name, largest)
        with module.graph.inserting_before(node):
            told = (value, module.graph.get_attr(name), 8, 0, False, True)
            replaced = module.graph.call_function(quantise, told)
        node.replace_all_uses_with(replaced)
    module.graph.eliminate_dead_code()
    module.recompile()
    return module


def load(work: Work) -> tuple[Any, dict[str, str]]:
    return _library().load(str(Path(work.folder, _FILE))).module(), {}


def examine(compiled: Any, library: Any, dialect: dialects.Dialect) -> dict[str, str]:
    """How many engines there are, in which types their layers compute, and which operators were left to torch."""
    kinds = tuple(_named(library, name) for name in dialect.classes)
    engines = [module for module in compiled.modules() if isinstance(module, kinds)]
    left: dict[str, int] = {}
    graphs = [module for module in compiled.modules() if isinstance(module, torch.fx.GraphModule)]
    for graph in graphs:
        for node in graph.graph.nodes:
            if node.op == "call_function" and getattr(node.target, "__name__", "") != "getitem":
                left[str(node.target)] = left.get(str(node.target), 0) + 1
    fallback = ", ".join(f"{name} ×{count}" if count > 1 else name for name, count in sorted(left.items()))
    return {"engines": str(len(engines)), "fallback": fallback[:2000], "layer_dtypes": layer_dtypes(engines)}


def layer_dtypes(engines: list[Any]) -> str:
    """``float16 ×53, float32 ×2``: types of what the layers give, as the engines say it; empty when they do not."""
    counts: dict[str, int] = {}
    for engine in engines:
        try:
            layers = json.loads(engine.get_layer_info()).get("Layers", [])
        except Exception:
            # What an engine says of itself is for people; that it cannot say it is no reason not to run it.
            continue
        for layer in layers:
            for output in layer.get("Outputs", ()) if isinstance(layer, dict) else ():
                words = str(output.get("Format/Datatype", "")) + " " + str(output.get("Datatype", ""))
                name = next((name for name, pattern in _TYPES if pattern.search(words)), "")
                if name:
                    counts[name] = counts.get(name, 0) + 1
    return counted(counts)


def _input(library: Any, dialect: dialects.Dialect, work: Work, index: int) -> Any:
    example = work.examples[index]
    told: dict[str, Any] = {"dtype": example.dtype, "name": f"input_{index}"}
    shape = tuple(example.shape)
    if work.settings.dynamic and work.open_inputs[index]:
        told.update(min_shape=(1, *shape[1:]), opt_shape=shape, max_shape=shape)
    else:
        told["shape"] = shape
    unknown = sorted(set(told) - dialect.callables["Input"])
    if unknown:
        raise Refused("unknown-setting", f"no table lists {', '.join(unknown)} of torch_tensorrt.Input")
    return library.Input(**told)


def _checked(function: Any, listed: frozenset[str], name: str) -> Any:
    """A function that refuses what neither its table nor its signature names."""
    known = set(inspect.signature(function).parameters)

    def call(*positional: Any, **told: Any) -> Any:
        unknown = sorted(key for key in told if key not in listed or key not in known)
        if unknown:
            raise Refused(
                "unknown-setting",
                f"torch_tensorrt {_library().__version__} has no setting {', '.join(unknown)} of {name}",
            )
        return function(*positional, **told)

    return call


def _named(library: Any, dotted: str) -> Any:
    return functools.reduce(getattr, dotted.split("."), library)


def _library() -> Any:
    if find_spec(dialects.QUANTISE_PACKAGE.partition(".")[0]) is not None:
        # torch_tensorrt looks for its operators when it is imported, and never again.
        with contextlib.suppress(Exception):
            import_module(dialects.QUANTISE_PACKAGE)
    import torch_tensorrt
    import torch_tensorrt.dynamo.runtime

    return torch_tensorrt
