"""The way to the database: statements, connections, and what a failure of either means.

`query` knows statements, `failures` errors, `connecting` opens one connection, `connections` keeps them and `waiting`
those who wait for one. `running` puts them together.
"""

from todo_api.database.query import Query
from todo_api.database.running import Database

__all__ = ["Database", "Query"]
