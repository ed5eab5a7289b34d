"""Version 1: records, and the version of the schema."""

import sqlalchemy as sa
from alembic import op

revision = "1"
down_revision = None


def upgrade() -> None:
    """Make the tables."""
    op.create_table("modelmill_schema", sa.Column("version", sa.Integer, primary_key=True))
    op.create_table(
        "modelmill_records",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("value", sa.Double, nullable=False),
        sa.Column("n", sa.BigInteger, nullable=False),
        sa.Column("spread", sa.Double),
        sa.Column("what", sa.Text, nullable=False, index=True),
        sa.Column("subject", sa.Text, nullable=False, index=True),
        sa.Column("build", sa.Text, nullable=False, index=True),
        sa.Column("device", sa.Text, nullable=False),
        sa.Column("engine", sa.Text, nullable=False),
        sa.Column("version", sa.Text, nullable=False),
        sa.Column("threads", sa.Integer, nullable=False),
        sa.Column("isa", sa.Text, nullable=False),
        sa.Column("commit", sa.Text, nullable=False),
        sa.Column("unit", sa.Text, nullable=False),
        sa.Column("when", sa.Text, nullable=False),
        sa.Column("extra", sa.Text, nullable=False),
    )
