"""NVIDIA Jetson boards: torch programs compiled on the board by one of several engines, and TVM's own kernels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from targets.base import Engine

if TYPE_CHECKING:
    from targets.base import Link, Option
    from targets.jetson.device import JetsonDevice
    from targets.jetson.host import JetsonHost


def _engine(name: str, precision: str, *, baseline: bool = False) -> Engine:
    return Engine(name, precision, {"engine": name, "precision": precision}, baseline)


class Jetson:
    """A :class:`targets.base.Target` and :class:`targets.base.SimulatedTarget`, reached over SSH."""

    name: ClassVar[str] = "jetson"
    description: ClassVar[str] = "NVIDIA Jetson (Xavier, Orin, Thor): Torch-TensorRT and other engines on the board"
    only_simulated: ClassVar[bool] = False
    link: ClassVar[Link] = "ssh"
    engines: ClassVar[tuple[Engine, ...]] = (
        _engine("eager", "fp32", baseline=True),
        _engine("eager", "fp16"),
        _engine("torchscript", "fp32"),
        _engine("torchscript", "fp16"),
        _engine("inductor", "fp32"),
        _engine("inductor", "fp16"),
        _engine("torch-tensorrt", "fp32"),
        _engine("torch-tensorrt", "fp16"),
        _engine("tvm", "fp32"),
    )

    def host(self) -> JetsonHost:
        from targets.jetson.host import JetsonHost

        return JetsonHost()

    def device(self) -> JetsonDevice:
        from targets.jetson.device import JetsonDevice

        return JetsonDevice()

    def simulated_options(self, options: Mapping[str, Option]) -> dict[str, Option]:
        """The same program, which torch itself runs: a simulated board has no TensorRT, and builds nothing for long."""
        return {"engine": "eager", **options}

    def simulated_device(self) -> JetsonDevice:
        from targets.jetson.device import JetsonDevice

        return JetsonDevice(simulated=True)
