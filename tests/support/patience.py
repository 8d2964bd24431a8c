"""How long tests wait for what has to happen: longer where the machine is busy."""

import os
import time


def patience(seconds: float = 20) -> float:
    """Stretch a time by the load of the machine."""
    return seconds * max(1, os.getloadavg()[0] / (os.cpu_count() or 1))


def deadline() -> float:
    """Tell when, on the monotonic clock, waiting has been long enough."""
    return time.monotonic() + patience()
