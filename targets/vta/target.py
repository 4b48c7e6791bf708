"""Targets whose accelerator is VTA: the simulator by itself here, boards in `targets.pynq`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from targets.base import Option
    from targets.vta.device import VTADevice
    from targets.vta.host import VTAHost


class VTATarget:
    """A :class:`targets.base.SimulatedTarget`; with a ``device`` of its own, a :class:`targets.base.Target`.

    ``board`` is the name of a :class:`targets.vta.boards.Board`.
    """

    name: ClassVar[str]
    description: ClassVar[str]
    board: ClassVar[str]
    only_simulated: ClassVar[bool] = False

    def host(self) -> VTAHost:
        from targets.vta import boards
        from targets.vta.host import VTAHost

        return VTAHost(boards.find(self.board))

    def simulated_options(self, options: Mapping[str, Option]) -> dict[str, Option]:
        """The network's CPU part is built for this machine, and nothing is programmed."""
        from targets.cpu.machine import MACHINES, machine

        here = str(options.get("machine", "") or machine())
        found = {name: value for name, value in options.items() if not name.startswith("bitstream")}
        known = MACHINES.get(here)
        if known is not None and options.get("mcpu", "host") not in ("host", *known.processors, *known.aliases):
            # The processor of the real board.
            del found["mcpu"]
        return {**found, "machine": here}

    def simulated_device(self) -> VTADevice:
        from targets.vta import boards
        from targets.vta.device import VTADevice, simulator

        return VTADevice(boards.find(self.board), simulator)


class VTASim(VTATarget):
    name = "vta-sim"
    description = "the VTA accelerator, simulated, beside this machine's processor"
    board = "sim"
    only_simulated = True

    def device(self) -> VTADevice:
        return self.simulated_device()
