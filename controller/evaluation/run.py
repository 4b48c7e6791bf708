"""Accuracy on many devices: what it is measured on is checked first, results are stored as they come."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from controller.datasets import Dataset, load
from controller.deploy import explained
from controller.evaluation.baseline import Baseline
from controller.evaluation.classes import Classes, match
from controller.evaluation.device import Answers, lowest_score
from controller.evaluation.figures import NAMES, PRIMARY, Figures, compute
from controller.evaluation.journal import Journal
from controller.evaluation.store import Evaluations
from controller.events import Message
from controller.inference import Inference
from controller.inventory import Device
from controller.options import EvalOptions
from controller.reports import EvalReport
from controller.session import Session
from targets.base import FleetError

if TYPE_CHECKING:
    from controller.fleet import Fleet
    from targets.bundle import Manifest


async def evaluate(
    fleet: Fleet, model: str | None, dataset: str | Path, selection: Sequence[Device], options: EvalOptions
) -> list[EvalReport]:
    """See `Fleet.eval`."""
    from controller.commit import working_commit
    from controller.results import Results

    data = await asyncio.to_thread(_dataset, dataset, options)
    metric = options.metric or PRIMARY[data.kind]
    if metric not in NAMES[data.kind]:
        raise FleetError(
            f"'{metric}' is not measured on this data set", code="usage", hint=f"one of {', '.join(NAMES[data.kind])}"
        )
    results = await asyncio.to_thread(Results, fleet.home.results_url)
    try:
        store = Evaluations(results)
        baseline = None
        if options.baseline:
            baseline = await asyncio.to_thread(Baseline, fleet, store, options.baseline, model, data.digest, selection)
        commit = await asyncio.to_thread(working_commit)
        evaluator = _Evaluator(fleet, model, data, metric, options, store, commit, many=len(selection) > 1)
        tasks = [asyncio.create_task(evaluator.run(device)) for device in selection]
        try:
            reports = list(await asyncio.gather(*tasks))
        finally:
            # When results cannot be stored, the others must not go on.
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        if baseline is not None:
            await asyncio.to_thread(baseline.apply, reports)
        return reports
    finally:
        await asyncio.to_thread(results.close)


def _dataset(path: str | Path, options: EvalOptions) -> Dataset:
    data = load(path, images=options.images, skip_missing=options.skip_bad)
    data = (data.annotated() if options.annotated else data).first(options.limit)
    if data.kind == "coco":
        # Better now than after an hour of pictures.
        import pycocotools.cocoeval  # noqa: F401
    # Reads every file's size, which is not for the event loop.
    _ = data.digest
    return data


@dataclass(slots=True)
class _Evaluator:
    fleet: Fleet
    model: str | None
    dataset: Dataset
    metric: str
    options: EvalOptions
    store: Evaluations
    commit: str
    many: bool

    async def run(self, device: Device) -> EvalReport:
        """Never raises but when it is cancelled, or when results cannot be stored."""
        report = EvalReport(
            device=device.name,
            target=device.target,
            simulated=device.simulated,
            model=self.model or "",
            dataset=self.dataset.path,
            dataset_digest=self.dataset.digest,
            metric=self.metric,
            started_at=time.time(),
            commit=self.commit,
        )
        try:
            lease_wait = self.options.lease_wait
            async with self.fleet.session(device, lease=True, lease_wait=lease_wait) as session:
                await self._measure(session, report)
        except FleetError as error:
            if error.code == "results":
                raise
            report.error = explained(error)
            self.fleet.listener(Message(device.name, report.error, "error"))
        return report

    async def _measure(self, session: Session, report: EvalReport) -> None:
        options = self.options
        inference = await Inference.of(session, self.model, slot=options.slot, threads=options.threads)
        manifest = inference.manifest
        report.model, report.bundle, report.origin = manifest.model.name, inference.bundle, manifest.model.origin
        report.simulated = session.connection.welcome.simulated
        classes = self._classes(manifest)
        # All that the answers depend on. Threads are not among it: they change a figure's last digits at most.
        key = {
            "device": session.device.name,
            "simulated": report.simulated,
            "bundle": inference.bundle,
            "slot": options.slot,
            "dataset": self.dataset.digest,
            "threshold": lowest_score(options, manifest),
            "skip_bad": options.skip_bad,
        }
        journal = await asyncio.to_thread(Journal, self.fleet.home.evaluations, key, fresh=options.fresh)
        try:
            answers = Answers(inference, self.dataset, options, journal, self.fleet.listener)
            found = await answers.get()
            figures = await asyncio.to_thread(compute, self.dataset, found, classes)
            report.skipped = sum(1 for one in found if one.bad) + len(self.dataset.missing)
            report.images, report.resumed = sum(1 for one in found if not one.bad), answers.resumed
            report.seconds = answers.seconds
            report.images_per_second = answers.done / answers.seconds if answers.done else 0.0
            self._fill(report, figures)
            if options.confusion:
                report.confusion = str(await asyncio.to_thread(self._draw, report, figures))
            await asyncio.to_thread(self.store.add, report)
            journal.forget()
        finally:
            journal.close()

    def _classes(self, manifest: Manifest) -> Classes:
        kind = manifest.model.postprocess.kind if manifest.model.postprocess else "classify"
        if (kind == "classify") != (self.dataset.kind == "folders"):
            gives = "one label for a picture" if kind == "classify" else "boxes"
            holds = "a folder for each class" if self.dataset.kind == "folders" else "annotated boxes"
            raise FleetError(f"'{manifest.model.name}' gives {gives}, the data set has {holds}", code="wrong-dataset")
        labels = manifest.model.labels
        return match(labels, len(labels) or _class_count(manifest), self.dataset.categories, self.options.classes)

    def _fill(self, report: EvalReport, figures: Figures) -> None:
        if self.metric not in figures.metrics:
            raise FleetError(
                f"'{report.model}' gives no masks, so {self.metric} is not measured",
                code="usage",
                hint="leave --metric",
            )
        report.metrics, report.classes, report.notes = figures.metrics, figures.classes, figures.notes
        report.value = figures.metrics[self.metric]

    def _draw(self, report: EvalReport, figures: Figures) -> Path:
        from controller.evaluation.confusion_picture import draw
        from targets.pictures.draw import save

        path = Path(self.options.confusion)
        if self.many:
            path = path.with_name(f"{path.stem}.{report.device}{path.suffix or '.png'}")
        board = f"{report.device} (simulated)" if report.simulated else report.device
        save(draw(figures.confusion, figures.names, f"{report.model} on {board}"), path)
        return path


def _class_count(manifest: Manifest) -> int | None:
    """The number of classes of a model without labels; None where its outputs do not tell."""
    postprocess = manifest.model.postprocess
    if postprocess is None or postprocess.kind == "classify":
        return manifest.outputs[0].shape[-1]
    if postprocess.kind == "ssd":
        # One column is the background.
        return manifest.outputs[1].shape[1 if postprocess.boxes_last else 2] - 1
    return None
