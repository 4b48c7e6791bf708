"""The results database: every bench run with its samples, conditions, versions and commit.

SQLite in the home directory by default, where several commands may write at once (WAL); PostgreSQL by URL, so that a
team shares one.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import numpy.typing as npt
import zstandard
from sqlalchemy import URL, Connection, Row, create_engine, event, make_url, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, SQLAlchemyError

from agent.protocol import BenchSpec, LatencyStats, RunResult
from controller import tables
from controller.reports import RunReport
from targets.base import FleetError

if TYPE_CHECKING:
    from sqlalchemy.engine.interfaces import DBAPIConnection
    from sqlalchemy.pool import ConnectionPoolEntry

Floats = npt.NDArray[np.float64]

#: How long a command waits for another one's write, in seconds.
BUSY_TIMEOUT = 30
#: Names the database: a path or a SQLAlchemy URL.
VARIABLE = "FLEET_RESULTS"
_RUN_ID = re.compile(r"[0-9A-Za-z_-]{1,64}")
_LISTED = 5


class StoredRun(RunReport, kw_only=True):
    """A run as the database has it: the report, and where it came from."""

    spec: BenchSpec
    #: Versions of what made the bundle and of what ran it.
    versions: dict[str, str] = msgspec.field(default_factory=dict)
    commit: str = ""
    origin: str = ""
    #: The run it was interleaved with, block by block; empty for a run on its own.
    interleaved_with: str = ""
    agent_version: str = ""


def report(result: RunResult) -> RunReport:
    """A run as the command line prints it, without its samples."""
    return RunReport(
        id=result.run,
        device=result.device,
        target=result.target,
        model=result.model,
        bundle=result.bundle,
        engine=result.engine,
        batch=result.batch,
        verdict=result.verdict,
        reason=result.reason,
        latency_ms=result.latency_ms,
        throughput=result.throughput,
        samples=len(result.samples),
        counters=result.counters,
        simulated=result.simulated,
        started_at=result.started_at,
        conditions=result.conditions,
        protocol=result.spec.protocol,
    )


def database_url(home: Path, configured: str = "") -> URL:
    """Where results are kept: ``configured`` (a URL or a path, from the environment or inventory), else ``home``'s own.

    Raises :class:`FleetError` (``bad-results-url``) that never shows a password.
    """
    if not configured:
        return URL.create("sqlite", database=str(home / "results.db"))
    if "://" not in configured:
        return URL.create("sqlite", database=str(Path(configured).expanduser()))
    try:
        url = make_url(configured)
        backend = url.get_backend_name()
    except (ArgumentError, ValueError):
        raise _bad_url("the address of the results database is not a URL") from None
    if backend in ("postgresql", "postgres"):
        return url.set(drivername="postgresql+psycopg")
    if backend != "sqlite":
        raise _bad_url(f"results cannot be kept in '{backend}'")
    return url


class Results:
    """One results database. Methods may be called from any thread; errors are :class:`FleetError` (``results``)."""

    def __init__(self, url: URL | str) -> None:
        """Opens the database, makes it or brings it up to date."""
        self.url = database_url(Path(), url) if isinstance(url, str) else url
        try:
            self._engine = create_engine(
                self.url,
                json_serializer=lambda value: msgspec.json.encode(value).decode(),
                json_deserializer=msgspec.json.decode,
                pool_pre_ping=self.url.get_backend_name() != "sqlite",
            )
        except (NoSuchModuleError, ImportError) as error:
            raise _bad_url(
                f"no driver for {self}: {error}", hint="install the driver: pip install 'fleet-edge[postgresql]'"
            ) from None
        if self.url.get_backend_name() == "sqlite":
            if self.url.database and self.url.database != ":memory:":
                _make_folder(Path(self.url.database).absolute().parent)
            event.listen(self._engine, "connect", _sqlite_connect)
            event.listen(self._engine, "begin", _sqlite_begin)
        self._writer = self._engine.execution_options(write=True)
        with self.transaction() as connection:
            current = tables.current(connection)
        if not current:
            with self.transaction(write=True) as connection:
                tables.prepare(connection)

    def __str__(self) -> str:
        return self.url.render_as_string(hide_password=True)

    def close(self) -> None:
        self._engine.dispose()

    def add(
        self, result: RunResult, *, commit: str = "", versions: Mapping[str, str] | None = None, origin: str = ""
    ) -> bool:
        """Keep a run and its samples. Whether it is new: a run that is there already stays as it is."""
        if not _RUN_ID.fullmatch(result.run):
            raise FleetError(f"a device sent a run with a bad id: {result.run[:80]!r}", code="bad-run")
        blocks = result.blocks or [1] * len(result.samples)
        if min(blocks, default=0) <= 0 or sum(blocks) != len(result.samples):
            raise FleetError(f"run {result.run}: the blocks do not fit the samples", code="bad-run")
        stats = result.latency_ms
        figures = [result.started_at, result.throughput, *msgspec.structs.astuple(stats)[:-1], *stats.ci50]
        if not (np.isfinite(figures).all() and np.isfinite(result.samples).all()):
            raise FleetError(f"run {result.run}: not every figure is a number", code="bad-run")
        insert = (postgresql if self._engine.dialect.name == "postgresql" else sqlite).insert
        row = {
            "id": result.run,
            **{name: getattr(result, name) for name in _SAME},
            **{name: getattr(stats, name) for name in _STATS},
            "ci50_low": stats.ci50[0],
            "ci50_high": stats.ci50[1],
            "sample_count": len(result.samples),
            "spec": msgspec.to_builtins(result.spec),
            "versions": dict(versions or {}),
            "commit": commit,
            "origin": origin,
            "stored_at": time.time(),
        }
        with self.transaction(write=True) as connection:
            added = connection.execute(
                insert(tables.runs).values(row).on_conflict_do_nothing().returning(tables.runs.c.id)
            ).first()
            if added is None:
                return False
            connection.execute(
                tables.samples.insert().values(
                    run=result.run,
                    values=_pack(np.asarray(result.samples, dtype="<f8")),
                    blocks=_pack(np.asarray(blocks, dtype="<i4")),
                )
            )
        return True

    def list(
        self,
        *,
        devices: Sequence[str] = (),
        models: Sequence[str] = (),
        targets: Sequence[str] = (),
        bundle: str = "",
        verdict: str = "",
        since: float | None = None,
        limit: int = 50,
    ) -> list[StoredRun]:
        """Runs that match everything given, newest first; ``since`` in seconds since 1970, ``limit`` 0 for all.

        ``bundle`` may be the beginning of a bundle's id.
        """
        columns = tables.runs.c
        query = select(tables.runs).order_by(columns.started_at.desc(), columns.id)
        for column, wanted in ((columns.device, devices), (columns.model, models), (columns.target, targets)):
            if wanted:
                query = query.where(column.in_(wanted))
        if bundle:
            query = query.where(columns.bundle.startswith(bundle, autoescape=True))
        if verdict:
            query = query.where(columns.verdict == verdict)
        if since is not None:
            query = query.where(columns.started_at >= since)
        if limit > 0:
            query = query.limit(limit)
        with self.transaction() as connection:
            return [_stored(row) for row in connection.execute(query)]

    def get(self, run: str) -> StoredRun:
        """The run whose id is, or alone begins with, ``run``.

        Raises :class:`FleetError`: ``unknown-run``, or ``ambiguous-run`` that lists some of those meant.
        """
        columns = tables.runs.c
        query = select(tables.runs).where(columns.id.startswith(run, autoescape=True)).order_by(columns.id)
        rows: Sequence[Row[Any]] = ()
        if _RUN_ID.fullmatch(run):
            with self.transaction() as connection:
                rows = connection.execute(query.limit(_LISTED + 1)).all()
        if not rows:
            raise FleetError(f"there is no run '{run}'", code="unknown-run", hint="`fleet results list` shows all runs")
        # SQLite's LIKE takes no notice of case, and an id that is the beginning of another is still itself.
        exact = [row for row in rows if row.id == run] or [row for row in rows if row.id.startswith(run)] or rows
        if len(exact) > 1:
            shown = ", ".join(f"{row.id} ({row.model} on {row.device})" for row in exact[:_LISTED])
            more = ", …" if len(exact) > _LISTED else ""
            raise FleetError(
                f"'{run}' is the beginning of several runs: {shown}{more}",
                code="ambiguous-run",
                hint="give more of the id",
            )
        return _stored(exact[0])

    def samples(self, run: str) -> tuple[Floats, npt.NDArray[np.int32]]:
        """Latencies of a run in milliseconds, in the order taken, and the lengths of the blocks they were taken in."""
        found = self.get(run)
        query = select(tables.samples).where(tables.samples.c.run == found.id)
        with self.transaction() as connection:
            row = connection.execute(query).one()
        values = _unpack(row.values, "<f8", found.samples)
        blocks = _unpack(row.blocks, "<i4", found.samples)
        return values.astype(np.float64), blocks.astype(np.int32)

    @contextmanager
    def transaction(self, write: bool = False) -> Iterator[Connection]:
        """A connection within a transaction; what the database says against it is a :class:`FleetError`."""
        try:
            with (self._writer if write else self._engine).begin() as connection:
                yield connection
        except SQLAlchemyError as error:
            reason = str(getattr(error, "orig", None) or error).strip().splitlines()[0]
            if self.url.password:
                reason = reason.replace(str(self.url.password), "***")
            raise FleetError(
                f"the results database {self} cannot be used: {reason}",
                code="results",
                hint=f"check the address, rights and free space; {VARIABLE} names another database",
            ) from None


#: Columns that are called what they are called in `RunResult`.
_SAME = (
    *("device", "target", "simulated", "model", "bundle", "engine", "batch", "started_at", "verdict", "reason"),
    *("throughput", "conditions", "counters", "interleaved_with", "agent_version"),
)
_STATS = ("mean", "std", "min", "p50", "p90", "p99", "max")


def _stored(row: Row[Any]) -> StoredRun:
    spec = msgspec.convert(row.spec, BenchSpec)
    stats = LatencyStats(**{name: getattr(row, name) for name in _STATS}, ci50=(row.ci50_low, row.ci50_high))
    return StoredRun(
        id=row.id,
        **{name: getattr(row, name) for name in _SAME},
        latency_ms=stats,
        samples=row.sample_count,
        spec=spec,
        protocol=spec.protocol,
        versions=row.versions,
        commit=row.commit,
        origin=row.origin,
    )


def _pack(values: npt.NDArray[Any]) -> bytes:
    return zstandard.ZstdCompressor().compress(values.tobytes())


def _unpack(data: bytes, dtype: str, most: int) -> npt.NDArray[Any]:
    """The array in ``data``, of at most ``most`` elements: what is stored is not trusted to be what was stored."""
    try:
        if 0 <= zstandard.frame_content_size(data) <= most * np.dtype(dtype).itemsize:
            return np.frombuffer(zstandard.ZstdDecompressor().decompress(data), dtype=dtype)
    except (zstandard.ZstdError, ValueError):
        pass
    raise FleetError("the stored samples are damaged", code="results")


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FleetError(
            f"the folder {folder} for results cannot be made: {error.strerror}",
            code="results",
            hint=f"{VARIABLE} names another database",
        ) from None


def _sqlite_connect(connection: DBAPIConnection, record: ConnectionPoolEntry) -> None:
    # The driver must not begin transactions of its own: `_sqlite_begin` does.
    connection.isolation_level = None
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout = {BUSY_TIMEOUT * 1000}")
    cursor.execute("PRAGMA journal_mode = WAL")
    cursor.execute("PRAGMA synchronous = NORMAL")
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.close()


def _sqlite_begin(connection: Connection) -> None:
    # What will write takes the lock at once, so that two commands wait for one another instead of failing half-way.
    write = connection.get_execution_options().get("write", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")


def _bad_url(message: str, hint: str = "") -> FleetError:
    hint = hint or f"{VARIABLE} is a path, sqlite:///PATH or postgresql://USER:PASSWORD@HOST/DATABASE"
    return FleetError(message, code="bad-results-url", hint=hint)
