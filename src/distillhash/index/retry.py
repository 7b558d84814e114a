"""Waiting for a server that is away for a moment."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
FIRST_PAUSE = 0.05
LONGEST_PAUSE = 2.0


def with_patience(work: Callable[[], T], is_transient: Callable[[Exception], bool], patience: float) -> T:
    """The result of ``work``, run again while it fails for a reason that may pass.

    Args:
        work: Called once or more; what it does must be safe to repeat.
        is_transient: Whether an error may pass.
        patience: In seconds: how long after the first call another one may start; 0 is one call.

    Pauses double from 0.05 s to 2 s, each shortened by up to a half at random, so that many clients do not come back together.

    Raises:
        Exception: what ``work`` raised last, or at once if it is not transient.
    """
    give_up = time.monotonic() + patience
    pause = FIRST_PAUSE
    while True:
        try:
            return work()
        except Exception as error:
            left = give_up - time.monotonic()
            if left <= 0 or not is_transient(error):
                raise
        time.sleep(min(left, pause * random.uniform(0.5, 1)))
        pause = min(2 * pause, LONGEST_PAUSE)
