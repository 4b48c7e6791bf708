"""One device's answers to a data set: pictures are prepared while it computes, and answers are kept as they come."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from controller.datasets import Dataset
from controller.evaluation.found import Found
from controller.evaluation.journal import Journal
from controller.events import Listener, Progress
from controller.inference import Inference
from controller.session import CUT
from targets.base import FleetError

if TYPE_CHECKING:
    from controller.options import EvalOptions
    from targets.base import Array
    from targets.bundle import Manifest
    from targets.pictures.place import Place

#: Batches that are prepared or being prepared while the device computes one.
_AHEAD = 2
#: Cuts of the connection in a row that one batch may meet.
_TRIES = 3
_STAGE = "evaluate"
#: Lower than any score that a figure depends on much; below it detections are many.
_THRESHOLD = 0.01
#: Labels kept of a classifier.
_TOP = 5


def lowest_score(options: EvalOptions, manifest: Manifest) -> float:
    """Of a detection that takes part."""
    if options.threshold is not None:
        return options.threshold
    postprocess = manifest.model.postprocess
    return min(_THRESHOLD, postprocess.score_threshold) if postprocess is not None else _THRESHOLD


@dataclass(frozen=True, slots=True)
class _Batch:
    """Inputs for the pictures ``indices``, which lie in them at ``places``; and answers of those that are none."""

    indices: tuple[int, ...]
    places: tuple[Place, ...]
    inputs: list[Array]
    bad: tuple[Found, ...]


@dataclass
class Answers:
    """Getting a release's answers to a data set. `get` may be called again after a failure, and goes on."""

    inference: Inference
    dataset: Dataset
    options: EvalOptions
    journal: Journal
    listener: Listener
    #: Pictures answered before, and now; seconds that these took.
    resumed: int = 0
    done: int = 0
    seconds: float = 0.0
    _batch: int = field(init=False)

    def __post_init__(self) -> None:
        from targets.pictures.prepare import batch_size

        manifest = self.inference.manifest
        self._batch = batch_size(manifest.inputs, manifest.model.preprocess, manifest.model.name)
        self.resumed = len(self.journal.found)

    async def get(self) -> list[Found]:
        """The answers to all pictures, in the data set's order."""
        total = len(self.dataset.pictures)
        missing = [index for index in range(total) if index not in self.journal.found]
        batches = iter([missing[at : at + self._batch] for at in range(0, len(missing), self._batch)])
        start = time.monotonic()
        ahead: deque[asyncio.Task[_Batch]] = deque()
        reading: asyncio.Task[None] | None = None
        self._tell(start, total)
        try:
            self._start(ahead, batches)
            while ahead:
                batch = await ahead.popleft()
                self._start(ahead, batches)
                outputs = await self._infer(batch) if batch.indices else []
                if reading is not None:
                    await reading
                    self._tell(start, total)
                # The next batch is computed while this one's outputs are read.
                reading = asyncio.create_task(asyncio.to_thread(self._read, batch, outputs))
            if reading is not None:
                await reading
        except FleetError as error:
            if reading is not None:
                await asyncio.gather(reading, return_exceptions=True)
            raise FleetError(
                f"{error.message}; {len(self.journal.found)} of {total} pictures are done",
                code=error.code,
                hint=f"{error.hint + '; ' if error.hint else ''}the same command goes on there",
            ) from error
        finally:
            left = [*ahead, *([reading] if reading is not None else [])]
            for task in ahead:
                task.cancel()
            await asyncio.gather(*left, return_exceptions=True)
            self.seconds += time.monotonic() - start
        self._tell(start, total)
        return [self.journal.found[index] for index in range(total)]

    def _start(self, ahead: deque[asyncio.Task[_Batch]], batches: Iterator[list[int]]) -> None:
        while len(ahead) < _AHEAD and (indices := next(batches, None)):
            ahead.append(asyncio.create_task(asyncio.to_thread(self._prepare, indices)))

    def _prepare(self, indices: Sequence[int]) -> _Batch:
        from targets.pictures.place import place
        from targets.pictures.prepare import batch
        from targets.pictures.read import bad_picture, load

        manifest = self.inference.manifest
        preprocess = manifest.model.preprocess
        assert preprocess is not None
        good, images, bad = [], [], []
        for index in indices:
            picture = self.dataset.pictures[index]
            try:
                image = load(picture.path)
                if picture.size is not None and image.size != picture.size:
                    annotated, found = ("x".join(map(str, size)) for size in (picture.size, image.size))
                    raise bad_picture(picture.path, f"it has {found} pixels, its annotation is of {annotated}")
            except FleetError as error:
                if not self.options.skip_bad:
                    hint = f"{error.hint}, or " if error.hint else ""
                    raise FleetError(
                        error.message, code=error.code, hint=f"{hint}leave such pictures out with --skip-bad"
                    ) from None
                bad.append(Found(index, bad=error.message))
                continue
            good.append(index)
            images.append(image)
        places = tuple(place(image.size, preprocess) for image in images)
        return _Batch(tuple(good), places, batch(images, preprocess, manifest.inputs) if images else [], tuple(bad))

    async def _infer(self, batch: _Batch) -> list[Array]:
        session = self.inference.session
        for attempt in range(_TRIES):
            try:
                outputs, _ = await self.inference(batch.inputs)
                return outputs
            except FleetError as error:
                if error.code not in CUT or attempt == _TRIES - 1:
                    raise
                await session.restore(self.options.patience)
        raise AssertionError("unreachable")

    def _read(self, batch: _Batch, outputs: Sequence[Array]) -> None:
        from targets.pictures.answers import of_picture

        answers = [
            self._answer(index, of_picture(outputs, row), where)
            for row, (index, where) in enumerate(zip(batch.indices, batch.places, strict=True))
        ]
        self.journal.add([*answers, *batch.bad])
        self.done += len(answers) + len(batch.bad)

    def _answer(self, index: int, outputs: Sequence[Array], where: Place) -> Found:
        from controller.evaluation.coco import compressed
        from targets.pictures.answers import detect, probabilities
        from targets.pictures.masks import encode

        manifest = self.inference.manifest
        postprocess = manifest.model.postprocess
        if postprocess is None or postprocess.kind == "classify":
            scores = probabilities(outputs, postprocess)
            best = np.argsort(-scores, kind="stable")[:_TOP]
            return Found(index, best.tolist(), scores[best].tolist())
        found = detect(
            outputs,
            manifest.outputs,
            postprocess,
            where,
            classes=len(manifest.model.labels),
            threshold=lowest_score(self.options, manifest),
        )
        masks: list[str] = []
        if found.masks is not None and self.dataset.has_outlines:
            masks = [compressed(encode(found.patch(row), where.original)) for row in range(len(found))]
        boxes = [(x0, y0, x1, y1) for x0, y0, x1, y1 in found.boxes.tolist()]
        return Found(index, found.labels.tolist(), found.scores.tolist(), boxes, masks)

    def _tell(self, start: float, total: int) -> None:
        here = len(self.journal.found)
        detail = f"{here} of {total} pictures"
        elapsed = time.monotonic() - start
        if self.done and elapsed > 0:
            rate = self.done / elapsed
            left = round((total - here) / rate)
            detail += f", {rate:.1f} a second"
            detail += f", {left // 3600}:{left // 60 % 60:02}:{left % 60:02} left" if here < total else ""
        elif self.resumed:
            detail += " were done before"
        self.listener(Progress(self.inference.session.device.name, _STAGE, here / total, detail))
