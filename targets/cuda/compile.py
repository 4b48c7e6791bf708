"""From a Relax module to a library for a GPU: host code and the virtual machine's program, and the kernels' source."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from targets.cpu.compile import tvm_target as host_target
from targets.cpu.machine import X86_MACHINE, Machine
from targets.cuda import architectures

#: What the library has in place of its kernels; :class:`targets.cuda.device.CUDARunner` puts them there.
PLACEHOLDER = "fleet: kernels"
#: Names that begin with a digit, as those of weights do, are none in C++.
_NUMBERED = re.compile(r"\b(?=\d{4}_[A-Za-z])")


@dataclass(frozen=True, slots=True)
class Compiled:
    """What was made of a module."""

    #: A ``tvm.runtime.Executable``.
    executable: Any
    #: Names and ``tvm.runtime.Tensor``s of what ``main`` takes after its inputs.
    weights: list[tuple[str, Any]]
    #: CUDA C++ of all kernels; empty when the network needs none.
    source: str


def tvm_target(architecture: str = f"sm_{architectures.OLDEST}", machine: Machine = X86_MACHINE) -> Any:
    """TVM's target: GPUs from ``architecture`` on, in any processor of a machine."""
    import tvm

    return tvm.target.Target(
        {
            "kind": "cuda",
            "arch": architecture,
            "max_num_threads": 1024,
            "max_threads_per_block": 1024,
            "max_shared_memory_per_block": 49152,
            "thread_warp_size": 32,
        },
        host=host_target(machine, machine.processor("generic")),
    )


def compile_module(module: Any, target: Any | None = None) -> Compiled:
    """Compile a simplified module for `tvm_target`. TVM's passes raise many types for what they cannot compile."""
    import tvm

    from targets.cpu import passes
    from targets.cuda import operators
    from targets.cuda.schedule import lower

    target = target or tvm_target()
    with target, _source() as source:
        module, weights = passes.lift_weights(operators.kernels()(module))
        executable = tvm.compile(module, target=target, relax_pipeline=lower())
    return Compiled(executable, weights, "".join(source))


@contextlib.contextmanager
def _source() -> Iterator[list[str]]:
    """Collects the source of kernels that are built inside; the libraries get :data:`PLACEHOLDER` in its place."""
    import tvm_ffi

    collected: list[str] = []

    def collect(code: str, _target: Any) -> str:
        collected.append(_NUMBERED.sub("p", str(code)))
        return PLACEHOLDER

    # With a GPU in this host, TVM would compile the placeholder at once, for it alone.
    before = os.environ.get("TVM_COMPILE_FORCE_FALLBACK")
    os.environ["TVM_COMPILE_FORCE_FALLBACK"] = "1"
    tvm_ffi.register_global_func("tvm_callback_cuda_postproc", collect, override=True)
    try:
        yield collected
    finally:
        tvm_ffi.remove_global_func("tvm_callback_cuda_postproc")
        if before is None:
            del os.environ["TVM_COMPILE_FORCE_FALLBACK"]
        else:
            os.environ["TVM_COMPILE_FORCE_FALLBACK"] = before
