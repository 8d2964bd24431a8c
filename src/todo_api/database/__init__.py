"""Running statements on a pool of connections, with retries.

`query` compiles statements, `failures` classifies errors, `connecting` opens one connection, `connections` is the pool
and `waiting` its queue. `running` combines them.
"""

from todo_api.database.query import Query
from todo_api.database.running import Database
from todo_api.database.waiting import Interrupt

__all__ = ["Database", "Interrupt", "Query"]
