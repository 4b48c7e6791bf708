"""The controller as a library: everything the command line can do.

>>> fleet = Fleet()
>>> boards = fleet.select(labels={"room": "lab"})
>>> reports = asyncio.run(fleet.deploy("shapes-classifier", boards, DeployOptions(canary=1)))
"""

from __future__ import annotations

import getpass
import os
import socket
from collections.abc import AsyncIterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from controller.events import Listener, ignore
from controller.home import Home
from controller.inventory import Device, Inventory
from controller.options import BenchOptions, DeployOptions, EvalOptions, ProfileOptions, RunOptions, TuneOptions
from targets.base import Option

if TYPE_CHECKING:
    from agent.protocol import RunResult
    from controller.build import Built
    from controller.connection import OnEvent
    from controller.reports import (
        Answer,
        DeployReport,
        DeviceReport,
        EngineComparison,
        EvalReport,
        ProfileReport,
        RunReport,
        StatusReport,
        TuneReport,
    )
    from controller.session import Session
    from targets.keys import Keys

__all__ = [
    "BenchOptions",
    "DeployOptions",
    "Device",
    "EvalOptions",
    "Fleet",
    "ProfileOptions",
    "RunOptions",
    "TuneOptions",
]


class Fleet:
    """An inventory, the simulated boards of this machine, and what can be done with them.

    Operations on several devices never stop because one of them fails: its report says so. They raise
    :class:`targets.base.FleetError` only for what concerns them all, such as a model that does not build.
    Cancelling an operation cancels what it started on the devices and gives their leases back.
    """

    def __init__(
        self,
        inventory: Path | None = None,
        *,
        home: Path | Home | None = None,
        listener: Listener = ignore,
        holder: str = "",
    ) -> None:
        """``inventory`` must exist if it is given. ``holder`` names this controller in leases."""
        from controller import sim

        self.home = home if isinstance(home, Home) else Home.find(home)
        self.listener = listener
        self.holder = holder or f"{_user()}@{socket.gethostname()}:{os.getpid()}"
        self.inventory = Inventory.load(self.home.inventory(inventory), must_exist=inventory is not None).merged(
            sim.devices(self.home)
        )

    @cached_property
    def keys(self) -> Keys:
        """This controller's keys; made at the first use."""
        from targets.keys import Keys

        return Keys(self.home.keys)

    def select(
        self,
        devices: Sequence[str] = (),
        targets: Sequence[str] = (),
        labels: Mapping[str, str] | None = None,
        everything: bool = False,
    ) -> list[Device]:
        """The devices that match every kind of condition given, in the inventory's order.

        Raises FleetError ``unknown-device``, ``unknown-target``, ``unknown-label``, or ``nothing-matched``.
        """
        return self.inventory.select(devices, targets, labels or {}, everything)

    def session(
        self, device: Device, *, lease: bool = False, lease_wait: float = 0.0, on_event: OnEvent | None = None
    ) -> Session:
        """Use a device: ``async with fleet.session(device, lease=True) as session``."""
        from controller.session import Session

        return Session(
            device,
            self.keys,
            holder=self.holder,
            lease=lease,
            lease_wait=lease_wait,
            listener=self.listener,
            on_event=on_event,
        )

    # --- Looking --------------------------------------------------------------------------------

    async def devices(self, selection: Sequence[Device]) -> list[DeviceReport]:
        """One line per device; what cannot be reached says why in ``reason``."""
        from controller.survey import devices

        return await devices(self, selection)

    async def status(self, selection: Sequence[Device]) -> list[StatusReport]:
        """Everything each device tells about itself."""
        from controller.survey import status

        return await status(self, selection)

    def logs(
        self, selection: Sequence[Device], lines: int = 100, follow: bool = False
    ) -> AsyncIterator[tuple[str, str]]:
        """``(device, line)`` pairs: the last ``lines`` of each device; with ``follow`` new ones until cancelled."""
        from controller.watch import logs

        return logs(self, selection, lines, follow)

    async def watch(self, selection: Sequence[Device]) -> None:
        """Keep listening to the devices, reconnecting for ever, and tell the listener; runs until cancelled."""
        from controller.watch import watch

        await watch(self, selection)

    # --- Building and deploying -----------------------------------------------------------------

    def build(
        self,
        model: str,
        targets: Sequence[str],
        *,
        weights: str = "",
        options: Mapping[str, Option] | None = None,
        jobs: int = 0,
        scheduler: str = "",
        simulated: Sequence[str] = (),
    ) -> list[Built]:
        """Compile a model (its name in the inventory or the zoo, or a file) for each target, through the cache.

        For a target in ``simulated`` it is built for simulated boards of this machine. A build that fails has its
        ``error`` set. Raises FleetError when the model itself cannot be read.
        """
        from controller.prepare import build

        return build(
            self,
            model,
            targets,
            weights=weights,
            options=options or {},
            jobs=jobs,
            scheduler=scheduler,
            simulated=simulated,
        )

    async def deploy(
        self, model: str | None, selection: Sequence[Device], options: DeployOptions | None = None
    ) -> list[DeployReport]:
        """Build, push, prove and activate a model (None: what the inventory assigns) or a ``.fleet`` file."""
        from controller.deploy import deploy

        return await deploy(self, model, selection, options or DeployOptions())

    async def rollback(self, selection: Sequence[Device], slot: str = "default") -> list[DeployReport]:
        """Make the release before the active one active again."""
        from controller.deploy import rollback

        return await rollback(self, selection, slot)

    # --- Using ----------------------------------------------------------------------------------

    async def bench(
        self, model: str | None, selection: Sequence[Device], options: BenchOptions | None = None
    ) -> list[RunResult | RunReport]:
        """Measure a model, or what is assigned, or the active release; one device of a host at a time.

        Results are stored before the devices forget them. A device that could not be measured gives a
        RunReport with ``failed`` set. Results of earlier, interrupted measurements are collected on the way.
        """
        from controller.measure import bench

        return await bench(self, model, selection, options or BenchOptions())

    async def compare_engines(
        self, model: str, selection: Sequence[Device], options: BenchOptions
    ) -> tuple[list[RunResult | RunReport], list[EngineComparison]]:
        """Measure a model with each of ``options.engines`` of its board's target, against the target's baseline.

        All runs, as `bench` gives them, and one comparison for each device and batch; an engine that is not there
        is in it, with the reason. Raises FleetError ``unknown-engine``.
        """
        from controller.engines import compare_engines

        return await compare_engines(self, model, selection, options)

    async def profile(
        self, model: str | None, selection: Sequence[Device], options: ProfileOptions | None = None
    ) -> list[ProfileReport]:
        """Time each operator of a model, of what is assigned, or of the active release; as `bench` chooses them.

        A device that could not be profiled, such as one whose target has no profile, says why in ``error``.
        """
        from controller.profile import profile

        return await profile(self, model, selection, options or ProfileOptions())

    async def tune(self, model: str, device: Device, options: TuneOptions | None = None) -> TuneReport:
        """Race the kernels of a model against the defaults on a device, and keep those that win for later builds.

        It goes on where it ended before. Cancelling it keeps what was measured. Raises FleetError for a model that
        does not compile, a target without choices, a device that cannot be reached, or goes away.
        """
        from controller.tune import tune

        return await tune(self, model, device, options or TuneOptions())

    async def run(
        self,
        model: str | None,
        images: Sequence[str | Path],
        selection: Sequence[Device],
        options: RunOptions | None = None,
    ) -> list[Answer]:
        """What the release of ``model`` (None: the slot's) on each device says to each picture.

        Raises FleetError ``bad-picture`` for a file that is not a picture, before any device is asked.
        """
        from controller.infer import run

        return await run(self, model, images, selection, options or RunOptions())

    async def eval(
        self, model: str | None, dataset: str | Path, selection: Sequence[Device], options: EvalOptions | None = None
    ) -> list[EvalReport]:
        """Accuracy of the release of ``model`` (None: the slot's) on each device: mAP, or top-1 and top-5.

        ``dataset``: a COCO file or folder, a VOC folder, or a folder of pictures for each class. It goes on where the
        same call was cut off before, and stores results. A device that could not be measured has its ``error`` set.
        Raises FleetError ``bad-dataset`` before any device is asked.
        """
        from controller.evaluation.run import evaluate

        return await evaluate(self, model, dataset, selection, options or EvalOptions())


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        # A user id without a name, as in many containers.
        return f"uid{os.getuid()}"
