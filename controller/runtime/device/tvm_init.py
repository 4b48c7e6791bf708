"""TVM on a board: what runs compiled networks and serves RPC, and nothing that compiles.

This stands in for the ``__init__`` of the whole TVM, which imports its compiler's Python; what is here has the same
names and does the same.
"""

from tvm import base, error, runtime
from tvm.libinfo import __version__
from tvm.runtime import (
    DataType,
    DataTypeCode,
    Device,
    Object,
    Tensor,
    cpu,
    cuda,
    device,
    ext_dev,
    metal,
    opencl,
    rocm,
    vpi,
    vulkan,
)
from tvm_ffi import get_global_func, register_global_func, register_object

__all__ = [
    "DataType",
    "DataTypeCode",
    "Device",
    "Object",
    "Tensor",
    "__version__",
    "base",
    "cpu",
    "cuda",
    "device",
    "error",
    "ext_dev",
    "get_global_func",
    "metal",
    "opencl",
    "register_global_func",
    "register_object",
    "rocm",
    "runtime",
    "vpi",
    "vulkan",
]
