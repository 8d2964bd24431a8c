"""Threads for concurrent requests."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager


@contextmanager
def untraced() -> Iterator[None]:
    """Start threads without tracing them for coverage.

    With `concurrency = greenlet`, coverage leaves a clean-up of each traced thread to the main thread, and on Python
    3.11 two of these were seen to deadlock. The lines that a test's own threads run are not measured anyway.
    """
    trace = threading.gettrace()
    threading.settrace(None)
    try:
        yield
    finally:
        threading.settrace(trace)


@contextmanager
def thread_pool(size: int) -> Iterator[ThreadPoolExecutor]:
    """Run calls in at most `size` threads; all have ended when the block is left."""
    with untraced(), ThreadPoolExecutor(size) as threads:
        yield threads
