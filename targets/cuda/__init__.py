"""GPUs of NVIDIA in x86-64 hosts, through TVM."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from targets.cuda.device import CUDADevice
    from targets.cuda.host import CUDAHost


class CUDA:
    """A :class:`targets.base.Target` and :class:`targets.base.HardwareTarget`."""

    name: ClassVar[str] = "cuda"
    description: ClassVar[str] = "NVIDIA GPUs in x86-64 hosts (compute capability 7.5 and newer), through TVM"

    def lacking(self) -> str:
        from targets.cuda.device import here

        return here()

    def host(self) -> CUDAHost:
        from targets.cuda.host import CUDAHost

        return CUDAHost()

    def device(self) -> CUDADevice:
        from targets.cuda.device import CUDADevice

        return CUDADevice()
