"""Huawei Ascend boards: ONNX compiled on the board by ATC, run and measured by ais_bench."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from targets.ascend.device import AscendDevice
    from targets.ascend.host import AscendHost
    from targets.base import Link, Option


class Ascend:
    """A :class:`targets.base.Target` and :class:`targets.base.PreparedTarget`, reached over SSH."""

    name: ClassVar[str] = "ascend"
    description: ClassVar[str] = "Huawei Ascend 310, 310P, 310B and 910: ATC and ais_bench"
    only_simulated: ClassVar[bool] = False
    link: ClassVar[Link] = "ssh"

    def host(self) -> AscendHost:
        from targets.ascend.host import AscendHost

        return AscendHost()

    def device(self) -> AscendDevice:
        from targets.ascend.device import AscendDevice

        return AscendDevice()

    def simulated_options(self, options: Mapping[str, Option]) -> dict[str, Option]:
        """The same network: the simulated tools take what the real ones take."""
        return dict(options)

    def simulated_device(self) -> AscendDevice:
        return self.device()

    def prepare(self, folder: Path) -> dict[str, str]:
        """Install the simulated toolkit below ``folder``: the same driver code finds it as it finds the real one."""
        from targets.ascend.sim.install import install

        return install(folder)
