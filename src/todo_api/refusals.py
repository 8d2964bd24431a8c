"""Counts the requests refused because of overload, and logs when refusing begins and ends."""

import asyncio
import logging
import time
from collections import Counter

logger = logging.getLogger(__name__)
QUIET_SECONDS = 5.0  # refusing has ended after this time without a refusal


class Refusals:
    """The number of refused requests, by the place that refused them."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._before: Counter[str] = Counter()
        self._began_at: float | None = None
        self._last_at = 0.0

    def record(self, where: str) -> None:
        """Count a refused request, of the running event loop."""
        self.counts[where] += 1
        self._last_at = time.monotonic()
        if self._began_at is None:
            self._began_at = self._last_at
            logger.warning("overload: requests are refused, the first by the %s", where)
            loop = asyncio.get_running_loop()
            loop.call_later(QUIET_SECONDS, self._end, loop)

    def _end(self, loop: asyncio.AbstractEventLoop) -> None:
        left = self._last_at + QUIET_SECONDS - time.monotonic()
        if left > 0:
            loop.call_later(left, self._end, loop)
            return
        assert self._began_at is not None
        refused = self.counts - self._before
        seconds = self._last_at - self._began_at
        logger.warning(
            "overload ended: %d requests were refused within %.1f s: %s", refused.total(), seconds, dict(refused)
        )
        self._before, self._began_at = self.counts.copy(), None
