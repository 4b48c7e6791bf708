"""What of torch_tensorrt is used, as data: one table for each way in which it takes precisions.

`targets.jetson.engines.trt` is the only module that calls torch_tensorrt, and it passes nothing that is not in these
tables; the contract test holds them against the released wheels. Runs in the board's Python, 3.8 or newer.

Why two: until 2.9 a network is typed weakly (``enabled_precisions`` says what TensorRT may use inside of it). From 2.10
on it is typed strongly: TensorRT computes in the types that the program has, and ``enabled_precisions`` is refused
(2.10 to 2.13) or ignored without a word (2.14).
"""

from __future__ import annotations

from typing import NamedTuple


class Dialect(NamedTuple):
    """How versions of torch_tensorrt from ``first`` to ``last`` are driven."""

    name: str
    first: tuple[int, int]
    #: (0, 0): whatever comes.
    last: tuple[int, int]
    #: Whether TensorRT computes in the types that the program has.
    strong: bool
    #: Dotted names below ``torch_tensorrt``, and for callables the keyword arguments that are passed.
    callables: dict[str, frozenset[str]]
    #: Dotted names of classes, and the methods that are called.
    classes: dict[str, frozenset[str]]
    #: Keywords of ``dynamo.compile`` that say what the precision is, by the precision that was asked for.
    precisions: dict[str, frozenset[str]]


#: Keywords of ``torch_tensorrt.dynamo.compile`` that are always passed.
#: ``immutable_weights`` is left at its default (True): the cache is ours, and keyed by the weights.
_COMPILE = frozenset(
    {
        "arg_inputs",
        "device",
        "disable_tf32",
        "min_block_size",
        "optimization_level",
        "workspace_size",
        "truncate_double",
        "timing_cache_path",
        "num_avg_timing_iters",
        "require_full_compilation",
        "cache_built_engines",
        "reuse_cached_engines",
        "hardware_compatible",
        "version_compatible",
    }
)
_INPUT = frozenset({"min_shape", "opt_shape", "max_shape", "shape", "dtype", "name"})
#: Not ``pickle_protocol``: torch reads files of another one than the default by running what they say.
_SAVE = frozenset({"output_format", "retrace"})
_MODULE = frozenset({"get_layer_info"})

WEAK = Dialect(
    name="weak typing",
    # What JetPack 6 has; older ones lack some of these names.
    first=(2, 8),
    last=(2, 9),
    strong=False,
    callables={
        "dynamo.compile": _COMPILE | {"enabled_precisions", "use_explicit_typing"},
        "Input": _INPUT,
        "save": _SAVE,
        "load": frozenset(),
    },
    classes={
        "dynamo.runtime.TorchTensorRTModule": _MODULE,
        "dynamo.runtime.PythonTorchTensorRTModule": _MODULE,
    },
    precisions={
        "fp32": frozenset({"enabled_precisions", "use_explicit_typing"}),
        "fp16": frozenset({"enabled_precisions", "use_explicit_typing"}),
        # Q/DQ nodes say what is in integers; the rest may be anything that is enabled.
        "int8": frozenset({"enabled_precisions", "use_explicit_typing"}),
    },
)

STRONG = Dialect(
    name="strong typing",
    first=(2, 10),
    last=(0, 0),
    strong=True,
    callables={
        "dynamo.compile": _COMPILE | {"enable_autocast", "autocast_low_precision_type"},
        "Input": _INPUT,
        "save": _SAVE,
        "load": frozenset(),
    },
    classes={"dynamo.runtime.TorchTensorRTModule": _MODULE},
    precisions={
        "fp32": frozenset(),
        # The program and its inputs are in halves before torch_tensorrt sees them.
        "fp16": frozenset(),
        "autocast": frozenset({"enable_autocast", "autocast_low_precision_type"}),
        "int8": frozenset(),
    },
)

DIALECTS = (WEAK, STRONG)
#: The operator that both make a pair of Q and DQ layers of, and whose first four arguments they read: input, largest
#: magnitude, bits, bits of the exponent. A package registers it, which must be imported before torch_tensorrt.
QUANTISE = "tensorrt.quantize_op"
QUANTISE_PACKAGE = "modelopt.torch.quantization"
#: tuple[int, int]s older than this have no `dynamo.compile` that is driven here.
OLDEST: tuple[int, int] = WEAK.first


def version(text: str) -> tuple[int, int]:
    """``(2, 8)`` of ``2.8.0+jp62``; (0, 0) for what is no version."""
    parts = text.split("+")[0].split(".")
    try:
        return int(parts[0]), int(parts[1])
    except (IndexError, ValueError):
        return 0, 0


def choose(torch_tensorrt_version: str) -> Dialect:
    """The dialect of a version. Raises ValueError that says why there is none."""
    found = version(torch_tensorrt_version)
    for dialect in DIALECTS:
        if dialect.first <= found and (dialect.last == (0, 0) or found <= dialect.last):
            return dialect
    oldest = ".".join(map(str, OLDEST))
    raise ValueError(f"torch_tensorrt {torch_tensorrt_version} is older than {oldest}, the oldest that is driven")
