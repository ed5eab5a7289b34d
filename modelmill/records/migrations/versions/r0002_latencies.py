"""Version 2: models, platforms, measurements of latency, and predictors."""

import sqlalchemy as sa
from alembic import op

revision = "2"
down_revision = "1"


def upgrade() -> None:
    """Make the tables; nothing that is there changes."""
    op.create_table(
        "modelmill_models",
        sa.Column("structure", sa.Text, primary_key=True),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("family", sa.Text, nullable=False),
        sa.Column("facts", sa.Text, nullable=False),
        sa.Column("skeleton", sa.LargeBinary, nullable=False),
        if_not_exists=True,
    )
    op.create_table(
        "modelmill_platforms",
        sa.Column("key", sa.Text, primary_key=True),
        sa.Column("target", sa.Text, nullable=False),
        sa.Column("version", sa.Text, nullable=False),
        sa.Column("device", sa.Text, nullable=False),
        sa.Column("isa", sa.Text, nullable=False),
        sa.Column("precision", sa.Text, nullable=False),
        sa.Column("threads", sa.Integer, nullable=False),
        sa.Column("batch", sa.Integer, nullable=False),
        if_not_exists=True,
    )
    op.create_table(
        "modelmill_measurements",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True),
        sa.Column("key", sa.Text, nullable=False, unique=True),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("platform", sa.Text, nullable=False),
        sa.Column("when", sa.Text, nullable=False),
        sa.Column("machine", sa.Text, nullable=False),
        sa.Column("extra", sa.Text, nullable=False),
        sa.Column("p50_ms", sa.Double, nullable=False),
        sa.Column("p90_ms", sa.Double, nullable=False),
        sa.Column("p99_ms", sa.Double, nullable=False),
        sa.Column("noise", sa.Double, nullable=False),
        sa.Column("n", sa.BigInteger, nullable=False),
        sa.Column("reference_ms", sa.Double),
        sa.Column("samples", sa.LargeBinary, nullable=False),
        if_not_exists=True,
    )
    op.create_table(
        "modelmill_predictors",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("version", sa.Integer, primary_key=True),
        sa.Column("when", sa.Text, nullable=False),
        sa.Column("facts", sa.Text, nullable=False),
        sa.Column("data", sa.LargeBinary, nullable=False),
        if_not_exists=True,
    )
    indexes = {
        ("models", "name"): ["name", "structure", "family"],
        ("models", "family"): ["family", "name", "structure"],
        ("measurements", "model_platform"): ["model", "platform"],
        ("measurements", "platform"): ["platform", "id", "p50_ms", "noise"],
    }
    for (table, name), columns in indexes.items():
        full = f"modelmill_{table}"
        op.create_index(f"ix_{full}_{name}", full, columns, if_not_exists=True)
