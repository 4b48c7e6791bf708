"""Running a release on pictures: prepared here as its manifest says, computed on the device, read here.

Pictures are opened when they are needed, so that a folder of video frames may be longer than memory; the next batch is
prepared while a device computes, and one picture that cannot be read costs its own answer only.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from controller.deploy import explained
from controller.drawings import Drawings
from controller.events import Progress
from controller.inference import Inference
from controller.inventory import Device
from controller.options import RunOptions
from controller.reports import Answer
from targets.base import FleetError, Postprocess

if TYPE_CHECKING:
    from PIL import Image

    from controller.fleet import Fleet
    from targets.base import Array
    from targets.pictures.place import Place
    from targets.pictures.read import Listed

_STAGE = "run"


async def run(
    fleet: Fleet, model: str | None, images: Sequence[str | Path], selection: Sequence[Device], options: RunOptions
) -> list[Answer]:
    """See `Fleet.run`."""
    from targets.pictures.read import listed, shown

    pictures = _Pictures(await asyncio.to_thread(listed, images))
    drawings = Drawings(options.output, [one.path for one in pictures.listed], [device.name for device in selection])
    await asyncio.to_thread(pictures.check)
    names = [shown(one.path) for one in pictures.listed]

    async def act(device: Device) -> list[Answer]:
        answers: list[Answer] = []
        try:
            async with fleet.session(device) as session:
                inference = await Inference.of(session, model, slot=options.slot, threads=options.threads)
                await _OnDevice(fleet, inference, pictures, names, options, drawings, answers).run()
        except FleetError as error:
            answers += [
                Answer(device=device.name, image=name, simulated=device.simulated, error=explained(error))
                for name in names[len(answers) :]
            ]
        return answers

    found = await asyncio.gather(*(act(device) for device in selection))
    return [answer for answers in found for answer in answers]


class _Pictures:
    """The pictures by their numbers. Those that were opened to check them are kept as far as memory allows."""

    def __init__(self, listed: Sequence[Listed]) -> None:
        self.listed = listed
        self._kept: dict[int, Image.Image] = {}

    def check(self) -> None:
        """Open those that somebody named. Raises FleetError ``bad-picture``."""
        from targets.pictures.place import MAX_PIXELS
        from targets.pictures.read import load

        room = MAX_PIXELS
        for number, one in enumerate(self.listed):
            if one.named:
                image = load(one.path)
                room -= image.width * image.height
                if room >= 0:
                    self._kept[number] = image

    def open(self, number: int) -> Image.Image:
        from targets.pictures.read import load

        kept = self._kept.get(number)
        return load(self.listed[number].path) if kept is None else kept


@dataclass(frozen=True, slots=True)
class _Picture:
    """One of a batch: opened, and where it lies in the input; or why it is not."""

    number: int
    image: Image.Image | None = None
    place: Place | None = None
    error: str = ""


@dataclass(frozen=True, slots=True)
class _Batch:
    pictures: list[_Picture]
    inputs: list[Array] = field(default_factory=list)


@dataclass
class _OnDevice:
    """Getting one device's answers, in the order of the pictures."""

    fleet: Fleet
    inference: Inference
    pictures: _Pictures
    names: Sequence[str]
    options: RunOptions
    drawings: Drawings
    answers: list[Answer]

    async def run(self) -> None:
        from targets.pictures.prepare import batch_size

        manifest, count = self.inference.manifest, len(self.names)
        size = batch_size(manifest.inputs, manifest.model.preprocess, manifest.model.name)
        ahead = self._start(range(0, min(size, count)))
        try:
            for start in range(0, count, size):
                began = time.monotonic()
                batch = await ahead
                if start + size < count:
                    ahead = self._start(range(start + size, min(start + 2 * size, count)))
                outputs, seconds = await self.inference(batch.inputs) if batch.inputs else ([], 0.0)
                seconds = seconds if seconds > 0 else time.monotonic() - began
                self.answers += await asyncio.to_thread(self._read, batch, outputs, seconds)
                done = len(self.answers)
                name = self.inference.session.device.name
                self.fleet.listener(Progress(name, _STAGE, done / count, f"{done} of {count} pictures"))
        finally:
            ahead.cancel()
            await asyncio.gather(ahead, return_exceptions=True)

    def _start(self, numbers: range) -> asyncio.Task[_Batch]:
        return asyncio.create_task(asyncio.to_thread(self._prepare, numbers))

    def _prepare(self, numbers: range) -> _Batch:
        from targets.pictures.place import place
        from targets.pictures.prepare import batch

        preprocess = self.inference.manifest.model.preprocess
        assert preprocess is not None, "checked by batch_size"
        found: list[_Picture] = []
        for number in numbers:
            try:
                image = self.pictures.open(number)
                found.append(_Picture(number, image, place(image.size, preprocess)))
            except FleetError as error:
                found.append(_Picture(number, error=explained(error)))
        images = [one.image for one in found if one.image is not None]
        return _Batch(found, batch(images, preprocess, self.inference.manifest.inputs) if images else [])

    def _read(self, batch: _Batch, outputs: Sequence[Array], seconds: float) -> list[Answer]:
        from targets.pictures.answers import of_picture

        answers: list[Answer] = []
        row = 0
        for one in batch.pictures:
            answer = Answer(
                device=self.inference.session.device.name,
                image=self.names[one.number],
                simulated=self.inference.session.connection.welcome.simulated,
                model=self.inference.manifest.model.name,
                bundle=self.inference.bundle,
                error=one.error,
            )
            answers.append(answer)
            if one.image is None or one.place is None:
                continue
            answer.seconds = seconds
            try:
                self._interpret(answer, of_picture(outputs, row), one.number, one.image, one.place)
            except FleetError as error:
                answer.error = explained(error)
            row += 1
        return answers

    def _interpret(
        self, answer: Answer, outputs: Sequence[Array], number: int, image: Image.Image, place: Place
    ) -> None:
        from targets.pictures import answers

        manifest, options = self.inference.manifest, self.options
        model = manifest.model
        # What does not say otherwise is a classifier.
        postprocess = model.postprocess or Postprocess("classify")
        if postprocess.kind == "classify":
            top = answers.TOP if options.top is None else options.top
            answer.top = answers.top_labels(outputs, postprocess, model.labels, top)
            if options.output:
                raise FleetError(f"'{model.name}' gives labels, there are no boxes to draw", code="usage")
            return
        threshold = postprocess.score_threshold if options.threshold is None else options.threshold
        lowest = min(threshold, postprocess.score_threshold)
        found = answers.detect(
            outputs, manifest.outputs, postprocess, place, classes=len(model.labels), threshold=lowest
        )
        kept = found.taken(found.scores >= threshold).taken(slice(options.top))
        answer.boxes = answers.boxes(kept, model.labels)
        answer.left_out = len(found) - len(kept)
        if options.output:
            from targets.pictures.draw import draw, save
            from targets.pictures.read import shown

            path = self.drawings.path(number, answer.device)
            save(draw(image, kept, model.labels), path)
            answer.output = shown(path)
