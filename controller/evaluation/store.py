"""Accuracies in the results database."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec
from sqlalchemy import Row, select

from controller import tables
from controller.reports import ClassReport, EvalReport
from targets.base import FleetError

if TYPE_CHECKING:
    from controller.results import Results

_LISTED = 5
_MAX_ID = 64
#: Columns that are called what they are called in `EvalReport`; ``classes`` is made of structs.
_SAME = (
    *("id", "device", "target", "simulated", "model", "bundle", "dataset", "dataset_digest", "metric", "value"),
    *("images", "skipped", "metrics", "started_at", "seconds", "notes", "commit", "origin"),
)


class Evaluations:
    """The accuracies in a results database. Errors are as `Results` has them."""

    def __init__(self, results: Results) -> None:
        self._results = results

    def add(self, report: EvalReport) -> None:
        """Keep a result, which gets its ``id``."""
        report.id = uuid.uuid4().hex
        row = {name: getattr(report, name) for name in _SAME}
        # What it was compared with is another result's.
        row["classes"] = [
            {"name": one.name, "truth": one.truth, "metrics": dict(one.metrics)} for one in report.classes
        ]
        with self._results.transaction(write=True) as connection:
            connection.execute(tables.evaluations.insert().values(**row, stored_at=time.time()))

    def list(
        self,
        *,
        devices: Sequence[str] = (),
        targets: Sequence[str] = (),
        models: Sequence[str] = (),
        digest: str = "",
        limit: int = 50,
    ) -> list[EvalReport]:
        """Results that match everything given, the newest first; ``limit`` 0 for all."""
        columns = tables.evaluations.c
        query = select(tables.evaluations).order_by(columns.started_at.desc(), columns.id)
        for column, wanted in ((columns.device, devices), (columns.target, targets), (columns.model, models)):
            if wanted:
                query = query.where(column.in_(wanted))
        if digest:
            query = query.where(columns.dataset_digest == digest)
        if limit > 0:
            query = query.limit(limit)
        with self._results.transaction() as connection:
            return [_report(row) for row in connection.execute(query)]

    def get(self, result: str) -> EvalReport:
        """The result whose id is, or alone begins with, ``result``.

        Raises :class:`FleetError`: ``unknown-run``, or ``ambiguous-run`` that lists some of those meant.
        """
        rows: Sequence[Row[Any]] = ()
        if result.isalnum() and len(result) <= _MAX_ID:
            column = tables.evaluations.c.id
            query = select(tables.evaluations).where(column.startswith(result)).order_by(column).limit(_LISTED + 1)
            with self._results.transaction() as connection:
                rows = connection.execute(query).all()
        if not rows:
            raise FleetError(
                f"there is no result '{result}'", code="unknown-run", hint="`fleet results list` shows all results"
            )
        if len(rows) > 1:
            shown = ", ".join(f"{row.id} ({row.model} on {row.device})" for row in rows[:_LISTED])
            raise FleetError(
                f"'{result}' is the beginning of several results: {shown}{', …' if len(rows) > _LISTED else ''}",
                code="ambiguous-run",
                hint="give more of the id",
            )
        return _report(rows[0])


def _report(row: Row[Any]) -> EvalReport:
    classes = msgspec.convert(row.classes, list[ClassReport])
    return EvalReport(**{name: getattr(row, name) for name in _SAME}, classes=classes)
