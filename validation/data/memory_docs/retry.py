"""Trying again, politely: waits grow, are spread out by chance, and end."""

import random
import time


class GaveUp(Exception):
    """All attempts failed; the last error is its cause."""


def backoff_seconds(attempt, base=0.5, cap=30.0):
    """How long to wait before the given attempt, counted from 0.

    Full jitter: a random time up to the doubled one, so that clients which failed together do not
    come back together.
    """
    return random.uniform(0, min(cap, base * 2 ** attempt))


def with_retries(call, attempts=5, retry_on=(ConnectionError, TimeoutError)):
    """Calls until it succeeds. Errors of other kinds are not retried: they would come again."""
    for attempt in range(attempts):
        try:
            return call()
        except retry_on as error:
            if attempt + 1 == attempts:
                raise GaveUp(f"{attempts} attempts failed") from error
            time.sleep(backoff_seconds(attempt))
