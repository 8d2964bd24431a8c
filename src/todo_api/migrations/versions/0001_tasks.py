"""Create the table of tasks, and the table of accounts that it references unless Better Auth has created it."""

import sqlalchemy as sa
from alembic import op

from todo_api.errors import MigrationError

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_TYPE_OF_USER_ID = sa.text(
    "SELECT format_type(atttypid, atttypmod) FROM pg_attribute"
    """ WHERE attrelid = to_regclass('"user"') AND attname = 'id' AND NOT attisdropped"""
)


def upgrade() -> None:
    """Create `tasks`, and `"user"` if it is absent."""
    connection = op.get_bind()
    if connection.scalar(sa.text("""SELECT to_regclass('"user"') IS NULL""")):
        # The same columns as Better Auth's migration creates.
        op.execute("""
            CREATE TABLE "user" (
                id text PRIMARY KEY,
                name text NOT NULL,
                email text NOT NULL UNIQUE,
                "emailVerified" boolean NOT NULL,
                image text,
                "createdAt" timestamptz NOT NULL DEFAULT CURRENT_TIMESTAMP,
                "updatedAt" timestamptz NOT NULL DEFAULT CURRENT_TIMESTAMP
            )
        """)
    elif connection.scalar(_TYPE_OF_USER_ID) != "text":
        raise MigrationError('The table "user" is there already, but its id is not text, so tasks cannot point at it.')
    op.execute("""
        CREATE TABLE tasks (
            user_id text NOT NULL,
            id bigint GENERATED ALWAYS AS IDENTITY,
            title text NOT NULL,
            description text,
            status text NOT NULL DEFAULT 'incomplete',
            created_at timestamptz NOT NULL DEFAULT now(),
            updated_at timestamptz NOT NULL DEFAULT now(),
            CONSTRAINT tasks_pkey PRIMARY KEY (user_id, id),
            CONSTRAINT tasks_user_id_fkey FOREIGN KEY (user_id) REFERENCES "user" (id) ON DELETE CASCADE,
            CONSTRAINT tasks_title_length CHECK (char_length(title) BETWEEN 1 AND 255),
            CONSTRAINT tasks_description_length CHECK (char_length(description) <= 5000),
            CONSTRAINT tasks_status_known CHECK (status IN ('incomplete', 'complete'))
        )
    """)


def downgrade() -> None:
    """Drop `tasks`. `"user"` stays, even if created here: this service never deletes accounts."""
    op.execute("DROP TABLE tasks")
