"""From what a person asks for to signed bundles that can be pushed: sources, builds, archives."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from controller.events import Event, Listener
from controller.inventory import Device
from targets.base import FleetError, Option, SimulatedTarget, SourceModel, find
from targets.blobs import BlobDir
from targets.bundle import Manifest, bundle_id, canonical
from targets.keys import Signature

if TYPE_CHECKING:
    from controller.build import Built
    from controller.fleet import Fleet
    from controller.options import DeployOptions, ProfileOptions

#: How long builds that were told to stop may take to do so.
_STOP_PATIENCE = 10.0


@dataclass(frozen=True, slots=True)
class Want:
    """One build that is asked for; equal ones are built once. ``options`` are sorted pairs."""

    model: str
    target: str
    weights: str = ""
    options: tuple[tuple[str, Option], ...] = ()


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle on this machine, ready to be sent."""

    id: str
    manifest: Manifest
    manifest_bytes: bytes
    blobs: BlobDir
    signature: Signature | None


@dataclass(frozen=True, slots=True)
class Job:
    """What one device is to get."""

    want: Want
    slot: str
    threads: int


def jobs_for(
    fleet: Fleet,
    model: str | None,
    device: Device,
    *,
    weights: str = "",
    options: Mapping[str, Option],
    slot: str = "default",
    threads: int = 0,
) -> list[Job]:
    """The model given, or those that the inventory assigns; options given here are on top of the inventory's."""
    if model is not None:
        return [Job(_want_for(fleet, model, device, weights, options), slot, threads or device.threads)]
    return [
        Job(
            _want_for(fleet, a.model, device, weights or a.weights, {**a.options, **options}),
            a.slot,
            threads or a.threads or device.threads,
        )
        for a in fleet.inventory.assigned(device)
    ]


def is_archive(model: str) -> bool:
    return Path(model).suffix == ".fleet"


async def prepare(
    fleet: Fleet, wants: Sequence[Want], *, jobs: int = 0, scheduler: str = ""
) -> dict[Want, Bundle | FleetError]:
    """Build or read each distinct want, in threads. What cannot be had has its error instead."""
    loop = asyncio.get_running_loop()
    stop = threading.Event()

    def tell(event: Event) -> None:
        loop.call_soon_threadsafe(fleet.listener, event)

    work = asyncio.ensure_future(
        asyncio.to_thread(_prepare, fleet, list(dict.fromkeys(wants)), jobs, scheduler, tell, stop)
    )
    try:
        return await asyncio.shield(work)
    except asyncio.CancelledError:
        stop.set()
        await asyncio.wait([work], timeout=_STOP_PATIENCE)
        raise


async def jobs_with_bundles(
    fleet: Fleet, model: str | None, selection: Sequence[Device], options: DeployOptions | ProfileOptions
) -> tuple[dict[str, list[Job]], dict[Want, Bundle | FleetError]]:
    """Each device's jobs by its name, and what was built or read for all of them.

    Raises :class:`FleetError` when one model was asked for and no device can get it: that is one answer, not one per
    device.
    """
    jobs = {
        device.name: jobs_for(
            fleet,
            model,
            device,
            weights=options.weights,
            options=options.options,
            slot=options.slot,
            threads=options.threads,
        )
        for device in selection
    }
    wants = [job.want for found in jobs.values() for job in found]
    bundles = await prepare(fleet, wants, jobs=options.jobs, scheduler=options.scheduler)
    errors = [bundle for bundle in bundles.values() if isinstance(bundle, FleetError)]
    if model is not None and errors and len(errors) == len(bundles):
        raise errors[0]
    return jobs, bundles


