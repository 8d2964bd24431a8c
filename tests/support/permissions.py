"""Files that may not be read, whoever runs the tests."""

import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def bound_by_permissions() -> Iterator[None]:
    """Be a user whom permissions bind, also where root runs the tests."""
    user = os.geteuid()
    os.seteuid(user or 64321)
    try:
        yield
    finally:
        os.seteuid(user)
