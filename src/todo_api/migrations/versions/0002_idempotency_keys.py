"""Store with a task the request that created it, so that a repeated request creates no second task."""

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns, and the unique index on a user's keys.

    Traffic continues: the table is locked only while the catalogue is changed. A failed attempt can be repeated; until
    one succeeds a column is missing, so that the service is not ready.
    """
    # Citus adds a constraint only in an ALTER TABLE of its own.
    op.execute("ALTER TABLE tasks ADD COLUMN IF NOT EXISTS idempotency_key text")
    op.execute("ALTER TABLE tasks DROP CONSTRAINT IF EXISTS tasks_idempotency_key_length")
    op.execute("""
        ALTER TABLE tasks ADD CONSTRAINT tasks_idempotency_key_length
            CHECK (char_length(idempotency_key) BETWEEN 1 AND 255) NOT VALID
    """)
    with op.get_context().autocommit_block():
        op.execute("ALTER TABLE tasks VALIDATE CONSTRAINT tasks_idempotency_key_length")
        # A failed CREATE INDEX CONCURRENTLY leaves an invalid index.
        op.execute("DROP INDEX CONCURRENTLY IF EXISTS tasks_idempotency_key")
        op.execute("""
            CREATE UNIQUE INDEX CONCURRENTLY tasks_idempotency_key ON tasks (user_id, idempotency_key)
            WHERE idempotency_key IS NOT NULL
        """)
    op.execute("ALTER TABLE tasks ADD COLUMN idempotency_fingerprint bytea, ADD COLUMN idempotency_request uuid")


def downgrade() -> None:
    """Drop the columns, and with them the index; a repeated request then creates a second task."""
    op.execute("""
        ALTER TABLE tasks
            DROP COLUMN idempotency_request,
            DROP COLUMN idempotency_fingerprint,
            DROP COLUMN idempotency_key
    """)
