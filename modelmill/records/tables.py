"""The tables of the database, as the newest version of the schema has them."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # SQLAlchemy takes longer to import than most commands run
    import sqlalchemy as sa


SCHEMA_VERSION = 2
REVISIONS = "modelmill_revision"  # where Alembic keeps which migrations have run


@cache
def metadata() -> sa.MetaData:
    """All tables, by name in `metadata().tables`."""
    import sqlalchemy as sa

    made = sa.MetaData()
    sa.Table("modelmill_schema", made, sa.Column("version", sa.Integer, primary_key=True))
    _records(made)
    _latencies(made)
    return made


def _text(name: str, index: bool = False) -> sa.Column[str]:
    import sqlalchemy as sa

    return sa.Column(name, sa.Text, nullable=False, index=index)


def _records(made: sa.MetaData) -> None:
    import sqlalchemy as sa

    sa.Table(
        "modelmill_records",
        made,
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("value", sa.Double, nullable=False),
        sa.Column("n", sa.BigInteger, nullable=False),
        sa.Column("spread", sa.Double),
        *(_text(name, index=True) for name in ("what", "subject", "build")),
        *(_text(name) for name in ("device", "engine", "version")),
        sa.Column("threads", sa.Integer, nullable=False),
        *(_text(name) for name in ("isa", "commit", "unit", "when", "extra")),
    )


def _latencies(made: sa.MetaData) -> None:
    import sqlalchemy as sa

    sa.Table(
        "modelmill_models",
        made,
        sa.Column("structure", sa.Text, primary_key=True),
        _text("name"),
        _text("family"),
        _text("facts"),
        sa.Column("skeleton", sa.LargeBinary, nullable=False),
        # Lists are read off these alone, in order and page by page, without the skeletons.
        sa.Index("ix_modelmill_models_name", "name", "structure", "family"),
        sa.Index("ix_modelmill_models_family", "family", "name", "structure"),
    )
    sa.Table(
        "modelmill_platforms",
        made,
        sa.Column("key", sa.Text, primary_key=True),
        *(_text(name) for name in ("target", "version", "device", "isa", "precision")),
        *(sa.Column(name, sa.Integer, nullable=False) for name in ("threads", "batch")),
    )
    sa.Table(
        "modelmill_measurements",
        made,
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
        sa.Column("key", sa.Text, nullable=False, unique=True),
        *(_text(name) for name in ("model", "platform", "when", "machine", "extra")),
        *(sa.Column(n, sa.Double, nullable=False) for n in ("p50_ms", "p90_ms", "p99_ms", "noise")),
        sa.Column("n", sa.BigInteger, nullable=False),
        sa.Column("reference_ms", sa.Double),
        # Last: what a query does not ask for is then not read.
        sa.Column("samples", sa.LargeBinary, nullable=False),
        sa.Index("ix_modelmill_measurements_model_platform", "model", "platform"),
        # All of a platform, the newest first, without their samples.
        sa.Index("ix_modelmill_measurements_platform", "platform", "id", "p50_ms", "noise"),
    )
    sa.Table(
        "modelmill_predictors",
        made,
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("version", sa.Integer, primary_key=True),
        *(_text(name) for name in ("when", "facts")),
        sa.Column("data", sa.LargeBinary, nullable=False),
    )
