"""Take ids of tasks from a sequence instead of an identity column.

Citus silently restarts an identity at 1 when it converts a table; a sequence in a column's default continues.
"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

# Locked first, so that no id is assigned between reading the counter and replacing it.
_LOCK = "LOCK TABLE tasks IN ACCESS EXCLUSIVE MODE"
_LAST_ID = "SELECT pg_sequence_last_value(CAST(pg_get_serial_sequence('tasks', 'id') AS regclass))"


def _next_id() -> int:
    return (op.get_bind().scalar(sa.text(_LAST_ID)) or 0) + 1


def upgrade() -> None:
    """Replace the identity by a sequence that continues after its last value. Only the catalogue changes."""
    op.execute(_LOCK)
    next_id = _next_id()
    op.execute("ALTER TABLE tasks ALTER COLUMN id DROP IDENTITY")
    op.execute(f"CREATE SEQUENCE tasks_ids START WITH {next_id} OWNED BY tasks.id")
    op.execute("ALTER TABLE tasks ALTER COLUMN id SET DEFAULT nextval('tasks_ids')")
    # An identity needs no privilege, a sequence does: every role that may insert tasks, now or later, needs it.
    op.execute("GRANT USAGE ON SEQUENCE tasks_ids TO PUBLIC")


def downgrade() -> None:
    """Restore the identity, which continues after the sequence's last value."""
    op.execute(_LOCK)
    next_id = _next_id()
    op.execute("ALTER TABLE tasks ALTER COLUMN id DROP DEFAULT")
    op.execute("DROP SEQUENCE tasks_ids")
    op.execute(f"ALTER TABLE tasks ALTER COLUMN id ADD GENERATED ALWAYS AS IDENTITY (START WITH {next_id})")
