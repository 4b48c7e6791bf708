"""From operators to kernels of a GPU: TVM's pipeline with schedules for products, reductions and everything else."""

from __future__ import annotations

from typing import Any

import tvm
from tvm.relax.backend.gpu_generic import pipeline as generic
from tvm.s_tir import dlight

from targets.cpu.passes import loops


def lower() -> Any:
    """The passes between Relax and the virtual machine, under the target that is current.

    A convolution becomes a product of matrices whose left one is read from the picture as it is needed (implicit
    GEMM); what follows it, element by element, becomes part of its kernel.
    """

    @tvm.transform.module_pass(opt_level=0)  # type: ignore[untyped-decorator]
    def pipeline(module: Any, _context: Any) -> Any:
        target = tvm.target.Target.current()
        passes = [
            *generic.library_dispatch_passes(target),
            *loops(),
            dlight.ApplyDefaultSchedule(
                dlight.gpu.Matmul(),
                dlight.gpu.GEMV(),
                dlight.gpu.Reduction(),
                dlight.gpu.GeneralReduction(),
                dlight.gpu.Fallback(),
            ),
            *generic.dataflow_lower_passes(target),
            *generic.finalize_passes(target),
        ]
        return tvm.ir.transform.Sequential(passes)(module)

    return pipeline
