"""Timeouts of tests, which are longer on a busy machine."""

import os
import time


def patience(seconds: float = 20) -> float:
    """Multiply a timeout by the load per processor, if that is more than one."""
    return seconds * max(1, os.getloadavg()[0] / (os.cpu_count() or 1))


def deadline() -> float:
    """Return the time, on the monotonic clock, at which to give up waiting."""
    return time.monotonic() + patience()
