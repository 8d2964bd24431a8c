"""File permissions that apply even if root runs the tests."""

import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def bound_by_permissions() -> Iterator[None]:
    """Run the block as an unprivileged user, because root may read every file."""
    user = os.geteuid()
    os.seteuid(user or 64321)
    try:
        yield
    finally:
        os.seteuid(user)
