"""The results database: its tables, its version, and how an older one is brought up to date."""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    Boolean,
    Column,
    Connection,
    Double,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    inspect,
    select,
    text,
)

from targets.base import FleetError

metadata = MetaData()

#: One row: the version of this layout.
version_table = Table("fleet_schema", metadata, Column("version", Integer, primary_key=True))

runs = Table(
    "runs",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("device", Text, nullable=False),
    Column("target", Text, nullable=False),
    Column("simulated", Boolean, nullable=False),
    Column("model", Text, nullable=False),
    Column("bundle", Text, nullable=False),
    Column("engine", Text, nullable=False),
    Column("batch", Integer, nullable=False),
    # Seconds since 1970, UTC.
    Column("started_at", Double, nullable=False),
    Column("verdict", String(16), nullable=False),
    Column("reason", Text, nullable=False),
    # Milliseconds.
    Column("mean", Double, nullable=False),
    Column("std", Double, nullable=False),
    Column("min", Double, nullable=False),
    Column("p50", Double, nullable=False),
    Column("p90", Double, nullable=False),
    Column("p99", Double, nullable=False),
    Column("max", Double, nullable=False),
    Column("ci50_low", Double, nullable=False),
    Column("ci50_high", Double, nullable=False),
    Column("throughput", Double, nullable=False),
    Column("sample_count", Integer, nullable=False),
    Column("spec", JSON, nullable=False),
    Column("conditions", JSON, nullable=False),
    Column("counters", JSON, nullable=False),
    Column("versions", JSON, nullable=False),
    Column("interleaved_with", String(64), nullable=False),
    Column("agent_version", Text, nullable=False),
    # Of the working directory that the run was started from; with "+dirty" when it had changes.
    Column("commit", Text, nullable=False),
    Column("origin", Text, nullable=False),
    Column("stored_at", Double, nullable=False),
    Index("runs_by_time", "started_at"),
    Index("runs_by_device", "device", "started_at"),
    Index("runs_by_model", "model", "started_at"),
)

#: Latencies (float64, milliseconds) and lengths of blocks (int32), little-endian, compressed with zstd.
samples = Table(
    "samples",
    metadata,
    Column("run", String(64), ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True),
    Column("values", LargeBinary, nullable=False),
    Column("blocks", LargeBinary, nullable=False),
)

#: Accuracies; see `controller.reports.EvalReport`.
evaluations = Table(
    "evaluations",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("device", Text, nullable=False),
    Column("target", Text, nullable=False),
    Column("simulated", Boolean, nullable=False),
    Column("model", Text, nullable=False),
    Column("bundle", Text, nullable=False),
    Column("dataset", Text, nullable=False),
    Column("dataset_digest", String(64), nullable=False),
    Column("metric", Text, nullable=False),
    Column("value", Double, nullable=True),
    Column("images", Integer, nullable=False),
    Column("skipped", Integer, nullable=False),
    Column("metrics", JSON, nullable=False),
    Column("classes", JSON, nullable=False),
    # Seconds since 1970, UTC.
    Column("started_at", Double, nullable=False),
    Column("seconds", Double, nullable=False),
    Column("notes", JSON, nullable=False),
    Column("commit", Text, nullable=False),
    Column("origin", Text, nullable=False),
    Column("stored_at", Double, nullable=False),
    Index("evaluations_by_time", "started_at"),
    Index("evaluations_by_dataset", "dataset_digest", "model", "started_at"),
)

#: Statements that bring version i + 1 to version i + 2. Append only: what was released never changes.
MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        """CREATE TABLE evaluations (
            id VARCHAR(64) NOT NULL PRIMARY KEY, device TEXT NOT NULL, target TEXT NOT NULL,
            simulated BOOLEAN NOT NULL, model TEXT NOT NULL, bundle TEXT NOT NULL, dataset TEXT NOT NULL,
            dataset_digest VARCHAR(64) NOT NULL, metric TEXT NOT NULL, value DOUBLE PRECISION,
            images INTEGER NOT NULL, skipped INTEGER NOT NULL, metrics JSON NOT NULL, classes JSON NOT NULL,
            started_at DOUBLE PRECISION NOT NULL, seconds DOUBLE PRECISION NOT NULL, notes JSON NOT NULL,
            "commit" TEXT NOT NULL, origin TEXT NOT NULL, stored_at DOUBLE PRECISION NOT NULL)""",
        "CREATE INDEX evaluations_by_time ON evaluations (started_at)",
        "CREATE INDEX evaluations_by_dataset ON evaluations (dataset_digest, model, started_at)",
    ),
)

# Any number that nobody else uses: PostgreSQL's advisory lock while the tables are made or changed.
_LOCK = 0x666C656574


def current(connection: Connection) -> bool:
    """Whether nothing has to be made or changed; only reads."""
    if not inspect(connection).has_table(version_table.name):
        return False
    return bool(connection.execute(select(version_table.c.version)).scalar_one() == len(MIGRATIONS) + 1)


def prepare(connection: Connection) -> None:
    """Make the tables, or bring them up to date, in the caller's transaction. Safe when several do it at once.

    Raises :class:`FleetError` (``results-newer``) for a database that a newer fleet has written.
    """
    newest = len(MIGRATIONS) + 1
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
    if not inspect(connection).has_table(version_table.name):
        metadata.create_all(connection)
        connection.execute(version_table.insert().values(version=newest))
        return
    version = connection.execute(select(version_table.c.version)).scalar_one()
    if version > newest:
        raise FleetError(
            f"the results database has layout {version}, this fleet knows layouts up to {newest}",
            code="results-newer",
            hint="update fleet, or give another database with FLEET_RESULTS",
        )
    if version < newest:
        for statements in MIGRATIONS[version - 1 :]:
            for statement in statements:
                connection.execute(text(statement))
        connection.execute(version_table.update().values(version=newest))
