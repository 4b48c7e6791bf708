"""What accuracies are compared with: a stored result, or the newest of a device or a target."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from controller.inventory import Device
from controller.reports import EvalReport
from targets.base import FleetError, names

if TYPE_CHECKING:
    from controller.evaluation.store import Evaluations
    from controller.fleet import Fleet


class Baseline:
    def __init__(
        self, fleet: Fleet, store: Evaluations, given: str, model: str | None, digest: str, selection: Sequence[Device]
    ) -> None:
        """``given``: a device's name, a target's, or a result's id. It is found out before anything is measured.

        Raises :class:`FleetError` (``unknown-run``, ``bad-baseline``) when there is and will be nothing to
        compare with.
        """
        self._store, self._model, self._digest = store, model, digest
        self._device = given if any(device.name == given for device in fleet.inventory.devices) else ""
        self._target = given if not self._device and given in names() else ""
        self._fixed: EvalReport | None = None
        if not self._device and not self._target:
            self._fixed = store.get(given)
            if self._fixed.dataset_digest != digest:
                raise FleetError(
                    f"the result {given} was measured on other pictures: {self._fixed.images} of {self._fixed.dataset}",
                    code="bad-baseline",
                    hint="measure it again on this data set, with the same --limit",
                )
        elif not (len(selection) > 1 and any(map(self._is_meant, selection))) and not self._stored():
            raise FleetError(
                f"there is no result of {given} with this model on this data set to compare with",
                code="bad-baseline",
                hint=f"measure it first: `fleet eval MODEL DATASET --{'device' if self._device else 'target'} {given}`",
            )

    def _is_meant(self, one: Device | EvalReport) -> bool:
        name = one.device if isinstance(one, EvalReport) else one.name
        return name == self._device or one.target == self._target

    def _stored(self) -> list[EvalReport]:
        return self._store.list(
            devices=[self._device] if self._device else (),
            targets=[self._target] if self._target else (),
            models=[self._model] if self._model else (),
            digest=self._digest,
            limit=0,
        )

    def apply(self, reports: Sequence[EvalReport]) -> None:
        """Fill in what each of the new results is compared with; one is never compared with itself."""
        new = {report.id for report in reports}
        older = [] if self._fixed else [one for one in self._stored() if one.id not in new]
        for report in reports:
            if report.error:
                continue
            others = [one for one in reports if one is not report and not one.error and self._is_meant(one)]
            same = [one for one in (*others, *older) if one.model == report.model]
            base = self._fixed or next(iter(same), None)
            if base is not None:
                _compare(report, base)
            elif not self._is_meant(report):
                report.notes.append(f"there is no result of {self._device or self._target} to compare with")


def _compare(report: EvalReport, base: EvalReport) -> None:
    report.baseline_id, report.baseline_metrics = base.id, dict(base.metrics)
    report.baseline = base.metrics.get(report.metric)
    classes = {one.name: one.metrics for one in base.classes}
    for one in report.classes:
        one.baseline = dict(classes.get(one.name, {}))
