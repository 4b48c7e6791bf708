"""Tuning a network's kernels on a device: what beats the default there goes into a file that builds look into."""

from __future__ import annotations

import asyncio
import datetime
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from controller import sim, tracker
from controller.carriers import current
from controller.events import DeviceChanged, Message, Progress
from controller.inventory import Device
from controller.options import TuneOptions
from controller.prepare import jobs_for, source
from controller.reports import TunedLayer, TuneReport
from controller.tune_process import Run, Start, TuneProcess
from controller.tuning_plan import Measured, Trial, TuningPlan, Verdict
from controller.tuning_session import TuningSession
from targets.base import FleetError, Option, find
from targets.files import make_directory
from targets.tuning import Endpoint, TunableLayer, TuningHalf

if TYPE_CHECKING:
    from controller.fleet import Fleet


async def tune(fleet: Fleet, model: str, device: Device, options: TuneOptions) -> TuneReport:
    """See `Fleet.tune`."""
    want = jobs_for(fleet, model, device, weights=options.weights, options=options.options)[0].want
    host = find(device.target).host()
    if not isinstance(host, TuningHalf):
        raise FleetError(f"target '{device.target}' has no kernels to choose from", code="no-tuning")
    # Every race is against the default, whatever was found before.
    chosen = {name: value for name, value in want.options if name != "tuned"}
    name = host.tuning_file(chosen)
    path = _file(options.output) or fleet.home.tuned / name
    network = await asyncio.to_thread(source, fleet, want)
    work = fleet.home.cache / "work"
    make_directory(work)
    with tempfile.TemporaryDirectory(dir=work) as workdir:
        async with TuneProcess(Path(workdir), fleet.home.cache / "zig") as process:
            fleet.listener(Message(device.name, f"looking for what there is to choose in {network.name}"))
            ready = await process.start(Start(network, device.target, chosen, workdir))
            saved = fleet.home.tuned / "sessions" / f"{Path(name).stem}-{quote(device.name, safe='')}.jsonl"
            session = TuningSession(saved, ready.compiler)
            if options.fresh and not options.dry_run:
                session.forget()
            plan = TuningPlan(
                ready.layers, session.known(), trials=options.trials, seconds=options.seconds, clock=time.monotonic
            )
            if not options.dry_run:
                tuning = _Tuning(fleet, device, options, process, session, plan)
                try:
                    await tuning.run()
                finally:
                    # What is measured counts, whatever ended it.
                    today = datetime.datetime.now(datetime.timezone.utc).date().isoformat()
                    _keep(host, chosen, path, plan, device.name, today)
            return _report(device, network.name, path, plan)


class _Tuning:
    """The races of one tuning on one device."""

    def __init__(
        self,
        fleet: Fleet,
        device: Device,
        options: TuneOptions,
        process: TuneProcess,
        session: TuningSession,
        plan: TuningPlan,
    ) -> None:
        self._fleet, self._device, self._options = fleet, device, options
        self._process, self._session, self._plan = process, session, plan

    async def run(self) -> None:
        """Race until there is nothing more to measure, or the budget is spent.

        Raises FleetError for what concerns all candidates, such as a device that went away.
        """
        listener, name = self._fleet.listener, self._device.name
        if self._plan.next() is None:
            return
        at = await endpoint(self._fleet, self._device)
        async with self._fleet.session(self._device, lease=True, lease_wait=self._options.lease_wait) as session:
            target = session.connection.welcome.target
            if target != self._device.target:
                raise FleetError(
                    f"{name} is of another kind than the inventory's '{self._device.target}'", code="wrong-target"
                )
            way = f"the tracker at {at.host}:{at.port}" if at.tracker else f"{at.host}:{at.port}"
            listener(Message(name, f"races through {way}"))
            listener(DeviceChanged(name, "benching"))
            try:
                while (trial := self._plan.next()) is not None:
                    self._tell(trial)
                    race = await self._process.race(Run(trial.layer, trial.candidate, trial.rounds, at))
                    measured = self._plan.record(trial, race)
                    self._session.add(measured)
                    self._comment(trial, measured)
            finally:
                listener(DeviceChanged(name, "idle"))

    def _tell(self, trial: Trial) -> None:
        plan = self._plan
        layer, verdict = plan.layers[trial.layer], plan.verdict(trial.layer)
        number = plan.order.index(trial.layer) + 1
        best = f"best {verdict.best.ratio:.2f} of the default" if verdict.best else "the default leads"
        words = [
            f"layer {number} of {len(plan.layers)}, {layer.words}",
            f"{'confirming' if trial.confirming else 'trial'} {trial.candidate} of {len(layer.candidates) - 1}",
            best,
        ]
        if plan.left is not None:
            words.append(f"{_minutes(plan.left)} left")
        self._fleet.listener(
            Progress(self._device.name, "tune", plan.share, ": ".join((words[0], ", ".join(words[1:]))))
        )

    def _comment(self, trial: Trial, measured: Measured) -> None:
        layer = self._plan.layers[trial.layer]
        words = layer.candidates[trial.candidate].words
        if measured.error:
            text = f"{layer.words}: {words}: {measured.error}"
            self._fleet.listener(Message(self._device.name, text, "warning"))
        elif trial.confirming:
            found = "beats the default" if measured.faster else "does not beat the default after all"
            text = f"{layer.words}: {words} {found}: {measured.ms:.3f} to {measured.default_ms:.3f} ms"
            self._fleet.listener(Message(self._device.name, text))


