"""Running a release on pictures: prepared here as its manifest says, computed on the device, read here."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from agent import protocol as p
from controller.deploy import explained
from controller.inventory import Device
from controller.options import RunOptions
from controller.reports import Answer, Box
from targets.base import BundleError, FleetError, Postprocess, TensorSpec
from targets.bundle import Manifest, bundle_id, parse_manifest
from targets.defaults import WORKER_CALL_DEADLINE, WORKER_START_DEADLINE

if TYPE_CHECKING:
    from PIL import Image

    from controller.fleet import Fleet
    from controller.session import Session
    from targets.base import Array


async def run(
    fleet: Fleet, model: str | None, images: Sequence[str | Path], selection: Sequence[Device], options: RunOptions
) -> list[Answer]:
    """See `Fleet.run`."""
    from controller import pictures

    loaded = [(str(path), await asyncio.to_thread(pictures.load, path)) for path in images]
    output = _Output(options.output, many=len(images) * len(selection) > 1, devices=len(selection) > 1)

    async def act(device: Device) -> list[Answer]:
        try:
            async with fleet.session(device) as session:
                return await _device(session, model, loaded, options, output)
        except FleetError as error:
            return [
                Answer(device=device.name, image=name, simulated=device.simulated, error=explained(error))
                for name, _ in loaded
            ]

    found = await asyncio.gather(*(act(device) for device in selection))
    return [answer for answers in found for answer in answers]


async def _device(
    session: Session,
    model: str | None,
    images: Sequence[tuple[str, Image.Image]],
    options: RunOptions,
    output: _Output,
) -> list[Answer]:
    release = await _release(session, model, options.slot)
    _, data = await session.connection.exchange(p.GetManifest(bundle=release.bundle), p.Done)
    if bundle_id(data) != release.bundle:
        raise BundleError(f"{session.device.name} sent another manifest than that of its release")
    manifest = parse_manifest(data)
    batch = _batch(manifest)
    answers: list[Answer] = []
    for start in range(0, len(images), batch):
        part = images[start : start + batch]
        start_time = time.monotonic()
        inputs = await asyncio.to_thread(_prepared, manifest, [image for _, image in part], batch)
        outputs, seconds = await _infer(session, manifest, inputs, release.bundle, options)
        for index, (name, image) in enumerate(part):
            answer = Answer(
                device=session.device.name,
                image=name,
                simulated=session.connection.welcome.simulated,
                model=manifest.model.name,
                bundle=release.bundle,
                seconds=seconds if seconds > 0 else time.monotonic() - start_time,
            )
            try:
                single = [array[index : index + 1] if batch > 1 else array for array in outputs]
                await asyncio.to_thread(_read, answer, manifest, single, image, options, output)
            except FleetError as error:
                answer.error = explained(error)
            answers.append(answer)
    return answers


async def _release(session: Session, model: str | None, slot: str) -> p.ReleaseInfo:
    status = await session.connection.request(p.GetStatus(), p.Status)
    # The slot asked for first, then any other that has the model.
    for release in sorted(status.releases, key=lambda release: release.slot != slot):
        if release.model == model or (model is None and release.slot == slot):
            return release
    what = f"'{model}'" if model else f"a release in slot '{slot}'"
    has = ", ".join(sorted(release.model for release in status.releases))
    raise FleetError(
        f"{session.device.name} does not have {what}" + (f"; it has {has}" if has else ""),
        code="not-deployed",
        hint=f"deploy it first: `fleet deploy {model or 'MODEL'} --device {session.device.name}`",
    )


def _batch(manifest: Manifest) -> int:
    if len(manifest.inputs) != 1 or not manifest.inputs[0].shape:
        raise FleetError(f"'{manifest.model.name}' does not take a picture as its one input", code="no-picture-model")
    if manifest.model.preprocess is None:
        raise FleetError(
            f"nothing says how '{manifest.model.name}' wants its pictures",
            code="no-preprocess",
            hint="give `preprocess` for it under `models:` in the inventory, and deploy it again",
        )
    return max(1, manifest.inputs[0].shape[0])


def _prepared(manifest: Manifest, images: Sequence[Image.Image], batch: int) -> Array:
    """The input tensor; the last batch is filled up with its last picture."""
    from controller import pictures

    assert manifest.model.preprocess is not None
    arrays = [pictures.prepare(image, manifest.model.preprocess) for image in images]
    arrays += [arrays[-1]] * (batch - len(arrays))
    spec = manifest.inputs[0]
    joined = np.concatenate(arrays).astype(_dtype(spec))
    if joined.shape != spec.shape:
        raise FleetError(
            f"prepared pictures have the shape {joined.shape}, '{manifest.model.name}' takes {spec.shape}",
            code="bad-preprocess",
            hint="correct `preprocess` for it under `models:` in the inventory",
        )
    return np.ascontiguousarray(joined)


async def _infer(
    session: Session, manifest: Manifest, tensor: Array, bundle: str, options: RunOptions
) -> tuple[list[Array], float]:
    asked = p.Infer(
        inputs=[manifest.inputs[0]],
        bundle=bundle,
        slot=options.slot,
        threads=options.threads or session.device.threads,
    )
    answer, payload = await session.connection.exchange(
        asked, p.Inferred, tensor.tobytes(), timeout=WORKER_START_DEADLINE + WORKER_CALL_DEADLINE
    )
    if tuple(answer.outputs) != manifest.outputs:
        raise BundleError(f"{session.device.name} gave other outputs than the manifest of {bundle[:12]} says")
    arrays: list[Array] = []
    offset = 0
    for spec in manifest.outputs:
        dtype = _dtype(spec)
        count = math.prod(spec.shape)
        if offset + count * dtype.itemsize > len(payload):
            raise BundleError(f"{session.device.name} sent less than its outputs")
        arrays.append(np.frombuffer(payload, dtype, count, offset).reshape(spec.shape))
        offset += count * dtype.itemsize
    return arrays, answer.seconds


def _dtype(spec: TensorSpec) -> np.dtype[Any]:
    try:
        return np.dtype(spec.dtype)
    except TypeError:
        raise FleetError(
            f"'{spec.name}' has the type {spec.dtype}, which pictures cannot have", code="bad-dtype"
        ) from None


def _read(
    answer: Answer,
    manifest: Manifest,
    outputs: Sequence[Array],
    image: Image.Image,
    options: RunOptions,
    output: _Output,
) -> None:
    from controller import pictures

    model = manifest.model
    # What does not say otherwise is a classifier.
    found = pictures.interpret(
        outputs,
        model.postprocess or Postprocess("classify"),
        model.labels,
        image.size,
        top=options.top,
        threshold=options.threshold,
    )
    boxes = [item for item in found if isinstance(item, Box)]
    if model.postprocess is not None and model.postprocess.kind == "ssd":
        answer.boxes = boxes
    else:
        answer.top = [item for item in found if not isinstance(item, Box)]
    if options.output:
        if answer.boxes is None:
            raise FleetError(f"'{model.name}' gives labels, there are no boxes to draw", code="usage")
        path = output.path(answer)
        pictures.save(pictures.draw(image, boxes), path)
        answer.output = str(path)


class _Output:
    """Where the pictures with boxes go: one file, or a folder when there are several."""

    def __init__(self, given: str, *, many: bool, devices: bool) -> None:
        self._given, self._devices = Path(given), devices
        self._folder = many or self._given.is_dir()
        self._taken: set[Path] = set()

    def path(self, answer: Answer) -> Path:
        if not self._folder:
            return self._given
        stem = Path(answer.image).stem + (f".{answer.device}" if self._devices else "")
        path = self._given / f"{stem}.png"
        number = 2
        while path in self._taken:
            path, number = self._given / f"{stem}-{number}.png", number + 1
        self._taken.add(path)
        return path
