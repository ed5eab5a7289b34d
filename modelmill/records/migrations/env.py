"""What Alembic runs: the migrations, on the connection and in the transaction it was given."""

from alembic import context

from modelmill.records.tables import REVISIONS

context.configure(connection=context.config.attributes["connection"], version_table=REVISIONS)
context.run_migrations()