async def endpoint(fleet: Fleet, device: Device) -> Endpoint:
    """Where the device's TVM RPC listener is reached: through its tracker, if it has one, or directly.

    A tracker hands out any device of a key: where several share one, this device must be reached directly.
    Raises FleetError ``unreachable``, ``no-rpc``, ``shared-key``.
    """
    device = current(device)
    key = device.rpc_key or device.target
    at = device.tracker or next(
        (board.tracker for board in sim.status(fleet.home) if device.simulated and board.name == device.name), ""
    )
    if at:
        host, port = _host_and_port(at)
        registered, _ = await asyncio.to_thread(tracker.summary, host, port)
        sharing = sum(one.key == key for one in registered)
        if sharing == 1:
            return Endpoint(host, port, key, tracker=True)
        if not device.rpc:
            what = "several devices are" if sharing else "no device is"
            raise FleetError(
                f"{what} registered as '{key}' with the tracker at {at}",
                code="shared-key" if sharing else "unreachable",
                hint="start each agent with a --rpc-key of its own, and name it as rpc_key in the inventory",
            )
        text = f"{sharing or 'no'} devices are registered as '{key}' with the tracker at {at}: going there directly"
        fleet.listener(Message(device.name, text, "warning"))
    if not device.rpc:
        raise FleetError(
            f"{device.name} has no TVM RPC listener that the inventory knows",
            code="no-rpc",
            hint="add rpc: HOST:PORT, or tracker: and rpc_key:, to the device in the inventory",
        )
    return Endpoint(*_host_and_port(device.rpc), key)


def _file(output: str) -> Path | None:
    return Path(output).expanduser() if output else None


def _host_and_port(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    return host.strip("[]"), int(port)


def _keep(host: TuningHalf, options: dict[str, Option], path: Path, plan: TuningPlan, device: str, date: str) -> None:
    found = plan.findings(device, date)
    if any(one.choice for one in found) or (found and path.exists()):
        host.keep(options, path, found)


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"


# --- The report ---------------------------------------------------------------------------------


def _report(device: Device, model: str, path: Path, plan: TuningPlan) -> TuneReport:
    total = sum(layer.cost for layer in plan.layers) or 1.0
    return TuneReport(
        device=device.name,
        target=device.target,
        simulated=device.simulated,
        model=model,
        file=str(path),
        trials=plan.used,
        seconds=plan.elapsed,
        layers=[_layer(plan.layers[index], plan.verdict(index), total) for index in plan.order],
    )


def _layer(layer: TunableLayer, verdict: Verdict, total: float) -> TunedLayer:
    best = verdict.best
    return TunedLayer(
        layer=layer.words,
        signature=layer.signature,
        count=layer.count,
        share=layer.cost / total,
        state=verdict.state,
        default=layer.candidates[0].words,
        best=verdict.words_of(best.choice) if best else "",
        default_ms=verdict.default_ms,
        ms=best.ms if best else None,
        measured=verdict.measured,
        candidates=[candidate.words for candidate in layer.candidates],
        failures=[f"{verdict.words_of(one.choice)}: {one.error}" for one in verdict.failures],
    )
