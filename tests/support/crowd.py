"""Threads for many requests at once."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager


@contextmanager
def untraced() -> Iterator[None]:
    """Start threads that the measuring of coverage does not follow.

    Where it follows greenlets, each thread it saw leaves a clean-up to the main thread, and Python 3.11 was seen to
    hang when two of them met there. What a test's own threads run is not measured anyway.
    """
    trace = threading.gettrace()
    threading.settrace(None)
    try:
        yield
    finally:
        threading.settrace(trace)


@contextmanager
def crowd(size: int) -> Iterator[ThreadPoolExecutor]:
    """Do things at once: at most `size` of them, all of which are done at the end."""
    with untraced(), ThreadPoolExecutor(size) as threads:
        yield threads