def build(
    fleet: Fleet,
    model: str,
    targets: Sequence[str],
    *,
    weights: str,
    options: Mapping[str, Option],
    jobs: int,
    scheduler: str,
    simulated: Sequence[str] = (),
) -> list[Built]:
    """See `Fleet.build`."""
    from controller.build import BuildRequest
    from controller.build import build as build_all

    if is_archive(_file(fleet, model)):
        raise FleetError(f"{model} is built already", code="usage", hint=f"deploy it: `fleet deploy {model}`")
    plain = [_want(fleet, model, target, weights, options) for target in targets]
    wants = [_simulated(want) if want.target in simulated else want for want in plain]
    network = source(fleet, wants[0]) if wants else None
    requests = [
        BuildRequest(model=network, target=want.target, options=dict(want.options)) for want in wants if network
    ]
    return build_all(requests, home=fleet.home, jobs=jobs, scheduler=scheduler, listener=fleet.listener)


def _prepare(
    fleet: Fleet, wants: Sequence[Want], jobs: int, scheduler: str, listener: Listener, stop: threading.Event
) -> dict[Want, Bundle | FleetError]:
    from controller.build import BuildRequest
    from controller.build import build as build_all

    found: dict[Want, Bundle | FleetError] = {}
    requests: list[tuple[Want, BuildRequest]] = []
    for want in wants:
        try:
            if is_archive(file := _file(fleet, want.model)):
                found[want] = read(fleet, file)
            else:
                network = source(fleet, want)
                requests.append((want, BuildRequest(model=network, target=want.target, options=dict(want.options))))
        except FleetError as error:
            found[want] = error
    if requests:
        built = build_all(
            [request for _, request in requests],
            home=fleet.home,
            jobs=jobs,
            scheduler=scheduler,
            listener=listener,
            stop=stop,
        )
        keys = fleet.keys
        for (want, _), one in zip(requests, built, strict=True):
            if one.error is not None or one.manifest is None:
                found[want] = one.error or FleetError(f"{want.model} was not built")
            else:
                found[want] = Bundle(one.id, one.manifest, one.manifest_bytes, one.blobs, keys.sign(one.id))
    return found


def read(fleet: Fleet, path: str) -> Bundle:
    """A ``.fleet`` file. Its own signature goes with it: this controller does not vouch for what it did not build.

    Raises BundleError.
    """
    from targets.archive import read_archive

    blobs = BlobDir(fleet.home.cache / "archives")
    manifest, signature = read_archive(Path(path), blobs)
    data = canonical(manifest)
    return Bundle(bundle_id(data), manifest, data, blobs, signature)


def _want_for(fleet: Fleet, model: str, device: Device, weights: str, options: Mapping[str, Option]) -> Want:
    want = _want(fleet, model, device.target, weights, options, device.options)
    return _simulated(want) if device.simulated else want


def _simulated(want: Want) -> Want:
    """The same for a simulated board, which is not on the machine of the board that it stands for."""
    target = find(want.target) if want.target else None
    if not isinstance(target, SimulatedTarget):
        return want
    return replace(want, options=tuple(sorted(target.simulated_options(dict(want.options)).items())))


def _want(
    fleet: Fleet, model: str, target: str, weights: str, options: Mapping[str, Option], below: Mapping[str, Option] = {}
) -> Want:
    """``options`` come before the inventory's of the model, and those before the ones ``below``, of a device."""
    entry = fleet.inventory.models.get(model)
    merged = {**below, **(entry.options if entry else {}), **options}
    return Want(
        model=model,
        # An archive is what it is, whatever device it is for.
        target="" if is_archive(_file(fleet, model)) else target,
        weights=weights or (entry.weights if entry else ""),
        options=tuple(sorted(merged.items())),
    )


def _file(fleet: Fleet, model: str) -> str:
    entry = fleet.inventory.models.get(model)
    return entry.file if entry and entry.file else model


def source(fleet: Fleet, want: Want) -> SourceModel:
    """The network itself. Raises ModelError, FleetError ``unknown-model``."""
    from controller.sources import resolve

    network = resolve(_file(fleet, want.model), weights=want.weights, home=fleet.home)
    entry = fleet.inventory.models.get(want.model)
    if entry is None:
        return network
    return msgspec.structs.replace(
        network,
        name=entry.name,
        preprocess=entry.preprocess or network.preprocess,
        postprocess=entry.postprocess or network.postprocess,
        labels=entry.labels or network.labels,
    )
