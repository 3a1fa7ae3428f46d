"""Checks of durations, on a machine that does other work as well."""

from __future__ import annotations

from collections.abc import Callable


def hold_once(check: Callable[[], object], times: int = 8) -> None:
    """Run a check until it holds: what else runs delays one try, a fault fails all.

    Raises:
        AssertionError: the last try's.
    """
    for _ in range(times - 1):
        try:
            check()
        except AssertionError:
            continue
        return
    check()
